// Rows of a table, and products of rows with stored weights. After base.cu, activation.cu, quantized.cu and weights.cu.
//
// Weights of plain numbers meet floats, coded ones bytes: a unit's levels and the input's bytes make whole numbers, exact,
// and these are scaled and added up in f32.

struct EmbedArgs {
    const u32* step;
    const uint4* codes;
    const u32* scales;
    float* out;
    u32 cols;
    u32 units;
    u32 stride;
    float scale;
};

// Rows of a table by token, 32 weights a thread.
KERNEL(embed, 64, EmbedArgs) {
    const u32 row = blockIdx.y, unit = blockIdx.x * 64u + threadIdx.x;
    if (row >= n_rows(p.step) || unit >= p.units) return;
    float w[32];
    read_unit(p.codes, p.scales, token_of(p.step, row), p.units, unit, w);
    for (u32 at = 0u; at < 32u; at++) {
        const u32 col = unit * 32u + at;
        if (col < p.cols) p.out[(u64)row * p.stride + col] = w[at] * p.scale;
    }
}

#define MOST_PARTS 3u

struct ProductArgs {
    const u32* step;
    // Rows of floats, or of records of bytes.
    const void* x;
    // Of experts, whose each input is.
    const u32* chosen;
    // What is added to the product: rows as those of the output.
    const float* other;
    // Matrices that meet the same input, one after the other.
    const uint4* codes[MOST_PARTS];
    const u32* scales[MOST_PARTS];
    const float* bias[MOST_PARTS];
    float* out[MOST_PARTS];
    u32 n_out[MOST_PARTS];
    u32 out_stride[MOST_PARTS];
    u32 cols;
    u32 units;
    u32 x_stride;
    // See n_inputs.
    u32 input;
    // Of experts: rows of the weight of one, and inputs per row of x.
    u32 expert_rows;
    u32 inputs_per_x;
    // Not 0: the first two matrices are gate and up, see `activated`, and only the first's output is written.
    u32 gate;
};

struct Place {
    u32 part;
    u32 row;
    bool is_there;
};

// Where row `number` of all matrices is.
DEVICE Place place_of(const ProductArgs& p, u32 number) {
    Place place = {0u, number, true};
    while (place.part < MOST_PARTS - 1u && place.row >= p.n_out[place.part]) {
        place.row -= p.n_out[place.part];
        place.part++;
    }
    place.is_there = place.row < p.n_out[place.part];
    if (!place.is_there) {
        place.part = 0u;
        place.row = 0u;
    }
    return place;
}

DEVICE void put(const ProductArgs& p, u32 part, u32 input, u32 row, float sum) {
    const u64 at = (u64)input * p.out_stride[part] + row;
    if (p.bias[part]) sum += p.bias[part][row];
    if (p.other) sum += p.other[at];
    p.out[part][at] = sum;
}

// Rows of weights that a warp has at a time.
#define OWN_ROWS 2u

// The rows of a warp's own: with a gate, one row of either matrix.
DEVICE void own_places(const ProductArgs& p, u32 warp_number, Place (&places)[OWN_ROWS]) {
    for (u32 own = 0u; own < OWN_ROWS; own++) {
        if (p.gate) {
            const bool is_there = warp_number < p.n_out[0];
            places[own].part = own;
            places[own].row = is_there ? warp_number : 0u;
            places[own].is_there = is_there;
        } else {
            places[own] = place_of(p, warp_number * OWN_ROWS + own);
        }
    }
}

template <u32 INPUTS>
DEVICE void put_own(const ProductArgs& p, const Place (&places)[OWN_ROWS], float (&sums)[OWN_ROWS][INPUTS], u32 first, u32 n, u32 lane) {
    for (u32 own = 0u; own < OWN_ROWS; own++) {
        for (u32 at = 0u; at < INPUTS; at++) sums[own][at] = warp_sum(sums[own][at]);
    }
    if (lane != 0u) return;
    for (u32 at = 0u; at < INPUTS && first + at < n; at++) {
        if (p.gate) {
            if (!places[0].is_there) continue;
            float gate = sums[0][at], up = sums[1][at];
            if (p.bias[0]) gate += p.bias[0][places[0].row];
            if (p.bias[1]) up += p.bias[1][places[1].row];
            p.out[0][(u64)(first + at) * p.out_stride[0] + places[0].row] = activated(p.gate, gate) * up;
            continue;
        }
        for (u32 own = 0u; own < OWN_ROWS; own++) {
            if (places[own].is_there) put(p, places[own].part, first + at, places[own].row, sums[own][at]);
        }
    }
}

