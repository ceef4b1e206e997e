//! Model files opened (mapped, checked against the layout) and checkpoints saved (atomic, durable).
//!
//! - [`source`]: the only way a file is opened: regular, bounded, never a hang
//! - `map`: a file's bytes, mapped or held; `advice`: what the system is told about them
//! - `container`: the safetensors format, its `header` read strictly; `writer`: written to the same bytes every time
//! - `weights`: one model's tensors, each proven to be what the layout expects
//! - `shards`: weights in several files, under one index
//! - `generation`: how a model wants to be sampled
//! - `directory`: a model directory as a whole, opened and written
//! - `atomic`: one file, whole or absent
//! - `commit`: one checkpoint, whole or absent; `manifest`: its checksums
//! - `history`: the checkpoints of a run: which is newest, which may go
//!
//! A file is written once and never modified, so what is mapped cannot change under a reader by our hand.

mod advice;
mod atomic;
mod commit;
mod container;
mod directory;
mod generation;
mod header;
mod history;
mod manifest;
mod map;
mod shards;
pub mod source;
mod weights;
mod writer;

pub use advice::Advice;
pub use atomic::AtomicFile;
pub use commit::Commit;
pub use container::{StoredTensor, TensorFile};
pub use directory::{
    Directory, ForeignTokenizer, ModelFiles, check_vocabulary, model_config, no_tokenizer, write_model,
};
pub use generation::GenerationConfig;
pub use history::{clean, newest, point, retain, step_path};
pub use manifest::verify;
pub use map::{Map, large_pages};
pub use weights::{Piece, Weights};
pub use writer::encode;

use crate::error::Error;
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

#[cfg(target_endian = "big")]
compile_error!("the file format is little-endian and is mapped as it stands");

/// How a stored number is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => size_of::<f32>(),
            Dtype::F16 => size_of::<f16>(),
            Dtype::Bf16 => size_of::<bf16>(),
        }
    }

    /// The short name, as flags and config files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// The name in a Hugging Face `config.json`.
    pub fn long_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Dtype, Error> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
            let names = Dtype::ALL.map(Dtype::name).join(", ");
            Error::Usage(format!("there is no dtype {text:?}; there are {names}"))
        })
    }
}

/// A stored tensor's numbers, in place.
#[derive(Clone, Copy, Debug)]
pub enum Tensor<'a> {
    /// As f32.
    F32(&'a [f32]),
    /// As f16.
    F16(&'a [f16]),
    /// As bf16.
    Bf16(&'a [bf16]),
}

impl<'a> Tensor<'a> {
    /// Some of the values.
    ///
    /// # Panics
    /// If `range` does not lie below [`Tensor::len`].
    pub fn part(&self, range: Range<usize>) -> Tensor<'a> {
        match self {
            Tensor::F32(values) => Tensor::F32(&values[range]),
            Tensor::F16(values) => Tensor::F16(&values[range]),
            Tensor::Bf16(values) => Tensor::Bf16(&values[range]),
        }
    }

    /// How the numbers are encoded.
    pub fn dtype(&self) -> Dtype {
        match self {
            Tensor::F32(_) => Dtype::F32,
            Tensor::F16(_) => Dtype::F16,
            Tensor::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match self {
            Tensor::F32(values) => values.len(),
            Tensor::F16(values) => values.len(),
            Tensor::Bf16(values) => values.len(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One value, widened exactly.
    ///
    /// # Panics
    /// If `index` is not below [`Tensor::len`].
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Tensor::F32(values) => values[index],
            Tensor::F16(values) => values[index].to_f32(),
            Tensor::Bf16(values) => values[index].to_f32(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_reads_its_own_name() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.to_string().parse::<Dtype>().expect("its own name"), dtype);
        }
        let error = "int4".parse::<Dtype>().expect_err("no such dtype");
        assert!(error.to_string().contains("f32, f16, bf16"), "{error}");
    }

    #[test]
    fn a_tensor_widens_exactly() {
        let halves = [f16::from_f32(0.1), f16::MAX];
        let tensor = Tensor::F16(&halves);
        assert_eq!((tensor.len(), tensor.get(0), tensor.get(1)), (2, 0.099975586, 65504.0));
        let brains = [bf16::from_f32(3.0)];
        assert_eq!(Tensor::Bf16(&brains).get(0), 3.0);
        assert_eq!(Tensor::F32(&[f32::MIN_POSITIVE]).get(0), f32::MIN_POSITIVE);
    }
}
