// The id of the largest logit of each result, the lowest among equals; all ones where a logit is not finite. After
// step.wgsl.
struct ArgMax { n_vocab: u32, stride: u32, }

@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;
@group(0) @binding(3) var<uniform> p: ArgMax;

const NOT_FINITE: u32 = 0xFFFFFFFFu;

var<workgroup> best: array<f32, 256>;
var<workgroup> best_id: array<u32, 256>;

fn is_better(logit: f32, id: u32, other: f32, other_id: u32) -> bool {
    if (id == NOT_FINITE || other_id == NOT_FINITE) { return id == NOT_FINITE; }
    return logit > other || (logit == other && id < other_id);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.y * p.stride;
    // Worse than any: the highest id of the least number.
    var logit = -3.4028234e38;
    var id = NOT_FINITE - 1u;
    for (var at = thread; at < p.n_vocab; at += 256u) {
        let other = logits[start + at];
        let other_id = select(NOT_FINITE, at, is_finite(other));
        if (is_better(other, other_id, logit, id)) {
            logit = other;
            id = other_id;
        }
    }
    best[thread] = logit;
    best_id[thread] = id;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half && is_better(best[thread + half], best_id[thread + half], best[thread], best_id[thread])) {
            best[thread] = best[thread + half];
            best_id[thread] = best_id[thread + half];
        }
    }
    if (thread == 0u) { ids[group.y] = best_id[0]; }
}
