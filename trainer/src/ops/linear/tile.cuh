// One tile of a matrix product, C = A B, for every operation that multiplies matrices.
//
//     c_ij = sum over k of a_ik b_kj
//
// summed in float, k in order whatever the tile, so that a result's bytes depend on sizes alone. In bf16 a warp holds a
// quarter of the tile and multiplies by mma.sync m16n8k16, fed through a ring of stages in shared memory; in float
// every thread holds a grid of sums and multiplies in full precision.
//
// A factor is any struct with
//     const value* line(u32 index) const   where a line begins; null if it is all zeros
//     u32 length                           elements of a line that exist; the others are zeros
//     bool aligned                         whether every line begins at a multiple of sixteen bytes
//     static constexpr bool listed         whether memory says which row a line is: then there are, besides,
//     u32 row(u32 index) const             which one, and
//     const value* at(u32 row) const       where it begins, so that the first is asked before the second is wanted
// ALONG: a line is a row of C (or a column, for B) and the inner index runs along it. ACROSS: a line is an inner index.
//
// This text holds no kernel: it stands before the sources of the operations that use it.

// Whether lines of a factor run along the inner index or across it.
[[maybe_unused]] constexpr bool ALONG = true, ACROSS = false;

// Threads of a block that multiplies a tile.
[[maybe_unused]] constexpr u32 TILE_THREADS = 128;

// A factor that stands in memory line after line.
struct Lines {
    static constexpr bool listed = false;
    const value* first;
    u32 stride, count, length;
    bool aligned;

    __device__ Lines(const value* first, u64 stride, u32 count, u32 length)
        : first(first), stride(u32(stride)), count(count), length(length),
          aligned(((u64)first | stride * sizeof(value)) % 16 == 0) {}

    __device__ const value* line(u32 index) const { return index < count ? first + u64(index) * stride : nullptr; }
};

// A row that does not exist.
[[maybe_unused]] constexpr u32 NO_ROW = 0xffffffffu;

// A factor whose lines are rows anywhere in memory: those that the numbers of `list` from `begin` on name, or where there
// is no list the rows from `begin` on.
struct Listed {
    static constexpr bool listed = true;
    const value* first;
    const u32* list;
    u32 stride, begin, count, length;
    bool aligned;

    __device__ Listed(const value* first, const u32* list, u64 stride, u32 begin, u32 count, u32 length)
        : first(first), list(list), stride(u32(stride)), begin(begin), count(count), length(length),
          aligned(((u64)first | stride * sizeof(value)) % 16 == 0) {}

    __device__ u32 row(u32 index) const {
        if (index >= count) return NO_ROW;
        return list == nullptr ? begin + index : list[begin + index];
    }

    __device__ const value* at(u32 row) const { return row == NO_ROW ? nullptr : first + u64(row) * stride; }

    __device__ const value* line(u32 index) const { return at(row(index)); }
};

// Two neighbouring floats, stored at once.
struct alignas(8) Pair {
    float left, right;
};

// Sets two neighbours, or adds to them; `at` is a multiple of their size.
__device__ inline void store_pair(float* at, float left, float right, bool add) {
    Pair* to = (Pair*)at;
    Pair was = add ? *to : Pair{0.0f, 0.0f};
    *to = Pair{was.left + left, was.right + right};
}

#ifdef LECTERN_BF16
__device__ inline void store_pair(value* at, float left, float right, bool add) {
    if (add) {
        left += widen(at[0]);
        right += widen(at[1]);
    }
    *(u32*)at = pack_bf16(left, right);
}
#endif

// Which tile a block takes: neighbours in time share rows and columns, so that both stay in the cache.
struct TilePlace {
    u32 row, column;

    // `index` of `down x across` tiles.
    __device__ TilePlace(u32 index, u32 down, u32 across) {
        constexpr u32 band = 8;
        u32 first = index / (band * across) * band, within = index % (band * across);
        u32 tall = down - first < band ? down - first : band;
        row = first + within % tall;
        column = within / tall;
    }
};

#ifdef LECTERN_BF16

// Elements of sixteen bytes.
[[maybe_unused]] constexpr u32 CHUNK = 16 / sizeof(value);

// Whether a factor's lines consist of whole chunks that can be copied at once.
template <class Factor>
__device__ inline bool in_chunks(const Factor& factor) {
    return factor.aligned && factor.length % CHUNK == 0;
}

// The chunk of a line that begins at element `from`, to shared memory; zeros beyond the line's end.
template <bool IN_CHUNKS, class Factor>
__device__ inline void copy_chunk(value* to, const Factor& factor, const value* line, u32 from) {
    if constexpr (IN_CHUNKS) {
        copy_async16(to, line + from, line != nullptr && from < factor.length);
    } else {
#pragma unroll
        for (u32 i = 0; i < CHUNK; i++) {
            to[i] = line != nullptr && from + i < factor.length ? line[from + i] : narrow(0.0f);
        }
    }
}

