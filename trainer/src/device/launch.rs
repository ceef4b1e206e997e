//! A kernel's launch: its geometry and its arguments, checked against the kernel's own declaration.

use super::memory::{Buffer, Element, View, ViewMut};
use super::signature::{Kind, MOST_PARAMETERS};
use super::{Device, Inner};
use cudarc::driver::result;
use cudarc::driver::sys::CUfunction_attribute;
use runtime::simd::product::Write;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::Ordering;

/// Dynamic shared memory that every kernel may have without asking, in bytes.
const SHARED_UNASKED: usize = 48 << 10;

/// How many threads run a kernel, and in which groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along each axis; where one is zero there is no work and nothing is launched.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: usize,
}

impl Grid {
    /// Blocks in a row, without dynamic shared memory. More than the device can number is refused at the launch.
    pub fn line(blocks: usize, threads: u32) -> Grid {
        Grid { blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1], threads, shared: 0 }
    }

    /// The same with dynamic shared memory, in bytes.
    pub fn with_shared(self, shared: usize) -> Grid {
        Grid { shared, ..self }
    }
}

/// One argument of a kernel.
pub enum Argument<'a> {
    /// Memory to read; none of it where the kernel allows for that.
    Read(View<'a>),
    /// Memory to write.
    Write(ViewMut<'a>),
    /// No memory.
    Null,
    /// A 32-bit count.
    U32(u32),
    /// A 64-bit count.
    U64(u64),
    /// A count or offset as wide as the kernel wants it.
    Size(usize),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
}

impl Argument<'_> {
    /// No memory, where a kernel does without.
    pub const NULL: Argument<'static> = Argument::Null;
}

macro_rules! argument_from {
    ($($from:ty => |$name:ident| $argument:expr;)*) => {$(
        impl<'a> From<$from> for Argument<'a> {
            fn from($name: $from) -> Argument<'a> {
                $argument
            }
        }
    )*};
}

argument_from! {
    &'a Buffer => |buffer| Argument::Read(buffer.view());
    &'a mut Buffer => |buffer| Argument::Write(buffer.view_mut());
    View<'a> => |view| Argument::Read(view);
    ViewMut<'a> => |view| Argument::Write(view);
    u32 => |count| Argument::U32(count);
    u64 => |count| Argument::U64(count);
    usize => |count| Argument::Size(count);
    f32 => |number| Argument::F32(number);
    f64 => |number| Argument::F64(number);
    bool => |flag| Argument::U32(u32::from(flag));
    Write => |write| Argument::U32(u32::from(write == Write::Accumulate));
}

impl<'a> From<Option<View<'a>>> for Argument<'a> {
    fn from(view: Option<View<'a>>) -> Argument<'a> {
        view.map_or(Argument::Null, Argument::Read)
    }
}

impl<'a> From<Option<ViewMut<'a>>> for Argument<'a> {
    fn from(view: Option<ViewMut<'a>>) -> Argument<'a> {
        view.map_or(Argument::Null, Argument::Write)
    }
}

/// Launches a kernel by name: `launch!(device, "norm_forward", grid, &x, gain, &mut out, rows, eps)`.
#[macro_export]
macro_rules! launch {
    ($device:expr, $name:expr, $grid:expr $(, $argument:expr)* $(,)?) => {
        $device.launch($name, $grid, &[$($crate::device::Argument::from($argument)),*])
    };
}

