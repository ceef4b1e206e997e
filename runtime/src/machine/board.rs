//! The buffers of a session: those its team shares, and those of each thread.

use super::lines::SEGMENTS;
use super::{BLOCK, FEW_ROWS};
use crate::attention::TOGETHER;
use crate::memory;
use crate::shortlist::MOST_BEST;
use crate::simd::{PANEL, packed_len};
use crate::team::{Place, Slots};
use formats::config::Experts;
use formats::{Config, Result};

/// Most logits a session keeps at once.
const MOST_LOGITS: usize = 1 << 22;

/// The shared buffers of one session. Which of the streams hold something is each worker's own bookkeeping.
#[derive(Debug)]
pub(crate) struct Board {
    /// `[rows, width]`: the residual stream and one more; no layer holds three rows of this width.
    pub(super) streams: [Place<f32>; 2],
    /// `[rows, (heads + 2 kv_heads) head_size]`.
    pub(super) qkv: Place<f32>,
    /// What attention gives, `[rows, heads head_size]`, cut between heads of keys.
    pub(super) heads: Place<f32>,
    /// A dense layer's hidden values, `[rows, feed_forward]`, if some layer is dense.
    pub(super) hidden: Option<Place<f32>>,
    /// What layers of experts share, if some layer has them.
    pub(super) mixture: Option<Mixture>,
    /// What stretches of inputs add to few rows, `[few rows, SEGMENTS, widest output]`, where a line of weights is an
    /// input's. Two of them: one is read while the other is written.
    pub(super) stretches: Option<[Place<f32>; 2]>,
    /// `[logit_rows, vocabulary]`.
    pub(crate) logits: Place<f32>,
    /// Most rows of logits one step can give.
    pub(crate) logit_rows: usize,
}

/// What layers of experts share.
#[derive(Debug)]
pub(super) struct Mixture {
    /// The hidden values of few rows, `[few rows, slots, expert width in whole panels]`: all experts of a row are one
    /// row, so that dealing its columns deals them all at once.
    pub(super) few: Place<f32>,
    /// The buffers of many rows.
    pub(super) many: Option<Many>,
}

/// The buffers of many rows through experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Many {
    /// `[rows, 2 active]`: which experts, then their weights.
    pub(super) routing: Place<f32>,
    /// `[rows slots, expert width]`, the rows of one expert together.
    pub(super) hidden: Place<f32>,
}

/// A buffer: rows, columns, and what its columns are cut at multiples of.
type Size = [usize; 3];

/// The sizes of all buffers.
struct Sizes {
    stream: Size,
    qkv: Size,
    heads: Size,
    hidden: Option<Size>,
    few: Option<Size>,
    many: Option<[Size; 2]>,
    stretches: Option<Size>,
    logits: Size,
}

impl Sizes {
    fn new(config: &Config, rows: usize, walked: Option<usize>) -> Sizes {
        let dense = (0..config.layers).any(|layer| config.experts_of(layer).is_none());
        let experts = config.experts.as_ref();
        let many = experts.filter(|_| rows > FEW_ROWS);
        Sizes {
            stream: [rows, config.width, PANEL],
            qkv: [rows, config.qkv_width(), PANEL],
            heads: [rows, config.attention_width(), config.attention_width() / config.kv_heads],
            hidden: dense.then_some([rows, config.feed_forward, PANEL]),
            few: experts.map(|experts| [rows.min(FEW_ROWS), experts.slots() * stride(experts.width), PANEL]),
            many: many.map(|experts| {
                [[rows, 2 * experts.active, 1], [rows * experts.slots(), experts.width, PANEL]]
            }),
            stretches: walked.map(|outputs| [FEW_ROWS * SEGMENTS, outputs, PANEL]),
            logits: [(MOST_LOGITS / config.vocabulary).clamp(1, rows), config.vocabulary, PANEL],
        }
    }
}

/// The columns that one slot of [`Mixture::few`] takes.
pub(super) fn stride(width: usize) -> usize {
    width.next_multiple_of(PANEL)
}

impl Board {
    /// Buffers for steps of up to `rows` rows; `walked` is [`crate::model::Shared::widest_walked`].
    pub(crate) fn new(
        slots: &mut Slots,
        config: &Config,
        rows: usize,
        walked: Option<usize>,
    ) -> Result<Board> {
        let sizes = Sizes::new(config, rows, walked);
        let mut add = |[rows, columns, grain]: Size| slots.add(rows, columns, grain);
        let many = match sizes.many {
            Some([routing, hidden]) => Some(Many { routing: add(routing)?, hidden: add(hidden)? }),
            None => None,
        };
        let mixture = match sizes.few {
            Some(few) => Some(Mixture { few: add(few)?, many }),
            None => None,
        };
        Ok(Board {
            streams: [add(sizes.stream)?, add(sizes.stream)?],
            qkv: add(sizes.qkv)?,
            heads: add(sizes.heads)?,
            hidden: sizes.hidden.map(&mut add).transpose()?,
            mixture,
            stretches: match sizes.stretches {
                Some(size) => Some([add(size)?, add(size)?]),
                None => None,
            },
            logit_rows: sizes.logits[0],
            logits: add(sizes.logits)?,
        })
    }

