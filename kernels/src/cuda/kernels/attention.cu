// Keys and values go to their pages, and rows attend to them. After base.cu. The host defines:
//
// KV      bits of an element of keys and values: 16 (halves), 8 (bytes, a scale per 32 behind those of a block), 32 (f32)
// HEADS   query heads of a block, which share one head of keys and values
// WIDE    values may have more than 512 elements
//
// In each layer, page `p` of KV head `h` is one block [token][dim], a vector filled up to whole fours; see device/pages.rs.

#if KV == 16
typedef uint2 Word;
#define HAS_SCALES 0
DEVICE float4 widened(Word word) {
    float4 v;
    v.x = of_half((u16)(word.x & 0xFFFFu));
    v.y = of_half((u16)(word.x >> 16));
    v.z = of_half((u16)(word.y & 0xFFFFu));
    v.w = of_half((u16)(word.y >> 16));
    return v;
}
DEVICE Word narrowed(float4 v) {
    Word word;
    word.x = (u32)to_half(v.x) | (u32)to_half(v.y) << 16;
    word.y = (u32)to_half(v.z) | (u32)to_half(v.w) << 16;
    return word;
}
#elif KV == 8
typedef u32 Word;
#define HAS_SCALES 1
DEVICE float4 widened(Word word) {
    float4 v;
    v.x = (float)((int)(word << 24) >> 24);
    v.y = (float)((int)(word << 16) >> 24);
    v.z = (float)((int)(word << 8) >> 24);
    v.w = (float)((int)word >> 24);
    return v;
}
#else
typedef float4 Word;
#define HAS_SCALES 0
DEVICE float4 widened(Word word) { return word; }
DEVICE Word narrowed(float4 v) { return v; }
#endif

// How heads rotate: pairs of them (0 for none), which elements pair up, and where a row's angles are among all of it.
struct Rotation {
    u32 n_pairs;
    u32 is_split;
    u32 at;
    u32 row_floats;
};

// What is done to a head before it is attended with: a norm (weight 0 for none), then a rotation.
struct Heads {
    const float* weight;
    float eps;
    Rotation turn;
};

// The square mean of a head, as a factor of its elements; for a whole warp.
DEVICE float head_scale(const float* head, u32 dim, const Heads& heads, u32 lane) {
    if (!heads.weight) return 1.0f;
    float sum = 0.0f;
    for (u32 at = lane; at < dim; at += WARP) sum += head[at] * head[at];
    return 1.0f / sqrtf(warp_sum(sum) / (float)dim + heads.eps);
}

DEVICE float normed(const float* head, u32 place, const Heads& heads, float scale) {
    return heads.weight ? head[place] * scale * heads.weight[place] : head[place];
}

// Element `place` of a head after norm and rotation; of each row the cosines of all pairs lie before their sines.
DEVICE float made_ready(const u32* step, u32 row, const float* head, u32 place, const Heads& heads, float scale) {
    const Rotation& turn = heads.turn;
    const float own = normed(head, place, heads, scale);
    if (place >= 2u * turn.n_pairs) return own;
    const u32 pair = turn.is_split ? place % turn.n_pairs : place / 2u;
    const bool is_second = turn.is_split ? place >= turn.n_pairs : (place & 1u) != 0u;
    const u32 apart = turn.is_split ? turn.n_pairs : 1u;
    const u32* angles = step + step[3] + row * turn.row_floats + turn.at;
    const float cosine = __uint_as_float(angles[pair]), sine = __uint_as_float(angles[turn.n_pairs + pair]);
    if (is_second) return normed(head, place - apart, heads, scale) * sine + own * cosine;
    return own * cosine - normed(head, place + apart, heads, scale) * sine;
}

struct RopeArgs {
    const u32* step;
    const float* x;
    float* out;
    u32 head_dim;
    u32 width;
    u32 x_stride;
    u32 out_stride;
    Heads heads;
};

KERNEL(rope, 128, RopeArgs) {
    const u32 row = blockIdx.y, col = blockIdx.x * 128u + threadIdx.x;
    if (row >= n_rows(p.step) || col >= p.width) return;
    const u32 place = col % p.head_dim;
    const float* head = p.x + (u64)row * p.x_stride + (col - place);
    p.out[(u64)row * p.out_stride + col] = made_ready(p.step, row, head, place, p.heads, 1.0f);
}

