// One vector of four per thread: after step.wgsl.
// 0 sum, 1 gated SiLU, 2 gated GELU (tanh), 3 multiple.
override KIND: u32 = 0u;

struct Elementwise {
    stride: u32,
    // Rows per row of the step: more than one for experts.
    per_row: u32,
    factor: f32,
}

@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> p: Elementwise;

// Beyond 20 it is one to the last bit, and exponentials may leave their range.
fn safe_tanh(v: vec4<f32>) -> vec4<f32> { return tanh(clamp(v, vec4<f32>(-20.0), vec4<f32>(20.0))); }

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = group_number(group, n_groups) * 64u + thread;
    if (at >= n_rows() * p.per_row * p.stride) { return; }
    let v = a[at];
    if (KIND == 0u) {
        out[at] = v + b[at];
    } else if (KIND == 1u) {
        out[at] = v / (1.0 + exp(min(-v, vec4<f32>(85.0)))) * b[at];
    } else if (KIND == 2u) {
        let inner = 0.7978845608028654 * (v + 0.044715 * v * v * v);
        out[at] = 0.5 * v * (1.0 + safe_tanh(inner)) * b[at];
    } else {
        out[at] = v * p.factor;
    }
}
