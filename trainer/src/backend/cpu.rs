//! The CPU as a backend: one thread a shard, or all of them one shard's; slices of f32, the runtime's SIMD table; one
//! line a verb.

mod arena;
mod storage;

use super::{Backend, Embed, Limits, Phase, Rows, Seen, Write};
use crate::ops::activation::Hidden;
use crate::ops::adamw::{self, Adam};
use crate::ops::attention::{self, Heads};
use crate::ops::dropout::{Mask, after};
use crate::ops::experts::Way;
use crate::ops::hands::{Crowd, Hands};
use crate::ops::loss::{self, Classes, Gradients};
use crate::ops::query_key_norm::Stretches;
use crate::ops::route::{Balance, Disturbance, Router, Routing};
use crate::ops::{activation, add, embedding, experts, linear, norm, query_key_norm, rotary, route};
use crate::params::Params;
use crate::windows::Windows;
use arena::{grad, grad_pair, head_of, part, piece_rows, router_of, split_off, weights};
use formats::layout::{Bank, Linear, Norm, ParameterId};
use formats::{Layout, Result};
use runtime::load;
use runtime::simd::product::Epilogue;
use runtime::simd::{Aligned, Simd, packed_len};
use runtime::team::Crew;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values one thread sums or updates at a time; fixed, so that no sum depends on the number of threads.
const STRETCH: usize = 1 << 14;

/// The CPU.
pub struct Cpu {
    simd: &'static Simd,
    threads: usize,
    crowd: Mutex<Crowd>,
    /// Whether the threads work on shards side by side, so that an operation is one thread's.
    sharing: AtomicBool,
    /// Room for the sum of squares of each stretch of a gradient.
    squares: Mutex<Vec<f64>>,
}

impl Cpu {
    /// A CPU of `threads` threads.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with(Simd::best(), threads)
    }

    /// A CPU of `threads` threads and a chosen table of routines.
    pub fn with(simd: &'static Simd, threads: usize) -> Result<Cpu> {
        Ok(Cpu {
            simd,
            threads,
            crowd: Mutex::new(Crowd::new(Crew::new(threads)?)),
            sharing: AtomicBool::new(false),
            squares: Mutex::default(),
        })
    }

    /// The table of routines in use.
    pub fn simd(&self) -> &'static Simd {
        self.simd
    }

    /// Number of threads.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The threads, for one piece of work at a time.
    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who carries out an operation: all threads, unless they are busy with a shard each.
    fn hands(&self) -> Hands<'_> {
        if self.threads == 1 || self.sharing.load(Ordering::Relaxed) {
            return Hands::alone(self.simd);
        }
        Hands::all(self.simd, self.crowd())
    }
}

impl Backend for Cpu {
    // What a pass saves stays near the caches, and four gradients are cheap to add.
    const LIMITS: Limits = Limits { shards: 4, pass_rows: 1024, evaluation_rows: 384 };
    const AT_HAND: bool = true;

    const SHARES_ROWS: bool = true;
    const ADDS_IN_PRODUCTS: bool = true;

    fn replayed(&self, _: Phase, _: Option<&Adam>, work: impl FnOnce()) -> Result<()> {
        work();
        Ok(())
    }

    fn lanes(&self) -> usize {
        self.threads()
    }

    fn each<T: Send>(&self, shards: &mut [T], work: impl Fn(usize, &mut T) + Sync + Send) {
        if let [only] = shards {
            return work(0, only);
        }
        let mut crowd = self.crowd();
        self.sharing.store(true, Ordering::Relaxed);
        crowd.crew.each(shards, work);
        self.sharing.store(false, Ordering::Relaxed);
    }

    fn embed(
        &self,
        s: &Embed,
        windows: Windows<'_>,
        ids: &Vec<u32>,
        params: &Params<Cpu>,
        mask: Mask,
        out: &mut Aligned,
    ) {
        let positions = params.layout.position_embedding.map(|id| part(params, id));
        embedding::forward(
            s,
            windows,
            ids,
            part(params, params.layout.token_embedding),
            positions,
            mask,
            out,
        );
    }

    fn embed_backward(
        &self,
        s: &Embed,
        ids: &Vec<u32>,
        layout: &Layout,
        mask: Mask,
        d_out: &Aligned,
        grads: &mut Aligned,
        _: &mut Aligned,
    ) {
        let (tokens, positions) = grad_pair(layout, grads, layout.token_embedding, layout.position_embedding);
        embedding::backward(s, ids, mask, d_out, tokens, positions);
    }

