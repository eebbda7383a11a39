// Attention of one row with one of its heads over the pages of its sequence, a group each: an online softmax over tiles of
// 64 positions, a score per thread. After attention_bind.wgsl and heads.wgsl.
override HAS_CAP: bool = false;
// Groups take a part of the positions each; what they come to is brought together by merge.wgsl.
override HAS_PARTS: bool = false;

const TILE: u32 = 64u;
// Below any score, and far enough from the end of the range that differences stay finite.
const LEAST: f32 = -1e30;

var<workgroup> query: array<vec4<f32>, 256>;
var<workgroup> scores: array<f32, 64>;
// Block of each position's page, and its token there.
var<workgroup> pages: array<u32, 64>;
var<workgroup> parts: array<vec4<f32>, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) n_groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
    MEMBER
) {
    let thread = THREAD;
    let head = group.x;
    let row = group.y;
    let kv_head = head / p.per_kv_head;
    let key_fours = (p.key_dim + 3u) / 4u;
    let value_fours = (p.value_dim + 3u) / 4u;
    // Scales per token behind the codes of a block.
    let key_runs = select(0u, key_fours / 8u, HAS_SCALES);
    let value_runs = select(0u, value_fours / 8u, HAS_SCALES);
    for (var at = thread; at < p.key_dim; at += 64u) {
        head_raw[at] = q[row * p.q_stride + p.q_at + head * p.key_dim + at];
    }
    let heads = Heads(p.norm_at, p.eps, p.n_pairs, p.angles_at);
    norm_head(thread, p.key_dim, true, heads);
    for (var four = thread; four < key_fours; four += 64u) {
        var v = vec4<f32>(0.0);
        for (var part = 0u; part < 4u; part++) {
            let at = four * 4u + part;
            if (at < p.key_dim) { v[part] = rotated(row, at, heads); }
        }
        query[four] = v * p.scale;
    }
    let position = position_of(row);
    let table = table_of(row, p.pool);
    var first = 0u;
    if (p.window != 0u && position + 1u > p.window) { first = position + 1u - p.window; }
    var behind = position + 1u;
    if (HAS_PARTS) {
        // Whole tiles; those of the last parts may have none.
        let n_tiles = (behind - first + TILE - 1u) / TILE;
        let span = (n_tiles + n_groups.z - 1u) / n_groups.z * TILE;
        first = min(first + group.z * span, behind);
        behind = min(first + span, behind);
    }
    let lane = thread % p.lanes;
    let share = thread / p.lanes;
    let n_shares = 64u / p.lanes;
    var largest = LEAST;
    var weight_sum = 0.0;
    var sums: array<vec4<f32>, 4>;
    for (var at = 0u; at < 4u; at++) { sums[at] = vec4<f32>(0.0); }
    for (var tile = first; tile < behind; tile += TILE) {
        let n_keys = min(TILE, behind - tile);
        workgroupBarrier();
        var score = LEAST;
        if (thread < n_keys) {
            let page = step[table + (tile + thread) / p.page_tokens];
            let token = (tile + thread) % p.page_tokens;
            pages[thread] = page;
            let block = (page * p.n_kv_heads + kv_head) * p.page_tokens * (key_fours + key_runs);
            let start = block + token * key_fours;
            var sum = 0.0;
            for (var four = 0u; four < key_fours; four++) {
                var v = widened(keys[start + four]);
                if (HAS_SCALES) {
                    v *= scale_in(keys[block + p.page_tokens * key_fours + token * key_runs + four / 8u]);
                }
                sum += dot(query[four], v);
            }
            if (HAS_CAP && is_finite(sum)) { sum = p.cap * tanh(clamp(sum / p.cap, -20.0, 20.0)); }
            score = sum;
        }
        let now_largest = max(largest, group_max(thread, score));
        let shrink = exp(largest - now_largest);
        largest = now_largest;
        let weight = select(0.0, exp(score - largest), thread < n_keys);
        scores[thread] = weight;
        weight_sum = weight_sum * shrink + weight;
        for (var at = 0u; at < 4u; at++) { sums[at] *= shrink; }
        workgroupBarrier();
        for (var key = share; key < n_keys; key += n_shares) {
            let token = (tile + key) % p.page_tokens;
            let block = (pages[key] * p.n_kv_heads + kv_head) * p.page_tokens * (value_fours + value_runs);
            for (var at = 0u; lane + 64u * at < value_fours; at++) {
                let four = lane + 64u * at;
                var v = widened(values[block + token * value_fours + four]);
                if (HAS_SCALES) {
                    v *= scale_in(values[block + p.page_tokens * value_fours + token * value_runs + four / 8u]);
                }
                sums[at] += scores[key] * v;
            }
        }
    }
    weight_sum = group_sum(thread, weight_sum);
    for (var at = 0u; at * 64u < value_fours; at++) {
        workgroupBarrier();
        parts[thread] = sums[at];
        workgroupBarrier();
        let four = lane + 64u * at;
        if (share == 0u && four < value_fours) {
            var sum = vec4<f32>(0.0);
            for (var other = 0u; other < n_shares; other++) { sum += parts[other * p.lanes + lane]; }
            if (HAS_PARTS) {
                // The largest score and the sum of weights, then the sums.
                let start = ((row * n_groups.x + head) * n_groups.z + group.z) * 4u * (value_fours + 1u);
                if (four == 0u) {
                    out[start] = largest;
                    out[start + 1u] = weight_sum;
                }
                for (var part = 0u; part < 4u; part++) { out[start + 4u + four * 4u + part] = sum[part]; }
            } else {
                sum /= weight_sum;
                for (var part = 0u; part < 4u; part++) {
                    let col = four * 4u + part;
                    if (col < p.value_dim) { out[row * p.out_stride + head * p.value_dim + col] = sum[part]; }
                }
            }
        }
    }
}
