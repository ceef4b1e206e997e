//! Dense products by NVIDIA's cuBLASLt, where that library is; elsewhere the caller multiplies with kernels of ours.
//!
//! The library counts matrices by columns and ours lie by rows. A matrix by rows is its transpose by columns, so
//! `C = A B` is asked for as `C^T = B^T A^T`: the factors change places, rows and columns of all three change names, and no
//! byte moves. What the library calls the rows of its result are then our columns, along which it adds a bias.
//!
//! Its GELU is the form with the hyperbolic tangent, of sums that are not rounded yet; how well it computes that tangent it
//! does not say. Whoever asks for it must not care for more than bf16 shows.
//!
//! Sums are f32. In f32 the factors are not rounded to TF32: only a compute type of that name would. An algorithm is
//! chosen once for each shape, by the library's own rule and not by the clock, and one whose partial sums meet in the
//! result itself is never taken: the same bytes come out on every run of one card.

use super::libraries::found;
use super::memory::{Element, View, ViewMut};
use super::{Device, Inner, Precision};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t, cublasLtReductionScheme_t,
    cublasStatus_t, cudaDataType,
};
use cudarc::driver::result::{DriverError, free_sync, malloc_sync};
use cudarc::driver::sys::CUdeviceptr;
use runtime::simd::product::Write;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Room that the library may work in, in bytes: what NVIDIA advises for cards of compute capability 9.
const WORKSPACE: usize = 32 << 20;
/// The coarsest alignment that the library asks about, in bytes.
const ALIGNMENT: u64 = 256;
/// What the library wants the stride of a matrix beside the result to be a multiple of, in elements.
const BESIDE: usize = 8;

/// `CUBLAS_OP_N` and `CUBLAS_OP_T`, which the bindings of this library lack.
const AS_IT_LIES: i32 = 0;
const TRANSPOSED: i32 = 1;

/// The library's calls that a run makes.
const CALLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// A factor of a product.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    /// Its values.
    pub values: View<'a>,
    /// From one row as it lies to the next, in elements.
    pub stride: usize,
    /// Whether it lies as its transpose: of `A B`, with the rows of `A` going down its columns, or those of `B`.
    pub transposed: bool,
}

/// What is done to `A B + bias` before it is the result; what stands beside the result has its element and its stride.
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// The result is its GELU, and itself is kept beside it.
    Gelu(ViewMut<'a>),
    /// It is multiplied by the slope of that GELU at what was kept.
    GeluSlope(View<'a>),
}

/// `out (+)= A B + bias`, all by rows: `A` is `[rows, inner]`, `B` is `[inner, columns]`.
pub struct Product<'a> {
    /// Rows of the result.
    pub rows: usize,
    /// Columns of the result.
    pub columns: usize,
    /// Length of each sum.
    pub inner: usize,
    /// The first factor.
    pub a: Factor<'a>,
    /// The second.
    pub b: Factor<'a>,
    /// One value a column, in the element of the result; only with [`Write::Set`].
    pub bias: Option<View<'a>>,
    /// The result, values or floats.
    pub out: ViewMut<'a>,
    /// From one row of the result to the next, in elements.
    pub stride: usize,
    /// Whether the result is set or added to; one with an epilogue is set.
    pub write: Write,
    /// What is done last.
    pub epilogue: Epilogue<'a>,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    columns: usize,
    inner: usize,
    /// Stride, whether transposed, alignment.
    a: (usize, bool, u32),
    b: (usize, bool, u32),
    out: (usize, u32),
    /// Alignment of what the result is made of last: itself, and the bias.
    last: u32,
    floats: bool,
    accumulate: bool,
    /// As the library numbers them.
    epilogue: u32,
    /// Alignment of what stands beside the result.
    beside: u32,
}

/// The library at work.
pub(super) struct Blas {
    handle: cublasLtHandle_t,
    workspace: CUdeviceptr,
    /// What was chosen for a shape; none is a shape that the library does not do.
    plans: Mutex<HashMap<Key, Option<Plan>>>,
}

/// A shape's descriptors and algorithm.
struct Plan {
    description: cublasLtMatmulDesc_t,
    first: cublasLtMatrixLayout_t,
    second: cublasLtMatrixLayout_t,
    result: cublasLtMatrixLayout_t,
    algorithm: cublasLtMatmulAlgo_t,
}

