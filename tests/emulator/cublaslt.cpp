// An emulated cuBLASLt, libcublasLt.so.13: products by the documented meaning of its descriptors, in plain loops.
//
// Matrices are counted by columns: element (i, j) stands at i + j * leading dimension. What is done is
// D = alpha op(A) op(B) + beta C, then a bias that is as long as D has rows, then an epilogue: GELU in the form of the
// hyperbolic tangent, its argument stored beside D, or the product with the slope of that GELU at what is stored there.
// The matrix beside D has a leading dimension of its own, a multiple of eight. Types and attributes that the trainer has
// no use for are refused as the library refuses what it cannot do. It claims to need the alignment that it was told of,
// that whole rows of bf16 are multiples of four bytes, and with a GELU sums of eight terms or more: otherwise it does not
// support a product. What is not documented is taken at its worst: GELU is that of the sum before it is rounded, and its
// tangent is as rough as the device's own instruction for it, 2^-11 (PTX manual, tanh.approx.f32).
// (cuBLAS documentation, "Using the cuBLASLt API".)
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

extern "C" int cuLaunchHostFunc(void* stream, void (*work)(void*), void* told);

namespace {

enum Status { Success = 0, NotInitialized = 1, InvalidValue = 7, NotSupported = 15 };
enum Type { F32 = 0, Bf16 = 14 };
constexpr int compute_f32 = 68;
constexpr int64_t wanted_workspace = 1 << 20;
constexpr uint64_t chosen = 0x6c656374;
enum Epilogue { Plain = 1, Bias = 4, GeluAux = 160, GeluAuxBias = 164, GeluSlope = 192 };
constexpr uint64_t fewest_terms_of_gelu = 8;

struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
};

struct Description {
    int32_t transposed[2] = {0, 0};
    uint32_t epilogue = 1;
    const void* bias = nullptr;
    void* beside = nullptr;
    int64_t beside_leading = 0;
    int32_t beside_type = -1;

    bool has_bias() const { return epilogue == Bias || epilogue == GeluAuxBias; }
    bool has_beside() const { return epilogue == GeluAux || epilogue == GeluAuxBias || epilogue == GeluSlope; }
};

struct Preference {
    uint64_t workspace = 0;
    uint32_t reductions = 7;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

struct Algorithm {
    uint64_t mark;
    uint32_t alignment[4];
    uint64_t rest[5];
};
static_assert(sizeof(Algorithm) == 64, "as in cublasLt.h");

struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

struct Work {
    Description description;
    Layout a, b, c, d;
    const void *at_a, *at_b, *at_c;
    void* at_d;
    float alpha, beta;
};

float read(const void* at, const Layout& layout, uint64_t i, uint64_t j) {
    const uint64_t place = i + j * uint64_t(layout.leading);
    if (layout.type == F32) return static_cast<const float*>(at)[place];
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(at)[place]) << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

void write(void* at, const Layout& layout, uint64_t i, uint64_t j, float value) {
    const uint64_t place = i + j * uint64_t(layout.leading);
    if (layout.type == F32) {
        static_cast<float*>(at)[place] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value == value) bits += 0x7fff + ((bits >> 16) & 1);
    static_cast<uint16_t*>(at)[place] = uint16_t(bits >> 16);
}

// op(X)(i, j).
float turned(const void* at, const Layout& layout, bool transposed, uint64_t i, uint64_t j) {
    return transposed ? read(at, layout, j, i) : read(at, layout, i, j);
}

// The hyperbolic tangent with eleven bits, the sign of its error turning from one argument to the next.
float tangent(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return tanhf(x) * (1 + (bits & 1 ? 1 : -1) * (1.0f / 2048));
}

constexpr float steepness = 0.7978845608f, cubic = 0.044715f;

float gelu(float x) { return 0.5f * x * (1 + tangent(steepness * (x + cubic * x * x * x))); }

float gelu_slope(float x) {
    const float t = tangent(steepness * (x + cubic * x * x * x));
    return 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * steepness * (1 + 3 * cubic * x * x);
}

void multiply(void* told) {
    // A recorded product is carried out many times, so what it was told is kept.
    const Work* work = static_cast<const Work*>(told);
    const Description& description = work->description;
    const uint64_t inner = description.transposed[0] ? work->a.rows : work->a.columns;
    const Layout one_column{work->d.type, work->d.rows, 1, int64_t(work->d.rows)};
    const Layout beside{work->d.type, work->d.rows, work->d.columns, description.beside_leading};
    for (uint64_t j = 0; j < work->d.columns; ++j) {
        for (uint64_t i = 0; i < work->d.rows; ++i) {
            float sum = 0;
            for (uint64_t k = 0; k < inner; ++k) {
                sum += turned(work->at_a, work->a, description.transposed[0], i, k) *
                       turned(work->at_b, work->b, description.transposed[1], k, j);
            }
            sum *= work->alpha;
            // Where beta is zero, C need not hold numbers.
            if (work->beta != 0) sum += work->beta * read(work->at_c, work->c, i, j);
            if (description.has_bias()) sum += read(description.bias, one_column, i, 0);
            if (description.epilogue == GeluSlope) {
                sum *= gelu_slope(read(description.beside, beside, i, j));
            } else if (description.has_beside()) {
                write(description.beside, beside, i, j, sum);
                sum = gelu(sum);
            }
            write(work->at_d, work->d, i, j, sum);
        }
    }
}

bool whole(const Layout& layout) {
    return layout.leading >= int64_t(layout.rows) && layout.rows > 0 && layout.columns > 0;
}

// Why a product cannot be done.
int refused(const Description& of, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    const uint64_t rows = of.transposed[0] ? a.columns : a.rows, inner = of.transposed[0] ? a.rows : a.columns;
    const uint64_t also_inner = of.transposed[1] ? b.columns : b.rows, columns = of.transposed[1] ? b.rows : b.columns;
    if (!whole(a) || !whole(b) || !whole(c) || !whole(d)) return InvalidValue;
    if (inner != also_inner || d.rows != rows || d.columns != columns || c.rows != rows || c.columns != columns) {
        return InvalidValue;
    }
    if (a.type != b.type || c.type != d.type || (a.type == F32 && d.type != F32)) return NotSupported;
    for (const Layout& layout : {a, b, c, d}) {
        if (layout.type != F32 && layout.type != Bf16) return NotSupported;
        if (layout.type == Bf16 && layout.leading % 2) return NotSupported;
    }
    if (of.has_bias() && of.bias == nullptr) return InvalidValue;
    if (of.has_beside()) {
        if (of.beside == nullptr || uintptr_t(of.beside) % 16 || of.beside_leading < int64_t(d.rows)) return InvalidValue;
        if (of.beside_leading % 8 || (of.beside_type != -1 && of.beside_type != d.type)) return InvalidValue;
        if (inner < fewest_terms_of_gelu) return NotSupported;
    }
    return of.epilogue == Plain || of.epilogue == Bias || of.has_beside() ? Success : NotSupported;
}

template <class T> int take(T& to, const void* from, size_t bytes) {
    if (bytes != sizeof(T)) return InvalidValue;
    memcpy(&to, from, bytes);
    return Success;
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }

int cublasLtCreate(void** handle) {
    *handle = new char;
    return Success;
}

int cublasLtDestroy(void* handle) {
    delete static_cast<char*>(handle);
    return Success;
}

int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = new Layout{type, rows, columns, leading};
    return Success;
}

int cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return Success;
}

int cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    if (compute != compute_f32 || scale != F32) return NotSupported;
    *description = new Description;
    return Success;
}

int cublasLtMatmulDescDestroy(Description* description) {
    delete description;
    return Success;
}

int cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
    case 3: return take(description->transposed[0], from, bytes);
    case 4: return take(description->transposed[1], from, bytes);
    case 7: return take(description->epilogue, from, bytes);
    case 8: return take(description->bias, from, bytes);
    case 11: return take(description->beside, from, bytes);
    case 12: return take(description->beside_leading, from, bytes);
    case 22: return take(description->beside_type, from, bytes);
    default: return NotSupported;
    }
}

int cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return Success;
}

int cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return Success;
}

int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* from, size_t bytes) {
    switch (attribute) {
    case 1: return take(preference->workspace, from, bytes);
    case 3: return take(preference->reductions, from, bytes);
    case 5: case 6: case 7: case 8: return take(preference->alignment[attribute - 5], from, bytes);
    default: return NotSupported;
    }
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, Description* description, Layout* a, Layout* b, Layout* c, Layout* d,
                                   Preference* preference, int asked, Heuristic* found, int* count) {
    if (!handle || asked < 1) return InvalidValue;
    *count = 0;
    if (const int code = refused(*description, *a, *b, *c, *d)) return code;
    if (preference->workspace < uint64_t(wanted_workspace)) return NotSupported;
    *found = Heuristic{};
    found->algorithm.mark = chosen;
    memcpy(found->algorithm.alignment, preference->alignment, sizeof preference->alignment);
    found->workspace = wanted_workspace;
    *count = 1;
    return Success;
}

int cublasLtMatmul(void* handle, Description* description, const float* alpha, const void* at_a, Layout* a, const void* at_b,
                   Layout* b, const float* beta, const void* at_c, Layout* c, void* at_d, Layout* d,
                   const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle || !algorithm || algorithm->mark != chosen) return InvalidValue;
    if (const int code = refused(*description, *a, *b, *c, *d)) return code;
    if (!workspace || workspace_bytes < size_t(wanted_workspace)) return InvalidValue;
    const void* places[4] = {at_a, at_b, at_c, at_d};
    for (int i = 0; i < 4; ++i) {
        if (uintptr_t(places[i]) % algorithm->alignment[i]) return InvalidValue;
    }
    if (at_c == at_d && memcmp(c, d, sizeof *c)) return InvalidValue;
    Work* work = new Work{*description, *a, *b, *c, *d, at_a, at_b, at_c, at_d, *alpha, *beta};
    return cuLaunchHostFunc(stream, multiply, work) ? 13 : Success;
}

}  // extern "C"
