// Sums and largest values over threads of a group of 64 by subgroups of any size: after step.wgsl.

// Threads of the smallest subgroup there may be, at most 16.
override SMALLEST: u32 = 4u;

var<private> own_subgroup: u32;
var<private> own_member: u32;
var<private> n_subgroups: u32;

var<workgroup> reduced: array<vec4<f32>, 64>;

// The number of a thread in its group, such that subgroups are runs of neighbours.
fn number_of(subgroup: u32, n_members: u32, member: u32) -> u32 {
    own_subgroup = subgroup;
    own_member = member;
    n_subgroups = (64u + n_members - 1u) / n_members;
    return subgroup * n_members + member;
}

// Over the sixteen lanes of a line, for each of them. Steps that reach beyond the smallest subgroup go through memory.
fn line_sum(thread: u32, value: vec4<f32>) -> vec4<f32> {
    var sum = value;
    for (var half = 8u; half >= SMALLEST; half /= 2u) {
        workgroupBarrier();
        reduced[thread] = sum;
        workgroupBarrier();
        sum += reduced[thread ^ half];
    }
    for (var half = SMALLEST / 2u; half > 0u; half /= 2u) { sum += subgroupShuffleXor(sum, half); }
    return sum;
}

// Over the group, for each thread.
fn group_sum(thread: u32, value: f32) -> f32 {
    let own = subgroupAdd(value);
    workgroupBarrier();
    if (own_member == 0u) { reduced[own_subgroup].x = own; }
    workgroupBarrier();
    var sum = 0.0;
    for (var at = 0u; at < n_subgroups; at++) { sum += reduced[at].x; }
    return sum;
}

fn group_max(thread: u32, value: f32) -> f32 {
    let own = subgroupMax(value);
    workgroupBarrier();
    if (own_member == 0u) { reduced[own_subgroup].x = own; }
    workgroupBarrier();
    var largest = reduced[0].x;
    for (var at = 1u; at < n_subgroups; at++) { largest = max(largest, reduced[at].x); }
    return largest;
}
