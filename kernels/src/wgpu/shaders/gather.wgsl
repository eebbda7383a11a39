// Rows with results, one after the other: after step.wgsl.
struct Gather { stride: u32, }

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> p: Gather;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let at = group.x * 64u + thread;
    if (at < p.stride) { out[group.y * p.stride + at] = x[wanted_row(group.y) * p.stride + at]; }
}
