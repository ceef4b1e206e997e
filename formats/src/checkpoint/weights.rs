//! One model's tensors: each of the layout's parameters has its own, whole or in pieces, of the right shapes, and
//! there are no others. They may lie in several files.

use super::container::TensorFile;
use super::header::Place;
use super::{Advice, Dtype, Tensor, shards};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::families;
use crate::layout::{Layout, ParameterId};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Most differences that one error names.
const MOST_DIFFERENCES: usize = 3;

/// The weights of one model, mapped or in memory, unchangeable; a parameter's numbers are read where they stand.
#[derive(Debug)]
pub struct Weights {
    files: Vec<TensorFile>,
    /// In the layout's order, the pieces of a parameter by their rows.
    pieces: Vec<Held>,
    /// Where each parameter's pieces begin, and after the last their number.
    first: Vec<usize>,
    dtype: Dtype,
}

/// A tensor that holds some or all of a parameter's rows.
#[derive(Debug)]
struct Held {
    rows: Range<usize>,
    inputs_first: bool,
    file: usize,
    place: Place,
}

/// Some or all of a parameter's rows, where they stand.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// Which of the parameter's rows.
    pub rows: Range<usize>,
    /// Their numbers.
    pub values: Tensor<'a>,
    /// Whether they stand transposed: `[columns, rows]`, one line an input of a projection.
    pub inputs_first: bool,
}

impl Weights {
    /// Maps a `model.safetensors` and checks it against the layout. No number is read.
    pub fn open(path: &Path, config: &Config, layout: &Layout) -> Result<Weights> {
        let file = TensorFile::open_passing(path, &|name| families::is_ignored(config, layout, name))?;
        Weights::check(vec![file], config, layout, path)
    }

    /// The same of the shards that an index names.
    pub(super) fn open_shards(index: &Path, config: &Config, layout: &Layout) -> Result<Weights> {
        let files = shards::open(index, &|name| families::is_ignored(config, layout, name))?;
        Weights::check(files, config, layout, index)
    }

    /// The same from memory; copies only bytes that are not aligned. `origin` names them in errors.
    pub fn from_bytes(bytes: Arc<[u8]>, config: &Config, layout: &Layout, origin: &Path) -> Result<Weights> {
        let ignored = |name: &str| families::is_ignored(config, layout, name);
        let file = TensorFile::from_bytes_passing(bytes, origin, &ignored)?;
        Weights::check(vec![file], config, layout, origin)
    }

    fn check(files: Vec<TensorFile>, config: &Config, layout: &Layout, origin: &Path) -> Result<Weights> {
        let expected = families::stored(config, layout);
        let mut differences = Vec::new();
        let mut pieces = Vec::with_capacity(expected.len());
        let find = |name: &str| {
            let mut found =
                files.iter().enumerate().filter_map(|(index, file)| Some((index, file.find(name)?)));
            found.next()
        };
        let mut names = Vec::with_capacity(expected.len());
        let mut first = vec![0; layout.iter().filter(|(_, parameter)| parameter.is_stored()).count() + 1];
        for stored in &expected {
            let short =
                || families::short_name(config, &stored.name).and_then(|name| Some((name, find(name)?)));
            match find(&stored.name).map(|found| (stored.name.as_str(), found)).or_else(short) {
                Some((name, (file, entry))) if entry.shape == stored.shape => {
                    let rows = stored.first_row..stored.first_row + stored.rows();
                    let (inputs_first, place) = (stored.inputs_first, entry.place.clone());
                    pieces.push(Held { rows, inputs_first, file, place });
                    first[stored.id.index() + 1] = pieces.len();
                    names.push(name);
                }
                Some((name, (_, entry))) => {
                    names.push(name);
                    differences
                        .push(format!("{name} has the shape {:?}, expected {:?}", entry.shape, stored.shape));
                }
                None => differences.push(format!("{} of shape {:?} is missing", stored.name, stored.shape)),
            }
        }
        names.sort_unstable();
        let unknown = files.iter().flat_map(TensorFile::iter).filter(|tensor| {
            names.binary_search(&tensor.name).is_err() && !families::is_ignored(config, layout, tensor.name)
        });
        differences.extend(unknown.map(|tensor| format!("{} is not part of the model", tensor.name)));
        if !differences.is_empty() {
            let more = differences.len().saturating_sub(MOST_DIFFERENCES);
            differences.truncate(MOST_DIFFERENCES);
            let mut problem = differences.join("; ");
            if more > 0 {
                problem.push_str(&format!("; and {more} more"));
            }
            return Err(Error::file(
                origin,
                format!("does not hold the model that its config.json describes: {problem}"),
                "put a model's config.json and model.safetensors of one save together",
            ));
        }
        let embedding = &pieces[first[layout.token_embedding.index()]];
        let dtype = files[embedding.file].values(&embedding.place).dtype();
        Ok(Weights { files, pieces, first, dtype })
    }

