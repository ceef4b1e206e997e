//! A model on disk, mapped: what every session of it shares.

use crate::compact::{self, Compact, Matrices};
use crate::memory;
use crate::residency::{Keeper, Residency};
use crate::rotary;
use crate::session::{Session, SessionOptions};
use crate::shortlist::Shortlist;
use crate::simd::{Aligned, Origin, PANEL, Simd, caches, packed_len};
use crate::team::{Crew, Member, Slots, Team};
use formats::checkpoint::{
    Advice, Directory, ForeignTokenizer, GenerationConfig, Piece, Tensor, Weights, check_vocabulary,
    no_tokenizer,
};
use formats::layout::{Parameter, ParameterId, Role};
use formats::tokenizer::Tokenizer;
use formats::{Config, Error, Layout, Result, families};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most parameters of a model whose matrices are packed when it is opened: a few MiB, read again and again by a
/// window that slides.
pub(crate) const PACKED_PARAMETERS: usize = 1 << 20;
/// What the last-level cache of a processor that does not tell is taken for.
const USUAL_CACHE_BYTES: usize = 32 << 20;
/// Below so many bytes of weights one thread is faster than several and their barriers.
const ONE_THREAD_BYTES: u64 = 1 << 20;
/// A shortlist has to save one part of so many of what a token reads.
const WORTH_A_SHORTLIST: u64 = 20;

/// An opened model: immutable, mapped, cheap to clone, shared between threads freely.
#[derive(Clone)]
pub struct Model {
    shared: Arc<Shared>,
}

/// How a model is opened.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// Threads that compute; `None` chooses by the size of the weights.
    pub threads: Option<usize>,
    /// Bytes of experts that may stay in memory; `None` leaves it to the system. The text is the same either way.
    pub expert_budget: Option<u64>,
    /// Whether decoding reads the weights from memory of the process's own instead of where their file is mapped: in large pages
    /// where the system has them, and matrices of 16-bit numbers in fewer bits where the processor is fast at that. A longer
    /// start, more memory, and faster tokens. The text is the same either way.
    pub hold: bool,
    /// Whether [`Model::make_shortlist`] makes one where it can; `None` asks what is gained. The text is the same either way.
    pub shortlist: Option<bool>,
}

/// What all sessions of a model use.
pub(crate) struct Shared {
    path: PathBuf,
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) weights: Weights,
    tokenizer: Option<Tokenizer>,
    foreign_tokenizer: Option<ForeignTokenizer>,
    generation: GenerationConfig,
    pub(crate) simd: &'static Simd,
    /// Where one row's products find the weights.
    pub(crate) origin: Origin,
    /// The matrices that are held in fewer bits than they are stored in.
    pub(crate) compact: Matrices,
    /// Gains and biases, widened once: a few of them, read at every step.
    vectors: Vec<Vec<f32>>,
    /// The matrices of a small model, packed for products of several rows; empty for a large one, whose weights
    /// are packed block by block as they are needed.
    panels: Vec<Aligned>,
    /// Whether that is so.
    pub(crate) small: bool,
    /// See [`rotary::frequencies`].
    pub(crate) frequencies: Vec<f32>,
    /// Which experts stay in memory, if somebody set a bound.
    keeper: Option<Mutex<Keeper>>,
    /// Whether a shortlist was asked for, or refused.
    wants_shortlist: Option<bool>,
    /// The shortlist, once somebody has asked for it; nothing inside where there is to be none.
    shortlist: OnceLock<Option<Shortlist>>,
    threads: usize,
    /// The threads, once a session has asked for them. The lock is how sessions take turns.
    team: Mutex<Option<Team>>,
}

impl Model {
    /// Opens a model directory: a run, its `model` link, or the model directory itself.
    pub fn open(path: &Path) -> Result<Model> {
        Model::open_with(path, &ModelOptions::default())
    }

    /// Opens a model directory with options.
    pub fn open_with(path: &Path, options: &ModelOptions) -> Result<Model> {
        Model::new(Directory::open(path)?, options)
    }

