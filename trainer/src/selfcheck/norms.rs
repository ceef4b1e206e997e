//! Cases of the norms: of rows, of rows that are added up first, and of queries and keys.

use super::compare::{Allowance, Kept, differences};
use super::rows::{COUNTS, ELEMENTARY, FEW_HEADS, FEW_WIDTHS, HEADS, WIDER_THAN_A_BLOCK, WIDTHS, mask};
use super::subject::{
    ADAM, Subject, at_step, config, drawn, floats, read, read_floats, sizes, unwritten, values, widened,
};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Rows, Write};
use crate::ops::attention::Heads;
use crate::ops::query_key_norm::Stretches;
use formats::Result;
use formats::config::{Config, NormKind, QueryKeyNorm};

struct Normed {
    s: Rows,
    subject: Subject,
    x: Vec<f32>,
    d_out: Vec<f32>,
    d_x: Vec<f32>,
    write: Write,
}

/// Sizes of one row's terms in a norm over it: of its result and of its gradient without what was there, and of the
/// normalised numbers; both gain and cotangent as they enter.
struct RowSizes {
    out: Vec<f64>,
    d_x: Vec<f64>,
    normed: Vec<f64>,
}

/// In float64, for a row `x` with the kind's centre.
fn row_sizes(kind: NormKind, eps: f32, x: &[f32], gain: &[f32], d_out: &[f32]) -> RowSizes {
    let count = x.len() as f64;
    let (x, gain, d_out) = (widened(x), widened(gain), widened(d_out));
    let mean = if kind == NormKind::LayerNorm { x.iter().sum::<f64>() / count } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
    let scale = 1.0 / (variance + f64::from(eps)).sqrt();
    let largest = x.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    // The difference to the mean is as exact as the numbers are large, not as it is small.
    let normed: Vec<f64> = x.iter().map(|x| scale * largest * (1.0 + ((x - mean) * scale).abs())).collect();
    let e: Vec<f64> = d_out.iter().zip(&gain).map(|(d, g)| (d * g).abs()).collect();
    let mean_e = e.iter().sum::<f64>() / count;
    let mean_en = e.iter().zip(&normed).map(|(e, n)| e * n).sum::<f64>() / count;
    RowSizes {
        out: normed.iter().zip(&gain).map(|(n, g)| n * g.abs()).collect(),
        d_x: (0..x.len())
            .map(|at| scale * (1.0 + scale * largest) * (e[at] + mean_e + normed[at] * mean_en))
            .collect(),
        normed,
    }
}

impl Case for Normed {
    const NAME: &'static str = "norm";

