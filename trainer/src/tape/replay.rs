//! A program carried out on a backend, forward and backward: two exhaustive matches over [`Op`].
//!
//! Buffers are made once; an output is taken out of its slot, written and put back, so two live tensors in one
//! slot would be a panic that names the operation, not a silent overwrite.

mod backward;

use super::record::{classes, embed, heads, stretches};
use super::{Act, Mode, Op, Program};
use crate::backend::{Backend, Rows};
use crate::ops::dropout::{Mask, Noise};
use crate::ops::rotary;
use crate::ops::route::{Disturbance, Router};
use crate::params::Params;
use crate::windows::{Shared, Windows};
use formats::Result;

/// One program with its buffers.
pub struct Replay<B: Backend> {
    program: Program,
    slots: Vec<Option<B::Values>>,
    stats: Vec<B::Floats>,
    inputs: B::Indices,
    targets: B::Indices,
    losses: B::Floats,
    scratch: B::Floats,
    /// What each router decided.
    routings: Vec<B::Routing>,
    /// Each router's shares of the micro-batch, see [`Replay::balance`].
    shares: Vec<B::Floats>,
    /// Cosines and sines of the places; empty without rotary positions.
    rotary: B::Floats,
}

/// What decides the noise of one pass, the step's noise and the first window's number in the batch, and how its rows
/// fall into windows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Dropout's noise; none in evaluation.
    pub noise: Option<Noise>,
    /// Number of this program's first window in the batch.
    pub first_sequence: usize,
    /// Shared only in evaluation, and where [`Replay::shares_rows`].
    pub windows: Windows<'a>,
}

impl<B: Backend> Replay<B> {
    /// A program's buffers.
    pub fn new(backend: &B, program: Program) -> Result<Replay<B>> {
        let rows = program.shape.rows();
        let table = rotary::table(&program.config, program.shape.block);
        let mut turns = backend.floats(table.len())?;
        backend.upload(&table, &mut turns);
        let routers = program.routers.iter();
        Ok(Replay {
            routings: routers.clone().map(|router| backend.routing(router)).collect::<Result<_>>()?,
            shares: routers.map(|router| backend.floats(router.count)).collect::<Result<_>>()?,
            rotary: turns,
            slots: program
                .plan
                .slots
                .iter()
                .map(|&len| backend.values(len).map(Some))
                .collect::<Result<_>>()?,
            stats: program.stats.iter().map(|&len| backend.floats(len)).collect::<Result<_>>()?,
            inputs: backend.indices(rows)?,
            targets: backend.indices(rows)?,
            losses: backend.floats(Self::losses_of(&program))?,
            scratch: backend.scratch(&program)?,
            program,
        })
    }

    /// Most losses of a pass: windows that share rows ask up to twice as much as there are rows.
    pub fn losses_of(program: &Program) -> usize {
        program.shape.rows() * if program.mode == Mode::Evaluate { 2 } else { 1 }
    }

    /// What is carried out.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Whether a pass may take windows that share rows: they are short, their places are in the embedding, and no row
    /// is counted in a mixture's load.
    pub fn shares_rows(program: &Program) -> bool {
        let Program { mode, config, shape, routers, forward, .. } = program;
        let rotates = |op: &Op| matches!(op, Op::Rotate { .. });
        B::SHARES_ROWS
            && *mode == Mode::Evaluate
            && heads(config, *shape).short()
            && routers.is_empty()
            && !forward.iter().any(rotates)
    }

    /// The ids of the next pass; `targets` may be empty for logits.
    pub fn upload(&mut self, backend: &B, inputs: &[u32], targets: &[u32]) {
        backend.upload_indices(inputs, &mut self.inputs);
        backend.upload_indices(targets, &mut self.targets);
    }

    /// Adds the losses of the first `rows` rows of the last pass.
    pub fn total(&self, backend: &B, rows: usize, into: &mut B::Sums) {
        backend.total(&self.losses, rows, into);
    }

    /// The first losses of the last pass.
    pub fn losses(&self, backend: &B, into: &mut [f32]) -> Result<()> {
        backend.download(&self.losses, into)
    }

    /// The last activation of the last pass.
    pub fn result(&self, backend: &B, into: &mut [f32]) -> Result<()> {
        backend.download_values(self.value(self.program.result), into)
    }

