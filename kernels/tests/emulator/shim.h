// CUDA sources as C++ for the processor: what they need of the language and its library, and blocks whose threads meet.
//
// Blocks run one after the other. The threads of a block are fibers on one thread of the system; each runs until it meets
// the others, at __syncthreads those of its block, at a shuffle those of its warp. The order in which they run turns round
// every time, so that what only works in one order fails. Threads that never meet are an error, told and not waited for.
// Put before a source; every KERNEL becomes a function that the tests call.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>

#define EMULATED
#ifndef ARCH
#define ARCH 900
#endif
#define DEVICE static inline
#define __shared__ static

typedef unsigned char shim_u8;
typedef uint32_t shim_u32;
struct alignas(8) uint2 { shim_u32 x, y; };
struct alignas(16) uint4 { shim_u32 x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { shim_u32 x, y, z; };
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }

static uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {
const shim_u32 MOST_THREADS = 256, STACK_BYTES = 64 << 10;

#if defined(__x86_64__)
// Leaves a stack for another; what a function must keep is kept on the stack that is left.
extern "C" void shim_switch(void** from, void* to);
asm(".text\n.local shim_switch\n.type shim_switch, @function\nshim_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
typedef void* Context;
static void begin(Context& context, shim_u8* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK_BYTES);
    // A function finds its stack eight bytes off a multiple of sixteen.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int at = 0; at < 6; at++) *--top = nullptr;
    context = top;
}
static void change(Context& from, Context& to) { shim_switch(&from, to); }
#else
}
#include <ucontext.h>
namespace shim {
typedef ucontext_t Context;
static void begin(Context& context, shim_u8* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK_BYTES;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
static void change(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

enum Waits : shim_u8 { NOT, FOR_BLOCK, FOR_WARP, ENDED };

struct Fiber {
    Context context;
    Waits waits;
    shim_u32 turn;
};

static Context scheduler;
static Fiber fibers[MOST_THREADS];
static shim_u8* stacks;
static void (*body)();
static shim_u32 n_threads, own;
// How often the block and each warp have met, and who is there for the next time.
static shim_u32 block_turn, block_arrived, warp_turn[MOST_THREADS / 32], warp_arrived[MOST_THREADS / 32];
// What lanes show each other, for two shuffles in a row.
static uint64_t shown[2][MOST_THREADS];

static void pause(Waits waits, shim_u32 turn) {
    Fiber& fiber = fibers[own];
    fiber.waits = waits;
    fiber.turn = turn;
    change(fiber.context, scheduler);
}

static void run() {
    body();
    pause(ENDED, 0);
}

static void meet_block() {
    shim_u32 turn = block_turn;
    if (++block_arrived == n_threads) {
        block_arrived = 0;
        block_turn++;
    }
    pause(FOR_BLOCK, turn);
}

static void meet_warp() {
    shim_u32 warp = own / 32, turn = warp_turn[warp];
    if (++warp_arrived[warp] == 32) {
        warp_arrived[warp] = 0;
        warp_turn[warp]++;
    }
    pause(FOR_WARP, turn);
}

template <typename T>
static T shuffled(T value, shim_u32 lane_of(shim_u32, shim_u32), shim_u32 by) {
    static_assert(sizeof(T) <= 8, "a lane shows eight bytes at most");
    shim_u32 which = warp_turn[own / 32] & 1;
    memcpy(&shown[which][own], &value, sizeof(T));
    meet_warp();
    memcpy(&value, &shown[which][own / 32 * 32 + lane_of(own % 32, by)], sizeof(T));
    return value;
}

static bool may_run(shim_u32 thread) {
    const Fiber& fiber = fibers[thread];
    switch (fiber.waits) {
        case NOT: return true;
        case FOR_BLOCK: return fiber.turn != block_turn;
        case FOR_WARP: return fiber.turn != warp_turn[thread / 32];
        default: return false;
    }
}

// Runs a block; says what went wrong.
static const char* run_block() {
    block_arrived = 0;
    for (shim_u32 warp = 0; warp < n_threads / 32; warp++) warp_arrived[warp] = 0;
    for (shim_u32 thread = 0; thread < n_threads; thread++) {
        begin(fibers[thread].context, stacks + (size_t)thread * STACK_BYTES, run);
        fibers[thread].waits = NOT;
    }
    for (bool backwards = false;; backwards = !backwards) {
        shim_u32 n_run = 0, n_ended = 0;
        for (shim_u32 at = 0; at < n_threads; at++) {
            shim_u32 thread = backwards ? n_threads - 1 - at : at;
            if (fibers[thread].waits == ENDED) n_ended++;
            if (!may_run(thread)) continue;
            n_run++;
            own = thread;
            threadIdx.x = thread;
            change(scheduler, fibers[thread].context);
        }
        if (n_ended == n_threads) return nullptr;
        if (n_run == 0) return "threads of a block or warp don't all meet";
    }
}

static const char* launch(void (*of_thread)(), const shim_u32* grid, shim_u32 threads, shim_u32 most_threads) {
    if (threads != most_threads || threads % 32 != 0 || threads > MOST_THREADS) return "not the threads that it is made for";
    if (!stacks) {
        void* memory = mmap(nullptr, (size_t)MOST_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return "no memory for stacks";
        stacks = static_cast<shim_u8*>(memory);
    }
    body = of_thread;
    n_threads = threads;
    blockDim = uint3{threads, 1, 1};
    gridDim = uint3{grid[0], grid[1], grid[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++) {
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++) {
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++) {
                if (const char* error = run_block()) return error;
            }
        }
    }
    return nullptr;
}

template <typename To, typename From>
static To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

static int byte_of(int word, int at) { return (int8_t)(word >> (8 * at)); }
}

#define KERNEL(name, threads, Args)                                                                                     \
    static Args name##_args;                                                                                            \
    static void name##_body(const Args& p);                                                                             \
    static void name##_thread() { name##_body(name##_args); }                                                           \
    extern "C" const char* name(const void* args, size_t n_bytes, const shim_u32* grid, shim_u32 n_threads) {           \
        if (n_bytes != sizeof(Args)) return "arguments of another size";                                                \
        memcpy(&name##_args, args, n_bytes);                                                                            \
        return shim::launch(name##_thread, grid, n_threads, threads);                                                   \
    }                                                                                                                   \
    static void name##_body(const Args& p)

static inline void __syncthreads() { shim::meet_block(); }

template <typename T>
static inline T __shfl_xor_sync(shim_u32, T value, shim_u32 by) {
    return shim::shuffled<T>(value, [](shim_u32 lane, shim_u32 by) { return lane ^ by; }, by);
}

static inline shim_u32 __float_as_uint(float value) { return shim::bits<shim_u32>(value); }
static inline float __uint_as_float(shim_u32 value) { return shim::bits<float>(value); }

static inline int __dp4a(int a, int b, int sum) {
    for (int at = 0; at < 4; at++) sum += shim::byte_of(a, at) * shim::byte_of(b, at);
    return sum;
}

static inline shim_u32 __byte_perm(shim_u32 low, shim_u32 high, shim_u32 chooser) {
    uint64_t both = (uint64_t)high << 32 | low;
    shim_u32 out = 0;
    for (int at = 0; at < 4; at++) out |= (shim_u32)(both >> (8 * (chooser >> (4 * at) & 7)) & 0xFF) << (8 * at);
    return out;
}

static inline float of_half(uint16_t half) {
    shim_u32 sign = (shim_u32)(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FF;
    if (exponent == 0) return shim::bits<float>(shim::bits<shim_u32>((float)mantissa * 5.9604644775390625e-8f) | sign);
    return shim::bits<float>(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}

// The nearest, to even.
static inline uint16_t to_half(float value) {
    shim_u32 bits = shim::bits<shim_u32>(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FFF;
    if (magnitude >= 0x477FF000) return sign | 0x7C00;
    if (magnitude < 0x38800000) return sign | (shim_u32)rintf(shim::bits<float>(magnitude) * 16777216.0f);
    return sign | ((magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13);
}

// Fragments as the instruction's description has them: of a lane the rows lane / 4 and eight more of the first matrix, the
// column lane / 4 of the second, four bytes from 4 * (lane % 4) on, and 16 more.
struct ShimFragments {
    shim_u32 a[4], b[2];
};
static ShimFragments shim_fragments[2][shim::MOST_THREADS];

static void shim_mma(int (&c)[4], ShimFragments own, int n_halves) {
    shim_u32 warp = shim::own / 32, lane = shim::own % 32, which = shim::warp_turn[warp] & 1;
    shim_fragments[which][shim::own] = own;
    shim::meet_warp();
    const ShimFragments* of_warp = shim_fragments[which] + warp * 32;
    for (shim_u32 at = 0; at < 4; at++) {
        shim_u32 row = lane / 4, col = lane % 4 * 2 + at % 2;
        for (int half = 0; half < n_halves; half++) {
            for (shim_u32 k = 0; k < 4; k++) {
                shim_u32 a = of_warp[row * 4 + k].a[at / 2 + 2 * half];
                c[at] = __dp4a((int)a, (int)of_warp[col * 4 + k].b[half], c[at]);
            }
        }
    }
}

static inline void mma_32(int (&c)[4], const shim_u32 (&a)[4], const shim_u32 (&b)[2]) {
    shim_mma(c, ShimFragments{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, 2);
}

static inline void mma_16(int (&c)[4], shim_u32 a0, shim_u32 a1, shim_u32 b) {
    shim_mma(c, ShimFragments{{a0, a1, 0, 0}, {b, 0}}, 1);
}