// SAFETY: the handles are plain data to the library, whose calls may come from any thread; they are used behind a lock.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}
// SAFETY: as above.
unsafe impl Send for Plan {}

impl Blas {
    /// The library, if it is whole and willing; the context is current.
    pub fn open() -> Result<Option<Blas>, DriverError> {
        // SAFETY: loading a library runs its initialisers, which for NVIDIA's own do not depend on us.
        if !found("libcublasLt", || unsafe { sys::is_culib_present() }) {
            return Ok(None);
        }
        // SAFETY: it is there, so this does not panic; a symbol is only looked up, never called as the type named here.
        let has =
            |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
        if !CALLS.iter().all(has) {
            return Ok(None);
        }
        let Ok(handle) = result::create_handle() else { return Ok(None) };
        let mut blas = Blas { handle, workspace: 0, plans: Mutex::default() };
        // SAFETY: the memory is freed once, when `blas` is dropped, and holds nothing from one call to the next.
        blas.workspace = unsafe { malloc_sync(WORKSPACE) }?;
        Ok(Some(blas))
    }

    /// Its version, as NVIDIA counts.
    pub fn version(&self) -> usize {
        // SAFETY: the call takes nothing.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// Puts the product on the stream, or says that the library does not do its shape.
    fn multiply(&self, inner: &Inner, product: &Product, key: Key) -> Result<bool, CublasError> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = plans
            .entry(key)
            .or_insert_with(|| Plan::choose(self.handle, inner.precision, &key, product).ok());
        let Some(plan) = plan else { return Ok(false) };
        plan.point(product)?;
        let (alpha, beta) = (1f32, f32::from(u8::from(key.accumulate)));
        let out = product.out.pointer as *mut c_void;
        // SAFETY: handle, descriptors and algorithm live in `self` and were made for this shape; the factors, the bias and
        // the result were found to span it; the result is borrowed for writing, and read only as itself. The two numbers
        // are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                plan.description,
                ptr::from_ref(&alpha).cast(),
                ptr::from_ref(&beta).cast(),
                product.b.values.pointer as *const c_void,
                plan.first,
                product.a.values.pointer as *const c_void,
                plan.second,
                out,
                plan.result,
                out,
                plan.result,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                inner.stream.cast(),
            )?;
        }
        Ok(true)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: each was made once and is given back once, here, by whoever has bound the context and waited for the
        // stream. A broken context refuses, and nobody can be told.
        unsafe {
            let _ = result::destroy_handle(self.handle);
            if self.workspace != 0 {
                let _ = free_sync(self.workspace);
            }
        }
    }
}

