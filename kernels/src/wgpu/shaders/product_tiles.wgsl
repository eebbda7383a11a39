// Products with many input rows whose elements are rounded, 32 neighbours by one scale: levels of weights are met with
// them as they are, scales and minima with the sums. Groups and threads as in product_many.wgsl; after product.wgsl and
// one of tile_*.wgsl.
const STORED_ROWS: u32 = 64u;
const INPUT_ROWS: u32 = 32u;
// From one row to the next: one more than there are, so that rows begin in different banks.
const STRIDE: u32 = 9u;

var<workgroup> w_tile: array<Four, 576>;
var<workgroup> x_tile: array<Four, 288>;
// Of each row the scales and minima of a unit's runs: two at most.
var<workgroup> w_scales: array<vec2<f32>, 128>;
// Of each input the largest elements of eight fours.
var<workgroup> peaks: array<f32, 256>;
var<workgroup> square_sums: array<f32, 256>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * STORED_ROWS;
    let first_input = group.y * INPUT_ROWS;
    let last_input = n_inputs() - 1u;
    let own_row = thread % 8u;
    let own_input = thread / 8u;
    let runs = 32u / SUB;
    let per_run = 8u / runs;
    var sums: array<vec4<f32>, 8>;
    for (var at = 0u; at < 8u; at++) { sums[at] = vec4<f32>(0.0); }
    // Of the inputs that this thread brings, of what it brings.
    var squares = vec4<f32>(0.0);
    var w: array<vec4<f32>, 8>;
    var brought: array<vec4<f32>, 4>;
    for (var unit = 0u; unit < p.units; unit++) {
        let row = min(first_row + thread, p.n_stored - 1u);
        read_levels(row, p.units, unit, &w);
        for (var four = 0u; four < 8u; four++) { w_tile[thread * STRIDE + four] = four_of(w[four]); }
        for (var run = 0u; run < runs; run++) {
            w_scales[2u * thread + run] = scale_and_min(row * scale_words(p.units), unit * runs + run);
        }
        let four = thread % 8u;
        for (var at = 0u; at < 4u; at++) {
            let input = at * 8u + thread / 8u;
            var values = read_x(min(first_input + input, last_input), unit * 8u + four);
            if (HAS_NORM) {
                squares[at] += dot(values, values);
                values *= norm_weight(unit * 8u + four);
            }
            brought[at] = values;
            // By their bits, so that what is not finite is larger than all.
            let bits = bitcast<vec4<u32>>(values) & vec4<u32>(0x7FFFFFFFu);
            peaks[input * 8u + four] = bitcast<f32>(max(max(bits.x, bits.y), max(bits.z, bits.w)));
        }
        workgroupBarrier();
        for (var at = 0u; at < 4u; at++) {
            let input = at * 8u + thread / 8u;
            let peak = peak_of(input);
            var inverse = 0.0;
            // Of less nothing is left.
            if (peak > 1e-30 && is_finite(peak)) { inverse = LARGEST / peak; }
            // Rounding may lead beyond the largest by a bit.
            let scaled = clamp(brought[at] * inverse, vec4<f32>(-LARGEST), vec4<f32>(LARGEST));
            x_tile[input * STRIDE + four] = four_of(scaled);
        }
        var x_scales: vec4<f32>;
        for (var part = 0u; part < 4u; part++) { x_scales[part] = peak_of(own_input + 8u * part) / LARGEST; }
        workgroupBarrier();
        for (var run = 0u; run < runs; run++) {
            var alls = array<Sum, 4>();
            if (HAS_MIN) {
                for (var part = 0u; part < 4u; part++) {
                    for (var four = run * per_run; four < (run + 1u) * per_run; four++) {
                        alls[part] += all_of(x_tile[(own_input + 8u * part) * STRIDE + four]);
                    }
                }
            }
            for (var at = 0u; at < 8u; at++) {
                let row = own_row + 8u * at;
                var own = array<Sum, 4>();
                for (var four = run * per_run; four < (run + 1u) * per_run; four++) {
                    let weights = w_tile[row * STRIDE + four];
                    own[0] = added(own[0], weights, x_tile[own_input * STRIDE + four]);
                    own[1] = added(own[1], weights, x_tile[(own_input + 8u) * STRIDE + four]);
                    own[2] = added(own[2], weights, x_tile[(own_input + 16u) * STRIDE + four]);
                    own[3] = added(own[3], weights, x_tile[(own_input + 24u) * STRIDE + four]);
                }
                let scale = w_scales[2u * row + run];
                var met = scale.x * vec4<f32>(f32(own[0]), f32(own[1]), f32(own[2]), f32(own[3]));
                if (HAS_MIN) {
                    met += scale.y * vec4<f32>(f32(alls[0]), f32(alls[1]), f32(alls[2]), f32(alls[3]));
                }
                sums[at] += x_scales * met;
            }
        }
        workgroupBarrier();
    }
    var scales = vec4<f32>(1.0);
    if (HAS_NORM) {
        // Of each input the squares of the eight threads that bring it.
        for (var at = 0u; at < 4u; at++) { square_sums[at * 64u + thread] = squares[at]; }
        workgroupBarrier();
        for (var part = 0u; part < 4u; part++) {
            var sum = 0.0;
            for (var other = 0u; other < 8u; other++) { sum += square_sums[part * 64u + own_input * 8u + other]; }
            scales[part] = norm_scale(sum);
        }
    }
    write_tile(first_row, first_input, last_input, own_row, own_input, scales, &sums);
}

// The largest magnitude of an input's unit.
fn peak_of(input: u32) -> f32 {
    var bits = 0u;
    for (var four = 0u; four < 8u; four++) { bits = max(bits, bitcast<u32>(peaks[input * 8u + four])); }
    return bitcast<f32>(bits);
}