    /// The numbers of a parameter that every family stores whole: an embedding, a gain, a bias.
    pub fn tensor(&self, id: ParameterId) -> Tensor<'_> {
        let [held] = self.of(id) else { panic!("{id:?} is stored in pieces") };
        self.values(held)
    }

    /// One parameter's numbers, each tensor with the rows it holds, in their order.
    pub fn pieces(&self, id: ParameterId) -> impl Iterator<Item = Piece<'_>> {
        self.of(id).iter().map(|held| Piece {
            rows: held.rows.clone(),
            values: self.values(held),
            inputs_first: held.inputs_first,
        })
    }

    fn values(&self, held: &Held) -> Tensor<'_> {
        self.files[held.file].values(&held.place)
    }

    /// Tells the system how a parameter's numbers are going to be used. Best effort; changes no number.
    pub fn advise(&self, id: ParameterId, advice: Advice) {
        for held in self.of(id) {
            self.files[held.file].advise(&held.place, advice);
        }
    }

    fn of(&self, id: ParameterId) -> &[Held] {
        &self.pieces[self.first[id.index()]..self.first[id.index() + 1]]
    }

    /// Copies what is mapped into memory of the process's own, in large pages where the system has them: it is read faster
    /// there, and takes memory that no other process shares. The numbers are the same.
    pub fn hold(&mut self) -> Result<()> {
        self.files.iter_mut().try_for_each(TensorFile::hold)
    }

    /// How the matrices are encoded; each tensor may differ.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Length of the file, or of all of them.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(TensorFile::bytes).sum()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::writer::{self, Outgoing, Values};
    use super::*;
    use crate::config::AttentionScale;
    use crate::config::tests::lecture;

    /// A model whose whole file is a few kilobytes.
    pub(in crate::checkpoint) fn small() -> Config {
        Config {
            vocabulary: 3,
            context: 2,
            width: 2,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_size: 2,
            feed_forward: 2,
            ..lecture()
        }
    }

    /// Values that tell every place from every other and are exact in each dtype.
    pub(in crate::checkpoint) fn values(layout: &Layout) -> Vec<f32> {
        (0..layout.parameters()).map(|index| index as f32).collect()
    }

    fn tensors<'a>(config: &Config, layout: &Layout, dtype: Dtype, values: &'a [f32]) -> Vec<Outgoing<'a>> {
        families::stored(config, layout)
            .into_iter()
            .map(|stored| Outgoing {
                name: stored.name,
                dtype,
                shape: stored.shape,
                values: Values::Floats(&values[layout.parameter(stored.id).range()]),
            })
            .collect()
    }

    fn written(tensors: &mut [Outgoing]) -> Vec<u8> {
        let mut bytes = Vec::new();
        writer::write(tensors, &mut bytes, |error| Error::write("memory", error)).expect("can be written");
        bytes
    }

    fn open(bytes: &[u8], config: &Config) -> Result<Weights> {
        let origin = Path::new("model.safetensors");
        Weights::from_bytes(Arc::from(bytes), config, &Layout::new(config), origin)
    }

    /// Every value in layout order.
    fn all(weights: &Weights, layout: &Layout) -> Vec<f32> {
        layout
            .iter()
            .flat_map(|(id, parameter)| {
                let tensor = weights.tensor(id);
                assert_eq!(tensor.len(), parameter.len());
                (0..tensor.len()).map(move |index| tensor.get(index))
            })
            .collect()
    }

    #[test]
    fn every_parameter_reads_its_own_values() {
        for config in
            [small(), Config { tied: true, ..small() }, Config { tied: true, head_bias: false, ..small() }]
        {
            let layout = Layout::new(&config);
            let values = values(&layout);
            for dtype in Dtype::ALL {
                let bytes = written(&mut tensors(&config, &layout, dtype, &values));
                let weights = open(&bytes, &config).expect("our own file");
                assert_eq!(all(&weights, &layout), values);
                assert_eq!((weights.dtype(), weights.bytes()), (dtype, bytes.len() as u64));
            }
        }
    }

    #[test]
    fn tensors_may_differ_in_dtype() {
        let (config, layout) = (small(), Layout::new(&small()));
        let values = values(&layout);
        let mut mixed = tensors(&config, &layout, Dtype::F16, &values);
        mixed.iter_mut().step_by(3).for_each(|tensor| tensor.dtype = Dtype::F32);
        assert_eq!(all(&open(&written(&mut mixed), &config).expect("three types are read"), &layout), values);
    }

    #[test]
    fn another_models_file_is_refused_with_the_first_differences() {
        let config = small();
        let layout = Layout::new(&config);
        let values = values(&layout);
        let bytes = written(&mut tensors(&config, &layout, Dtype::F32, &values));
        let cases = [
            (
                Config { vocabulary: 4, ..small() },
                "token_embedding.weight has the shape [3, 2], expected [4, 2]",
            ),
            (
                Config { head_bias: false, attention_scale: AttentionScale::Width, ..small() },
                "head.bias is not part of the model",
            ),
            (Config { tied: true, ..small() }, "head.weight is not part of the model"),
            (Config { layers: 2, ..small() }, "layers.1.attention_norm.weight of shape [2] is missing"),
            (Config { layers: 2, ..small() }, "and 9 more"),
        ];
        for (config, words) in cases {
            let error = open(&bytes, &config).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit_code(), 3);
        }
    }

    #[test]
    fn dropping_renaming_or_reshaping_any_tensor_is_refused() {
        let (config, layout) = (small(), Layout::new(&small()));
        let values = values(&layout);
        let whole = || tensors(&config, &layout, Dtype::F32, &values);
        for index in 0..whole().len() {
            let mut dropped = whole();
            dropped.remove(index);
            let mut renamed = whole();
            renamed[index].name.push('x');
            let mut reshaped = whole();
            reshaped[index].shape.push(1);
            for mut changed in [dropped, renamed, reshaped] {
                assert!(open(&written(&mut changed), &config).is_err(), "tensor {index}");
            }
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let (config, layout) = (small(), Layout::new(&small()));
        let whole = written(&mut tensors(&config, &layout, Dtype::F16, &values(&layout)));
        for end in 0..whole.len() {
            let error = open(&whole[..end], &config).expect_err("cut short");
            assert_eq!(error.exit_code(), 3, "cut at {end}: {error}");
        }
    }

    #[test]
    fn every_bit_flip_of_the_header_is_refused_or_changes_nothing() {
        let (config, layout) = (small(), Layout::new(&small()));
        let values = values(&layout);
        let mut bytes = written(&mut tensors(&config, &layout, Dtype::F16, &values));
        let length: [u8; 8] = *bytes.first_chunk().expect("a header");
        let header = 8 + u64::from_le_bytes(length) as usize;
        let mut unchanged = 0;
        for place in 0..header {
            for bit in 0..8 {
                bytes[place] ^= 1 << bit;
                match open(&bytes, &config) {
                    Ok(weights) => {
                        assert_eq!(all(&weights, &layout), values, "bit {bit} of byte {place}");
                        unchanged += 1;
                    }
                    Err(error) => assert_eq!(error.exit_code(), 3, "{error}"),
                }
                bytes[place] ^= 1 << bit;
            }
        }
        // Only the free text of the metadata, "format" and "pt", can change without a meaning.
        assert!((1..=8 * 8).contains(&unchanged), "{unchanged}");
    }

    #[test]
    fn weights_cross_threads() {
        fn assert_both<T: Send + Sync>() {}
        assert_both::<Weights>();
    }
}
