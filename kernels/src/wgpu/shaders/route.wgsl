// The best experts of each row with their weights, softmax over all; a thread per row. After step.wgsl.
override IS_RENORMALISED: bool = false;

struct Route { n_experts: u32, n_used: u32, stride: u32, }

@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(3) var<storage, read_write> shares: array<f32>;
@group(0) @binding(4) var<uniform> p: Route;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.x * 64u + thread;
    if (row >= n_rows()) { return; }
    let start = row * p.stride;
    var is_good = true;
    var bad = 0.0;
    for (var expert = 0u; expert < p.n_experts; expert++) {
        let logit = logits[start + expert];
        if (!is_finite(logit)) {
            is_good = false;
            bad = logit;
        }
    }
    // One after the other: the best of those behind the last one, the lowest number first among equals.
    var last = 0.0;
    var last_expert = 0u;
    var largest = 0.0;
    var sum = 0.0;
    for (var place = 0u; place < p.n_used; place++) {
        var best = 0.0;
        var best_expert = p.n_experts;
        for (var expert = 0u; expert < p.n_experts; expert++) {
            let logit = logits[start + expert];
            let is_behind = place == 0u || logit < last || (logit == last && expert > last_expert);
            if (is_behind && (best_expert == p.n_experts || logit > best)) {
                best = logit;
                best_expert = expert;
            }
        }
        if (place == 0u) { largest = best; }
        last = best;
        last_expert = best_expert;
        chosen[row * p.n_used + place] = min(best_expert, p.n_experts - 1u);
        shares[row * p.n_used + place] = exp(best - largest);
        sum += exp(best - largest);
    }
    if (!IS_RENORMALISED) {
        sum = 0.0;
        for (var expert = 0u; expert < p.n_experts; expert++) { sum += exp(logits[start + expert] - largest); }
    }
    for (var place = 0u; place < p.n_used; place++) {
        let at = row * p.n_used + place;
        // Whatever is not finite shows in the result.
        shares[at] = select(bad, shares[at] / sum, is_good);
    }
}
