// Products with few input rows: sixteen lanes share a row of the weight, four rows make a group. INPUTS input rows meet
// each weight while it is in registers.
override INPUTS: u32 = 1u;

// Of each line what gates are met with.
var<workgroup> ups: array<vec4<f32>, 4>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    MEMBER
) {
    let thread = THREAD;
    let lane = thread % 16u;
    let line = thread / 16u;
    // Of a gated unit, lines 2 and 3 are what gates of lines 0 and 1 are met with.
    let per_group = select(2u, 4u, GATED == 0u);
    let number = group_number(group, n_groups) * per_group + line % per_group;
    let first_input = group.z * INPUTS;
    let last_input = n_inputs() - 1u;
    var row = stored_row(number) + select(0u, 8u, line >= per_group);
    var is_ours = number < p.n_out;
    if (IS_EXPERT) {
        let whole = routes[min(first_input, last_input)].x * p.expert_rows + row;
        row = whole - p.first_stored;
        is_ours = is_ours && whole >= p.first_stored && row < p.n_stored;
    }
    row = select(0u, row, is_ours);
    var sum = vec4<f32>(0.0);
    var square = vec4<f32>(0.0);
    var w: array<vec4<f32>, 8>;
    for (var unit = lane; unit < p.units; unit += 16u) {
        read_unit(row, p.units, unit, &w);
        if (HAS_NORM) {
            for (var four = 0u; four < 8u; four++) { w[four] *= norm_weight(unit * 8u + four); }
        }
        for (var input = 0u; input < INPUTS; input++) {
            var x_row = min(first_input + input, last_input);
            if (IS_EXPERT) { x_row = x_row / p.slots_per_x; }
            var own = 0.0;
            var own_square = 0.0;
            for (var four = 0u; four < 8u; four++) {
                let values = read_x(x_row, unit * 8u + four);
                own += dot(w[four], values);
                if (HAS_NORM) { own_square += dot(values, values); }
            }
            sum[input] += own;
            square[input] += own_square;
        }
    }
    sum = line_sum(thread, sum);
    if (HAS_NORM) { square = line_sum(thread, square); }
    if (GATED != 0u) {
        if (lane == 0u) { ups[line] = sum; }
        workgroupBarrier();
    }
    if (lane == 0u && line < per_group && is_ours) {
        for (var input = 0u; input < INPUTS; input++) {
            if (first_input + input > last_input) { continue; }
            var scale = 1.0;
            if (HAS_NORM) { scale = norm_scale(square[input]); }
            var value = sum[input] * scale;
            if (GATED != 0u) { value = unit_of(value, ups[line + 2u][input] * scale); }
            put(first_input + input, p.first_out + number, value);
        }
    }
}
