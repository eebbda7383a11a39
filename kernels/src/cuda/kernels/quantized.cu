// Rows of activations as bytes, a unit of 32 at a time. After base.cu; the host defines FINE.
//
// A unit is one record of Q_VECTORS vectors: 32 signed bytes; with FINE 32 more, 254ths of a step of the first; then scale,
// sums of the first bytes (of 16 and 16, as two signed halves of a word), sums of the second ones, nothing. Of each eight
// bytes first those at even places come, then those at odd ones: the order in which 4-bit codes of weights fall out of
// words.

#if FINE
#define Q_VECTORS 5u
#else
#define Q_VECTORS 3u
#endif

// Both sums of sixteen lanes, as two halves of a word.
DEVICE u32 two_sums(int value) {
    for (u32 apart = 8u; apart > 0u; apart /= 2u) value += __shfl_xor_sync(ALL_LANES, value, apart);
    int other = __shfl_xor_sync(ALL_LANES, value, 16u);
    return ((u32)value & 0xFFFFu) | (u32)other << 16;
}

DEVICE int low_sum(u32 sums) { return (int)(sums << 16) >> 16; }
DEVICE int high_sum(u32 sums) { return (int)sums >> 16; }

// Writes a unit, a value a lane.
DEVICE void quantize(uint4* record, u32 lane, float value) {
    u32 peak_bits = __float_as_uint(value) & 0x7FFFFFFFu;
    for (u32 apart = 16u; apart > 0u; apart /= 2u) {
        u32 other = __shfl_xor_sync(ALL_LANES, peak_bits, apart);
        peak_bits = other > peak_bits ? other : peak_bits;
    }
    float peak = __uint_as_float(peak_bits);
    // What is not finite shows as a scale that is no number.
    bool is_good = peak_bits < 0x7F800000u;
    float inverse = is_good && peak > 1e-30f ? 127.0f / peak : 0.0f;
    float steps = is_good ? value * inverse : 0.0f;
    float whole = rintf(steps);
    u32 place = lane / 8u * 8u + (lane & 1u) * 4u + lane % 8u / 2u;
    u8* bytes = reinterpret_cast<u8*>(record);
    bytes[place] = (u8)(int)whole;
    uint4 behind;
    behind.x = __float_as_uint(!is_good ? __uint_as_float(0x7FC00000u) : inverse > 0.0f ? peak / 127.0f : 0.0f);
    behind.y = two_sums((int)whole);
    behind.z = 0u;
    behind.w = 0u;
#if FINE
    int rest = (int)rintf((steps - whole) * 254.0f);
    bytes[32u + place] = (u8)rest;
    behind.z = two_sums(rest);
#endif
    if (lane == 0u) record[Q_VECTORS - 1u] = behind;
}

// Where a row of values goes: floats, bytes, or both.
struct Out {
    float* floats;
    uint4* bytes;
};

// Puts 32 values of a row, a lane each: those behind its width are nothing.
DEVICE void put_unit(Out out, u32 row, u32 stride, u32 width, u32 unit, u32 lane, float value) {
    u32 col = unit * WARP + lane;
    if (out.floats && col < width) out.floats[(u64)row * stride + col] = value;
    if (out.bytes) {
        u32 units = (width + WARP - 1u) / WARP;
        quantize(out.bytes + ((u64)row * units + unit) * Q_VECTORS, lane, col < width ? value : 0.0f);
    }
}
