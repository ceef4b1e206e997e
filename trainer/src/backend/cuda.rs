//! A CUDA device as a backend: one shard of the whole batch, one stream, one line a verb.
//!
//! A pass is done once as it is written, recorded the second time, and replayed as one graph from then on. What changes
//! from step to step stands in the clock, which the host writes before each pass.

mod arena;
pub mod sketch;
mod storage;

use super::{Backend, Embed, Limits, Phase, Rows, Seen, Write};
use crate::device::nccl::Communicator;
use crate::device::ranks::Ranks;
use crate::device::{Buffer, Device, Element, Graph};
use crate::ops::activation::{self, Hidden};
use crate::ops::adamw::{self, Adam};
use crate::ops::attention::{self, Heads};
use crate::ops::dropout::Mask;
use crate::ops::experts::{self, Way};
use crate::ops::linear::cuda::Shape;
use crate::ops::loss::{self, Classes};
use crate::ops::query_key_norm::{self, Stretches};
use crate::ops::route::{self, Disturbance, Router};
use crate::ops::{add, embedding, linear, norm, rotary};
use crate::params::Params;
use crate::windows::Windows;
pub use arena::Working;
use arena::{grad_pair, head_of, map_of, maps_of, part, router_of, weight};
use formats::config::Activation;
use formats::layout::{Bank, Linear, Norm, ParameterId};
use formats::{Layout, Result};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A CUDA device.
pub struct Cuda {
    device: Device,
    /// As `Clock` of `device/kernel.cuh` has it.
    clock: Mutex<Buffer>,
    /// Room for the gradient's squares.
    partials: Mutex<Buffer>,
    /// Work that was done before; recorded when it is done again.
    records: Mutex<Vec<(Phase, Option<Graph>)>>,
    /// Whether work is recorded at all.
    recording: bool,
    /// The processes that share every batch.
    together: Option<(Ranks, Communicator)>,
}

impl Cuda {
    /// A device that has its kernels.
    pub fn new(device: Device) -> Result<Cuda> {
        Ok(Cuda {
            clock: Mutex::new(device.buffer(Element::U64, CLOCK)?),
            partials: Mutex::new(device.buffer(Element::F64, adamw::cuda::PARTIALS)?),
            records: Mutex::default(),
            recording: true,
            together: None,
            device,
        })
    }

    /// The same, doing everything as it is written, every time.
    pub fn without_graphs(self) -> Cuda {
        Cuda { recording: false, ..self }
    }

