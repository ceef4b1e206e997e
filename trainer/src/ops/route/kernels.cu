// The router of a mixture of experts on a GPU; the equations are those of ops/route.rs.
//
// Forward: `h = W (x u) + e softplus(W_n x)` (route_product, route_choose), `s = softmax(h)` or `sigma(h)`, the `k` best of
// `s + b` with ties to the lower index, `w_i = s_i m_i` or `s_i / (sum_T s) m_i` (route_choose).
// The stable sort by expert is a count. A chunk is 32 rows, and one word of bits says which of them chose an expert. The
// place of an assignment is where its expert begins, and the choices of it in the chunks before (route_scan), and the
// bits before its row (route_place). Rows beyond an expert's capacity are dropped there.
//
// Backward: `d_h` of the weights, the balancing loss and the z-loss (route_logits_backward), `d_x = u (d_h W) + d_n W_n`
// with `d_n = d_h e sigma(W_n x)` (route_input_backward), `d_W = d_h^T (x u)` and `d_W_n = d_n^T x`, slices of rows first
// and then their sum (route_weight_backward, route_weight_sum).
//
// What was asked of each expert: counts, sums of probabilities, entropy and drops, parts of rows first (route_load) and
// then their sum (route_load_sum). Shares of the choices and the shift of the selection bias follow from it on the device.
//
// Everything of the router is f32. A sum's order depends on the sizes alone.

// Rows of a chunk: as many as a word has bits.
constexpr u32 CHUNK = 32;
// Rows of one part of a load.
constexpr u32 PART = 256;
// The place of an assignment that a full expert dropped.
constexpr u32 DROPPED = 0xffffffffu;

__device__ __forceinline__ float negative_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

// A word by its number; a dynamic index would put all four into memory.
__device__ __forceinline__ u32 word_of(const words4& words, u32 index) {
    const u32 low = index & 1 ? words.at[1] : words.at[0], high = index & 1 ? words.at[3] : words.at[2];
    return index & 2 ? high : low;
}

// The factors on eight columns of a row's input; `column` is a multiple of eight.
__device__ __forceinline__ void jitter8(u64 seed, u64 step, u64 site, u64 row, u32 width, u32 column, float reach,
                                        octet& x) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const words4 words = dropout_words(seed, step, site, row, width, column / 4 + half);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) x.at[4 * half + i] *= 1.0f + reach * (2.0f * uniform(words.at[i]) - 1.0f);
    }
}

// One step of the sums below: each of two lanes keeps half of the values and gives the other half.
template <u32 apart> __device__ __forceinline__ void fold(float (&values)[32]) {
    const bool upper = lane() & apart;
#pragma unroll
    for (u32 i = 0; i < apart; ++i) {
        const float kept = upper ? values[i + apart] : values[i], given = upper ? values[i] : values[i + apart];
        values[i] = kept + __shfl_xor_sync(0xffffffffu, given, apart);
    }
}

// The sums over a warp of 32 values a lane: lane `l` gets that of value `l`.
__device__ __forceinline__ float warp_sum32(float (&values)[32]) {
    fold<16>(values);
    fold<8>(values);
    fold<4>(values);
    fold<2>(values);
    fold<1>(values);
    return values[0];
}

