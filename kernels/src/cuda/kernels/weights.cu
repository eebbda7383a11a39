// Stored weights, a unit of 32 at a time: see device/layout.rs for how they come to lie so. After base.cu.
//
// Weight = scale * level + minimum, one scale per SUB weights. A level is the stored code less OFFSET, or a signed byte of
// a table of sixteen; plain numbers have no scales. The host defines:
//
// BITS       of a code: 4 or 8 (signed); 16 are halves, 17 the upper halves of f32, 32 are f32
// SUB        16 or 32
// OFFSET     what 4-bit codes stand above their levels
// HAS_MIN    there are minima
// HALVES     scales and minima are halves, not f32
// HAS_TABLE  levels are those of TABLE_0 to TABLE_3, four bytes each

#define RUNS (32u / SUB)

struct Scale {
    float scale;
    float min;
};

// Words of scales of a row of so many units.
DEVICE u32 scale_words(u32 units) {
#if BITS >= 16
    return 0u;
#elif HALVES && !HAS_MIN
    return (units * RUNS + 1u) / 2u;
#elif !HALVES && HAS_MIN
    return units * RUNS * 2u;
#else
    return units * RUNS;
#endif
}

#if BITS < 16
// Scale and minimum of a run of SUB weights, numbered from the start of the row that `scales` is of.
DEVICE Scale scale_of(const u32* scales, u32 run) {
    Scale of_run;
#if HALVES && HAS_MIN
    u32 word = scales[run];
    of_run.scale = of_half((u16)(word & 0xFFFFu));
    of_run.min = of_half((u16)(word >> 16));
#elif HALVES
    of_run.scale = of_half((u16)((scales[run / 2u] >> (16u * (run & 1u))) & 0xFFFFu));
    of_run.min = 0.0f;
#elif HAS_MIN
    uint2 words = reinterpret_cast<const uint2*>(scales)[run];
    of_run.scale = __uint_as_float(words.x);
    of_run.min = __uint_as_float(words.y);
#else
    of_run.scale = __uint_as_float(scales[run]);
    of_run.min = 0.0f;
#endif
    return of_run;
}

// Levels of four codes, one in the lower half of each byte, as signed bytes.
DEVICE u32 levels_of(u32 codes) {
#if HAS_TABLE
    // The upper bit of a code says which half of the table, the others which byte of it.
    u32 places = codes | codes >> 4;
    u32 chooser = (places & 0x77u) | ((places >> 8) & 0x7700u);
    u32 low = __byte_perm(TABLE_0, TABLE_1, chooser);
    u32 high = __byte_perm(TABLE_2, TABLE_3, chooser);
    u32 is_high = ((codes >> 3) & 0x01010101u) * 0xFFu;
    return (low & ~is_high) | (high & is_high);
#elif OFFSET == 0
    return codes;
#else
    // No byte borrows from its neighbour.
    return ((codes | 0x80808080u) - OFFSET * 0x01010101u) ^ 0x80808080u;
#endif
}

// Vectors of codes of a unit.
#define UNIT_VECTORS (BITS / 4u)

// Codes of a unit as they are stored.
struct Codes {
    uint4 vector[UNIT_VECTORS];
};

DEVICE Codes codes_of(const uint4* codes, u64 unit) {
    Codes found;
    for (u32 at = 0u; at < UNIT_VECTORS; at++) found.vector[at] = codes[unit * UNIT_VECTORS + at];
    return found;
}

// Levels of a unit as signed bytes; of each eight first those at even places, then those at odd ones.
DEVICE void levels(const Codes& codes, u32 (&out)[8]) {
#if BITS == 4
    const u32 words[4] = {codes.vector[0].x, codes.vector[0].y, codes.vector[0].z, codes.vector[0].w};
    for (u32 word = 0u; word < 4u; word++) {
        out[2u * word] = levels_of(words[word] & 0x0F0F0F0Fu);
        out[2u * word + 1u] = levels_of((words[word] >> 4) & 0x0F0F0F0Fu);
    }
#else
    for (u32 part = 0u; part < 2u; part++) {
        uint4 words = codes.vector[part];
        out[4u * part] = __byte_perm(words.x, words.y, 0x6420u);
        out[4u * part + 1u] = __byte_perm(words.x, words.y, 0x7531u);
        out[4u * part + 2u] = __byte_perm(words.z, words.w, 0x6420u);
        out[4u * part + 3u] = __byte_perm(words.z, words.w, 0x7531u);
    }
#endif
}

// Weights 32 * unit .. 32 * unit + 32 of a row, in their order.
DEVICE void read_unit(const uint4* codes, const u32* scales, u32 row, u32 units, u32 unit, float (&out)[32]) {
    u32 own[8];
    levels(codes_of(codes, (u64)row * units + unit), own);
    const u32* of_row = scales + (u64)row * scale_words(units);
    for (u32 at = 0u; at < 32u; at++) {
        Scale of_run = scale_of(of_row, unit * RUNS + at / SUB);
        u32 word = own[at / 8u * 2u + (at & 1u)];
        int level = (int)(word << (24u - 8u * (at % 8u / 2u))) >> 24;
        out[at] = of_run.scale * (float)level + of_run.min;
    }
}
#else
// Weights 32 * unit .. 32 * unit + 32 of a row.
DEVICE void read_unit(const uint4* codes, const u32*, u32 row, u32 units, u32 unit, float (&out)[32]) {
    u64 at = (u64)row * units + unit;
#if BITS == 32
    const float4* numbers = reinterpret_cast<const float4*>(codes) + at * 8u;
    for (u32 four = 0u; four < 8u; four++) {
        float4 v = numbers[four];
        out[4u * four] = v.x;
        out[4u * four + 1u] = v.y;
        out[4u * four + 2u] = v.z;
        out[4u * four + 3u] = v.w;
    }
#else
    for (u32 part = 0u; part < 4u; part++) {
        uint4 v = codes[at * 4u + part];
        const u32 words[4] = {v.x, v.y, v.z, v.w};
        for (u32 word = 0u; word < 4u; word++) {
#if BITS == 16
            out[8u * part + 2u * word] = of_half((u16)(words[word] & 0xFFFFu));
            out[8u * part + 2u * word + 1u] = of_half((u16)(words[word] >> 16));
#else
            out[8u * part + 2u * word] = __uint_as_float(words[word] << 16);
            out[8u * part + 2u * word + 1u] = __uint_as_float(words[word] & 0xFFFF0000u);
#endif
        }
    }
#endif
}
#endif