// Of experts the first row of the one that an input is sent to.
DEVICE u32 expert_start(const ProductArgs& p, u32 input) { return p.chosen ? p.chosen[input] * p.expert_rows : 0u; }

#if BITS >= 16
// Few inputs: a warp has two rows of weights, a unit of 32 a lane, and INPUTS inputs meet it while it is in registers.
template <u32 INPUTS>
DEVICE void few(const ProductArgs& p) {
    const u32 lane = threadIdx.x % WARP, n = n_inputs(p.step, p.input), first = blockIdx.y * INPUTS;
    if (first >= n) return;
    Place places[OWN_ROWS];
    own_places(p, blockIdx.x * 4u + threadIdx.x / WARP, places);
    if (!places[0].is_there) return;
    const u32 start = expert_start(p, first);
    float sums[OWN_ROWS][INPUTS] = {};
    for (u32 unit = lane; unit < p.units; unit += WARP) {
        for (u32 own = 0u; own < OWN_ROWS; own++) {
            float w[32];
            const u32 part = places[own].part;
            read_unit(p.codes[part], p.scales[part], start + places[own].row, p.units, unit, w);
            for (u32 at = 0u; at < INPUTS; at++) {
                const u32 input = first + at < n ? first + at : n - 1u;
                const float* x = (const float*)p.x + (u64)(input / p.inputs_per_x) * p.x_stride + unit * 32u;
                float sum = 0.0f;
#pragma unroll
                for (u32 four = 0u; four < 8u; four++) {
                    const u32 col = unit * 32u + 4u * four;
                    if (col + 4u <= p.cols) {
                        const float4 v = reinterpret_cast<const float4*>(x)[four];
                        sum += w[4u * four] * v.x + w[4u * four + 1u] * v.y + w[4u * four + 2u] * v.z + w[4u * four + 3u] * v.w;
                    } else {
#pragma unroll
                        for (u32 more = 0u; more < 4u; more++) {
                            if (col + more < p.cols) sum += w[4u * four + more] * x[4u * four + more];
                        }
                    }
                }
                sums[own][at] += sum;
            }
        }
    }
    put_own<INPUTS>(p, places, sums, first, n, lane);
}

KERNEL(product_1, 128, ProductArgs) { few<1>(p); }
KERNEL(product_4, 128, ProductArgs) { few<4>(p); }

