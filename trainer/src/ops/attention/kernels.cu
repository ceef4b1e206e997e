// Causal self-attention in plain float arithmetic: heads of any size, in any precision. Equations and signs are those
// of tensor.cu beside it, which serves wherever it can.
//
// Forward: `s_ij = c q_i . k_j` for `j <= i`, `p_ij = exp(s_ij - l_i)` with `l_i = log sum_j exp s_ij`,
// `o_i = sum_j p_ij m_ij v_j`. Backward: `d_v_j = sum_i p_ij m_ij d_o_i`, `d_p_ij = m_ij d_o_i . v_j`,
// `D_i = d_o_i . o_i`, `d_s_ij = p_ij (d_p_ij - D_i)`, `d_q_i = c sum_j d_s_ij k_j`, `d_k_j = c sum_i d_s_ij q_i`.
//
// A block has sixteen rows of one head (queries, or keys in the last kernel) and passes over the others 64 at a time:
// first their products with the block's rows, then, a thread a column, their weighted sums. Blocks along y share the
// columns of heads wider than a block.

constexpr u32 PLAIN_ROWS = 16, PLAIN_LINES = 64, PLAIN_PART = 32;

// The factor of one weight.
__device__ inline float plain_factor(const Noise& noise, u64 row, u32 width, u32 key) {
    if (noise.threshold == 0) return 1.0f;
    words4 words = noise.words(row, width, key / 4);
    u32 low = key % 2 == 0 ? words.at[0] : words.at[1], high = key % 2 == 0 ? words.at[2] : words.at[3];
    return noise.factor(key % 4 < 2 ? low : high);
}

// Scores of the block's rows against the lines at hand, and room for parts of both.
struct PlainScores {
    float at[PLAIN_ROWS][PLAIN_LINES];
};
struct PlainParts {
    // One element apart, so that a column of lines lies in different banks.
    float at[PLAIN_ROWS + PLAIN_LINES][PLAIN_PART + 1];
};

