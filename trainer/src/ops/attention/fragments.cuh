// What the tensor-core kernels of attention are made of: tiles of a head's rows in shared memory, products of two tiles
// into a warp's registers, products of registers by a tile, the noise of a result, and the way of a result to memory.
//
// A result of mma.sync is `[TALL][WIDE][4]`: `TALL` squares of sixteen rows by `WIDE` of eight columns; of each a lane
// has rows `lane / 4` and eight further down, columns `2 (lane % 4)` and the next.

#ifdef LECTERN_BF16

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

// Where a chunk of a row stands in a tile: turned about so that eight neighbouring rows lie in different banks.
template <u32 SIZE>
__device__ inline u32 spot(u32 row, u32 chunk) {
    return row * SIZE + (chunk ^ (SIZE % 64 == 0 ? row % 8 : row / 2 % 4)) * 8;
}

// Starts the copy of `ROWS` rows from row `first` on.
template <u32 SIZE, u32 ROWS, bool IN_CHUNKS>
__device__ inline void copy_chunks(value* tile, const Lines& lines, u32 first) {
    constexpr u32 across = SIZE / CHUNK, count = ROWS * across / TILE_THREADS;
#pragma unroll(IN_CHUNKS ? count : 1)
    for (u32 i = 0; i < count; i++) {
        u32 index = i * TILE_THREADS + threadIdx.x;
        u32 row = index / across, chunk = index % across;
        copy_chunk<IN_CHUNKS>(tile + spot<SIZE>(row, chunk), lines, lines.line(first + row), chunk * CHUNK);
    }
}

template <u32 SIZE, u32 ROWS>
__device__ inline void copy_rows(value* tile, const Lines& lines, u32 first) {
    if (in_chunks(lines)) {
        copy_chunks<SIZE, ROWS, true>(tile, lines, first);
    } else {
        copy_chunks<SIZE, ROWS, false>(tile, lines, first);
    }
}

// Sets sums to zero.
template <u32 TALL, u32 WIDE>
__device__ inline void clear(float (&sums)[TALL][WIDE][4]) {
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
#pragma unroll
        for (u32 j = 0; j < WIDE; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) sums[i][j][e] = 0.0f;
        }
    }
}

// `sums = left right^T` over the head's width: `16 TALL` rows of one tile by `8 WIDE` rows of another.
template <u32 SIZE, u32 TALL, u32 WIDE>
__device__ inline void dots(float (&sums)[TALL][WIDE][4], const value* left, u32 left_row, const value* right,
                            u32 right_row) {
    u32 at = lane();
    clear(sums);
#pragma unroll
    for (u32 k = 0; k < SIZE / 8; k += 2) {
        u32 a[TALL][4];
#pragma unroll
        for (u32 i = 0; i < TALL; i++) load_matrix_x4(a[i], left + spot<SIZE>(left_row + i * 16 + at % 16,
                                                                              k + at / 16));
#pragma unroll
        for (u32 j = 0; j < WIDE; j += 2) {
            u32 b[4];
            load_matrix_x4(b, right + spot<SIZE>(right_row + j * 8 + at % 8 + at / 16 * 8, k + at / 8 % 2));
            u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (u32 i = 0; i < TALL; i++) {
                mma_bf16(sums[i][j], a[i], first);
                mma_bf16(sums[i][j + 1], a[i], second);
            }
        }
    }
}

// `sums += weights rows`: `16 TALL x 8 WIDE` weights in registers times `8 WIDE` rows of a tile.
template <u32 SIZE, u32 TALL, u32 WIDE>
__device__ inline void mix(float (&sums)[TALL][SIZE / 8][4], const float (&weights)[TALL][WIDE][4], const value* tile,
                           u32 row) {
    u32 at = lane();
#pragma unroll
    for (u32 k = 0; k < WIDE; k += 2) {
        u32 a[TALL][4];
#pragma unroll
        for (u32 i = 0; i < TALL; i++) {
            const float(&near)[4] = weights[i][k];
            const float(&far)[4] = weights[i][k + 1];
            a[i][0] = pack_bf16(near[0], near[1]);
            a[i][1] = pack_bf16(near[2], near[3]);
            a[i][2] = pack_bf16(far[0], far[1]);
            a[i][3] = pack_bf16(far[2], far[3]);
        }
#pragma unroll
        for (u32 j = 0; j < SIZE / 8; j += 2) {
            u32 b[4];
            load_matrix_x4_transposed(b, tile + spot<SIZE>(row + k * 8 + at % 16, j + at / 16));
            u32 first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (u32 i = 0; i < TALL; i++) {
                mma_bf16(sums[i][j], a[i], first);
                mma_bf16(sums[i][j + 1], a[i], second);
            }
        }
    }
}