    fn norm(
        &self,
        s: &Rows,
        x: &Aligned,
        norm: &Norm,
        params: &Params<Cpu>,
        out: &mut Aligned,
        moments: &mut Aligned,
    ) {
        let bias = norm.bias.map(|bias| part(params, bias));
        let (gain, mut hands) = (part(params, norm.gain), self.hands());
        let piece = hands.piece(s.rows, x.len());
        let pieces = x.chunks(piece * s.width).zip(out.chunks_mut(piece * s.width));
        hands.deal(pieces.zip(moments.chunks_mut(2 * piece)), |((x, out), moments)| {
            norm::forward(self.simd, s, x, gain, bias, out, moments);
        });
    }

    fn norm_backward(
        &self,
        s: &Rows,
        x: &Aligned,
        norm: &Norm,
        params: &Params<Cpu>,
        moments: &Aligned,
        d_out: &Aligned,
        (d_x, write): (&mut Aligned, Write),
        grads: &mut Aligned,
        _: &mut Aligned,
    ) {
        let (d_gain, d_bias) = grad_pair(&params.layout, grads, norm.gain, norm.bias);
        let gain = part(params, norm.gain);
        norm::backward(self.simd, s, x, gain, moments, d_out, (d_x, write), d_gain, d_bias);
    }

    fn linear(&self, rows: usize, x: &Aligned, linear: &Linear, params: &Params<Cpu>, out: &mut Aligned) {
        let (panels, bias) = weights(params, linear);
        linear::forward(&mut self.hands(), linear, rows, x, panels, Epilogue::of(bias), out);
    }

    fn linear_backward(
        &self,
        rows: usize,
        x: &Aligned,
        linear: &Linear,
        params: &Params<Cpu>,
        d_out: &Aligned,
        (d_x, write): (&mut Aligned, Write),
        grads: &mut Aligned,
        _: &mut Aligned,
    ) {
        let hands = &mut self.hands();
        linear::backward_input(hands, linear, rows, part(params, linear.weight), d_out, (d_x, write));
        let d_weight = grad(&params.layout, grads, linear.weight);
        linear::backward_weight(hands, linear, rows, x, d_out, d_weight);
        if let Some(bias) = linear.bias {
            linear::backward_bias(hands, d_out, grad(&params.layout, grads, bias));
        }
    }

    fn linear_activation(
        &self,
        rows: usize,
        x: &Aligned,
        linear: &Linear,
        s: Hidden,
        params: &Params<Cpu>,
        hidden: &mut Aligned,
        out: &mut Aligned,
    ) {
        let (panels, bias) = weights(params, linear);
        let to = (&mut hidden[..], &mut out[..]);
        linear::forward_activation(&mut self.hands(), linear, rows, x, panels, bias, s, to);
    }

    fn linear_add(
        &self,
        rows: usize,
        x: &Aligned,
        linear: &Linear,
        params: &Params<Cpu>,
        stream: &Aligned,
        _: &mut Aligned,
        sum: &mut Aligned,
    ) {
        let (panels, bias) = weights(params, linear);
        let epilogue = Epilogue { bias, residual: Some(stream) };
        linear::forward(&mut self.hands(), linear, rows, x, panels, epilogue, sum);
    }

    fn attention(
        &self,
        s: &Heads,
        windows: Windows<'_>,
        qkv: &Aligned,
        mask: Mask,
        out: &mut Aligned,
        kept: &mut Aligned,
        scratch: &mut Aligned,
    ) {
        attention::forward(&mut self.hands(), s, windows, qkv, mask, out, kept, scratch);
    }

    fn attention_backward(
        &self,
        s: &Heads,
        qkv: &Aligned,
        out: &Aligned,
        kept: &Aligned,
        mask: Mask,
        d_out: &Aligned,
        d_qkv: &mut Aligned,
        scratch: &mut Aligned,
    ) {
        attention::backward(&mut self.hands(), s, qkv, out, kept, mask, d_out, d_qkv, scratch);
    }

    fn query_key_norm(
        &self,
        s: &Stretches,
        qkv: &Aligned,
        norms: &[Norm; 2],
        params: &Params<Cpu>,
        out: &mut Aligned,
        kept: &mut Aligned,
    ) {
        let gains = norms.map(|norm| part(params, norm.gain));
        query_key_norm::forward(self.simd, s, gains, qkv, out, kept);
    }

