// Causal self-attention on tensor cores: heads of up to 128, in bf16, summed in float.
//
// Forward, with `q`, `k`, `v` the head's rows of the fused projection, `c` the score scale:
// `s_ij = c q_i . k_j` for `j <= i`, `p_ij = exp(s_ij - l_i)` with `l_i = log sum_j exp s_ij`,
// `o_i = sum_j p_ij m_ij v_j`, `m` the dropout mask of the weights.
//
// Backward, the weights made again from `l`: `d_v_j = sum_i p_ij m_ij d_o_i`, `d_p_ij = m_ij d_o_i . v_j`,
// `D_i = d_o_i . o_i`, `d_s_ij = p_ij (d_p_ij - D_i)`, `d_q_i = c sum_j d_s_ij k_j`, `d_k_j = c sum_i d_s_ij q_i`.
//
// Forward: a block takes a tile of queries of one head and passes over the keys they see with a running maximum (Dao et
// al. 2022, algorithm 1; Dao 2023, section 3.1): scores live in registers, in the very places where mma.sync wants its
// left operand. Backward: two kernels, so that nothing is added by two blocks: the first takes queries and passes over
// keys, the second takes keys and passes over the queries of all heads that share them.
//
// A head narrower than a kernel's SIZE has zeros for its other columns; rows beyond a window are zeros too.

#ifdef LECTERN_BF16

constexpr float LOG2_E = 1.4426950408889634f;

// `64 TALL` queries against `KEYS` keys at a time.
template <u32 SIZE, u32 TALL, u32 KEYS>
__device__ inline void forward(const Heads& s, const Noise& noise, const value* qkv, value* out, float* kept) {
    constexpr u32 queries = 64 * TALL, wide = KEYS / 8;
    DYNAMIC_SHARED(value, query_tile);
    value* const key_tiles = query_tile + queries * SIZE;
    value* const value_tiles = key_tiles + 2 * KEYS * SIZE;
    // The tiles that see most keys come first.
    u32 all = s.sequences * s.heads, tiles = (s.block + queries - 1) / queries;
    u32 place = blockIdx.x % all, first = (tiles - 1 - blockIdx.x / all) * queries;
    u32 sequence = place / s.heads, head = place % s.heads, shared_head = head / (s.heads / s.kv_heads);
    Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
    Lines k = s.lines(qkv, s.row(), sequence, s.key_column(shared_head));
    Lines v = s.lines(qkv, s.row(), sequence, s.value_column(shared_head));

    copy_rows<SIZE, queries>(query_tile, q, first);
    copy_rows<SIZE, KEYS>(key_tiles, k, 0);
    copy_rows<SIZE, KEYS>(value_tiles, v, 0);
    copy_async_commit();

    // The warp's first row in the tile and in the window, and the lane's.
    u32 own = warp() * 16 * TALL, warp_query = first + own, query = warp_query + lane() / 4;
    float sums[TALL][SIZE / 8][4], maxima[TALL][2], totals[TALL][2];
    clear(sums);
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
        maxima[i][0] = maxima[i][1] = -infinity();
        totals[i][0] = totals[i][1] = 0.0f;
    }
    float factor = s.scale * LOG2_E;
    u32 reach = first + queries < s.block ? first + queries : s.block;
    u32 steps = (reach + KEYS - 1) / KEYS;
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<0>();
        __syncthreads();
        u32 stage = step % 2 * KEYS * SIZE, other = KEYS * SIZE - stage;
        if (step + 1 < steps) {
            copy_rows<SIZE, KEYS>(key_tiles + other, k, (step + 1) * KEYS);
            copy_rows<SIZE, KEYS>(value_tiles + other, v, (step + 1) * KEYS);
        }
        copy_async_commit();
        u32 first_key = step * KEYS;
        if (first_key >= warp_query + 16 * TALL) continue;
        float scores[TALL][wide][4];
        dots<SIZE>(scores, query_tile, own, key_tiles + stage, 0);
        if (first_key + KEYS > warp_query + 1) hide<false>(scores, warp_query, first_key);
