// Writes keys or values of all rows into their pages as bytes with a scale per 32, a thread each: after step.wgsl and
// kv_q8_0.wgsl.
struct Store { n_heads: u32, dim: u32, fours: u32, stride: u32, page_tokens: u32, pool: u32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> plane: array<Word>;
@group(0) @binding(3) var<uniform> p: Store;

// The nearest half, to even, as f32; what is too large for a half stays so.
fn nearest_half(value: f32) -> f32 {
    if (value < 6.103515625e-5) { return round(value * 16777216.0) * 5.9604644775390625e-8; }
    let bits = bitcast<u32>(value);
    return bitcast<f32>((bits + 0xFFFu + ((bits >> 13u) & 1u)) & 0xFFFFE000u);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let number = group.x * 64u + thread;
    let runs = p.dim / 32u;
    if (number >= p.n_heads * runs) { return; }
    let head = number / runs;
    let run = number % runs;
    let start = group.y * p.stride + head * p.dim + run * 32u;
    // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
    var peak_bits = 0u;
    for (var at = 0u; at < 32u; at++) { peak_bits = max(peak_bits, bitcast<u32>(x[start + at]) & 0x7FFFFFFFu); }
    var scale = nearest_half(bitcast<f32>(peak_bits) / 127.0);
    // What is not finite, or too large for a scale, shows as a scale that is not finite. Codes are then zeros.
    let is_finite = peak_bits < 0x7F800000u && scale <= 65504.0;
    var inverse = 0.0;
    if (is_finite && scale > 0.0) { inverse = 1.0 / scale; }
    let position = position_of(group.y);
    let token = position % p.page_tokens;
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    let block = (page * p.n_heads + head) * p.page_tokens * (p.fours + runs);
    for (var four = 0u; four < 8u; four++) {
        var word = 0u;
        for (var part = 0u; part < 4u; part++) {
            let code = i32(round(clamp(select(0.0, x[start + four * 4u + part] * inverse, is_finite), -127.0, 127.0)));
            word |= (bitcast<u32>(code) & 0xFFu) << (8u * part);
        }
        plane[block + token * p.fours + run * 8u + four] = word;
    }
    plane[block + p.page_tokens * p.fours + token * runs + run] =
        select(0x7F800000u, bitcast<u32>(scale), is_finite);
}
