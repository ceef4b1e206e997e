//! Cases of the affine map, alone, with a residual stream, and with the nonlinearity behind or before it.

use super::compare::{Allowance, Kept, differences};
use super::rows::{ELEMENTARY, linear_allowances, of_sizes};
use super::subject::{Subject, config, drawn, floats, read, read_floats, sizes, unwritten, values, widened};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Write};
use crate::ops::activation::Hidden;
use formats::Result;
use formats::config::{Activation, Config};

#[derive(Clone)]
struct Mapped {
    rows: usize,
    subject: Subject,
    x: Vec<f32>,
    d_out: Vec<f32>,
    d_x: Vec<f32>,
    write: Write,
}

impl Case for Mapped {
    const NAME: &'static str = "linear";

    fn shape(&self) -> String {
        let map = self.subject.up();
        let (bias, write) = (map.bias.is_some(), self.write);
        format!("{} rows, {} to {}, bias {bias}, {write:?}", self.rows, map.inputs, map.outputs)
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (params, map) = (self.subject.params(backend)?, self.subject.up());
        let x = values(backend, &self.x)?;
        let mut out = unwritten(backend, self.d_out.len())?;
        backend.linear(self.rows, &x, &map, &params, &mut out);
        let mut grads = floats(backend, &self.subject.grads)?;
        let (d_out, mut d_x) = (values(backend, &self.d_out)?, values(backend, &self.d_x)?);
        let to = (&mut d_x, self.write);
        let mut scratch = self.subject.scratch(backend, self.rows, 1)?;
        backend.linear_backward(self.rows, &x, &map, &params, &d_out, to, &mut grads, &mut scratch);
        Ok(vec![
            Found::new("forward", read(backend, &out, self.d_out.len())?),
            Found::new("d_x", read(backend, &d_x, self.x.len())?),
            Found::new("d_weight, d_bias", read_floats(backend, &grads, self.subject.grads.len())?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let map = self.subject.up();
        let sized = Mapped {
            subject: self.subject.sizes(),
            x: sizes(&self.x),
            d_out: sizes(&self.d_out),
            d_x: sizes(&self.d_x),
            ..self.clone()
        };
        let kinds = [(map.inputs, Kept::Value), (map.outputs, Kept::Value), (self.rows, Kept::Float)];
        Ok(linear_allowances(of_sizes(&sized, reference)?, &kinds))
    }
}

/// The map and the residual connection behind it, beside one after the other.
struct Added {
    map: Mapped,
    stream: Vec<f32>,
}

impl Case for Added {
    const NAME: &'static str = "linear_add";

    fn shape(&self) -> String {
        self.map.shape()
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let Added { map: Mapped { rows, subject, x, .. }, stream } = self;
        let (params, map, len) = (subject.params(backend)?, subject.up(), stream.len());
        let (x, stream) = (values(backend, x)?, values(backend, stream)?);
        let made = || unwritten(backend, len);
        let (mut branch, mut sum, mut branch_apart, mut sum_apart) = (made()?, made()?, made()?, made()?);
        backend.linear_add(*rows, &x, &map, &params, &stream, &mut branch, &mut sum);
        backend.linear(*rows, &x, &map, &params, &mut branch_apart);
        backend.add(*rows, &stream, &branch_apart, None, &mut sum_apart);
        let unlike = differences(read(backend, &sum, len)?, read(backend, &sum_apart, len)?);
        Ok(vec![Found::marks("beside both apart", unlike)])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        Ok(vec![Allowance::none(self.stream.len())])
    }
}

/// Rows, inputs and outputs: smaller than a tile, around one, several with a rest, and a model's own.
const SHAPES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 2, 3],
    [3, 5, 7],
    [5, 7, 11],
    [7, 8, 9],
    [6, 16, 17],
    [13, 31, 33],
    [17, 33, 29],
    [33, 12, 31],
    [16, 64, 64],
    [31, 65, 127],
    [64, 64, 192],
    [65, 128, 64],
    [128, 97, 129],
    [127, 256, 65],
    [192, 384, 131],
    [257, 96, 257],
    [128, 768, 256],
    // Enough tiles of every product for the largest cards, once each.
    [1500, 40, 1600],
    [1600, 1500, 33],
    [17, 1530, 1601],
];
const FEW_SHAPES: &[[usize; 3]] =
    &[[1, 1, 1], [3, 5, 7], [17, 33, 29], [16, 64, 64], [257, 130, 9], [33, 40, 65]];

pub(super) fn linears<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(SHAPES, FEW_SHAPES).to_vec();
    for (index, [rows, width, feed_forward]) in shapes.into_iter().enumerate() {
        let config = Config { feed_forward, feed_forward_bias: index % 3 != 2, ..config(width) };
        let write = if index % 2 == 0 { Write::Set } else { Write::Accumulate };
        let map = Mapped {
            rows,
            subject: Subject::new(config, suite.rounding, 100 + index as u64),
            x: drawn(suite.rounding, rows * width, 120 + index as u64),
            d_out: drawn(suite.rounding, rows * feed_forward, 140 + index as u64),
            d_x: match write {
                Write::Set => vec![f32::NAN; rows * width],
                Write::Accumulate => drawn(suite.rounding, rows * width, 160 + index as u64),
            },
            write,
        };
        suite.check(&map)?;
        suite
            .check(&Added { stream: drawn(suite.rounding, rows * feed_forward, 180 + index as u64), map })?;
    }
    Ok(())
}