// One matrix of logits, `out` `[rows, count]`. A warp takes four rows and eight experts, a lane eight columns of every
// 256. No jitter where `reach` is zero.
// registers: 128
extern "C" __global__ void __launch_bounds__(256, 2)
    route_product(const value* __restrict__ x, const float* __restrict__ weight, float* __restrict__ out, u32 rows,
                  u32 width, u32 count, const Clock* clock, u64 seed, u64 site, u64 first_row, float reach) {
    const u32 first = (blockIdx.x * 8 + warp()) * 4, expert = blockIdx.y * 8;
    if (first >= rows) return;
    const u64 step = clock->step;
    const bool x_aligned = aligned16(x, width), weight_aligned = aligned16(weight, width);
    float sums[32] = {};
    for (u32 column = 8 * lane(); column < width; column += 256) {
        octet xs[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 row = smaller(first + i, rows - 1);
            xs[i] = read8(x + u64(row) * width, column, width, x_aligned);
            if (reach > 0.0f) jitter8(seed, step, site, first_row + row, width, column, reach, xs[i]);
        }
#pragma unroll
        for (u32 e = 0; e < 8; ++e) {
            if (expert + e < count) {
                const octet w = read8(weight + u64(expert + e) * width, column, width, weight_aligned);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
#pragma unroll
                    for (u32 k = 0; k < 8; ++k) sums[8 * i + e] = fmaf(xs[i].at[k], w.at[k], sums[8 * i + e]);
                }
            }
        }
    }
    const float sum = warp_sum32(sums);
    const u32 row = first + lane() / 8, column = expert + lane() % 8;
    if (row < rows && column < count) out[u64(row) * count + column] = sum;
}

// Which experts every row gets and with what weight. `kept` holds the logits and gets the scores, then each row's
// logarithm of the sum and the noise's slope; `scales` is null without noise; `masks` `[count, chunks]` gets the bits.
// A block takes one chunk, a warp four of its rows. Dynamic shared memory: `count` words.
// registers: 64
extern "C" __global__ void __launch_bounds__(256, 2)
    route_choose(float* __restrict__ kept, const float* __restrict__ scales, const float* __restrict__ bias,
                 value* __restrict__ weights, u32* __restrict__ chosen, u32* __restrict__ masks, u32 rows, u32 count,
                 u32 active, u32 shared, u32 sigmoid, u32 renormalised, u32 noisy, const Clock* clock, u64 noise_seed,
                 u64 noise_site, u64 noise_first_row, u64 output_seed, u64 output_site, u64 output_first_row,
                 u32 output_threshold, float output_scale, u64 expert_seed, u64 expert_site, u32 expert_threshold) {
    DYNAMIC_SHARED(u32, bits);
    for (u32 expert = threadIdx.x; expert < count; expert += blockDim.x) bits[expert] = 0;
    __syncthreads();
    const u64 step = clock->step;
    const u32 slots = active + shared;
    bool without = expert_threshold > 0;
    if (without) {
        float left = 0.0f;
        for (u32 expert = lane(); expert < count; expert += 32) {
            const words4 words = dropout_words(expert_seed, step, expert_site, 0, count, expert / 4);
            left += word_of(words, expert % 4) < expert_threshold ? 0.0f : 1.0f;
        }
        without = warp_sum(left) >= float(active);
    }
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = blockIdx.x * CHUNK + warp() * 4 + i;
        if (row >= rows) break;
        float* const scores = kept + u64(row) * count;
        float* const slopes = kept + u64(rows) * count + rows + u64(row) * count;
        float maximum = negative_infinity();
        for (u32 expert = lane(); expert < count; expert += 32) {
            float logit = scores[expert];
            if (noisy) {
                float slope = 0.0f;
                if (scales != nullptr) {
                    // Two words make one normal number (Box and Muller 1958).
                    const words4 words =
                        dropout_words(noise_seed, step, noise_site, noise_first_row + row, 2 * count, expert / 2);
                    const u32 one = expert & 1 ? words.at[2] : words.at[0];
                    const u32 two = expert & 1 ? words.at[3] : words.at[1];
                    const float size = sqrtf(-2.0f * logf(1.0f - uniform(one)));
                    const float normal = size * cosf(6.28318530717958647692f * uniform(two));
                    const float scale = scales[u64(row) * count + expert];
                    logit += normal * (fmaxf(scale, 0.0f) + log1pf(expf(-fabsf(scale))));
                    slope = normal / (1.0f + expf(-scale));
                }
                slopes[expert] = slope;
            }
            if (without) {
                const words4 words = dropout_words(expert_seed, step, expert_site, 0, count, expert / 4);
                if (word_of(words, expert % 4) < expert_threshold) logit = negative_infinity();
            }
            scores[expert] = logit;
            maximum = fmaxf(maximum, logit);
        }
        maximum = warp_max(maximum);
        float sum = 0.0f;
        for (u32 expert = lane(); expert < count; expert += 32) sum += expf(scores[expert] - maximum);
        sum = warp_sum(sum);
        for (u32 expert = lane(); expert < count; expert += 32) {
            const float logit = scores[expert];
            scores[expert] = sigmoid ? 1.0f / (1.0f + expf(-logit)) : expf(logit - maximum) / sum;
        }
        if (lane() == 0) kept[u64(rows) * count + row] = maximum + logf(sum);
        __syncwarp();

        // The next best is the first, by value and then by number, of those after the last one.
        float last_value = 0.0f, chosen_sum = 0.0f;
        u32 last = 0;
        for (u32 slot = 0; slot < active; ++slot) {
            float best_value = negative_infinity();
            u32 best = DROPPED;
            for (u32 expert = lane(); expert < count; expert += 32) {
                float score = scores[expert] + (bias != nullptr ? bias[expert] : 0.0f);
                // What is not a number counts as the worst.
                if (score != score) score = negative_infinity();
                const bool free = slot == 0 || score < last_value || (score == last_value && expert > last);
                if (free && (best == DROPPED || score > best_value)) best_value = score, best = expert;
            }
            for (u32 apart = 16; apart > 0; apart /= 2) {
                const float value = __shfl_xor_sync(0xffffffffu, best_value, apart);
                const u32 other = __shfl_xor_sync(0xffffffffu, best, apart);
                const bool better = value > best_value || (value == best_value && other < best);
                if (other != DROPPED && (best == DROPPED || better)) best_value = value, best = other;
            }
            last_value = best_value;
            last = best;
            chosen_sum += scores[best];
            if (lane() == slot % 32) {
                chosen[u64(row) * slots + slot] = best;
                atomicOr(&bits[best], 1u << (row % CHUNK));
            }
        }
        for (u32 slot = lane(); slot < slots; slot += 32) {
            const u64 at = u64(row) * slots + slot;
            if (slot >= active) {
                chosen[at] = count + slot - active;
                weights[at] = narrow(1.0f);
                continue;
            }
            float weight = scores[chosen[at]];
            if (renormalised) weight /= chosen_sum;
            if (output_threshold > 0) {
                const words4 words =
                    dropout_words(output_seed, step, output_site, output_first_row + row, slots, slot / 4);
                weight *= word_of(words, slot % 4) < output_threshold ? 0.0f : output_scale;
            }
            weights[at] = narrow(weight);
        }
    }
    __syncthreads();
    for (u32 expert = threadIdx.x; expert < count; expert += blockDim.x)
        masks[u64(expert) * gridDim.x + blockIdx.x] = bits[expert];
}

