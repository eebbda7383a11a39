// Sums and largest values over threads of a group of 64 through its memory alone: after step.wgsl.
var<workgroup> reduced: array<vec4<f32>, 64>;

// Over the sixteen lanes of a line, for each of them.
fn line_sum(thread: u32, value: vec4<f32>) -> vec4<f32> {
    var sum = value;
    for (var half = 8u; half > 0u; half /= 2u) {
        workgroupBarrier();
        reduced[thread] = sum;
        workgroupBarrier();
        sum += reduced[thread ^ half];
    }
    return sum;
}

// Over the group, for each thread.
fn group_sum(thread: u32, value: f32) -> f32 {
    workgroupBarrier();
    reduced[thread].x = value;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { reduced[thread].x += reduced[thread + half].x; }
    }
    workgroupBarrier();
    return reduced[0].x;
}

fn group_max(thread: u32, value: f32) -> f32 {
    workgroupBarrier();
    reduced[thread].x = value;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { reduced[thread].x = max(reduced[thread].x, reduced[thread + half].x); }
    }
    workgroupBarrier();
    return reduced[0].x;
}
