// The best experts of each row with their shares, softmax over all; a group per row. After step.wgsl.
override IS_RENORMALISED: bool = false;

struct Route { n_experts: u32, n_used: u32, stride: u32, }

@group(0) @binding(1) var<storage, read> logits: array<f32>;
// Of each slot its expert, then its share.
@group(0) @binding(2) var<storage, read_write> routes: array<vec2<u32>>;
@group(0) @binding(3) var<uniform> p: Route;

var<workgroup> best: array<f32, 64>;
var<workgroup> best_expert: array<u32, 64>;
var<workgroup> sums: array<f32, 64>;
var<workgroup> bads: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let start = group.y * p.stride;
    // Zero, but for a logit that is not finite.
    var bad = 0.0;
    for (var expert = thread; expert < p.n_experts; expert += 64u) {
        let logit = logits[start + expert];
        if (!is_finite(logit)) { bad = logit; }
    }
    bads[thread] = bad;
    // One after the other: the best of those behind the last one, the lowest number first among equals.
    var last = 0.0;
    var last_expert = 0u;
    var largest = 0.0;
    var sum = 0.0;
    for (var place = 0u; place < p.n_used; place++) {
        var own = 0.0;
        var own_expert = p.n_experts;
        for (var expert = thread; expert < p.n_experts; expert += 64u) {
            let logit = logits[start + expert];
            let is_behind = place == 0u || logit < last || (logit == last && expert > last_expert);
            if (is_behind && (own_expert == p.n_experts || logit > own)) {
                own = logit;
                own_expert = expert;
            }
        }
        workgroupBarrier();
        best[thread] = own;
        best_expert[thread] = own_expert;
        for (var half = 32u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (thread < half) {
                let other = best[thread + half];
                let other_expert = best_expert[thread + half];
                let is_first = other > best[thread] || (other == best[thread] && other_expert < best_expert[thread]);
                if (other_expert != p.n_experts && (best_expert[thread] == p.n_experts || is_first)) {
                    best[thread] = other;
                    best_expert[thread] = other_expert;
                }
            }
        }
        workgroupBarrier();
        last = best[0];
        last_expert = best_expert[0];
        if (place == 0u) { largest = last; }
        sum += exp(last - largest);
        if (thread == 0u) {
            let share = bitcast<u32>(exp(last - largest));
            routes[group.y * p.n_used + place] = vec2<u32>(min(last_expert, p.n_experts - 1u), share);
        }
    }
    if (!IS_RENORMALISED) {
        sum = 0.0;
        for (var expert = thread; expert < p.n_experts; expert += 64u) { sum += exp(logits[start + expert] - largest); }
    }
    sums[thread] = sum;
    for (var half = 32u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (thread < half) {
            if (!IS_RENORMALISED) { sums[thread] += sums[thread + half]; }
            if (is_finite(bads[thread])) { bads[thread] = bads[thread + half]; }
        }
    }
    workgroupBarrier();
    if (thread == 0u) {
        for (var place = 0u; place < p.n_used; place++) {
            let slot = group.y * p.n_used + place;
            // Whatever is not finite shows in the result.
            let share = select(bads[0], bitcast<f32>(routes[slot].y) / sums[0], is_finite(bads[0]));
            routes[slot].y = bitcast<u32>(share);
        }
    }
}
