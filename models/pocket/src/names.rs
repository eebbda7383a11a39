//! The closed sets of names: rooms, pumps, valves, cameras, sensors, timer labels, and words for distractors.

use std::collections::BTreeSet;

/// Every word of an id that a phrase can hold, in order and once; the shortest are left to the general vocabulary.
pub fn words() -> Vec<String> {
    let pairs = [ROOMS, PLACES, SENSORS].into_iter().flatten().map(|(_, id)| *id);
    let units = [PUMPS, VALVES, CAMERAS, LABELS, NUMBERED_ROOMS, NUMBERED_PLACES, &["pump", "valve", "camera"]];
    let phrases = pairs.chain(units.into_iter().flatten().copied());
    let words = phrases.flat_map(|phrase| phrase.split(['_', ' '])).filter(|word| word.len() >= 3);
    words.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Phrases for a room and its id.
pub const ROOMS: &[(&str, &str)] = &[
    ("kitchen", "kitchen"),
    ("living room", "living_room"),
    ("lounge", "living_room"),
    ("bedroom", "bedroom"),
    ("main bedroom", "main_bedroom"),
    ("guest room", "guest_room"),
    ("kids room", "kids_room"),
    ("nursery", "nursery"),
    ("bathroom", "bathroom"),
    ("dining room", "dining_room"),
    ("hallway", "hallway"),
    ("hall", "hallway"),
    ("porch", "porch"),
    ("front porch", "porch"),
    ("garage", "garage"),
    ("garden", "garden"),
    ("patio", "patio"),
    ("balcony", "balcony"),
    ("office", "office"),
    ("study", "study"),
    ("attic", "attic"),
    ("basement", "basement"),
    ("cellar", "cellar"),
    ("laundry room", "laundry_room"),
    ("utility room", "utility_room"),
    ("workshop", "workshop"),
    ("greenhouse", "greenhouse"),
    ("barn", "barn"),
    ("shed", "shed"),
    ("driveway", "driveway"),
    ("staircase", "staircase"),
    ("warehouse", "warehouse"),
    ("control room", "control_room"),
    ("pump house", "pump_house"),
    ("boiler room", "boiler_room"),
    ("server room", "server_room"),
    ("canteen", "canteen"),
    ("master bedroom", "main_bedroom"),
    ("family room", "family_room"),
    ("kid's room", "kids_room"),
    ("children's room", "kids_room"),
    ("playroom", "playroom"),
    ("gym", "gym"),
    ("pantry", "pantry"),
    ("closet", "closet"),
    ("toilet", "toilet"),
    ("loft", "loft"),
    ("entrance", "entrance"),
    ("front door", "front_door"),
    ("back door", "back_door"),
    ("gate", "gate"),
    ("yard", "yard"),
    ("backyard", "backyard"),
    ("terrace", "terrace"),
    ("veranda", "veranda"),
    ("deck", "deck"),
    ("carport", "carport"),
    ("pool", "pool"),
    ("stable", "stable"),
    ("chicken coop", "chicken_coop"),
    ("storage room", "storage_room"),
    ("meeting room", "meeting_room"),
    ("conference room", "conference_room"),
    ("break room", "break_room"),
    ("reception", "reception"),
    ("lobby", "lobby"),
    ("corridor", "corridor"),
    ("loading dock", "loading_dock"),
    ("machine room", "machine_room"),
    ("production hall", "production_hall"),
    ("packing hall", "packing_hall"),
    ("lab", "lab"),
    ("parking lot", "parking_lot"),
];

/// Rooms that one is on, at or out on rather than in.
pub const ON_OR_AT: &[(&str, &str)] = &[
    ("porch", "on"),
    ("front porch", "on"),
    ("patio", "on"),
    ("balcony", "on"),
    ("terrace", "on"),
    ("veranda", "on"),
    ("deck", "on"),
    ("driveway", "on"),
    ("staircase", "on"),
    ("front door", "at"),
    ("back door", "at"),
    ("gate", "at"),
    ("entrance", "at"),
    ("reception", "at"),
    ("loading dock", "at"),
    ("pool", "at"),
];

/// Rooms that have a number for a name.
pub const NUMBERED_ROOMS: &[&str] = &["room", "zone", "hall", "building", "bay", "line", "area"];

/// Other places of sensors that have a number for a name.
pub const NUMBERED_PLACES: &[&str] = &["tank", "boiler", "silo", "line", "compressor", "machine"];

/// Places that have sensors besides rooms.
pub const PLACES: &[(&str, &str)] = &[
    ("boiler", "boiler"),
    ("water tank", "water_tank"),
    ("fuel tank", "fuel_tank"),
    ("freezer", "freezer"),
    ("fridge", "fridge"),
    ("cold store", "cold_store"),
    ("compressor", "compressor"),
    ("main line", "main_line"),
    ("pond", "pond"),
    ("well", "well"),
    ("silo", "silo"),
    ("field", "field"),
    ("hot water tank", "hot_water_tank"),
    ("septic tank", "septic_tank"),
    ("heat exchanger", "heat_exchanger"),
    ("generator", "generator"),
    ("battery", "battery"),
    ("inlet", "inlet"),
    ("outlet", "outlet"),
    ("aquarium", "aquarium"),
];

/// Words before "pump"; the id has underscores.
pub const PUMPS: &[&str] = &[
    "well",
    "pond",
    "pool",
    "sump",
    "booster",
    "irrigation",
    "circulation",
    "coolant",
    "transfer",
    "feed",
    "fountain",
    "drainage",
    "garden",
    "water",
    "heat",
    "sewage",
    "fuel",
    "vacuum",
    "dosing",
    "main",
    "hot water",
    "bilge",
    "oil",
    "recirculation",
    "rainwater",
    "basement",
    "greenhouse",
    "fire",
];

/// Words before "valve".
pub const VALVES: &[&str] = &[
    "main",
    "main water",
    "gas",
    "garden",
    "irrigation",
    "boiler",
    "bypass",
    "drain",
    "inlet",
    "outlet",
    "mixing",
    "tank",
    "supply",
    "return",
    "steam",
    "air",
    "cooling",
    "relief",
    "water",
    "greenhouse",
    "hot water",
    "cold water",
    "safety",
    "fuel",
    "oil",
    "lawn",
    "radiator",
    "pool",
    "shutoff",
];

/// Words before "camera".
pub const CAMERAS: &[&str] = &[
    "front door",
    "back door",
    "driveway",
    "gate",
    "garage",
    "yard",
    "barn",
    "loading dock",
    "warehouse",
    "entrance",
    "nursery",
    "street",
    "porch",
    "garden",
    "roof",
    "parking lot",
    "hallway",
    "stable",
    "kitchen",
    "living room",
    "front",
    "back",
    "backyard",
    "pool",
    "lobby",
    "baby",
    "east side",
];

/// What a sensor measures: phrase and id.
pub const SENSORS: &[(&str, &str)] = &[
    ("temperature", "temperature"),
    ("temp", "temperature"),
    ("humidity", "humidity"),
    ("moisture", "humidity"),
    ("pressure", "pressure"),
    ("water pressure", "pressure"),
    ("air quality", "air_quality"),
    ("co2", "co2"),
    ("co2 level", "co2"),
    ("carbon dioxide", "co2"),
    ("water level", "water_level"),
    ("level", "water_level"),
    ("flow", "flow"),
    ("flow rate", "flow"),
    ("power", "power"),
    ("power consumption", "power"),
    ("energy use", "power"),
    ("voltage", "voltage"),
    ("brightness", "brightness"),
    ("noise level", "noise"),
    ("noise", "noise"),
    ("vibration", "vibration"),
    ("soil moisture", "soil_moisture"),
    ("light level", "brightness"),
    ("oxygen level", "oxygen"),
    ("ph", "ph"),
    ("ph value", "ph"),
];

/// Names of timers.
pub const LABELS: &[&str] = &[
    "pasta",
    "egg",
    "eggs",
    "tea",
    "coffee",
    "rice",
    "oven",
    "pizza",
    "cake",
    "bread",
    "laundry",
    "dryer",
    "sauna",
    "shower",
    "nap",
    "workout",
    "break",
    "meeting",
    "homework",
    "chicken",
    "soup",
    "potatoes",
    "sprinkler",
    "filter",
    "batch",
    "curing",
    "roast",
    "cookies",
    "dishes",
    "parking",
    "steak",
    "lasagna",
    "washing machine",
    "study",
    "game",
    "medicine",
    "dough",
    "fermentation",
];

/// Devices named without saying which one.
pub const DEVICES: &[&str] = &["light", "lights", "lamp", "pump", "valve", "camera"];

/// Things that the gateway does not control.
pub const APPLIANCES: &[&str] = &[
    "tv",
    "television",
    "radio",
    "dishwasher",
    "washing machine",
    "oven",
    "microwave",
    "toaster",
    "car",
    "computer",
    "printer",
    "vacuum cleaner",
    "coffee machine",
    "music",
    "speaker",
    "robot",
    "lawn mower",
    "window",
    "curtains",
    "fan",
    "alarm",
    "blinds",
    "shutters",
    "air conditioner",
    "humidifier",
    "sprinklers",
    "kettle",
    "fridge",
    "phone",
    "fireplace",
    "projector",
    "door lock",
    "conveyor",
    "elevator",
];

/// Countries, as distractors.
pub const COUNTRIES: &[&str] = &[
    "france", "spain", "italy", "germany", "japan", "china", "brazil", "canada", "egypt", "norway", "india", "london",
    "paris", "new york",
];

/// Days, as distractors.
pub const DAYS: &[&str] =
    &["today", "tomorrow", "tonight", "on monday", "on friday", "this weekend", "next week", "yesterday"];

/// Games, as distractors.
pub const GAMES: &[&str] = &["football game", "world cup", "match", "election", "race", "super bowl", "chess game"];

/// Things to talk about, as distractors.
pub const THINGS: &[&str] = &[
    "chocolate",
    "milk",
    "bananas",
    "apples",
    "flowers",
    "dinosaurs",
    "space",
    "pancakes",
    "cheese",
    "the moon",
    "the ocean",
    "history",
    "football",
    "books",
    "movies",
    "pasta",
    "coffee",
    "bread",
    "rain",
    "winter",
    "music",
    "eggs",
    "gardening",
    "water",
    "summer",
];

/// People, as distractors.
pub const PEOPLE: &[&str] = &[
    "my mother",
    "mom",
    "dad",
    "my boss",
    "john",
    "anna",
    "the doctor",
    "my sister",
    "peter",
    "grandma",
    "the plumber",
];

/// Animals, as distractors.
pub const ANIMALS: &[&str] = &["dog", "cat", "cow", "horse", "fish", "chicken", "bird"];

/// Music, as distractors.
pub const MUSIC: &[&str] =
    &["jazz", "rock music", "my playlist", "the beatles", "classical music", "christmas songs", "a podcast"];

/// Colours, which the lights here do not have.
pub const COLORS: &[&str] = &["red", "blue", "green", "purple", "pink", "orange", "yellow", "warm white"];
