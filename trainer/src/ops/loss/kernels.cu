// The cross-entropy of logits, and its gradient in their place: the equations of ops/loss.rs.
//
// Forward: loss_r = log sum_v exp z_rv - z_r,target.
// Backward with d_loss_r = scale: d_z_rv = scale (exp(z_rv) / sum_u exp(z_ru) - [v = target]).
//
// The maximum and the sum are found together: where a greater value turns up, the sum so far is scaled down. The second
// pass goes backwards, so that what was read last is read first. Powers are of two: with t the maximum times log2 e,
// rounded once for both passes, exp(z - max) is 2^(z log2 e - t).

constexpr u32 THREADS = 1024;
constexpr u32 NARROW_THREADS = 256;

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

// What the threads of a row share: a warp, or a block with `shared`.
template <bool WIDE> __device__ __forceinline__ float top_of(float x, float* shared) {
    return WIDE ? block_max(x, shared) : warp_max(x);
}
template <bool WIDE> __device__ __forceinline__ float sum_of(float x, float* shared) {
    return WIDE ? block_sum(x, shared) : warp_sum(x);
}

// One row, by the `together` threads of which this is number `me`.
template <bool WIDE>
__device__ __forceinline__ void judge(value* logits, u32 target, float* loss, u32 vocabulary, u32 me, u32 together,
                                      bool backwards, float scale, float* shared) {
    const float lowest = __uint_as_float(0xff800000u);
    const bool aligned = aligned16(logits, 8);
    const float wanted = widen(logits[target]);
    // In units of log2 e, like all that is compared here.
    float top = lowest, sum = 0.0f;
    for (u32 column = me * 8; column < vocabulary; column += together * 8) {
        const octet z = read8(logits, column, vocabulary, aligned);
        float here = lowest;
        for (u32 i = 0; i < 8; ++i) here = column + i < vocabulary ? fmaxf(here, z.at[i]) : here;
        here *= LOG2_E;
        if (here > top) {
            sum *= exp2_near(top - here);
            top = here;
        }
        for (u32 i = 0; i < 8; ++i) sum += column + i < vocabulary ? exp2_near(fmaf(z.at[i], LOG2_E, -top)) : 0.0f;
    }
    const float highest = top_of<WIDE>(top, shared);
    // Of a thread without columns nothing is left.
    sum = sum_of<WIDE>(sum * exp2_near(top - highest), shared);
    if (me == 0) *loss = fmaf(highest, LN_2, logf(sum)) - wanted;
    if (!backwards) return;
    if (!WIDE) __syncwarp();
    const float share = scale / sum;
    const u32 turns = (vocabulary + together * 8 - 1) / (together * 8);
    for (u32 turn = turns; turn > 0; --turn) {
        const u32 column = ((turn - 1) * together + me) * 8;
        if (column >= vocabulary) continue;
        octet z = read8(logits, column, vocabulary, aligned);
        for (u32 i = 0; i < 8; ++i) {
            z.at[i] = exp2_near(fmaf(z.at[i], LOG2_E, -highest)) * share - (column + i == target ? scale : 0.0f);
        }
        write8(logits, column, vocabulary, aligned, z);
    }
}

// One row a block, two blocks a multiprocessor: rows in work should stay in the second-level cache between the passes. Rows
// of logits are `stride` apart.
// registers: 32
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    loss_judge(value* __restrict__ logits, const u32* __restrict__ targets, float* __restrict__ losses, u32 vocabulary,
               u64 stride, u32 backwards, float scale) {
    __shared__ float shared[32];
    const u32 row = blockIdx.x;
    judge<true>(logits + row * stride, targets[row], losses + row, vocabulary, threadIdx.x, THREADS, backwards, scale,
                shared);
}

// One row a warp, for few classes.
// registers: 64
extern "C" __global__ void __launch_bounds__(NARROW_THREADS)
    loss_judge_narrow(value* __restrict__ logits, const u32* __restrict__ targets, float* __restrict__ losses, u32 rows,
                      u32 vocabulary, u64 stride, u32 backwards, float scale) {
    const u32 row = blockIdx.x * (NARROW_THREADS / 32) + warp();
    if (row >= rows) return;
    judge<false>(logits + row * stride, targets[row], losses + row, vocabulary, lane(), 32, backwards, scale, nullptr);
}

constexpr u32 TOTAL_THREADS = 1024;

// into_0 += sum over rows of the loss: in one block, thread `t` adding rows `t`, `t + 1024`, ..., the threads in a tree.
// registers: 40
extern "C" __global__ void __launch_bounds__(TOTAL_THREADS)
    loss_total(const float* __restrict__ losses, u32 rows, double* __restrict__ into) {
    __shared__ double shared[TOTAL_THREADS];
    double sum = 0.0;
    for (u32 row = threadIdx.x; row < rows; row += TOTAL_THREADS) sum += losses[row];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (u32 apart = TOTAL_THREADS / 2; apart > 0; apart /= 2) {
        if (threadIdx.x < apart) shared[threadIdx.x] += shared[threadIdx.x + apart];
        __syncthreads();
    }
    if (threadIdx.x == 0) *into += shared[0];
}

// into += from, value by value.
// registers: 32
extern "C" __global__ void __launch_bounds__(256) sums_tally(const double* __restrict__ from, double* into, u32 count) {
    const u32 at = blockIdx.x * 256 + threadIdx.x;
    if (at < count) into[at] += from[at];
}
