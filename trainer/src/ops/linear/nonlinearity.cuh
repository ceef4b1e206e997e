// A nonlinearity (../activation/functions.cuh) on top of a product's tile, for every operation that multiplies matrices:
// f of a result beside the result, or the result times f' of something in the result's place. A block takes up its tile
// again as it was stored, rounded and still in the cache, so that every byte is what the nonlinearity's own kernel makes of
// a product. Rows of such a result follow one another.
//
// This text holds no kernel: it stands before the sources of the operations that use it.

// What is asked for: nothing if both are null.
struct Nonlinearity {
    u32 kind;
    // Where f of the result goes.
    value* to;
    // Where the slope is taken.
    const value* at;
};

// Applies it to the tile that this block has stored.
template <class T>
__device__ inline void apply(const Nonlinearity& f, const Result& out, u32 first_row, u32 first_column) {
    if (f.to == nullptr && f.at == nullptr) return;
    __syncthreads();
    constexpr u32 across = T::columns / 8;
    const bool aligned = aligned16(out.values, out.stride) && aligned16(f.to, 0) && aligned16(f.at, 0);
#pragma unroll 1
    for (u32 index = threadIdx.x; index < T::rows * across; index += TILE_THREADS) {
        const u32 row = first_row + index / across, column = first_column + index % across * 8;
        if (row >= out.rows || column >= out.columns) continue;
        const u64 line = row * out.stride;
        octet y = read8(out.values + line, column, out.columns, aligned);
        if (f.at == nullptr) {
            write8(f.to + line, column, out.columns, aligned, each_of<false>(f.kind, y));
            continue;
        }
        const octet slope = each_of<true>(f.kind, read8(f.at + line, column, out.columns, aligned));
        for (u32 i = 0; i < 8; ++i) y.at[i] *= slope.at[i];
        write8(out.values + line, column, out.columns, aligned, y);
    }
}