    /// Adds what the first `rows` rows of the last pass asked of every router, see [`Program::loads_at`].
    pub fn load(&self, backend: &B, rows: usize, into: &mut B::Sums) {
        let routed = self.program.forward.iter().filter_map(|op| match *op {
            Op::Route { router, kept, .. } => Some((router, kept)),
            _ => None,
        });
        for ((router, kept), at) in routed.zip(self.program.loads_at()) {
            let (shape, routing) = (&self.program.routers[router], &self.routings[router]);
            backend.load(shape, &self.stats[kept.index()], routing, rows, (into, at));
        }
    }

    /// Says what the whole micro-batch asked of every router, for the next backward pass.
    pub fn balance(&mut self, backend: &B, loads: &B::Sums) {
        let routers = self.program.routers.iter().zip(self.program.loads_at());
        for ((router, at), shares) in routers.zip(&mut self.shares) {
            backend.shares(router, (loads, at), shares);
        }
    }

    fn value(&self, act: Act) -> &B::Values {
        let slot = self.program.plan.value[act.index()];
        self.slots[slot].as_ref().unwrap_or_else(|| panic!("{act:?} is in use elsewhere"))
    }

    fn gradient(&self, act: Act) -> &B::Values {
        self.slots[self.gradient_slot(act)].as_ref().unwrap_or_else(|| panic!("{act:?} is in use elsewhere"))
    }

    fn gradient_slot(&self, act: Act) -> usize {
        self.program.plan.gradient[act.index()].unwrap_or_else(|| panic!("{act:?} has no gradient"))
    }

    fn take(&mut self, slot: usize) -> B::Values {
        self.slots[slot].take().unwrap_or_else(|| panic!("slot {slot} is in use elsewhere"))
    }

    /// Makes one activation: takes its buffer out of its slot for the time `make` writes it.
    fn make(&mut self, act: Act, make: impl FnOnce(&Self, &mut B::Values)) {
        self.make_first(act, |this, out| make(this, out));
    }

    /// The same where `make` makes others at the same time.
    fn make_first(&mut self, act: Act, make: impl FnOnce(&mut Self, &mut B::Values)) {
        let slot = self.program.plan.value[act.index()];
        let mut buffer = self.take(slot);
        make(self, &mut buffer);
        self.slots[slot] = Some(buffer);
    }

    /// Writes one gradient likewise.
    fn make_gradient(&mut self, act: Act, make: impl FnOnce(&Self, &mut B::Values)) {
        let slot = self.gradient_slot(act);
        let mut buffer = self.take(slot);
        make(self, &mut buffer);
        self.slots[slot] = Some(buffer);
    }

    /// Writes one activation and a statistic of it.
    fn make_with_stat(
        &mut self,
        act: Act,
        stat: super::Stat,
        make: impl FnOnce(&Self, &mut B::Values, &mut B::Floats),
    ) {
        let mut buffer = std::mem::take(&mut self.stats[stat.index()]);
        self.make(act, |this, out| make(this, out, &mut buffer));
        self.stats[stat.index()] = buffer;
    }

    /// Writes one gradient and works in the scratch.
    fn make_gradient_in_scratch(
        &mut self,
        act: Act,
        make: impl FnOnce(&Self, &mut B::Values, &mut B::Floats),
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.make_gradient(act, |this, d| make(this, d, &mut scratch));
        self.scratch = scratch;
    }

    fn rows_shape(&self, act: Act) -> Rows {
        let Program { shape, config, widths, .. } = &self.program;
        Rows { rows: shape.rows(), width: widths[act.index()], eps: config.norm_eps, kind: config.norm }
    }

    /// The mask of a site over rows of the residual stream.
    fn row_mask(&self, place: Place<'_>, site: usize, act: Act) -> Mask {
        let first_row = place.first_sequence * self.program.shape.block;
        place.noise.and_then(|noise| noise.at(site, first_row, self.program.width(act)))
    }

    /// The mask of a site over attention weights.
    fn score_mask(&self, place: Place<'_>, site: usize) -> Mask {
        let Program { shape, config, .. } = &self.program;
        let first_row = place.first_sequence * config.heads * shape.block;
        place.noise.and_then(|noise| noise.at(site, first_row, shape.block))
    }

    /// The mask of a site over the hidden rows of experts.
    fn hidden_mask(&self, place: Place<'_>, site: Option<usize>, out: Act, width: usize) -> Mask {
        let rows = self.program.width(out) / width * self.program.shape.block;
        let noise = place.noise.map(|noise| noise.with(self.program.mixing.expert_dropout));
        noise.zip(site).and_then(|(noise, site)| noise.at(site, place.first_sequence * rows, width))
    }

