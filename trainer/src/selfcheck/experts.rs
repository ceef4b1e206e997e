//! Cases of the experts that a router chose.

use super::compare::{Allowance, Kept, differences};
use super::mixtures::{Mixture, Routed, shapes};
use super::rows::of_sizes;
use super::subject::{drawn, floats, read, read_floats, sizes, unwritten, values};
use super::{Case, Found, Suite};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Storage, Write};
use crate::ops::activation::Hidden;
use crate::ops::experts::Way;
use crate::ops::route::DROPPED;
use formats::Result;
use formats::config::Activation;

/// What follows a router: rows mapped by their experts, and summed.
#[derive(Clone)]
struct Spread {
    mixture: Mixture,
    /// Where each assignment stands among those sorted by expert, and how many no capacity dropped.
    place: Vec<u32>,
    places: usize,
    /// Rows of the stream, and their gradient before.
    x: Vec<f32>,
    d_x: Vec<f32>,
    write: Write,
    /// Rows of the experts, sorted: the hidden ones in front of and behind the nonlinearity, and results.
    rows: [Vec<f32>; 3],
    weights: Vec<f32>,
}

impl Spread {
    /// The widths of [`Spread::rows`].
    fn widths(&self) -> [usize; 3] {
        let bank = self.mixture.bank();
        [bank.up(0).outputs, bank.down(0).inputs, self.mixture.s.width]
    }

    /// Sorted rows as a backend has what comes out of experts, see [`Storage::GATHERS`]: no numbers where none may be read.
    fn as_given<B: Storage>(&self, sorted: &[f32]) -> Vec<f32> {
        let width = sorted.len() / self.place.len();
        let mut given = vec![f32::NAN; sorted.len()];
        if !B::GATHERS {
            given[..self.places * width].copy_from_slice(&sorted[..self.places * width]);
            return given;
        }
        for (row, &place) in given.chunks_exact_mut(width).zip(&self.place) {
            if place != DROPPED {
                row.copy_from_slice(&sorted[place as usize * width..][..width]);
            }
        }
        given
    }

    /// The rows of the stream as a backend's experts are given them.
    fn given_in<B: Backend>(&self, backend: &B, routing: &B::Routing) -> Result<B::Values> {
        let x = values(backend, &self.x)?;
        if B::GATHERS {
            return Ok(x);
        }
        let mut dispatched = unwritten(backend, self.rows[2].len())?;
        backend.dispatch(&self.mixture.s, routing, &x, &mut dispatched);
        Ok(dispatched)
    }

    /// The first map and the nonlinearity, and back from the second map to the first, joined or one after the other: what
    /// is made, its nonlinearity, its gradient, and those of the parameters.
    fn hidden<B: Backend>(&self, backend: &B, joined: bool) -> Result<[Vec<f32>; 4]> {
        let (bank, routed) = (self.mixture.bank(), self.mixture.route(backend)?);
        let Routed { params, routing, .. } = &routed;
        let config = &self.mixture.subject.config;
        let s = Hidden { kind: config.activation, width: bank.down(0).inputs };
        let [raised, activated, lowered] = &self.rows;
        let len = raised.len();
        let into = self.given_in(backend, routing)?;
        let (mut made, mut out, mut d) =
            (unwritten(backend, len)?, unwritten(backend, len)?, unwritten(backend, len)?);
        let (at, x) = (values(backend, raised)?, values(backend, activated)?);
        let d_out = values(backend, &self.as_given::<B>(lowered))?;
        let mut grads = floats(backend, &self.mixture.subject.grads)?;
        let mut scratch = self.mixture.subject.scratch(backend, self.mixture.s.rows, 1)?;
        let work = (&mut grads, &mut scratch);
        if joined {
            backend.experts_activation(routing, &into, &bank, (s, None), params, &mut made, &mut out);
            let (s, to) = ((s, None), &mut d);
            backend
                .activation_experts_backward(routing, s, &at, &x, &bank, params, &d_out, to, work.0, work.1);
        } else {
            backend.experts(routing, &into, &bank, Way::In, params, &mut made);
            backend.activation(s, &made, None, &mut out);
            let mut between = unwritten(backend, len)?;
            let to = &mut between;
            backend.experts_backward(routing, &x, &bank, Way::Out, params, &d_out, to, work.0, work.1);
            backend.activation_backward(s, &at, None, Some(&between), &mut d);
        }
        let places = len / self.place.len() * self.places;
        Ok([
            read(backend, &made, places)?,
            read(backend, &out, places)?,
            read(backend, &d, places)?,
            read_floats(backend, &grads, self.mixture.subject.grads.len())?,
        ])
    }

