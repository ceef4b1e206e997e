//! The arithmetic of the CPU as one table of routines, chosen once.
//!
//! A [`Simd`] can only be had from [`Simd::best`] or [`Simd::available`], which ask the processor for every
//! feature the table uses: holding one proves that the processor has them, which is what makes the safe
//! function pointers sound. Every routine exists as a portable twin (`scalar`), the oracle of the tests;
//! `LECTERN_SIMD=scalar` forces it.
//!
//! [`product`] is the general matrix product and its packing, written once over [`lanes::Lanes`];
//! [`routines`] are row-wise functions in plain Rust, compiled again for each instruction set by
//! [`Simd::run`]; [`octets`] is what kernels too small for that are written over; `avx2`, `avx512` and `neon` say what
//! a vector is there.
//!
//! The order of every sum is fixed by the sizes alone, never by a thread count.

mod aligned;
pub mod caches;
pub mod compact;
mod gemv;
pub mod lanes;
pub mod octets;
mod peak;
pub mod product;
mod recall;
pub mod routines;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

pub use aligned::Aligned;

use half::{bf16, f16};
use octets::{OctetWork, Octets};
use product::{Epilogue, Product};
use std::sync::OnceLock;

/// Columns of one packed panel; every instruction set's tile is built from whole panels.
pub const PANEL: usize = 16;

/// Length of `outputs x inputs` weights packed into panels: outputs rounded up to whole panels.
pub fn packed_len(outputs: usize, inputs: usize) -> usize {
    outputs.div_ceil(PANEL) * PANEL * inputs
}

/// Where the weights of a product with one vector come from. It changes how they are asked for, and no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From a cache that holds all that is read between two uses of them.
    Cache,
    /// From memory: by their next use they will have been driven from every cache, so they are kept in none.
    Memory,
}