// The sums of one tile of C: four warps, two by two, with `tall x wide` results of mma.sync each.
template <u32 ROWS, u32 COLUMNS>
struct Tile {
    static constexpr u32 rows = ROWS, columns = COLUMNS;
    // Inner indices of one stage, and stages in flight.
    static constexpr u32 depth = 32, stages = 4;
    // Bytes of shared memory.
    static constexpr u32 shared = stages * (ROWS + COLUMNS) * depth * sizeof(value);
    static constexpr u32 tall = ROWS / 32, wide = COLUMNS / 16;
    float sums[tall][wide][4];
};

// Where a chunk of a line stands in a stage: turned about so that the eight lines that one ldmatrix reads at once lie
// in different banks.
template <u32 EXTENT, u32 DEPTH, bool WAY>
__device__ inline u32 place_of(u32 line, u32 chunk) {
    if (WAY == ALONG) return line * DEPTH + (chunk ^ (line / 2 % 4)) * CHUNK;
    return line * EXTENT + (chunk ^ (line % 8)) * CHUNK;
}

// What one thread copies of a factor in each stage: so many chunks, and of a listed factor their rows.
template <u32 EXTENT, u32 DEPTH, bool WAY, class Factor>
struct Share {
    static constexpr u32 across = (WAY == ALONG ? DEPTH : EXTENT) / CHUNK, count = EXTENT * DEPTH / CHUNK / TILE_THREADS;
    u32 rows[Factor::listed ? count : 1];

    // Looks up the rows of a stage. The answers are wanted when it is fetched, so this is done one stage before.
    __device__ inline void look_up(const Factor& factor, u32 first, u32 inner) {
        if constexpr (Factor::listed) {
#pragma unroll
            for (u32 i = 0; i < count; i++) {
                rows[i] = factor.row((WAY == ALONG ? first : inner) + (i * TILE_THREADS + threadIdx.x) / across);
            }
        }
    }

    // Starts the copies of a stage.
    template <bool IN_CHUNKS>
    __device__ inline void fetch_chunks(value* stage, const Factor& factor, u32 first, u32 inner) const {
#pragma unroll(IN_CHUNKS ? count : 1)
        for (u32 i = 0; i < count; i++) {
            u32 index = i * TILE_THREADS + threadIdx.x;
            u32 line = index / across, chunk = index % across;
            const value* from;
            if constexpr (Factor::listed && IN_CHUNKS) {
                from = factor.at(rows[i]);
            } else {
                from = factor.line((WAY == ALONG ? first : inner) + line);
            }
            copy_chunk<IN_CHUNKS>(stage + place_of<EXTENT, DEPTH, WAY>(line, chunk), factor, from,
                                  (WAY == ALONG ? inner : first) + chunk * CHUNK);
        }
    }

    // The same, and looks up the rows of the stage after it; along lines they stay.
    __device__ inline void fetch(value* stage, const Factor& factor, u32 first, u32 inner) {
        if (in_chunks(factor)) {
            fetch_chunks<true>(stage, factor, first, inner);
        } else {
            fetch_chunks<false>(stage, factor, first, inner);
        }
        if constexpr (WAY == ACROSS) look_up(factor, first, inner + DEPTH);
    }
};

// Sixteen rows by sixteen inner indices of A as mma.sync takes them.
template <u32 EXTENT, u32 DEPTH, bool WAY>
__device__ inline void load_rows(u32 (&a)[4], const value* stage, u32 row, u32 inner) {
    u32 at = lane();
    if (WAY == ALONG) {
        load_matrix_x4(a, stage + place_of<EXTENT, DEPTH, WAY>(row + at % 16, inner / CHUNK + at / 16));
    } else {
        u32 line = inner + at % 8 + at / 16 * 8;
        load_matrix_x4_transposed(a, stage + place_of<EXTENT, DEPTH, WAY>(line, row / CHUNK + at / 8 % 2));
    }
}

// Sixteen columns by sixteen inner indices of B: two operands of mma.sync, one after the other.
template <u32 EXTENT, u32 DEPTH, bool WAY>
__device__ inline void load_columns(u32 (&b)[4], const value* stage, u32 column, u32 inner) {
    u32 at = lane();
    if (WAY == ALONG) {
        u32 line = column + at % 8 + at / 16 * 8;
        load_matrix_x4(b, stage + place_of<EXTENT, DEPTH, WAY>(line, inner / CHUNK + at / 8 % 2));
    } else {
        load_matrix_x4_transposed(b, stage + place_of<EXTENT, DEPTH, WAY>(inner + at % 16, column / CHUNK + at / 16));
    }
}