    /// What disturbs a router, from the first of its sites on.
    fn disturbance(&self, place: Place<'_>, router: &Router, site: usize) -> Disturbance {
        let Some(noise) = place.noise else { return Disturbance::default() };
        let (mixing, first_row) = (&self.program.mixing, place.first_sequence * self.program.shape.block);
        Disturbance {
            jitter: (mixing.jitter > 0.0)
                .then(|| (noise.draws(site, first_row, router.width), mixing.jitter)),
            noise: router.noisy.then(|| noise.draws(site + 1, first_row, 2 * router.count)),
            outputs: noise.with(mixing.output_dropout).at(site + 2, first_row, router.slots()),
            experts: noise.with(mixing.router_dropout).at(site + 3, 0, router.count),
        }
    }

    /// The forward pass over the uploaded ids. In training the loss waits for [`Replay::backward`].
    pub fn forward(&mut self, backend: &B, params: &Params<B>, place: Place<'_>) {
        self.carry_out_from(0, backend, params, place);
    }

    /// The same over windows that share rows, where `placed`, of [`Mode::Placed`], has made what the first attention reads.
    pub fn forward_placed(&mut self, backend: &B, params: &Params<B>, shared: &Shared, placed: &Replay<B>) {
        let place = Place { windows: Windows::Shared(shared), ..Place::default() };
        // The embedding is also what the residual stream begins with.
        self.carry_out(0, backend, params, place);
        let first = placed.program.forward.len();
        let Op::Attention { out, kept, .. } = *self.program.op(first) else {
            panic!("{:?} follows what is placed", self.program.op(first))
        };
        self.attend(backend, Windows::Placed(shared), None, (out, kept), Some(placed), placed.program.result);
        self.carry_out_from(first + 1, backend, params, place);
    }

    fn carry_out_from(&mut self, first: usize, backend: &B, params: &Params<B>, place: Place<'_>) {
        let mut index = first;
        while index < self.program.forward.len() {
            let next = Some(index + 1).filter(|&next| next < self.program.forward.len());
            index += self.carry_out_next(index, next, backend, params, place);
        }
    }

    /// Attention's forward pass over this program's `qkv`, or another's.
    fn attend(
        &mut self,
        backend: &B,
        windows: Windows<'_>,
        mask: Mask,
        (out, kept): (Act, super::Stat),
        other: Option<&Replay<B>>,
        qkv: Act,
    ) {
        let shape = heads(&self.program.config, self.program.shape);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.make_with_stat(out, kept, |this, out, kept| {
            let qkv = other.unwrap_or(this).value(qkv);
            backend.attention(&shape, windows, qkv, mask, out, kept, &mut scratch);
        });
        self.scratch = scratch;
    }

    /// One operation's forward pass, or that of two if the next is done with it: how many it was.
    fn carry_out_next(
        &mut self,
        index: usize,
        next: Option<usize>,
        backend: &B,
        params: &Params<B>,
        place: Place<'_>,
    ) -> usize {
        let rows = self.program.shape.rows();
        let first = *self.program.op(index);
        let second = next.map(|next| *self.program.op(next)).filter(|next| next.follows(&first));
        match (first, second) {
            (Op::Add { stream, branch, out: sum, site }, Some(Op::Norm { norm, out, moments, .. })) => {
                let (shape, mask) = (self.rows_shape(sum), self.row_mask(place, site, sum));
                self.make_first(sum, |this, sum| {
                    this.make_with_stat(out, moments, |this, out, moments| {
                        let (stream, branch) = (this.value(stream), this.value(branch));
                        backend.add_norm(&shape, stream, branch, mask, &norm, params, sum, out, moments);
                    });
                });
            }
            (Op::Linear { x, linear, out: branch }, Some(Op::Add { stream, out: sum, site, .. }))
                if B::ADDS_IN_PRODUCTS && self.row_mask(place, site, sum).is_none() =>
            {
                self.make_first(branch, |this, branch| {
                    this.make(sum, |this, sum| {
                        let (x, stream) = (this.value(x), this.value(stream));
                        backend.linear_add(rows, x, &linear, params, stream, branch, sum);
                    });
                });
            }
            (Op::Linear { x, linear, out: made }, Some(Op::Activation { out, hidden, .. })) => {
                self.make_first(made, |this, made| {
                    this.make(out, |this, out| {
                        backend.linear_activation(rows, this.value(x), &linear, hidden, params, made, out);
                    });
                });
            }
            (
                Op::Experts { x, bank, router, out: made, .. },
                Some(Op::Activation { out, hidden, site, .. }),
            ) => {
                let mask = self.hidden_mask(place, site, out, hidden.width);
                self.make_first(made, |this, made| {
                    this.make(out, |this, out| {
                        let (routing, x) = (&this.routings[router], this.value(x));
                        backend.experts_activation(routing, x, &bank, (hidden, mask), params, made, out);
                    });
                });
            }
            _ => {
                self.carry_out(index, backend, params, place);
                return 1;
            }
        }
        2
    }