// Many inputs: a block makes 64 rows of weights times 64 inputs, 32 columns at a time; a thread four by eight of them.
KERNEL(product_many, 128, ProductArgs) {
    // One float more than there are: rows begin in different banks.
    __shared__ float w_tile[64][33];
    __shared__ float x_tile[64][33];
    const u32 thread = threadIdx.x, n = n_inputs(p.step, p.input), first_input = blockIdx.y * 64u;
    if (first_input >= n) return;
    u32 part = 0u, tile = blockIdx.x;
    while (part < MOST_PARTS - 1u && tile >= (p.n_out[part] + 63u) / 64u) {
        tile -= (p.n_out[part] + 63u) / 64u;
        part++;
    }
    const u32 first_row = tile * 64u, rows = p.n_out[part], own_row = thread % 16u, own_input = thread / 16u;
    float sums[4][8] = {};
    for (u32 unit = 0u; unit < p.units; unit++) {
        __syncthreads();
        if (thread < 64u) {
            float w[32];
            const u32 row = first_row + thread < rows ? first_row + thread : rows - 1u;
            read_unit(p.codes[part], p.scales[part], row, p.units, unit, w);
            for (u32 at = 0u; at < 32u; at++) w_tile[thread][at] = w[at];
        }
        for (u32 at = thread; at < 64u * 32u; at += 128u) {
            const u32 input = first_input + at / 32u, col = unit * 32u + at % 32u;
            x_tile[at / 32u][at % 32u] = input < n && col < p.cols ? ((const float*)p.x)[(u64)input * p.x_stride + col] : 0.0f;
        }
        __syncthreads();
        for (u32 at = 0u; at < 32u; at++) {
            float x[8];
            for (u32 input = 0u; input < 8u; input++) x[input] = x_tile[own_input + 8u * input][at];
            for (u32 row = 0u; row < 4u; row++) {
                const float w = w_tile[own_row + 16u * row][at];
                for (u32 input = 0u; input < 8u; input++) sums[row][input] += w * x[input];
            }
        }
    }
    for (u32 row = 0u; row < 4u; row++) {
        for (u32 input = 0u; input < 8u; input++) {
            const u32 whole_row = first_row + own_row + 16u * row, whole_input = first_input + own_input + 8u * input;
            if (whole_row < rows && whole_input < n) put(p, part, whole_input, whole_row, sums[row][input]);
        }
    }
}
#else
// What a unit's levels and bytes make under the scales of both.
DEVICE float scaled(Scale of_run, float of_input, int product, int sum) {
    return of_input * (of_run.scale * (float)product + of_run.min * (float)sum);
}

// The same with bytes that are 254ths of a step besides.
DEVICE float scaled(Scale of_run, float of_input, int product, int sum, int fine_product, int fine_sum) {
    const float whole = (float)product + (float)fine_product * (1.0f / 254.0f);
    const float whole_sum = (float)sum + (float)fine_sum * (1.0f / 254.0f);
    return of_input * (of_run.scale * whole + of_run.min * whole_sum);
}

DEVICE int dot_16(const u32* w, uint4 x, int sum) {
    sum = __dp4a((int)w[0], (int)x.x, sum);
    sum = __dp4a((int)w[1], (int)x.y, sum);
    sum = __dp4a((int)w[2], (int)x.z, sum);
    return __dp4a((int)w[3], (int)x.w, sum);
}

// A unit of weights with one of an input.
DEVICE float unit_product(const u32 (&w)[8], const Scale (&scales)[RUNS], const uint4* record) {
    const uint4 low = record[0], high = record[1], behind = record[Q_VECTORS - 1u];
    const float of_input = __uint_as_float(behind.x);
    const int sum_low = low_sum(behind.y), sum_high = high_sum(behind.y);
    const int first = dot_16(w, low, 0);
#if FINE
    const uint4 fine_low = record[2], fine_high = record[3];
    const int fine_first = dot_16(w, fine_low, 0);
#if SUB == 16
    return scaled(scales[0], of_input, first, sum_low, fine_first, low_sum(behind.z)) +
           scaled(scales[1], of_input, dot_16(w + 4, high, 0), sum_high, dot_16(w + 4, fine_high, 0), high_sum(behind.z));
#else
    return scaled(scales[0], of_input, dot_16(w + 4, high, first), sum_low + sum_high, dot_16(w + 4, fine_high, fine_first),
                  low_sum(behind.z) + high_sum(behind.z));
#endif
#elif SUB == 16
    return scaled(scales[0], of_input, first, sum_low) + scaled(scales[1], of_input, dot_16(w + 4, high, 0), sum_high);
#else
    return scaled(scales[0], of_input, dot_16(w + 4, high, first), sum_low + sum_high);
#endif
}