// `scores = left right^T` over the head's width; whoever reads them passes a barrier first.
__device__ inline void plain_dots(PlainScores& scores, PlainParts& parts, const Lines& left, u32 left_first,
                                  const Lines& right,
                                  u32 right_first) {
    u32 line = threadIdx.x % PLAIN_LINES, row = threadIdx.x / PLAIN_LINES * (PLAIN_ROWS / 2);
    float sums[PLAIN_ROWS / 2] = {};
    for (u32 first = 0; first < left.length; first += PLAIN_PART) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < (PLAIN_ROWS + PLAIN_LINES) * PLAIN_PART; i += TILE_THREADS) {
            u32 place = i / PLAIN_PART, column = i % PLAIN_PART;
            const value* at =
                place < PLAIN_ROWS ? left.line(left_first + place) : right.line(right_first + place - PLAIN_ROWS);
            parts.at[place][column] = at != nullptr && first + column < left.length ? widen(at[first + column]) : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (u32 column = 0; column < PLAIN_PART; column++) {
            float other = parts.at[PLAIN_ROWS + line][column];
#pragma unroll
            for (u32 i = 0; i < PLAIN_ROWS / 2; i++) sums[i] = fmaf(parts.at[row + i][column], other, sums[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < PLAIN_ROWS / 2; i++) scores.at[row + i][line] = sums[i];
}

// `sums_r += sum over lines of scores_r,line lines_line` in this thread's column.
__device__ inline void plain_mix(float (&sums)[PLAIN_ROWS], const PlainScores& scores, const Lines& lines, u32 first,
                                 u32 column) {
    if (column >= lines.length) return;
    for (u32 line = 0; line < PLAIN_LINES && first + line < lines.count; line++) {
        float x = widen(lines.line(first + line)[column]);
#pragma unroll
        for (u32 row = 0; row < PLAIN_ROWS; row++) sums[row] = fmaf(scores.at[row][line], x, sums[row]);
    }
}

// Stores this thread's column of the block's rows.
__device__ inline void plain_store(const float (&sums)[PLAIN_ROWS], const Lines& to, u32 first, u32 column) {
    if (column >= to.length) return;
#pragma unroll
    for (u32 row = 0; row < PLAIN_ROWS; row++) {
        value* line = const_cast<value*>(to.line(first + row));
        if (line != nullptr) line[column] = narrow(sums[row]);
    }
}

// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) attention_forward_plain(
    const value* __restrict__ qkv, value* out, float* kept,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    __shared__ PlainScores scores;
    __shared__ PlainParts parts;
    __shared__ float maxima[PLAIN_ROWS], totals[PLAIN_ROWS], corrections[PLAIN_ROWS];
    u32 all = sequences * heads, place = blockIdx.x % all, first = blockIdx.x / all * PLAIN_ROWS;
    u32 sequence = place / heads, head = place % heads, shared_head = head / (heads / kv_heads);
    u32 column = blockIdx.y * TILE_THREADS + threadIdx.x;
    Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
    Lines k = s.lines(qkv, s.row(), sequence, s.key_column(shared_head));
    Lines v = s.lines(qkv, s.row(), sequence, s.value_column(shared_head));
    if (threadIdx.x < PLAIN_ROWS) {
        maxima[threadIdx.x] = __uint_as_float(0xff800000u);
        totals[threadIdx.x] = 0.0f;
    }
    float sums[PLAIN_ROWS] = {};
    u32 reach = first + PLAIN_ROWS < block ? first + PLAIN_ROWS : block;
    for (u32 first_key = 0; first_key < reach; first_key += PLAIN_LINES) {
        plain_dots(scores, parts, q, first, k, first_key);
        __syncthreads();
        for (u32 row = warp(); row < PLAIN_ROWS; row += TILE_THREADS / 32) {
            float seen[2], maximum = maxima[row];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 key = lane() + i * 32;
                seen[i] = first_key + key <= first + row ? scores.at[row][key] : __uint_as_float(0xff800000u);
                maximum = fmaxf(maximum, seen[i]);
            }
            maximum = warp_max(maximum);
            float base = maximum * scale, total = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                u32 key = lane() + i * 32;
                float weight = expf(fmaf(seen[i], scale, -base));
                total += weight;
                scores.at[row][key] = weight * plain_factor(noise, u64(place) * block + first + row, block,
                                                            first_key + key);
            }
            total = warp_sum(total);
            float correction = expf(maxima[row] * scale - base);
            __syncwarp();
            if (lane() == 0) {
                totals[row] = fmaf(totals[row], correction, total);
                corrections[row] = correction;
                maxima[row] = maximum;
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 row = 0; row < PLAIN_ROWS; row++) sums[row] *= corrections[row];
        plain_mix(sums, scores, v, first_key, column);
        __syncthreads();
    }
#pragma unroll
    for (u32 row = 0; row < PLAIN_ROWS; row++) sums[row] *= 1.0f / totals[row];
    plain_store(sums, s.lines(out, s.width(), sequence, s.query_column(head)), first, column);
    u32 query = first + threadIdx.x;
    if (blockIdx.y == 0 && threadIdx.x < PLAIN_ROWS && query < block) {
        kept[u64(place) * block + query] = fmaf(maxima[threadIdx.x], scale, logf(totals[threadIdx.x]));
    }
}