#pragma unroll
        for (u32 i = 0; i < TALL; i++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                float maximum = maxima[i][half];
#pragma unroll
                for (u32 j = 0; j < wide; j++) {
                    maximum = fmaxf(maximum, fmaxf(scores[i][j][half * 2], scores[i][j][half * 2 + 1]));
                }
                maximum = row_max(maximum);
                float correction = exp2_near((maxima[i][half] - maximum) * factor), base = maximum * factor,
                    total = 0.0f;
                maxima[i][half] = maximum;
#pragma unroll
                for (u32 j = 0; j < wide; j++) {
#pragma unroll
                    for (u32 e = half * 2; e < half * 2 + 2; e++) {
                        scores[i][j][e] = exp2_near(fmaf(scores[i][j][e], factor, -base));
                        total += scores[i][j][e];
                    }
                }
                totals[i][half] = fmaf(totals[i][half], correction, total);
#pragma unroll
                for (u32 j = 0; j < SIZE / 8; j++) {
                    sums[i][j][half * 2] *= correction;
                    sums[i][j][half * 2 + 1] *= correction;
                }
            }
        }
        if (noise.threshold != 0) {
#pragma unroll
            for (u32 i = 0; i < TALL; i++) {
#pragma unroll
                for (u32 j = 0; j < wide; j++) {
                    float factors[4];
                    drop_keys(noise, s.block, u64(place) * s.block + query + i * 16, first_key + j * 8, factors);
#pragma unroll
                    for (u32 e = 0; e < 4; e++) scores[i][j][e] *= factors[e];
                }
            }
        }
        mix<SIZE>(sums, scores, value_tiles + stage, 0);
    }
    float inverses[TALL][2];
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            float total = row_sum(totals[i][half]);
            inverses[i][half] = 1.0f / total;
            u32 row = query + i * 16 + half * 8;
            if (lane() % 4 == 0 && row < s.block) {
                kept[u64(place) * s.block + row] = fmaf(maxima[i][half], s.scale, logf(total));
            }
        }
    }
    Lines to = s.lines(out, s.width(), sequence, s.query_column(head));
    store_rows<SIZE>(sums, inverses, query_tile, own, to, first);
}