    /// Opens a model held in memory: the texts of `config.json` and, if there is one, `tokenizer.json`, and the
    /// bytes of `model.safetensors`, which are copied.
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
        let path = PathBuf::from("(memory)");
        let config = families::read_config(config_json, &path.join("config.json"))?;
        let origin = path.join("tokenizer.json");
        let (tokenizer, foreign_tokenizer) =
            match tokenizer_json.map(|text| Tokenizer::from_json(text, &origin)).transpose() {
                Ok(tokenizer) => (tokenizer, None),
                Err(error) => (None, Some(ForeignTokenizer::of(error)?)),
            };
        if let Some(tokenizer) = &tokenizer {
            check_vocabulary(tokenizer, &config, &origin)?;
        }
        let layout = Layout::new(&config);
        let origin = path.join("model.safetensors");
        let weights = Weights::from_bytes(Arc::from(weights), &config, &layout, &origin)?;
        let generation = GenerationConfig::default();
        let directory = Directory { path, config, layout, weights, tokenizer, foreign_tokenizer, generation };
        Model::new(directory, options)
    }

    fn new(directory: Directory, options: &ModelOptions) -> Result<Model> {
        if options.hold && options.expert_budget.is_some() {
            return Err(Error::Usage(
                "experts that are held in memory cannot be given back: a budget of experts needs mapped weights".into(),
            ));
        }
        let Directory { path, config, layout, weights, tokenizer, foreign_tokenizer, generation } = directory;
        let threads = options.threads.unwrap_or_else(|| {
            if weights.bytes() < ONE_THREAD_BYTES {
                1
            } else {
                std::thread::available_parallelism().map_or(1, usize::from).min(Crew::MOST)
            }
        });
        Crew::check(threads)?;
        let vectors = layout.iter().map(|(id, parameter)| {
            if parameter.is_matrix() {
                return Vec::new();
            }
            let tensor = weights.tensor(id);
            (0..tensor.len()).map(|index| tensor.get(index)).collect()
        });
        let vectors = vectors.collect();
        let (simd, team) = (Simd::best(), Mutex::new(None));
        let origin = origin(weights.bytes(), threads);
        let small = layout.parameters() <= PACKED_PARAMETERS;
        let gated = config.activation.gated();
        let panels = layout.iter().map(|(id, parameter)| match small && parameter.is_matrix() {
            true => pack(simd, parameter, gated, weights.pieces(id)),
            false => Aligned::default(),
        });
        let panels = panels.collect();
        advise(&layout, &weights, options.expert_budget.is_some());
        let frequencies = rotary::frequencies(&config);
        let keeper = options.expert_budget.and_then(|budget| Keeper::new(&layout, &weights, budget));
        let mut shared = Shared {
            path,
            config,
            layout,
            weights,
            tokenizer,
            foreign_tokenizer,
            generation,
            simd,
            origin,
            compact: Matrices::default(),
            vectors,
            panels,
            small,
            frequencies,
            keeper: keeper.map(Mutex::new),
            wants_shortlist: options.shortlist,
            shortlist: OnceLock::new(),
            threads,
            team,
        };
        if options.hold {
            shared.hold()?;
        }
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

    /// Its tokenizer, if the directory holds one that is computed here.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.shared.tokenizer.as_ref()
    }

    /// The same for whoever cannot do without: the error says why there is none.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        let shared = &self.shared;
        shared.tokenizer.as_ref().ok_or_else(|| no_tokenizer(&shared.path, shared.foreign_tokenizer.as_ref()))
    }

    /// What its directory says about sampling.
    pub fn generation(&self) -> &GenerationConfig {
        &self.shared.generation
    }

    /// Its weights as stored.
    pub fn weights(&self) -> &Weights {
        &self.shared.weights
    }

    /// The directory its files are in, links resolved; of a model in memory, a name for errors.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Number of threads that compute.
    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// The table of routines in use.
    pub fn simd(&self) -> &'static Simd {
        self.shared.simd
    }

    /// Bytes of weights read to decode one token: of the embeddings one row each, of experts those that a token is
    /// given, of everything else all of it.
    pub fn bytes_per_token(&self) -> u64 {
        let shared = &self.shared;
        let bytes = shared.layout.iter().map(|(id, parameter)| {
            let read = shared.bytes_read(id);
            match (parameter.expert, &shared.config.experts) {
                // Experts are alike: each router's stands for its share of what is chosen.
                (Some(expert), Some(experts)) if expert < experts.count => {
                    read * experts.active as u64 / experts.count as u64
                }
                _ => read,
            }
        });
        bytes.sum()
    }

    /// Makes what lets [`crate::session::Session::feed_best`] leave most of the head unread: a coarse copy of it, half as large
    /// as one in half precision, which all sessions of the model share. Made once, where it saves a good part of what a token
    /// reads and there is memory for it, in the time of a few tokens. Gives whether there is one.
    pub fn make_shortlist(&self) -> bool {
        self.make_shortlist_unless(&AtomicBool::new(false))
    }

    /// The same; another thread may stop it, and it can be made later then.
    pub(crate) fn make_shortlist_unless(&self, cancelled: &AtomicBool) -> bool {
        let shared = &self.shared;
        if shared.shortlist.get().is_none() {
            let made = match self.gains_by_shortlist() {
                true => shared.start().and_then(|()| Shortlist::new(shared, cancelled)),
                false => Ok(None),
            };
            // Without it everything is computed as well, so what went wrong need not be said.
            match made {
                Err(Error::Cancelled) => return false,
                made => drop(shared.shortlist.set(made.unwrap_or(None))),
            }
        }
        shared.shortlist().is_some()
    }

    fn gains_by_shortlist(&self) -> bool {
        let shared = &self.shared;
        let head = &shared.layout.head;
        let saved = shared.bytes_read(head.weight).saturating_sub(Shortlist::bytes(head));
        let worth = || {
            shared.origin == Origin::Memory
                && saved.saturating_mul(WORTH_A_SHORTLIST) >= self.bytes_per_token()
        };
        !shared.small && !shared.walks_inputs(head.weight) && shared.wants_shortlist.unwrap_or_else(worth)
    }

    /// What a budget of experts has come to, over all sessions; `None` without one.
    pub fn residency(&self) -> Option<Residency> {
        let keeper = self.shared.keeper.as_ref()?;
        Some(keeper.lock().unwrap_or_else(PoisonError::into_inner).report())
    }

    /// A session with an f16 cache as long as the model's context.
    pub fn session(&self) -> Result<Session> {
        self.session_with(&SessionOptions::default())
    }

    /// A session with options; memory that cannot be had is an error.
    pub fn session_with(&self, options: &SessionOptions) -> Result<Session> {
        Session::new(self.clone(), options)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    #[cfg(test)]
    pub(crate) fn shared_mut(&mut self) -> &mut Arc<Shared> {
        &mut self.shared
    }
}