struct StoreArgs {
    const u32* step;
    const float* k;
    const float* v;
    Word* keys;
    Word* values;
    Heads heads;
    u32 n_heads;
    u32 page_tokens;
    u32 pool;
    u32 key_dim;
    u32 key_stride;
    u32 value_dim;
    u32 value_stride;
};

// Writes keys and values of all rows into their pages: a warp has a head, keys before values, a lane four elements.
KERNEL(store, 128, StoreArgs) {
    const u32 row = blockIdx.y, lane = threadIdx.x % WARP, number = blockIdx.x * 4u + threadIdx.x / WARP;
    if (row >= n_rows(p.step) || number >= 2u * p.n_heads) return;
    const bool is_key = number < p.n_heads;
    const u32 head = is_key ? number : number - p.n_heads;
    const u32 dim = is_key ? p.key_dim : p.value_dim, fours = (dim + 3u) / 4u;
    const float* from = (is_key ? p.k + (u64)row * p.key_stride : p.v + (u64)row * p.value_stride) + head * dim;
    const float head_factor = is_key ? head_scale(from, dim, p.heads, lane) : 1.0f;
    const u32 position = position_of(p.step, row);
    const u64 page = table_of(p.step, row, p.pool)[position / p.page_tokens];
    const u32 token = position % p.page_tokens;
    Word* out = is_key ? p.keys : p.values;
    for (u32 first = 0u; first < fours; first += WARP) {
        const u32 four = first + lane;
        float v[4];
        for (u32 part = 0u; part < 4u; part++) {
            const u32 at = four * 4u + part;
            v[part] = 0.0f;
            if (at < dim) v[part] = is_key ? made_ready(p.step, row, from, at, p.heads, head_factor) : from[at];
        }
#if KV == 8
        // Eight lanes have a run of 32. As integers, magnitudes sort like the numbers they stand for, NaN above infinity.
        u32 peak_bits = 0u;
        for (u32 part = 0u; part < 4u; part++) {
            const u32 bits = __float_as_uint(v[part]) & 0x7FFFFFFFu;
            peak_bits = bits > peak_bits ? bits : peak_bits;
        }
        for (u32 apart = 4u; apart > 0u; apart /= 2u) {
            const u32 other = __shfl_xor_sync(ALL_LANES, peak_bits, apart);
            peak_bits = other > peak_bits ? other : peak_bits;
        }
        const float scale = of_half(to_half(__uint_as_float(peak_bits) / 127.0f));
        // What is not finite, or too large for a scale, shows as a scale that is not finite. Codes are then zeros.
        const bool is_good = peak_bits < 0x7F800000u && scale <= 65504.0f;
        const float inverse = is_good && scale > 0.0f ? 1.0f / scale : 0.0f;
        u32 word = 0u;
        for (u32 part = 0u; part < 4u; part++) {
            const float code = is_good ? rintf(fminf(fmaxf(v[part] * inverse, -127.0f), 127.0f)) : 0.0f;
            word |= ((u32)(int)code & 0xFFu) << (8u * part);
        }
        const u32 runs = fours / 8u;
        Word* block = out + (page * p.n_heads + head) * p.page_tokens * (fours + runs);
        if (four < fours) block[token * fours + four] = word;
        if (four < fours && four % 8u == 0u) {
            block[p.page_tokens * fours + token * runs + four / 8u] = is_good ? __float_as_uint(scale) : 0x7F800000u;
        }
#else
        if (four < fours) {
            Word* block = out + ((page * p.n_heads + head) * p.page_tokens + token) * fours;
            block[four] = narrowed(make_float4(v[0], v[1], v[2], v[3]));
        }
#endif
    }
}

struct AttentionArgs {
    const u32* step;
    const float* q;
    const Word* keys;
    const Word* values;
    float* out;
    // Of each row, head and part: largest score, sum of weights, value_stride sums of values.
    float* partial;
    Heads heads;
    u32 n_kv_heads;
    // Query heads that share one of keys and values.
    u32 per_kv_head;
    u32 key_dim;
    u32 value_dim;
    u32 q_stride;
    u32 out_stride;
    u32 value_stride;
    u32 page_tokens;
    u32 pool;
    // 0 for none.
    u32 window;
    // Threads that share the fours of a value: a power of two of at most 128.
    u32 lanes;
    // Parts that positions are split into.
    u32 n_parts;
    float scale;
    // 0 for none.
    float cap;
};

