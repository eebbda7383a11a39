// Keys and values as f32.
alias Word = vec4<f32>;
const HAS_SCALES: bool = false;

fn widened(word: Word) -> vec4<f32> { return word; }
fn narrowed(v: vec4<f32>) -> Word { return v; }
fn scale_in(word: Word) -> f32 { return 1.0; }
