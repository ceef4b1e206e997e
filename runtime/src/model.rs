//! A model on disk, mapped: what every session of it shares.

use crate::prepared::Prepared;
use crate::session::{Session, SessionOptions};
use crate::simd::Simd;
use crate::team::{MAX_THREADS, Team};
use formats::checkpoint::{Directory, GenerationConfig, Weights};
use formats::layout::Role;
use formats::tokenizer::Tokenizer;
use formats::{Config, Error, Layout, Result, families};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Below this many bytes of weights one thread is done before several have met.
const WORTH_SHARING: u64 = 1 << 20;

/// An opened model: immutable, mapped, cheap to clone, shared between threads freely. Sessions of one model compute
/// in turns, on threads that the model keeps.
#[derive(Clone, Debug)]
pub struct Model {
    shared: Arc<Shared>,
}

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Threads that compute; `None` chooses by the size of the weights.
    pub threads: Option<usize>,
}

/// What the clones of a [`Model`] share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) weights: Weights,
    pub(crate) prepared: Prepared,
    pub(crate) simd: &'static Simd,
    tokenizer: Option<Tokenizer>,
    generation: GenerationConfig,
    threads: usize,
    /// Started with the first session: a model that is only looked at needs no threads.
    team: Mutex<Option<Team>>,
}

impl Shared {
    /// Lets `work` use the team when its turn has come, starting the team if need be.
    pub(crate) fn with_team<T>(&self, work: impl FnOnce(&mut Team) -> Result<T>) -> Result<T> {
        // A panic of an earlier turn went on in its own caller and left the team ready for the next.
        let mut team = self.team.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *team {
            Some(team) => work(team),
            empty => work(empty.insert(Team::new(self.threads)?)),
        }
    }
}

impl Model {
    /// Opens a model directory: a run, its `model` link, or the model directory itself.
    pub fn open(path: &Path) -> Result<Model> {
        Model::open_with(path, &ModelOptions::default())
    }

    /// Opens a model directory with options.
    pub fn open_with(path: &Path, options: &ModelOptions) -> Result<Model> {
        let Directory { config, layout, weights, tokenizer, generation, .. } = Directory::open(path)?;
        Model::new(config, layout, weights, tokenizer, generation, options)
    }

    /// Opens a model held in memory: the texts of `config.json` and, if there is one, `tokenizer.json`, and the
    /// bytes of `model.safetensors`.
    pub fn from_bytes(config_json: &str, weights: &[u8], tokenizer_json: Option<&str>) -> Result<Model> {
        Model::from_bytes_with(config_json, weights, tokenizer_json, &ModelOptions::default())
    }

    /// The same with options.
    pub fn from_bytes_with(
        config_json: &str,
        weights: &[u8],
        tokenizer_json: Option<&str>,
        options: &ModelOptions,
    ) -> Result<Model> {
        let [config_name, weights_name, tokenizer_name] =
            ["config.json", "model.safetensors", "tokenizer.json"].map(Path::new);
        let config = families::read_config(config_json, config_name)?;
        let layout = Layout::new(&config);
        let tokenizer = tokenizer_json.map(|text| Tokenizer::from_json(text, tokenizer_name)).transpose()?;
        if let Some(tokenizer) = tokenizer.as_ref().filter(|known| known.vocabulary() != config.vocabulary) {
            let expected = format!("the {} of config.json", config.vocabulary);
            return Err(Error::config("tokenizer.json", "vocabulary", tokenizer.vocabulary(), expected));
        }
        let weights = Weights::from_bytes(Arc::from(weights), &config, &layout, weights_name)?;
        Model::new(config, layout, weights, tokenizer, GenerationConfig::default(), options)
    }

