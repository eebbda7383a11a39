// Keys and values as halves: four of a vector are a word of two.
alias Word = vec2<u32>;
const HAS_SCALES: bool = false;

fn widened(word: Word) -> vec4<f32> { return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y)); }
fn narrowed(v: vec4<f32>) -> Word { return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw)); }
fn scale_in(word: Word) -> f32 { return 1.0; }