    /// One operation's forward pass.
    fn carry_out(&mut self, index: usize, backend: &B, params: &Params<B>, place: Place<'_>) {
        let rows = self.program.shape.rows();
        let training = !self.program.backward.is_empty();
        match *self.program.op(index) {
            Op::Embed { out, site } => {
                let shape = embed(&self.program.config, self.program.shape);
                let mask = self.row_mask(place, site, out);
                self.make(out, |this, out| {
                    backend.embed(&shape, place.windows, &this.inputs, params, mask, out)
                });
            }
            Op::Norm { x, norm, out, moments } => {
                let shape = self.rows_shape(x);
                self.make_with_stat(out, moments, |this, out, moments| {
                    backend.norm(&shape, this.value(x), &norm, params, out, moments);
                });
            }
            Op::Linear { x, linear, out } => {
                self.make(out, |this, out| backend.linear(rows, this.value(x), &linear, params, out));
            }
            Op::Attention { qkv, out, kept, site } => {
                let mask = self.score_mask(place, site);
                self.attend(backend, place.windows, mask, (out, kept), None, qkv);
            }
            Op::QueryKeyNorm { qkv, norms, out, kept } => {
                let shape = stretches(&self.program.config, self.program.shape);
                self.make_with_stat(out, kept, |this, out, kept| {
                    backend.query_key_norm(&shape, this.value(qkv), &norms, params, out, kept);
                });
            }
            Op::Rotate { qkv, out } => {
                let shape = heads(&self.program.config, self.program.shape);
                self.make(out, |this, out| {
                    backend.rotate(&shape, &this.rotary, false, this.value(qkv), out);
                });
            }
            Op::Activation { x, out, hidden, site } => {
                let mask = self.hidden_mask(place, site, out, hidden.width);
                self.make(out, |this, out| backend.activation(hidden, this.value(x), mask, out));
            }
            Op::Route { x, bank, router, out, kept, site } => {
                let shape = self.program.routers[router];
                let disturbance = self.disturbance(place, &shape, site);
                let mut routing = std::mem::take(&mut self.routings[router]);
                let mut scratch = std::mem::take(&mut self.scratch);
                self.make_with_stat(out, kept, |this, out, kept| {
                    let (x, routing) = (this.value(x), &mut routing);
                    let scratch = &mut scratch;
                    backend.route(&shape, x, &bank, params, &disturbance, out, kept, routing, scratch);
                });
                self.routings[router] = routing;
                self.scratch = scratch;
            }
            // What is not laid out is found where it stands.
            Op::Dispatch { x, out, .. } if self.program.plan.shares_value(x, out) => {}
            Op::Dispatch { x, router, out } => self.make(out, |this, out| {
                let shape = &this.program.routers[router];
                backend.dispatch(shape, &this.routings[router], this.value(x), out);
            }),
            Op::Experts { x, bank, way, router, out } => self.make(out, |this, out| {
                backend.experts(&this.routings[router], this.value(x), &bank, way, params, out);
            }),
            Op::Combine { x, weights, router, out } => self.make(out, |this, out| {
                let (x, weights) = (this.value(x), this.value(weights));
                let shape = &this.program.routers[router];
                backend.combine(shape, &this.routings[router], x, weights, out);
            }),
            Op::Add { stream, branch, out, site } => {
                let mask = self.row_mask(place, site, out);
                self.make(out, |this, out| {
                    backend.add(rows, this.value(stream), this.value(branch), mask, out);
                });
            }
            Op::Loss { .. } if training => {}
            Op::Loss { x, head } => {
                let shape = classes(&self.program.config, self.program.shape);
                let value = self.program.plan.value[x.index()];
                let x = self.slots[value].as_ref().unwrap_or_else(|| panic!("{x:?} is in use elsewhere"));
                let (targets, losses) = (&self.targets, &mut self.losses);
                backend.loss(&shape, place.windows, x, &head, params, targets, losses, &mut self.scratch);
            }
        }
    }
}