    fn named(&self) -> String {
        let bank = self.mixture.bank();
        let [up, down] = [bank.up(0), bank.down(0)];
        let bias = up.bias.is_some();
        format!(
            "{}, {} to {}, bias {bias}, {:?}",
            self.mixture.describe(),
            up.outputs,
            down.inputs,
            self.write
        )
    }

    /// What a backend gives as experts' results, sorted.
    fn sorted<B: Backend>(&self, backend: &B, given: &B::Values, len: usize) -> Result<Vec<f32>> {
        let (width, mut given) = (len / self.place.len(), read(backend, given, len)?);
        if B::GATHERS {
            let rows = std::mem::replace(&mut given, vec![f32::NAN; len]);
            for (row, &place) in rows.chunks_exact(width).zip(&self.place) {
                if place != DROPPED {
                    given[place as usize * width..][..width].copy_from_slice(row);
                }
            }
        }
        given.truncate(self.places * width);
        Ok(given)
    }
}

impl Case for Spread {
    const NAME: &'static str = "experts";

    fn shape(&self) -> String {
        self.named()
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let Mixture { s, subject, .. } = &self.mixture;
        let (bank, routed) = (self.mixture.bank(), self.mixture.route(backend)?);
        let Routed { params, routing, .. } = &routed;
        let assignments = self.place.len();
        let [raised, hidden, lowered] = &self.rows;
        let whole = lowered.len();

        let result = values(backend, &self.as_given::<B>(lowered))?;
        let mut d_x = values(backend, &self.d_x)?;
        backend.dispatch_backward(s, routing, &result, (&mut d_x, self.write));

        let mut grads = floats(backend, &subject.grads)?;
        let mut scratch = subject.scratch(backend, s.rows, 1)?;
        let into = self.given_in(backend, routing)?;
        let (d_raised, mut d_into) = (values(backend, raised)?, unwritten(backend, whole)?);
        let mut out = unwritten(backend, raised.len())?;
        backend.experts(routing, &into, &bank, Way::In, params, &mut out);
        let (d, to) = (&d_raised, &mut d_into);
        backend.experts_backward(routing, &into, &bank, Way::In, params, d, to, &mut grads, &mut scratch);
        let part = |values: &B::Values, len: usize| read(backend, values, len / assignments * self.places);
        let into = [part(&out, raised.len())?, self.sorted(backend, &d_into, whole)?];

        let (from, mut d_from) = (values(backend, hidden)?, unwritten(backend, hidden.len())?);
        let mut out = unwritten(backend, whole)?;
        backend.experts(routing, &from, &bank, Way::Out, params, &mut out);
        let (d, to) = (&result, &mut d_from);
        backend.experts_backward(routing, &from, &bank, Way::Out, params, d, to, &mut grads, &mut scratch);
        let out_of = [self.sorted(backend, &out, whole)?, part(&d_from, hidden.len())?];

        let (weights, d_out) = (values(backend, &self.weights)?, &routed.x);
        let mut combined = unwritten(backend, self.x.len())?;
        backend.combine(s, routing, &result, &weights, &mut combined);
        let mut d_result = unwritten(backend, whole)?;
        let mut d_weights = unwritten(backend, assignments)?;
        backend.combine_backward(s, routing, &result, &weights, d_out, &mut d_result, &mut d_weights);

        let ([into, d_into], [out_of, d_out_of]) = (into, out_of);
        Ok(vec![
            Found::new("d_x of dispatched", read(backend, &d_x, self.x.len())?),
            Found::new("into", into),
            Found::new("d_x of into", d_into),
            Found::new("out of", out_of),
            Found::new("d_x of out of", d_out_of),
            Found::new("d_experts", read_floats(backend, &grads, subject.grads.len())?),
            Found::new("combined", read(backend, &combined, self.x.len())?),
            Found::new("d_x of combined", self.sorted(backend, &d_result, whole)?),
            Found::new("d_weights of combined", read(backend, &d_weights, assignments)?),
        ])
    }

