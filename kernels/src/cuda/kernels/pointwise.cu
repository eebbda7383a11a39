// Ops on values by themselves, an input for each row of blocks. After base.cu, activation.cu and quantized.cu.

// Rows that a kernel reads, and where what it makes of them goes.
struct Rows {
    const u32* step;
    const float* x;
    Out out;
    u32 width;
    u32 x_stride;
    u32 out_stride;
    // See n_inputs; those with results lie among all rows of the step.
    u32 input;
};

DEVICE const float* row_of(const Rows& rows, u32 number) {
    return rows.x + (u64)(rows.input == 1u ? wanted_row(rows.step, number) : number) * rows.x_stride;
}

// Rows as they are, in another place or as bytes.
KERNEL(carry, 128, Rows) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.y;
    const u32 unit = blockIdx.x * 4u + threadIdx.x / WARP;
    if (row >= n_inputs(p.step, p.input) || unit * WARP >= p.width) return;
    const u32 col = unit * WARP + lane;
    put_unit(p.out, row, p.out_stride, p.width, unit, lane, col < p.width ? row_of(p, row)[col] : 0.0f);
}

struct NormArgs {
    Rows rows;
    const float* weight;
    // Added to the norm, in rows as those of the output; or nothing.
    const float* other;
    // Of a run of neighbours: the row, or a head of it.
    u32 len;
    float eps;
};

// Root-mean-square norm of runs of neighbours, one block each. Only of whole rows there are bytes.
KERNEL(row_norm, 128, NormArgs) {
    __shared__ float sums[4];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = blockIdx.y;
    if (row >= n_inputs(p.rows.step, p.rows.input)) return;
    const u32 first = blockIdx.x * p.len;
    const float* x = row_of(p.rows, row) + first;
    float sum = 0.0f;
    for (u32 at = threadIdx.x; at < p.len; at += 128u) sum += x[at] * x[at];
    sum = warp_sum(sum);
    if (lane == 0u) sums[warp] = sum;
    __syncthreads();
    sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const float scale = 1.0f / sqrtf(sum / (float)p.len + p.eps);
    const u64 start = (u64)row * p.rows.out_stride + first;
    for (u32 unit = warp; unit * WARP < p.len; unit += 4u) {
        const u32 at = unit * WARP + lane;
        float value = at < p.len ? x[at] * scale * p.weight[at] : 0.0f;
        if (p.other && at < p.len) value += p.other[start + at];
        Out out = {p.rows.out.floats ? p.rows.out.floats + first : 0, p.rows.out.bytes};
        put_unit(out, row, p.rows.out_stride, p.len, unit, lane, value);
    }
}

struct ElementwiseArgs {
    // The first operand's.
    Rows rows;
    const float* b;
    u32 b_stride;
    // 0 sum, 1 gated SiLU, 2 gated GELU (tanh), 3 multiple.
    u32 kind;
    float factor;
};

KERNEL(elementwise, 128, ElementwiseArgs) {
    const u32 lane = threadIdx.x % WARP, row = blockIdx.y;
    const u32 unit = blockIdx.x * 4u + threadIdx.x / WARP;
    if (row >= n_inputs(p.rows.step, p.rows.input) || unit * WARP >= p.rows.width) return;
    const u32 col = unit * WARP + lane;
    float value = 0.0f;
    if (col < p.rows.width) {
        const float a = p.rows.x[(u64)row * p.rows.x_stride + col];
        const float* b = p.b + (u64)row * p.b_stride + col;
        if (p.kind == 0u) value = a + *b;
        else if (p.kind == 3u) value = a * p.factor;
        else value = activated(p.kind, a) * *b;
    }
    put_unit(p.rows.out, row, p.rows.out_stride, p.rows.width, unit, lane, value);
}

struct RouteArgs {
    const u32* step;
    const float* logits;
    u32* chosen;
    float* shares;
    u32 n_experts;
    u32 n_used;
    u32 stride;
    u32 is_renormalised;
};

