// Logits times a factor, then capped, in place: after step.wgsl.
override HAS_CAP: bool = false;

struct Finish { stride: u32, factor: f32, cap: f32, }

@group(0) @binding(1) var<storage, read_write> logits: array<f32>;
@group(0) @binding(2) var<uniform> p: Finish;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = group_number(group, n_groups) * 64u + thread;
    if (at >= n_wants() * p.stride) { return; }
    let logit = logits[at] * p.factor;
    // What is not finite is to show.
    if (HAS_CAP && is_finite(logit)) {
        logits[at] = p.cap * tanh(clamp(logit / p.cap, -20.0, 20.0));
    } else {
        logits[at] = logit;
    }
}