    fn allowances(&self, reference: &Cpu) -> Result<Vec<Allowance>> {
        let s = self.mixture.s;
        let sized = Spread {
            mixture: self.mixture.with_sizes(),
            x: sizes(&self.x),
            d_x: sizes(&self.d_x),
            rows: self.rows.clone().map(|rows| sizes(&rows)),
            weights: sizes(&self.weights),
            ..self.clone()
        };
        let [raised, hidden, width] = self.widths();
        let mut magnitudes = of_sizes(&sized, reference)?;
        // The cotangent of what was combined are the router's rows, which keep their signs.
        let result = &sized.rows[2];
        for (at, &place) in self.place.iter().enumerate().filter(|(_, place)| **place != DROPPED) {
            let y = &result[place as usize * width..][..width];
            let d = sizes(&self.mixture.x[at / s.slots() * width..][..width]);
            let weight = f64::from(sized.weights[at]);
            magnitudes[8][at] = y.iter().zip(&d).map(|(y, d)| f64::from(*y) * f64::from(*d)).sum();
            for (column, d) in d.iter().enumerate() {
                magnitudes[7][place as usize * width + column] = weight * f64::from(*d);
            }
        }
        let lengths = [s.slots(), width, raised, hidden, width, s.rows * s.slots(), s.slots(), 1, width];
        let allowance = |(index, (magnitude, sum))| {
            let kept = if index == 5 { Kept::Float } else { Kept::Value };
            Allowance { magnitude, sum, steps: 8, narrowed: 0, kept }
        };
        Ok(magnitudes.into_iter().zip(lengths).enumerate().map(allowance).collect())
    }
}

/// What joins an expert's maps with its nonlinearity beside what leaves them apart: the same bytes.
struct Apart(Spread);

impl Case for Apart {
    const NAME: &'static str = Spread::NAME;

    fn shape(&self) -> String {
        self.0.named()
    }

    fn carry_out<B: Backend>(&self, backend: &B) -> Result<Vec<Found>> {
        let pairs = self.0.hidden(backend, true)?.into_iter().zip(self.0.hidden(backend, false)?);
        let unlike = pairs.flat_map(|(joined, apart)| differences(joined, apart));
        Ok(vec![Found::marks("joined beside apart", unlike.collect())])
    }

    fn allowances(&self, _: &Cpu) -> Result<Vec<Allowance>> {
        let hidden = self.0.rows[0].len() / self.0.place.len() * self.0.places;
        Ok(vec![Allowance::none(3 * hidden + self.0.mixture.subject.grads.len())])
    }
}

pub(super) fn experts<B: Backend>(suite: &mut Suite<'_, B>) -> Result<()> {
    for (index, shape) in shapes(suite.quick()).into_iter().enumerate() {
        let activation =
            [Activation::SwiGlu, Activation::GeluTanh, Activation::Relu, Activation::GeluErf][index % 4];
        let expert_width = [3, 8, 17, 32, 33][index % 5];
        let (rounding, reference) = (suite.rounding, suite.reference);
        let mixture = Mixture::new(shape, activation, expert_width, rounding, reference)?;
        let routing = mixture.route(reference)?.routing;
        let assignments = shape.rows * mixture.s.slots();
        let drawn = |len, seed| drawn(rounding, len, seed + 10 * index as u64);
        let mut case = Spread {
            places: routing.of(mixture.s.experts() - 1).end,
            place: routing.place,
            x: drawn(shape.rows * shape.width, 605),
            write: if index % 2 == 0 { Write::Accumulate } else { Write::Set },
            d_x: drawn(shape.rows * shape.width, 600),
            rows: [vec![], vec![], vec![]],
            weights: drawn(assignments, 601),
            mixture,
        };
        let widths = case.widths();
        case.rows = [0, 1, 2].map(|which| drawn(assignments * widths[which], 602 + which as u64));
        suite.check(&case)?;
        if !activation.gated() {
            suite.check(&Apart(case))?;
        }
    }
    Ok(())
}