/// A feed-forward layer: the map into it with the nonlinearity behind, and the nonlinearity with the map out of it,
/// backwards.
#[derive(Clone)]
struct Joined {
    rows: usize,
    subject: Subject,
    x: Vec<f32>,
    /// What the backward pass is told of the forward pass: numbers of their own.
    hidden: Vec<f32>,
    activated: Vec<f32>,
    d_out: Vec<f32>,
}

/// What a feed-forward layer leaves.
struct Layer {
    hidden: Vec<f32>,
    activated: Vec<f32>,
    d_hidden: Vec<f32>,
    grads: Vec<f32>,
}

impl Joined {
    fn s(&self) -> Hidden {
        Hidden { kind: self.subject.config.activation, width: self.subject.config.feed_forward }
    }

    /// Both passes, joined or by one verb after the other.
    fn layer<B: Backend>(&self, backend: &B, joined: bool) -> Result<Layer> {
        let (s, rows, len) = (self.s(), self.rows, self.hidden.len());
        let (params, up, down) = (self.subject.params(backend)?, self.subject.up(), self.subject.down());
        let x = values(backend, &self.x)?;
        let (mut made, mut out) = (unwritten(backend, len)?, unwritten(backend, len)?);
        let (hidden, activated) = (values(backend, &self.hidden)?, values(backend, &self.activated)?);
        let (d_out, mut d) = (values(backend, &self.d_out)?, unwritten(backend, len)?);
        let mut grads = floats(backend, &self.subject.grads)?;
        let mut scratch = self.subject.scratch(backend, rows, 1)?;
        let (to, into, work) = (&mut d, &mut grads, &mut scratch);
        if joined {
            backend.linear_activation(rows, &x, &up, s, &params, &mut made, &mut out);
            backend.activation_linear_backward(
                rows, s, &hidden, &activated, &down, &params, &d_out, to, into, work,
            );
        } else {
            backend.linear(rows, &x, &up, &params, &mut made);
            backend.activation(s, &made, None, &mut out);
            let mut between = unwritten(backend, len)?;
            let d_x = (&mut between, Write::Set);
            backend.linear_backward(rows, &activated, &down, &params, &d_out, d_x, into, work);
            backend.activation_backward(s, &hidden, None, Some(&between), to);
        }
        Ok(Layer {
            hidden: read(backend, &made, len)?,
            activated: read(backend, &out, len)?,
            d_hidden: read(backend, &d, len)?,
            grads: read_floats(backend, &grads, self.subject.grads.len())?,
        })
    }

    fn named(&self) -> String {
        let Config { width, feed_forward, activation, feed_forward_bias, .. } = self.subject.config;
        format!("{} rows, {width} to {feed_forward}, {activation:?}, bias {feed_forward_bias}", self.rows)
    }
}

impl Case for Joined {
    const NAME: &'static str = "linear_activation";

