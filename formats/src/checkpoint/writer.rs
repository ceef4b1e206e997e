//! The safetensors format, written: to the same bytes for the same tensors, straight into a file.
//!
//! The header is the crate's own; the tensors follow it one by one, rounded on the way, so that a model is never
//! held twice.

use super::Dtype;
use super::header::{LENGTH_BYTES, MOST_HEADER, check_name};
use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use std::fmt;
use std::io::{self, Write};

/// Values encoded at a time.
const CHUNK: usize = 4096;
/// Columns of a transposed matrix gathered at a time: whole cache lines are read.
const COLUMNS: usize = 16;

/// One tensor to be written.
pub(super) struct Outgoing<'a> {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) values: Values<'a>,
}

/// Where an outgoing tensor's numbers come from.
pub(super) enum Values<'a> {
    /// Encoded already.
    Encoded(&'a [u8]),
    /// To be rounded to the tensor's dtype on the way.
    Floats(&'a [f32]),
    /// The same, of a matrix with so many columns that is written column by column.
    Transposed(&'a [f32], usize),
}

impl Outgoing<'_> {
    fn bytes(&self) -> usize {
        match self.values {
            Values::Encoded(bytes) => bytes.len(),
            Values::Floats(values) | Values::Transposed(values, _) => values.len() * self.dtype.size(),
        }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        match self.values {
            Values::Encoded(bytes) => out.write_all(bytes),
            Values::Floats(values) => encode(self.dtype, values, out),
            Values::Transposed(values, columns) => {
                let rows = values.len() / columns;
                let mut turned = vec![0.0; rows * COLUMNS.min(columns)];
                for first in (0..columns).step_by(COLUMNS) {
                    let count = COLUMNS.min(columns - first);
                    for (row, line) in values.chunks_exact(columns).enumerate() {
                        for (column, value) in line[first..first + count].iter().enumerate() {
                            turned[column * rows + row] = *value;
                        }
                    }
                    encode(self.dtype, &turned[..rows * count], out)?;
                }
                Ok(())
            }
        }
    }

    /// Refuses numbers that the file would not hold.
    fn check_values(&self) -> Result<()> {
        let (Values::Floats(values) | Values::Transposed(values, _)) = self.values else { return Ok(()) };
        self.dtype.must_hold(values, &self.name)
    }
}

impl Dtype {
    /// Refuses numbers that a tensor of this type would not hold: none that is not finite, none beyond its range.
    pub fn must_hold(self, values: &[f32], tensor: &str) -> Result<()> {
        let fits = |value: f32| match self {
            Dtype::F32 => value.is_finite(),
            Dtype::F16 => f16::from_f32(value).is_finite(),
            Dtype::Bf16 => bf16::from_f32(value).is_finite(),
        };
        match values.iter().find(|&&value| !fits(value)) {
            Some(value) if value.is_finite() => Err(Error::Usage(format!(
                "tensor {tensor} holds {value}, beyond the range of {self}; save with --dtype f32"
            ))),
            Some(value) => Err(Error::Diverged(format!("tensor {tensor} holds {value}; it was not saved"))),
            None => Ok(()),
        }
    }
}

/// Writes numbers as a file has them, rounded to `dtype` on the way.
pub fn encode(dtype: Dtype, values: &[f32], out: &mut (impl Write + ?Sized)) -> io::Result<()> {
    let mut encoded = Vec::with_capacity(CHUNK * dtype.size());
    for chunk in values.chunks(CHUNK) {
        encoded.clear();
        match dtype {
            Dtype::F32 => encoded.extend_from_slice(bytemuck::cast_slice(chunk)),
            Dtype::F16 => encoded.extend(chunk.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
            Dtype::Bf16 => {
                encoded.extend(chunk.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()))
            }
        }
        out.write_all(&encoded)?;
    }
    Ok(())
}

/// Writes one file: widest numbers first, then by name, so that the same tensors give the same bytes.
pub(super) fn write(
    tensors: &mut [Outgoing],
    out: &mut impl Write,
    failed: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let rank = |dtype: Dtype| match dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::Bf16 => safetensors::Dtype::BF16,
    };
    tensors.sort_by(|a, b| rank(b.dtype).cmp(&rank(a.dtype)).then_with(|| a.name.cmp(&b.name)));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(tensors.len());
    for tensor in &*tensors {
        tensor.check_values()?;
        check_name(&tensor.name).map_err(Error::Internal)?;
        let end = offset + tensor.bytes();
        let info = TensorInfo {
            dtype: rank(tensor.dtype),
            shape: tensor.shape.clone(),
            data_offsets: (offset, end),
        };
        infos.push((tensor.name.clone(), info));
        offset = end;
    }
    // A single key: the crate writes this map in random order.
    let metadata = [("format".to_string(), "pt".to_string())].into_iter().collect();
    let internal = |error: &dyn fmt::Display| Error::Internal(format!("tensors cannot be written: {error}"));
    let metadata = Metadata::new(Some(metadata), infos).map_err(|error| internal(&error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| internal(&error))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES), b' ');
    if header.len() as u64 > MOST_HEADER {
        return Err(internal(&"the header is longer than can be read back"));
    }
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(&failed)?;
    out.write_all(&header).map_err(&failed)?;
    for tensor in &*tensors {
        tensor.write(out).map_err(&failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::container::TensorFile;
    use super::*;
    use std::path::Path;
    use std::sync::Arc;

    fn outgoing<'a>(name: &str, dtype: Dtype, shape: &[usize], values: Values<'a>) -> Outgoing<'a> {
        Outgoing { name: name.into(), dtype, shape: shape.into(), values }
    }

    fn written(tensors: &mut [Outgoing]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        write(tensors, &mut bytes, |error| Error::write("model.safetensors", error))?;
        Ok(bytes)
    }

    #[test]
    fn the_bytes_are_the_crates_own_and_never_change() {
        use safetensors::tensor::TensorView;
        let floats = [1.0f32, -2.5, 3.25];
        let halves = floats.map(f16::from_f32).map(f16::to_le_bytes).concat();
        let bytes = floats.map(f32::to_le_bytes).concat();
        let theirs = safetensors::serialize(
            [
                ("b", TensorView::new(safetensors::Dtype::F32, vec![3], &bytes).expect("fits")),
                ("a", TensorView::new(safetensors::Dtype::F16, vec![3, 1], &halves).expect("fits")),
                ("A", TensorView::new(safetensors::Dtype::F32, vec![1, 3], &bytes).expect("fits")),
            ],
            Some([("format".to_string(), "pt".to_string())].into_iter().collect()),
        )
        .expect("can be written");
        for _ in 0..3 {
            let ours = written(&mut [
                outgoing("a", Dtype::F16, &[3, 1], Values::Floats(&floats)),
                outgoing("A", Dtype::F32, &[1, 3], Values::Encoded(&bytes)),
                outgoing("b", Dtype::F32, &[3], Values::Floats(&floats)),
            ])
            .expect("can be written");
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn every_value_survives_or_is_rounded_once() {
        let values: Vec<f32> = (0..3 * CHUNK + 7).map(|i| (i as f32 - 5000.0) * 0.37).collect();
        for dtype in Dtype::ALL {
            let bytes = written(&mut [outgoing("a", dtype, &[values.len()], Values::Floats(&values))]);
            let bytes: Arc<[u8]> = bytes.expect("finite").into();
            let file = TensorFile::from_bytes(bytes, Path::new("memory")).expect("our own file");
            let tensor = file.get("a").expect("is there").values;
            assert_eq!((tensor.len(), tensor.dtype()), (values.len(), dtype));
            for (index, &value) in values.iter().enumerate() {
                let expected = match dtype {
                    Dtype::F32 => value,
                    Dtype::F16 => f16::from_f32(value).to_f32(),
                    Dtype::Bf16 => bf16::from_f32(value).to_f32(),
                };
                assert_eq!(tensor.get(index), expected);
            }
        }
    }

    #[test]
    fn a_transposed_matrix_is_written_column_by_column() {
        for (rows, columns) in [(1, 1), (3, 5), (7, 16), (2, 33), (40, 17)] {
            let values: Vec<f32> = (0..rows * columns).map(|index| index as f32).collect();
            let shape = [columns, rows];
            let bytes =
                written(&mut [outgoing("a", Dtype::F32, &shape, Values::Transposed(&values, columns))]);
            let file = TensorFile::from_bytes(bytes.expect("finite").into(), Path::new("memory"));
            let file = file.expect("our own file");
            let tensor = file.get("a").expect("is there").values;
            for index in 0..tensor.len() {
                assert_eq!(tensor.get(index), values[index % rows * columns + index / rows]);
            }
        }
    }

    #[test]
    fn what_a_dtype_cannot_hold_is_not_written() {
        let mut large = [outgoing("a", Dtype::F16, &[2], Values::Floats(&[1.0, 65520.0]))];
        let error = written(&mut large).expect_err("beyond f16");
        assert!(error.to_string().contains("tensor a holds 65520, beyond the range of f16"), "{error}");
        large[0].dtype = Dtype::Bf16;
        assert!(written(&mut large).is_ok());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for dtype in Dtype::ALL {
                let error = written(&mut [outgoing("a", dtype, &[1], Values::Floats(&[bad]))]);
                assert_eq!(error.expect_err("not finite").exit_code(), 9);
            }
        }
    }

    #[test]
    fn a_shape_that_is_not_the_datas_is_our_bug() {
        let mut wrong = [outgoing("a", Dtype::F32, &[3], Values::Floats(&[1.0, 2.0]))];
        assert_eq!(written(&mut wrong).expect_err("two for three").exit_code(), 1);
        let mut name = [outgoing("a b", Dtype::F32, &[1], Values::Floats(&[1.0]))];
        assert_eq!(written(&mut name).expect_err("no name").exit_code(), 1);
    }
}