// The sum over the lanes up to and with this one.
__device__ __forceinline__ u32 warp_scan(u32 x) {
    for (u32 apart = 1; apart < 32; apart *= 2) {
        const u32 lower = __shfl_up_sync(0xffffffffu, x, apart);
        if (lane() >= apart) x += lower;
    }
    return x;
}

// How many rows chose an expert in the chunks before each, and in all; a warp takes one expert, a lane four chunks of
// every 128.
// registers: 40
extern "C" __global__ void __launch_bounds__(256)
    route_scan(const u32* __restrict__ masks, u32* __restrict__ before, u32* __restrict__ totals, u32 chunks,
               u32 count) {
    const u32 expert = blockIdx.x * 8 + warp();
    if (expert >= count) return;
    masks += u64(expert) * chunks;
    before += u64(expert) * chunks;
    u32 carried = 0;
    for (u32 first = 0; first < chunks; first += 128) {
        const u32 chunk = first + 4 * lane();
        u32 counts[4], sum = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            counts[i] = chunk + i < chunks ? __popc(masks[chunk + i]) : 0;
            sum += counts[i];
        }
        const u32 scanned = warp_scan(sum);
        u32 next = carried + scanned - sum;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (chunk + i < chunks) before[chunk + i] = next;
            next += counts[i];
        }
        carried += __shfl_sync(0xffffffffu, scanned, 31);
    }
    if (lane() == 0) totals[expert] = carried;
}

