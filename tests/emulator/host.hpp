// A processor's twins of what kernels take from CUDA: the branch LECTERN_HOST of kernel.cuh. Every thread of a block is
// a fibre; what threads do together is the driver's (`machine.cpp`).
#pragma once

#include <math.h>
#include <string.h>

#include "contract.hpp"
#include "entry.hpp"

#define __global__ __attribute__((used, noinline, visibility("default")))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...) __attribute__((emulator_bounds(__VA_ARGS__)))
// One block runs at a time, so its shared memory may be the file's. The section is filled anew before each block.
#define __shared__ static __attribute__((section("emulator_shared")))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulator_dynamic_shared())

#define threadIdx (emulator_place.thread)
#define blockIdx (emulator_place.block)
#define blockDim (emulator_place.threads)
#define gridDim (emulator_place.blocks)

// ---------------------------------------------------------------------------------------------- numbers

inline float __uint_as_float(u32 bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}
inline u32 __float_as_uint(float number) {
    u32 bits;
    memcpy(&bits, &number, 4);
    return bits;
}
inline float __int_as_float(i32 bits) { return __uint_as_float(u32(bits)); }
inline i32 __float_as_int(float number) { return i32(__float_as_uint(number)); }
inline double __longlong_as_double(i64 bits) {
    double number;
    memcpy(&number, &bits, 8);
    return number;
}
inline i64 __double_as_longlong(double number) {
    i64 bits;
    memcpy(&bits, &number, 8);
    return bits;
}

inline float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

