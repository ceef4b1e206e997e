// Token and position embedding: the equations of ops/embedding.rs.
//
// Forward, with id_r the token of row r and p_r = r mod block its place: out_r = (token[id_r] + position[p_r]) m_r.
// Backward: d_token[id_r] += d_out_r m_r, d_position[p_r] += d_out_r m_r.
//
// Backward, rows are first sorted stably by token. A warp then adds the rows of a stretch of CHUNK places in their order;
// a token that ends in its stretch goes to the gradient, parts of one that reaches across stretches are kept and added in
// order by a second kernel. Only one warp ever writes a token's columns, and every sum's order follows from the ids alone.

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / 32;
// Places of one stretch: one a lane.
constexpr u32 CHUNK = 32;

// Thread `t` has octet `t` of `octets` a row.
// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    embed_forward(const u32* __restrict__ ids, const value* __restrict__ tokens, const value* __restrict__ positions,
                  value* __restrict__ out, u32 rows, u32 block, u32 width, const Clock* __restrict__ clock, u64 seed,
                  u64 site, u64 first_row, u32 threshold, float scale) {
    const u32 octets = (width + 7) / 8, item = blockIdx.x * THREADS + threadIdx.x;
    const u32 row = item / octets, column = item % octets * 8;
    if (row >= rows) return;
    tokens += u64(ids[row]) * width;
    out += u64(row) * width;
    octet sum = read8(tokens, column, width, aligned16(tokens, 8));
    if (positions != nullptr) {
        positions += u64(row % block) * width;
        const octet position = read8(positions, column, width, aligned16(positions, 8));
        for (u32 i = 0; i < 8; ++i) sum.at[i] += position.at[i];
    }
    if (threshold > 0) {
        const octet m = dropout8(seed, clock->step, site, first_row + row, width, column, threshold, scale);
        for (u32 i = 0; i < 8; ++i) sum.at[i] *= m.at[i];
    }
    write8(out, column, width, aligned16(out, 8), sum);
}

constexpr u32 SORTERS = 512;
constexpr u32 DIGIT_BITS = 4;
constexpr u32 DIGITS = 1 << DIGIT_BITS;
// Rows whose tokens are read before any is placed.
constexpr u32 TOGETHER = 8;

// Calls `with(row, digit)` for the rows `from[begin]` to `from[end - 1]`, or `begin` to `end - 1` where nothing is sorted.
template <class With>
__device__ __forceinline__ void each(const u32* from, const u32* ids, bool unsorted, u32 begin, u32 end, u32 shift,
                                     With with) {
    for (u32 first = begin; first < end; first += TOGETHER) {
        u32 rows[TOGETHER], digits[TOGETHER];
#pragma unroll
        for (u32 i = 0; i < TOGETHER; ++i) {
            const u32 place = min(first + i, end - 1);
            rows[i] = unsorted ? place : from[place];
        }
#pragma unroll
        for (u32 i = 0; i < TOGETHER; ++i) digits[i] = (ids[rows[i]] >> shift) % DIGITS;
#pragma unroll
        for (u32 i = 0; i < TOGETHER; ++i) {
            if (first + i < end) with(rows[i], digits[i]);
        }
    }
}

// Rows sorted by token, those of one token in order: least digit first, in one block. Thread `t` has the `t`-th of 512
// stretches of what is to be sorted and counts its digits; where each of its digits begins is the sum of what stands before
// it. `passes` says how many digits a token has; `spare` is as long as `order`.
// registers: 64
extern "C" __global__ void __launch_bounds__(SORTERS)
    embed_sort(const u32* __restrict__ ids, u32* order, u32* spare, u32 rows, u32 passes) {
    __shared__ u32 counts[DIGITS * SORTERS];
    __shared__ u32 totals[SORTERS / 32];
    const u32 stretch = (rows + SORTERS - 1) / SORTERS;
    const u32 begin = min(threadIdx.x * stretch, rows), end = min(begin + stretch, rows);
    for (u32 pass = 0; pass < passes; ++pass) {
        // The last pass writes to `order`.
        u32* const to = (passes - pass) % 2 == 1 ? order : spare;
        const u32* const from = (passes - pass) % 2 == 1 ? spare : order;
        const u32 shift = pass * DIGIT_BITS;
        for (u32 digit = 0; digit < DIGITS; ++digit) counts[digit * SORTERS + threadIdx.x] = 0;
        each(from, ids, pass == 0, begin, end, shift, [&](u32, u32 digit) { ++counts[digit * SORTERS + threadIdx.x]; });
        __syncthreads();
        u32 sum = 0;
        for (u32 i = 0; i < DIGITS; ++i) sum += counts[threadIdx.x * DIGITS + i];
        u32 before = sum;
        for (u32 apart = 1; apart < 32; apart *= 2) {
            const u32 other = __shfl_up_sync(0xffffffffu, before, apart);
            if (lane() >= apart) before += other;
        }
        if (lane() == 31) totals[warp()] = before;
        __syncthreads();
        before -= sum;
        for (u32 w = 0; w < warp(); ++w) before += totals[w];
        for (u32 i = 0; i < DIGITS; ++i) {
            const u32 count = counts[threadIdx.x * DIGITS + i];
            counts[threadIdx.x * DIGITS + i] = before;
            before += count;
        }
        __syncthreads();
        each(from, ids, pass == 0, begin, end, shift,
             [&](u32 row, u32 digit) { to[counts[digit * SORTERS + threadIdx.x]++] = row; });
        __syncthreads();
    }
}

// Noise and shape of the backward kernels.
struct Masked {
    const value* d_out;
    u32 width, column;
    bool aligned;
    u64 seed, step, site, first_row;
    u32 threshold;
    float scale;