// Sets the sums of the tile that begins at `(first_row, first_column)`. `shared` has `T::shared` bytes, which nobody
// uses any more when this returns. Every thread of the block calls it.
template <class T, bool A_WAY, bool B_WAY, class A, class B>
__device__ inline void multiply(T& tile, const A& a, const B& b, u32 first_row, u32 first_column, u32 inner,
                                value* shared) {
    constexpr u32 depth = T::depth, half = T::rows * depth, stage = half + T::columns * depth;
    u32 row = warp() / 2 * (T::rows / 2), column = warp() % 2 * (T::columns / 2);
#pragma unroll
    for (u32 i = 0; i < T::tall; i++) {
#pragma unroll
        for (u32 j = 0; j < T::wide; j++) {
#pragma unroll
            for (u32 k = 0; k < 4; k++) tile.sums[i][j][k] = 0.0f;
        }
    }
    Share<T::rows, depth, A_WAY, A> left;
    Share<T::columns, depth, B_WAY, B> right;
    left.look_up(a, first_row, 0);
    right.look_up(b, first_column, 0);
    u32 steps = (inner + depth - 1) / depth;
#pragma unroll
    for (u32 step = 0; step + 1 < T::stages; step++) {
        if (step < steps) {
            left.fetch(shared + step * stage, a, first_row, step * depth);
            right.fetch(shared + step * stage + half, b, first_column, step * depth);
        }
        copy_async_commit();
    }
    u32 reads = 0, writes = T::stages - 1;
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<T::stages - 2>();
        __syncthreads();
        const value* rows = shared + reads * stage;
        const value* columns = rows + half;
        if (step + T::stages - 1 < steps) {
            u32 next = (step + T::stages - 1) * depth;
            left.fetch(shared + writes * stage, a, first_row, next);
            right.fetch(shared + writes * stage + half, b, first_column, next);
        }
        copy_async_commit();
        writes = reads;
        reads = reads + 1 == T::stages ? 0 : reads + 1;
#pragma unroll
        for (u32 k = 0; k < depth; k += 16) {
            u32 of_rows[T::tall][4];
#pragma unroll
            for (u32 i = 0; i < T::tall; i++) {
                load_rows<T::rows, depth, A_WAY>(of_rows[i], rows, row + i * 16, k);
            }
#pragma unroll
            for (u32 j = 0; j < T::wide; j += 2) {
                u32 both[4];
                load_columns<T::columns, depth, B_WAY>(both, columns, column + j * 8, k);
                u32 first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
                for (u32 i = 0; i < T::tall; i++) {
                    mma_bf16(tile.sums[i][j], of_rows[i], first);
                    mma_bf16(tile.sums[i][j + 1], of_rows[i], second);
                }
            }
        }
    }
    copy_async_wait<0>();
    __syncthreads();
}

// Calls `apply(find(row), column, left, right)` for the pairs of neighbouring sums that this thread holds, `find` once for
// each row; rows and columns count from the tile's first, columns are even.
template <class T, class Find, class Apply>
__device__ inline void each(const T& tile, Find find, Apply apply) {
    u32 row = warp() / 2 * (T::rows / 2) + lane() / 4, column = warp() % 2 * (T::columns / 2) + lane() % 4 * 2;
#pragma unroll
    for (u32 i = 0; i < T::tall; i++) {
        const auto upper = find(row + i * 16), lower = find(row + i * 16 + 8);
#pragma unroll
        for (u32 j = 0; j < T::wide; j++) {
            const float(&sums)[4] = tile.sums[i][j];
            apply(upper, column + j * 8, sums[0], sums[1]);
            apply(lower, column + j * 8, sums[2], sums[3]);
        }
    }
}

#else

// The sums of one tile of C: a grid of four by four squares a thread, sixteen by eight threads.
template <u32 ROWS, u32 COLUMNS>
struct Tile {
    static constexpr u32 rows = ROWS, columns = COLUMNS;
    // Inner indices held at once.
    static constexpr u32 depth = 16;
    // Bytes of shared memory: lines stand four elements apart so that stores of a column spread over banks.
    static constexpr u32 shared = (ROWS + COLUMNS + 8) * depth * sizeof(value);
    static constexpr u32 tall = ROWS / 64, wide = COLUMNS / 32;
    float sums[tall][wide][4][4];
};

// One factor's part of a stage, laid out inner index by inner index.
template <u32 EXTENT, u32 DEPTH, bool WAY, class Factor>
__device__ inline void fetch(value* stage, const Factor& factor, u32 first, u32 inner) {
    // The rows of a list would be kept in registers that are wanted for sums.
    constexpr u32 count = EXTENT * DEPTH / TILE_THREADS;
#pragma unroll(Factor::listed ? 4 : count)
    for (u32 i = 0; i < count; i++) {
        u32 index = i * TILE_THREADS + threadIdx.x;
        u32 k = WAY == ALONG ? index % DEPTH : index / EXTENT;
        u32 at = WAY == ALONG ? index / DEPTH : index % EXTENT;
        const value* line = factor.line(WAY == ALONG ? first + at : inner + k);
        u32 element = WAY == ALONG ? inner + k : first + at;
        stage[k * (EXTENT + 4) + at] = line != nullptr && element < factor.length ? line[element] : 0.0f;
    }
}