// Where each assignment stands once they are sorted by expert, rows in order; a full expert drops what comes later. A
// thread takes one assignment. Dynamic shared memory: one word an expert and one more.
// registers: 40
extern "C" __global__ void __launch_bounds__(256)
    route_place(const u32* __restrict__ chosen, const u32* __restrict__ masks, const u32* __restrict__ before,
                const u32* __restrict__ totals, u32* __restrict__ place, u32* __restrict__ offsets,
                u32* __restrict__ row_of, u32* __restrict__ assignment_of, u32 rows, u32 assignments, u32 chunks,
                u32 count, u32 active, u32 shared, u32 capacity) {
    DYNAMIC_SHARED(u32, begins);
    const u32 experts = count + shared, slots = active + shared;
    if (warp() == 0) {
        u32 carried = 0;
        for (u32 first = 0; first < experts; first += 32) {
            const u32 expert = first + lane();
            const u32 size = expert >= experts ? 0 : expert < count ? smaller(totals[expert], capacity) : rows;
            const u32 scanned = warp_scan(size);
            if (expert < experts) begins[expert] = carried + scanned - size;
            carried += __shfl_sync(0xffffffffu, scanned, 31);
        }
        if (lane() == 0) begins[experts] = carried;
    }
    __syncthreads();
    if (blockIdx.x == 0)
        for (u32 expert = threadIdx.x; expert <= experts; expert += blockDim.x) offsets[expert] = begins[expert];
    const u32 assignment = blockIdx.x * blockDim.x + threadIdx.x;
    if (assignment >= assignments) return;
    const u32 row = assignment / slots, expert = chosen[assignment];
    u32 rank = row;
    if (expert < count) {
        const u64 chunk = u64(expert) * chunks + row / CHUNK;
        rank = before[chunk] + __popc(masks[chunk] & ((1u << (row % CHUNK)) - 1));
        if (rank >= capacity) {
            place[assignment] = DROPPED;
            return;
        }
    }
    const u32 to = begins[expert] + rank;
    place[assignment] = to;
    row_of[to] = row;
    assignment_of[to] = assignment;
}

