//! Memory of the device: buffers that own it, views that borrow it, and copies to and from the host.
//!
//! All of it is asked for before the first step; a copy records what goes wrong in the device, as a launch does.

use super::{Device, Inner, Precision};
use bytemuck::Pod;
use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use formats::{Error, Result};
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// An activation or a working weight, in the device's [`Precision`].
    Value,
    /// A 32-bit float.
    F32,
    /// A 64-bit float.
    F64,
    /// A 32-bit count or id.
    U32,
    /// A 64-bit count.
    U64,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self, precision: Precision) -> usize {
        match (self, precision) {
            (Element::Value, Precision::Bf16) => 2,
            (Element::Value, Precision::F32) | (Element::F32 | Element::U32, _) => 4,
            (Element::F64 | Element::U64, _) => 8,
        }
    }

    /// Whether a buffer of it serves where another is wanted: in f32 a value is a float.
    pub(super) fn serves(self, wanted: Element, precision: Precision) -> bool {
        let plain = |element| match (element, precision) {
            (Element::Value, Precision::F32) => Element::F32,
            (element, _) => element,
        };
        plain(self) == plain(wanted)
    }
}

/// A number of the host that a buffer can hold.
pub trait Number: Pod {
    /// What it is on the device.
    const ELEMENT: Element;
}

impl Number for f32 {
    const ELEMENT: Element = Element::F32;
}
impl Number for f64 {
    const ELEMENT: Element = Element::F64;
}
impl Number for u32 {
    const ELEMENT: Element = Element::U32;
}
impl Number for u64 {
    const ELEMENT: Element = Element::U64;
}

/// Device memory of its own, freed when dropped. A buffer of no elements allocates nothing and needs no device.
pub struct Buffer {
    owner: Option<Arc<Inner>>,
    pointer: CUdeviceptr,
    len: usize,
    element: Element,
}

impl Default for Buffer {
    fn default() -> Buffer {
        Buffer { owner: None, pointer: 0, len: 0, element: Element::Value }
    }
}

impl Buffer {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it holds.
    pub fn element(&self) -> Element {
        self.element
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_> {
        View { owner: self.owner.as_deref(), pointer: self.pointer, len: self.len, element: self.element }
    }

    /// All of it, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut {
            owner: self.owner.as_deref(),
            pointer: self.pointer,
            len: self.len,
            element: self.element,
            borrowed: PhantomData,
        }
    }

    /// A stretch of it, to read; outside it panics, as a slice does.
    pub fn part(&self, range: Range<usize>) -> View<'_> {
        self.view().part(range)
    }

    /// A stretch of it, to write; outside it panics, as a slice does.
    pub fn part_mut(&mut self, range: Range<usize>) -> ViewMut<'_> {
        self.view_mut().part(range)
    }

    /// Stretches of it, to write at once; they stand in order and share no element, or it panics.
    pub fn parts_mut<const N: usize>(&mut self, ranges: [Range<usize>; N]) -> [ViewMut<'_>; N] {
        let mut rest = Some(self.view_mut());
        let mut from = 0;
        ranges.map(|range| {
            let left = rest.take().expect("put back below");
            let (_, left) = left.split(range.start.checked_sub(from).expect("stretches stand in order"));
            let (part, left) = left.split(range.len());
            from = range.start + range.len();
            rest = Some(left);
            part
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.as_ref().filter(|_| self.pointer != 0) {
            owner.held.fetch_sub(self.view().bytes() as u64, Ordering::Relaxed);
            let mut kept = owner.kept_for_graphs();
            if kept.graphs > 0 {
                kept.memory.push(self.pointer);
            } else {
                owner.free(self.pointer);
            }
        }
    }
}

/// Borrowed device memory, to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) owner: Option<&'a Inner>,
    pub(super) pointer: CUdeviceptr,
    len: usize,
    pub(super) element: Element,
}

impl<'a> View<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A stretch of it; outside it panics, as a slice does.
    pub fn part(self, range: Range<usize>) -> View<'a> {
        let start = start(&range, self.len, bytes(self.owner, self.element));
        View { pointer: self.pointer + start, len: range.len(), ..self }
    }

    /// Bytes it spans.
    pub(super) fn bytes(&self) -> usize {
        self.len * bytes(self.owner, self.element)
    }

    /// The same bytes as elements of another kind, as many as fit; it panics where they would not be aligned.
    pub fn cast(self, element: Element) -> View<'a> {
        let len = recount(self.owner, self.pointer, self.bytes(), element);
        View { len, element, ..self }
    }
}

/// Borrowed device memory, to write.
pub struct ViewMut<'a> {
    pub(super) owner: Option<&'a Inner>,
    pub(super) pointer: CUdeviceptr,
    len: usize,
    pub(super) element: Element,
    borrowed: PhantomData<&'a mut Buffer>,
}

