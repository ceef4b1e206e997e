// Queries and keys of fused rows are normalised by ops/norm's kernels, a stretch being a row; this is the values' way
// through, forward and backward: y = x on the columns behind the keys.

constexpr u32 THREADS = 256;

// Thread `t` has octet `t` of `octets` a row.
// registers: 32
extern "C" __global__ void __launch_bounds__(THREADS)
    query_key_norm_pass(const value* __restrict__ from, value* __restrict__ to, u32 rows, u32 width, u64 stride,
                        u64 offset) {
    const u32 octets = (width + 7) / 8;
    const u64 item = u64(blockIdx.x) * THREADS + threadIdx.x;
    const u32 row = u32(item / octets), column = u32(item % octets) * 8;
    if (row >= rows) return;
    const u64 at = row * stride + offset;
    const bool aligned = aligned16(from + at, 8) && aligned16(to + at, 8);
    write8(to + at, column, width, aligned, read8(from + at, column, width, aligned));
}