    // A row's gradient through its mask.
    __device__ __forceinline__ octet read(u32 row) const {
        octet d = read8(d_out + u64(row) * width, column, width, aligned);
        if (threshold > 0) {
            const octet m = dropout8(seed, step, site, first_row + row, width, column, threshold, scale);
            for (u32 i = 0; i < 8; ++i) d.at[i] *= m.at[i];
        }
        return d;
    }
};

// Adds to eight columns of a gradient.
__device__ __forceinline__ void add_to(float* row, u32 column, u32 width, const octet& d) {
    const bool aligned = aligned16(row, 4);
    octet sum = read8(row, column, width, aligned);
    for (u32 i = 0; i < 8; ++i) sum.at[i] += d.at[i];
    write8(row, column, width, aligned, sum);
}

// Warp (c, t) has columns 256 t to 256 t + 255 of the c-th stretch of sorted places. `parts` `[stretches, 2, width]` gets
// what a token of an earlier stretch has in this one, and what one that begins here and does not end here has.
// registers: 96
extern "C" __global__ void __launch_bounds__(THREADS)
    embed_backward(const u32* __restrict__ ids, const u32* __restrict__ order, const value* __restrict__ d_out,
                   float* __restrict__ d_tokens, float* __restrict__ parts, u32 rows, u32 width,
                   const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    const u32 chunk = blockIdx.x * WARPS + warp(), column = (blockIdx.y * 32 + lane()) * 8;
    const u32 begin = chunk * CHUNK;
    if (begin >= rows) return;
    const u32 count = min(CHUNK, rows - begin);
    const u32 my_row = order[begin + min(lane(), count - 1)], my_id = ids[my_row];
    const u32 last_id = __shfl_sync(0xffffffffu, my_id, count - 1);
    const u32 first_id = __shfl_sync(0xffffffffu, my_id, 0);
    const bool earlier = begin > 0 && ids[order[begin - 1]] == first_id;
    const bool later = begin + count < rows && ids[order[begin + count]] == last_id;
    const Masked masked{d_out,     width, column,    aligned16(d_out, width), seed, threshold > 0 ? clock->step : 0, site,
                        first_row, threshold, scale};
    float* const part = parts + u64(chunk) * 2 * width;
    const bool aligned = aligned16(parts, width);
    octet sum = {};
    bool whole = !earlier;
    constexpr u32 AHEAD = 4;
    for (u32 from = 0; from < count; from += AHEAD) {
        octet d[AHEAD];
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            const u32 row = __shfl_sync(0xffffffffu, my_row, from + k);
            d[k] = masked.read(row);
        }
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            const u32 place = from + k;
            const u32 id = __shfl_sync(0xffffffffu, my_id, place), next = __shfl_sync(0xffffffffu, my_id, (place + 1) % 32);
            if (place >= count) break;
            for (u32 i = 0; i < 8; ++i) sum.at[i] += d[k].at[i];
            const bool last = place + 1 == count;
            if (!last && next == id) continue;
            if (!whole) {
                write8(part, column, width, aligned, sum);
            } else if (last && later) {
                write8(part + width, column, width, aligned, sum);
            } else {
                add_to(d_tokens + u64(id) * width, column, width, sum);
            }
            sum = {};
            whole = true;
        }
    }
}

// The tokens that begin in one stretch and end in another: the warp of the first adds up their parts.
// registers: 64
extern "C" __global__ void __launch_bounds__(THREADS, 4)
    embed_backward_across(const u32* __restrict__ ids, const u32* __restrict__ order, const float* __restrict__ parts,
                          float* __restrict__ d_tokens, u32 rows, u32 width) {
    const u32 chunk = blockIdx.x * WARPS + warp(), column = (blockIdx.y * 32 + lane()) * 8;
    const u64 end = u64(chunk + 1) * CHUNK;
    if (end >= rows) return;
    const u32 id = ids[order[end - 1]];
    if (ids[order[end]] != id) return;
    // It began before this stretch: an earlier one has it.
    if (chunk > 0 && ids[order[end - CHUNK - 1]] == id) return;
    // The first place of a greater token.
    u32 low = end, high = rows;
    while (low < high) {
        const u32 middle = low + (high - low) / 2;
        if (ids[order[middle]] == id) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    const bool aligned = aligned16(parts, width);
    octet sum = read8(parts + u64(chunk) * 2 * width + width, column, width, aligned);
    const u32 last = (low - 1) / CHUNK;
#pragma unroll 4
    for (u32 other = chunk + 1; other <= last; ++other) {
        const octet part = read8(parts + u64(other) * 2 * width, column, width, aligned);
        for (u32 i = 0; i < 8; ++i) sum.at[i] += part.at[i];
    }
    add_to(d_tokens + u64(id) * width, column, width, sum);
}

// Warp (p, t) adds columns 256 t to 256 t + 255 of the rows at place `p` of their windows, in order.
// registers: 96
extern "C" __global__ void __launch_bounds__(THREADS)
    embed_backward_positions(const value* __restrict__ d_out, float* __restrict__ d_positions, u32 rows, u32 block,
                             u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row,
                             u32 threshold, float scale) {
    const u32 place = blockIdx.x * WARPS + warp(), column = (blockIdx.y * 32 + lane()) * 8;
    if (place >= block) return;
    const Masked masked{d_out,     width, column,    aligned16(d_out, width), seed, threshold > 0 ? clock->step : 0, site,
                        first_row, threshold, scale};
    octet sum = {};
#pragma unroll 4
    for (u32 row = place; row < rows; row += block) {
        const octet d = masked.read(row);
        for (u32 i = 0; i < 8; ++i) sum.at[i] += d.at[i];
    }
    add_to(d_positions + u64(place) * width, column, width, sum);
}