// `D_i = d_o_i . o_i` of a warp's `16 TALL` rows, to the block's rows and to memory: eight lanes a row.
template <u32 SIZE, u32 TALL>
__device__ inline void row_products(const Lines& d_out, const Lines& out, u32 first, u32 own, float* tile,
                                    float* products) {
    bool whole = in_chunks(d_out) && in_chunks(out);
    float sums[TALL * 4];
#pragma unroll
    for (u32 i = 0; i < TALL * 4; i++) {
        u32 row = first + own + i * 4 + lane() / 8;
        const value* left = d_out.line(row);
        const value* right = out.line(row);
        sums[i] = 0.0f;
        if (left == nullptr) continue;
        if (whole) {
#pragma unroll
            for (u32 part = 0; part < SIZE; part += 64) {
                u32 from = part + lane() % 8 * 8;
                if (from >= out.length) continue;
                Pack<value> a = load16(left + from), b = load16(right + from);
#pragma unroll
                for (u32 e = 0; e < 8; e++) sums[i] = fmaf(widen(a.at[e]), widen(b.at[e]), sums[i]);
            }
        } else {
#pragma unroll 1
            for (u32 e = lane() % 8; e < out.length; e += 8) sums[i] = fmaf(widen(left[e]), widen(right[e]), sums[i]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < TALL * 4; i++) {
        u32 row = own + i * 4 + lane() / 8;
        float sum = row_sum(sums[i]);
        sum += __shfl_xor_sync(0xffffffffu, sum, 4);
        if (lane() % 8 == 0) {
            tile[row] = sum;
            if (first + row < out.count) products[first + row] = sum;
        }
    }
    __syncwarp();
}

// Gradients of `64 TALL` queries; leaves `D` for the other kernel.
template <u32 SIZE, u32 TALL>
__device__ inline void backward_queries(const Heads& s, const Noise& noise, const value* qkv, const value* out,
                                        const value* d_out,
                                        const float* kept, float* products, value* d_qkv) {
    constexpr u32 queries = 64 * TALL, keys = 64, strip = 32;
    DYNAMIC_SHARED(value, query_tile);
    __shared__ float product_tile[queries];
    value* const d_tile = query_tile + queries * SIZE;
    value* const key_tiles = d_tile + queries * SIZE;
    value* const value_tiles = key_tiles + 2 * keys * SIZE;
    u32 all = s.sequences * s.heads, tiles = (s.block + queries - 1) / queries;
    u32 place = blockIdx.x % all, first = (tiles - 1 - blockIdx.x / all) * queries;
    u32 sequence = place / s.heads, head = place % s.heads, shared_head = head / (s.heads / s.kv_heads);
    Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
    Lines k = s.lines(qkv, s.row(), sequence, s.key_column(shared_head));
    Lines v = s.lines(qkv, s.row(), sequence, s.value_column(shared_head));
    Lines o = s.lines(out, s.width(), sequence, s.query_column(head));
    Lines d_o = s.lines(d_out, s.width(), sequence, s.query_column(head));

    copy_rows<SIZE, queries>(query_tile, q, first);
    copy_rows<SIZE, queries>(d_tile, d_o, first);
    copy_rows<SIZE, keys>(key_tiles, k, 0);
    copy_rows<SIZE, keys>(value_tiles, v, 0);
    copy_async_commit();

    u32 own = warp() * 16 * TALL, warp_query = first + own, query = warp_query + lane() / 4;
    row_products<SIZE, TALL>(d_o, o, first, own, product_tile, products + u64(place) * s.block);
    float sums[TALL][SIZE / 8][4], bases[TALL][2], means[TALL][2];
    clear(sums);
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 row = i * 16 + half * 8;
            // A row beyond the window has no weights.
            bases[i][half] = query + row < s.block ? kept[u64(place) * s.block + query + row] * LOG2_E : infinity();
            means[i][half] = product_tile[own + lane() / 4 + row];
        }
    }
    float factor = s.scale * LOG2_E;
    u32 reach = first + queries < s.block ? first + queries : s.block;
    u32 steps = (reach + keys - 1) / keys;
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<0>();
        __syncthreads();
        u32 stage = step % 2 * keys * SIZE, other = keys * SIZE - stage;
        if (step + 1 < steps) {
            copy_rows<SIZE, keys>(key_tiles + other, k, (step + 1) * keys);
            copy_rows<SIZE, keys>(value_tiles + other, v, (step + 1) * keys);
        }
        copy_async_commit();
#pragma unroll 1
        for (u32 within = 0; within < keys; within += strip) {
            u32 first_key = step * keys + within;
            if (first_key >= warp_query + 16 * TALL) break;
            float weights[TALL][strip / 8][4], d_weights[TALL][strip / 8][4];
            dots<SIZE>(weights, query_tile, own, key_tiles + stage, within);
            if (first_key + strip > warp_query + 1) hide<false>(weights, warp_query, first_key);
            dots<SIZE>(d_weights, d_tile, own, value_tiles + stage, within);
#pragma unroll
            for (u32 i = 0; i < TALL; i++) {
#pragma unroll
                for (u32 j = 0; j < strip / 8; j++) {
                    if (noise.threshold != 0) {
                        float factors[4];
                        drop_keys(noise, s.block, u64(place) * s.block + query + i * 16, first_key + j * 8, factors);
#pragma unroll
                        for (u32 e = 0; e < 4; e++) d_weights[i][j][e] *= factors[e];
                    }
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        float weight = exp2_near(fmaf(weights[i][j][e], factor, -bases[i][e / 2]));
                        d_weights[i][j][e] = weight * (d_weights[i][j][e] - means[i][e / 2]);
                    }
                }
            }
            mix<SIZE>(sums, d_weights, key_tiles + stage, within);
        }
    }
    float scales[TALL][2];
#pragma unroll
    for (u32 i = 0; i < TALL; i++) scales[i][0] = scales[i][1] = s.scale;
    Lines to = s.lines(d_qkv, s.row(), sequence, s.query_column(head));
    store_rows<SIZE>(sums, scales, query_tile, own, to, first);
}

