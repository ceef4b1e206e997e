// The experts a router chose, on a GPU; the equations are those of ops/experts.rs.
//
// Forward: `y_p = W_e z_p + b_e` (experts_outputs), `out_r = sum_i w_ri y_(r,i)`, slots in order (experts_combine). A
// dropped assignment adds nothing.
// Backward: `d_y_p = w_ri d_out_r` and `d_w_ri = d_out_r . y_p` (experts_combine_backward), `d_z_p = d_y_p W_e`
// (experts_inputs), `d_W_e = sum_p d_y_p^T z_p` (experts_weights), `d_b_e = sum_p d_y_p` (experts_bias),
// `d_x_r = sum_i d_z_(r,i)`, slots in order (experts_dispatch_backward).
//
// Nothing is laid out for the experts. What goes into them stands row by row and the products find `z_p = x_(row of p)`;
// what comes out of them, and the gradients of both, stand row by row and slot by slot, `y_(r,i)` at `r slots + i`. Only
// what is inside an expert stands place by place. Where a product's rows are not the places, a list of as many numbers
// as there are places says which they are.
//
// The nonlinearity between an expert's two maps comes on top of their products, as in ../linear/kernels.cu.
//
// Where an expert's places begin is known on the device alone. A product is launched for as many tiles as there could
// be; a block finds its own among the experts' and returns where there is none. Parameters of the experts stand `step`
// values apart.

// The place of an assignment that a full expert dropped.
constexpr u32 DROPPED = 0xffffffffu;

// Some rows of one expert's.
struct Group {
    u32 expert;
    // Its first place, and how many it has.
    u32 begin, count;
    // The first row of the tile among them.
    u32 first;
};

// The tile of `tall` rows that is number `index` of all experts'; false where there are not so many. Every warp asks.
__device__ inline bool find_group(const u32* offsets, u32 experts, u32 tall, u32 index, Group& group) {
    u32 passed = 0;
    for (u32 first = 0; first < experts; first += 32) {
        const u32 expert = first + lane();
        const u32 begin = expert < experts ? offsets[expert] : 0, end = expert < experts ? offsets[expert + 1] : 0;
        const u32 tiles = (end - begin + tall - 1) / tall;
        u32 scanned = tiles;
        for (u32 apart = 1; apart < 32; apart *= 2) {
            const u32 lower = __shfl_up_sync(0xffffffffu, scanned, apart);
            if (lane() >= apart) scanned += lower;
        }
        const u32 before = passed + scanned - tiles;
        const u32 found = __ballot_sync(0xffffffffu, before <= index && index < before + tiles);
        if (found != 0) {
            const u32 from = __popc((found & (~found + 1)) - 1);
            group.expert = first + from;
            group.begin = __shfl_sync(0xffffffffu, begin, from);
            group.count = __shfl_sync(0xffffffffu, end - begin, from);
            group.first = (index - __shfl_sync(0xffffffffu, before, from)) * tall;
            return true;
        }
        passed += __shfl_sync(0xffffffffu, scanned, 31);
    }
    return false;
}

// `tiles` of rows at most, each with all its columns. `from` and `to` are the lists of what is read and written.
template <class T, bool WAY>
__device__ inline void rows_product(const value* a, const u32* from, const value* weight, const float* bias, value* out,
                                    const u32* to, u64 step, const u32* offsets, u32 experts, u32 tiles, u32 columns,
                                    u32 inner, Nonlinearity f) {
    DYNAMIC_SHARED(value, shared);
    const TilePlace place(blockIdx.x, tiles, (columns + T::columns - 1) / T::columns);
    Group group;
    if (!find_group(offsets, experts, T::rows, place.row, group)) return;
    const Listed left(a, from, inner, group.begin, group.count, inner);
    const value* const matrix = weight + group.expert * step;
    const Lines right(matrix, WAY == ALONG ? inner : columns, WAY == ALONG ? columns : inner,
                      WAY == ALONG ? inner : columns);
    const Result result{to == nullptr ? out + u64(group.begin) * columns : out,
                        nullptr,
                        bias == nullptr ? nullptr : bias + group.expert * step,
                        columns,
                        group.count,
                        columns,
                        false,
                        to == nullptr ? nullptr : to + group.begin};
    T tile;
    multiply<T, ALONG, WAY>(tile, left, right, group.first, place.column * T::columns, inner, shared);
    store_tile(tile, result, group.first, place.column * T::columns);
    if (f.to != nullptr) f.to += u64(group.begin) * columns;
    if (f.at != nullptr) f.at += u64(group.begin) * columns;
    apply<T>(f, result, group.first, place.column * T::columns);
}

