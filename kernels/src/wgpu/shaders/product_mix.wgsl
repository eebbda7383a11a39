// What the experts of each row make of what they had in mind, by their shares: sixteen lanes share a row of weights, four
// rows make a group. After step.wgsl, weights.wgsl and product.wgsl.

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    MEMBER
) {
    let thread = THREAD;
    let lane = thread % 16u;
    let number = group_number(group, n_groups) * 4u + thread / 16u;
    var sum = 0.0;
    var w: array<vec4<f32>, 8>;
    for (var place = 0u; place < p.slots_per_x; place++) {
        let slot = group.z * p.slots_per_x + place;
        let whole = routes[slot].x * p.expert_rows + number;
        let row = whole - p.first_stored;
        // Whose rows lie in another part is met there.
        if (number >= p.n_out || whole < p.first_stored || row >= p.n_stored) { continue; }
        let share = bitcast<f32>(routes[slot].y);
        for (var unit = lane; unit < p.units; unit += 16u) {
            read_unit(row, p.units, unit, &w);
            var own = 0.0;
            for (var four = 0u; four < 8u; four++) { own += dot(w[four], read_x(slot, unit * 8u + four)); }
            sum += share * own;
        }
    }
    sum = line_sum(thread, vec4<f32>(sum)).x;
    if (lane == 0u && number < p.n_out) { put(group.z, number, sum); }
}
