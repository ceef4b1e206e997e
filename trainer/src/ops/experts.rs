//! The experts a router chose: rows are laid out by expert, each expert's in one product, and gathered back.
//!
//! Forward, with `T_r` the experts of row `r` and `p` an assignment's place once they are sorted:
//! `z_p = x_(row of p)`, `y_p = W_e z_p + b_e` for the places of expert `e`, `out_r = sum_(i in T_r) w_ri y_(r,i)`,
//! slots in order. A dropped assignment adds nothing.
//!
//! Backward: `d_y_p = w_ri d_out_r`, `d_w_ri = d_out_r . y_p`, the affine maps as in [`super::linear`], expert by
//! expert, and `d_x_r = sum_(i in T_r) d_z_(r,i)`, slots in order.

pub mod cuda;

use super::hands::Hands;
use super::linear;
use super::route::{DROPPED, Router, Routing};
use formats::layout::{Bank, Linear};
use runtime::simd::Simd;
use runtime::simd::product::{Epilogue, Write};

/// Into an expert, or out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the hidden width.
    In,
    /// Back to the residual stream's.
    Out,
}

impl Way {
    /// One expert's map.
    pub fn of(self, bank: &Bank, expert: usize) -> Linear {
        match self {
            Way::In => bank.up(expert),
            Way::Out => bank.down(expert),
        }
    }
}

/// `out` `[rows slots, width]`: each assignment's row.
pub fn dispatch(s: &Router, routing: &Routing, x: &[f32], out: &mut [f32]) {
    let places = routing.of(s.experts() - 1).end;
    for (out, &row) in out.chunks_exact_mut(s.width).zip(&routing.rows[..places]) {
        out.copy_from_slice(&x[row as usize * s.width..][..s.width]);
    }
}

/// `d_x`, written as asked, from the gradient of the assignments.
pub fn dispatch_backward(
    simd: &Simd,
    s: &Router,
    routing: &Routing,
    d_out: &[f32],
    (d_x, write): (&mut [f32], Write),
) {
    for (d_x, places) in d_x.chunks_exact_mut(s.width).zip(routing.place.chunks_exact(s.slots())) {
        if write == Write::Set {
            d_x.fill(0.0);
        }
        for &place in places.iter().filter(|place| **place != DROPPED) {
            (simd.add)(d_x, &d_out[place as usize * s.width..][..s.width]);
        }
    }
}

/// One expert's share of an affine map: `x` and `out` `[rows slots, _]`, sorted.
pub fn linear(
    hands: &mut Hands<'_>,
    routing: &Routing,
    expert: usize,
    map: &Linear,
    x: &[f32],
    panels: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let places = routing.of(expert);
    if places.is_empty() {
        return;
    }
    let x = &x[places.start * map.inputs..places.end * map.inputs];
    let out = &mut out[places.start * map.outputs..places.end * map.outputs];
    linear::forward(hands, map, places.len(), x, panels, Epilogue::of(bias), out);
}

/// Its gradients: `d_x` set, those of the parameters added to what is there.
pub fn linear_backward(
    hands: &mut Hands<'_>,
    routing: &Routing,
    expert: usize,
    map: &Linear,
    x: &[f32],
    weight: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
    (d_weight, d_bias): (&mut [f32], Option<&mut [f32]>),
) {
    let places = routing.of(expert);
    if places.is_empty() {
        return;
    }
    let inputs = places.start * map.inputs..places.end * map.inputs;
    let d_out = &d_out[places.start * map.outputs..places.end * map.outputs];
    let rows = places.len();
    linear::backward_input(hands, map, rows, weight, d_out, (&mut d_x[inputs.clone()], Write::Set));
    linear::backward_weight(hands, map, rows, &x[inputs], d_out, d_weight);
    if let Some(d_bias) = d_bias {
        linear::backward_bias(hands, d_out, d_bias);
    }
}

/// `out` `[rows, width]` from the experts' `y` `[rows slots, width]` and `weights` `[rows, slots]`.
pub fn combine(simd: &Simd, s: &Router, routing: &Routing, y: &[f32], weights: &[f32], out: &mut [f32]) {
    let rows = routing.place.chunks_exact(s.slots()).zip(weights.chunks_exact(s.slots()));
    for (out, (places, weights)) in out.chunks_exact_mut(s.width).zip(rows) {
        out.fill(0.0);
        for (&place, &weight) in places.iter().zip(weights).filter(|(place, _)| **place != DROPPED) {
            (simd.axpy_f32)(weight, &y[place as usize * s.width..][..s.width], out);
        }
    }
}