// y = x W^T + b, each expert's rows by its own matrix, and f(y) to `activated`, which takes no list.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2)
    experts_outputs_large(const value* __restrict__ x, const u32* __restrict__ from, const value* __restrict__ weight,
                          const float* __restrict__ bias, value* out, const u32* __restrict__ to, u64 step,
                          const u32* __restrict__ offsets, u32 experts, u32 tiles, u32 columns, u32 inner,
                          value* activated, u32 kind) {
    rows_product<Tile<128, 128>, ALONG>(x, from, weight, bias, out, to, step, offsets, experts, tiles, columns, inner,
                                         {kind, activated, nullptr});
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4)
    experts_outputs_small(const value* __restrict__ x, const u32* __restrict__ from, const value* __restrict__ weight,
                          const float* __restrict__ bias, value* out, const u32* __restrict__ to, u64 step,
                          const u32* __restrict__ offsets, u32 experts, u32 tiles, u32 columns, u32 inner,
                          value* activated, u32 kind) {
    rows_product<Tile<64, 64>, ALONG>(x, from, weight, bias, out, to, step, offsets, experts, tiles, columns, inner,
                                         {kind, activated, nullptr});
}

// d_x = d_y W, likewise, times f' of `hidden`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2)
    experts_inputs_large(const value* __restrict__ d_out, const u32* __restrict__ from,
                         const value* __restrict__ weight, value* d_x, const u32* __restrict__ to, u64 step,
                         const u32* __restrict__ offsets, u32 experts, u32 tiles, u32 columns, u32 inner,
                         const value* __restrict__ hidden, u32 kind) {
    rows_product<Tile<128, 128>, ACROSS>(d_out, from, weight, nullptr, d_x, to, step, offsets, experts, tiles, columns,
                                         inner, {kind, nullptr, hidden});
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4)
    experts_inputs_small(const value* __restrict__ d_out, const u32* __restrict__ from,
                         const value* __restrict__ weight, value* d_x, const u32* __restrict__ to, u64 step,
                         const u32* __restrict__ offsets, u32 experts, u32 tiles, u32 columns, u32 inner,
                         const value* __restrict__ hidden, u32 kind) {
    rows_product<Tile<64, 64>, ACROSS>(d_out, from, weight, nullptr, d_x, to, step, offsets, experts, tiles, columns,
                                       inner, {kind, nullptr, hidden});
}

// One tile of one expert's matrix; experts along y. `d_list` and `x_list` are the lists of the two factors.
template <class T>
__device__ inline void weights_product(const value* d_out, const u32* d_list, const value* x, const u32* x_list,
                                       float* grads, u64 step, const u32* offsets, u32 rows, u32 columns) {
    DYNAMIC_SHARED(value, shared);
    const u32 expert = blockIdx.y, begin = offsets[expert], count = offsets[expert + 1] - begin;
    if (count == 0) return;
    const TilePlace place(blockIdx.x, (rows + T::rows - 1) / T::rows, (columns + T::columns - 1) / T::columns);
    const Listed left(d_out, d_list, rows, begin, count, rows);
    const Listed right(x, x_list, columns, begin, count, columns);
    const Result result{nullptr, grads + expert * step, nullptr, columns, rows, columns, true};
    T tile;
    multiply<T, ACROSS, ACROSS>(tile, left, right, place.row * T::rows, place.column * T::columns, count, shared);
    store_tile(tile, result, place.row * T::rows, place.column * T::columns);
}

// d_W += d_y^T x over each expert's rows: `rows` outputs by `columns` inputs.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2)
    experts_weights_large(const value* __restrict__ d_out, const u32* __restrict__ d_list, const value* __restrict__ x,
                          const u32* __restrict__ x_list, float* __restrict__ grads, u64 step,
                          const u32* __restrict__ offsets, u32 rows, u32 columns) {
    weights_product<Tile<128, 128>>(d_out, d_list, x, x_list, grads, step, offsets, rows, columns);
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4)
    experts_weights_small(const value* __restrict__ d_out, const u32* __restrict__ d_list, const value* __restrict__ x,
                          const u32* __restrict__ x_list, float* __restrict__ grads, u64 step,
                          const u32* __restrict__ offsets, u32 rows, u32 columns) {
    weights_product<Tile<64, 64>>(d_out, d_list, x, x_list, grads, step, offsets, rows, columns);
}