// Few inputs: a warp has two rows of weights, a unit of 32 a lane, and INPUTS inputs meet it while it is in registers.
template <u32 INPUTS>
DEVICE void few(const ProductArgs& p) {
    const u32 lane = threadIdx.x % WARP, n = n_inputs(p.step, p.input), first = blockIdx.y * INPUTS;
    if (first >= n) return;
    Place places[OWN_ROWS];
    own_places(p, blockIdx.x * 4u + threadIdx.x / WARP, places);
    if (!places[0].is_there) return;
    const u32 start = expert_start(p, first);
    const uint4* x = (const uint4*)p.x;
    float sums[OWN_ROWS][INPUTS] = {};
    for (u32 unit = lane; unit < p.units; unit += WARP) {
        u32 w[OWN_ROWS][8];
        Scale scales[OWN_ROWS][RUNS];
        for (u32 own = 0u; own < OWN_ROWS; own++) {
            const u32 part = places[own].part;
            const u64 row = start + places[own].row;
            levels(codes_of(p.codes[part], row * p.units + unit), w[own]);
            const u32* of_row = p.scales[part] + row * scale_words(p.units);
            for (u32 run = 0u; run < RUNS; run++) scales[own][run] = scale_of(of_row, unit * RUNS + run);
        }
        for (u32 at = 0u; at < INPUTS; at++) {
            const u32 input = first + at < n ? first + at : n - 1u;
            const uint4* record = x + ((u64)(input / p.inputs_per_x) * p.units + unit) * Q_VECTORS;
            for (u32 own = 0u; own < OWN_ROWS; own++) sums[own][at] += unit_product(w[own], scales[own], record);
        }
    }
    put_own<INPUTS>(p, places, sums, first, n, lane);
}

KERNEL(product_1, 128, ProductArgs) { few<1>(p); }
KERNEL(product_2, 128, ProductArgs) { few<2>(p); }
KERNEL(product_4, 128, ProductArgs) { few<4>(p); }
KERNEL(product_8, 128, ProductArgs) { few<8>(p); }

// Words from one row of bytes in shared memory to the next: eight rows begin in different banks.
#define TILE_WORDS 12u

struct Tiles {
    u32 w[64][TILE_WORDS];
    u32 x[64][TILE_WORDS];
#if FINE
    u32 fine[64][TILE_WORDS];
#endif
    Scale scales[64][RUNS];
    uint4 behind[64];
};

// Whole numbers that a warp's 16 rows and eight inputs make: of a lane rows lane / 4 and eight more, inputs lane % 4 * 2 and
// the next. With runs of 16 those of the second run go to `second`.
DEVICE void tile_product(const u32 (*w)[TILE_WORDS], const u32 (*x)[TILE_WORDS], u32 lane, int (&first)[4], int (&second)[4]) {
    const u32 of_row = lane / 4u, of_k = lane % 4u;
    for (u32 at = 0u; at < 4u; at++) first[at] = second[at] = 0;
#if ARCH >= 800
    const u32 a[4] = {w[of_row][of_k], w[of_row + 8u][of_k], w[of_row][of_k + 4u], w[of_row + 8u][of_k + 4u]};
    const u32 b[2] = {x[of_row][of_k], x[of_row][of_k + 4u]};
#if SUB == 16
    mma_16(first, a[0], a[1], b[0]);
    mma_16(second, a[2], a[3], b[1]);
#else
    mma_32(first, a, b);
#endif
#else
    for (u32 at = 0u; at < 4u; at++) {
        const u32* a = w[of_row + at / 2u * 8u];
        const u32* b = x[of_k * 2u + at % 2u];
        for (u32 word = 0u; word < 4u; word++) first[at] = __dp4a((int)a[word], (int)b[word], first[at]);
        int& rest = SUB == 16 ? second[at] : first[at];
        for (u32 word = 4u; word < 8u; word++) rest = __dp4a((int)a[word], (int)b[word], rest);
    }
#endif
}

