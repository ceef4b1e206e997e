//! Attention on a GPU: which kernels serve a shape, over how many tiles.
//!
//! On tensor cores wherever values are bf16 and a head is not too wide; otherwise in plain float arithmetic.

use super::Heads;
use crate::device::{Device, Grid, Precision, View, ViewMut};
use crate::launch;
use crate::ops::dropout::Mask;
use crate::ops::dropout::cuda::factors;

/// Threads of every block.
const THREADS: u32 = 128;

/// One pass's kernel for heads up to a size: rows that a block owns, and how many rows' values it holds in shared memory.
struct Kernel {
    most: usize,
    name: &'static str,
    rows: usize,
    held: usize,
}

const fn kernel(most: usize, name: &'static str, rows: usize, held: usize) -> Kernel {
    Kernel { most, name, rows, held }
}

/// A tile of queries; two tiles of keys, two of values.
const FORWARD: [Kernel; 4] = [
    kernel(32, "attention_forward_32", 128, 128 + 4 * 64),
    kernel(64, "attention_forward_64", 128, 128 + 4 * 64),
    kernel(96, "attention_forward_96", 128, 128 + 4 * 32),
    kernel(128, "attention_forward_128", 128, 128 + 4 * 32),
];
/// A tile of queries and of their results' gradients; two tiles of keys, two of values.
const BACKWARD_QUERIES: [Kernel; 4] = [
    kernel(32, "attention_backward_queries_32", 128, 2 * 128 + 4 * 64),
    kernel(64, "attention_backward_queries_64", 128, 2 * 128 + 4 * 64),
    kernel(96, "attention_backward_queries_96", 64, 2 * 64 + 4 * 64),
    kernel(128, "attention_backward_queries_128", 64, 2 * 64 + 4 * 64),
];
/// A tile of keys and of values; two tiles of queries, two of their results' gradients.
const BACKWARD_KEYS: [Kernel; 4] = [
    kernel(32, "attention_backward_keys_32", 128, 2 * 128 + 4 * 64),
    kernel(64, "attention_backward_keys_64", 128, 2 * 128 + 4 * 64),
    kernel(96, "attention_backward_keys_96", 64, 2 * 64 + 4 * 64),
    kernel(128, "attention_backward_keys_128", 64, 2 * 64 + 4 * 64),
];

/// Rows that a block of a plain kernel owns.
const PLAIN_ROWS: usize = 16;

/// The kernel that serves heads of this shape, and its grid over `heads` heads of every window.
fn choose(
    device: &Device,
    s: &Heads,
    kernels: &[Kernel],
    plain: &'static str,
    heads: usize,
) -> (&'static str, Grid) {
    let all = s.sequences * heads;
    let tensor = kernels.iter().find(|kernel| s.size <= kernel.most);
    match tensor.filter(|_| device.precision() == Precision::Bf16) {
        Some(kernel) => {
            let shared = kernel.held * kernel.most * size_of::<u16>();
            let blocks = s.block.div_ceil(kernel.rows) * all;
            (kernel.name, Grid::line(blocks, THREADS).with_shared(shared))
        }
        None => {
            let mut grid = Grid::line(s.block.div_ceil(PLAIN_ROWS) * all, THREADS);
            let columns = s.size.div_ceil(THREADS as usize);
            grid.blocks[1] = u32::try_from(columns).unwrap_or(u32::MAX);
            (plain, grid)
        }
    }
}

/// Floats that [`backward`] works in: `D` of every query of every head.
pub fn scratch(s: &Heads) -> usize {
    s.rows() * s.heads
}

