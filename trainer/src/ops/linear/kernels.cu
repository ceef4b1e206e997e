// The products of the affine map, wherever cuBLASLt does not serve.
//
// Forward: y = x W^T + b. Backward: d_x = d_y W, d_W += d_y^T x, d_b += sum over rows of d_y.
//
// Each kernel is one product C = A B over tiles, named by how the inner index lies in A and in B; C is values or
// floats, set or added to, with a bias for its columns or none.
//
// A nonlinearity f comes on top where one is asked for (nonlinearity.cuh). Forward: f(y) goes beside y, or backward:
// d_x f'(x) in the place of d_x.

template <class T, bool A_WAY, bool B_WAY>
__device__ inline void product(const value* a, u64 a_stride, const value* b, u64 b_stride, const Result& out,
                               u32 inner, const Nonlinearity& f = {}) {
    DYNAMIC_SHARED(value, shared);
    TilePlace place(blockIdx.x, (out.rows + T::rows - 1) / T::rows, (out.columns + T::columns - 1) / T::columns);
    Lines left(a, a_stride, A_WAY == ALONG ? out.rows : inner, A_WAY == ALONG ? inner : out.rows);
    Lines right(b, b_stride, B_WAY == ALONG ? out.columns : inner, B_WAY == ALONG ? inner : out.columns);
    T tile;
    multiply<T, A_WAY, B_WAY>(tile, left, right, place.row * T::rows, place.column * T::columns, inner, shared);
    store_tile(tile, out, place.row * T::rows, place.column * T::columns);
    apply<T>(f, out, place.row * T::rows, place.column * T::columns);
}

// y = x W^T + b, and f(y) to `activated`: A `[rows, inner]`, B `[columns, inner]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_outputs_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add,
    value* activated, u32 kind) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ALONG, ALONG>(a, a_stride, b, b_stride, out, inner, {kind, activated, nullptr});
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_outputs_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add,
    value* activated, u32 kind) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ALONG, ALONG>(a, a_stride, b, b_stride, out, inner, {kind, activated, nullptr});
}

// d_x = d_y W, times f' of `hidden`: A `[rows, inner]`, B `[inner, columns]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_inputs_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add,
    const value* __restrict__ hidden, u32 kind) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ALONG, ACROSS>(a, a_stride, b, b_stride, out, inner, {kind, nullptr, hidden});
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_inputs_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add,
    const value* __restrict__ hidden, u32 kind) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ALONG, ACROSS>(a, a_stride, b, b_stride, out, inner, {kind, nullptr, hidden});
}

// d_W = d_y^T x: A `[inner, rows]`, B `[inner, columns]`.
// registers: 255
extern "C" __global__ void __launch_bounds__(128, 2) product_weights_large(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<128, 128>, ACROSS, ACROSS>(a, a_stride, b, b_stride, out, inner);
}

// The same by small tiles.
// registers: 128
extern "C" __global__ void __launch_bounds__(128, 4) product_weights_small(
    const value* __restrict__ a, u64 a_stride, const value* __restrict__ b, u64 b_stride,
        const float* __restrict__ bias,
    value* values, float* floats, u64 stride, u32 rows, u32 columns, u32 inner, u32 add) {
    Result out{values, floats, bias, stride, rows, columns, add != 0};
    product<Tile<64, 64>, ACROSS, ACROSS>(a, a_stride, b, b_stride, out, inner);
}
