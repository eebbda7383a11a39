// Keys and values as bytes, with a scale per 32 behind those of a block: f32, but a value that a half holds.
alias Word = u32;
const HAS_SCALES: bool = true;

fn widened(word: Word) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}
fn scale_in(word: Word) -> f32 { return bitcast<f32>(word); }