/// Where weights of so many bytes come from when token follows token: from the caches that so many threads reach, if these
/// hold them.
fn origin(bytes: u64, threads: usize) -> Origin {
    let held = match caches::last_level(threads) {
        0 => USUAL_CACHE_BYTES,
        told => told,
    };
    if bytes <= held as u64 { Origin::Cache } else { Origin::Memory }
}

/// A matrix of a small model, packed; the two halves of a gated projection each by itself.
fn pack<'a>(
    simd: &Simd,
    parameter: &Parameter,
    gated: bool,
    pieces: impl Iterator<Item = Piece<'a>>,
) -> Aligned {
    let (rows, columns) = (parameter.rows, parameter.columns);
    let mut whole = vec![0.0; rows * columns];
    pieces.for_each(|piece| widen_piece(simd, &piece, columns, &mut whole));
    let halves = if gated && matches!(parameter.role, Role::Up(_)) { 2 } else { 1 };
    let len = packed_len(rows / halves, columns);
    let mut panels = Aligned::zeroed(halves * len);
    for (half, panels) in whole.chunks_exact(rows / halves * columns).zip(panels.chunks_exact_mut(len)) {
        (simd.pack_f32)(half, rows / halves, columns, panels);
    }
    panels
}

/// One piece of a parameter into all of its values, `[rows, columns]`, widened.
pub fn widen_piece(simd: &Simd, piece: &Piece, columns: usize, whole: &mut [f32]) {
    let to = &mut whole[piece.rows.start * columns..piece.rows.end * columns];
    let widen = |values: Tensor, to: &mut [f32]| match values {
        Tensor::F32(values) => to.copy_from_slice(values),
        Tensor::F16(values) => (simd.widen_f16)(values, to),
        Tensor::Bf16(values) => (simd.widen_bf16)(values, to),
    };
    if !piece.inputs_first {
        return widen(piece.values, to);
    }
    // Some inputs at a time, so that whole cache lines are written.
    let rows = piece.rows.len();
    let mut lines = vec![0.0; PANEL.min(columns) * rows];
    for first in (0..columns).step_by(PANEL) {
        let count = PANEL.min(columns - first);
        let lines = &mut lines[..count * rows];
        widen(piece.values.part(first * rows..(first + count) * rows), lines);
        for (row, to) in to.chunks_exact_mut(columns).enumerate() {
            for (column, to) in to[first..first + count].iter_mut().enumerate() {
                *to = lines[column * rows + row];
            }
        }
    }
}