/// Which instructions a table uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InstructionSet {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// One instruction set's routines. Slices of wrong length are a broken invariant of the caller and panic.
#[derive(Clone, Debug)]
pub struct Simd {
    /// The name `LECTERN_SIMD` knows it by.
    pub name: &'static str,
    set: InstructionSet,
    /// `y = W x` with `W` `[y.len(), x.len()]`.
    pub gemv_f32: fn(&[f32], Origin, &[f32], &mut [f32]),
    /// `y = W x` with `W` in half precision, converted in registers.
    pub gemv_f16: fn(&[f16], Origin, &[f32], &mut [f32]),
    /// `y = W x` with `W` in bfloat16, converted in registers.
    pub gemv_bf16: fn(&[bf16], Origin, &[f32], &mut [f32]),
    /// `y = W x` with `W` in whole numbers, converted in registers.
    pub gemv_i8: fn(&[i8], Origin, &[f32], &mut [f32]),
    /// `y = x W` for the first `y.len()` columns of `W`, `x.len()` rows that lie a stride apart.
    pub gemv_rows_f32: fn(&[f32], usize, Origin, &[f32], &mut [f32]),
    /// The same with `W` in half precision, converted in registers.
    pub gemv_rows_f16: fn(&[f16], usize, Origin, &[f32], &mut [f32]),
    /// The same with `W` in bfloat16, converted in registers.
    pub gemv_rows_bf16: fn(&[bf16], usize, Origin, &[f32], &mut [f32]),
    /// A general matrix product, see [`Product`].
    pub product: fn(&Product, &[f32], &[f32], Epilogue<'_>, &mut [f32]),
    /// `W` `[outputs, inputs]` transposed into panels of [`PANEL`] columns: element `(input, output)` stands at
    /// `(output / PANEL * inputs + input) * PANEL + output % PANEL`; missing outputs are zero.
    pub pack_f32: fn(&[f32], usize, usize, &mut [f32]),
    /// The same from half precision.
    pub pack_f16: fn(&[f16], usize, usize, &mut [f32]),
    /// The same from bfloat16.
    pub pack_bf16: fn(&[bf16], usize, usize, &mut [f32]),
    /// The first so many outputs of `W` `[inputs, stride]` into the same panels: outputs, inputs and stride follow it.
    pub pack_rows_f32: fn(&[f32], [usize; 3], &mut [f32]),
    /// The same from half precision.
    pub pack_rows_f16: fn(&[f16], [usize; 3], &mut [f32]),
    /// The same from bfloat16.
    pub pack_rows_bf16: fn(&[bf16], [usize; 3], &mut [f32]),
    /// LayerNorm of rows, `(x - mean) / sqrt(var + eps) * gain + bias`; the last slice takes mean and
    /// `1 / sqrt(var + eps)` of each.
    pub layer_norm: fn(&[f32], &[f32], Option<&[f32]>, f32, &mut [f32], &mut [f32]),
    /// RMSNorm of one row, `x / sqrt(mean(x^2) + eps) * gain`; returns `1 / sqrt(mean(x^2) + eps)`.
    pub rms_norm: fn(&[f32], &[f32], f32, &mut [f32]) -> f32,
    /// `max(x, 0)` in place.
    pub relu: fn(&mut [f32]),
    /// `x Phi(x)` in place.
    pub gelu_erf: fn(&mut [f32]),
    /// The tanh approximation in place.
    pub gelu_tanh: fn(&mut [f32]),
    /// `silu(gate) up`, in the place of the gate.
    pub swiglu: fn(&mut [f32], &[f32]),
    /// `x += y`.
    pub add: fn(&mut [f32], &[f32]),
    /// `x += sum of rows`: the rows, how far apart they lie, and how many (1, 2, 4 or 8); neighbours are added first.
    pub add_tree: fn(&[f32], usize, usize, &mut [f32]),
    /// Softmax of rows in place; the second slice takes the maximum and the sum of `exp(x - maximum)` of each.
    pub softmax: fn(&mut [f32], &mut [f32]),
    /// `log sum exp` of one row.
    pub log_sum_exp: fn(&[f32]) -> f32,
    /// Attention of some queries `[count, size]` to keys and values in half precision: for each `s_j = sum_c query[c]
    /// key_j[c]`, `w = softmax(s)`, `out = sum_j w_j value_j`. Keys stand in blocks of [`PANEL`] positions, element `c` of key
    /// `j` at `(j / PANEL * size + c) * PANEL + j % PANEL`; values `[positions, size]`. The queries are followed by their count
    /// and how many positions the first of them sees, at least one; each sees one more than that before it. Then come room
    /// for as many values as the last sees, and the results.
    pub attend_f16: fn(&[f16], &[f16], &[f32], [usize; 2], &mut [f32], &mut [f32]),
    /// The same in single precision.
    pub attend_f32: fn(&[f32], &[f32], &[f32], [usize; 2], &mut [f32], &mut [f32]),
    /// `sum x y`.
    pub dot_f32: fn(&[f32], &[f32]) -> f32,
    /// `out += weight v`.
    pub axpy_f32: fn(f32, &[f32], &mut [f32]),
    /// Rounds to half precision, to nearest even.
    pub narrow_f16: fn(&[f32], &mut [f16]),
    /// Widens from half precision.
    pub widen_f16: fn(&[f16], &mut [f32]),
    /// Widens from bfloat16.
    pub widen_bf16: fn(&[bf16], &mut [f32]),
    peak: fn(u64) -> f32,
}

/// Plain Rust to be compiled for each instruction set, see [`Simd::run`].
///
/// A type of its own rather than a closure because only a method can be `#[inline(always)]`, and code that is not
/// inlined into the function that carries the instruction set is compiled without it.
pub trait Work {
    /// What comes of it.
    type Output;

    /// Does it; implement with `#[inline(always)]`, and call only what is inlined too.
    fn run(self, unit: routines::Unit) -> Self::Output;
}

impl Simd {
    /// The fastest table this processor can run, or the one `LECTERN_SIMD` names; chosen once.
    pub fn best() -> &'static Simd {
        static BEST: OnceLock<&'static Simd> = OnceLock::new();
        BEST.get_or_init(|| {
            let available = Simd::available();
            let wanted = std::env::var("LECTERN_SIMD").unwrap_or_default();
            let chosen = available.iter().find(|table| table.name == wanted);
            chosen.or(available.last()).copied().unwrap_or(&scalar::TABLE)
        })
    }

    /// Every table this processor can run, slowest first.
    pub fn available() -> Vec<&'static Simd> {
        let mut tables = vec![&scalar::TABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                tables.push(&avx2::TABLE);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                {
                    tables.push(&avx512::TABLE);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            tables.push(&neon::TABLE);
        }
        tables
    }

