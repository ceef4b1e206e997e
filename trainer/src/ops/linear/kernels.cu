// The products of the affine map, wherever cuBLASLt does not serve.
//
// Forward: y = x W^T + b. Backward: d_x = d_y W, d_W += d_y^T x, d_b += sum over rows of d_y.
//
// Each kernel is one product C = A B over tiles, named by how the inner index lies in A and in B; C is values or floats,
// set or added to, with a bias for its columns or none.

// Where a product's result goes: one of the two is null.
struct Result {
    value* values;
    float* floats;
    const float* bias;
    u64 stride;
    u32 rows, columns;
    bool add;

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
    each(tile, [&](u32 row, u32 column, float left, float right) {
        row += first_row;
        column += first_column;
        if (row >= out.rows || column >= out.columns) return;
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

template <class T, bool A_WAY, bool B_WAY>
__device__ inline void product(const value* a, u64 a_stride, const value* b, u64 b_stride, const Result& out, u32 inner) {
    DYNAMIC_SHARED(value, shared);
    TilePlace place(blockIdx.x, (out.rows + T::rows - 1) / T::rows, (out.columns + T::columns - 1) / T::columns);
    Lines left(a, a_stride, A_WAY == ALONG ? out.rows : inner, A_WAY == ALONG ? inner : out.rows);
    Lines right(b, b_stride, B_WAY == ALONG ? out.columns : inner, B_WAY == ALONG ? inner : out.columns);
    T tile;
    multiply<T, A_WAY, B_WAY>(tile, left, right, place.row * T::rows, place.column * T::columns, inner, shared);
    store_tile(tile, out, place.row * T::rows, place.column * T::columns);
}

// y = x W^T + b: A `[rows, inner]`, B `[columns, inner]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_outputs_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ALONG, ALONG>(a, a_stride, b, b_stride, out, inner);
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_outputs_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ALONG, ALONG>(a, a_stride, b, b_stride, out, inner);
}

// d_x = d_y W: A `[rows, inner]`, B `[inner, columns]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_inputs_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ALONG, ACROSS>(a, a_stride, b, b_stride, out, inner);
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_inputs_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ALONG, ACROSS>(a, a_stride, b, b_stride, out, inner);
}

// d_W = d_y^T x: A `[inner, rows]`, B `[inner, columns]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_weights_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ACROSS, ACROSS>(a, a_stride, b, b_stride, out, inner);
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_weights_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride, const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ACROSS, ACROSS>(a, a_stride, b, b_stride, out, inner);
}
