//! The machine that records: it walks [`formats::architecture::forward`] once and leaves a [`Program`].
//!
//! Dropout enters here, inside the verbs that have it: embedding, attention, the residual branches.

use super::plan::Plan;
use super::recompute::{self, Recompute};
use super::{Act, Mode, Op, Program, Shape, Stat};
use crate::backend::Embed;
use crate::mixing::Mixing;
use crate::ops::activation::Hidden;
use crate::ops::attention::Heads;
use crate::ops::experts::Way;
use crate::ops::loss::Classes;
use crate::ops::query_key_norm::Stretches;
use crate::ops::route::Router;
use formats::architecture::{Machine, forward};
use formats::layout::{Bank, Linear, Norm};
use formats::{Config, Layout};

/// Places of noise that one router has: jitter, noise, masks of outputs and of experts.
const NOISE_SITES: usize = 4;

/// Records `config`'s model over `shape` for `mode`; `mixing` is how its mixtures are trained, `recompute` what a backward
/// pass makes again, and `gathers` whether the device does, see [`crate::backend::Storage::GATHERS`].
pub fn record(
    config: &Config,
    layout: &Layout,
    shape: Shape,
    mode: Mode,
    mixing: &Mixing,
    recompute: Recompute,
    gathers: bool,
) -> Program {
    // Nothing is lost or disturbed but in training.
    let mixing = if mode == Mode::Train { *mixing } else { Mixing::default() };
    let mut recorder = Recorder {
        config,
        shape,
        mode,
        mixing,
        widths: vec![],
        stats: vec![],
        ops: vec![],
        routers: vec![],
        sites: 0,
        scratch: 0,
    };
    let mut result = forward(&mut recorder, layout);
    if mode == Mode::Placed {
        result = recorder.until_attention().unwrap_or(result);
    }
    let Recorder { mut widths, stats, ops, routers, scratch, .. } = recorder;
    let backward = match mode {
        Mode::Train => recompute::backward(&ops, layout, recompute, &mut widths),
        Mode::Evaluate | Mode::Logits | Mode::Placed => recompute::Backward::default(),
    };
    let lens: Vec<usize> = widths.iter().map(|width| width * shape.rows()).collect();
    let recompute::Backward { again, steps: backward } = backward;
    let plan = Plan::new(&ops, &again, &backward, &lens, result, config.dropout > 0.0, gathers);
    Program {
        mode,
        shape,
        config: config.clone(),
        widths,
        stats,
        forward: ops,
        again,
        backward,
        result,
        routers,
        mixing,
        scratch,
        plan,
    }
}

struct Recorder<'a> {
    config: &'a Config,
    shape: Shape,
    mode: Mode,
    mixing: Mixing,
    widths: Vec<usize>,
    stats: Vec<usize>,
    ops: Vec<Op>,
    routers: Vec<Router>,
    sites: usize,
    scratch: usize,
}

impl Recorder<'_> {
    fn act(&mut self, width: usize) -> Act {
        self.widths.push(width);
        Act(self.widths.len() as u32 - 1)
    }

    fn stat(&mut self, len: usize) -> Stat {
        self.stats.push(len);
        Stat(self.stats.len() as u32 - 1)
    }

    fn site(&mut self) -> usize {
        self.sites += 1;
        self.sites - 1
    }

    fn width(&self, act: Act) -> usize {
        self.widths[act.index()]
    }

    /// Leaves what stands before the first attention: what that reads.
    fn until_attention(&mut self) -> Option<Act> {
        let found = self.ops.iter().enumerate().find_map(|(index, op)| match *op {
            Op::Attention { qkv, out, kept, .. } => Some((index, qkv, out, kept)),
            _ => None,
        });
        let (index, qkv, out, kept) = found?;
        self.ops.truncate(index);
        self.widths.truncate(out.index());
        self.stats.truncate(kept.index());
        self.routers.clear();
        self.scratch = 0;
        Some(qkv)
    }

    /// An activation of so many values a row; a gate's are among its input's.
    fn hidden(&mut self, x: Act, width: usize, site: Option<usize>) -> Act {
        let kind = self.config.activation;
        let rows = self.width(x) / kind.inputs(width);
        let out = self.act(rows * width);
        self.ops.push(Op::Activation { x, out, hidden: Hidden { kind, width }, site });
        out
    }
}