// The gradient of the logits, and with noise that of its scales; `shares` is null without a balancing loss. A warp takes
// one row.
// registers: 64
extern "C" __global__ void __launch_bounds__(256, 4)
    route_logits_backward(const float* __restrict__ kept, const u32* __restrict__ chosen,
                          const value* __restrict__ d_weights, const float* __restrict__ shares,
                          float* __restrict__ d_logits, float* __restrict__ d_scales, u32 rows, u32 count, u32 active,
                          u32 slots, u32 sigmoid, u32 renormalised, float factor, float z_factor, const Clock* clock,
                          u64 seed, u64 site, u64 first_row, u32 threshold, float scale) {
    const u32 row = blockIdx.x * 8 + warp();
    if (row >= rows) return;
    const u64 step = clock->step;
    const float* const scores = kept + u64(row) * count;
    const float log_sum = kept[u64(rows) * count + row];
    const float* const slopes = kept + u64(rows) * count + rows + u64(row) * count;
    chosen += u64(row) * slots;
    d_weights += u64(row) * slots;
    const auto through = [&](u32 slot) {
        float d = widen(d_weights[slot]);
        if (threshold > 0) {
            const words4 words = dropout_words(seed, step, site, first_row + row, slots, slot / 4);
            d *= word_of(words, slot % 4) < threshold ? 0.0f : scale;
        }
        return d;
    };
    float sum = 1.0f;
    if (renormalised) {
        sum = 0.0f;
        for (u32 slot = lane(); slot < active; slot += 32) sum += scores[chosen[slot]];
        sum = warp_sum(sum);
    }
    float mixed = 0.0f;
    for (u32 slot = lane(); slot < active; slot += 32) mixed += through(slot) * (scores[chosen[slot]] / sum);
    mixed = warp_sum(mixed);
    float all = 1.0f, shared_mix = 0.0f;
    if (shares != nullptr) {
        if (sigmoid) {
            all = 0.0f;
            for (u32 expert = lane(); expert < count; expert += 32) all += scores[expert];
            all = warp_sum(all);
        }
        for (u32 expert = lane(); expert < count; expert += 32) shared_mix += scores[expert] / all * shares[expert];
        shared_mix = warp_sum(shared_mix);
    }
    for (u32 expert = lane(); expert < count; expert += 32) {
        const float score = scores[expert];
        float g = 0.0f;
        bool taken = false;
        for (u32 slot = 0; slot < active; ++slot) {
            if (chosen[slot] == expert) g = through(slot), taken = true;
        }
        float d = 0.0f;
        if (!renormalised) {
            d = sigmoid ? g * score * (1.0f - score) : score * (g - mixed);
        } else if (taken) {
            d = score / sum * (g - mixed);
            if (sigmoid) d *= 1.0f - score;
        }
        if (shares != nullptr) {
            const float reach = sigmoid ? score * (1.0f - score) / all : score;
            d += factor * reach * (shares[expert] - shared_mix);
        }
        if (z_factor > 0.0f) {
            // `h = ln(s / (1 - s))`, which is never above the logarithm of the sum.
            const float share =
                sigmoid ? expf(fminf(logf(score / (1.0f - score)), log_sum) - log_sum) : score;
            d += z_factor * log_sum * share;
        }
        d_logits[u64(row) * count + expert] = d;
        if (d_scales != nullptr) d_scales[u64(row) * count + expert] = d * slopes[expert];
    }
}

// Adds `d W` of four rows and eight columns to `sums`, experts in order.
__device__ __forceinline__ void add_rows_product(const float* d, const float* weight, const u32 (&rows)[4], u32 count,
                                                 u32 column, u32 width, bool aligned, octet (&sums)[4]) {
    for (u32 expert = 0; expert < count; ++expert) {
        const octet w = read8(weight + u64(expert) * width, column, width, aligned);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float factor = d[u64(rows[i]) * count + expert];
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sums[i].at[k] = fmaf(factor, w.at[k], sums[i].at[k]);
        }
    }
}

// The gradient of the router's input, set or added. A thread takes four rows and eight columns; `noise` is null without
// noise. Blocks: rows / 32 along x, columns / 256 along y.
// registers: 128
extern "C" __global__ void __launch_bounds__(256)
    route_input_backward(const float* __restrict__ d_logits, const float* __restrict__ d_scales,
                         const float* __restrict__ weight, const float* __restrict__ noise, value* d_x, u32 add,
                         u32 rows, u32 width, u32 count, const Clock* clock, u64 seed, u64 site, u64 first_row,
                         float reach) {
    const u32 first = (blockIdx.x * 8 + warp()) * 4, column = blockIdx.y * 256 + 8 * lane();
    if (first >= rows || column >= width) return;
    u32 row_numbers[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) row_numbers[i] = smaller(first + i, rows - 1);
    octet sums[4] = {};
    add_rows_product(d_logits, weight, row_numbers, count, column, width, aligned16(weight, width), sums);
    if (reach > 0.0f) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i)
            jitter8(seed, clock->step, site, first_row + row_numbers[i], width, column, reach, sums[i]);
    }
    if (noise != nullptr)
        add_rows_product(d_scales, noise, row_numbers, count, column, width, aligned16(noise, width), sums);
    const bool aligned = aligned16(d_x, width);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        if (first + i >= rows) break;
        value* const to = d_x + u64(first + i) * width;
        if (add) {
            const octet before = read8(to, column, width, aligned);
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sums[i].at[k] += before.at[k];
        }
        write8(to, column, width, aligned, sums[i]);
    }
}