// d_b += the sum of an expert's rows. A block takes 32 columns of one expert, experts along y: four threads side by side
// take eight columns each, 64 rows at once.
// registers: 64
extern "C" __global__ void __launch_bounds__(256)
    experts_bias(const value* __restrict__ d_out, const u32* __restrict__ list, float* __restrict__ grads, u64 step,
                 const u32* __restrict__ offsets, u32 columns) {
    __shared__ float sums[64][33];
    const u32 expert = blockIdx.y, begin = offsets[expert], end = offsets[expert + 1];
    if (begin == end) return;
    const u32 side = threadIdx.x % 4, group = threadIdx.x / 4, column = blockIdx.x * 32 + side * 8;
    const bool aligned = aligned16(d_out, columns);
    octet sum = {};
    if (column < columns) {
#pragma unroll 4
        for (u32 place = begin + group; place < end; place += 64) {
            const u32 row = list == nullptr ? place : list[place];
            const octet some = read8(d_out + u64(row) * columns, column, columns, aligned);
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sum.at[k] += some.at[k];
        }
    }
#pragma unroll
    for (u32 k = 0; k < 8; ++k) sums[group][side * 8 + k] = sum.at[k];
    __syncthreads();
    if (warp() == 0 && blockIdx.x * 32 + lane() < columns) {
        float all = 0.0f;
        for (u32 row = 0; row < 64; ++row) all += sums[row][lane()];
        grads[expert * step + blockIdx.x * 32 + lane()] += all;
    }
}

// The gradient of the rows, set or added to. A warp takes one row.
// registers: 64
extern "C" __global__ void __launch_bounds__(256)
    experts_dispatch_backward(const value* __restrict__ d_out, const u32* __restrict__ place, value* d_x, u32 add,
                              u32 rows, u32 slots, u32 width) {
    const u32 row = blockIdx.x * 8 + warp();
    if (row >= rows) return;
    const bool aligned = aligned16(d_x, width) && aligned16(d_out, width);
    for (u32 column = 8 * lane(); column < width; column += 256) {
        octet sum = {};
        if (add) sum = read8(d_x + u64(row) * width, column, width, aligned);
        for (u32 slot = 0; slot < slots; ++slot) {
            const u64 from = u64(row) * slots + slot;
            if (place[from] == DROPPED) continue;
            const octet some = read8(d_out + from * width, column, width, aligned);
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sum.at[k] += some.at[k];
        }
        write8(d_x + u64(row) * width, column, width, aligned, sum);
    }
}

// The weighted sum of each row's experts. A warp takes one row.
// registers: 64
extern "C" __global__ void __launch_bounds__(256)
    experts_combine(const value* __restrict__ y, const value* __restrict__ weights, const u32* __restrict__ place,
                    value* __restrict__ out, u32 rows, u32 slots, u32 width) {
    const u32 row = blockIdx.x * 8 + warp();
    if (row >= rows) return;
    const bool aligned = aligned16(y, width) && aligned16(out, width);
    for (u32 column = 8 * lane(); column < width; column += 256) {
        octet sum = {};
        for (u32 slot = 0; slot < slots; ++slot) {
            const u64 from = u64(row) * slots + slot;
            if (place[from] == DROPPED) continue;
            const float weight = widen(weights[from]);
            const octet some = read8(y + from * width, column, width, aligned);
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sum.at[k] = fmaf(weight, some.at[k], sum.at[k]);
        }
        write8(out + u64(row) * width, column, width, aligned, sum);
    }
}

// The gradients of the experts' outputs and of the weights. A warp takes one row.
// registers: 64
extern "C" __global__ void __launch_bounds__(256)
    experts_combine_backward(const value* __restrict__ y, const value* __restrict__ weights,
                             const u32* __restrict__ place, const value* __restrict__ d_out, value* __restrict__ d_y,
                             value* __restrict__ d_weights, u32 rows, u32 slots, u32 width) {
    const u32 row = blockIdx.x * 8 + warp();
    if (row >= rows) return;
    const bool aligned = aligned16(y, width) && aligned16(d_out, width) && aligned16(d_y, width);
    for (u32 slot = 0; slot < slots; ++slot) {
        const u64 at = u64(row) * slots + slot;
        float dot = 0.0f;
        if (place[at] != DROPPED) {
            const float weight = widen(weights[at]);
            for (u32 column = 8 * lane(); column < width; column += 256) {
                const octet d = read8(d_out + u64(row) * width, column, width, aligned);
                const octet some = read8(y + at * width, column, width, aligned);
                octet scaled;
#pragma unroll
                for (u32 k = 0; k < 8; ++k) {
                    dot = fmaf(d.at[k], some.at[k], dot);
                    scaled.at[k] = weight * d.at[k];
                }
                write8(d_y + at * width, column, width, aligned, scaled);
            }
            dot = warp_sum(dot);
        }
        if (lane() == 0) d_weights[at] = narrow(dot);
    }
}
