// Stored weights, 32 at a time: see layout.rs for how they come to lie so.
//
// Weight = scale * level + minimum, one scale per SUB weights. A level is the stored code less OFFSET, or a signed byte of
// a table of sixteen; plain numbers have no scales.

// Bits of a code: 4 or 8 (signed); 16 are halves, 17 the upper halves of f32, 32 are f32.
override BITS: u32 = 4u;
override SUB: u32 = 32u;
override OFFSET: u32 = 0u;
override HAS_MIN: bool = false;
// Scales and minima are halves, not f32.
override HALVES: bool = true;
override HAS_TABLE: bool = false;
override TABLE_0: u32 = 0u;
override TABLE_1: u32 = 0u;
override TABLE_2: u32 = 0u;
override TABLE_3: u32 = 0u;

@group(0) @binding(1) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<u32>;

// A half as f32, exactly: devices may take subnormal ones for zero.
fn half_value(bits: u32) -> f32 {
    let exponent = (bits >> 10u) & 31u;
    let mantissa = bits & 0x3FFu;
    let rebased = select(exponent + 112u, 255u, exponent == 31u);
    let normal = (rebased << 23u) | (mantissa << 13u);
    let small = bitcast<u32>(f32(mantissa) * 5.9604644775390625e-8);
    return bitcast<f32>(select(normal, small, exponent == 0u) | ((bits & 0x8000u) << 16u));
}

fn two_halves(word: u32) -> vec2<f32> { return vec2<f32>(half_value(word & 0xFFFFu), half_value(word >> 16u)); }

// Scale and minimum of a run of SUB weights, numbered from the start of the row that begins at word `start`.
fn scale_and_min(start: u32, run: u32) -> vec2<f32> {
    if (HALVES) {
        if (HAS_MIN) { return two_halves(scales[start + run]); }
        return vec2<f32>(half_value((scales[start + run / 2u] >> (16u * (run & 1u))) & 0xFFFFu), 0.0);
    }
    if (HAS_MIN) {
        return vec2<f32>(bitcast<f32>(scales[start + 2u * run]), bitcast<f32>(scales[start + 2u * run + 1u]));
    }
    return vec2<f32>(bitcast<f32>(scales[start + run]), 0.0);
}

// Words of scales of a row.
fn scale_words(units: u32) -> u32 {
    let runs = units * (32u / SUB);
    if (HALVES && !HAS_MIN) { return (runs + 1u) / 2u; }
    return select(runs, 2u * runs, !HALVES && HAS_MIN);
}

fn of_table(code: vec4<u32>) -> vec4<f32> {
    let place = code >> vec4<u32>(2u);
    let low = select(vec4<u32>(TABLE_0), vec4<u32>(TABLE_1), place == vec4<u32>(1u));
    let high = select(vec4<u32>(TABLE_2), vec4<u32>(TABLE_3), place == vec4<u32>(3u));
    let word = select(low, high, place >= vec4<u32>(2u));
    let shift = vec4<u32>(24u) - 8u * (code & vec4<u32>(3u));
    return vec4<f32>(bitcast<vec4<i32>>(word << shift) >> vec4<u32>(24u));
}

// Levels of four 4-bit codes of the lower half of a word.
fn four_nibbles(word: u32) -> vec4<f32> {
    let code = (vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    if (HAS_TABLE) { return of_table(code); }
    return vec4<f32>(code) - vec4<f32>(f32(OFFSET));
}

fn four_bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(bitcast<vec4<i32>>(vec4<u32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
}

// Vectors of codes that 32 weights take.
fn unit_vectors() -> u32 {
    if (BITS == 17u) { return 4u; }
    return BITS / 4u;
}

// Weights 32 * unit .. 32 * unit + 32 of a row, of `units` such, without their scales and minima.
fn read_levels(row: u32, units: u32, unit: u32, out: ptr<function, array<vec4<f32>, 8>>) {
    let at = (row * units + unit) * unit_vectors();
    if (BITS == 4u) {
        let words = codes[at];
        for (var word = 0u; word < 4u; word++) {
            (*out)[2u * word] = four_nibbles(words[word]);
            (*out)[2u * word + 1u] = four_nibbles(words[word] >> 16u);
        }
    } else if (BITS == 8u) {
        for (var part = 0u; part < 2u; part++) {
            let words = codes[at + part];
            for (var word = 0u; word < 4u; word++) {
                (*out)[4u * part + word] = four_bytes(words[word]);
            }
        }
    } else if (BITS == 16u) {
        for (var part = 0u; part < 4u; part++) {
            let words = codes[at + part];
            (*out)[2u * part] = vec4<f32>(two_halves(words.x), two_halves(words.y));
            (*out)[2u * part + 1u] = vec4<f32>(two_halves(words.z), two_halves(words.w));
        }
    } else if (BITS == 17u) {
        for (var part = 0u; part < 4u; part++) {
            let words = codes[at + part];
            let low = bitcast<vec4<f32>>(words << vec4<u32>(16u));
            let high = bitcast<vec4<f32>>(words & vec4<u32>(0xFFFF0000u));
            (*out)[2u * part] = vec4<f32>(low.x, high.x, low.y, high.y);
            (*out)[2u * part + 1u] = vec4<f32>(low.z, high.z, low.w, high.w);
        }
    } else {
        for (var part = 0u; part < 8u; part++) {
            (*out)[part] = bitcast<vec4<f32>>(codes[at + part]);
        }
    }
}

// The weights themselves.
fn read_unit(row: u32, units: u32, unit: u32, out: ptr<function, array<vec4<f32>, 8>>) {
    read_levels(row, units, unit, out);
    if (BITS < 16u) {
        let start = row * scale_words(units);
        let runs = 32u / SUB;
        for (var run = 0u; run < runs; run++) {
            let of_run = scale_and_min(start, unit * runs + run);
            for (var four = run * (SUB / 4u); four < (run + 1u) * (SUB / 4u); four++) {
                (*out)[four] = of_run.x * (*out)[four] + vec4<f32>(of_run.y);
            }
        }
    }
}