// Many inputs: a block makes 64 rows of weights times 64 inputs, a unit at a time; a warp 16 rows of it. The next unit is on
// its way from memory while this one is computed with.
KERNEL(product_many, 128, ProductArgs) {
    __shared__ Tiles tiles;
    const u32 thread = threadIdx.x, lane = thread % WARP, warp = thread / WARP;
    const u32 n = n_inputs(p.step, p.input), first_input = blockIdx.y * 64u;
    if (first_input >= n) return;
    u32 part = 0u, tile = blockIdx.x;
    while (part < MOST_PARTS - 1u && tile >= (p.n_out[part] + 63u) / 64u) {
        tile -= (p.n_out[part] + 63u) / 64u;
        part++;
    }
    const u32 first_row = tile * 64u, rows = p.n_out[part];
    // Half of the threads bring a row of weights each, the others an input.
    const bool is_of_weights = thread < 64u;
    const u32 own = thread % 64u;
    const u64 row = first_row + own < rows ? first_row + own : rows - 1u;
    const u64 input = first_input + own < n ? first_input + own : n - 1u;
    const uint4* x = (const uint4*)p.x + input * p.units * Q_VECTORS;
    const u32* scales = p.scales[part] + row * scale_words(p.units);
    Codes codes;
    uint4 record[Q_VECTORS];
    if (is_of_weights) codes = codes_of(p.codes[part], row * p.units);
    else
        for (u32 at = 0u; at < Q_VECTORS; at++) record[at] = x[at];
    float sums[8][4] = {};
    for (u32 unit = 0u; unit < p.units; unit++) {
        __syncthreads();
        if (is_of_weights) {
            u32 words[8];
            levels(codes, words);
            for (u32 at = 0u; at < 8u; at++) tiles.w[own][at] = words[at];
            for (u32 run = 0u; run < RUNS; run++) tiles.scales[own][run] = scale_of(scales, unit * RUNS + run);
        } else {
            reinterpret_cast<uint4*>(tiles.x[own])[0] = record[0];
            reinterpret_cast<uint4*>(tiles.x[own])[1] = record[1];
#if FINE
            reinterpret_cast<uint4*>(tiles.fine[own])[0] = record[2];
            reinterpret_cast<uint4*>(tiles.fine[own])[1] = record[3];
#endif
            tiles.behind[own] = record[Q_VECTORS - 1u];
        }
        __syncthreads();
        if (unit + 1u < p.units) {
            if (is_of_weights) codes = codes_of(p.codes[part], row * p.units + unit + 1u);
            else
                for (u32 at = 0u; at < Q_VECTORS; at++) record[at] = x[(unit + 1u) * Q_VECTORS + at];
        }
        const u32 own_row = warp * 16u + lane / 4u;
        Scale of_rows[2][RUNS];
        for (u32 run = 0u; run < RUNS; run++) {
            of_rows[0][run] = tiles.scales[own_row][run];
            of_rows[1][run] = tiles.scales[own_row + 8u][run];
        }
        for (u32 eight = 0u; eight < 8u; eight++) {
            int first[4], second[4];
            tile_product(tiles.w + warp * 16u, tiles.x + eight * 8u, lane, first, second);
#if FINE
            int fine_first[4], fine_second[4];
            tile_product(tiles.w + warp * 16u, tiles.fine + eight * 8u, lane, fine_first, fine_second);
#endif
            for (u32 at = 0u; at < 4u; at++) {
                const uint4 behind = tiles.behind[eight * 8u + lane % 4u * 2u + at % 2u];
                const Scale (&of_row)[RUNS] = of_rows[at / 2u];
                const float of_input = __uint_as_float(behind.x);
                const int low = low_sum(behind.y), high = high_sum(behind.y);
#if FINE
                const int fine_low = low_sum(behind.z), fine_high = high_sum(behind.z);
#if SUB == 16
                sums[eight][at] += scaled(of_row[0], of_input, first[at], low, fine_first[at], fine_low) +
                                   scaled(of_row[1], of_input, second[at], high, fine_second[at], fine_high);
#else
                sums[eight][at] += scaled(of_row[0], of_input, first[at], low + high, fine_first[at], fine_low + fine_high);
#endif
#elif SUB == 16
                sums[eight][at] += scaled(of_row[0], of_input, first[at], low) + scaled(of_row[1], of_input, second[at], high);
#else
                sums[eight][at] += scaled(of_row[0], of_input, first[at], low + high);
#endif
            }
        }
    }
    for (u32 eight = 0u; eight < 8u; eight++) {
        for (u32 at = 0u; at < 4u; at++) {
            const u32 whole_row = first_row + warp * 16u + lane / 4u + at / 2u * 8u;
            const u32 whole_input = first_input + eight * 8u + lane % 4u * 2u + at % 2u;
            if (whole_row < rows && whole_input < n) put(p, part, whole_input, whole_row, sums[eight][at]);
        }
    }
}
#endif