    fn shape(&self) -> String {
        let Rows { rows, width, kind, .. } = self.s;
        format!("{rows} rows of {width}, {kind:?}, bias {}, {:?}", self.subject.config.norm_bias, self.write)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let params = self.subject.params(backend)?;
        let norm = self.subject.layout.layers[0].attention_norm;
        let x = values(backend, &self.x)?;
        let mut out = unwritten(backend, self.x.len())?;
        let mut moments = floats(backend, &vec![f32::NAN; 2 * self.s.rows])?;
        backend.norm(&self.s, &x, &norm, &params, &mut out, &mut moments);
        let mut grads = floats(backend, &self.subject.grads)?;
        let (d_out, mut d_x) = (values(backend, &self.d_out)?, values(backend, &self.d_x)?);
        let to = (&mut d_x, self.write);
        let mut scratch = self.subject.scratch(backend, self.s.rows, 1)?;
        backend.norm_backward(&self.s, &x, &norm, &params, &moments, &d_out, to, &mut grads, &mut scratch);
        Ok(vec![
            Found::new("forward", read(backend, &out, self.x.len())?),
            Found::new("d_x", read(backend, &d_x, self.x.len())?),
            Found::new("d_gain, d_bias", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let (Subject { layout, weights, grads, .. }, width) = (&self.subject, self.s.width);
        let norm = layout.layers[0].attention_norm;
        let gain = &weights[layout.parameter(norm.gain).range()];
        let bias = norm.bias.map(|id| layout.parameter(id).range());
        let (mut out, mut d_x, mut d_params) = (vec![], vec![], widened(&sizes(grads)));
        for (row, (x, d_out)) in self.x.chunks(width).zip(self.d_out.chunks(width)).enumerate() {
            let row_sizes = row_sizes(self.s.kind, self.s.eps, x, gain, d_out);
            for at in 0..width {
                let added = bias.clone().map_or(0.0, |bias| f64::from(weights[bias][at].abs()));
                out.push(row_sizes.out[at] + added);
                let before = self.d_x[row * width + at].abs();
                d_x.push(row_sizes.d_x[at] + if self.write == Write::Set { 0.0 } else { f64::from(before) });
                let d = f64::from(d_out[at].abs());
                d_params[layout.parameter(norm.gain).offset + at] += d * row_sizes.normed[at];
                if let Some(bias) = &bias {
                    d_params[bias.start + at] += d;
                }
            }
        }
        let sum = |magnitude, sum, kept| Allowance { magnitude, sum, steps: ELEMENTARY, narrowed: 0, kept };
        Ok(vec![
            sum(out, width, Kept::Value),
            sum(d_x, width, Kept::Value),
            sum(d_params, self.s.rows + width, Kept::Float),
        ])
    }
}

pub(super) fn norms<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let widths = suite.choose(WIDTHS, FEW_WIDTHS).iter().copied().chain([WIDER_THAN_A_BLOCK]);
    let widths: Vec<usize> = widths.collect();
    for (index, width) in widths.into_iter().enumerate() {
        for (kind, norm_bias) in
            [(NormKind::LayerNorm, true), (NormKind::LayerNorm, false), (NormKind::RmsNorm, false)]
        {
            if suite.quick() && norm_bias != (index % 2 == 0) {
                continue;
            }
            let rows = COUNTS[(index + usize::from(norm_bias)) % COUNTS.len()];
            let config = Config { norm: kind, norm_bias, ..config(width) };
            let write = if index % 2 == 0 { Write::Set } else { Write::Accumulate };
            let d_x = match write {
                Write::Set => vec![f32::NAN; rows * width],
                Write::Accumulate => drawn(suite.rounding, rows * width, 3),
            };
            suite.check(&Normed {
                s: Rows { rows, width, eps: config.norm_eps, kind },
                subject: Subject::new(config, suite.rounding, 50 + index as u64),
                x: drawn(suite.rounding, rows * width, 60 + index as u64),
                d_out: drawn(suite.rounding, rows * width, 90 + index as u64),
                d_x,
                write,
            })?;
        }
    }
    Ok(())
}

/// Two rows added up, and the norm of what that left; at once, and one after the other to the same bytes.
struct AddNormed {
    s: Rows,
    subject: Subject,
    dropout: f32,
    stream: Vec<f32>,
    branch: Vec<f32>,
}

impl Case for AddNormed {
    const NAME: &'static str = "add_norm";

    fn shape(&self) -> String {
        let Rows { rows, width, kind, .. } = self.s;
        format!("{rows} rows of {width}, {kind:?}, dropout {}", self.dropout)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (params, len) = (self.subject.params(backend)?, self.stream.len());
        let norm = self.subject.layout.layers[0].feed_forward_norm;
        let (stream, branch) = (values(backend, &self.stream)?, values(backend, &self.branch)?);
        let (mut sum, mut out) = (unwritten(backend, len)?, unwritten(backend, len)?);
        let (mut sum_apart, mut out_apart) = (unwritten(backend, len)?, unwritten(backend, len)?);
        let kept = 2 * self.s.rows;
        let mut moments = floats(backend, &vec![f32::NAN; kept])?;
        let mut moments_apart = floats(backend, &vec![f32::NAN; kept])?;
        let (s, mask) = (&self.s, mask(self.dropout, self.s.width));
        at_step(backend, &ADAM, || {
            let (sum, out, moments) = (&mut sum, &mut out, &mut moments);
            backend.add_norm(s, &stream, &branch, mask, &norm, &params, sum, out, moments);
            backend.add(s.rows, &stream, &branch, mask, &mut sum_apart);
            backend.norm(s, &sum_apart, &norm, &params, &mut out_apart, &mut moments_apart);
        })?;
        let [sum, out] = [read(backend, &sum, len)?, read(backend, &out, len)?];
        let mut apart = differences(sum.clone(), read(backend, &sum_apart, len)?);
        apart.extend(differences(out.clone(), read(backend, &out_apart, len)?));
        let moments = read_floats(backend, &moments, kept)?;
        apart.extend(differences(moments, read_floats(backend, &moments_apart, kept)?));
        Ok(vec![
            Found::new("sum", sum),
            Found::new("norm of the sum", out),
            Found::marks("beside both apart", apart),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let (Subject { layout, weights, .. }, width) = (&self.subject, self.s.width);
        let norm = layout.layers[0].feed_forward_norm;
        let gain = &weights[layout.parameter(norm.gain).range()];
        let bias = norm.bias.map(|id| &weights[layout.parameter(id).range()]);
        let sum = &self.carry_out(reference)?[0].numbers;
        let mut out = vec![];
        for row in sum.chunks(width) {
            let sizes = row_sizes(self.s.kind, self.s.eps, row, gain, row);
            let added = |at: usize| bias.map_or(0.0, |bias| f64::from(bias[at].abs()));
            out.extend(sizes.out.iter().enumerate().map(|(at, size)| size + added(at)));
        }
        let most = super::rows::most(self.dropout);
        let terms = self.stream.iter().zip(&self.branch);
        let sum = terms.map(|(x, y)| f64::from(x.abs()) + most * f64::from(y.abs())).collect();
        let allowance = |magnitude, sum, narrowed| Allowance {
            magnitude,
            sum,
            steps: ELEMENTARY,
            narrowed,
            kept: Kept::Value,
        };
        // What is normed is the sum as it is kept.
        let apart = Allowance::none(2 * self.stream.len() + 2 * self.s.rows);
        Ok(vec![allowance(sum, 1, 0), allowance(out, width, 2), apart])
    }
}

pub(super) fn sums<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let widths = suite.choose(WIDTHS, FEW_WIDTHS).iter().copied().chain([WIDER_THAN_A_BLOCK]);
    for (index, width) in widths.collect::<Vec<_>>().into_iter().enumerate() {
        let kind = [NormKind::LayerNorm, NormKind::RmsNorm][index % 2];
        let rows = COUNTS[(index + 2) % COUNTS.len()];
        // A row of one number, or of few, may have no deviation: its rounding would be all there is.
        if width < 3 && kind == NormKind::LayerNorm {
            continue;
        }
        let config = Config { norm: kind, norm_bias: index % 4 == 0, ..config(width) };
        suite.check(&AddNormed {
            s: Rows { rows, width, eps: config.norm_eps, kind },
            subject: Subject::new(config, suite.rounding, 170 + index as u64),
            dropout: [0.0, 0.3, 0.0][index % 3],
            stream: drawn(suite.rounding, rows * width, 171 + index as u64),
            branch: drawn(suite.rounding, rows * width, 172 + index as u64),
        })?;
    }
    Ok(())
}

struct QueryKeyNormed {
    s: Stretches,
    subject: Subject,
    qkv: Vec<f32>,
    d_out: Vec<f32>,
}

impl Case for QueryKeyNormed {
    const NAME: &'static str = "query_key_norm";

    fn shape(&self) -> String {
        let Heads { heads, kv_heads, size, .. } = self.s.heads;
        format!(
            "{} rows of {heads} heads, {kv_heads} with keys, of {size}, {}",
            self.s.heads.rows(),
            if self.s.whole { "whole" } else { "each" }
        )
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let params = self.subject.params(backend)?;
        let norms = self.norms();
        let len = self.qkv.len();
        let (qkv, mut out) = (values(backend, &self.qkv)?, unwritten(backend, len)?);
        let mut kept = floats(backend, &vec![f32::NAN; self.s.kept()])?;
        backend.query_key_norm(&self.s, &qkv, &norms, &params, &mut out, &mut kept);
        let mut grads = floats(backend, &self.subject.grads)?;
        let (d_out, mut d_qkv) = (values(backend, &self.d_out)?, unwritten(backend, len)?);
        let mut scratch = self.subject.scratch(backend, self.s.heads.sequences, self.s.heads.block)?;
        let to = &mut d_qkv;
        backend.query_key_norm_backward(
            &self.s,
            &qkv,
            &norms,
            &params,
            &kept,
            &d_out,
            to,
            &mut grads,
            &mut scratch,
        );
        Ok(vec![
            Found::new("forward", read(backend, &out, len)?),
            Found::new("d_x", read(backend, &d_qkv, len)?),
            Found::new("d_gains", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let (Subject { layout, weights, grads, .. }, heads) = (&self.subject, self.s.heads);
        let (mut out, mut d_x) = (widened(&sizes(&self.qkv)), widened(&sizes(&self.d_out)));
        let mut d_params = widened(&sizes(grads));
        let mut longest = 0;
        for row in 0..heads.rows() {
            let mut at = row * heads.row();
            for (norm, side) in self.norms().iter().zip([heads.heads, heads.kv_heads]) {
                let gain = layout.parameter(norm.gain);
                let end = at + side * heads.size;
                while at < end {
                    let range = at..at + gain.len();
                    let (x, d) = (&self.qkv[range.clone()], &self.d_out[range.clone()]);
                    let found = row_sizes(NormKind::RmsNorm, self.s.eps, x, &weights[gain.range()], d);
                    out[range.clone()].copy_from_slice(&found.out);
                    d_x[range.clone()].copy_from_slice(&found.d_x);
                    for (index, n) in found.normed.iter().enumerate() {
                        d_params[gain.offset + index] += n * f64::from(d[index].abs());
                    }
                    longest = longest.max(gain.len());
                    at = range.end;
                }
            }
        }
        let allowance =
            |magnitude, sum, kept| Allowance { magnitude, sum, steps: ELEMENTARY, narrowed: 0, kept };
        Ok(vec![
            allowance(out, longest, Kept::Value),
            allowance(d_x, longest, Kept::Value),
            allowance(d_params, longest + heads.rows() * heads.heads, Kept::Float),
        ])
    }
}

impl QueryKeyNormed {
    fn norms(&self) -> [formats::layout::Norm; 2] {
        self.subject.layout.layers[0].query_key_norm.expect("the case's model has them")
    }
}

pub(super) fn query_key_norms<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(HEADS, FEW_HEADS).to_vec();
    for (index, [heads, kv_heads, head_size]) in shapes.into_iter().enumerate() {
        for kind in [QueryKeyNorm::Head, QueryKeyNorm::Whole] {
            let config = Config { heads, kv_heads, head_size, query_key_norm: kind, ..config(4) };
            let block = COUNTS[index % COUNTS.len()];
            let shape =
                Heads { sequences: 1 + index % 2, block, heads, kv_heads, size: head_size, scale: 1.0 };
            let len = shape.rows() * shape.row();
            suite.check(&QueryKeyNormed {
                s: Stretches::new(shape, kind, config.norm_eps),
                subject: Subject::new(config, suite.rounding, 5 + index as u64),
                qkv: drawn(suite.rounding, len, 6 + index as u64),
                d_out: drawn(suite.rounding, len, 7 + index as u64),
            })?;
        }
    }
    Ok(())
}