// The best experts of each row with their weights, softmax over all; a warp per row.
KERNEL(route, 32, RouteArgs) {
    const u32 lane = threadIdx.x, row = blockIdx.y;
    if (row >= n_rows(p.step)) return;
    const float* logits = p.logits + (u64)row * p.stride;
    float bad = 0.0f, largest = -3.4028234e38f;
    for (u32 expert = lane; expert < p.n_experts; expert += WARP) {
        // Zero, or no number.
        bad += logits[expert] - logits[expert];
        largest = fmaxf(largest, logits[expert]);
    }
    bad = warp_sum(bad);
    largest = warp_max(largest);
    float sum = 0.0f;
    if (!p.is_renormalised) {
        for (u32 expert = lane; expert < p.n_experts; expert += WARP) sum += expf(logits[expert] - largest);
        sum = warp_sum(sum);
    }
    // One after the other: the best of those behind the last one, the lowest number first among equals.
    float last = 0.0f, of_chosen = 0.0f;
    u32 last_expert = 0u;
    for (u32 place = 0u; place < p.n_used; place++) {
        float best = 0.0f;
        u32 best_expert = p.n_experts;
        for (u32 expert = lane; expert < p.n_experts; expert += WARP) {
            float logit = logits[expert];
            bool is_behind = place == 0u || logit < last || (logit == last && expert > last_expert);
            if (is_behind && (best_expert == p.n_experts || logit > best)) {
                best = logit;
                best_expert = expert;
            }
        }
        for (u32 apart = 16u; apart > 0u; apart /= 2u) {
            float other = __shfl_xor_sync(ALL_LANES, best, apart);
            u32 other_expert = __shfl_xor_sync(ALL_LANES, best_expert, apart);
            bool is_there = other_expert < p.n_experts;
            if (is_there && (best_expert == p.n_experts || other > best || (other == best && other_expert < best_expert))) {
                best = other;
                best_expert = other_expert;
            }
        }
        last = best;
        last_expert = best_expert;
        of_chosen += expf(best - largest);
        if (lane == 0u) {
            p.chosen[row * p.n_used + place] = best_expert < p.n_experts ? best_expert : p.n_experts - 1u;
            p.shares[row * p.n_used + place] = expf(best - largest);
        }
    }
    if (p.is_renormalised) sum = of_chosen;
    if (lane == 0u) {
        // Whatever is not finite shows in the result.
        for (u32 place = 0u; place < p.n_used; place++) p.shares[row * p.n_used + place] = p.shares[row * p.n_used + place] / sum + bad;
    }
}

struct CombineArgs {
    const u32* step;
    const float* parts;
    const float* shares;
    // Added to it, in rows as those of the output; or nothing.
    const float* other;
    float* out;
    u32 n_used;
    u32 width;
    u32 part_stride;
    u32 out_stride;
};

// Sums up what the experts of each row made of it.
KERNEL(combine, 128, CombineArgs) {
    const u32 row = blockIdx.y, at = blockIdx.x * 128u + threadIdx.x;
    if (row >= n_rows(p.step) || at >= p.width) return;
    float sum = p.other ? p.other[(u64)row * p.out_stride + at] : 0.0f;
    for (u32 place = 0u; place < p.n_used; place++) {
        const u64 slot = (u64)row * p.n_used + place;
        sum += p.shares[slot] * p.parts[slot * p.part_stride + at];
    }
    p.out[(u64)row * p.out_stride + at] = sum;
}

struct FinishArgs {
    const u32* step;
    float* logits;
    u32 width;
    u32 stride;
    float factor;
    // 0 for none.
    float cap;
};

// Logits times a factor, then capped, in place.
KERNEL(finish, 128, FinishArgs) {
    const u32 want = blockIdx.y, at = blockIdx.x * 128u + threadIdx.x;
    if (want >= n_wants(p.step) || at >= p.width) return;
    float* place = p.logits + (u64)want * p.stride + at;
    const float logit = *place * p.factor;
    // What is not finite is to show.
    *place = p.cap != 0.0f && is_finite(logit) ? p.cap * safe_tanh(logit / p.cap) : logit;
}

struct ArgMaxArgs {
    const u32* step;
    const float* logits;
    u32* ids;
    u32 n_vocab;
    u32 stride;
};

#define NOT_FINITE 0xFFFFFFFFu

DEVICE bool is_better(float logit, u32 id, float other, u32 other_id) {
    if (id == NOT_FINITE || other_id == NOT_FINITE) return id == NOT_FINITE;
    return logit > other || (logit == other && id < other_id);
}

// The id of the largest logit of each result, the lowest among equals; all ones where a logit is not finite.
KERNEL(arg_max, 256, ArgMaxArgs) {
    __shared__ float best[8];
    __shared__ u32 best_id[8];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, want = blockIdx.y;
    if (want >= n_wants(p.step)) return;
    const float* logits = p.logits + (u64)want * p.stride;
    // Worse than any: the highest id of the least number.
    float logit = -3.4028234e38f;
    u32 id = NOT_FINITE - 1u;
    for (u32 at = threadIdx.x; at < p.n_vocab; at += 256u) {
        float other = logits[at];
        u32 other_id = is_finite(other) ? at : NOT_FINITE;
        if (is_better(other, other_id, logit, id)) {
            logit = other;
            id = other_id;
        }
    }
    for (u32 apart = 16u; apart > 0u; apart /= 2u) {
        float other = __shfl_xor_sync(ALL_LANES, logit, apart);
        u32 other_id = __shfl_xor_sync(ALL_LANES, id, apart);
        if (is_better(other, other_id, logit, id)) {
            logit = other;
            id = other_id;
        }
    }
    if (lane == 0u) {
        best[warp] = logit;
        best_id[warp] = id;
    }
    __syncthreads();
    if (threadIdx.x == 0u) {
        for (u32 other = 1u; other < 8u; other++) {
            if (is_better(best[other], best_id[other], best[0], best_id[0])) {
                best[0] = best[other];
                best_id[0] = best_id[other];
            }
        }
        p.ids[want] = best_id[0];
    }
}
