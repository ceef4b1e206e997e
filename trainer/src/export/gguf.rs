//! GGUF, version 3, little-endian: what llama.cpp reads.
//!
//! `"GGUF"`, version, number of tensors, number of metadata; each metadatum a key, a type and a value; for each tensor its
//! name, its shape (innermost first), its type and where its numbers begin; then the numbers, each tensor's at a multiple
//! of the alignment. (`docs/gguf.md` in ggml's repository.)

use super::architectures::{self, Outgoing, Slice};
use super::{Written, vocabulary};
use crate::weights;
use formats::checkpoint::{AtomicFile, Directory, Dtype, encode};
use formats::layout::ParameterId;
use formats::{Error, Result};
use std::io::{self, Write};
use std::path::Path;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Where tensors may begin: multiples of this.
const ALIGNMENT: u64 = 32;

/// A metadatum's value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Count(u32),
    Number(f32),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i32>),
}

impl Value {
    /// A size that the format keeps in 32 bits; every bound of a config is below.
    pub(super) fn count(value: usize) -> Value {
        Value::Count(u32::try_from(value).unwrap_or(u32::MAX))
    }

    fn write(&self, out: &mut Vec<u8>) {
        let [count, integer, number, flag, string, list] = [4, 5, 6, 7, 8, 9];
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            word(out, list);
            word(out, kind);
            long(out, len as u64);
        };
        match self {
            Value::Bool(value) => {
                word(out, flag);
                out.push(u8::from(*value));
            }
            Value::Count(value) => {
                word(out, count);
                word(out, *value);
            }
            Value::Number(value) => {
                word(out, number);
                out.extend(value.to_le_bytes());
            }
            Value::Text(value) => {
                word(out, string);
                text(out, value);
            }
            Value::Texts(values) => {
                array(out, string, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Value::Integers(values) => {
                array(out, integer, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn word(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_le_bytes());
}

fn long(out: &mut Vec<u8>, value: u64) {
    out.extend(value.to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    long(out, value.len() as u64);
    out.extend(value.as_bytes());
}

/// The number by which the format knows an encoding.
fn tensor_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 30,
    }
}

/// `general.file_type` of a model whose matrices are encoded so.
fn file_type(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 32,
    }
}

/// Writes the file.
pub(super) fn export(
    directory: &Directory,
    dtype: Dtype,
    out: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Written> {
    let mut notes = Vec::new();
    let architecture = architectures::of(directory, &mut notes)?;
    let mut metadata = vec![
        ("general.architecture".to_owned(), Value::Text(architecture.name().to_owned())),
        ("general.alignment".to_owned(), Value::Count(ALIGNMENT as u32)),
        ("general.file_type".to_owned(), Value::Count(file_type(dtype))),
    ];
    metadata.extend(architecture.metadata(&directory.config));
    metadata.extend(vocabulary::metadata(directory, &mut notes)?);
    let tensors = architecture.tensors(&directory.config, &directory.layout, dtype);
    let header = header(&metadata, &tensors);
    let all = tensors.iter().map(|tensor| padded(tensor.bytes())).sum();
    let mut source = Source { directory, held: None, values: Vec::new() };
    let mut file = AtomicFile::create(out)?;
    let failed = |error| Error::write(out, error);
    file.write_all(&header).map_err(failed)?;
    let mut done = 0;
    for tensor in &tensors {
        source.write(tensor, &mut file, &failed)?;
        let padding = padded(tensor.bytes()) - tensor.bytes();
        file.write_all(&[0; ALIGNMENT as usize][..padding as usize]).map_err(failed)?;
        done += padded(tensor.bytes());
        progress(done, all);
    }
    file.finish()?;
    Ok(Written { architecture: architecture.name().to_owned(), tensors: tensors.len(), notes })
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

/// All that stands before the first tensor's numbers.
fn header(metadata: &[(String, Value)], tensors: &[Outgoing]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    word(&mut out, VERSION);
    long(&mut out, tensors.len() as u64);
    long(&mut out, metadata.len() as u64);
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        word(&mut out, tensor.shape.len() as u32);
        tensor.shape.iter().rev().for_each(|&size| long(&mut out, size as u64));
        word(&mut out, tensor_type(tensor.dtype));
        long(&mut out, offset);
        offset += padded(tensor.bytes());
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    out
}

/// The model's numbers, one parameter widened at a time.
struct Source<'a> {
    directory: &'a Directory,
    held: Option<ParameterId>,
    values: Vec<f32>,
}

impl Source<'_> {
    fn hold(&mut self, id: ParameterId) {
        if self.held != Some(id) {
            let Directory { weights, layout, .. } = self.directory;
            self.values.resize(layout.parameter(id).len(), 0.0);
            weights::read(weights, layout, id, &mut self.values);
            self.held = Some(id);
        }
    }

    fn write(
        &mut self,
        tensor: &Outgoing,
        out: &mut dyn Write,
        failed: &dyn Fn(io::Error) -> Error,
    ) -> Result<()> {
        let mut put = |values: &[f32]| -> Result<()> {
            tensor.dtype.must_hold(values, &tensor.name)?;
            encode(tensor.dtype, values, out).map_err(failed)
        };
        if tensor.slices.is_empty() {
            return put(&vec![0.0; tensor.len()]);
        }
        for slice in &tensor.slices {
            self.hold(slice.id);
            let width = slice.width(&self.directory.layout);
            let row = |index: usize| &self.values[index * width..(index + 1) * width];
            match slice.rotated {
                None => put(&self.values[slice.rows.start * width..slice.rows.end * width])?,
                Some(head) => {
                    let mut interleaved = Vec::with_capacity(head * width);
                    for start in slice.rows.clone().step_by(head) {
                        interleaved.clear();
                        (0..head).for_each(|index| {
                            interleaved.extend_from_slice(row(start + Slice::halves(index, head)));
                        });
                        put(&interleaved)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_the_format_says() {
        let tensors =
            [Outgoing::zeros("a", vec![3], Dtype::F32), Outgoing::zeros("bc", vec![2, 5], Dtype::F16)];
        let metadata = [
            ("k".to_owned(), Value::Texts(vec!["x".to_owned()])),
            ("n".to_owned(), Value::Number(1.0)),
            ("i".to_owned(), Value::Integers(vec![-1])),
            ("b".to_owned(), Value::Bool(true)),
        ];
        let bytes = header(&metadata, &tensors);
        let mut expected = b"GGUF".to_vec();
        let put =
            |expected: &mut Vec<u8>, words: &[u32]| words.iter().for_each(|&value| word(expected, value));
        put(&mut expected, &[3, 2, 0, 4, 0]);
        put(&mut expected, &[1, 0]);
        expected.push(b'k');
        put(&mut expected, &[9, 8, 1, 0, 1, 0]);
        expected.push(b'x');
        put(&mut expected, &[1, 0]);
        expected.push(b'n');
        put(&mut expected, &[6, 1.0f32.to_bits()]);
        put(&mut expected, &[1, 0]);
        expected.push(b'i');
        put(&mut expected, &[9, 5, 1, 0, u32::MAX]);
        put(&mut expected, &[1, 0]);
        expected.extend(b"b");
        put(&mut expected, &[7]);
        expected.push(1);
        put(&mut expected, &[1, 0]);
        expected.push(b'a');
        put(&mut expected, &[1, 3, 0, 0, 0, 0]);
        put(&mut expected, &[2, 0]);
        expected.extend(b"bc");
        // The innermost size first; the second tensor begins at the alignment after twelve bytes.
        put(&mut expected, &[2, 5, 0, 2, 0, 1, 32, 0]);
        expected.resize(expected.len().next_multiple_of(32), 0);
        assert_eq!(bytes, expected);
    }
}