    /// Carries out `work` compiled with this table's instructions: plain loops inside it become vector loops.
    #[inline(always)]
    pub fn run<W: Work>(&self, work: W) -> W::Output {
        match self.set {
            InstructionSet::Scalar => work.run(routines::Unit::PLAIN),
            // SAFETY: the table was handed out after its features were detected.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => unsafe { avx2::run(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { avx512::run(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => unsafe { neon::run(work) },
        }
    }

    /// Carries out `work` over vectors of eight lanes.
    #[inline(always)]
    pub fn run_octets<W: OctetWork>(&self, work: W) -> W::Output {
        match self.set {
            // SAFETY: these vectors need nothing.
            InstructionSet::Scalar => work.run::<octets::Portable>(unsafe { Octets::new() }),
            // SAFETY: the table was handed out after its features were detected.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => unsafe { avx2::run_octets(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => unsafe { avx512::run_octets(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            InstructionSet::Neon => unsafe { neon::run_octets(work) },
        }
    }

    /// This machine's own rate of fused multiply-adds in 10^9 operations a second, by `threads` threads
    /// working from registers for about `seconds`: the roof every product stands under.
    pub fn peak_gflops(&self, threads: usize, seconds: f64) -> f64 {
        peak::measure(self.peak, threads, seconds)
    }
}

/// Functions compiled with an instruction set's features behind safe function pointers.
macro_rules! shims {
    ($features:literal, $(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? = $body:expr;)*) => {$(
        fn $name($($argument: $kind),*) $(-> $result)? {
            #[target_feature(enable = $features)]
            fn inner($($argument: $kind),*) $(-> $result)? {
                #[allow(unused_unsafe)]
                // SAFETY: this function carries every feature the vectors in `$body` use.
                unsafe { $body }
            }
            // SAFETY: only reached through a table that was handed out after its features were detected.
            unsafe { inner($($argument),*) }
        }
    )*};
}

