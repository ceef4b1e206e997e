// Kernels by which the emulator itself is tested: what they do right, and what must be noticed.

// Shared memory of a template is its block's too.
template <u32 count> __device__ void turn(u32* words) {
    __shared__ u32 room[count];
    if (threadIdx.x < count) room[threadIdx.x] = words[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < count) words[threadIdx.x] = room[count - 1 - threadIdx.x];
    __syncthreads();
}

// Each block turns its stretch round through static and dynamic shared memory.
extern "C" __global__ void __launch_bounds__(256) reverse(const u32* from, u32* to) {
    __shared__ u32 fixed[256];
    DYNAMIC_SHARED(u32, given);
    const u32 base = blockIdx.x * blockDim.x;
    fixed[threadIdx.x] = from[base + threadIdx.x];
    __syncthreads();
    given[threadIdx.x] = fixed[blockDim.x - 1 - threadIdx.x];
    __syncthreads();
    turn<32>(given);
    turn<32>(given);
    to[base + threadIdx.x] = given[threadIdx.x];
}

// Sums, maxima, shuffles of part of a warp, and votes.
extern "C" __global__ void together(const float* from, float* sums, u32* words) {
    __shared__ float room[32];
    const float x = from[threadIdx.x];
    const float sum = block_sum(x, room), most = block_max(x, room);
    if (threadIdx.x == 0) {
        sums[0] = sum;
        sums[1] = most;
    }
    if (lane() < 16) words[threadIdx.x] = __shfl_down_sync(0x0000ffffu, threadIdx.x, 1, 16);
    if (lane() >= 16) words[threadIdx.x] = __shfl_sync(0xffff0000u, threadIdx.x, 16 + 3);
    if (threadIdx.x % 32 == 0) words[blockDim.x + warp()] = 0;
    const u32 votes = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
    if (lane() == 5) words[blockDim.x + warp()] = votes;
}

// c (16 x 8) = a (16 x 16) b (16 x 8), both by rows in bf16: through ldmatrix, as attention and products do it.
extern "C" __global__ void __launch_bounds__(32) product(const bf16* a, const bf16* b, float* c) {
    __shared__ __align__(16) bf16 left[16][24], right[16][24];
    const u32 row = lane() / 2, half = lane() % 2 * 8;
    copy_async16(&left[row][half], a + row * 16 + half, true);
    copy_async_commit();
    copy_async16(&right[row][half], b + row * 8, half == 0);
    copy_async_commit();
    copy_async_wait<1>();
    __syncwarp();
    u32 x[4], y[4];
    load_matrix_x4(x, &left[lane() % 16][lane() / 16 * 8]);
    copy_async_wait<0>();
    __syncwarp();
    load_matrix_x4_transposed(y, &right[lane() % 16][lane() / 16 * 8]);
    float d[4] = {0, 0, 0, 0};
    const u32 z[2] = {y[0], y[1]};
    mma_bf16(d, x, z);
    for (u32 i = 0; i < 4; ++i) c[(lane() / 4 + 8 * (i / 2)) * 8 + 2 * (lane() % 4) + i % 2] = d[i];
    // What lay outside came as zeros.
    if (y[2] != 0 || y[3] != 0) c[0] = -1.0f;
}

// The counter's words of `blocks` blocks, and rounding there and back.
extern "C" __global__ void words(u64 seed, u64 step, u64 first, u32* to, const float* from, float* rounded, u32* packed) {
    const words4 four = draws(seed, PURPOSE_DROPOUT, step, first + threadIdx.x);
    for (u32 i = 0; i < 4; ++i) to[4 * threadIdx.x + i] = four.at[i];
    rounded[threadIdx.x] = widen(narrow_to<bf16>(from[threadIdx.x]));
    packed[threadIdx.x] = pack_bf16(from[threadIdx.x], 1.0f);
}

// Both kinds of memory in packs of 16 bytes.
extern "C" __global__ void packs(const value* from, value* to, u32 count) {
    for (u32 i = threadIdx.x * pack::count; i < count; i += blockDim.x * pack::count) {
        store16(to + i, load16(from + i));
    }
}

// ---------------------------------------------------------------------------------------------- what must be noticed

extern "C" __global__ void early_end(float* to) {
    if (threadIdx.x == 7) return;
    __syncthreads();
    to[threadIdx.x] = 1.0f;
}

extern "C" __global__ void lost_lane(float* to) {
    if (lane() == 9) return;
    to[threadIdx.x] = warp_sum(1.0f);
}

extern "C" __global__ void beyond(float* to, u32 count) {
    if (threadIdx.x == 0) to[count] = 1.0f;
}

extern "C" __global__ void beyond_shared(float* to) {
    __shared__ float room[33];
    room[threadIdx.x + 2] = 1.0f;
    __syncthreads();
    to[threadIdx.x] = room[threadIdx.x];
}

extern "C" __global__ void beyond_dynamic(float* to, u32 place) {
    DYNAMIC_SHARED(float, room);
    room[threadIdx.x + place] = 1.0f;
    __syncthreads();
    to[threadIdx.x] = room[threadIdx.x];
}

extern "C" __global__ void missed_barrier(u32* to) {
    __shared__ u32 room[64];
    room[threadIdx.x] = threadIdx.x;
    to[threadIdx.x] = room[63 - threadIdx.x];
}

extern "C" __global__ void missed_wait(const float* from, float* to) {
    __shared__ __align__(16) float room[4];
    copy_async16(room, from, true);
    copy_async_commit();
    copy_async_wait<1>();
    to[0] = room[0];
}

extern "C" __global__ void askew(float* to) { store16(to + 1, pack4{{1, 2, 3, 4}}); }