// `d^T (x u)` of one slice of rows: `partial` `[slices, count, width]`, or added to `partial` where there is one slice. A
// thread takes eight columns and eight experts. Blocks: columns / 256 and experts / 8 flat along x, warps; slices along y.
// registers: 128
extern "C" __global__ void __launch_bounds__(128)
    route_weight_backward(const float* __restrict__ d, const value* __restrict__ x, float* partial, u32 add, u32 rows,
                          u32 slice, u32 width, u32 count, const Clock* clock, u64 seed, u64 site, u64 first_row,
                          float reach) {
    const u32 stretches = (width + 255) / 256, work = blockIdx.x * 4 + warp();
    const u32 expert = work / stretches * 8, column = work % stretches * 256 + 8 * lane();
    if (expert >= count || column >= width) return;
    const u64 step = clock->step;
    const bool aligned = aligned16(x, width);
    const u32 begin = blockIdx.y * slice, end = smaller(begin + slice, rows);
    float sums[8][8] = {};
#pragma unroll 4
    for (u32 row = begin; row < end; ++row) {
        octet xs = read8(x + u64(row) * width, column, width, aligned);
        if (reach > 0.0f) jitter8(seed, step, site, first_row + row, width, column, reach, xs);
#pragma unroll
        for (u32 e = 0; e < 8; ++e) {
            const float factor = expert + e < count ? d[u64(row) * count + expert + e] : 0.0f;
#pragma unroll
            for (u32 k = 0; k < 8; ++k) sums[e][k] = fmaf(factor, xs.at[k], sums[e][k]);
        }
    }
#pragma unroll
    for (u32 e = 0; e < 8; ++e) {
        if (expert + e >= count) break;
        float* const to = partial + (u64(blockIdx.y) * count + expert + e) * width + column;
#pragma unroll
        for (u32 k = 0; k < 8; ++k)
            if (column + k < width) to[k] = add ? to[k] + sums[e][k] : sums[e][k];
    }
}

// Adds the slices, in order, to a gradient of `len` values. A block takes 32 values; each of its eight warps sums every
// eighth slice.
// registers: 32
extern "C" __global__ void __launch_bounds__(256)
    route_weight_sum(const float* __restrict__ partial, float* __restrict__ grads, u32 slices, u32 len) {
    __shared__ float sums[8][32];
    const u32 at = blockIdx.x * 32 + lane();
    float sum = 0.0f;
    if (at < len)
        for (u32 slice = warp(); slice < slices; slice += 8) sum += partial[u64(slice) * len + at];
    sums[warp()][lane()] = sum;
    __syncthreads();
    if (warp() == 0 && at < len) {
        for (u32 other = 1; other < 8; ++other) sum += sums[other][lane()];
        grads[at] += sum;
    }
}

