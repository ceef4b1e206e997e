// The feed-forward nonlinearity: the equations of ops/activation.rs.
//
// Forward y = f(x) m, backward d_x = d_y m f'(x), f and f' those of functions.cuh, m the dropout mask, which only experts
// have. And with a gate:
//   swiglu     a row is a gate g and then x, each as wide as the result: y = g s(g) x,
//              d_x = d_y g s(g), d_g = d_y x s(g) (1 + g (1 - s(g)))
//
// Thread `t` has octet `t` of `octets` a row of the result; without a mask and a gate the rows may be taken as one.

constexpr u32 THREADS = 256;

// The arguments of every kernel here; `d_out` is none forward, and backward where the gradient stands in its result's place.
struct Hidden {
    const value* x;
    const value* d_out;
    value* to;
    u32 rows, width;
    const Clock* clock;
    u64 seed, site, first_row;
    u32 threshold;
    float scale;
};

template <Kind kind, bool BACKWARD> __device__ __forceinline__ void carry_out(const Hidden& s) {
    const u32 width = s.width, octets = width / 8 + (width % 8 > 0), item = blockIdx.x * THREADS + threadIdx.x;
    const u32 row = item / octets, column = item % octets * 8;
    if (row >= s.rows) return;
    const u64 at = u64(row) * width, from = kind == SWIGLU ? 2 * at : at;
    // What stands where the result goes is read before it is written, by the same thread.
    const value* const d_out = s.d_out != nullptr ? s.d_out + at : s.to + at;
    const bool aligned = aligned16(s.x + from, width) && aligned16(s.to + (BACKWARD ? from : at), width) &&
                         (!BACKWARD || aligned16(d_out, width));
    octet m;
    for (u32 i = 0; i < 8; ++i) m.at[i] = 1.0f;
    if (s.threshold > 0) {
        m = dropout8(s.seed, s.clock->step, s.site, s.first_row + row, width, column, s.threshold, s.scale);
    }
    const octet x = read8(s.x + from + (kind == SWIGLU ? width : 0), column, width, aligned);
    octet first, second;
    if (!BACKWARD) {
        if (kind == SWIGLU) {
            const octet gate = read8(s.x + from, column, width, aligned);
            for (u32 i = 0; i < 8; ++i) first.at[i] = gate.at[i] * sigmoid(gate.at[i]) * x.at[i] * m.at[i];
        } else {
            for (u32 i = 0; i < 8; ++i) first.at[i] = value_of<kind>(x.at[i]) * m.at[i];
        }
        return write8(s.to + at, column, width, aligned, first);
    }
    const octet d = read8(d_out, column, width, aligned);
    if (kind == SWIGLU) {
        const octet gate = read8(s.x + from, column, width, aligned);
        for (u32 i = 0; i < 8; ++i) {
            const float g = gate.at[i], pass = sigmoid(g), slope = d.at[i] * m.at[i];
            first.at[i] = slope * x.at[i] * pass * (1.0f + g * (1.0f - pass));
            second.at[i] = slope * g * pass;
        }
        write8(s.to + from + width, column, width, aligned, second);
    } else {
        for (u32 i = 0; i < 8; ++i) first.at[i] = d.at[i] * m.at[i] * slope_of<kind>(x.at[i]);
    }
    write8(s.to + from, column, width, aligned, first);
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    relu_forward(const value* __restrict__ x, value* __restrict__ out, u32 rows, u32 width,
                 const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    carry_out<RELU, false>({x, nullptr, out, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    relu_backward(const value* __restrict__ x, const value* d_out, value* d_x, u32 rows,
                  u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                  float scale) {
    carry_out<RELU, true>({x, d_out, d_x, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_erf_forward(const value* __restrict__ x, value* __restrict__ out, u32 rows, u32 width,
                     const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    carry_out<GELU_ERF, false>({x, nullptr, out, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 64
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_erf_backward(const value* __restrict__ x, const value* d_out, value* d_x, u32 rows,
                      u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                      float scale) {
    carry_out<GELU_ERF, true>({x, d_out, d_x, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_tanh_forward(const value* __restrict__ x, value* __restrict__ out, u32 rows, u32 width,
                      const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    carry_out<GELU_TANH, false>({x, nullptr, out, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    gelu_tanh_backward(const value* __restrict__ x, const value* d_out, value* d_x, u32 rows,
                       u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                       float scale) {
    carry_out<GELU_TANH, true>({x, d_out, d_x, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 64
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_forward(const value* __restrict__ x, value* __restrict__ out, u32 rows, u32 width,
                   const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    carry_out<SWIGLU, false>({x, nullptr, out, rows, width, clock, seed, site, first_row, threshold, scale});
}

// registers: 64
extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu_backward(const value* __restrict__ x, const value* d_out, value* d_x, u32 rows,
                    u32 width, const Clock* __restrict__ clock, u64 seed, u64 site, u64 first_row, u32 threshold,
                    float scale) {
    carry_out<SWIGLU, true>({x, d_out, d_x, rows, width, clock, seed, site, first_row, threshold, scale});
}
