// Root-mean-square norm of runs of neighbours, one group each, and what is added to it: after step.wgsl.
override HAS_OTHER: bool = false;

struct Norm { len: u32, stride: u32, weight_at: u32, other_stride: u32, out_stride: u32, eps: f32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> vectors: array<f32>;
@group(0) @binding(3) var<storage, read> other: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<uniform> p: Norm;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32, MEMBER) {
    let thread = THREAD;
    let start = group.y * p.stride + group.x * p.len;
    var sum = 0.0;
    for (var at = thread; at < p.len; at += 64u) { sum += x[start + at] * x[start + at]; }
    sum = group_sum(thread, sum);
    let scale = 1.0 / sqrt(sum / f32(p.len) + p.eps);
    for (var at = thread; at < p.len; at += 64u) {
        var value = x[start + at] * scale * vectors[p.weight_at + at];
        if (HAS_OTHER) { value += other[group.y * p.other_stride + group.x * p.len + at]; }
        out[group.y * p.out_stride + group.x * p.len + at] = value;
    }
}
