//! Layers of experts: every thread knows where every row goes, and computes its columns of what the chosen experts
//! give.
//!
//! Few rows cost the barriers of a dense layer: the hidden values of all experts of a row are one row, dealt at once.
//! Of many rows those of one expert are gathered, so that its weights are widened once. Either way the experts of a
//! row are added in the order they were chosen in, the shared ones last.

use super::board::{Many, Routed, Scratch, stride};
use super::projection::{Projection, each_output};
use super::router::Router;
use super::{BLOCK, FEW_ROWS, Rows, Worker};
use crate::team::{Cut, Mine, Place, Whole};
use formats::layout::Bank;
use formats::{Error, Result};

impl Worker<'_, '_> {
    /// Decides where each row goes, on every thread.
    pub(super) fn choose(&mut self, x: &Rows, bank: &Bank, layer: usize) -> Result<()> {
        let rows = self.rows();
        let width = self.config().width;
        let experts = self.config().experts_of(layer);
        let experts = experts.ok_or_else(|| Error::Internal(format!("layer {layer} has no experts")))?;
        let router = Router {
            simd: self.model.simd,
            score: experts.score,
            weight: experts.weight,
            selection_bias: bank.selection_bias.map(|id| self.model.vector(id)),
        };
        let (slots, active) = (bank.slots(), bank.active);
        if let Rows::Local = x {
            let routed = &mut self.local.routed;
            for (row, x) in self.local.norm.chunks_exact(width).take(rows.len()).enumerate() {
                each_output(self.model, bank.router.weight, 0, x, &mut routed.logits[..bank.count]);
                let at = row * slots..row * slots + active;
                let Routed { logits, keys, experts, weights, .. } = routed;
                let (logits, keys) = (&mut logits[..bank.count], &mut keys[..bank.count]);
                router.choose(logits, keys, &mut experts[at.clone()], &mut weights[at]);
            }
        } else if !rows.is_empty() {
            let many = self.many()?;
            let x = self.shared(x)?;
            let cut = Cut::Rows { rows: rows.end };
            let (x, mut out) = self.member.open((Whole(x), Mine(many.routing, cut)))?;
            let Routed { logits, keys, experts, .. } = &mut self.local.routed;
            let (logits, keys) = (&mut logits[..bank.count], &mut keys[..bank.count]);
            for row in out.rows().filter(|row| rows.contains(row)) {
                each_output(self.model, bank.router.weight, 0, &x[row * width..][..width], logits);
                // Numbers of experts are few enough that an f32 holds them exactly.
                let (numbers, weights) = out.row(row).split_at_mut(active);
                let chosen = &mut experts[..active];
                router.choose(logits, keys, chosen, weights);
                numbers.iter_mut().zip(chosen).for_each(|(number, expert)| *number = *expert as f32);
            }
            let (all,) = self.member.open((Whole(many.routing),))?;
            let Routed { experts, weights, .. } = &mut self.local.routed;
            for (index, row) in rows.clone().enumerate() {
                let (numbers, from) = all[row * 2 * active..][..2 * active].split_at(active);
                let at = index * slots..index * slots + active;
                weights[at.clone()].copy_from_slice(from);
                let chosen = experts[at].iter_mut().zip(numbers);
                chosen.for_each(|(expert, number)| *expert = *number as u32);
            }
        }
        self.local.routed.finish(bank, rows.len());
        if self.member.index() == 0 {
            let routed = &mut self.local.routed;
            routed.count(bank, layer, rows.len());
            let assigned = routed.experts[..rows.len() * slots].iter().copied();
            // The shared ones are part of what every token needs.
            self.model.use_experts(layer, assigned.filter(|expert| (*expert as usize) < bank.count));
        }
        Ok(())
    }