// Stores a warp's rows, each times its factor, through the tile's rows of the same warp, so that they leave sixteen
// bytes at a time. `own` is the warp's first row in the tile, `first` the tile's first row in the window.
template <u32 SIZE, u32 TALL>
__device__ inline void store_rows(const float (&sums)[TALL][SIZE / 8][4], const float (&factors)[TALL][2], value* tile,
                                  u32 own,
                                  const Lines& to, u32 first) {
    u32 row = own + lane() / 4, column = lane() % 4 * 2;
    __syncwarp();
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
#pragma unroll
        for (u32 j = 0; j < SIZE / 8; j++) {
            const float(&four)[4] = sums[i][j];
            float near = factors[i][0], far = factors[i][1];
            *(u32*)(tile + spot<SIZE>(row + i * 16, j) + column) = pack_bf16(four[0] * near, four[1] * near);
            *(u32*)(tile + spot<SIZE>(row + i * 16 + 8, j) + column) = pack_bf16(four[2] * far, four[3] * far);
        }
    }
    __syncwarp();
    bool whole = in_chunks(to);
#pragma unroll 2
    for (u32 i = 0; i < TALL * SIZE / 16; i++) {
        u32 index = i * 32 + lane();
        u32 line = own + index / (SIZE / 8), chunk = index % (SIZE / 8);
        value* at = const_cast<value*>(to.line(first + line));
        if (at == nullptr || chunk * 8 >= to.length) continue;
        const value* from = tile + spot<SIZE>(line, chunk);
        if (whole) {
            store16(at + chunk * 8, load16(from));
        } else {
#pragma unroll 1
            for (u32 e = 0; e < 8 && chunk * 8 + e < to.length; e++) at[chunk * 8 + e] = from[e];
        }
    }
}

// The noise of one result of mma.sync whose rows are queries and whose columns are keys. Keys in fours share a draw,
// which two lanes need: the even one draws for the upper row, the odd one for the lower, and they exchange halves.
__device__ inline void drop_keys(const Noise& noise, u32 width, u64 row, u32 key, float (&factors)[4]) {
    bool even = lane() % 2 == 0;
    words4 words = noise.words(row + (even ? 0 : 8), width, key / 4 + lane() % 4 / 2);
    u32 left = __shfl_xor_sync(0xffffffffu, even ? words.at[2] : words.at[0], 1);
    u32 right = __shfl_xor_sync(0xffffffffu, even ? words.at[3] : words.at[1], 1);
    factors[0] = noise.factor(even ? words.at[0] : left);
    factors[1] = noise.factor(even ? words.at[1] : right);
    factors[2] = noise.factor(even ? left : words.at[2]);
    factors[3] = noise.factor(even ? right : words.at[3]);
}

// The same with keys for rows and queries for columns: four lanes hold four neighbouring keys of two queries, upper and
// lower; each draws for one of the four pairs and a transposition deals the words out.
__device__ inline void drop_queries(const Noise& noise, u32 width, u64 row, u32 key, float (&factors)[4]) {
    u32 mine = lane() / 4 % 4, column = lane() % 4 * 2;
    words4 words = noise.words(row + column + mine % 2, width, key / 4 + lane() / 16 + mine / 2 * 2);
    bool odd = mine % 2 == 1, late = mine / 2 == 1;
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
        u32 got = __shfl_xor_sync(0xffffffffu, odd ? words.at[i] : words.at[i + 1], 4);
        if (odd) words.at[i] = got;
        else words.at[i + 1] = got;
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 got = __shfl_xor_sync(0xffffffffu, late ? words.at[i] : words.at[i + 2], 8);
        if (late) words.at[i] = got;
        else words.at[i + 2] = got;
    }
#pragma unroll
    for (u32 e = 0; e < 4; e++) factors[e] = noise.factor(words.at[e]);
}

// Takes a query's scores of the keys behind it away: rows are queries from `query` on, columns keys from `key` on, or,
// with `TURNED`, the other way round.
template <bool TURNED, u32 TALL, u32 WIDE>
__device__ inline void hide(float (&scores)[TALL][WIDE][4], u32 query, u32 key) {
    u32 row = lane() / 4, column = lane() % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < TALL; i++) {
#pragma unroll
        for (u32 j = 0; j < WIDE; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                u32 down = row + i * 16 + e / 2 * 8, across = column + j * 8 + e % 2;
                bool behind = TURNED ? key + down > query + across : key + across > query + down;
                if (behind) scores[i][j][e] = -infinity();
            }
        }
    }
}

// The sum over the four lanes that share a row of a result.
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

#endif