impl<'a> ViewMut<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same, for a while.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { borrowed: PhantomData, ..*self }
    }

    /// The same, to read.
    pub fn view(&self) -> View<'_> {
        View { owner: self.owner, pointer: self.pointer, len: self.len, element: self.element }
    }

    /// A stretch of it; outside it panics, as a slice does.
    pub fn part(self, range: Range<usize>) -> ViewMut<'a> {
        let start = start(&range, self.len, bytes(self.owner, self.element));
        ViewMut { pointer: self.pointer + start, len: range.len(), ..self }
    }

    /// The same bytes as elements of another kind, as many as fit; it panics where they would not be aligned.
    pub fn cast(self, element: Element) -> ViewMut<'a> {
        let len = recount(self.owner, self.pointer, self.view().bytes(), element);
        ViewMut { len, element, ..self }
    }

    /// What stands before element `at`, and the rest; it panics where `at` is behind the end.
    pub fn split(self, at: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let (owner, element) = (self.owner, self.element);
        let start = start(&(at..self.len), self.len, bytes(owner, element));
        let behind = ViewMut {
            owner,
            pointer: self.pointer + start,
            len: self.len - at,
            element,
            borrowed: PhantomData,
        };
        (ViewMut { len: at, ..self }, behind)
    }
}

/// Bytes of an element; where there is no device there are no elements.
fn bytes(owner: Option<&Inner>, element: Element) -> usize {
    owner.map_or(0, |owner| element.bytes(owner.precision))
}

/// How many elements are in so many bytes from `pointer` on.
fn recount(owner: Option<&Inner>, pointer: CUdeviceptr, held: usize, element: Element) -> usize {
    let size = bytes(owner, element).max(1);
    assert!(pointer.is_multiple_of(size as u64), "{element:?} at {pointer:#x}");
    held / size
}

/// Where a stretch of `len` elements begins, in bytes.
fn start(range: &Range<usize>, len: usize, bytes: usize) -> u64 {
    assert!(range.start <= range.end && range.end <= len, "elements {range:?} of {len}");
    (range.start * bytes) as u64
}

impl<'a> From<&'a Buffer> for View<'a> {
    fn from(buffer: &'a Buffer) -> View<'a> {
        buffer.view()
    }
}

impl<'a> From<&'a mut Buffer> for ViewMut<'a> {
    fn from(buffer: &'a mut Buffer) -> ViewMut<'a> {
        buffer.view_mut()
    }
}

impl Device {
    /// `len` elements, all bits zero.
    pub fn buffer(&self, element: Element, len: usize) -> Result<Buffer> {
        let inner = &self.inner;
        self.only_outside_of_recording("new memory");
        self.check()?;
        let mut buffer = Buffer { owner: Some(Arc::clone(inner)), pointer: 0, len: 0, element };
        if len == 0 {
            return Ok(buffer);
        }
        let bytes = len.checked_mul(element.bytes(inner.precision)).ok_or_else(|| self.no_room(u64::MAX))?;
        inner.bind().map_err(|error| self.refused("cuCtxSetCurrent", error))?;
        buffer.pointer = match &inner.imagined {
            Some(imagined) => imagined.address(bytes),
            // SAFETY: the context is current; the memory is owned by `buffer` from here on and zeroed before it is read.
            None => unsafe { result::malloc_sync(bytes) }.map_err(|error| match error.0 {
                CUresult::CUDA_ERROR_OUT_OF_MEMORY => self.no_room(bytes as u64),
                _ => self.refused("cuMemAlloc", error),
            })?,
        };
        buffer.len = len;
        inner.held.fetch_add(bytes as u64, Ordering::Relaxed);
        self.zero(buffer.view_mut());
        self.check()?;
        Ok(buffer)
    }

    /// `len` activations, zero.
    pub fn values(&self, len: usize) -> Result<Buffer> {
        self.buffer(Element::Value, len)
    }

    /// `len` f32 values, zero.
    pub fn floats(&self, len: usize) -> Result<Buffer> {
        self.buffer(Element::F32, len)
    }

    /// `len` ids or counts, zero.
    pub fn indices(&self, len: usize) -> Result<Buffer> {
        self.buffer(Element::U32, len)
    }

    /// Bytes free on the device, and bytes it has.
    pub fn memory(&self) -> Result<(u64, u64)> {
        if self.inner.imagined.is_some() {
            return Ok((u64::MAX, u64::MAX));
        }
        self.inner.bind().map_err(|error| self.refused("cuCtxSetCurrent", error))?;
        let (free, total) = result::mem_get_info().map_err(|error| self.refused("cuMemGetInfo", error))?;
        Ok((free as u64, total as u64))
    }

    fn no_room(&self, needed: u64) -> Error {
        Error::Memory {
            what: format!("the next buffer on {}", self.inner.name),
            needed,
            available: self.memory().map_or(0, |(free, _)| free),
            help: "pass --keep layer-inputs, or choose a smaller --batch with --accumulate, or a smaller --block"
                .to_owned(),
        }
    }