impl Plan {
    /// Describes a shape and lets the library choose.
    fn choose(
        handle: cublasLtHandle_t,
        precision: Precision,
        key: &Key,
        product: &Product,
    ) -> Result<Plan, CublasError> {
        let value = match precision {
            Precision::Bf16 => cudaDataType::CUDA_R_16BF,
            Precision::F32 => cudaDataType::CUDA_R_32F,
        };
        let written = if key.floats { cudaDataType::CUDA_R_32F } else { value };
        let (float, sum) = (cudaDataType::CUDA_R_32F, cublasComputeType_t::CUBLAS_COMPUTE_32F);
        let mut plan = Plan {
            description: result::create_matmul_desc(sum, float)?,
            first: ptr::null_mut(),
            second: ptr::null_mut(),
            result: ptr::null_mut(),
            // SAFETY: plain numbers, replaced by the library's choice below.
            algorithm: unsafe { std::mem::zeroed() },
        };
        // By columns, a matrix that lies `[lines, length]` by rows is `[length, lines]`.
        let layout = |(lines, length): (usize, usize), stride: usize, kind| {
            result::create_matrix_layout(kind, length as u64, lines as u64, stride as i64)
        };
        let lies = |rows, columns, transposed| if transposed { (columns, rows) } else { (rows, columns) };
        plan.first = layout(lies(key.inner, key.columns, key.b.1), key.b.0, value)?;
        plan.second = layout(lies(key.rows, key.inner, key.a.1), key.a.0, value)?;
        plan.result = layout((key.rows, key.columns), key.out.0, written)?;
        let turned = |transposed| if transposed { TRANSPOSED } else { AS_IT_LIES };
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &turned(key.b.1))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, &turned(key.a.1))?;
        plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &key.epilogue)?;
        if product.epilogue.beside().is_some() {
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &(key.out.0 as i64))?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, &written)?;
        }
        plan.point(product)?;
        plan.algorithm = plan.fastest(handle, key)?;
        Ok(plan)
    }

    /// The algorithm that the library puts first.
    fn fastest(&self, handle: cublasLtHandle_t, key: &Key) -> Result<cublasLtMatmulAlgo_t, CublasError> {
        let preference = Preferences(result::create_matmul_pref()?);
        preference.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let apart = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &apart)?;
        for (attribute, alignment) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, key.b.2),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, key.a.2),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, key.out.1),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, key.last),
        ] {
            preference.set(attribute, &alignment)?;
        }
        // SAFETY: all handles are live.
        let chosen = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                self.description,
                self.first,
                self.second,
                self.result,
                self.result,
                preference.0,
            )
        }?;
        Ok(chosen.algo)
    }

    /// Sets an attribute of the description.
    fn set<T>(&self, attribute: Attribute, value: &T) -> Result<(), CublasError> {
        // SAFETY: the description is live, and the attributes used here have the type and size of what is passed:
        // operation, epilogue and data type (32-bit words), stride (a 64-bit number) and address.
        unsafe {
            result::set_matmul_desc_attribute(
                self.description,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }

    /// Where the bias stands, whose element is that of the result, which is what the library expects unless told; and
    /// what is beside the result.
    fn point(&self, product: &Product) -> Result<(), CublasError> {
        if let Some(bias) = product.bias {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.pointer)?;
        }
        if let Some(beside) = product.epilogue.beside() {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &beside.pointer)?;
        }
        Ok(())
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made once and is given back once, here.
        unsafe {
            for layout in [self.first, self.second, self.result] {
                if !layout.is_null() {
                    let _ = result::destroy_matrix_layout(layout);
                }
            }
            let _ = result::destroy_matmul_desc(self.description);
        }
    }
}

/// What an algorithm may need and rely on.
struct Preferences(sys::cublasLtMatmulPreference_t);

impl Preferences {
    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), CublasError> {
        // SAFETY: the handle is live, and the attributes used here have the type and size of what is passed: a 64-bit
        // number of bytes for the workspace, 32-bit words for the rest.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        }
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        // SAFETY: made once and given back once, here.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The most that an address is a multiple of, as far as the library asks.
fn alignment(pointer: CUdeviceptr) -> u32 {
    (1 << pointer.trailing_zeros().min(ALIGNMENT.trailing_zeros())) as u32
}

/// Elements that `lines` lines of `length` span.
fn span(lines: usize, length: usize, stride: usize) -> usize {
    lines.saturating_sub(1).saturating_mul(stride).saturating_add(length)
}

impl Epilogue<'_> {
    /// What stands beside the result.
    fn beside(&self) -> Option<View<'_>> {
        match self {
            Epilogue::None => None,
            Epilogue::Gelu(kept) => Some(kept.view()),
            Epilogue::GeluSlope(kept) => Some(*kept),
        }
    }

    /// What the library calls it, with a bias or without; none if it does not have it.
    fn number(&self, bias: bool) -> Option<cublasLtEpilogue_t> {
        match (self, bias) {
            (Epilogue::None, false) => Some(cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT),
            (Epilogue::None, true) => Some(cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS),
            (Epilogue::Gelu(_), false) => Some(cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX),
            (Epilogue::Gelu(_), true) => Some(cublasLtEpilogue_t::CUBLASLT_EPILOGUE_GELU_AUX_BIAS),
            (Epilogue::GeluSlope(_), false) => Some(cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DGELU),
            (Epilogue::GeluSlope(_), true) => None,
        }
    }
}