// Below any score, and far enough from the end of the range that differences stay finite.
#define LEAST -1e30f
#define TILE 128u
#if WIDE
#define VALUE_STEPS 2u
#else
#define VALUE_STEPS 1u
#endif

// One row with HEADS of its heads over a part of the positions it sees: an online softmax over tiles of 128 positions.
KERNEL(attention, 128, AttentionArgs) {
    __shared__ float4 query[256];
    __shared__ float scores[HEADS][TILE];
    __shared__ u64 blocks[TILE];
    __shared__ float4 parts[TILE];
    __shared__ float largest[HEADS];
    __shared__ float total[HEADS];
    __shared__ float shrink[HEADS];
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const u32 row = blockIdx.y, first_head = blockIdx.x * HEADS;
    if (row >= n_rows(p.step)) return;
    const u32 kv_head = first_head / p.per_kv_head;
    const u32 key_fours = (p.key_dim + 3u) / 4u, value_fours = (p.value_dim + 3u) / 4u;
    const u32 key_words = key_fours + (HAS_SCALES ? key_fours / 8u : 0u);
    const u32 value_words = value_fours + (HAS_SCALES ? value_fours / 8u : 0u);
    for (u32 head = warp; head < HEADS; head += 4u) {
        const float* from = p.q + (u64)row * p.q_stride + (first_head + head) * p.key_dim;
        const float head_factor = head_scale(from, p.key_dim, p.heads, lane);
        for (u32 at = lane; at < 4u * key_fours; at += WARP) {
            const float value = at < p.key_dim ? made_ready(p.step, row, from, at, p.heads, head_factor) * p.scale : 0.0f;
            reinterpret_cast<float*>(query)[head * 4u * key_fours + at] = value;
        }
    }
    if (thread < HEADS) {
        largest[thread] = LEAST;
        total[thread] = 0.0f;
    }
    const u32 position = position_of(p.step, row);
    const u32* table = table_of(p.step, row, p.pool);
    const u32 first = p.window != 0u && position + 1u > p.window ? position + 1u - p.window : 0u;
    const u32 per_part = ((position + 1u - first + p.n_parts - 1u) / p.n_parts + TILE - 1u) / TILE * TILE;
    const u32 begin = first + blockIdx.z * per_part;
    const u32 end = begin + per_part < position + 1u ? begin + per_part : position + 1u;
    const u32 value_lane = thread % p.lanes, share = thread / p.lanes, n_shares = 128u / p.lanes;
    float4 sums[HEADS][VALUE_STEPS];
    for (u32 head = 0u; head < HEADS; head++) {
        for (u32 at = 0u; at < VALUE_STEPS; at++) sums[head][at] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (u32 tile = begin; tile < end; tile += TILE) {
        const u32 n_keys = end - tile < TILE ? end - tile : TILE;
        __syncthreads();
        if (thread < n_keys) {
            const u64 block = (u64)table[(tile + thread) / p.page_tokens] * p.n_kv_heads + kv_head;
            const u32 token = (tile + thread) % p.page_tokens;
            blocks[thread] = block;
            const Word* of_block = p.keys + block * p.page_tokens * key_words;
            const Word* key = of_block + token * key_fours;
            float own[HEADS];
            for (u32 head = 0u; head < HEADS; head++) own[head] = 0.0f;
            for (u32 four = 0u; four < key_fours; four++) {
                float4 v = widened(key[four]);
#if HAS_SCALES
                const float scale = __uint_as_float(of_block[p.page_tokens * key_fours + token * (key_fours / 8u) + four / 8u]);
                v.x *= scale;
                v.y *= scale;
                v.z *= scale;
                v.w *= scale;
#endif
                for (u32 head = 0u; head < HEADS; head++) own[head] += dot(query[head * key_fours + four], v);
            }
            for (u32 head = 0u; head < HEADS; head++) {
                float score = own[head];
                if (p.cap != 0.0f && is_finite(score)) score = p.cap * safe_tanh(score / p.cap);
                scores[head][thread] = score;
            }
        }
        __syncthreads();
        for (u32 head = warp; head < HEADS; head += 4u) {
            float most = largest[head];
            const float before = most;
            for (u32 key = lane; key < n_keys; key += WARP) most = fmaxf(most, scores[head][key]);
            most = warp_max(most);
            float sum = 0.0f;
            for (u32 key = lane; key < n_keys; key += WARP) {
                const float weight = expf(scores[head][key] - most);
                scores[head][key] = weight;
                sum += weight;
            }
            sum = warp_sum(sum);
            if (lane == 0u) {
                shrink[head] = expf(before - most);
                total[head] = total[head] * shrink[head] + sum;
                largest[head] = most;
            }
        }
        __syncthreads();
        for (u32 head = 0u; head < HEADS; head++) {
            for (u32 at = 0u; at < VALUE_STEPS; at++) {
                sums[head][at].x *= shrink[head];
                sums[head][at].y *= shrink[head];
                sums[head][at].z *= shrink[head];
                sums[head][at].w *= shrink[head];
            }
        }
        for (u32 key = share; key < n_keys; key += n_shares) {
            const u32 token = (tile + key) % p.page_tokens;
            const Word* of_block = p.values + blocks[key] * p.page_tokens * value_words;
            for (u32 at = 0u; at < VALUE_STEPS; at++) {
                const u32 four = value_lane + 128u * at;
                if (four >= value_fours) continue;
                float4 v = widened(of_block[token * value_fours + four]);
#if HAS_SCALES
                const float scale = __uint_as_float(of_block[p.page_tokens * value_fours + token * (value_fours / 8u) + four / 8u]);
                v.x *= scale;
                v.y *= scale;
                v.z *= scale;
                v.w *= scale;
#endif
                for (u32 head = 0u; head < HEADS; head++) {
                    const float weight = scores[head][key];
                    sums[head][at].x += weight * v.x;
                    sums[head][at].y += weight * v.y;
                    sums[head][at].z += weight * v.z;
                    sums[head][at].w += weight * v.w;
                }
            }
        }
    }
    for (u32 head = 0u; head < HEADS; head++) {
        const u32 whole_head = first_head + head, n_heads = p.n_kv_heads * p.per_kv_head;
        float* partial = p.partial + (((u64)row * n_heads + whole_head) * p.n_parts + blockIdx.z) * (2u + p.value_stride);
        float* out = p.n_parts == 1u ? p.out + (u64)row * p.out_stride + whole_head * p.value_dim : partial + 2u;
        for (u32 at = 0u; at < VALUE_STEPS; at++) {
            __syncthreads();
            parts[thread] = sums[head][at];
            __syncthreads();
            const u32 four = value_lane + 128u * at;
            if (share != 0u || four >= value_fours) continue;
            float4 sum = parts[value_lane];
            for (u32 other = 1u; other < n_shares; other++) {
                const float4 more = parts[other * p.lanes + value_lane];
                sum.x += more.x;
                sum.y += more.y;
                sum.z += more.z;
                sum.w += more.w;
            }
            const float whole = p.n_parts == 1u ? total[head] : 1.0f;
            const float v[4] = {sum.x / whole, sum.y / whole, sum.z / whole, sum.w / whole};
            for (u32 part = 0u; part < 4u; part++) {
                if (four * 4u + part < p.value_dim) out[four * 4u + part] = v[part];
            }
        }
        if (p.n_parts > 1u && thread == 0u) {
            partial[0] = largest[head];
            partial[1] = total[head];
        }
    }
}

struct MergeArgs {
    const u32* step;
    const float* partial;
    float* out;
    u32 n_heads;
    u32 value_dim;
    u32 value_stride;
    u32 out_stride;
    u32 n_parts;
};

// Brings the parts of a row and head together.
KERNEL(merge, 128, MergeArgs) {
    const u32 row = blockIdx.y, head = blockIdx.x, len = 2u + p.value_stride;
    if (row >= n_rows(p.step)) return;
    const float* partial = p.partial + ((u64)row * p.n_heads + head) * p.n_parts * len;
    float largest = LEAST;
    for (u32 part = 0u; part < p.n_parts; part++) largest = fmaxf(largest, partial[part * len]);
    float total = 0.0f;
    for (u32 part = 0u; part < p.n_parts; part++) total += expf(partial[part * len] - largest) * partial[part * len + 1u];
    for (u32 col = threadIdx.x; col < p.value_dim; col += 128u) {
        float sum = 0.0f;
        for (u32 part = 0u; part < p.n_parts; part++) sum += expf(partial[part * len] - largest) * partial[part * len + 2u + col];
        p.out[(u64)row * p.out_stride + head * p.value_dim + col] = sum / total;
    }
}
