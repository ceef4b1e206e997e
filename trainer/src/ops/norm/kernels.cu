// LayerNorm and RMSNorm of rows, and their gradients: the equations of ops/norm.rs.
//
// Forward, with m the mean and r = 1 / sqrt(var + eps) of a row: n = (x - m) r, y = n g + b; RMSNorm has m = 0, the mean
// square for var, and no b.
// Backward, with e = d_y g and <.> the mean over the row: d_x = r (e - <e> - n <e n>), d_g += d_y n, d_b += d_y; RMSNorm
// has no <e>.
//
// A row is one of `several` stretches of `width` values that stand side by side from `offset` on in a longer row of
// `stride` values; its two moments stand likewise among `moment_stride` from `moment_offset` on. Forward a warp has one row
// at a time, backward a team of warps, and a lane always the same columns, so that gains are summed where they are read.
// The sums of a block's teams are added in order here; those of the blocks too, if they are few, and else
// in ops/columns.

// Octets a lane keeps of a row: 1024 columns a warp; the others are read again.
constexpr u32 KEPT = 4;
constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;

// Where a row and its moments begin.
struct Place {
    u64 row;
    u64 moments;
};

__device__ __forceinline__ Place place(u32 row, u32 several, u32 width, u64 stride, u64 offset, u32 moment_stride,
                                       u32 moment_offset) {
    const u32 outer = row / several, inner = row % several;
    return Place{outer * stride + offset + u64(inner) * width,
                 u64(outer) * moment_stride + moment_offset + 2 * inner};
}

// Calls `with(octet, column)` for a lane's octets of a row: those kept, then the others, read again.
template <class With>
__device__ __forceinline__ void each(const octet (&kept)[KEPT], const value* x, u32 width, bool aligned, With with) {
#pragma unroll
    for (u32 k = 0; k < KEPT; ++k) {
        const u32 column = (k * 32 + lane()) * 8;
        if (column < width) with(kept[k], column);
    }
    for (u32 column = (KEPT * 32 + lane()) * 8; column < width; column += 32 * 8) {
        with(read8(x, column, width, aligned), column);
    }
}

// One row's norm by a warp, every rounding spelled out: two kernels call this and must agree. `x` is read again for what is not kept; `aligned` speaks of it and of `out`.
__device__ __forceinline__ void normalise(const octet (&kept)[KEPT], const value* x, const float* gain, const float* bias,
                                          value* out, float* moments, u32 width, bool aligned, float eps, bool centred) {
    const bool aligned_gain = aligned16(gain, 8) && (bias == nullptr || aligned16(bias, 8));
    float mean = 0.0f;
    if (centred) {
        each(kept, x, width, aligned, [&](const octet& x, u32) {
            for (u32 i = 0; i < 8; ++i) mean += x.at[i];
        });
        mean = warp_sum(mean) / float(width);
    }
    float square = 0.0f;
    each(kept, x, width, aligned, [&](const octet& x, u32 column) {
        for (u32 i = 0; i < 8; ++i) {
            const float apart = column + i < width ? x.at[i] - mean : 0.0f;
            square = fmaf(apart, apart, square);
        }
    });
    const float scale = 1.0f / sqrtf(warp_sum(square) / float(width) + eps);
    each(kept, x, width, aligned, [&](const octet& x, u32 column) {
        const octet g = read8(gain, column, width, aligned_gain);
        octet b{}, y;
        if (bias != nullptr) b = read8(bias, column, width, aligned_gain);
        for (u32 i = 0; i < 8; ++i) y.at[i] = fmaf((x.at[i] - mean) * scale, g.at[i], b.at[i]);
        write8(out, column, width, aligned, y);
    });
    if (lane() == 0) {
        moments[0] = mean;
        moments[1] = scale;
    }
}

// registers: 80
extern "C" __global__ void __launch_bounds__(THREADS, 3)
    norm_forward(const value* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ bias,
                 value* __restrict__ out, float* __restrict__ moments, u32 rows, u32 width, u32 several, u64 stride,
                 u64 offset, u32 moment_stride, u32 moment_offset, float eps, u32 centred) {
    const u32 row = blockIdx.x * WARPS + warp();
    if (row >= rows) return;
    const Place at = place(row, several, width, stride, offset, moment_stride, moment_offset);
    x += at.row;
    out += at.row;
    const bool aligned = aligned16(x, 8) && aligned16(out, 8);
    octet kept[KEPT];
#pragma unroll
    for (u32 k = 0; k < KEPT; ++k) kept[k] = read8(x, (k * 32 + lane()) * 8, width, aligned);
    normalise(kept, x, gain, bias, out, moments + at.moments, width, aligned, eps, centred);
}

