// Rows with results, one after the other, or their norms; a group each: after step.wgsl.
override HAS_NORM: bool = false;

struct Gather { width: u32, stride: u32, weight_at: u32, eps: f32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<uniform> p: Gather;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, MEMBER) {
    let thread = THREAD;
    let start = wanted_row(group.y) * p.stride;
    var scale = 1.0;
    if (HAS_NORM) {
        var sum = 0.0;
        for (var at = thread; at < p.width; at += 64u) { sum += x[start + at] * x[start + at]; }
        sum = group_sum(thread, sum);
        scale = 1.0 / sqrt(sum / f32(p.width) + p.eps);
    }
    for (var at = thread; at < p.width; at += 64u) {
        var value = x[start + at];
        if (HAS_NORM) { value *= scale * vectors[p.weight_at + at]; }
        out[group.y * p.stride + at] = value;
    }
}