/// One instruction set's table: code written once over [`lanes::Lanes`] and [`routines::Unit`], compiled with
/// its features, which are also all that its vectors of eight lanes use.
macro_rules! vector_table {
    ($name:literal, $set:ident, $lanes:ty, $octet:ty, $features:literal) => {
        /// Carries out `work` compiled with this instruction set.
        #[target_feature(enable = $features)]
        pub(super) fn run<W: $crate::simd::Work>(work: W) -> W::Output {
            work.run(routines::Unit::FUSED)
        }

        /// The same over eight lanes.
        #[target_feature(enable = $features)]
        pub(super) fn run_octets<W: $crate::simd::octets::OctetWork>(work: W) -> W::Output {
            // SAFETY: this function carries every feature that these vectors use.
            work.run::<$octet>(unsafe { $crate::simd::octets::Octets::new() })
        }

        shims! { $features,
            fn gemv_f32(w: &[f32], origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv::<$lanes, f32>(w, origin, x, y);
            fn gemv_f16(w: &[f16], origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv::<$lanes, f16>(w, origin, x, y);
            fn gemv_bf16(w: &[bf16], origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv::<$lanes, bf16>(w, origin, x, y);
            fn gemv_i8(w: &[i8], origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv::<$lanes, i8>(w, origin, x, y);
            fn gemv_rows_f32(w: &[f32], stride: usize, origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv_rows::<$lanes, f32>(w, stride, origin, x, y);
            fn gemv_rows_f16(w: &[f16], stride: usize, origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv_rows::<$lanes, f16>(w, stride, origin, x, y);
            fn gemv_rows_bf16(w: &[bf16], stride: usize, origin: Origin, x: &[f32], y: &mut [f32])
                = gemv::gemv_rows::<$lanes, bf16>(w, stride, origin, x, y);
            fn product(p: &Product, a: &[f32], b: &[f32], epilogue: Epilogue<'_>, c: &mut [f32])
                = product::product::<$lanes>(p, a, b, epilogue, c);
            fn pack_f32(w: &[f32], outputs: usize, inputs: usize, panels: &mut [f32])
                = product::pack::<$lanes, f32>(w, outputs, inputs, panels);
            fn pack_f16(w: &[f16], outputs: usize, inputs: usize, panels: &mut [f32])
                = product::pack::<$lanes, f16>(w, outputs, inputs, panels);
            fn pack_bf16(w: &[bf16], outputs: usize, inputs: usize, panels: &mut [f32])
                = product::pack::<$lanes, bf16>(w, outputs, inputs, panels);
            fn pack_rows_f32(w: &[f32], sizes: [usize; 3], panels: &mut [f32])
                = product::pack_rows::<$lanes, f32>(w, sizes, panels);
            fn pack_rows_f16(w: &[f16], sizes: [usize; 3], panels: &mut [f32])
                = product::pack_rows::<$lanes, f16>(w, sizes, panels);
            fn pack_rows_bf16(w: &[bf16], sizes: [usize; 3], panels: &mut [f32])
                = product::pack_rows::<$lanes, bf16>(w, sizes, panels);
            fn layer_norm(
                x: &[f32],
                gain: &[f32],
                bias: Option<&[f32]>,
                eps: f32,
                out: &mut [f32],
                moments: &mut [f32]
            ) = routines::layer_norm(routines::Unit::FUSED, x, gain, bias, eps, out, moments);
            fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) -> f32
                = routines::rms_norm(routines::Unit::FUSED, x, gain, eps, out);
            fn relu(x: &mut [f32]) = routines::relu(x);
            fn gelu_erf(x: &mut [f32]) = routines::gelu_erf(routines::Unit::FUSED, x);
            fn gelu_tanh(x: &mut [f32]) = routines::gelu_tanh(routines::Unit::FUSED, x);
            fn swiglu(gate: &mut [f32], up: &[f32]) = routines::swiglu(routines::Unit::FUSED, gate, up);
            fn add(x: &mut [f32], y: &[f32]) = routines::add(x, y);
            fn add_tree(rows: &[f32], distance: usize, count: usize, x: &mut [f32])
                = routines::add_tree(rows, distance, count, x);
            fn softmax(x: &mut [f32], moments: &mut [f32])
                = routines::softmax(routines::Unit::FUSED, x, moments);
            fn log_sum_exp(x: &[f32]) -> f32 = routines::log_sum_exp(routines::Unit::FUSED, x);
            fn attend_f16(
                keys: &[f16],
                values: &[f16],
                queries: &[f32],
                sizes: [usize; 2],
                room: &mut [f32],
                out: &mut [f32]
            ) = recall::attend::<$lanes, f16>(
                routines::Unit::FUSED, keys, values, queries, sizes, room, out
            );
            fn attend_f32(
                keys: &[f32],
                values: &[f32],
                queries: &[f32],
                sizes: [usize; 2],
                room: &mut [f32],
                out: &mut [f32]
            ) = recall::attend::<$lanes, f32>(
                routines::Unit::FUSED, keys, values, queries, sizes, room, out
            );
            fn dot_f32(k: &[f32], q: &[f32]) -> f32 = gemv::dot::<$lanes, f32>(k, q);
            fn axpy_f32(weight: f32, v: &[f32], out: &mut [f32]) = gemv::axpy::<$lanes, f32>(weight, v, out);
            fn narrow_f16(x: &[f32], out: &mut [f16]) = gemv::narrow::<$lanes>(x, out);
            fn widen_f16(x: &[f16], out: &mut [f32]) = gemv::widen::<$lanes, f16>(x, out);
            fn widen_bf16(x: &[bf16], out: &mut [f32]) = gemv::widen::<$lanes, bf16>(x, out);
            fn peak(rounds: u64) -> f32 = peak::multiply_add::<$lanes>(rounds);
        }

        pub(super) static TABLE: Simd = Simd {
            name: $name,
            set: InstructionSet::$set,
            gemv_f32,
            gemv_f16,
            gemv_bf16,
            gemv_i8,
            gemv_rows_f32,
            gemv_rows_f16,
            gemv_rows_bf16,
            product,
            pack_f32,
            pack_f16,
            pack_bf16,
            pack_rows_f32,
            pack_rows_f16,
            pack_rows_bf16,
            layer_norm,
            rms_norm,
            relu,
            gelu_erf,
            gelu_tanh,
            swiglu,
            add,
            add_tree,
            softmax,
            log_sum_exp,
            attend_f16,
            attend_f32,
            dot_f32,
            axpy_f32,
            narrow_f16,
            widen_f16,
            widen_bf16,
            peak,
        };
    };
}

use {shims, vector_table};

#[cfg(test)]
mod tests;
