//! The recorded computation as plain data: it can be printed, counted and checked with no device at hand.
//!
//! A [`Program`] is recorded once for a shape and a mode by [`record`], given slots by [`plan`], and carried out
//! any number of times by [`replay`]. Every operation is one of [`Op`]; forward and backward are exhaustive
//! matches over it, so an operation without a gradient does not compile. Nothing here depends on values.

pub mod plan;
pub mod recompute;
pub mod record;
pub mod replay;

use crate::backend::Write;
use crate::mixing::Mixing;
use crate::ops::activation::Hidden;
use crate::ops::experts::Way;
use crate::ops::route::Router;
use formats::Config;
use formats::layout::{Bank, Linear, Norm};
use plan::Plan;

/// Names one activation, `[rows, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Act(u32);

/// Names one statistic kept from the forward to the backward pass; always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat(u32);

impl Act {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Stat {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// One recorded operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Token and position embedding, dropout.
    Embed {
        /// Result.
        out: Act,
        /// Dropout's place.
        site: usize,
    },
    /// LayerNorm.
    Norm {
        /// Input.
        x: Act,
        /// Parameters.
        norm: Norm,
        /// Result.
        out: Act,
        /// Mean and reciprocal deviation of each row.
        moments: Stat,
    },
    /// Affine map.
    Linear {
        /// Input.
        x: Act,
        /// Parameters.
        linear: Linear,
        /// Result.
        out: Act,
    },
    /// Causal attention, dropout on its weights.
    Attention {
        /// Fused queries, keys and values.
        qkv: Act,
        /// Result.
        out: Act,
        /// What the backward pass needs of its weights.
        kept: Stat,
        /// Dropout's place.
        site: usize,
    },
    /// RMSNorm of queries and keys.
    QueryKeyNorm {
        /// Fused queries, keys and values.
        qkv: Act,
        /// Parameters, of queries and of keys.
        norms: [Norm; 2],
        /// The same, normalised.
        out: Act,
        /// What the backward pass needs of the mean squares.
        kept: Stat,
    },
    /// Rotary positions on queries and keys.
    Rotate {
        /// Fused queries, keys and values.
        qkv: Act,
        /// The same, turned.
        out: Act,
    },
    /// The feed-forward nonlinearity, dropout on its result inside experts.
    Activation {
        /// Input.
        x: Act,
        /// Result.
        out: Act,
        /// Which, and how wide.
        hidden: Hidden,
        /// Dropout's place, if it has one.
        site: Option<usize>,
    },
    /// The router of a mixture of experts.
    Route {
        /// Input.
        x: Act,
        /// Parameters.
        bank: Bank,
        /// Which of [`Program::routers`].
        router: usize,
        /// The weights of each row's experts, `[rows, slots]`.
        out: Act,
        /// Scores and what else the backward pass needs.
        kept: Stat,
        /// The first of the noise's places.
        site: usize,
    },
    /// Rows laid out by expert.
    Dispatch {
        /// Input.
        x: Act,
        /// Whose choice.
        router: usize,
        /// Result, `[rows slots, width]`.
        out: Act,
    },
    /// An affine map of each expert's rows.
    Experts {
        /// Input, `[rows slots, inputs]`.
        x: Act,
        /// Parameters.
        bank: Bank,
        /// Which of an expert's two maps.
        way: Way,
        /// Whose choice.
        router: usize,
        /// Result, `[rows slots, outputs]`.
        out: Act,
    },
    /// The weighted sum of each row's experts.
    Combine {
        /// Their results, `[rows slots, width]`.
        x: Act,
        /// Their weights.
        weights: Act,
        /// Whose choice.
        router: usize,
        /// Result.
        out: Act,
    },
    /// Residual connection, dropout on the branch.
    Add {
        /// The residual stream.
        stream: Act,
        /// What is added to it.
        branch: Act,
        /// Result.
        out: Act,
        /// Dropout's place.
        site: usize,
    },
    /// Head and cross-entropy.
    Loss {
        /// Input.
        x: Act,
        /// Parameters.
        head: Linear,
    },
}

impl Op {
    /// The activation it makes.
    pub fn out(&self) -> Option<Act> {
        match *self {
            Op::Embed { out, .. }
            | Op::Norm { out, .. }
            | Op::Linear { out, .. }
            | Op::Attention { out, .. }
            | Op::QueryKeyNorm { out, .. }
            | Op::Rotate { out, .. }
            | Op::Activation { out, .. }
            | Op::Route { out, .. }
            | Op::Dispatch { out, .. }
            | Op::Experts { out, .. }
            | Op::Combine { out, .. }
            | Op::Add { out, .. } => Some(out),
            Op::Loss { .. } => None,
        }
    }

    /// Whether it is the norm of a sum that `before` makes, the sum of a stream and an affine map's branch, or such a map's
    /// nonlinearity that goes value by value: the two may be carried out as one.
    pub fn follows(&self, before: &Op) -> bool {
        match (before, self) {
            (Op::Add { out, .. }, Op::Norm { x, .. }) => out == x,
            (Op::Linear { out, .. }, Op::Add { stream, branch, .. }) => out == branch && stream != branch,
            (Op::Linear { out, .. }, Op::Activation { x, site: None, .. })
            | (Op::Experts { way: Way::In, out, .. }, Op::Activation { x, .. }) => {
                out == x && self.in_place()
            }
            _ => false,
        }
    }