impl Factor<'_> {
    /// Lines as they lie, and their length.
    fn lines(&self, rows: usize, columns: usize) -> (usize, usize) {
        if self.transposed { (columns, rows) } else { (rows, columns) }
    }

    fn fits(&self, rows: usize, columns: usize, precision: Precision) -> bool {
        let (lines, length) = self.lines(rows, columns);
        self.values.element.serves(Element::Value, precision)
            && self.stride >= length
            && span(lines, length, self.stride) <= self.values.len()
    }
}

impl Device {
    /// Whether cuBLASLt multiplies here.
    pub fn has_blas(&self) -> bool {
        self.library && self.inner.blas.is_some()
    }

    /// Puts a product on the stream, if cuBLASLt is here and does its shape; else the caller does it otherwise. What goes
    /// wrong later is recorded, as for a launch. Matrices that do not span the product are a bug of ours.
    pub fn multiply(&self, product: &mut Product) -> bool {
        let Some(blas) = self.inner.blas.as_ref().filter(|_| self.library) else { return false };
        let p = product;
        if self.failed() || p.rows == 0 || p.columns == 0 {
            return true;
        }
        let (out, precision) = (p.out.view(), self.inner.precision);
        let kinds = match p.bias {
            Some(bias) => {
                bias.element.serves(out.element, precision)
                    && bias.len() >= p.columns
                    && p.write == Write::Set
                    && self.holds(bias.owner, "product")
            }
            None => true,
        };
        let beside = p.epilogue.beside();
        let fits = beside.is_none_or(|beside| {
            beside.element.serves(out.element, precision)
                && span(p.rows, p.columns, p.stride) <= beside.len()
                && p.write == Write::Set
                && self.holds(beside.owner, "product")
        });
        let spanned = fits
            && p.a.fits(p.rows, p.inner, precision)
            && p.b.fits(p.inner, p.columns, precision)
            && p.stride >= p.columns
            && span(p.rows, p.columns, p.stride) <= out.len()
            && matches!(out.element, Element::Value | Element::F32);
        if !kinds || !spanned {
            self.bug(format!(
                "a product of {} x {} x {} with matrices that do not fit",
                p.rows, p.inner, p.columns
            ));
            return true;
        }
        if ![p.a.values.owner, p.b.values.owner, out.owner]
            .into_iter()
            .all(|owner| self.holds(owner, "product"))
        {
            return true;
        }
        let Some(epilogue) = p.epilogue.number(p.bias.is_some()) else { return false };
        if p.inner == 0 || beside.is_some() && !p.stride.is_multiple_of(BESIDE) {
            return false;
        }
        let key = Key {
            rows: p.rows,
            columns: p.columns,
            inner: p.inner,
            a: (p.a.stride, p.a.transposed, alignment(p.a.values.pointer)),
            b: (p.b.stride, p.b.transposed, alignment(p.b.values.pointer)),
            out: (p.stride, alignment(out.pointer)),
            last: alignment(out.pointer | p.bias.map_or(0, |bias| bias.pointer)),
            floats: out.element == Element::F32,
            accumulate: p.write == Write::Accumulate,
            epilogue: epilogue as u32,
            beside: beside.map_or(0, |beside| alignment(beside.pointer)),
        };
        let done =
            self.inner.bind().map_err(|error| super::driver_said("cuCtxSetCurrent", error)).and_then(|()| {
                blas.multiply(&self.inner, p, key).map_err(|error| format!("cublasLtMatmul: {}", said(error)))
            });
        done.unwrap_or_else(|problem| {
            self.lost(problem);
            true
        })
    }
}

/// What a status is called, with what it most likely means here.
fn said(error: CublasError) -> String {
    match error.0 {
        cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED => {
            format!("{error}: the device failed before or within it")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_the_largest_power_of_two() {
        let of = [(0x1000, 256), (0x1080, 128), (0x1010, 16), (0x1002, 2), (0x1001, 1)];
        of.into_iter().for_each(|(pointer, bytes)| assert_eq!(alignment(pointer), bytes, "{pointer:#x}"));
    }

    #[test]
    fn a_matrix_spans_its_last_line_and_no_gap_behind_it() {
        assert_eq!(span(3, 5, 8), 21);
        assert_eq!(span(1, 5, 8), 5);
        assert_eq!(span(0, 5, 8), 5);
        assert_eq!(span(usize::MAX, 5, 8), usize::MAX);
    }
}