    fn query_key_norm_backward(
        &self,
        s: &Stretches,
        qkv: &Aligned,
        norms: &[Norm; 2],
        params: &Params<Cpu>,
        kept: &Aligned,
        d_out: &Aligned,
        d_qkv: &mut Aligned,
        grads: &mut Aligned,
        _: &mut Aligned,
    ) {
        let gains = norms.map(|norm| part(params, norm.gain));
        let (d_query, d_key) = grad_pair(&params.layout, grads, norms[0].gain, Some(norms[1].gain));
        let d_gains = [d_query, d_key.expect("keys have a gain")];
        query_key_norm::backward(self.simd, s, gains, qkv, kept, d_out, d_qkv, d_gains);
    }

    fn rotate(&self, s: &Heads, table: &Aligned, backwards: bool, from: &Aligned, to: &mut Aligned) {
        rotary::rotate(self.simd, s, table, backwards, from, to);
    }

    fn activation(&self, s: Hidden, x: &Aligned, mask: Mask, out: &mut Aligned) {
        let mut hands = self.hands();
        let piece = hands.piece(out.len() / s.width, out.len());
        let pieces = x.chunks(piece * s.kind.inputs(s.width)).zip(out.chunks_mut(piece * s.width));
        hands.deal(pieces.enumerate(), |(index, (x, out))| {
            activation::forward(self.simd, s, x, after(mask, index * piece), out);
        });
    }

    fn activation_backward(
        &self,
        s: Hidden,
        x: &Aligned,
        mask: Mask,
        d_out: Option<&Aligned>,
        d_x: &mut Aligned,
    ) {
        let mut hands = self.hands();
        let rows = x.len() / s.kind.inputs(s.width);
        let piece = hands.piece(rows, rows * s.width);
        let inputs = piece * s.kind.inputs(s.width);
        let pieces = x.chunks(inputs).zip(d_x.chunks_mut(inputs));
        hands.deal(pieces.enumerate(), |(index, (x, d_x))| {
            let first = index * piece;
            let d_out = d_out.map(|d_out| &d_out[first * s.width..][..x.len() / s.kind.inputs(1)]);
            activation::backward(self.simd, s, x, after(mask, first), d_out, d_x);
        });
    }

    fn route(
        &self,
        s: &Router,
        x: &Aligned,
        bank: &Bank,
        params: &Params<Cpu>,
        disturbance: &Disturbance,
        out: &mut Aligned,
        kept: &mut Aligned,
        routing: &mut Routing,
        scratch: &mut Aligned,
    ) {
        let weights = router_of(params, bank);
        route::forward(self.simd, s, x, &weights, disturbance, out, kept, routing, scratch);
    }

    fn route_backward(
        &self,
        s: &Router,
        x: &Aligned,
        bank: &Bank,
        params: &Params<Cpu>,
        disturbance: &Disturbance,
        (shares, factor, z_factor): (&Aligned, f32, f32),
        kept: &Aligned,
        routing: &Routing,
        d_out: &Aligned,
        d_x: (&mut Aligned, Write),
        grads: &mut Aligned,
        scratch: &mut Aligned,
    ) {
        let (d_router, d_noise) = grad_pair(&params.layout, grads, bank.router.weight, bank.noise);
        route::backward(
            self.simd,
            s,
            x,
            &router_of(params, bank),
            disturbance,
            &Balance { shares: if factor > 0.0 { shares } else { &[] }, factor, z_factor },
            kept,
            routing,
            d_out,
            (d_x.0, d_x.1),
            d_router,
            d_noise,
            scratch,
        );
    }

    fn load(
        &self,
        s: &Router,
        kept: &Aligned,
        routing: &Routing,
        rows: usize,
        (into, at): (&mut Vec<f64>, usize),
    ) {
        route::load(s, kept, routing, rows, &mut into[at..at + s.load()]);
    }

    fn shares(&self, s: &Router, (load, at): (&Vec<f64>, usize), shares: &mut Aligned) {
        let counts = load::shares(&load[at..at + s.count]);
        shares.iter_mut().zip(counts).for_each(|(to, share)| *to = share as f32);
    }

    fn shift(
        &self,
        params: &mut Params<Cpu>,
        id: ParameterId,
        rate: f32,
        (load, at): (&Vec<f64>, usize),
        record: &Vec<f64>,
    ) {
        let range = params.layout.parameter(id).range();
        if record[adamw::DIVERGED] == 0.0 {
            route::shift(&load[at..at + range.len()], rate, &mut params.master[range]);
        }
    }

    fn dispatch(&self, s: &Router, routing: &Routing, x: &Aligned, out: &mut Aligned) {
        experts::dispatch(s, routing, x, out);
    }