    /// Whether it is the nonlinearity whose result `after`, an affine map, reads: the two are reversed as one.
    pub fn precedes(&self, after: &Op) -> bool {
        match (self, after) {
            (Op::Activation { out, site: None, .. }, Op::Linear { x, .. })
            | (Op::Activation { out, .. }, Op::Experts { way: Way::Out, x, .. }) => {
                out == x && self.in_place()
            }
            _ => false,
        }
    }

    /// Whether it goes value by value, so that the gradient of its input can take the place of its result's.
    pub fn in_place(&self) -> bool {
        matches!(self, Op::Activation { hidden, .. } if !hidden.kind.gated())
    }

    /// The same operation over other activations.
    pub fn over(self, other: impl Fn(Act) -> Act) -> Op {
        let mut op = self;
        match &mut op {
            Op::Embed { out, .. } => *out = other(*out),
            Op::Norm { x, out, .. }
            | Op::Linear { x, out, .. }
            | Op::Activation { x, out, .. }
            | Op::Route { x, out, .. }
            | Op::Dispatch { x, out, .. }
            | Op::Experts { x, out, .. }
            | Op::Attention { qkv: x, out, .. }
            | Op::QueryKeyNorm { qkv: x, out, .. }
            | Op::Rotate { qkv: x, out } => (*x, *out) = (other(*x), other(*out)),
            Op::Combine { x: first, weights: second, out, .. }
            | Op::Add { stream: first, branch: second, out, .. } => {
                (*first, *second, *out) = (other(*first), other(*second), other(*out));
            }
            Op::Loss { x, .. } => *x = other(*x),
        }
        op
    }

    /// The activations it reads, in the order of [`Step::Reverse`]'s writes.
    pub fn inputs(&self) -> [Option<Act>; 2] {
        match *self {
            Op::Embed { .. } => [None, None],
            Op::Norm { x, .. }
            | Op::Linear { x, .. }
            | Op::Activation { x, .. }
            | Op::Route { x, .. }
            | Op::Dispatch { x, .. }
            | Op::Experts { x, .. }
            | Op::Loss { x, .. } => [Some(x), None],
            Op::QueryKeyNorm { qkv, .. } | Op::Rotate { qkv, .. } | Op::Attention { qkv, .. } => {
                [Some(qkv), None]
            }
            Op::Combine { x, weights, .. } => [Some(x), Some(weights)],
            Op::Add { stream, branch, .. } => [Some(stream), Some(branch)],
        }
    }

    /// The activations whose values its backward pass reads again.
    pub fn saved(&self) -> [Option<Act>; 2] {
        match *self {
            Op::Embed { .. } | Op::Rotate { .. } | Op::Dispatch { .. } | Op::Add { .. } => [None, None],
            Op::Norm { x, .. }
            | Op::Linear { x, .. }
            | Op::Activation { x, .. }
            | Op::Route { x, .. }
            | Op::Experts { x, .. }
            | Op::Loss { x, .. } => [Some(x), None],
            Op::Combine { x, weights, .. } => [Some(x), Some(weights)],
            Op::QueryKeyNorm { qkv, .. } => [Some(qkv), None],
            Op::Attention { qkv, out, .. } => [Some(qkv), Some(out)],
        }
    }
}

/// One entry of the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An operation is carried out again, for a value that was not kept.
    Again {
        /// Which, see [`Program::op`].
        op: usize,
    },
    /// An operation is reversed.
    Reverse {
        /// Which, see [`Program::op`].
        op: usize,
        /// How the gradient of each input is written: the first writer sets it, later ones add.
        writes: [Write; 2],
    },
}

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Losses and gradients, with dropout.
    Train,
    /// Losses.
    Evaluate,
    /// Logits of every row.
    Logits,
    /// What the first attention reads.
    Placed,
}

/// How many windows of how many rows a program is recorded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Windows.
    pub sequences: usize,
    /// Rows of a window.
    pub block: usize,
}

impl Shape {
    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.sequences * self.block
    }
}

/// One recorded computation.
#[derive(Clone, Debug)]
pub struct Program {
    /// What it is for.
    pub mode: Mode,
    /// What it is for.
    pub shape: Shape,
    /// The model's description.
    pub config: Config,
    /// Width of each activation.
    pub widths: Vec<usize>,
    /// Length of each statistic.
    pub stats: Vec<usize>,
    /// The forward pass. In training its last entry, the loss, is carried out by the backward pass.
    pub forward: Vec<Op>,
    /// Operations of layers that are computed again, see [`recompute`].
    pub again: Vec<Op>,
    /// The backward pass; empty unless training.
    pub backward: Vec<Step>,
    /// The last activation: the input of the loss, the logits, or what the first attention reads.
    pub result: Act,
    /// Its routers.
    pub routers: Vec<Router>,
    /// How its mixtures are trained.
    pub mixing: Mixing,
    /// Length of the scratch its operations share on a CPU.
    pub scratch: usize,
    /// Which slot holds what, when.
    pub plan: Plan,
}

impl Program {
    /// One operation: of the forward pass, or after those of [`Program::again`].
    pub fn op(&self, index: usize) -> &Op {
        self.forward.get(index).unwrap_or_else(|| &self.again[index - self.forward.len()])
    }

    /// Width of an activation's rows.
    pub fn width(&self, act: Act) -> usize {
        self.widths[act.index()]
    }

    /// Length of what its routers are asked, all together.
    pub fn loads(&self) -> usize {
        self.routers.iter().map(Router::load).sum()
    }

    /// Where each router's part of it begins.
    pub fn loads_at(&self) -> impl Iterator<Item = usize> + '_ {
        self.routers.iter().scan(0, |next, router| {
            let at = *next;
            *next += router.load();
            Some(at)
        })
    }
}
