// Sums up what the experts of each row made of it: after step.wgsl.
struct Combine { n_used: u32, stride: u32, }

@group(0) @binding(1) var<storage, read> parts: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> shares: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Combine;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = group.x * 64u + thread;
    if (at >= p.stride) { return; }
    var sum = vec4<f32>(0.0);
    for (var place = 0u; place < p.n_used; place++) {
        let slot = group.y * p.n_used + place;
        sum += shares[slot] * parts[slot * p.stride + at];
    }
    out[group.y * p.stride + at] = sum;
}