// Gradients of `64 TALL` keys and values, `STRIP` queries at a time.
template <u32 SIZE, u32 TALL, u32 STRIP>
__device__ inline void backward_keys(const Heads& s, const Noise& noise, const value* qkv, const value* d_out,
                                     const float* kept,
                                     const float* products, value* d_qkv) {
    constexpr u32 keys = 64 * TALL, queries = 64;
    DYNAMIC_SHARED(value, key_tile);
    // Of both stages: `l` in base two, and `D`.
    __shared__ float row_tiles[2][2][queries];
    value* const value_tile = key_tile + keys * SIZE;
    value* const query_tiles = value_tile + keys * SIZE;
    value* const d_tiles = query_tiles + 2 * queries * SIZE;
    // The tiles that most queries see come first.
    u32 all = s.sequences * s.kv_heads, group = s.heads / s.kv_heads;
    u32 place = blockIdx.x % all, first = blockIdx.x / all * keys;
    u32 sequence = place / s.kv_heads, shared_head = place % s.kv_heads;
    u64 key_column = s.key_column(shared_head), value_column = s.value_column(shared_head);
    // The tiles of queries that see one of these keys, of each head in turn.
    u32 begin = first / queries * queries, steps = group * ((s.block - begin + queries - 1) / queries);
    u32 head = shared_head * group, from = begin;
    auto advance = [&](u32& head, u32& from) {
        from += queries;
        if (from >= s.block) {
            from = begin;
            head++;
        }
    };

    // Starts the copy of a tile of queries; what it returns belongs into their row tiles.
    auto fetch_queries = [&](u32 head, u32 from, u32 stage) {
        Lines q = s.lines(qkv, s.row(), sequence, s.query_column(head));
        Lines d_o = s.lines(d_out, s.width(), sequence, s.query_column(head));
        copy_rows<SIZE, queries>(query_tiles + stage * queries * SIZE, q, from);
        copy_rows<SIZE, queries>(d_tiles + stage * queries * SIZE, d_o, from);
        u32 row = from + threadIdx.x % queries;
        bool base = threadIdx.x < queries;
        // A row beyond the window has no weights.
        float number = base ? infinity() : 0.0f;
        if (row < s.block) {
            u64 at = (u64(sequence) * s.heads + head) * s.block + row;
            number = base ? kept[at] * LOG2_E : products[at];
        }
        return number;
    };
    copy_rows<SIZE, keys>(key_tile, s.lines(qkv, s.row(), sequence, key_column), first);
    copy_rows<SIZE, keys>(value_tile, s.lines(qkv, s.row(), sequence, value_column), first);
    row_tiles[0][threadIdx.x / queries][threadIdx.x % queries] = fetch_queries(head, from, 0);
    copy_async_commit();

    u32 own = warp() * 16 * TALL, warp_key = first + own;
    float d_keys[TALL][SIZE / 8][4], d_values[TALL][SIZE / 8][4];
    clear(d_keys);
    clear(d_values);
    float factor = s.scale * LOG2_E;
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<0>();
        __syncthreads();
        u32 stage = step % 2;
        float next = 0.0f;
        if (step + 1 < steps) {
            u32 next_head = head, next_from = from;
            advance(next_head, next_from);
            next = fetch_queries(next_head, next_from, 1 - stage);
        }
        copy_async_commit();
        const value* query_tile = query_tiles + stage * queries * SIZE;
        const value* d_tile = d_tiles + stage * queries * SIZE;
        u64 row = (u64(sequence) * s.heads + head) * s.block;
#pragma unroll 1
        for (u32 within = 0; within < queries; within += STRIP) {
            u32 first_query = from + within;
            if (first_query + STRIP <= warp_key || first_query >= s.block) continue;
            float weights[TALL][STRIP / 8][4], d_weights[TALL][STRIP / 8][4];
            dots<SIZE>(weights, key_tile, own, query_tile, within);
            if (first_query < warp_key + 16 * TALL) hide<true>(weights, first_query, warp_key);
            dots<SIZE>(d_weights, value_tile, own, d_tile, within);
#pragma unroll
            for (u32 j = 0; j < STRIP / 8; j++) {
                u32 at = within + j * 8 + lane() % 4 * 2;
                float bases[2] = {row_tiles[stage][0][at], row_tiles[stage][0][at + 1]};
                float means[2] = {row_tiles[stage][1][at], row_tiles[stage][1][at + 1]};
#pragma unroll
                for (u32 i = 0; i < TALL; i++) {
#pragma unroll
                    for (u32 e = 0; e < 4; e++) {
                        weights[i][j][e] = exp2_near(fmaf(weights[i][j][e], factor, -bases[e % 2]));
                    }
                    if (noise.threshold != 0) {
                        float factors[4];
                        drop_queries(noise, s.block, row + first_query + j * 8, warp_key + i * 16, factors);
#pragma unroll
                        for (u32 e = 0; e < 4; e++) {
                            d_weights[i][j][e] = weights[i][j][e] * fmaf(d_weights[i][j][e], factors[e], -means[e % 2]);
                            weights[i][j][e] *= factors[e];
                        }
                    } else {
#pragma unroll
                        for (u32 e = 0; e < 4; e++) {
                            d_weights[i][j][e] = weights[i][j][e] * (d_weights[i][j][e] - means[e % 2]);
                        }
                    }
                }
            }
            mix<SIZE>(d_values, weights, d_tile, within);
            mix<SIZE>(d_keys, d_weights, query_tile, within);
        }
        row_tiles[1 - stage][threadIdx.x / queries][threadIdx.x % queries] = next;
        advance(head, from);
    }
    float scales[TALL][2], ones[TALL][2];
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
        scales[i][0] = scales[i][1] = s.scale;
        ones[i][0] = ones[i][1] = 1.0f;
    }
    store_rows<SIZE>(d_keys, scales, key_tile, own, s.lines(d_qkv, s.row(), sequence, key_column), first);
    store_rows<SIZE>(d_values, ones, value_tile, own, s.lines(d_qkv, s.row(), sequence, value_column), first);
}

