// Rotary positions: the equations of ops/rotary.rs.
//
// Forward, with a = p base^(-2i / size) for place p and pair i < size / 2 of a head:
//   y_i = x_i cos a - x_(i + size/2) sin a, y_(i + size/2) = x_(i + size/2) cos a + x_i sin a; values pass.
// Backward: the rotation by -a, which `sign` says.

constexpr u32 THREADS = 256;

// Thread `t` has eight pairs of a head that turns, or eight values that pass; `turning` heads of `size` stand before
// `passing` values. `table` `[block, size]` has the cosines of a place, then its sines.
// registers: 56
extern "C" __global__ void __launch_bounds__(THREADS)
    rotate(const float* __restrict__ table, const value* __restrict__ from, value* __restrict__ to, u32 rows, u32 block,
           u32 turning, u32 size, u32 passing, float sign) {
    const u32 half = size / 2, octets = (half + 7) / 8, turns = turning * octets, each = turns + (passing + 7) / 8;
    const u32 item = blockIdx.x * THREADS + threadIdx.x, row = item / each, part = item % each;
    if (row >= rows) return;
    const u64 begin = u64(row) * (turning * size + passing);
    if (part >= turns) {
        const u64 at = begin + turning * size;
        const u32 column = (part - turns) * 8;
        const bool aligned = aligned16(from + at, 8) && aligned16(to + at, 8);
        write8(to + at, column, passing, aligned, read8(from + at, column, passing, aligned));
        return;
    }
    const u32 pair = part % octets * 8;
    const u64 low = begin + part / octets * size, high = low + half;
    const bool aligned = aligned16(from + low, half) && aligned16(to + low, half);
    const float* const cosines = table + u64(row % block) * size;
    const bool aligned_table = aligned16(cosines, half);
    const octet cosine = read8(cosines, pair, half, aligned_table), sine = read8(cosines + half, pair, half, aligned_table);
    const octet x_low = read8(from + low, pair, half, aligned), x_high = read8(from + high, pair, half, aligned);
    octet y_low, y_high;
    for (u32 i = 0; i < 8; ++i) {
        const float turn = sign * sine.at[i];
        y_low.at[i] = x_low.at[i] * cosine.at[i] - x_high.at[i] * turn;
        y_high.at[i] = x_high.at[i] * cosine.at[i] + x_low.at[i] * turn;
    }
    write8(to + low, pair, half, aligned, y_low);
    write8(to + high, pair, half, aligned, y_high);
}