    fn dispatch_backward(&self, s: &Router, routing: &Routing, d_out: &Aligned, d_x: (&mut Aligned, Write)) {
        experts::dispatch_backward(self.simd, s, routing, d_out, (d_x.0, d_x.1));
    }

    fn experts(
        &self,
        routing: &Routing,
        x: &Aligned,
        bank: &Bank,
        way: Way,
        params: &Params<Cpu>,
        out: &mut Aligned,
    ) {
        let hands = &mut self.hands();
        for expert in 0..bank.len() {
            let map = way.of(bank, expert);
            let bias = map.bias.map(|bias| part(params, bias));
            let panels = &params.working[map.weight.index()];
            experts::linear(hands, routing, expert, &map, x, panels, bias, out);
        }
    }

    fn experts_backward(
        &self,
        routing: &Routing,
        x: &Aligned,
        bank: &Bank,
        way: Way,
        params: &Params<Cpu>,
        d_out: &Aligned,
        d_x: &mut Aligned,
        grads: &mut Aligned,
        _: &mut Aligned,
    ) {
        let hands = &mut self.hands();
        for expert in 0..bank.len() {
            let map = way.of(bank, expert);
            let d = grad_pair(&params.layout, grads, map.weight, map.bias);
            let weight = part(params, map.weight);
            experts::linear_backward(hands, routing, expert, &map, x, weight, d_out, d_x, d);
        }
    }

    fn combine(&self, s: &Router, routing: &Routing, x: &Aligned, weights: &Aligned, out: &mut Aligned) {
        experts::combine(self.simd, s, routing, x, weights, out);
    }

    fn combine_backward(
        &self,
        s: &Router,
        routing: &Routing,
        x: &Aligned,
        weights: &Aligned,
        d_out: &Aligned,
        d_x: &mut Aligned,
        d_weights: &mut Aligned,
    ) {
        experts::combine_backward(self.simd, s, routing, (x, weights), d_out, d_x, d_weights);
    }

    fn add(&self, rows: usize, stream: &Aligned, branch: &Aligned, mask: Mask, out: &mut Aligned) {
        let mut hands = self.hands();
        let (piece, width) = (hands.piece(rows, out.len()), out.len() / rows);
        let pieces = stream.chunks(piece * width).zip(branch.chunks(piece * width));
        hands.deal(
            pieces.zip(out.chunks_mut(piece * width)).enumerate(),
            |(index, ((stream, branch), out))| {
                add::forward(out.len() / width, stream, branch, after(mask, index * piece), out);
            },
        );
    }

    fn add_backward(&self, rows: usize, d_out: &Aligned, mask: Mask, (d, write): (&mut Aligned, Write)) {
        let mut hands = self.hands();
        let (piece, width) = (hands.piece(rows, d_out.len()), d_out.len() / rows);
        let pieces = d_out.chunks(piece * width).zip(d.chunks_mut(piece * width));
        hands.deal(pieces.enumerate(), |(index, (d_out, d))| {
            add::backward(d_out.len() / width, d_out, after(mask, index * piece), (d, write));
        });
    }

    fn loss(
        &self,
        s: &Classes,
        windows: Windows<'_>,
        x: &Aligned,
        head: &Linear,
        params: &Params<Cpu>,
        targets: &Vec<u32>,
        losses: &mut Aligned,
        scratch: &mut Aligned,
    ) {
        let head = head_of(params, head);
        loss::forward(&mut self.hands(), s, windows, x, &head, targets, losses, None, scratch);
    }

    fn loss_and_gradient(
        &self,
        s: &Classes,
        scale: f32,
        x: &Aligned,
        head: &Linear,
        params: &Params<Cpu>,
        targets: &Vec<u32>,
        losses: &mut Aligned,
        (d_x, write): (&mut Aligned, Write),
        grads: &mut Aligned,
        scratch: &mut Aligned,
    ) {
        let (d_weight, d_bias) = grad_pair(&params.layout, grads, head.weight, head.bias);
        let gradients = Gradients { scale, d_x: (d_x, write), d_weight, d_bias };
        loss::forward(
            &mut self.hands(),
            s,
            Windows::Whole,
            x,
            &head_of(params, head),
            targets,
            losses,
            Some(gradients),
            scratch,
        );
    }

    fn total(&self, losses: &Aligned, rows: usize, into: &mut Vec<f64>) {
        into[0] += losses[..rows].iter().map(|loss| f64::from(*loss)).sum::<f64>();
    }