impl Machine for Recorder<'_> {
    type Rows = Act;
    /// Which of the routers, and the weights.
    type Routing = (usize, Act);

    fn embed(&mut self, _: &Layout) -> Act {
        let (out, site) = (self.act(self.config.width), self.site());
        self.ops.push(Op::Embed { out, site });
        out
    }

    fn norm(&mut self, &x: &Act, norm: Option<&Norm>) -> Act {
        let Some(norm) = norm else { return x };
        let (out, moments) = (self.act(self.width(x)), self.stat(2 * self.shape.rows()));
        self.ops.push(Op::Norm { x, norm: *norm, out, moments });
        out
    }

    fn linear(&mut self, x: Act, linear: &Linear) -> Act {
        let out = self.act(linear.outputs);
        self.ops.push(Op::Linear { x, linear: *linear, out });
        out
    }

    fn query_key_norm(&mut self, qkv: Act, norms: &[Norm; 2]) -> Act {
        let out = self.act(self.width(qkv));
        let kept = self.stat(stretches(self.config, self.shape).kept());
        self.ops.push(Op::QueryKeyNorm { qkv, norms: *norms, out, kept });
        out
    }

    fn rotate(&mut self, qkv: Act) -> Act {
        let out = self.act(self.width(qkv));
        self.ops.push(Op::Rotate { qkv, out });
        out
    }

    fn attention(&mut self, qkv: Act, _: usize) -> Act {
        let heads = heads(self.config, self.shape);
        // Where windows are split among threads, each has scores of its own.
        let windows = if self.mode == Mode::Train { heads.sequences } else { 1 };
        self.scratch = self.scratch.max(windows * heads.scratch());
        let (out, site) = (self.act(heads.width()), self.site());
        let kept = self.stat(heads.kept());
        self.ops.push(Op::Attention { qkv, out, kept, site });
        out
    }

    fn activation(&mut self, x: Act) -> Act {
        let width = self.config.feed_forward;
        self.hidden(x, width, None)
    }

    fn route(&mut self, &x: &Act, bank: &Bank, layer: usize) -> (usize, Act) {
        let experts = self.config.experts_of(layer).unwrap_or_else(|| panic!("layer {layer} is dense"));
        let rows = self.shape.rows();
        let router = Router {
            rows,
            layer,
            width: self.width(x),
            count: bank.count,
            active: bank.active,
            shared: bank.shared,
            score: experts.score,
            weight: experts.weight,
            noisy: bank.noise.is_some() && self.mode == Mode::Train,
            capacity: self.mixing.capacity_of(rows, bank.active, bank.count),
        };
        self.scratch = self.scratch.max(router.scratch());
        let (out, kept) = (self.act(router.slots()), self.stat(router.kept()));
        let site = self.sites;
        self.sites += NOISE_SITES;
        self.routers.push(router);
        let index = self.routers.len() - 1;
        self.ops.push(Op::Route { x, bank: *bank, router: index, out, kept, site });
        (index, out)
    }

    fn experts(&mut self, x: Act, (router, weights): (usize, Act), bank: &Bank) -> Act {
        let (width, slots) = (self.width(x), bank.slots());
        let [up, down] = [bank.up(0), bank.down(0)];
        let dispatched = self.act(slots * width);
        self.ops.push(Op::Dispatch { x, router, out: dispatched });
        let raised = self.act(slots * up.outputs);
        self.ops.push(Op::Experts { x: dispatched, bank: *bank, way: Way::In, router, out: raised });
        let site = self.site();
        let hidden = self.hidden(raised, down.inputs, Some(site));
        let lowered = self.act(slots * width);
        self.ops.push(Op::Experts { x: hidden, bank: *bank, way: Way::Out, router, out: lowered });
        let out = self.act(width);
        self.ops.push(Op::Combine { x: lowered, weights, router, out });
        out
    }

    fn add(&mut self, stream: Act, branch: Act, norm: Option<&Norm>) -> Act {
        let (out, site) = (self.act(self.width(stream)), self.site());
        self.ops.push(Op::Add { stream, branch, out, site });
        self.norm(&out, norm)
    }

    fn logits(&mut self, x: Act, head: &Linear) -> Act {
        if self.mode == Mode::Logits {
            return self.linear(x, head);
        }
        self.scratch = self.scratch.max(classes(self.config, self.shape).scratch());
        self.ops.push(Op::Loss { x, head: *head });
        x
    }
}