impl Device {
    /// Launches a kernel in the order of the stream. What goes wrong is recorded for [`Device::check`]; after that
    /// nothing is launched any more. Arguments that do not fit the kernel's declaration are a bug of ours.
    pub fn launch(&self, name: &str, grid: Grid, arguments: &[Argument]) {
        if self.failed() || grid.blocks.contains(&0) {
            return;
        }
        let Some(kernel) = self.inner.kernels.get(name) else {
            return self.bug(format!("there is no kernel {name}"));
        };
        if arguments.len() != kernel.parameters.len() {
            return self.bug(format!(
                "kernel {name} takes {} arguments, {} were given",
                kernel.parameters.len(),
                arguments.len()
            ));
        }
        let mut values = [[0u8; 8]; MOST_PARAMETERS];
        for ((value, argument), parameter) in values.iter_mut().zip(arguments).zip(&kernel.parameters) {
            match pass(argument, parameter.kind, &self.inner) {
                Ok(bytes) => *value = bytes,
                Err(problem) => {
                    return self.bug(format!("kernel {name}, {}: {problem}", parameter.name));
                }
            }
        }
        let mut addresses: [*mut c_void; MOST_PARAMETERS] =
            values.each_mut().map(|value| ptr::from_mut(value).cast());
        let Ok(shared) = u32::try_from(grid.shared) else {
            return self.bug(format!("kernel {name} asks for {} bytes of shared memory", grid.shared));
        };
        let [x, y, z] = grid.blocks;
        self.attempt(name, |inner| {
            if grid.shared > SHARED_UNASKED && grid.shared > kernel.shared.load(Ordering::Relaxed) {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function lives as long as the device's modules.
                unsafe {
                    result::function::set_function_attribute(kernel.function, attribute, shared as i32)?
                };
                kernel.shared.store(grid.shared, Ordering::Relaxed);
            }
            // SAFETY: the function lives as long as the device's modules; there are as many arguments as it declares, each
            // of the size and kind it declares, and the driver copies them before it returns. Memory they point to is
            // borrowed by the caller, and its freeing waits for the stream. What the kernel does within it is proven by the
            // kernels' tests.
            unsafe {
                result::launch_kernel(
                    kernel.function,
                    (x, y, z),
                    (grid.threads, 1, 1),
                    shared,
                    inner.stream,
                    &mut addresses[..arguments.len()],
                )
            }
        });
    }
}

/// The bytes of an argument as a parameter of `kind` is passed, or why it cannot be.
fn pass(argument: &Argument, kind: Kind, owner: &Inner) -> Result<[u8; 8], String> {
    let word = |bytes: [u8; 4]| {
        let mut all = [0; 8];
        all[..4].copy_from_slice(&bytes);
        Ok(all)
    };
    let fits = |of: Option<&Inner>, found: Element, element: Option<Element>| {
        if of.is_some_and(|of| !ptr::eq(of, owner)) {
            return Err("memory of another device".to_owned());
        }
        match element {
            Some(wanted) if !found.serves(wanted, owner.precision) => {
                Err(format!("{found:?} where {wanted:?} is wanted"))
            }
            _ => Ok(()),
        }
    };
    match (kind, argument) {
        (Kind::Pointer { element, mutable: false }, Argument::Read(view)) => {
            fits(view.owner, view.element, element)?;
            Ok(view.pointer.to_ne_bytes())
        }
        (Kind::Pointer { element, .. }, Argument::Write(view)) => {
            fits(view.owner, view.element, element)?;
            Ok(view.pointer.to_ne_bytes())
        }
        (Kind::Pointer { .. }, Argument::Null) => Ok([0; 8]),
        (Kind::Pointer { .. }, Argument::Read(_)) => {
            Err("it writes there, and the memory is lent to read".to_owned())
        }
        (Kind::U32, Argument::U32(count)) => word(count.to_ne_bytes()),
        (Kind::U32, Argument::Size(count)) => match u32::try_from(*count) {
            Ok(count) => word(count.to_ne_bytes()),
            Err(_) => Err(format!("{count} does not fit 32 bits")),
        },
        (Kind::U64, Argument::U64(count)) => Ok(count.to_ne_bytes()),
        (Kind::U64, Argument::Size(count)) => Ok((*count as u64).to_ne_bytes()),
        (Kind::F32, Argument::F32(number)) => word(number.to_ne_bytes()),
        (Kind::F64, Argument::F64(number)) => Ok(number.to_ne_bytes()),
        (kind, _) => Err(format!("an argument of another kind than {kind:?}")),
    }
}
