//! The closed sets of names: rooms, pumps, valves, cameras, sensors, timer labels, and words for distractors.

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
];

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
    ("pool", "pool"),
    ("pond", "pond"),
    ("well", "well"),
    ("silo", "silo"),
    ("stable", "stable"),
    ("field", "field"),
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
    "the garden",
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