/// The shape of the embedding in this program.
pub fn embed(config: &Config, shape: Shape) -> Embed {
    Embed { rows: shape.rows(), block: shape.block, width: config.width }
}

/// The shape of attention in this program.
pub fn heads(config: &Config, shape: Shape) -> Heads {
    Heads {
        sequences: shape.sequences,
        block: shape.block,
        heads: config.heads,
        kv_heads: config.kv_heads,
        size: config.head_size,
        scale: config.score_scale(),
    }
}

/// What is normalised together of queries and keys in this program.
pub fn stretches(config: &Config, shape: Shape) -> Stretches {
    Stretches::new(heads(config, shape), config.query_key_norm, config.norm_eps)
}

/// The shape of the loss in this program.
pub fn classes(config: &Config, shape: Shape) -> Classes {
    Classes { rows: shape.rows(), width: config.width, vocabulary: config.vocabulary }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backend::Write;
    use crate::presets;
    use crate::tape::Step;
    use formats::config::QueryKeyNorm;

    /// Training programs of every kind: both orders of norms, mixtures, normalised queries and keys, recomputed, for devices
    /// that gather and for those that do not.
    pub(in crate::tape) fn programs() -> impl Iterator<Item = Program> {
        [
            ("gpt-zero", Recompute::Nothing, QueryKeyNorm::None, false),
            ("gpt-zero", Recompute::Layers, QueryKeyNorm::Head, false),
            ("moe-nano", Recompute::Nothing, QueryKeyNorm::Head, false),
            ("moe-nano", Recompute::Nothing, QueryKeyNorm::Head, true),
            ("moe-nano", Recompute::Layers, QueryKeyNorm::None, false),
            ("moe-nano", Recompute::Layers, QueryKeyNorm::None, true),
            ("gpt1", Recompute::Nothing, QueryKeyNorm::Head, false),
            ("gpt1", Recompute::Layers, QueryKeyNorm::None, false),
        ]
        .into_iter()
        .map(|(preset, recompute, query_key_norm, gathers)| {
            let config =
                presets::find(preset).and_then(|options| options.model(65)).expect("a preset is valid");
            let config = Config { query_key_norm, ..config };
            let (layout, shape) = (Layout::new(&config), Shape { sequences: 2, block: 8 });
            record(&config, &layout, shape, Mode::Train, &Mixing::default(), recompute, gathers)
        })
    }

    #[test]
    fn every_gradient_is_set_exactly_once_and_before_it_is_read() {
        for program in programs() {
            let (mut set, mut reversed) = (vec![false; program.widths.len()], 0);
            for step in &program.backward {
                let Step::Reverse { op, writes } = *step else { continue };
                let op = program.op(op);
                reversed += 1;
                if let Some(out) = op.out() {
                    assert!(set[out.index()], "{op:?} reads a gradient nobody wrote");
                }
                for (input, write) in op.inputs().into_iter().zip(writes) {
                    if let Some(input) = input {
                        assert_eq!(write == Write::Set, !set[input.index()], "{op:?}");
                        set[input.index()] = true;
                    }
                }
            }
            assert_eq!(reversed, program.forward.len());
        }
    }
}
