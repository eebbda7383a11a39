// What all kernels have in common: types, what a step is, sums over a warp. Needs no header of the toolkit; put before every
// other file. With EMULATED it is C++ for the processor, see tests/conformance/emulator.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32u
#define ALL_LANES 0xFFFFFFFFu

#ifndef EMULATED
#define ARCH __CUDA_ARCH__
#define DEVICE __device__ __forceinline__
// A kernel of `threads` a block that takes one structure. One block a multiprocessor is enough: nothing shall spill.
#define KERNEL(name, threads, Args) extern "C" __global__ void __launch_bounds__(threads, 1) name(const Args p)

DEVICE float of_half(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

DEVICE u16 to_half(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

#if __CUDA_ARCH__ >= 800
// 16 x 32 signed bytes times 32 x 8 of them.
DEVICE void mma_32(int (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 16 x 16 signed bytes times 16 x 8 of them.
DEVICE void mma_16(int (&c)[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b));
}
#endif
#endif

// A step, as the host writes it. Words: rows, results, where results begin, where angles begin; of each row its token, its
// position, where the tables of its sequence begin, nothing; of each result its row; of each sequence, pool by pool, where
// its page table begins; the tables; the angles.
#define STEP_HEAD 4u
#define STEP_ROW 4u

DEVICE u32 n_rows(const u32* step) { return step[0]; }
DEVICE u32 n_wants(const u32* step) { return step[1]; }
DEVICE u32 token_of(const u32* step, u32 row) { return step[STEP_HEAD + STEP_ROW * row]; }
DEVICE u32 position_of(const u32* step, u32 row) { return step[STEP_HEAD + STEP_ROW * row + 1u]; }
DEVICE u32 wanted_row(const u32* step, u32 want) { return step[step[2] + want]; }

// The page table of a row's sequence in a pool.
DEVICE const u32* table_of(const u32* step, u32 row, u32 pool) {
    return step + step[step[STEP_HEAD + STEP_ROW * row + 2u] + pool];
}

// How many inputs there are: 0 all rows of the step, 1 those with results, else one less than this for each row.
DEVICE u32 n_inputs(const u32* step, u32 input) {
    return input == 0u ? n_rows(step) : input == 1u ? n_wants(step) : n_rows(step) * (input - 1u);
}

DEVICE bool is_finite(float value) { return (__float_as_uint(value) & 0x7F800000u) != 0x7F800000u; }

DEVICE float warp_sum(float value) {
    for (u32 apart = 16u; apart > 0u; apart /= 2u) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

DEVICE float warp_max(float value) {
    for (u32 apart = 16u; apart > 0u; apart /= 2u) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}

// Beyond 20 it is one to the last bit.
DEVICE float safe_tanh(float value) { return tanhf(fminf(fmaxf(value, -20.0f), 20.0f)); }

DEVICE float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