    /// Bytes that [`Board::new`] and `threads` times [`Local::new`] take.
    pub(crate) fn bytes(
        config: &Config,
        rows: usize,
        walked: Option<usize>,
        capacity: usize,
        threads: usize,
    ) -> u64 {
        let sizes = Sizes::new(config, rows, walked);
        let always = [sizes.stream, sizes.stream, sizes.qkv, sizes.heads, sizes.logits];
        let sometimes = [sizes.hidden, sizes.few, sizes.stretches, sizes.stretches].into_iter().flatten();
        let sometimes = sometimes.chain(sizes.many.into_iter().flatten());
        let values = |[rows, columns, _]: Size| rows as u64 * columns as u64;
        let shared: u64 = always.into_iter().chain(sometimes).map(values).sum();
        let local = Lengths::new(config, rows, walked.is_some(), capacity).bytes();
        shared * size_of::<f32>() as u64 + local * threads as u64
    }
}

/// One thread's own buffers.
#[derive(Debug)]
pub(crate) struct Local {
    /// A few normalised rows, `[FEW_ROWS, width]`.
    pub(super) norm: Vec<f32>,
    /// The residual stream of few rows, `[FEW_ROWS, width]`.
    pub(super) stream: Vec<f32>,
    /// What this thread needs of a few rows of queries, keys and values, `[FEW_ROWS, their width]`.
    pub(super) qkv: Vec<f32>,
    /// What it needs of one row of hidden values.
    pub(super) hidden: Vec<f32>,
    /// For projections.
    pub(super) scratch: Scratch,
    /// Some queries of one head, `[TOGETHER, head_size]`.
    pub(super) queries: Vec<f32>,
    /// What attention gives for them.
    pub(super) results: Vec<f32>,
    /// One row of attention weights.
    pub(super) scores: Vec<f32>,
    /// Two values a row, for as long as one norm takes: a norm's moments, or the scales of [`crate::heads`].
    pub(super) moments: Vec<f32>,
    /// The angles of each row's position, `[rows, head_size]`.
    pub(super) angles: Vec<f32>,
    /// One widened embedding, or one row of what a branch adds.
    pub(super) embedding: Vec<f32>,
    /// The best lower bounds of logits.
    pub(super) lower: Vec<f32>,
    /// Logits of this thread's that were computed of those that a shortlist left; 0 where there was none.
    pub(crate) candidates: usize,
    /// For layers of experts.
    pub(crate) routed: Routed,
}

/// What a projection needs besides its operands.
#[derive(Debug)]
pub(super) struct Scratch {
    /// A block of widened weights.
    pub(super) panels: Vec<f32>,
    /// A block of results, `[rows, BLOCK]`, before it is laid into the shared rows.
    pub(super) block: Vec<f32>,
    /// What passes a gate, as large.
    pub(super) passing: Vec<f32>,
}

/// Where the rows of one layer go. Every thread has all of it, and the same.
#[derive(Debug)]
pub(crate) struct Routed {
    /// The router's logits of one row, then its scores.
    pub(super) logits: Vec<f32>,
    /// As long, see [`super::router::Router`].
    pub(super) keys: Vec<f32>,
    /// `[rows, slots]`: the expert of each slot.
    pub(super) experts: Vec<u32>,
    /// `[rows, slots]`: its weight.
    pub(super) weights: Vec<f32>,
    /// Where each expert's rows begin when the rows of one expert stand together, and their number at the end.
    pub(super) begins: Vec<u32>,
    /// `[rows, slots]`: where each slot's row stands then.
    pub(super) standing: Vec<u32>,
    /// `[rows slots]`: which row stands there.
    pub(super) rows: Vec<u32>,
    /// The rows of one expert, `[rows, width]`.
    pub(super) gathered: Vec<f32>,
    /// A block of each slot's result, `[rows slots, BLOCK]`.
    pub(super) partial: Vec<f32>,
    /// `[layers, count]`: how often each expert was chosen. Kept by the first thread alone, as is what follows.
    pub(crate) counts: Vec<u64>,
    /// Rows multiplied with an expert's weights.
    pub(crate) expert_rows: u64,
    /// `[layers, rows, active]`: what the last step's rows chose.
    pub(crate) chosen: Vec<u32>,
}