/// The gradients of the experts' outputs and of the weights.
pub fn combine_backward(
    simd: &Simd,
    s: &Router,
    routing: &Routing,
    (y, weights): (&[f32], &[f32]),
    d_out: &[f32],
    d_y: &mut [f32],
    d_weights: &mut [f32],
) {
    let slots = routing.place.chunks_exact(s.slots());
    let rows = slots.zip(weights.chunks_exact(s.slots())).zip(d_weights.chunks_exact_mut(s.slots()));
    for (d_out, ((places, weights), d_weights)) in d_out.chunks_exact(s.width).zip(rows) {
        for ((&place, &weight), d_weight) in places.iter().zip(weights).zip(d_weights) {
            *d_weight = 0.0;
            if place != DROPPED {
                let at = place as usize * s.width..(place as usize + 1) * s.width;
                *d_weight = (simd.dot_f32)(d_out, &y[at.clone()]);
                d_y[at].iter_mut().zip(d_out).for_each(|(d_y, d)| *d_y = weight * d);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::{gradient, linear_of, values};
    use formats::config::{RouterScore, RouterWeight};
    use runtime::simd::packed_len;

    const SLOTS: usize = 2;
    const EXPERTS: usize = 3;

    fn router(rows: usize, width: usize) -> Router {
        Router {
            layer: 0,
            rows,
            width,
            count: EXPERTS,
            active: SLOTS,
            shared: 0,
            score: RouterScore::Softmax,
            weight: RouterWeight::Score,
            noisy: false,
            capacity: None,
        }
    }

    /// Four rows to three experts, of which one assignment was dropped.
    fn routing() -> Routing {
        let mut routing = Routing::new(4 * SLOTS, EXPERTS).expect("memory");
        routing.chosen = vec![0, 2, 2, 0, 1, 2, 2, 0];
        routing.place = vec![0, 4, 5, 1, 3, 6, DROPPED, 2];
        routing.offsets = vec![0, 3, 4, 7];
        routing.rows = vec![0, 1, 3, 2, 0, 1, 2, 0];
        routing
    }

    #[test]
    fn dispatch_and_combine_have_their_gradients() {
        for simd in Simd::available() {
            for width in [1, 5, 16, 33] {
                let (s, routing) = (router(4, width), routing());
                let (x, weights) = (values(4 * width, 1), values(4 * SLOTS, 2));
                let run = |x: &[f32], weights: &[f32]| {
                    let mut laid = vec![0.0; 4 * SLOTS * width];
                    dispatch(&s, &routing, x, &mut laid);
                    let mut out = vec![f32::NAN; 4 * width];
                    combine(simd, &s, &routing, &laid, weights, &mut out);
                    (laid, out)
                };
                let (d_out, (laid, out)) = (values(4 * width, 3), run(&x, &weights));
                for row in 0..4 {
                    // Each assignment that was not dropped carries its row's own input.
                    let kept = (0..SLOTS).filter(|slot| routing.place[row * SLOTS + slot] != DROPPED);
                    let weight: f32 = kept.map(|slot| weights[row * SLOTS + slot]).sum();
                    for column in 0..width {
                        let at = row * width + column;
                        assert!((out[at] - weight * x[at]).abs() < 1e-6);
                    }
                }
                let mut d_laid = vec![f32::NAN; laid.len()];
                let (mut d_x, mut d_weights) = (vec![f32::NAN; x.len()], vec![f32::NAN; weights.len()]);
                let given = (&laid[..], &weights[..]);
                combine_backward(simd, &s, &routing, given, &d_out, &mut d_laid, &mut d_weights);
                dispatch_backward(simd, &s, &routing, &d_laid, (&mut d_x, Write::Set));
                gradient("x", &x, &d_x, &d_out, |x| run(x, &weights).1);
                gradient("weights", &weights, &d_weights, &d_out, |weights| run(&x, weights).1);
            }
        }
    }

    #[test]
    fn each_expert_maps_its_own_rows_and_no_others() {
        let (simd, routing, map) = (Simd::best(), routing(), linear_of(5, 7));
        let (x, d_out) = (values(7 * 5, 1), values(7 * 7, 2));
        let weights: Vec<Vec<f32>> = (0..EXPERTS as u64).map(|expert| values(5 * 7, 10 + expert)).collect();
        let bias = values(7, 5);
        let run = |x: &[f32], weights: &[Vec<f32>]| {
            let mut out = vec![f32::NAN; 7 * 7];
            for (expert, weight) in weights.iter().enumerate() {
                let mut panels = vec![0.0; packed_len(7, 5)];
                (simd.pack_f32)(weight, 7, 5, &mut panels);
                linear(&mut Hands::alone(simd), &routing, expert, &map, x, &panels, Some(&bias), &mut out);
            }
            out
        };
        let out = run(&x, &weights);
        for expert in 0..EXPERTS {
            for place in routing.of(expert) {
                for output in 0..7 {
                    let weight = &weights[expert][output * 5..][..5];
                    let exact: f64 = x[place * 5..][..5]
                        .iter()
                        .zip(weight)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w))
                        .sum();
                    let found = f64::from(out[place * 7 + output]);
                    assert!((found - exact - f64::from(bias[output])).abs() < 1e-6);
                }
            }
        }
        let mut d_x = vec![f32::NAN; x.len()];
        let mut d_weights = vec![vec![0.0; 35]; EXPERTS];
        for (expert, (weight, d_weight)) in weights.iter().zip(&mut d_weights).enumerate() {
            let parameters = (&mut d_weight[..], None);
            linear_backward(
                &mut Hands::alone(simd),
                &routing,
                expert,
                &map,
                &x,
                weight,
                &d_out,
                &mut d_x,
                parameters,
            );
        }
        gradient("x", &x, &d_x, &d_out, |x| run(x, &weights));
        for expert in 0..EXPERTS {
            gradient("weight", &weights[expert], &d_weights[expert], &d_out, |weight| {
                let mut changed = weights.clone();
                changed[expert] = weight.to_vec();
                run(&x, &changed)
            });
        }
    }
}
