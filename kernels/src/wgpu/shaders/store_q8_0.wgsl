// Writes keys and values of all rows into their pages as bytes with a scale per 32, a thread each, those of keys first:
// after step.wgsl and kv_q8_0.wgsl.
struct Store {
    n_heads: u32,
    page_tokens: u32,
    pool: u32,
    // Groups that write keys.
    key_groups: u32,
    key_dim: u32,
    key_stride: u32,
    value_dim: u32,
    value_stride: u32,
}

@group(0) @binding(1) var<storage, read> k: array<f32>;
@group(0) @binding(2) var<storage, read> v: array<f32>;
@group(0) @binding(3) var<storage, read_write> keys: array<Word>;
@group(0) @binding(4) var<storage, read_write> values: array<Word>;
@group(0) @binding(5) var<uniform> p: Store;

// The nearest half, to even, as f32; what is too large for a half stays so.
fn nearest_half(value: f32) -> f32 {
    if (value < 6.103515625e-5) { return round(value * 16777216.0) * 5.9604644775390625e-8; }
    let bits = bitcast<u32>(value);
    return bitcast<f32>((bits + 0xFFFu + ((bits >> 13u) & 1u)) & 0xFFFFE000u);
}

fn element(is_key: bool, at: u32) -> f32 {
    if (is_key) { return k[at]; }
    return v[at];
}

fn put(is_key: bool, at: u32, word: u32) {
    if (is_key) { keys[at] = word; } else { values[at] = word; }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let is_key = group.x < p.key_groups;
    let number = select(group.x - p.key_groups, group.x, is_key) * 64u + thread;
    let dim = select(p.value_dim, p.key_dim, is_key);
    let runs = dim / 32u;
    if (number >= p.n_heads * runs) { return; }
    let head = number / runs;
    let run = number % runs;
    let start = group.y * select(p.value_stride, p.key_stride, is_key) + head * dim + run * 32u;
    // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
    var peak_bits = 0u;
    for (var at = 0u; at < 32u; at++) {
        peak_bits = max(peak_bits, bitcast<u32>(element(is_key, start + at)) & 0x7FFFFFFFu);
    }
    var scale = nearest_half(bitcast<f32>(peak_bits) / 127.0);
    // What is not finite, or too large for a scale, shows as a scale that is not finite. Codes are then zeros.
    let is_good = peak_bits < 0x7F800000u && scale <= 65504.0;
    var inverse = 0.0;
    if (is_good && scale > 0.0) { inverse = 1.0 / scale; }
    let position = position_of(group.y);
    let token = position % p.page_tokens;
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    // Words of codes of a token, and of a block with its scales.
    let words = dim / 4u;
    let block = (page * p.n_heads + head) * p.page_tokens * (words + runs);
    for (var four = 0u; four < 8u; four++) {
        var word = 0u;
        for (var part = 0u; part < 4u; part++) {
            let value = select(0.0, element(is_key, start + four * 4u + part) * inverse, is_good);
            word |= (bitcast<u32>(i32(round(clamp(value, -127.0, 127.0)))) & 0xFFu) << (8u * part);
        }
        put(is_key, block + token * words + run * 8u + four, word);
    }
    let bits = select(0x7F800000u, bitcast<u32>(scale), is_good);
    put(is_key, block + p.page_tokens * words + token * runs + run, bits);
}