// The norm of a residual connection's sum, which is kept as well: the equations of ops/add.rs, then those above, of the sum
// as it is stored.
// registers: 96
extern "C" __global__ void __launch_bounds__(THREADS)
    norm_forward_of_sum(const value* __restrict__ stream, const value* __restrict__ branch, value* sum,
                        const float* __restrict__ gain, const float* __restrict__ bias, value* __restrict__ out,
                        float* __restrict__ moments, u32 rows, u32 width, float eps, u32 centred,
                        const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                        float scale) {
    const u32 row = blockIdx.x * WARPS + warp();
    if (row >= rows) return;
    const u64 at = u64(row) * width;
    stream += at;
    branch += at;
    sum += at;
    out += at;
    const bool aligned = aligned16(stream, 8) && aligned16(branch, 8) && aligned16(sum, 8) && aligned16(out, 8);
    const auto add = [&](u32 column) {
        octet x = read8(branch, column, width, aligned), m;
        for (u32 i = 0; i < 8; ++i) m.at[i] = 1.0f;
        if (threshold > 0) m = dropout8(seed, clock->step, site, first_row + row, width, column, threshold, scale);
        const octet left = read8(stream, column, width, aligned);
        for (u32 i = 0; i < 8; ++i) x.at[i] = widen(narrow(fmaf(x.at[i], m.at[i], left.at[i])));
        write8(sum, column, width, aligned, x);
        return x;
    };
    octet kept[KEPT];
#pragma unroll
    for (u32 k = 0; k < KEPT; ++k) {
        const u32 column = (k * 32 + lane()) * 8;
        kept[k] = column < width ? add(column) : octet{};
    }
    // What a lane reads again it has written itself.
    for (u32 column = (KEPT * 32 + lane()) * 8; column < width; column += 32 * 8) add(column);
    normalise(kept, sum, gain, bias, out, moments + 2 * u64(row), width, aligned, eps, centred);
}

// The arguments both backward kernels take.
struct Backward {
    const value* x;
    const float* gain;
    const float* moments;
    const value* d_out;
    value* d_x;
    float* partials;
    float* d_gain;
    float* d_bias;
    u32 rows, each, width, several;
    u64 stride, offset;
    u32 moment_stride, moment_offset, team, centred, add, finish;
};

// How many blocks of the launch under way have left their sums; one launch runs at a time.
__device__ u32 norm_arrived = 0;

