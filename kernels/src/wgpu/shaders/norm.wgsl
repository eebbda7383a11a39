// Root-mean-square norm of runs of neighbours, one group each: after step.wgsl.
struct Norm { len: u32, stride: u32, eps: f32, }

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<uniform> p: Norm;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.y * p.stride + group.x * p.len;
    var sum = 0.0;
    for (var at = thread; at < p.len; at += 64u) { sum += x[start + at] * x[start + at]; }
    sums[thread] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) { sums[thread] += sums[thread + half]; }
    }
    workgroupBarrier();
    let scale = 1.0 / sqrt(sums[0] / f32(p.len) + p.eps);
    for (var at = thread; at < p.len; at += 64u) { out[start + at] = x[start + at] * scale * weight[at]; }
}