/// See [`super::forward`]; `kept` gets `l`, and `clock` is the device's.
pub fn forward(
    device: &Device,
    s: &Heads,
    qkv: View<'_>,
    (mask, clock): (Mask, View<'_>),
    out: ViewMut<'_>,
    kept: ViewMut<'_>,
) {
    let m = factors(mask);
    let (name, grid) = choose(device, s, &FORWARD, "attention_forward_plain", s.heads);
    launch!(
        device,
        name,
        grid,
        qkv,
        out,
        kept,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale,
        s.sequences,
        s.block,
        s.heads,
        s.kv_heads,
        s.size,
        s.scale,
    );
}

/// See [`super::backward`]; `kept` is what [`forward`] left.
pub fn backward(
    device: &Device,
    s: &Heads,
    qkv: View<'_>,
    out: View<'_>,
    kept: View<'_>,
    (mask, clock): (Mask, View<'_>),
    d_out: View<'_>,
    mut d_qkv: ViewMut<'_>,
    mut scratch: ViewMut<'_>,
) {
    let m = factors(mask);
    let (name, grid) = choose(device, s, &BACKWARD_QUERIES, "attention_backward_queries_plain", s.heads);
    launch!(
        device,
        name,
        grid,
        qkv,
        out,
        d_out,
        kept,
        scratch.reborrow(),
        d_qkv.reborrow(),
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale,
        s.sequences,
        s.block,
        s.heads,
        s.kv_heads,
        s.size,
        s.scale,
    );
    let (name, grid) = choose(device, s, &BACKWARD_KEYS, "attention_backward_keys_plain", s.kv_heads);
    launch!(
        device,
        name,
        grid,
        qkv,
        d_out,
        kept,
        scratch.view(),
        d_qkv,
        clock,
        m.words.seed,
        m.words.site,
        m.words.first_row,
        m.threshold,
        m.scale,
        s.sequences,
        s.block,
        s.heads,
        s.kv_heads,
        s.size,
        s.scale,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shared memory of a block on the smallest devices that are served, in bytes, and what kernels have besides.
    const MOST_SHARED: usize = 99 << 10;
    const FIXED_SHARED: usize = 1 << 10;

    fn heads(size: usize) -> Heads {
        Heads { sequences: 2, block: 131, heads: 4, kv_heads: 2, size, scale: 0.5 }
    }

    #[test]
    fn the_narrowest_kernel_serves_and_wider_heads_are_plain() {
        let device = Device::imagined(Precision::Bf16, 132).expect("sound");
        let name = |device: &Device, size| choose(device, &heads(size), &FORWARD, "plain", 4).0;
        for (size, wanted) in [(1, 32), (32, 32), (33, 64), (64, 64), (65, 96), (97, 128), (128, 128)] {
            assert_eq!(name(&device, size), format!("attention_forward_{wanted}"));
        }
        assert_eq!(name(&device, 129), "plain");
        assert_eq!(choose(&device, &heads(300), &FORWARD, "plain", 4).1.blocks, [9 * 8, 3, 1]);
        assert_eq!(choose(&device, &heads(64), &BACKWARD_KEYS, "plain", 2).1.blocks, [2 * 4, 1, 1]);
        assert_eq!(name(&Device::imagined(Precision::F32, 132).expect("sound"), 64), "plain");
        for kernel in FORWARD.iter().chain(&BACKWARD_QUERIES).chain(&BACKWARD_KEYS) {
            let (_, grid) = choose(&device, &heads(kernel.most), std::slice::from_ref(kernel), "plain", 4);
            assert!(grid.shared + FIXED_SHARED <= MOST_SHARED, "{}: {}", kernel.name, grid.shared);
        }
    }

    #[test]
    fn every_kernel_takes_what_it_is_given() {
        for precision in [Precision::Bf16, Precision::F32] {
            let device = Device::imagined(precision, 132).expect("sound");
            for size in [16, 64, 96, 128, 160] {
                let s = heads(size);
                let values = |width| device.values(s.rows() * width).expect("sound");
                let (qkv, mut out, d_out, mut d_qkv) =
                    (values(s.row()), values(s.width()), values(s.width()), values(s.row()));
                let floats = |len| device.floats(len).expect("sound");
                let (mut kept, mut room, clock) = (floats(s.kept()), floats(scratch(&s)), floats(16));
                let noise = (None, clock.view());
                forward(&device, &s, qkv.view(), noise, out.view_mut(), kept.view_mut());
                let given = (qkv.view(), out.view(), kept.view());
                let (d_out, d_qkv) = (d_out.view(), d_qkv.view_mut());
                backward(&device, &s, given.0, given.1, given.2, noise, d_out, d_qkv, room.view_mut());
                device.check().expect("names and arguments are those of the kernels");
            }
        }
    }
}
