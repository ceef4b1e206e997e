// What stands before every kernel: the types, 16-byte loads, reductions, random numbers and tensor-core operations that
// kernels are written in.
//
// No file of NVIDIA's is included. LECTERN_HOST, which no kernel ever asks about, puts a processor's twins in place of
// the instructions. `value` is what activations are stored as: LECTERN_BF16 or LECTERN_F32 says which.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

// A brain float: the upper half of a float's bits.
struct bf16 {
    u16 bits;
};

#ifdef LECTERN_BF16
typedef bf16 value;
#else
typedef float value;
#endif

// As many of T as fill 16 bytes, which is what one load or store moves.
template <class T> struct alignas(16) Pack {
    static constexpr u32 count = 16 / sizeof(T);
    T at[count];
};
typedef Pack<bf16> pack8;
typedef Pack<float> pack4;
typedef Pack<value> pack;

#ifdef LECTERN_HOST
#include "host.hpp"
#else

// ---------------------------------------------------------------------------------------------- numbers

__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Two floats rounded to nearest, ties to even: `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

__device__ __forceinline__ bf16 round_bf16(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bf16{bits};
}

// Two to the power of `x` by the device's own instruction: off by two units in the last place, without denormals.
__device__ __forceinline__ float exp2_near(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// ---------------------------------------------------------------------------------------------- memory

// The launch's dynamic shared memory.
#define DYNAMIC_SHARED(type, name)                                                                                     \
    extern __shared__ __align__(128) u8 lectern_dynamic[];                                                             \
    type* const name = reinterpret_cast<type*>(lectern_dynamic)

template <class T> __device__ __forceinline__ Pack<T> pack_of(uint4 words) {
    Pack<T> result;
    *reinterpret_cast<uint4*>(&result) = words;
    return result;
}

// Reads 16 bytes at a multiple of 16.
template <class T> __device__ __forceinline__ Pack<T> load16(const T* from) {
    return pack_of<T>(*reinterpret_cast<const uint4*>(from));
}

// Reads what nobody will read again soon.
template <class T> __device__ __forceinline__ Pack<T> load16_once(const T* from) {
    return pack_of<T>(__ldcs(reinterpret_cast<const uint4*>(from)));
}

template <class T> __device__ __forceinline__ void store16(T* to, const Pack<T>& words) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&words);
}

template <class T> __device__ __forceinline__ void store16_once(T* to, const Pack<T>& words) {
    __stcs(reinterpret_cast<uint4*>(to), *reinterpret_cast<const uint4*>(&words));
}

// Starts a copy of 16 bytes to shared memory, of zeros where `inside` is false; then `global` is not read.
__device__ __forceinline__ void copy_async16(void* shared, const void* global, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(shared))),
                 "l"(__cvta_generic_to_global(global)), "r"(inside ? 16 : 0)
                 : "memory");
}

// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's latest groups are under way.
template <u32 pending> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---------------------------------------------------------------------------------------------- tensor cores

// Four 8 x 8 matrices of 16-bit values from shared memory: lane `8 i + r` points at row `r` of matrix `i`, and register
// `i` of lane `l` gets the values `2 (l % 4)` and the next of row `l / 4` (PTX manual, ldmatrix).
__device__ __forceinline__ void load_matrix_x4(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(u32(__cvta_generic_to_shared(shared)))
                 : "memory");
}

// The same with each matrix transposed.
__device__ __forceinline__ void load_matrix_x4_transposed(u32 (&r)[4], const void* shared) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(u32(__cvta_generic_to_shared(shared)))
                 : "memory");
}

// `d += a b`, `a` 16 x 16 by rows and `b` 16 x 8 by columns (PTX manual, mma.m16n8k16 with .bf16). With `g = lane / 4`
// and `t = lane % 4`: `a[0]` holds row `g`, columns `2 t` and the next, `a[1]` row `g + 8`, `a[2]` and `a[3]` the same
// rows eight columns on; `b[0]` rows `2 t` and the next of column `g`, `b[1]` eight rows on; `d[0]`, `d[1]` row `g`,
// columns `2 t` and the next, `d[2]`, `d[3]` row `g + 8`.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

// ---------------------------------------------------------------------------------------------- values

__device__ __forceinline__ float widen(float x) { return x; }

template <class T> __device__ __forceinline__ T narrow_to(float x);
template <> __device__ __forceinline__ float narrow_to<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 narrow_to<bf16>(float x) { return round_bf16(x); }

// What an activation keeps of a float: rounded to nearest, ties to even.
__device__ __forceinline__ value narrow(float x) { return narrow_to<value>(x); }

// Whether 16-byte access is possible at every row of this stride in elements.
template <class T> __device__ __forceinline__ bool aligned16(const T* at, u64 stride) {
    return reinterpret_cast<u64>(at) % 16 == 0 && stride % Pack<T>::count == 0;
}

// ---------------------------------------------------------------------------------------------- octets

// Eight neighbours of a row, widened: what one thread of a row-wise kernel carries.
struct octet {
    float at[8];
};

__device__ __forceinline__ octet load8(const bf16* from) {
    const Pack<u32> words = load16(reinterpret_cast<const u32*>(from));
    octet x;
    for (u32 i = 0; i < 4; ++i) {
        x.at[2 * i] = widen(bf16{u16(words.at[i])});
        x.at[2 * i + 1] = widen(bf16{u16(words.at[i] >> 16)});
    }
    return x;
}

__device__ __forceinline__ octet load8(const float* from) {
    const pack4 low = load16(from), high = load16(from + 4);
    octet x;
    for (u32 i = 0; i < 4; ++i) {
        x.at[i] = low.at[i];
        x.at[4 + i] = high.at[i];
    }
    return x;
}

__device__ __forceinline__ void store8(bf16* to, const octet& x) {
    Pack<u32> words;
    for (u32 i = 0; i < 4; ++i) words.at[i] = pack_bf16(x.at[2 * i], x.at[2 * i + 1]);
    store16(reinterpret_cast<u32*>(to), words);
}

__device__ __forceinline__ void store8(float* to, const octet& x) {
    pack4 low, high;
    for (u32 i = 0; i < 4; ++i) {
        low.at[i] = x.at[i];
        high.at[i] = x.at[4 + i];
    }
    store16(to, low);
    store16(to + 4, high);
}

// Eight elements of a row from `column` on, zero past its end. `aligned`: every row begins at a multiple of 16 bytes.
template <class T, class Count>
__device__ __forceinline__ octet read8(const T* row, Count column, Count width, bool aligned) {
    if (aligned && column + 8 <= width) return load8(row + column);
    octet x;
    for (u32 i = 0; i < 8; ++i) x.at[i] = column + i < width ? widen(row[column + i]) : 0.0f;
    return x;
}

// Writes them, and nothing past the row's end.
template <class T, class Count>
__device__ __forceinline__ void write8(T* row, Count column, Count width, bool aligned, const octet& x) {
    if (aligned && column + 8 <= width) return store8(row + column, x);
    for (u32 i = 0; i < 8; ++i) {
        if (column + i < width) row[column + i] = narrow_to<T>(x.at[i]);
    }
}

// ---------------------------------------------------------------------------------------------- reductions

__device__ __forceinline__ u32 lane() { return threadIdx.x % 32; }
__device__ __forceinline__ u32 warp() { return threadIdx.x / 32; }

// The sum over a warp, which every lane gets, always in the same order.
__device__ __forceinline__ float warp_sum(float x) {
    for (u32 apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (u32 apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    return x;
}

// The sum over a block of whole warps, which every thread gets. `shared32` holds 32 floats and is free afterwards.
__device__ __forceinline__ float block_sum(float x, float* shared32) {
    x = warp_sum(x);
    if (blockDim.x <= 32) return x;
    if (lane() == 0) shared32[warp()] = x;
    __syncthreads();
    x = warp_sum(lane() < blockDim.x / 32 ? shared32[lane()] : 0.0f);
    __syncthreads();
    return x;
}

// The largest of a block of whole warps, likewise.
__device__ __forceinline__ float block_max(float x, float* shared32) {
    x = warp_max(x);
    if (blockDim.x <= 32) return x;
    if (lane() == 0) shared32[warp()] = x;
    __syncthreads();
    x = warp_max(shared32[lane() < blockDim.x / 32 ? lane() : 0]);
    __syncthreads();
    return x;
}

// ---------------------------------------------------------------------------------------------- random numbers

struct words4 {
    u32 at[4];
};

// The four words of one block of one step, as `runtime::random::Stream` draws them: Philox4x32 with ten rounds.
__device__ __forceinline__ words4 draws(u64 seed, u32 purpose, u64 step, u64 block) {
    const u64 place = (block & 0x00ffffffffffffffull) | (u64(purpose) << 56);
    u32 c0 = u32(place), c1 = u32(place >> 32), c2 = u32(step), c3 = u32(step >> 32);
    u32 k0 = u32(seed), k1 = u32(seed >> 32);
    // Unrolled it would hold twenty keys in registers.
#pragma unroll 1
    for (u32 round = 0; round < 10; ++round) {
        const u64 left = u64(0xD2511F53u) * c0, right = u64(0xCD9E8D57u) * c2;
        c0 = u32(right >> 32) ^ c1 ^ k0;
        c1 = u32(right);
        c2 = u32(left >> 32) ^ c3 ^ k1;
        c3 = u32(left);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return words4{{c0, c1, c2, c3}};
}

// A word as a number in [0, 1).
__device__ __forceinline__ float uniform(u32 word) { return float(word >> 8) * (1.0f / 16777216.0f); }

// `runtime::random::Purpose::Dropout`.
constexpr u32 PURPOSE_DROPOUT = 4;

// Dropout's words of the columns `4 four` to `4 four + 3` of a row of the whole batch, as `ops::dropout` draws them;
// `site` is the site's first block.
__device__ __forceinline__ words4 dropout_words(u64 seed, u64 step, u64 site, u64 row, u32 width, u32 four) {
    return draws(seed, PURPOSE_DROPOUT, step, site + row * ((u64(width) + 3) / 4) + four);
}

// What a value is multiplied by whose word this is: dropped below `threshold`.
__device__ __forceinline__ float dropout_factor(u32 word, u32 threshold, float scale) {
    return word < threshold ? 0.0f : scale;
}

// The factors of eight columns from `column`, a multiple of four, on; a threshold of zero drops nothing.
__device__ __forceinline__ octet dropout8(u64 seed, u64 step, u64 site, u64 row, u32 width, u32 column, u32 threshold,
                                          float scale) {
    octet factors;
    for (u32 half = 0; half < 2; ++half) {
        const words4 words = dropout_words(seed, step, site, row, width, column / 4 + half);
        for (u32 i = 0; i < 4; ++i) factors.at[4 * half + i] = dropout_factor(words.at[i], threshold, scale);
    }
    return factors;
}

// What changes from step to step and is therefore read from memory: a step that is replayed sees this step's.
struct Clock {
    u64 step;          // of the noise
    u64 update;        // number of the update, from 1
    float keep;        // 1 - lr d
    float root;        // 1 / sqrt(1 - b2^t)
    float size;        // lr / (1 - b1^t)
    float scale;       // what clipping multiplies the gradient by
};