    /// Sets every bit to zero, in the order of the stream.
    pub fn zero<'a>(&self, to: impl Into<ViewMut<'a>>) {
        let to = to.into();
        let view = to.view();
        if to.is_empty() || !self.holds(view.owner, "zero") {
            return;
        }
        self.attempt("cuMemsetD8Async", |inner| {
            // SAFETY: the view spans `bytes` live bytes of this context, borrowed for writing.
            unsafe { result::memset_d8_async(view.pointer, 0, view.bytes(), inner.stream) }
        });
    }

    /// Device to device, in the order of the stream.
    pub fn copy<'a, 'b>(&self, from: impl Into<View<'a>>, to: impl Into<ViewMut<'b>>) {
        let (from, to) = (from.into(), to.into());
        if (from.len, from.element) != (to.len, to.element) {
            return self
                .bug(format!("{} x {:?} copied to {} x {:?}", from.len, from.element, to.len, to.element));
        }
        if from.is_empty() || !self.holds(from.owner, "copy") || !self.holds(to.owner, "copy") {
            return;
        }
        self.attempt("cuMemcpyDtoDAsync", |inner| {
            // SAFETY: both views span `bytes` live bytes of this context; a borrow to write shares nothing with another.
            unsafe { result::memcpy_dtod_async(to.pointer, from.pointer, from.bytes(), inner.stream) }
        });
    }

    /// Host to device, in the order of the stream and without waiting for it; the host's memory is free again on return.
    pub fn upload<'a, T: Number>(&self, from: &[T], to: impl Into<ViewMut<'a>>) {
        let to = to.into();
        if to.element != T::ELEMENT {
            return self.bug(format!("{:?} uploaded to {:?}", T::ELEMENT, to.element));
        }
        self.upload_bytes(bytemuck::cast_slice(from), to);
    }

    /// Device to host, after all work before it; of a failed device the host's memory is left as it was.
    pub fn download<'a, T: Number>(&self, from: impl Into<View<'a>>, to: &mut [T]) {
        let from = from.into();
        if from.element != T::ELEMENT {
            return self.bug(format!("{:?} downloaded as {:?}", from.element, T::ELEMENT));
        }
        self.download_bytes(from, bytemuck::cast_slice_mut(to));
    }

    /// The same as a value: device to host, and whether all went well up to here.
    pub fn read<'a, T: Number>(&self, from: impl Into<View<'a>>, to: &mut [T]) -> Result<()> {
        self.download(from, to);
        self.check()
    }

    /// Activations from the host, rounded to the device's precision.
    pub fn upload_values<'a>(&self, from: &[f32], to: impl Into<ViewMut<'a>>) {
        let to = to.into();
        if to.element != Element::Value {
            return self.bug(format!("values uploaded to {:?}", to.element));
        }
        match self.inner.precision {
            Precision::F32 => self.upload_bytes(bytemuck::cast_slice(from), to),
            Precision::Bf16 => {
                let narrow: Vec<u16> = from.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
                self.upload_bytes(bytemuck::cast_slice(&narrow), to);
            }
        }
    }

    /// Activations to the host, widened.
    pub fn download_values<'a>(&self, from: impl Into<View<'a>>, to: &mut [f32]) {
        let from = from.into();
        if from.element != Element::Value {
            return self.bug(format!("{:?} downloaded as values", from.element));
        }
        match self.inner.precision {
            Precision::F32 => self.download_bytes(from, bytemuck::cast_slice_mut(to)),
            Precision::Bf16 => {
                let mut narrow = vec![0u16; to.len()];
                self.download_bytes(from, bytemuck::cast_slice_mut(&mut narrow));
                to.iter_mut().zip(narrow).for_each(|(to, bits)| *to = bf16::from_bits(bits).to_f32());
            }
        }
    }

    fn upload_bytes(&self, from: &[u8], to: ViewMut) {
        let view = to.view();
        self.only_outside_of_recording("an upload");
        if from.len() != view.bytes() {
            return self.bug(format!("{} bytes uploaded to {}", from.len(), view.bytes()));
        }
        if from.is_empty() || !self.holds(view.owner, "upload") {
            return;
        }
        self.attempt("cuMemcpyHtoDAsync", |inner| {
            let mut staging = inner.staging.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: the view spans as many live bytes of this context as `from`, borrowed for writing.
            unsafe { staging.upload(from, view.pointer, inner.stream) }
        });
    }

    fn download_bytes(&self, from: View, to: &mut [u8]) {
        self.only_outside_of_recording("a download");
        if to.len() != from.bytes() {
            return self.bug(format!("{} bytes downloaded to {}", from.bytes(), to.len()));
        }
        if to.is_empty() || !self.holds(from.owner, "download") {
            return;
        }
        self.attempt("cuMemcpyDtoHAsync", |inner| {
            // SAFETY: both sides span the same number of live bytes, and `to` outlives the copy, which has ended when the
            // stream has.
            unsafe {
                result::memcpy_dtoh_async(to, from.pointer, inner.stream)?;
                result::stream::synchronize(inner.stream)
            }
        });
    }
}
