// What all kernels of attention are told: heads, where they stand, and their noise.

struct Heads {
    u32 sequences, block, heads, kv_heads, size;
    float scale;

    // Widths of a row of the fused projection and of the result.
    __device__ u64 row() const { return u64(heads + 2 * kv_heads) * size; }
    __device__ u64 width() const { return u64(heads) * size; }

    // The first columns of a head's queries, keys and values in the fused projection; the first also in the result.
    __device__ u64 query_column(u32 head) const { return u64(head) * size; }
    __device__ u64 key_column(u32 head) const { return width() + u64(head) * size; }
    __device__ u64 value_column(u32 head) const { return width() + u64(kv_heads + head) * size; }

    // The rows of one window in a matrix of `stride`, as wide as a head, beginning at `column`.
    __device__ Lines lines(const value* matrix, u64 stride, u32 sequence, u64 column) const {
        return Lines(matrix + u64(sequence) * block * stride + column, stride, block, size);
    }
};

// The noise of this site and step; none if `threshold` is zero. Rows are queries of all heads, columns are keys.
struct Noise {
    u64 seed, step, site, first_row;
    u32 threshold;
    float scale;

    __device__ Noise(const Clock* clock, u64 seed, u64 site, u64 first_row, u32 threshold, float scale)
        : seed(seed), step(threshold != 0 ? clock->step : 0), site(site), first_row(first_row), threshold(threshold),
          scale(scale) {}

    // The words of four neighbouring keys.
    __device__ words4 words(u64 row, u32 width, u32 four) const {
        return dropout_words(seed, step, site, first_row + row, width, four);
    }

    __device__ float factor(u32 word) const { return word < threshold ? 0.0f : scale; }
};