// One row a team of warps. A lane keeps the sums of one octet; WIDE says that rows may have more, whose sums are added to
// `partials` row by row.
template <bool WIDE> __device__ __forceinline__ void backward(const Backward& s) {
    __shared__ float shared[2][32][2];
    DYNAMIC_SHARED(float, sums);
    const u32 width = s.width, across = s.team * 32 * 8, biased = s.d_bias != nullptr;
    const bool aligned = aligned16(s.x + s.offset, s.several > 1 ? width : 8) && s.stride % 8 == 0 &&
                         aligned16(s.d_out + s.offset, 8) && aligned16(s.d_x + s.offset, 8);
    const bool aligned_gain = aligned16(s.gain, 8);
    const u32 teams = blockDim.x / 32 / s.team, here = warp() / s.team;
    const u32 first = (warp() % s.team * 32 + lane()) * 8;
    const u32 begin = blockIdx.x * s.each, end = min(begin + s.each, s.rows);
    const float share = 1.0f / float(width);
    float* const partial = s.partials + u64(blockIdx.x) * ((1 + biased) * width);
    const octet g = read8(s.gain, first, width, aligned_gain);
    octet d_gain = {}, d_bias = {};
    u32 turn = 0;
    for (u32 above = begin; above < end; above += teams, turn ^= 1) {
        const u32 row = above + here;
        const bool inside = row < end;
        const Place at = place(inside ? row : begin, s.several, width, s.stride, s.offset, s.moment_stride, s.moment_offset);
        const float mean = s.moments[at.moments], scale = s.moments[at.moments + 1];
        const value* const x = s.x + at.row;
        const value* const d_out = s.d_out + at.row;
        value* const d_x = s.d_x + at.row;
        // Past a row's end, and where there is no row, d_out is zero, and so is all that is summed.
        const octet x0 = read8(x, first, width, aligned);
        const octet d0 = read8(d_out, first, inside ? width : 0, aligned);
        float e_sum = 0.0f, en_sum = 0.0f;
        for (u32 i = 0; i < 8; ++i) {
            const float normed = (x0.at[i] - mean) * scale, e = d0.at[i] * g.at[i];
            e_sum += e;
            en_sum += e * normed;
            d_gain.at[i] += d0.at[i] * normed;
            d_bias.at[i] += d0.at[i];
        }
        if (WIDE) {
            for (u32 column = first + across; column < width; column += across) {
                for (u32 i = 0; i < 8 && column + i < width; ++i) {
                    const float d = widen(d_out[column + i]);
                    const float normed = (widen(x[column + i]) - mean) * scale, e = d * s.gain[column + i];
                    e_sum += e;
                    en_sum += e * normed;
                    float* const sum = partial + column + i;
                    sum[0] = (row > begin ? sum[0] : 0.0f) + d * normed;
                    if (biased) sum[width] = (row > begin ? sum[width] : 0.0f) + d;
                }
            }
        }
        e_sum = warp_sum(e_sum);
        en_sum = warp_sum(en_sum);
        if (s.team > 1) {
            // Two places take turns: of the last row's, some warps may still be reading.
            if (lane() == 0) {
                shared[turn][warp()][0] = e_sum;
                shared[turn][warp()][1] = en_sum;
            }
            __syncthreads();
            e_sum = en_sum = 0.0f;
            for (u32 w = here * s.team; w < (here + 1) * s.team; ++w) {
                e_sum += shared[turn][w][0];
                en_sum += shared[turn][w][1];
            }
        }
        if (!inside) continue;
        const float mean_e = s.centred ? e_sum * share : 0.0f, mean_en = en_sum * share;
        const auto spread = [&](const octet& x, const octet& d, const octet& g, u32 column) {
            octet result;
            for (u32 i = 0; i < 8; ++i) {
                const float normed = (x.at[i] - mean) * scale;
                result.at[i] = scale * (d.at[i] * g.at[i] - mean_e - normed * mean_en);
            }
            if (s.add) {
                const octet before = read8(d_x, column, width, aligned);
                for (u32 i = 0; i < 8; ++i) result.at[i] += before.at[i];
            }
            write8(d_x, column, width, aligned, result);
        };
        spread(x0, d0, g, first);
        if (WIDE) {
            for (u32 column = first + across; column < width; column += across) {
                const octet d1 = read8(d_out, column, width, aligned), g1 = read8(s.gain, column, width, aligned_gain);
                spread(read8(x, column, width, aligned), d1, g1, column);
            }
        }
    }
    // The teams' sums, in order.
    const u32 columns = min(width, across);
    for (u32 which = 0; which <= biased; ++which) {
        for (u32 i = 0; i < 8; ++i) {
            sums[here * across + first / 8 + i * (across / 8)] = which ? d_bias.at[i] : d_gain.at[i];
        }
        __syncthreads();
        for (u32 column = threadIdx.x; column < columns; column += blockDim.x) {
            float sum = 0.0f;
            for (u32 t = 0; t < teams; ++t) sum += sums[t * across + column / 8 + column % 8 * (across / 8)];
            partial[which * width + column] = sum;
        }
        __syncthreads();
    }
    if (!s.finish) return;
    // Of few blocks the last to arrive adds up, in their order, what all have left.
    __shared__ u32 last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&norm_arrived, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    const volatile float* const all = s.partials;
    for (u32 column = threadIdx.x; column < (1 + biased) * width; column += blockDim.x) {
        float sum = 0.0f;
        for (u32 block = 0; block < gridDim.x; ++block) sum += all[block * (1 + biased) * width + column];
        *(column < width ? s.d_gain + column : s.d_bias + (column - width)) += sum;
    }
    if (threadIdx.x == 0) norm_arrived = 0;
}

// For rows of at most 256 team values, a block being as many whole teams as 256 threads hold, or one. Block `b` has rows
// `b each` to `(b + 1) each - 1` and leaves its sums of d_g, and behind them of d_b, if there is one, in `partials`
// `[blocks, width or 2 width]`; `finish` says that they are added to d_g and d_b here.
// registers: 64
extern "C" __global__ void __launch_bounds__(1024)
    norm_backward(const value* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ moments,
                  const value* __restrict__ d_out, value* __restrict__ d_x, float* __restrict__ partials,
                  float* __restrict__ d_gain, float* __restrict__ d_bias, u32 rows, u32 each, u32 width, u32 several,
                  u64 stride, u64 offset, u32 moment_stride, u32 moment_offset, u32 team, u32 centred, u32 add,
                  u32 finish) {
    backward<false>({x, gain, moments, d_out, d_x, partials, d_gain, d_bias, rows, each, width, several, stride, offset,
                     moment_stride, moment_offset, team, centred, add, finish});
}

// For rows of any width, one block of 512 threads a row.
// registers: 128
extern "C" __global__ void __launch_bounds__(512, 1)
    norm_backward_wide(const value* __restrict__ x, const float* __restrict__ gain, const float* __restrict__ moments,
                       const value* __restrict__ d_out, value* __restrict__ d_x, float* __restrict__ partials,
                       float* __restrict__ d_gain, float* __restrict__ d_bias, u32 rows, u32 each, u32 width,
                       u32 several, u64 stride, u64 offset, u32 moment_stride, u32 moment_offset, u32 team, u32 centred,
                       u32 add, u32 finish) {
    backward<true>({x, gain, moments, d_out, d_x, partials, d_gain, d_bias, rows, each, width, several, stride, offset,
                    moment_stride, moment_offset, team, centred, add, finish});
}