/// Tells the system what of a mapped model every token needs, and what only some do. Only where memory is `scarce` do
/// experts come page by page: what comes together lies together, and is read faster ever after.
fn advise(layout: &Layout, weights: &Weights, scarce: bool) {
    for (id, parameter) in layout.iter() {
        let advice = match parameter.expert {
            Some(_) if scarce => Advice::Random,
            None if !is_looked_up(layout, id) => Advice::WillNeed,
            _ => continue,
        };
        weights.advise(id, advice);
    }
}

/// Whether a token reads one row of a parameter, not all of it.
pub(crate) fn is_looked_up(layout: &Layout, id: ParameterId) -> bool {
    (Some(id) == layout.position_embedding || id == layout.token_embedding) && id != layout.head.weight
}

impl Shared {
    /// Copies the weights into memory of the process's own, see [`ModelOptions::hold`].
    fn hold(&mut self) -> Result<()> {
        let needed = self.weights.bytes();
        if memory::available().is_some_and(|available| needed > available) {
            return Err(compact::refusal(needed));
        }
        if !self.small && self.origin == Origin::Memory {
            self.compact = Matrices::new(self)?;
        }
        if self.compact.is_empty() { self.weights.hold() } else { Ok(()) }
    }

    /// Bytes of a parameter that a token reads, of an expert's if it is given to that.
    fn bytes_read(&self, id: ParameterId) -> u64 {
        let parameter = self.layout.parameter(id);
        let pieces = self.weights.pieces(id).enumerate().map(|(index, piece)| {
            let rows = if is_looked_up(&self.layout, id) { 1 } else { piece.rows.len() };
            let stored = rows * parameter.columns * piece.values.dtype().size();
            self.compact.piece(id, index).map_or(stored, Compact::bytes)
        });
        pieces.sum::<usize>() as u64
    }

    /// A matrix packed when the model was opened, if it was.
    pub(crate) fn packed(&self, id: ParameterId) -> Option<&[f32]> {
        Some(&self.panels[id.index()][..]).filter(|panels| !panels.is_empty())
    }

    /// Whether one row is multiplied with a matrix line by line, a line an input: so it is stored, and is not packed.
    pub(crate) fn walks_inputs(&self, id: ParameterId) -> bool {
        !self.small && self.weights.pieces(id).next().is_some_and(|piece| piece.inputs_first)
    }

    /// Most outputs of any such matrix.
    pub(crate) fn widest_walked(&self) -> Option<usize> {
        let walked = self.layout.iter().filter(|(id, _)| self.walks_inputs(*id));
        walked.map(|(_, parameter)| parameter.rows).max()
    }

    /// Number of threads that compute.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// The coarse copy of the head, if it was made.
    pub(crate) fn shortlist(&self) -> Option<&Shortlist> {
        self.shortlist.get()?.as_ref()
    }

    /// The experts of one layer are about to be used.
    pub(crate) fn use_experts(&self, layer: usize, experts: impl Iterator<Item = u32>) {
        if let Some(keeper) = &self.keeper {
            let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
            keeper.choose(&self.layout, &self.weights, layer, experts);
        }
    }

    /// A gain or a bias.
    pub(crate) fn vector(&self, id: ParameterId) -> &[f32] {
        &self.vectors[id.index()]
    }

    /// Starts the threads if they are not there yet: a model that is only looked at has none.
    pub(crate) fn start(&self) -> Result<()> {
        let mut team = self.team();
        if team.is_none() {
            *team = Some(Team::new(self.threads)?);
        }
        Ok(())
    }

    /// Runs `work` on every thread, when no other session does. See [`Team::run`].
    pub(crate) fn run(
        &self,
        slots: &mut Slots,
        cancelled: &AtomicBool,
        work: &(dyn Fn(&mut Member<'_>) -> Result<()> + Sync),
    ) -> Result<()> {
        match &mut *self.team() {
            Some(team) => team.run(slots, cancelled, work),
            None => Err(Error::Internal("a session works before its model has threads".into())),
        }
    }

    fn team(&self) -> MutexGuard<'_, Option<Team>> {
        // A panic in a session's work passes through here and leaves the team as good as before.
        self.team.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.debug_struct("Model")
            .field("path", &self.shared.path)
            .field("config", &self.shared.config)
            .field("threads", &self.shared.threads)
            .field("simd", &self.shared.simd.name)
            .finish_non_exhaustive()
    }
}
