//! A GGUF file, read as llama.cpp does: the judge of what the trainer exports.

use std::collections::BTreeMap;
use std::path::Path;

/// A metadatum.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `u32`.
    Count(u32),
    /// `i32`.
    Integer(i32),
    /// `f32`.
    Number(f32),
    /// One byte.
    Flag(bool),
    /// UTF-8 text.
    Text(String),
    /// Several of one type.
    List(Vec<Value>),
}

/// A tensor, widened.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Innermost first, as the file has it.
    pub shape: Vec<usize>,
    /// The number of its type: 0 is f32, 1 f16, 30 bf16.
    pub kind: u32,
    /// In the order of the file.
    pub values: Vec<f32>,
}

/// The whole file.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// By key.
    pub metadata: BTreeMap<String, Value>,
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Gguf {
    /// Reads a file, asserting everything the format asks for.
    #[track_caller]
    pub fn open(path: &Path) -> Gguf {
        let bytes = std::fs::read(path).expect("a file");
        let mut cursor = Cursor { bytes: &bytes, at: 0 };
        assert_eq!(cursor.take(4), b"GGUF");
        assert_eq!(cursor.word(), 3);
        let (tensors, count) = (cursor.long(), cursor.long());
        let mut metadata = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.text();
            let kind = cursor.word();
            let value = cursor.value(kind);
            assert!(metadata.insert(key.clone(), value).is_none(), "{key} stands twice");
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            let name = cursor.text();
            let shape: Vec<usize> = (0..cursor.word()).map(|_| cursor.long() as usize).collect();
            infos.push((name, shape, cursor.word(), cursor.long() as usize));
        }
        let data = cursor.at.next_multiple_of(32);
        let mut end = data;
        let mut tensors = BTreeMap::new();
        for (name, shape, kind, offset) in infos {
            assert!(name.len() < 64 && offset.is_multiple_of(32), "{name} at {offset}");
            assert_eq!(data + offset, end, "{name} leaves a hole or lies over another");
            let len: usize = shape.iter().product();
            let size = if kind == 0 { 4 } else { 2 };
            let body = &bytes[end..end + len * size];
            let values = body.chunks_exact(size).map(|number| widened(number, kind)).collect();
            end += (len * size).next_multiple_of(32);
            assert!(tensors.insert(name.clone(), Tensor { shape, kind, values }).is_none(), "{name} twice");
        }
        assert_eq!(end, bytes.len(), "the file ends where its last tensor does");
        Gguf { metadata, tensors }
    }

    /// A text among the metadata.
    #[track_caller]
    pub fn text(&self, key: &str) -> &str {
        match &self.metadata[key] {
            Value::Text(text) => text,
            other => panic!("{key} is {other:?}"),
        }
    }

    /// A count among the metadata.
    #[track_caller]
    pub fn count(&self, key: &str) -> usize {
        match &self.metadata[key] {
            Value::Count(count) => *count as usize,
            other => panic!("{key} is {other:?}"),
        }
    }

    /// A list of texts among the metadata.
    #[track_caller]
    pub fn texts(&self, key: &str) -> Vec<&str> {
        let Value::List(list) = &self.metadata[key] else { panic!("{key} is no list") };
        list.iter()
            .map(|value| if let Value::Text(text) = value { text.as_str() } else { panic!() })
            .collect()
    }
}

fn widened(number: &[u8], kind: u32) -> f32 {
    match (number, kind) {
        (&[a, b, c, d], 0) => f32::from_le_bytes([a, b, c, d]),
        (&[a, b], 1) => half::f16::from_le_bytes([a, b]).to_f32(),
        (&[a, b], 30) => half::bf16::from_le_bytes([a, b]).to_f32(),
        _ => panic!("a tensor of type {kind}"),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn long(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn text(&mut self) -> String {
        let count = self.long() as usize;
        String::from_utf8(self.take(count).to_vec()).expect("UTF-8")
    }

    fn value(&mut self, kind: u32) -> Value {
        match kind {
            4 => Value::Count(self.word()),
            5 => Value::Integer(self.word() as i32),
            6 => Value::Number(f32::from_bits(self.word())),
            7 => Value::Flag(self.take(1)[0] != 0),
            8 => Value::Text(self.text()),
            9 => {
                let (kind, count) = (self.word(), self.long());
                Value::List((0..count).map(|_| self.value(kind)).collect())
            }
            _ => panic!("a metadatum of type {kind}"),
        }
    }
}
