// Writes keys and values of all rows into their pages as bytes with a scale per 32, a thread each: after store_read.wgsl
// and kv_q8_0.wgsl.

// The nearest half, to even, as f32; what is too large for a half stays so.
fn nearest_half(value: f32) -> f32 {
    if (value < 6.103515625e-5) { return round(value * 16777216.0) * 5.9604644775390625e-8; }
    let bits = bitcast<u32>(value);
    return bitcast<f32>((bits + 0xFFFu + ((bits >> 13u) & 1u)) & 0xFFFFE000u);
}

fn write(is_key: bool, at: u32, word: u32) {
    if (is_key) { keys[at] = word; } else { values[at] = word; }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, MEMBER) {
    let thread = THREAD;
    let is_key = group.x < p.n_heads;
    let head = group.x % p.n_heads;
    read_head(group.y, head, is_key, thread);
    let runs = select(p.value_dim, p.key_dim, is_key) / 32u;
    let run = thread;
    if (run >= runs) { return; }
    var elements: array<f32, 32>;
    // As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
    var peak_bits = 0u;
    for (var at = 0u; at < 32u; at++) {
        elements[at] = element(group.y, run * 32u + at, is_key);
        peak_bits = max(peak_bits, bitcast<u32>(elements[at]) & 0x7FFFFFFFu);
    }
    let scale = nearest_half(bitcast<f32>(peak_bits) / 127.0);
    // What is not finite, or too large for a scale, shows as a scale that is not finite. Codes are then zeros.
    let is_good = peak_bits < 0x7F800000u && scale <= 65504.0;
    var inverse = 0.0;
    if (is_good && scale > 0.0) { inverse = 1.0 / scale; }
    let position = position_of(group.y);
    let token = position % p.page_tokens;
    let page = step[table_of(group.y, p.pool) + position / p.page_tokens];
    // Words of codes of a token, and of a block with its scales.
    let words = runs * 8u;
    let block = (page * p.n_heads + head) * p.page_tokens * (words + runs);
    for (var four = 0u; four < 8u; four++) {
        var word = 0u;
        for (var part = 0u; part < 4u; part++) {
            let value = select(0.0, elements[four * 4u + part] * inverse, is_good);
            word |= (bitcast<u32>(i32(round(clamp(value, -127.0, 127.0)))) & 0xFFu) << (8u * part);
        }
        write(is_key, block + token * words + run * 8u + four, word);
    }
    let bits = select(0x7F800000u, bitcast<u32>(scale), is_good);
    write(is_key, block + p.page_tokens * words + token * runs + run, bits);
}