// As above, for floats.
template <class T, bool A_WAY, bool B_WAY, class A, class B>
__device__ inline void multiply(T& tile, const A& a, const B& b, u32 first_row, u32 first_column, u32 inner,
                                value* shared) {
    constexpr u32 depth = T::depth, tall = T::rows + 4, wide = T::columns + 4;
    value* rows = shared;
    value* columns = shared + depth * tall;
    u32 row = threadIdx.x / 8 * 4, column = threadIdx.x % 8 * 4;
#pragma unroll
    for (u32 i = 0; i < T::tall; i++) {
#pragma unroll
        for (u32 j = 0; j < T::wide; j++) {
#pragma unroll
            for (u32 k = 0; k < 16; k++) tile.sums[i][j][k / 4][k % 4] = 0.0f;
        }
    }
    for (u32 first = 0; first < inner; first += depth) {
        fetch<T::rows, depth, A_WAY>(rows, a, first_row, first);
        fetch<T::columns, depth, B_WAY>(columns, b, first_column, first);
        __syncthreads();
#pragma unroll 2
        for (u32 k = 0; k < depth; k++) {
            Pack<float> left[T::tall], right[T::wide];
#pragma unroll
            for (u32 i = 0; i < T::tall; i++) left[i] = load16(rows + k * tall + row + i * 64);
#pragma unroll
            for (u32 j = 0; j < T::wide; j++) right[j] = load16(columns + k * wide + column + j * 32);
#pragma unroll
            for (u32 i = 0; i < T::tall; i++) {
#pragma unroll
                for (u32 j = 0; j < T::wide; j++) {
#pragma unroll
                    for (u32 e = 0; e < 16; e++) {
                        float& sum = tile.sums[i][j][e / 4][e % 4];
                        sum = fmaf(left[i].at[e / 4], right[j].at[e % 4], sum);
                    }
                }
            }
        }
        __syncthreads();
    }
}

// As above, for floats.
template <class T, class Find, class Apply>
__device__ inline void each(const T& tile, Find find, Apply apply) {
    u32 row = threadIdx.x / 8 * 4, column = threadIdx.x % 8 * 4;
#pragma unroll
    for (u32 i = 0; i < T::tall; i++) {
#pragma unroll
        for (u32 e = 0; e < 4; e++) {
            const auto found = find(row + i * 64 + e);
#pragma unroll
            for (u32 j = 0; j < T::wide; j++) {
                const float(&sums)[4] = tile.sums[i][j][e];
                apply(found, column + j * 32, sums[0], sums[1]);
                apply(found, column + j * 32 + 2, sums[2], sums[3]);
            }
        }
    }
}

#endif

// Where a product's result goes: one of the two is null.
struct Result {
    value* values;
    float* floats;
    const float* bias;
    u64 stride;
    u32 rows, columns;
    bool add;
    // Which row of memory each row is, unless they follow one another.
    const u32* list = nullptr;

    // Whether every pair of columns begins at a multiple of its size.
    __device__ bool even() const {
        u64 at = values != nullptr ? (u64)values / sizeof(value) : (u64)floats / sizeof(float);
        return ((at | stride) & 1) == 0;
    }

    __device__ void store(u64 at, float sum) const {
        if (values != nullptr) {
            values[at] = narrow(add ? widen(values[at]) + sum : sum);
        } else {
            floats[at] = add ? floats[at] + sum : sum;
        }
    }
};

// Stores what a tile holds.
template <class T>
__device__ inline void store_tile(const T& tile, const Result& out, u32 first_row, u32 first_column) {
    bool even = out.even();
    auto find = [&](u32 row) {
        row += first_row;
        return row >= out.rows ? NO_ROW : out.list == nullptr ? row : out.list[row];
    };
    each(tile, find, [&](u32 row, u32 column, float left, float right) {
        column += first_column;
        if (row == NO_ROW || column >= out.columns) return;
        bool both = column + 1 < out.columns;
        if (out.bias != nullptr) {
            left += out.bias[column];
            if (both) right += out.bias[column + 1];
        }
        u64 at = row * out.stride + column;
        if (!both || !even) {
            out.store(at, left);
            if (both) out.store(at + 1, right);
        } else if (out.values != nullptr) {
            store_pair(out.values + at, left, right, out.add);
        } else {
            store_pair(out.floats + at, left, right, out.add);
        }
    });
}