    fn shape(&self) -> String {
        self.named()
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let layer = self.layer(backend, true)?;
        Ok(vec![
            Found::new("forward", layer.hidden),
            Found::new("nonlinearity", layer.activated),
            Found::new("d_x", layer.d_hidden),
            Found::new("d_weight, d_bias", layer.grads),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        // The products of sizes, through a nonlinearity that changes none.
        let mut subject = self.subject.sizes();
        subject.config.activation = Activation::Relu;
        let sized = Joined {
            subject,
            x: sizes(&self.x),
            hidden: sizes(&self.hidden),
            activated: sizes(&self.activated),
            d_out: sizes(&self.d_out),
            ..self.clone()
        };
        let sizes = sized.layer(reference, true)?;
        let (up, down) = (self.subject.up(), self.subject.down());
        // No nonlinearity is steeper, and its slope is a distribution function and x times a density.
        let activated = sizes.hidden.iter().map(|size| 1.25 * f64::from(*size)).collect();
        let slopes = sizes.d_hidden.iter().zip(&sized.hidden);
        let d_hidden = slopes.map(|(d, x)| f64::from(*d) * (1.0 + f64::from(*x))).collect();
        let product =
            |sizes: &[f32], sum, kept| linear_allowances(vec![widened(sizes)], &[(sum, kept)]).remove(0);
        // What is between the product and the nonlinearity may be rounded as an activation.
        let through =
            |magnitude, sum| Allowance { magnitude, sum, steps: ELEMENTARY, narrowed: 1, kept: Kept::Value };
        Ok(vec![
            product(&sizes.hidden, up.inputs, Kept::Value),
            through(activated, up.inputs),
            through(d_hidden, down.outputs),
            product(&sizes.grads, self.rows, Kept::Float),
        ])
    }
}

/// The same beside what the verbs that it joins leave, where that must be the same bytes.
struct Apart(Joined);

impl Case for Apart {
    const NAME: &'static str = Joined::NAME;

    fn shape(&self) -> String {
        self.0.named()
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let (joined, apart) = (self.0.layer(backend, true)?, self.0.layer(backend, false)?);
        let mut unlike = differences(joined.hidden, apart.hidden);
        unlike.extend(differences(joined.activated, apart.activated));
        unlike.extend(differences(joined.d_hidden, apart.d_hidden));
        unlike.extend(differences(joined.grads, apart.grads));
        Ok(vec![Found::marks("beside both apart", unlike)])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        Ok(vec![Allowance::none(3 * self.0.hidden.len() + self.0.subject.grads.len())])
    }
}

/// Rows, width and hidden width: ragged ones, large tiles, and sums so short that a library may not know them.
const LAYERS: &[[usize; 3]] = &[
    [1, 1, 1],
    [3, 5, 7],
    [17, 33, 29],
    [16, 6, 64],
    [31, 65, 127],
    [33, 40, 72],
    [64, 64, 256],
    [65, 128, 520],
    [129, 96, 385],
    [257, 10, 136],
    [40, 192, 768],
    // Enough tiles for the largest cards.
    [1500, 8, 1600],
];
const FEW_LAYERS: &[[usize; 3]] = &[[3, 5, 7], [17, 33, 29], [16, 6, 64], [33, 40, 72], [257, 10, 136]];

pub(super) fn layers<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    let shapes = suite.choose(LAYERS, FEW_LAYERS).to_vec();
    for (index, [rows, width, feed_forward]) in shapes.into_iter().enumerate() {
        for (number, activation) in
            [Activation::Relu, Activation::GeluErf, Activation::GeluTanh].into_iter().enumerate()
        {
            let biased = (index + number) % 2 == 1;
            let config = Config { feed_forward, activation, feed_forward_bias: biased, ..config(width) };
            let drawn = |len, seed: u64| drawn(suite.rounding, len, seed + index as u64);
            let hidden = drawn(rows * feed_forward, 540);
            let case = Joined {
                rows,
                subject: Subject::new(config, suite.rounding, 500 + index as u64),
                x: drawn(rows * width, 520),
                hidden: hidden.iter().map(|x| suite.rounding.of(4.0 * x)).collect(),
                activated: drawn(rows * feed_forward, 560),
                d_out: drawn(rows * width, 580),
            };
            suite.check(&case)?;
            if suite.device.joins_exactly(activation) {
                suite.check(&Apart(case))?;
            }
        }
    }
    Ok(())
}