    /// The weighted sum of each row's experts.
    pub(super) fn mix(&mut self, x: Rows, bank: &Bank) -> Result<Rows> {
        let from = match x {
            Rows::Stream(_) | Rows::Lent(_) => Some(self.shared(&x)?),
            _ => None,
        };
        let few = matches!(x, Rows::Local);
        // Where rows of their own came in the sum goes out: they are read before any of it is written.
        self.release(x);
        let (rows, out) = self.take()?;
        match from {
            _ if self.rows().is_empty() => {}
            Some(from) => self.mix_many(bank, from, out)?,
            None if few => self.mix_few(bank, out)?,
            None => {}
        }
        Ok(rows)
    }

    fn many(&self) -> Result<Many> {
        let many = self.board.mixture.as_ref().and_then(|mixture| mixture.many);
        many.ok_or_else(|| Error::Internal("a session of few rows has many".into()))
    }

    fn mix_few(&mut self, bank: &Bank, out: Place<f32>) -> Result<()> {
        let rows = self.rows();
        let [width, slots] = [self.config().width, bank.slots()];
        let expert_width = bank.down(0).inputs;
        let stride = stride(expert_width);
        let mixture = self.board.mixture.as_ref();
        let few = mixture.ok_or_else(|| Error::Internal("a dense model has experts".into()))?.few;
        let cancelled = self.member.cancelled();

        let (mut hidden,) = self.member.open((Mine(few, Cut::Columns),))?;
        let columns = hidden.columns();
        let span = Projection::new(self.model, &bank.up(0)).span(1, &self.local.scratch);
        let Scratch { panels, passing, .. } = &mut self.local.scratch;
        let routed = &self.local.routed;
        for row in 0..rows.len() {
            let x = &self.local.norm[row * width..][..width];
            for slot in 0..slots {
                // The member's part of this slot's columns.
                let begin = (slot * stride).max(columns.start);
                let end = (slot * stride + expert_width).min(columns.end);
                let expert = routed.experts[row * slots + slot] as usize;
                let projection = Projection::new(self.model, &bank.up(expert));
                for first in (begin..end).step_by(span) {
                    cancelled.check()?;
                    let count = span.min(end - first);
                    let outputs = first - slot * stride..first - slot * stride + count;
                    let to = &mut hidden.row(row)[first - columns.start..][..count];
                    projection.block(x, outputs, panels, passing, to, count);
                }
            }
        }

        let (hidden, mut out) = self.member.open((Whole(few), Mine(out, Cut::Columns)))?;
        let columns = out.columns();
        let span = Projection::new(self.model, &bank.down(0)).span(1, &self.local.scratch);
        let Scratch { panels, passing, .. } = &mut self.local.scratch;
        let Routed { experts, weights, partial, .. } = &mut self.local.routed;
        let span = span.min(partial.len());
        for (row, to) in rows.enumerate() {
            let hidden = &hidden[row * slots * stride..][..slots * stride];
            for first in columns.clone().step_by(span) {
                cancelled.check()?;
                let count = span.min(columns.end - first);
                let sum = &mut out.row(to)[first - columns.start..][..count];
                sum.fill(0.0);
                for slot in 0..slots {
                    let expert = experts[row * slots + slot] as usize;
                    let projection = Projection::new(self.model, &bank.down(expert));
                    let hidden = &hidden[slot * stride..][..expert_width];
                    let partial = &mut partial[..count];
                    projection.block(hidden, first..first + count, panels, passing, partial, count);
                    (self.model.simd.axpy_f32)(weights[row * slots + slot], partial, sum);
                }
            }
        }
        Ok(())
    }

