// Sums over rows, one a column: the gradients of biases and gains.
//
// s_c += sum over r of x_rc. The rows are cut into stretches by their number alone; within one, warp `w` of eight adds rows
// `w`, `w + 8`, ... and the eight sums are added in order; the stretches' sums likewise. No sum depends on which block
// runs first.

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;

// Block (c, s) sums columns 256 c to 256 c + 255 of rows `s each` to `(s + 1) each - 1`: into row `s` of `to`
// `[stretches, width]`, or, where `add` says so, which is for one stretch, on what is there.
// registers: 64
extern "C" __global__ void __launch_bounds__(THREADS)
    columns_sum(const value* __restrict__ x, float* __restrict__ to, u32 rows, u32 each, u32 width, u64 stride, u32 add) {
    __shared__ float shared[WARPS][32 * 8];
    const u32 column = (blockIdx.x * 32 + lane()) * 8;
    const bool aligned = aligned16(x, stride);
    const u32 end = min((blockIdx.y + 1) * each, rows);
    octet sum = {};
#pragma unroll 4
    for (u32 row = blockIdx.y * each + warp(); row < end; row += WARPS) {
        const octet here = read8(x + row * stride, column, width, aligned);
        for (u32 i = 0; i < 8; ++i) sum.at[i] += here.at[i];
    }
    for (u32 i = 0; i < 8; ++i) shared[warp()][i * 32 + lane()] = sum.at[i];
    __syncthreads();
    const u32 mine = blockIdx.x * 256 + threadIdx.x;
    if (mine >= width) return;
    float total = 0.0f;
    for (u32 w = 0; w < WARPS; ++w) total += shared[w][threadIdx.x % 8 * 32 + threadIdx.x / 8];
    float* const place = to + u64(blockIdx.y) * width + mine;
    *place = add ? *place + total : total;
}

// Adds the rows of `partials` `[stretches, width or 2 width]`: its first `width` columns to `first`, those behind them, for
// the blocks of the second layer, to `second`. Thread `r` of eight of a column adds rows `r`, `r + 8`, ...
// registers: 40
extern "C" __global__ void __launch_bounds__(THREADS)
    columns_gather(const float* __restrict__ partials, float* __restrict__ first, float* __restrict__ second,
                   u32 stretches, u32 width, u64 stride) {
    __shared__ float shared[WARPS][32];
    const u32 column = blockIdx.x * 32 + lane();
    float sum = 0.0f;
    if (column < width) {
        const float* const from = partials + u64(blockIdx.y) * width + column;
#pragma unroll 8
        for (u32 row = warp(); row < stretches; row += WARPS) sum += from[row * stride];
    }
    shared[warp()][lane()] = sum;
    __syncthreads();
    if (warp() > 0 || column >= width) return;
    float total = 0.0f;
    for (u32 w = 0; w < WARPS; ++w) total += shared[w][lane()];
    float* const to = blockIdx.y == 0 ? first : second;
    to[column] += total;
}