    fn new(
        config: Config,
        layout: Layout,
        weights: Weights,
        tokenizer: Option<Tokenizer>,
        generation: GenerationConfig,
        options: &ModelOptions,
    ) -> Result<Model> {
        let simd = Simd::best();
        let threads = match options.threads {
            Some(threads @ 1..=MAX_THREADS) => threads,
            Some(threads) => {
                return Err(Error::Usage(format!("threads is {threads}, expected 1 to {MAX_THREADS}")));
            }
            None if weights.bytes() < WORTH_SHARING => 1,
            None => thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS),
        };
        let prepared = Prepared::new(&layout, &weights, simd)?;
        let team = Mutex::new(None);
        let shared = Shared { config, layout, weights, prepared, simd, tokenizer, generation, threads, team };
        Ok(Model { shared: Arc::new(shared) })
    }

    /// The model's description.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Its list of parameters.
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// Its tokenizer, if the directory holds one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.tokenizer.as_ref()
    }

    /// What its directory says about sampling.
    pub fn generation(&self) -> &GenerationConfig {
        &self.shared.generation
    }

    /// Its weights as stored.
    pub fn weights(&self) -> &Weights {
        &self.shared.weights
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// The table of routines in use.
    pub fn simd(&self) -> &'static Simd {
        self.shared.simd
    }

    /// Bytes of weights read to decode one token: every parameter as it is stored, but one row of an embedding
    /// that is not the head too.
    pub fn bytes_per_token(&self) -> u64 {
        let Shared { layout, weights, .. } = &*self.shared;
        let bytes = layout.iter().map(|(id, parameter)| {
            let one_row = match parameter.role {
                Role::TokenEmbedding => id != layout.head.weight,
                Role::PositionEmbedding => true,
                _ => false,
            };
            let values = if one_row { parameter.columns } else { parameter.len() };
            (values * weights.tensor(id).dtype().size()) as u64
        });
        bytes.sum()
    }

    /// A session with an f16 cache as long as the model's context.
    pub fn session(&self) -> Result<Session> {
        self.session_with(&SessionOptions::default())
    }

    /// A session with options; memory that cannot be had is an error.
    pub fn session_with(&self, options: &SessionOptions) -> Result<Session> {
        Session::new(self, options)
    }

    /// What the clones share.
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::random::{Purpose, Stream};
    use formats::checkpoint::Dtype;
    use formats::config::{Activation, AttentionScale, Position};
    use half::{bf16, f16};

    /// A small model's description; its sizes are no multiples of anything that suits a processor.
    pub(crate) fn config(layers: usize) -> Config {
        Config {
            vocabulary: 37,
            context: 23,
            width: 30,
            layers,
            heads: 3,
            feed_forward: 50,
            position: Position::Learned,
            activation: Activation::GeluErf,
            attention_scale: AttentionScale::HeadSize,
            norm_eps: 1e-5,
            norm_bias: true,
            qkv_bias: true,
            attention_bias: true,
            feed_forward_bias: true,
            tied: false,
            head_bias: true,
            dropout: 0.0,
        }
    }

    /// A `model.safetensors` of random numbers, large enough that every layer matters.
    pub(crate) fn weights(config: &Config, dtype: Dtype) -> Vec<u8> {
        let layout = Layout::new(config);
        let random = Stream::new(7, Purpose::Init);
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for stored in families::stored(config, &layout) {
            let begin = data.len();
            for _ in 0..stored.shape.iter().product() {
                let value = random.uniform(0, data.len() as u64) - 0.5;
                match dtype {
                    Dtype::F32 => data.extend_from_slice(&value.to_le_bytes()),
                    Dtype::F16 => data.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                    Dtype::Bf16 => data.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
                }
            }
            let entry = serde_json::json!({"dtype": dtype.name().to_uppercase(), "shape": stored.shape, "data_offsets": [begin, data.len()]});
            header.insert(stored.name, entry);
        }
        let mut header = serde_json::Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header);
        bytes.extend(data);
        bytes
    }

    /// A random model of this description.
    pub(crate) fn model(config: &Config, threads: usize) -> Model {
        stored_as(config, threads, Dtype::F32)
    }

    /// The same with weights of another type.
    pub(crate) fn stored_as(config: &Config, threads: usize, dtype: Dtype) -> Model {
        let json = families::config_json(config, dtype);
        let options = ModelOptions { threads: Some(threads) };
        Model::from_bytes_with(&json, &weights(config, dtype), None, &options).expect("a valid model")
    }

    #[test]
    fn a_model_is_shared_by_threads_and_a_session_moves_between_them() {
        fn shared<T: Clone + Send + Sync>() {}
        fn moved<T: Send>() {}
        shared::<Model>();
        shared::<crate::session::Canceller>();
        moved::<Session>();
    }

    #[test]
    fn a_small_model_runs_on_one_thread_unless_told() {
        let json = families::config_json(&config(1), Dtype::F32);
        let model = Model::from_bytes(&json, &weights(&config(1), Dtype::F32), None).expect("a valid model");
        assert_eq!(model.threads(), 1);
        assert_eq!(tests::model(&config(1), 3).threads(), 3);
        for threads in [0, MAX_THREADS + 1] {
            let options = ModelOptions { threads: Some(threads) };
            let refused = Model::from_bytes_with(&json, &weights(&config(1), Dtype::F32), None, &options);
            assert!(matches!(refused, Err(Error::Usage(_))), "{threads}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let json = families::config_json(&config(1), Dtype::F32);
        let tokenizer = Tokenizer::bytes().to_json();
        let refused = Model::from_bytes(&json, &weights(&config(1), Dtype::F32), Some(&tokenizer));
        assert_eq!(refused.expect_err("256 is not 37").exit_code(), 4);
        let refused = Model::from_bytes(&json, &weights(&config(2), Dtype::F32), None);
        assert_eq!(refused.expect_err("another model's weights").exit_code(), 3);
    }

    #[test]
    fn a_token_reads_every_weight_but_the_other_rows_of_the_embeddings() {
        for tied in [false, true] {
            let config = Config { tied, ..config(2) };
            let model = stored_as(&config, 1, Dtype::Bf16);
            let unread = if tied { 0 } else { config.vocabulary - 1 } + config.context - 1;
            let read = model.layout().parameters() - unread * config.width;
            assert_eq!(model.bytes_per_token(), 2 * read as u64, "tied: {tied}");
        }
    }
}