    fn mix_many(&mut self, bank: &Bank, x: Place<f32>, out: Place<f32>) -> Result<()> {
        let (rows, slots) = (self.rows(), bank.slots());
        let [width, expert_width] = [self.config().width, bank.down(0).inputs];
        let many = self.many()?;
        let cancelled = self.member.cancelled();

        let (x, mut hidden) = self.member.open((Whole(x), Mine(many.hidden, Cut::Columns)))?;
        let columns = hidden.columns();
        let Scratch { panels, passing, block } = &mut self.local.scratch;
        let Routed { begins, rows: standing, gathered, .. } = &mut self.local.routed;
        for expert in 0..bank.len() {
            let places = begins[expert] as usize..begins[expert + 1] as usize;
            if places.is_empty() {
                continue;
            }
            let gathered = &mut gathered[..places.len() * width];
            for (to, row) in gathered.chunks_exact_mut(width).zip(&standing[places.clone()]) {
                to.copy_from_slice(&x[(rows.start + *row as usize) * width..][..width]);
            }
            let projection = Projection::new(self.model, &bank.up(expert));
            for first in columns.clone().step_by(BLOCK) {
                cancelled.check()?;
                let count = BLOCK.min(columns.end - first);
                let block = &mut block[..places.len() * count];
                projection.block(gathered, first..first + count, panels, passing, block, count);
                for (place, block) in places.clone().zip(block.chunks_exact(count)) {
                    hidden.row(place)[first - columns.start..][..count].copy_from_slice(block);
                }
            }
        }

        let (hidden, mut out) = self.member.open((Whole(many.hidden), Mine(out, Cut::Columns)))?;
        let columns = out.columns();
        let Scratch { panels, passing, .. } = &mut self.local.scratch;
        let Routed { begins, standing, weights, partial, .. } = &mut self.local.routed;
        for first in columns.clone().step_by(BLOCK) {
            let count = BLOCK.min(columns.end - first);
            for expert in 0..bank.len() {
                let places = begins[expert] as usize..begins[expert + 1] as usize;
                if places.is_empty() {
                    continue;
                }
                cancelled.check()?;
                let projection = Projection::new(self.model, &bank.down(expert));
                let hidden = &hidden[places.start * expert_width..places.end * expert_width];
                let partial = &mut partial[places.start * count..places.end * count];
                projection.block(hidden, first..first + count, panels, passing, partial, count);
            }
            for (index, row) in rows.clone().enumerate() {
                let sum = &mut out.row(row)[first - columns.start..][..count];
                sum.fill(0.0);
                for slot in index * slots..(index + 1) * slots {
                    let partial = &partial[standing[slot] as usize * count..][..count];
                    (self.model.simd.axpy_f32)(weights[slot], partial, sum);
                }
            }
        }
        Ok(())
    }
}

impl Routed {
    /// Adds the shared experts, and of many rows says where those of each expert stand: in row order.
    fn finish(&mut self, bank: &Bank, rows: usize) {
        let (slots, active) = (bank.slots(), bank.active);
        let assignments = rows * slots;
        for row in 0..rows {
            for shared in 0..bank.shared {
                let slot = row * slots + active + shared;
                self.experts[slot] = (bank.count + shared) as u32;
                self.weights[slot] = 1.0;
            }
        }
        if rows <= FEW_ROWS {
            return;
        }
        let begins = &mut self.begins[..bank.len() + 1];
        begins.fill(0);
        for &expert in &self.experts[..assignments] {
            begins[expert as usize + 1] += 1;
        }
        for expert in 0..bank.len() {
            begins[expert + 1] += begins[expert];
        }
        // Counted up from each expert's beginning, then set back by one expert.
        for (slot, &expert) in self.experts[..assignments].iter().enumerate() {
            let next = &mut begins[expert as usize];
            self.standing[slot] = *next;
            self.rows[*next as usize] = (slot / slots) as u32;
            *next += 1;
        }
        begins.copy_within(..bank.len(), 1);
        begins[0] = 0;
    }

    /// Keeps what was chosen, for those who ask.
    fn count(&mut self, bank: &Bank, layer: usize, rows: usize) {
        let (slots, active) = (bank.slots(), bank.active);
        self.expert_rows += (rows * slots) as u64;
        let most = self.chosen.len() / (self.counts.len() / bank.count);
        let counts = &mut self.counts[layer * bank.count..][..bank.count];
        let chosen = &mut self.chosen[layer * most..][..rows * active];
        for (row, chosen) in chosen.chunks_exact_mut(active).enumerate() {
            chosen.copy_from_slice(&self.experts[row * slots..][..active]);
            chosen.iter().for_each(|expert| counts[*expert as usize] += 1);
        }
    }
}
