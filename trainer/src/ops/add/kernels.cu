// The residual connection: the equations of ops/add.rs.
//
// Forward: out = stream + branch m, m the dropout mask of the branch.
// Backward: d_stream = d_out, d_branch = d_out m.
//
// Thread `t` has octet `t` of `octets` a row; without a mask the rows may be taken as one. The mask and the sum are rounded
// together, as ops/norm does where it makes the sum itself: the bytes are the same.

constexpr u32 THREADS = 256;

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    add_forward(const value* __restrict__ stream, const value* __restrict__ branch, value* __restrict__ out, u32 rows,
                u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                float scale) {
    const u32 octets = width / 8 + (width % 8 > 0), item = blockIdx.x * THREADS + threadIdx.x;
    const u32 row = item / octets, column = item % octets * 8;
    if (row >= rows) return;
    const u64 at = u64(row) * width;
    const bool aligned = aligned16(stream + at, 8) && aligned16(branch + at, 8) && aligned16(out + at, 8);
    const octet left = read8(stream + at, column, width, aligned);
    octet sum = read8(branch + at, column, width, aligned), m;
    for (u32 i = 0; i < 8; ++i) m.at[i] = 1.0f;
    if (threshold > 0) m = dropout8(seed, clock->step, site, first_row + row, width, column, threshold, scale);
    for (u32 i = 0; i < 8; ++i) sum.at[i] = fmaf(sum.at[i], m.at[i], left.at[i]);
    write8(out + at, column, width, aligned, sum);
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    add_backward(const value* __restrict__ d_out, value* __restrict__ d, u32 rows, u32 width, u32 add,
                 const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    const u32 octets = width / 8 + (width % 8 > 0), item = blockIdx.x * THREADS + threadIdx.x;
    const u32 row = item / octets, column = item % octets * 8;
    if (row >= rows) return;
    const u64 at = u64(row) * width;
    const bool aligned = aligned16(d_out + at, 8) && aligned16(d + at, 8);
    octet result = read8(d_out + at, column, width, aligned);
    if (threshold > 0) {
        const octet m = dropout8(seed, clock->step, site, first_row + row, width, column, threshold, scale);
        for (u32 i = 0; i < 8; ++i) result.at[i] *= m.at[i];
    }
    if (add) {
        const octet before = read8(d + at, column, width, aligned);
        for (u32 i = 0; i < 8; ++i) result.at[i] += before.at[i];
    }
    write8(d + at, column, width, aligned, result);
}