// The gradient of queries; leaves `D` for the other kernel.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) attention_backward_queries_plain(
    const value* __restrict__ qkv, const value* __restrict__ out, const value* __restrict__ d_out,
    const float* __restrict__ kept, float* products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    __shared__ PlainScores scores, d_scores;
    __shared__ PlainParts parts;
    __shared__ float means[PLAIN_ROWS], bases[PLAIN_ROWS];
    u32 all = sequences * heads, place = blockIdx.x % all, first = blockIdx.x / all * PLAIN_ROWS;
    u32 sequence = place / heads, head = place % heads, shared_head = head / (heads / kv_heads);
    u32 column = blockIdx.y * TILE_THREADS + threadIdx.x;
    Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
    Lines k = s.lines(qkv, s.row(), sequence, s.key_column(shared_head));
    Lines v = s.lines(qkv, s.row(), sequence, s.value_column(shared_head));
    Lines o = s.lines(out, s.width(), sequence, s.query_column(head));
    Lines d_o = s.lines(d_out, s.width(), sequence, s.query_column(head));
    for (u32 row = warp(); row < PLAIN_ROWS; row += TILE_THREADS / 32) {
        const value* left = d_o.line(first + row);
        const value* right = o.line(first + row);
        float sum = 0.0f;
        if (left != nullptr) {
            for (u32 i = lane(); i < size; i += 32) sum = fmaf(widen(left[i]), widen(right[i]), sum);
        }
        sum = warp_sum(sum);
        if (lane() == 0) {
            u64 at = u64(place) * block + first + row;
            means[row] = sum;
            bases[row] = left != nullptr ? kept[at] : 0.0f;
            if (left != nullptr && blockIdx.y == 0) products[at] = sum;
        }
    }
    float sums[PLAIN_ROWS] = {};
    u32 reach = first + PLAIN_ROWS < block ? first + PLAIN_ROWS : block;
    for (u32 first_key = 0; first_key < reach; first_key += PLAIN_LINES) {
        plain_dots(scores, parts, q, first, k, first_key);
        plain_dots(d_scores, parts, d_o, first, v, first_key);
        __syncthreads();
        for (u32 i = threadIdx.x; i < PLAIN_ROWS * PLAIN_LINES; i += TILE_THREADS) {
            u32 row = i / PLAIN_LINES, line = i % PLAIN_LINES, query = first + row, key = first_key + line;
            float d_score = 0.0f;
            if (key <= query && query < block) {
                float weight = expf(fmaf(scores.at[row][line], scale, -bases[row]));
                float factor = plain_factor(noise, u64(place) * block + query, block, key);
                d_score = scale * weight * (d_scores.at[row][line] * factor - means[row]);
            }
            scores.at[row][line] = d_score;
        }
        __syncthreads();
        plain_mix(sums, scores, k, first_key, column);
        __syncthreads();
    }
    plain_store(sums, s.lines(d_qkv, s.row(), sequence, s.query_column(head)), first, column);
}

// The gradients of keys and values, over the queries of all heads that share them.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) attention_backward_keys_plain(
    const value* __restrict__ qkv, const value* __restrict__ d_out, const float* __restrict__ kept,
    const float* __restrict__ products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    __shared__ PlainScores scores, d_scores;
    __shared__ PlainParts parts;
    u32 all = sequences * kv_heads, group = heads / kv_heads, place = blockIdx.x % all,
        first = blockIdx.x / all * PLAIN_ROWS;
    u32 sequence = place / kv_heads, shared_head = place % kv_heads;
    u32 column = blockIdx.y * TILE_THREADS + threadIdx.x;
    Lines k = s.lines(qkv, s.row(), sequence, s.key_column(shared_head));
    Lines v = s.lines(qkv, s.row(), sequence, s.value_column(shared_head));
    float d_keys[PLAIN_ROWS] = {}, d_values[PLAIN_ROWS] = {};
    for (u32 head = shared_head * group; head < (shared_head + 1) * group; head++) {
        Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
        Lines d_o = s.lines(d_out, s.width(), sequence, s.query_column(head));
        u64 rows = (u64(sequence) * heads + head) * block;
        for (u32 first_query = first; first_query < block; first_query += PLAIN_LINES) {
            plain_dots(scores, parts, k, first, q, first_query);
            plain_dots(d_scores, parts, v, first, d_o, first_query);
            __syncthreads();
            for (u32 i = threadIdx.x; i < PLAIN_ROWS * PLAIN_LINES; i += TILE_THREADS) {
                u32 row = i / PLAIN_LINES, line = i % PLAIN_LINES, key = first + row, query = first_query + line;
                float weight = 0.0f, d_score = 0.0f;
                if (key <= query && query < block) {
                    float whole = expf(fmaf(scores.at[row][line], scale, -kept[rows + query]));
                    float factor = plain_factor(noise, rows + query, block, key);
                    weight = whole * factor;
                    d_score = scale * whole * (d_scores.at[row][line] * factor - products[rows + query]);
                }
                scores.at[row][line] = weight;
                d_scores.at[row][line] = d_score;
            }
            __syncthreads();
            plain_mix(d_values, scores, d_o, first_query, column);
            plain_mix(d_keys, d_scores, q, first_query, column);
            __syncthreads();
        }
    }
    plain_store(d_keys, s.lines(d_qkv, s.row(), sequence, s.key_column(shared_head)), first, column);
    plain_store(d_values, s.lines(d_qkv, s.row(), sequence, s.value_column(shared_head)), first, column);
}