// Heads of up to 32.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_32(
    const value* __restrict__ qkv, value* out, float* kept,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    forward<32, 2, 64>(s, noise, qkv, out, kept);
}

// Heads of up to 64.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_64(
    const value* __restrict__ qkv, value* out, float* kept,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    forward<64, 2, 64>(s, noise, qkv, out, kept);
}

// Heads of up to 96.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_96(
    const value* __restrict__ qkv, value* out, float* kept,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    forward<96, 2, 32>(s, noise, qkv, out, kept);
}

// Heads of up to 128.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_forward_128(
    const value* __restrict__ qkv, value* out, float* kept,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    forward<128, 2, 32>(s, noise, qkv, out, kept);
}

// Heads of up to 32.
// registers: 168
extern "C" __global__ void __launch_bounds__(128, 3) attention_backward_queries_32(
    const value* __restrict__ qkv, const value* __restrict__ out, const value* __restrict__ d_out,
    const float* __restrict__ kept, float* products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_queries<32, 2>(s, noise, qkv, out, d_out, kept, products, d_qkv);
}

// Heads of up to 64.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_64(
    const value* __restrict__ qkv, const value* __restrict__ out, const value* __restrict__ d_out,
    const float* __restrict__ kept, float* products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_queries<64, 2>(s, noise, qkv, out, d_out, kept, products, d_qkv);
}

// Heads of up to 96.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_96(
    const value* __restrict__ qkv, const value* __restrict__ out, const value* __restrict__ d_out,
    const float* __restrict__ kept, float* products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_queries<96, 1>(s, noise, qkv, out, d_out, kept, products, d_qkv);
}

// Heads of up to 128.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_queries_128(
    const value* __restrict__ qkv, const value* __restrict__ out, const value* __restrict__ d_out,
    const float* __restrict__ kept, float* products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_queries<128, 1>(s, noise, qkv, out, d_out, kept, products, d_qkv);
}

// Heads of up to 32.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys_32(
    const value* __restrict__ qkv, const value* __restrict__ d_out, const float* __restrict__ kept,
    const float* __restrict__ products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_keys<32, 2, 32>(s, noise, qkv, d_out, kept, products, d_qkv);
}

// Heads of up to 64.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys_64(
    const value* __restrict__ qkv, const value* __restrict__ d_out, const float* __restrict__ kept,
    const float* __restrict__ products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_keys<64, 2, 32>(s, noise, qkv, d_out, kept, products, d_qkv);
}

// Heads of up to 96.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys_96(
    const value* __restrict__ qkv, const value* __restrict__ d_out, const float* __restrict__ kept,
    const float* __restrict__ products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_keys<96, 1, 16>(s, noise, qkv, d_out, kept, products, d_qkv);
}

// Heads of up to 128.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) attention_backward_keys_128(
    const value* __restrict__ qkv, const value* __restrict__ d_out, const float* __restrict__ kept,
    const float* __restrict__ products, value* d_qkv,
    const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float dropout_scale,
    u32 sequences, u32 block, u32 heads, u32 kv_heads, u32 size, float scale) {
    Heads s{sequences, block, heads, kv_heads, size, scale};
    Noise noise(clock, seed, site, first_row, threshold, dropout_scale);
    backward_keys<128, 1, 32>(s, noise, qkv, d_out, kept, products, d_qkv);
}

#endif