/// How long each of a [`Local`]'s buffers is.
#[derive(Clone, Copy, Debug, Default)]
struct Lengths {
    norm: usize,
    stream: usize,
    qkv: usize,
    hidden: usize,
    panels: usize,
    block: usize,
    passing: usize,
    queries: usize,
    scores: usize,
    moments: usize,
    angles: usize,
    embedding: usize,
    experts: usize,
    assigned: usize,
    begins: usize,
    grouped: usize,
    gathered: usize,
    partial: usize,
    counts: usize,
    chosen: usize,
}

impl Lengths {
    fn new(config: &Config, rows: usize, walks: bool, capacity: usize) -> Lengths {
        let experts = config.experts.as_ref();
        let inputs = [config.width, config.feed_forward, config.attention_width()];
        let inputs = inputs.into_iter().chain(experts.map(|experts| experts.width)).max().unwrap_or(0);
        let many = rows > FEW_ROWS;
        let lengths = Lengths {
            norm: FEW_ROWS * config.width,
            stream: FEW_ROWS * config.width,
            qkv: if walks { FEW_ROWS * config.qkv_width() } else { 0 },
            hidden: if walks { config.feed_forward } else { 0 },
            panels: packed_len(BLOCK, inputs),
            block: rows * BLOCK,
            passing: if config.activation.gated() { rows * BLOCK } else { 0 },
            queries: rows.min(TOGETHER) * config.head_size,
            scores: capacity,
            moments: 2 * rows,
            angles: rows * config.head_size,
            embedding: config.width,
            ..Lengths::default()
        };
        let Some(experts @ &Experts { count, active, shared, .. }) = experts else { return lengths };
        let assigned = rows * experts.slots();
        Lengths {
            experts: count,
            assigned,
            begins: count + shared + 1,
            grouped: if many { assigned } else { 0 },
            gathered: if many { rows * config.width } else { 0 },
            partial: assigned * BLOCK,
            counts: config.layers * count,
            chosen: config.layers * rows * active,
            ..lengths
        }
    }

    fn bytes(&self) -> u64 {
        let words = [
            self.norm,
            self.stream,
            self.qkv,
            self.hidden,
            self.panels,
            self.block,
            self.passing,
            2 * self.queries,
            self.scores,
            self.moments,
            self.angles,
            self.embedding,
            2 * MOST_BEST,
            2 * self.experts,
            2 * self.assigned,
            self.begins,
            2 * self.grouped,
            self.gathered,
            self.partial,
            2 * self.counts,
            self.chosen,
        ];
        words.into_iter().map(|words| words as u64).sum::<u64>() * size_of::<f32>() as u64
    }
}

impl Local {
    /// Buffers for steps of up to `rows` rows in a session of `capacity` positions; `walked` as for [`Board::new`].
    pub(crate) fn new(config: &Config, rows: usize, walked: Option<usize>, capacity: usize) -> Result<Local> {
        let lengths = Lengths::new(config, rows, walked.is_some(), capacity);
        let floats = |len: usize| memory::filled(len, 0.0f32);
        let numbers = |len: usize| memory::filled(len, 0u32);
        Ok(Local {
            norm: floats(lengths.norm)?,
            stream: floats(lengths.stream)?,
            qkv: floats(lengths.qkv)?,
            hidden: floats(lengths.hidden)?,
            scratch: Scratch {
                panels: floats(lengths.panels)?,
                block: floats(lengths.block)?,
                passing: floats(lengths.passing)?,
            },
            queries: floats(lengths.queries)?,
            results: floats(lengths.queries)?,
            scores: floats(lengths.scores)?,
            moments: floats(lengths.moments)?,
            angles: floats(lengths.angles)?,
            embedding: floats(lengths.embedding)?,
            lower: memory::reserved(2 * MOST_BEST)?,
            candidates: 0,
            routed: Routed {
                logits: floats(lengths.experts)?,
                keys: floats(lengths.experts)?,
                experts: numbers(lengths.assigned)?,
                weights: floats(lengths.assigned)?,
                begins: numbers(lengths.begins)?,
                standing: numbers(lengths.grouped)?,
                rows: numbers(lengths.grouped)?,
                gathered: floats(lengths.gathered)?,
                partial: floats(lengths.partial)?,
                counts: memory::filled(lengths.counts, 0)?,
                expert_rows: 0,
                chosen: numbers(lengths.chosen)?,
            },
        })
    }
}