    /// The same, sharing every batch with the other processes of its run.
    pub fn together(self, ranks: Ranks) -> Result<Cuda> {
        match Communicator::join(&self.device, &ranks) {
            Ok(communicator) => Ok(Cuda { together: Some((ranks, communicator)), ..self }),
            // One process has nobody to add to.
            Err(_) if ranks.world == 1 => Ok(self),
            Err(error) => Err(error),
        }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Writes what this step is made with.
    fn wind(&self, adam: &Adam) {
        let adamw::cuda::Factors { keep, root, size } = adam.factors();
        let pair = |low: f32, high: f32| u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32;
        let clock = [adam.step, adam.step, pair(keep, root), pair(size, 1.0)];
        self.device.upload(&clock, &mut *held(&self.clock));
    }
}

/// Words of the clock.
const CLOCK: usize = 4;

/// What a lock guards; nothing is left half done by a panic.
fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Cuda {
    // A device likes its operations large.
    const LIMITS: Limits = Limits { shards: 1, pass_rows: usize::MAX, evaluation_rows: 1 << 14 };
    const AT_HAND: bool = false;
    const SHARES_ROWS: bool = false;

    fn replayed(&self, phase: Phase, adam: Option<&Adam>, work: impl FnOnce()) -> Result<()> {
        adam.into_iter().for_each(|adam| self.wind(adam));
        let mut records = held(&self.records);
        match records.iter_mut().find(|(known, _)| *known == phase) {
            Some((_, Some(graph))) => self.device.replay(graph),
            Some((_, graph)) => self.device.replay(graph.insert(self.device.capture(work)?)),
            None => {
                if self.recording {
                    records.push((phase, None));
                }
                work();
            }
        }
        self.device.check()
    }

    fn ranks(&self) -> (usize, usize) {
        self.together.as_ref().map_or((0, 1), |(ranks, _)| (ranks.rank, ranks.world))
    }

    fn part(&self) {
        self.together.iter().for_each(|(_, communicator)| communicator.part());
    }

    fn unite(&self, sums: &mut Buffer) {
        self.together.iter().for_each(|(_, communicator)| communicator.sum(&mut *sums));
    }

    fn nodes(&self, phase: Phase) -> Option<usize> {
        let records = held(&self.records);
        records.iter().find(|(known, _)| *known == phase)?.1.as_ref().map(Graph::nodes)
    }

    fn lanes(&self) -> usize {
        1
    }

    fn each<T: Send>(&self, shards: &mut [T], work: impl Fn(usize, &mut T) + Sync + Send) {
        shards.iter_mut().enumerate().for_each(|(index, shard)| work(index, shard));
    }

    fn embed(
        &self,
        s: &Embed,
        _: Windows<'_>,
        ids: &Buffer,
        params: &Params<Cuda>,
        mask: Mask,
        out: &mut Buffer,
    ) {
        let Layout { token_embedding, position_embedding, .. } = params.layout;
        let (tokens, positions) =
            (weight(params, token_embedding), position_embedding.map(|id| weight(params, id)));
        let clock = held(&self.clock);
        let noise = (mask, clock.view());
        embedding::cuda::forward(&self.device, s, ids.view(), tokens, positions, noise, out.view_mut());
    }

    fn embed_backward(
        &self,
        s: &Embed,
        ids: &Buffer,
        layout: &Layout,
        mask: Mask,
        d_out: &Buffer,
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (tokens, positions) = grad_pair(layout, grads, layout.token_embedding, layout.position_embedding);
        let clock = held(&self.clock);
        let (device, noise, scratch) = (&self.device, (mask, clock.view()), scratch.view_mut());
        embedding::cuda::backward(device, s, ids.view(), noise, d_out.view(), tokens, positions, scratch);
    }

    fn norm(
        &self,
        s: &Rows,
        x: &Buffer,
        norm: &Norm,
        params: &Params<Cuda>,
        out: &mut Buffer,
        moments: &mut Buffer,
    ) {
        let (gain, bias) = (part(params, norm.gain), norm.bias.map(|id| part(params, id)));
        norm::cuda::forward(&self.device, s, x.view(), gain, bias, out.view_mut(), moments.view_mut());
    }

    fn norm_backward(
        &self,
        s: &Rows,
        x: &Buffer,
        norm: &Norm,
        params: &Params<Cuda>,
        moments: &Buffer,
        d_out: &Buffer,
        (d_x, write): (&mut Buffer, Write),
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (d_gain, d_bias) = grad_pair(&params.layout, grads, norm.gain, norm.bias);
        let (gain, d_x) = (part(params, norm.gain), (d_x.view_mut(), write));
        let (x, moments, d_out, scratch) = (x.view(), moments.view(), d_out.view(), scratch.view_mut());
        norm::cuda::backward(&self.device, s, x, gain, moments, d_out, d_x, d_gain, d_bias, scratch);
    }

    fn linear(&self, rows: usize, x: &Buffer, linear: &Linear, params: &Params<Cuda>, out: &mut Buffer) {
        let (matrix, bias) = map_of(params, linear);
        let shape = Shape::of(linear, rows);
        linear::cuda::forward(&self.device, &shape, x.view(), matrix, bias, out.view_mut());
    }

    fn linear_backward(
        &self,
        rows: usize,
        x: &Buffer,
        linear: &Linear,
        params: &Params<Cuda>,
        d_out: &Buffer,
        (d_x, write): (&mut Buffer, Write),
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (shape, matrix) = (Shape::of(linear, rows), weight(params, linear.weight));
        let (d_weight, d_bias) = grad_pair(&params.layout, grads, linear.weight, linear.bias);
        let (x, d_out, d_x) = (x.view(), d_out.view(), (d_x.view_mut(), write));
        let scratch = scratch.view_mut();
        linear::cuda::backward(&self.device, &shape, x, matrix, d_out, d_x, d_weight, d_bias, scratch);
    }

    fn attention(
        &self,
        s: &Heads,
        _: Windows<'_>,
        qkv: &Buffer,
        mask: Mask,
        out: &mut Buffer,
        kept: &mut Buffer,
        _: &mut Buffer,
    ) {
        let clock = held(&self.clock);
        let noise = (mask, clock.view());
        attention::cuda::forward(&self.device, s, qkv.view(), noise, out.view_mut(), kept.view_mut());
    }

    fn attention_backward(
        &self,
        s: &Heads,
        qkv: &Buffer,
        out: &Buffer,
        kept: &Buffer,
        mask: Mask,
        d_out: &Buffer,
        d_qkv: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (qkv, out, kept, d_out) = (qkv.view(), out.view(), kept.view(), d_out.view());
        let clock = held(&self.clock);
        let (noise, d_qkv, scratch) = ((mask, clock.view()), d_qkv.view_mut(), scratch.view_mut());
        attention::cuda::backward(&self.device, s, qkv, out, kept, noise, d_out, d_qkv, scratch);
    }

    fn query_key_norm(
        &self,
        s: &Stretches,
        qkv: &Buffer,
        norms: &[Norm; 2],
        params: &Params<Cuda>,
        out: &mut Buffer,
        kept: &mut Buffer,
    ) {
        let gains = norms.map(|norm| part(params, norm.gain));
        let (out, kept) = (out.view_mut(), kept.view_mut());
        query_key_norm::cuda::forward(&self.device, s, gains, qkv.view(), out, kept);
    }

    fn query_key_norm_backward(
        &self,
        s: &Stretches,
        qkv: &Buffer,
        norms: &[Norm; 2],
        params: &Params<Cuda>,
        kept: &Buffer,
        d_out: &Buffer,
        d_qkv: &mut Buffer,
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let gains = norms.map(|norm| part(params, norm.gain));
        let (d_query, d_key) = grad_pair(&params.layout, grads, norms[0].gain, Some(norms[1].gain));
        let d_gains = [d_query, d_key.expect("keys have a gain")];
        let (qkv, kept, d_out) = (qkv.view(), kept.view(), d_out.view());
        let (d_qkv, scratch) = (d_qkv.view_mut(), scratch.view_mut());
        let device = &self.device;
        query_key_norm::cuda::backward(device, s, gains, qkv, kept, d_out, d_qkv, d_gains, scratch);
    }

    fn rotate(&self, s: &Heads, table: &Buffer, backwards: bool, from: &Buffer, to: &mut Buffer) {
        rotary::cuda::rotate(&self.device, s, table.view(), backwards, from.view(), to.view_mut());
    }

    fn activation(&self, s: Hidden, x: &Buffer, mask: Mask, out: &mut Buffer) {
        let clock = held(&self.clock);
        let noise = (mask, clock.view());
        activation::cuda::forward(&self.device, s, x.view(), noise, out.view_mut());
    }

    fn activation_backward(
        &self,
        s: Hidden,
        x: &Buffer,
        mask: Mask,
        d_out: Option<&Buffer>,
        d_x: &mut Buffer,
    ) {
        let clock = held(&self.clock);
        let (noise, d_out) = ((mask, clock.view()), d_out.map(Buffer::view));
        activation::cuda::backward(&self.device, s, x.view(), noise, d_out, d_x.view_mut());
    }

    fn joins_exactly(&self, kind: Activation) -> bool {
        !linear::cuda::has_epilogue(&self.device, kind)
    }

    fn linear_activation(
        &self,
        rows: usize,
        x: &Buffer,
        linear: &Linear,
        s: Hidden,
        params: &Params<Cuda>,
        hidden: &mut Buffer,
        out: &mut Buffer,
    ) {
        let (matrix, bias) = map_of(params, linear);
        let (shape, device) = (Shape::of(linear, rows), &self.device);
        let (input, made, to) = (x.view(), hidden.view_mut(), out.view_mut());
        if !linear::cuda::forward_activated(device, &shape, input, matrix, bias, s.kind, made, to) {
            self.linear(rows, x, linear, params, hidden);
            self.activation(s, hidden, None, out);
        }
    }

    fn activation_linear_backward(
        &self,
        rows: usize,
        s: Hidden,
        hidden: &Buffer,
        x: &Buffer,
        linear: &Linear,
        params: &Params<Cuda>,
        d_out: &Buffer,
        d_hidden: &mut Buffer,
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (shape, matrix) = (Shape::of(linear, rows), weight(params, linear.weight));
        let (device, d, d_to) = (&self.device, d_out.view(), d_hidden.view_mut());
        if !linear::cuda::backward_hidden(device, &shape, d, matrix, s.kind, hidden.view(), d_to) {
            let d_x = (&mut *d_hidden, Write::Set);
            self.linear_backward(rows, x, linear, params, d_out, d_x, grads, scratch);
            return self.activation_backward(s, hidden, None, None, d_hidden);
        }
        let (d_weight, d_bias) = grad_pair(&params.layout, grads, linear.weight, linear.bias);
        linear::cuda::backward_parameters(device, &shape, x.view(), d, d_weight, d_bias, scratch.view_mut());
    }

    fn route(
        &self,
        s: &Router,
        x: &Buffer,
        bank: &Bank,
        params: &Params<Cuda>,
        disturbance: &Disturbance,
        out: &mut Buffer,
        kept: &mut Buffer,
        routing: &mut route::cuda::Routing,
        scratch: &mut Buffer,
    ) {
        let (weights, clock) = (router_of(params, bank), held(&self.clock));
        let (out, kept, scratch) = (out.view_mut(), kept.view_mut(), scratch.view_mut());
        route::cuda::forward(
            &self.device,
            s,
            x.view(),
            &weights,
            disturbance,
            clock.view(),
            out,
            kept,
            routing,
            scratch,
        );
    }

    fn route_backward(
        &self,
        s: &Router,
        x: &Buffer,
        bank: &Bank,
        params: &Params<Cuda>,
        disturbance: &Disturbance,
        (shares, factor, z_factor): (&Buffer, f32, f32),
        kept: &Buffer,
        routing: &route::cuda::Routing,
        d_out: &Buffer,
        (d_x, write): (&mut Buffer, Write),
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (d_router, d_noise) = grad_pair(&params.layout, grads, bank.router.weight, bank.noise);
        let clock = held(&self.clock);
        route::cuda::backward(
            &self.device,
            s,
            x.view(),
            &router_of(params, bank),
            disturbance,
            clock.view(),
            (shares.view(), factor, z_factor),
            kept.view(),
            routing,
            d_out.view(),
            (d_x.view_mut(), write),
            d_router,
            d_noise,
            scratch.view_mut(),
        );
    }

    fn load(
        &self,
        s: &Router,
        kept: &Buffer,
        routing: &route::cuda::Routing,
        rows: usize,
        (into, at): (&mut Buffer, usize),
    ) {
        let into = into.part_mut(at..at + s.load());
        route::cuda::load(&self.device, s, kept.view(), routing, rows, into);
    }

    fn shares(&self, s: &Router, (load, at): (&Buffer, usize), shares: &mut Buffer) {
        route::cuda::shares(&self.device, s, load.part(at..at + s.load()), shares.view_mut());
    }

    fn shift(
        &self,
        params: &mut Params<Cuda>,
        id: ParameterId,
        rate: f32,
        (load, at): (&Buffer, usize),
        record: &Buffer,
    ) {
        let range = params.layout.parameter(id).range();
        let load = load.part(at..at + range.len());
        route::cuda::shift(&self.device, params.master.part_mut(range), load, rate, record.view());
    }

    fn dispatch(&self, _: &Router, _: &route::cuda::Routing, _: &Buffer, _: &mut Buffer) {
        unreachable!("experts find rows where they stand");
    }

    fn dispatch_backward(
        &self,
        s: &Router,
        routing: &route::cuda::Routing,
        d_out: &Buffer,
        (d_x, write): (&mut Buffer, Write),
    ) {
        let d_x = (d_x.view_mut(), write);
        experts::cuda::dispatch_backward(&self.device, s, routing, d_out.view(), d_x);
    }

    fn experts(
        &self,
        routing: &route::cuda::Routing,
        x: &Buffer,
        bank: &Bank,
        way: Way,
        params: &Params<Cuda>,
        out: &mut Buffer,
    ) {
        let (maps, working) = maps_of(params, bank, way);
        let (master, out) = (params.master.view(), out.view_mut());
        experts::cuda::forward(&self.device, routing, x.view(), &maps, working, master, out, None);
    }

    fn experts_backward(
        &self,
        routing: &route::cuda::Routing,
        x: &Buffer,
        bank: &Bank,
        way: Way,
        params: &Params<Cuda>,
        d_out: &Buffer,
        d_x: &mut Buffer,
        grads: &mut Buffer,
        _: &mut Buffer,
    ) {
        let (maps, working) = maps_of(params, bank, way);
        let (x, d_out, d_x, grads) = (x.view(), d_out.view(), d_x.view_mut(), grads.view_mut());
        experts::cuda::backward(&self.device, routing, x, &maps, working, d_out, d_x, grads, None);
    }

    fn experts_activation(
        &self,
        routing: &route::cuda::Routing,
        x: &Buffer,
        bank: &Bank,
        (s, mask): (Hidden, Mask),
        params: &Params<Cuda>,
        hidden: &mut Buffer,
        out: &mut Buffer,
    ) {
        if mask.is_some() {
            self.experts(routing, x, bank, Way::In, params, hidden);
            return self.activation(s, hidden, mask, out);
        }
        let (maps, working) = maps_of(params, bank, Way::In);
        let (x, master, activated) = (x.view(), params.master.view(), Some((s.kind, out.view_mut())));
        experts::cuda::forward(
            &self.device,
            routing,
            x,
            &maps,
            working,
            master,
            hidden.view_mut(),
            activated,
        );
    }

    fn activation_experts_backward(
        &self,
        routing: &route::cuda::Routing,
        (s, mask): (Hidden, Mask),
        hidden: &Buffer,
        x: &Buffer,
        bank: &Bank,
        params: &Params<Cuda>,
        d_out: &Buffer,
        d_hidden: &mut Buffer,
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        if mask.is_some() {
            self.experts_backward(routing, x, bank, Way::Out, params, d_out, d_hidden, grads, scratch);
            return self.activation_backward(s, hidden, mask, None, d_hidden);
        }
        let (maps, working) = maps_of(params, bank, Way::Out);
        let (x, d_out, grads) = (x.view(), d_out.view(), grads.view_mut());
        let (d_hidden, at) = (d_hidden.view_mut(), Some((s.kind, hidden.view())));
        experts::cuda::backward(&self.device, routing, x, &maps, working, d_out, d_hidden, grads, at);
    }

    fn combine(
        &self,
        s: &Router,
        routing: &route::cuda::Routing,
        x: &Buffer,
        weights: &Buffer,
        out: &mut Buffer,
    ) {
        experts::cuda::combine(&self.device, s, routing, x.view(), weights.view(), out.view_mut());
    }

    fn combine_backward(
        &self,
        s: &Router,
        routing: &route::cuda::Routing,
        x: &Buffer,
        weights: &Buffer,
        d_out: &Buffer,
        d_x: &mut Buffer,
        d_weights: &mut Buffer,
    ) {
        let (given, d_out) = ((x.view(), weights.view()), d_out.view());
        let (d_x, d_weights) = (d_x.view_mut(), d_weights.view_mut());
        experts::cuda::combine_backward(&self.device, s, routing, given, d_out, d_x, d_weights);
    }

    fn add(&self, rows: usize, stream: &Buffer, branch: &Buffer, mask: Mask, out: &mut Buffer) {
        let clock = held(&self.clock);
        let noise = (mask, clock.view());
        add::cuda::forward(&self.device, rows, stream.view(), branch.view(), noise, out.view_mut());
    }

    fn add_norm(
        &self,
        s: &Rows,
        stream: &Buffer,
        branch: &Buffer,
        mask: Mask,
        norm: &Norm,
        params: &Params<Cuda>,
        sum: &mut Buffer,
        out: &mut Buffer,
        moments: &mut Buffer,
    ) {
        let clock = held(&self.clock);
        let (gain, bias) = (part(params, norm.gain), norm.bias.map(|id| part(params, id)));
        norm::cuda::forward_of_sum(
            &self.device,
            s,
            stream.view(),
            branch.view(),
            (mask, clock.view()),
            gain,
            bias,
            sum.view_mut(),
            out.view_mut(),
            moments.view_mut(),
        );
    }

    fn add_backward(&self, rows: usize, d_out: &Buffer, mask: Mask, (d, write): (&mut Buffer, Write)) {
        let clock = held(&self.clock);
        let (noise, d) = ((mask, clock.view()), (d.view_mut(), write));
        add::cuda::backward(&self.device, rows, d_out.view(), noise, d);
    }

    fn loss(
        &self,
        s: &Classes,
        _: Windows<'_>,
        x: &Buffer,
        head: &Linear,
        params: &Params<Cuda>,
        targets: &Buffer,
        losses: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (targets, losses, scratch) = (targets.view(), losses.view_mut(), scratch.view_mut());
        let head = head_of(params, head);
        loss::cuda::forward(&self.device, s, x.view(), &head, targets, losses, None, scratch);
    }

    fn loss_and_gradient(
        &self,
        s: &Classes,
        scale: f32,
        x: &Buffer,
        head: &Linear,
        params: &Params<Cuda>,
        targets: &Buffer,
        losses: &mut Buffer,
        (d_x, write): (&mut Buffer, Write),
        grads: &mut Buffer,
        scratch: &mut Buffer,
    ) {
        let (d_weight, d_bias) = grad_pair(&params.layout, grads, head.weight, head.bias);
        let gradients = loss::cuda::Gradients { scale, d_x: (d_x.view_mut(), write), d_weight, d_bias };
        let (targets, losses, scratch) = (targets.view(), losses.view_mut(), scratch.view_mut());
        let head = head_of(params, head);
        loss::cuda::forward(&self.device, s, x.view(), &head, targets, losses, Some(gradients), scratch);
    }

    fn total(&self, losses: &Buffer, rows: usize, into: &mut Buffer) {
        loss::cuda::total(&self.device, losses.view(), rows, into.view_mut());
    }

    fn tally(&self, from: &Buffer, into: &mut Buffer) {
        loss::cuda::tally(&self.device, from.view(), into.view_mut());
    }

    fn clear(&self, sums: &mut Buffer) {
        self.device.zero(sums);
    }

    fn gather<T: Send>(
        &self,
        shards: &mut [T],
        grads: impl Fn(&mut T) -> &mut Buffer + Sync,
        squared: &mut Buffer,
    ) {
        let [shard] = shards else { unreachable!("a device's batch is one shard") };
        self.together.iter().for_each(|(_, communicator)| communicator.sum(&mut *grads(shard)));
        let mut partials = held(&self.partials);
        let (grads, partials) = (grads(shard).view(), partials.view_mut());
        adamw::cuda::norm(&self.device, grads, partials, squared.view_mut());
    }

    fn adamw(
        &self,
        adam: &Adam,
        seen: Seen<'_, Cuda>,
        params: &mut Params<Cuda>,
        first: &mut Buffer,
        second: &mut Buffer,
        grads: &mut Buffer,
    ) {
        let Seen { rows, loss, squared, record } = seen;
        let mut clock = held(&self.clock);
        let (record, device) = (record.view_mut(), &self.device);
        adamw::cuda::judge(device, loss.view(), squared.view(), rows, adam.clip, record, clock.view_mut());
        let Params { master, working, .. } = params;
        let (first, second, grads) = (first.view_mut(), second.view_mut(), grads.view_mut());
        let (master, (twin, decays)) = (master.view_mut(), working.parts());
        adamw::cuda::update(device, adam, decays, master, twin, first, second, grads, clock.view());
    }

    fn refresh(&self, params: &mut Params<Cuda>) {
        let Params { master, working, .. } = params;
        if let (Some(twin), _) = working.parts() {
            adamw::cuda::refresh(&self.device, master.view(), twin);
        }
    }
}
