// Products with many input rows: a group meets 64 rows of the weight with 32 input rows, 32 columns at a time from
// workgroup memory; a thread eight times four of them. After product.wgsl and write_tile.wgsl.
const STORED_ROWS: u32 = 64u;
const INPUT_ROWS: u32 = 32u;
// Vectors from one row to the next: one more than there are, so that rows begin in different banks.
const STRIDE: u32 = 9u;

var<workgroup> w_tile: array<vec4<f32>, 576>;
var<workgroup> x_tile: array<vec4<f32>, 288>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.x * STORED_ROWS;
    let first_input = group.y * INPUT_ROWS;
    let last_input = n_inputs() - 1u;
    let own_row = thread % 8u;
    let own_input = thread / 8u;
    var sums: array<vec4<f32>, 8>;
    for (var at = 0u; at < 8u; at++) { sums[at] = vec4<f32>(0.0); }
    // Of the inputs that this thread brings, of what it brings.
    var squares = vec4<f32>(0.0);
    var w: array<vec4<f32>, 8>;
    for (var unit = 0u; unit < p.units; unit++) {
        read_unit(min(first_row + thread, p.n_stored - 1u), p.units, unit, &w);
        for (var four = 0u; four < 8u; four++) { w_tile[thread * STRIDE + four] = w[four]; }
        let four = thread % 8u;
        for (var at = 0u; at < 4u; at++) {
            let input = at * 8u + thread / 8u;
            var values = read_x(min(first_input + input, last_input), unit * 8u + four);
            if (HAS_NORM) {
                squares[at] += dot(values, values);
                values *= norm_weight(unit * 8u + four);
            }
            x_tile[input * STRIDE + four] = values;
        }
        workgroupBarrier();
        for (var four = 0u; four < 8u; four++) {
            let x0 = x_tile[own_input * STRIDE + four];
            let x1 = x_tile[(own_input + 8u) * STRIDE + four];
            let x2 = x_tile[(own_input + 16u) * STRIDE + four];
            let x3 = x_tile[(own_input + 24u) * STRIDE + four];
            for (var at = 0u; at < 8u; at++) {
                let weights = w_tile[(own_row + 8u * at) * STRIDE + four];
                sums[at] += vec4<f32>(dot(weights, x0), dot(weights, x1), dot(weights, x2), dot(weights, x3));
            }
        }
        workgroupBarrier();
    }
    var scales = vec4<f32>(1.0);
    if (HAS_NORM) {
        // Of each input the squares of the eight threads that bring it.
        for (var at = 0u; at < 4u; at++) { x_tile[at * 64u + thread].x = squares[at]; }
        workgroupBarrier();
        for (var part = 0u; part < 4u; part++) {
            var sum = 0.0;
            for (var other = 0u; other < 8u; other++) { sum += x_tile[part * 64u + own_input * 8u + other].x; }
            scales[part] = norm_scale(sum);
        }
    }
    write_tile(first_row, first_input, last_input, own_row, own_input, scales, &sums);
}