    fn tally(&self, from: &Vec<f64>, into: &mut Vec<f64>) {
        into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
    }

    fn clear(&self, sums: &mut Vec<f64>) {
        sums.fill(0.0);
    }

    fn gather<T: Send>(
        &self,
        shards: &mut [T],
        grads: impl Fn(&mut T) -> &mut Aligned + Sync,
        squared: &mut Vec<f64>,
    ) {
        let Some((first, others)) = shards.split_first_mut() else { return };
        let total = grads(first);
        let crew = &mut self.crowd().crew;
        let mut squares = self.squares.lock().unwrap_or_else(PoisonError::into_inner);
        squares.resize(total.len().div_ceil(STRETCH), 0.0);
        // Each stretch is squared alone, and the sums are added in order.
        let square = |part: &[f32]| f64::from((self.simd.dot_f32)(part, part));
        let add = |total: &mut [f32], other: &mut [f32]| {
            (self.simd.add)(total, other);
            other.fill(0.0);
        };
        if let Some((last, between)) = others.split_last_mut() {
            for other in between {
                let pairs = total.chunks_mut(STRETCH).zip(grads(other).chunks_mut(STRETCH));
                crew.deal(pairs, |(total, other)| add(total, other));
            }
            let pairs = total.chunks_mut(STRETCH).zip(grads(last).chunks_mut(STRETCH));
            crew.deal(pairs.zip(&mut *squares), |((total, other), sum)| {
                add(total, other);
                *sum = square(total);
            });
        } else {
            crew.deal(total.chunks(STRETCH).zip(&mut *squares), |(total, sum)| *sum = square(total));
        }
        squared[0] = squares.iter().sum();
    }

    fn adamw(
        &self,
        adam: &Adam,
        seen: Seen<'_, Cpu>,
        params: &mut Params<Cpu>,
        first: &mut Aligned,
        second: &mut Aligned,
        grads: &mut Aligned,
    ) {
        let (loss, norm) = (seen.loss[0] / seen.rows as f64, seen.squared[0].sqrt());
        let Some(gradient_scale) = adamw::judge(adam, loss, norm, seen.record) else {
            return grads.fill(0.0);
        };
        let adam = &Adam { gradient_scale, ..*adam };
        let Params { layout, master, working, .. } = params;
        let (mut master, mut first) = (&mut **master, &mut **first);
        let (mut second, mut grads) = (&mut **second, &mut **grads);
        // The arena is the layout laid end to end: each parameter's stretches are split off in its order.
        let pieces = layout.iter().zip(working).flat_map(move |((_, parameter), panels)| {
            let len = parameter.range().len();
            let (weights, first) = (split_off(&mut master, len), split_off(&mut first, len));
            let (second, grads) = (split_off(&mut second, len), split_off(&mut grads, len));
            let rows = piece_rows(parameter.columns);
            let stretch = rows * parameter.columns;
            let stretches = weights.chunks_mut(stretch).zip(first.chunks_mut(stretch));
            let stretches = stretches.zip(second.chunks_mut(stretch)).zip(grads.chunks_mut(stretch));
            // A parameter that is not packed has no panels for any of its stretches.
            let panels = panels.chunks_mut(packed_len(rows, parameter.columns));
            let panels = panels.map(Some).chain(std::iter::repeat_with(|| None));
            stretches.zip(panels).map(move |((((weights, first), second), grads), panels)| {
                (parameter, weights, first, second, grads, panels)
            })
        });
        self.crowd().crew.deal(pieces, |(parameter, weights, first, second, grads, panels)| {
            let decays = parameter.is_learned() && (parameter.is_matrix() || adam.decay_vectors);
            let coupled = adam.coupled.then(|| adamw::couple(self.simd, adam, decays, weights, grads));
            let adam = coupled.as_ref().unwrap_or(adam);
            adamw::update(self.simd, adam, decays, weights, first, second, grads);
            if let Some(panels) = panels {
                let rows = weights.len() / parameter.columns;
                (self.simd.pack_f32)(weights, rows, parameter.columns, panels);
            }
        });
    }

    fn refresh(&self, params: &mut Params<Cpu>) {
        let (layout, master, working) = (&params.layout, &params.master, &mut params.working);
        self.crowd().crew.deal(layout.iter().zip(working), |((_, p), panels)| {
            if !panels.is_empty() {
                (self.simd.pack_f32)(&master[p.range()], p.rows, p.columns, panels);
            }
        });
    }
}