inline bf16 round_bf16(float x) {
    const u32 bits = __float_as_uint(x);
    if (x != x) return bf16{0x7fff};
    return bf16{u16((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

inline u32 pack_bf16(float low, float high) { return u32(round_bf16(high).bits) << 16 | round_bf16(low).bits; }

inline float exp2_near(float x) { return exp2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline i32 __popc(u32 x) { return __builtin_popcount(x); }
inline i32 __clz(i32 x) { return x == 0 ? 32 : __builtin_clz(u32(x)); }
inline i32 __ffs(i32 x) { return __builtin_ffs(x); }
inline u32 __umulhi(u32 x, u32 y) { return u32(u64(x) * y >> 32); }
inline u64 __umul64hi(u64 x, u64 y) { return u64((unsigned __int128)x * y >> 64); }

inline i32 min(i32 x, i32 y) { return x < y ? x : y; }
inline i32 max(i32 x, i32 y) { return x > y ? x : y; }
inline u32 min(u32 x, u32 y) { return x < y ? x : y; }
inline u32 max(u32 x, u32 y) { return x > y ? x : y; }
inline u64 min(u64 x, u64 y) { return x < y ? x : y; }
inline u64 max(u64 x, u64 y) { return x > y ? x : y; }
inline i64 min(i64 x, i64 y) { return x < y ? x : y; }
inline i64 max(i64 x, i64 y) { return x > y ? x : y; }
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }

// ---------------------------------------------------------------------------------------------- memory

inline void aligned_to_16(const void* at, const char* what) {
    if (reinterpret_cast<u64>(at) % 16 != 0) emulator_wrong("%s at %p, which is no multiple of 16", what, at);
}

template <class T> inline Pack<T> load16(const T* from) {
    aligned_to_16(from, "load16");
    Pack<T> result;
    for (u32 i = 0; i < Pack<T>::count; ++i) result.at[i] = from[i];
    return result;
}
template <class T> inline Pack<T> load16_once(const T* from) { return load16(from); }

template <class T> inline void store16(T* to, const Pack<T>& words) {
    aligned_to_16(to, "store16");
    for (u32 i = 0; i < Pack<T>::count; ++i) to[i] = words.at[i];
}
template <class T> inline void store16_once(T* to, const Pack<T>& words) { store16(to, words); }

template <class T> inline T __ldg(const T* from) { return *from; }
template <class T> inline T __ldcs(const T* from) { return *from; }
template <class T> inline T __ldcg(const T* from) { return *from; }
template <class T> inline void __stcs(T* to, T value) { *to = value; }
template <class T> inline void __stcg(T* to, T value) { *to = value; }

// The bytes are read now and written when they are waited for; until then the place holds what nobody wants to read.
inline void copy_async16(void* shared, const void* global, bool inside) {
    aligned_to_16(shared, "copy_async16 to shared memory");
    emulator::Copy copy{shared, {}};
    if (inside) {
        aligned_to_16(global, "copy_async16 from memory");
        for (u32 i = 0; i < 16; ++i) copy.bytes[i] = static_cast<const u8*>(global)[i];
    }
    for (u32 i = 0; i < 16; ++i) static_cast<u8*>(shared)[i] = 0xff;
    emulator_copy(&copy);
}
inline void copy_async_commit() { emulator_copy_commit(); }
template <u32 pending> inline void copy_async_wait() { emulator_copy_wait(pending); }

// One thread runs at a time.
template <class T> inline T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> inline T atomicSub(T* at, T value) { T old = *at; *at = old - value; return old; }
template <class T> inline T atomicMax(T* at, T value) { T old = *at; if (value > old) *at = value; return old; }
template <class T> inline T atomicMin(T* at, T value) { T old = *at; if (value < old) *at = value; return old; }
template <class T> inline T atomicOr(T* at, T value) { T old = *at; *at = old | value; return old; }
template <class T> inline T atomicAnd(T* at, T value) { T old = *at; *at = old & value; return old; }
template <class T> inline T atomicXor(T* at, T value) { T old = *at; *at = old ^ value; return old; }
template <class T> inline T atomicExch(T* at, T value) { T old = *at; *at = value; return old; }
template <class T> inline T atomicCAS(T* at, T expected, T value) {
    T old = *at;
    if (old == expected) *at = value;
    return old;
}
float atomicAdd(float*, float) = delete;
double atomicAdd(double*, double) = delete;

// ---------------------------------------------------------------------------------------------- together

inline void __syncthreads() { emulator_barrier(); }
inline void __syncwarp(u32 lanes = 0xffffffffu) { emulator_together(lanes, emulator::Together::Wait, nullptr); }
inline void __threadfence() {}
inline void __threadfence_block() {}

// What lane `from` gives, as seen from segments of `width` lanes; bits travel, whatever the type.
template <class T> inline T emulator_shuffle(u32 lanes, T value, u32 from) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    emulator::Exchange part{0, from, 0};
    memcpy(&part.given, &value, sizeof(T));
    emulator_together(lanes, emulator::Together::Shuffle, &part);
    memcpy(&value, &part.got, sizeof(T));
    return value;
}
template <class T> inline T __shfl_sync(u32 lanes, T value, i32 from, i32 width = 32) {
    const u32 here = threadIdx.x % 32;
    return emulator_shuffle(lanes, value, here / u32(width) * u32(width) + u32(from) % u32(width));
}
template <class T> inline T __shfl_xor_sync(u32 lanes, T value, i32 apart, i32 width = 32) {
    const u32 here = threadIdx.x % 32, from = here ^ u32(apart);
    return emulator_shuffle(lanes, value, from / u32(width) > here / u32(width) ? here : from);
}
template <class T> inline T __shfl_down_sync(u32 lanes, T value, u32 apart, i32 width = 32) {
    const u32 here = threadIdx.x % 32;
    return emulator_shuffle(lanes, value, here % u32(width) + apart < u32(width) ? here + apart : here);
}
template <class T> inline T __shfl_up_sync(u32 lanes, T value, u32 apart, i32 width = 32) {
    const u32 here = threadIdx.x % 32;
    return emulator_shuffle(lanes, value, here % u32(width) >= apart ? here - apart : here);
}
inline u32 __ballot_sync(u32 lanes, i32 holds) {
    emulator::Exchange part{holds != 0, 0, 0};
    emulator_together(lanes, emulator::Together::Ballot, &part);
    return u32(part.got);
}
inline i32 __any_sync(u32 lanes, i32 holds) { return __ballot_sync(lanes, holds) != 0; }
inline i32 __all_sync(u32 lanes, i32 holds) { return __ballot_sync(lanes, holds) == lanes; }
inline i32 __syncthreads_count(i32) = delete;

inline void load_matrix(u32 (&r)[4], const void* shared, bool transposed) {
    aligned_to_16(shared, "load_matrix_x4");
    emulator::Matrices part;
    for (u32 i = 0; i < 8; ++i) part.row[i] = static_cast<const u16*>(shared)[i];
    part.transposed = transposed;
    emulator_together(0xffffffffu, emulator::Together::LoadMatrix, &part);
    for (u32 i = 0; i < 4; ++i) r[i] = part.got[i];
}
inline void load_matrix_x4(u32 (&r)[4], const void* shared) { load_matrix(r, shared, false); }
inline void load_matrix_x4_transposed(u32 (&r)[4], const void* shared) { load_matrix(r, shared, true); }

inline void mma_bf16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    emulator::Product part{d, a, b};
    emulator_together(0xffffffffu, emulator::Together::Multiply, &part);
}
