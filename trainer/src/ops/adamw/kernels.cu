// The gradient's norm, what clipping makes of it, and the update: the equations of ops/adamw.rs.
//
// With g the clipped gradient, t the update's number and d the weight decay of what decays:
//   m = m + (1 - b1)(g - m), v = b2 v + (1 - b2) g^2,
//   w = (1 - lr d) w - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps);
// Adam, whose decay is coupled, has g + d w for g and no other decay.
//
// The three factors that change from update to update are the clock's, written by the host: keep = 1 - lr d,
// root = 1 / sqrt(1 - b2^t), size = -lr / (1 - b1^t). Its scale is written here.

constexpr u32 THREADS = 256;

// The sum over a block of `x`, which thread 0 gets, in a tree.
__device__ __forceinline__ double block_total(double x, double* shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (u32 apart = blockDim.x / 2; apart > 0; apart /= 2) {
        if (threadIdx.x < apart) shared[threadIdx.x] += shared[threadIdx.x + apart];
        __syncthreads();
    }
    return shared[0];
}

// Block `b` of `gridDim.x`, which follows from `count`, squares octets `256 b`, `256 (b + gridDim.x)`, ... and their
// neighbours.
// registers: 48
extern "C" __global__ void __launch_bounds__(THREADS)
    gradient_squares(const float* __restrict__ grads, double* __restrict__ partials, u64 count) {
    __shared__ double shared[THREADS];
    const bool aligned = aligned16(grads, 8);
    double sum = 0.0;
    for (u64 at = (u64(blockIdx.x) * THREADS + threadIdx.x) * 8; at < count; at += u64(gridDim.x) * THREADS * 8) {
        const octet g = read8(grads, at, count, aligned);
        float squares = 0.0f;
        for (u32 i = 0; i < 8; ++i) squares += g.at[i] * g.at[i];
        sum += squares;
    }
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// into = the sum of the partial ones.
// registers: 32
extern "C" __global__ void __launch_bounds__(THREADS)
    gradient_norm(const double* __restrict__ partials, u32 count, double* __restrict__ into) {
    __shared__ double shared[THREADS];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
    sum = block_total(sum, shared);
    if (threadIdx.x == 0) *into = sum;
}

// What becomes of a step: `record` gets its mean loss and its gradient's norm, and, once one of them was not finite, the
// update's number, after which neither the record nor any weight changes. A gradient longer than `clip` is scaled down to
// it; a `clip` of 0 does not clip.
// registers: 32
extern "C" __global__ void __launch_bounds__(32)
    gradient_judge(const double* __restrict__ loss, const double* __restrict__ squares, u64 rows, double clip,
                   double eps, double* __restrict__ record, Clock* __restrict__ clock) {
    if (threadIdx.x > 0) return;
    if (record[2] == 0.0) {
        const double mean = *loss / double(rows), norm = sqrt(*squares);
        record[0] = mean;
        record[1] = norm;
        // A difference with itself is zero, but for what is not finite.
        if (mean - mean != 0.0 || norm - norm != 0.0) record[2] = double(clock->update);
        const double scale = clip > 0.0 ? clip / (norm + eps) : 1.0;
        clock->scale = scale < 1.0 ? float(scale) : 1.0f;
    }
    if (record[2] != 0.0) clock->update = 0;
}

// Kinds of runs of parameters in the arena: what never decays, vectors, matrices.
constexpr u32 VECTOR = 1, MATRIX = 2;

// Where run `i` begins; three words a run: its first element, low half first, and its kind.
__device__ __forceinline__ u64 run_begin(const u32* runs, u32 i) { return runs[3 * i] | u64(runs[3 * i + 1]) << 32; }

// One update of all `count` parameters, eight a thread; the gradient is zero afterwards. `working` gets the weights as the
// products read them, or is none. Where the clock says update 0 only the gradient is zeroed.
// registers: 80
extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_update(float* __restrict__ weights, value* __restrict__ working, float* __restrict__ first,
                 float* __restrict__ second, float* __restrict__ grads, u64 count, const u32* __restrict__ runs,
                 u32 run_count, u32 decay_vectors, float decay, float one_less_beta1, float beta2, float one_less_beta2,
                 float eps, const Clock* __restrict__ clock) {
    const u64 block = u64(blockIdx.x) * THREADS * 8, at = block + threadIdx.x * 8;
    if (at >= count) return;
    const bool aligned = aligned16(weights, 8) && aligned16(first, 8) && aligned16(second, 8) && aligned16(grads, 8);
    const octet gradient = read8(grads, at, count, aligned);
    write8(grads, at, count, aligned, octet{});
    if (clock->update == 0) return;

    // The run of the block's first element, then of the thread's.
    u32 run = 0, above = run_count;
    while (above - run > 1) {
        const u32 middle = run + (above - run) / 2;
        if (run_begin(runs, middle) <= block) {
            run = middle;
        } else {
            above = middle;
        }
    }
    u32 decaying = 0;
    for (u32 i = 0; i < 8; ++i) {
        while (run + 1 < run_count && run_begin(runs, run + 1) <= at + i) ++run;
        const u32 kind = runs[3 * run + 2];
        decaying |= u32(kind == MATRIX || (kind == VECTOR && decay_vectors)) << i;
    }

    const float scale = clock->scale, keep = clock->keep, root = clock->root, size = clock->size;
    octet w = read8(weights, at, count, aligned), m = read8(first, at, count, aligned);
    octet v = read8(second, at, count, aligned);
    for (u32 i = 0; i < 8; ++i) {
        const bool decays = decaying >> i & 1;
        // `decay` is that of coupled decay alone; `keep` is then one.
        const float g = fmaf(decays ? decay : 0.0f, w.at[i], gradient.at[i] * scale);
        m.at[i] = fmaf(one_less_beta1, g - m.at[i], m.at[i]);
        v.at[i] = fmaf(one_less_beta2 * g, g, v.at[i] * beta2);
        const float size_of = fmaf(sqrtf(v.at[i]), root, eps);
        w.at[i] = fmaf(size, m.at[i] / size_of, w.at[i] * (decays ? keep : 1.0f));
    }
    write8(weights, at, count, aligned, w);
    write8(first, at, count, aligned, m);
    write8(second, at, count, aligned, v);
    if (working != nullptr) write8(working, at, count, aligned16(working, 8), w);
}

// working = the weights as the products read them.
// registers: 32
extern "C" __global__ void __launch_bounds__(THREADS)
    working_refresh(const float* __restrict__ weights, value* __restrict__ working, u64 count) {
    const u64 at = (u64(blockIdx.x) * THREADS + threadIdx.x) * 8;
    if (at >= count) return;
    write8(working, at, count, aligned16(working, 8), read8(weights, at, count, aligned16(weights, 8)));
}