// What the first `rows` rows asked of each expert, by parts of 256 rows: `partial` `[parts, 2 count + 2]` gets counts,
// sums of probabilities, entropy and drops. `sides` is the power of two, at most 256, from which on all experts fit.
// registers: 64
extern "C" __global__ void __launch_bounds__(256)
    route_load(const float* __restrict__ kept, const u32* __restrict__ masks, const u32* __restrict__ place,
               double* __restrict__ partial, u32 rows, u32 chunks, u32 count, u32 active, u32 slots, u32 sides) {
    __shared__ float shares[PART];
    __shared__ double sums[256];
    const u32 begin = blockIdx.x * PART, size = smaller(PART, rows - begin);
    partial += u64(blockIdx.x) * (2 * count + 2);
    for (u32 expert = threadIdx.x; expert < count; expert += blockDim.x) {
        u32 chosen = 0;
        for (u32 first = 0; first < size; first += CHUNK) {
            u32 bits = masks[u64(expert) * chunks + (begin + first) / CHUNK];
            if (size - first < CHUNK) bits &= (1u << (size - first)) - 1;
            chosen += __popc(bits);
        }
        partial[expert] = double(chosen);
    }
    double entropy = 0.0;
    for (u32 row = warp(); row < size; row += 8) {
        const float* const scores = kept + u64(begin + row) * count;
        float sum = 0.0f;
        for (u32 expert = lane(); expert < count; expert += 32) sum += scores[expert];
        sum = warp_sum(sum);
        if (lane() == 0) shares[row] = 1.0f / sum;
        for (u32 expert = lane(); expert < count; expert += 32) {
            const float probability = scores[expert] / sum;
            if (probability > 0.0f) entropy -= double(probability * logf(probability));
        }
    }
    u32 dropped = 0;
    for (u32 i = threadIdx.x; i < size * active; i += blockDim.x)
        dropped += place[u64(begin + i / active) * slots + i % active] == DROPPED;
    sums[threadIdx.x] = entropy;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (u32 i = 1; i < 256; ++i) entropy += sums[i];
        partial[2 * count] = entropy;
    }
    __syncthreads();
    sums[threadIdx.x] = double(dropped);
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (u32 i = 0; i < 256; ++i) all += sums[i];
        partial[2 * count + 1] = all;
    }
    // Experts side by side, and as many rows at once as fit beside them.
    const u32 groups = 256 / sides, side = threadIdx.x % sides, group = threadIdx.x / sides;
    for (u32 first = 0; first < count; first += sides) {
        double sum = 0.0;
        if (first + side < count)
            for (u32 row = group; row < size; row += groups)
                sum += double(kept[u64(begin + row) * count + first + side] * shares[row]);
        __syncthreads();
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (group == 0 && first + side < count) {
            for (u32 other = 1; other < groups; ++other) sum += sums[other * sides + side];
            partial[count + first + side] = sum;
        }
    }
}

// Adds the parts, in order, to a load of `len` numbers.
// registers: 40
extern "C" __global__ void __launch_bounds__(256)
    route_load_sum(const double* __restrict__ partial, double* __restrict__ load, u32 parts, u32 len) {
    const u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= len) return;
    double sum = 0.0;
    for (u32 part = 0; part < parts; ++part) sum += partial[u64(part) * len + at];
    load[at] += sum;
}

// The sum of a load's counts, which are whole numbers, so that no order changes it. One block of 256 threads.
__device__ __forceinline__ double sum_counts(const double* load, u32 count, double* sums) {
    double sum = 0.0;
    for (u32 expert = threadIdx.x; expert < count; expert += 256) sum += load[expert];
    sums[threadIdx.x] = sum;
    __syncthreads();
    sum = 0.0;
    for (u32 i = 0; i < 256; ++i) sum += sums[i];
    return sum;
}

// Each expert's share of all choices.
// registers: 40
extern "C" __global__ void __launch_bounds__(256)
    route_shares(const double* __restrict__ load, float* __restrict__ shares, u32 count) {
    __shared__ double sums[256];
    const double all = sum_counts(load, count, sums);
    for (u32 expert = threadIdx.x; expert < count; expert += 256)
        shares[expert] = all > 0.0 ? float(load[expert] / all) : 0.0f;
}

// Moves the selection bias of an expert below the mean load up by `rate`, and of one above it down
// (Wang et al. 2024, algorithm 1); nothing where the third number of `record` is not zero.
// registers: 40
extern "C" __global__ void __launch_bounds__(256)
    route_shift(const double* __restrict__ load, const double* __restrict__ record, float* __restrict__ bias, u32 count,
                float rate) {
    __shared__ double sums[256];
    if (record[2] != 0.0) return;
    const double mean = sum_counts(load, count, sums) / double(count);
    for (u32 expert = threadIdx.x; expert < count; expert += 256) {
        const double asked = load[expert];
        bias[expert] += asked < mean ? rate : asked > mean ? -rate : 0.0f;
    }
}
