//! Cases of the head and its cross-entropy.

use super::compare::{Allowance, Kept};
use super::subject::{
    Subject, config, drawn, floats, ids, indices, read, read_floats, read_sums, sizes, values, widened,
};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Write};
use crate::ops::loss::Classes;
use crate::windows::Windows;
use formats::Result;
use formats::config::Config;

/// Roundings of two sums, an exponential and a logarithm, both sides' together.
const STEPS: u32 = 48;
/// A device may keep logits as activations, and their gradients in their place.
const NARROWED: u32 = 2;

struct Judged {
    s: Classes,
    subject: Subject,
    scale: f32,
    x: Vec<f32>,
    targets: Vec<u32>,
    d_x: Vec<f32>,
    write: Write,
}

impl Case for Judged {
    const NAME: &'static str = "loss";

    fn shape(&self) -> String {
        let Classes { rows, width, vocabulary } = self.s;
        let head = self.subject.layout.head;
        let tied = self.subject.config.tied;
        let bias = head.bias.is_some();
        format!("{rows} rows of {width}, {vocabulary} classes, tied {tied}, bias {bias}, {:?}", self.write)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (params, head) = (self.subject.params(backend)?, self.subject.layout.head);
        let (x, targets) = (values(backend, &self.x)?, indices(backend, &self.targets)?);
        let unknown = vec![f32::NAN; self.s.rows];
        let mut scratch = self.subject.scratch(backend, self.s.rows, 1)?;
        let mut losses = floats(backend, &unknown)?;
        let windows = Windows::Whole;
        backend.loss(&self.s, windows, &x, &head, &params, &targets, &mut losses, &mut scratch);
        let alone = read_floats(backend, &losses, self.s.rows)?;
        let mut total = backend.sums(1)?;
        backend.total(&losses, self.s.rows, &mut total);
        backend.upload(&unknown, &mut losses);
        let mut grads = floats(backend, &self.subject.grads)?;
        let mut d_x = values(backend, &self.d_x)?;
        backend.loss_and_gradient(
            &self.s,
            self.scale,
            &x,
            &head,
            &params,
            &targets,
            &mut losses,
            (&mut d_x, self.write),
            &mut grads,
            &mut scratch,
        );
        Ok(vec![
            Found::new("losses", alone),
            Found::new("total", vec![read_sums(backend, &total, 1)?[0] as f32]),
            Found::new("losses, with gradient", read_floats(backend, &losses, self.s.rows)?),
            Found::new("d_x", read(backend, &d_x, self.x.len())?),
            Found::new("d_head", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let (Classes { rows, width, vocabulary }, layout) = (self.s, &self.subject.layout);
        let head = layout.parameter(layout.head.weight).range();
        let bias = layout.head.bias.map(|id| layout.parameter(id).range());
        let (weight, x) = (widened(&self.subject.weights[head.clone()]), widened(&self.x));
        let mut losses = vec![0.0; rows];
        let mut d_x = match self.write {
            Write::Set => vec![0.0; rows * width],
            Write::Accumulate => widened(&sizes(&self.d_x)),
        };
        let mut d_head = widened(&sizes(&self.subject.grads));
        for row in 0..rows {
            let x = &x[row * width..][..width];
            let (mut logits, mut largest) = (vec![0.0; vocabulary], 0.0f64);
            for (class, logit) in logits.iter_mut().enumerate() {
                let weight = &weight[class * width..][..width];
                let added = bias.clone().map_or(0.0, |bias| f64::from(self.subject.weights[bias][class]));
                *logit = added + weight.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
                let size = added.abs() + weight.iter().zip(x).map(|(w, x)| (w * x).abs()).sum::<f64>();
                largest = largest.max(size);
            }
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            losses[row] = 2.0 * largest + sum.ln().abs();
            // A logit's error is a share of its class's probability.
            let share = 1.0 + 2.0 * largest;
            for class in 0..vocabulary {
                let hit = if self.targets[row] as usize == class { 1.0 } else { 0.0 };
                let d = f64::from(self.scale) * (logits[class].exp() / sum * share + hit);
                for at in 0..width {
                    d_x[row * width + at] += d * weight[class * width + at].abs();
                    d_head[head.start + class * width + at] += d * x[at].abs();
                }
                if let Some(bias) = &bias {
                    d_head[bias.start + class] += d;
                }
            }
        }
        let allowance =
            |magnitude, sum, kept| Allowance { magnitude, sum, steps: STEPS, narrowed: NARROWED, kept };
        let longest = width.max(vocabulary);
        Ok(vec![
            allowance(losses.clone(), longest, Kept::Float),
            allowance(vec![losses.iter().sum()], longest, Kept::Float),
            allowance(losses, longest, Kept::Float),
            allowance(d_x, longest, Kept::Value),
            allowance(d_head, longest + rows, Kept::Float),
        ])
    }
}

/// Rows, width and classes; the last ones have several chunks of logits.
const SHAPES: &[[usize; 3]] = &[
    [1, 1, 2],
    [2, 3, 1],
    [3, 5, 7],
    [5, 8, 31],
    [9, 16, 65],
    [17, 33, 127],
    [33, 64, 257],
    [64, 24, 509],
    [7, 48, 1021],
    [300, 3, 1700],
    [33, 16, 5003],
    [3, 8, 50_257],
];
const FEW_SHAPES: &[[usize; 3]] = &[[1, 1, 2], [3, 5, 7], [9, 16, 65], [17, 24, 257], [5, 8, 1031]];

pub(super) fn losses<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(SHAPES, FEW_SHAPES).to_vec();
    for (index, [rows, width, vocabulary]) in shapes.into_iter().enumerate() {
        let config = Config { vocabulary, tied: index % 3 == 1, head_bias: index % 2 == 0, ..config(width) };
        let write = if index % 4 < 2 { Write::Set } else { Write::Accumulate };
        suite.check(&Judged {
            s: Classes { rows, width, vocabulary },
            subject: Subject::new(config, suite.rounding, 200 + index as u64),
            scale: 0.25,
            x: drawn(suite.rounding, rows * width, 220 + index as u64),
            targets: ids(rows, vocabulary, index as u64),
            d_x: match write {
                Write::Set => vec![f32::NAN; rows * width],
                Write::Accumulate => drawn(suite.rounding, rows * width, 240 + index as u64),
            },
            write,
        })?;
    }
    Ok(())
}
