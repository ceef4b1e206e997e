// The nonlinearity of one value: the equations of ops/activation.rs. Whoever makes values can apply it where they stand.
//
//   relu       f = max(x, 0)                          f' = [x > 0]
//   gelu-erf   f = x P(x), P the normal distribution  f' = P(x) + x p(x), p its density
//   gelu-tanh  f = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3), s the logistic function
//                                                     f' = s + x s (1 - s) 2 u'
//
// This text holds no kernel: it stands before the sources of the operations that use it.

// 1 / sqrt(2), 1 / sqrt(2 pi), 2 sqrt(2 / pi), and the cubic's share.
[[maybe_unused]] constexpr float ROOT_HALF = 0.70710678f;
[[maybe_unused]] constexpr float DENSITY = 0.39894228f;
[[maybe_unused]] constexpr float TWICE = 1.5957691f;
[[maybe_unused]] constexpr float CUBIC = 0.044715f;

enum Kind { RELU, GELU_ERF, GELU_TANH, SWIGLU };

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float distribution(float x) { return 0.5f * (1.0f + erff(x * ROOT_HALF)); }
__device__ __forceinline__ float tanh_gate(float x) { return sigmoid(x * (TWICE + CUBIC * TWICE * x * x)); }

template <Kind kind> __device__ __forceinline__ float value_of(float x) {
    // NaN stays NaN.
    if (kind == RELU) return x > 0.0f ? x : 0.0f * x;
    return x * (kind == GELU_ERF ? distribution(x) : tanh_gate(x));
}

template <Kind kind> __device__ __forceinline__ float slope_of(float x) {
    if (kind == RELU) return x > 0.0f ? 1.0f : 0.0f * x;
    if (kind == GELU_ERF) return distribution(x) + x * DENSITY * expf(-0.5f * x * x);
    const float gate = tanh_gate(x);
    return gate + x * gate * (1.0f - gate) * (TWICE + 3.0f * CUBIC * TWICE * x * x);
}

// f of eight values of which only the launch knows the kind, or f' of them; a gate has neither.
template <Kind kind, bool SLOPE> __device__ __forceinline__ octet each_of(const octet& x) {
    octet y;
    for (u32 i = 0; i < 8; ++i) y.at[i] = SLOPE ? slope_of<kind>(x.at[i]) : value_of<kind>(x.at[i]);
    return y;
}

template <bool SLOPE> __device__ __forceinline__ octet each_of(u32 kind, const octet& x) {
    switch (kind) {
    case RELU: return each_of<RELU, SLOPE>(x);
    case GELU_ERF: return each_of<GELU_ERF, SLOPE>(x);
    default: return each_of<GELU_TANH, SLOPE>(x);
    }
}
