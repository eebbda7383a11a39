// Products with few input rows: sixteen lanes share a row of the weight, four rows make a group. INPUTS input rows meet
// each weight while it is in registers.
override INPUTS: u32 = 1u;

var<workgroup> sums: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lane = thread % 16u;
    let number = group_number(group, n_groups) * 4u + thread / 16u;
    let first_input = group.z * INPUTS;
    let last_input = n_inputs() - 1u;
    // Where the row lies in this part of the weight, and in the output.
    var row = number;
    var col = p.first + number;
    var is_ours = number < p.n_out;
    if (IS_EXPERT) {
        let whole = chosen[min(first_input, last_input)] * p.expert_rows + number;
        row = whole - p.first;
        col = number;
        is_ours = number < p.expert_rows && whole >= p.first && row < p.n_out;
    }
    row = select(0u, row, is_ours);
    var sum = vec4<f32>(0.0);
    var w: array<vec4<f32>, 8>;
    for (var unit = lane; unit < p.units; unit += 16u) {
        read_unit(row, p.units, unit, &w);
        for (var input = 0u; input < INPUTS; input++) {
            var x_row = min(first_input + input, last_input);
            if (IS_EXPERT) { x_row = x_row / p.slots_per_x; }
            var own = 0.0;
            for (var four = 0u; four < 8u; four++) {
                own += dot(w[four], read_x(x_row, unit * 8u + four));
            }
            sum[input] += own;
        }
    }
    sums[thread] = sum;
    for (var half = 8u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) { sums[thread] += sums[thread + half]; }
    }
    if (lane == 0u && is_ours) {
        for (var input = 0u; input < INPUTS; input++) {
            if (first_input + input <= last_input) { put(first_input + input, col, sums[thread][input]); }
        }
    }
}
