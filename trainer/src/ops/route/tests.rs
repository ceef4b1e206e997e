//! Choices by eye, and every gradient against finite differences with the choice held fixed.

use super::*;
use crate::ops::check::{gradient, values};
use crate::ops::dropout::Noise;
use runtime::simd::packed_len;

pub(super) fn shape(rows: usize, width: usize, count: usize, active: usize) -> Router {
    Router {
        layer: 0,
        rows,
        width,
        count,
        active,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Score,
        noisy: false,
        capacity: None,
    }
}

/// What a forward pass leaves.
pub(super) struct Passed {
    pub weights: Vec<f32>,
    pub kept: Vec<f32>,
    pub routing: Routing,
}

/// A router and everything it is given.
pub(super) struct Case {
    pub s: Router,
    pub x: Vec<f32>,
    pub router: Vec<f32>,
    pub noise: Option<Vec<f32>>,
    pub bias: Option<Vec<f32>>,
    pub disturbance: Disturbance,
}

impl Case {
    pub fn new(s: Router) -> Case {
        Case {
            s,
            x: values(s.rows * s.width, 1),
            // Spread out, so that a nudge moves no choice.
            router: values(s.count * s.width, 2).iter().map(|weight| 2.0 * weight).collect(),
            noise: None,
            bias: None,
            disturbance: Disturbance::default(),
        }
    }

    fn with<T>(&self, simd: &Simd, work: impl FnOnce(&Weights<'_>) -> T) -> T {
        let pack = |weight: &[f32]| {
            let mut panels = vec![f32::NAN; packed_len(self.s.count, self.s.width)];
            (simd.pack_f32)(weight, self.s.count, self.s.width, &mut panels);
            panels
        };
        let (panels, noise_panels) = (pack(&self.router), self.noise.as_deref().map(pack));
        work(&Weights {
            panels: &panels,
            router: &self.router,
            selection_bias: self.bias.as_deref(),
            noise: self.noise.as_deref().zip(noise_panels.as_deref()),
        })
    }

    pub fn pass(&self, simd: &Simd) -> Passed {
        let s = &self.s;
        let mut passed = Passed {
            weights: vec![f32::NAN; s.rows * s.slots()],
            kept: vec![f32::NAN; s.kept()],
            routing: Routing::new(s.rows * s.slots(), s.experts()).expect("memory"),
        };
        let mut scratch = vec![f32::NAN; s.scratch()];
        let Passed { weights, kept, routing } = &mut passed;
        self.with(simd, |parameters| {
            forward(simd, s, &self.x, parameters, &self.disturbance, weights, kept, routing, &mut scratch);
        });
        passed
    }

    /// Sorted experts and their weights, row by row.
    fn weights_by_expert(&self, simd: &Simd, fixed: &Routing) -> Vec<f32> {
        let passed = self.pass(simd);
        assert_eq!(passed.routing.chosen, fixed.chosen, "the nudge moved the choice: another seed is needed");
        passed.weights
    }

    /// Holds the analytic gradients against differences of `sum d w + balance`.
    fn check(&self, simd: &Simd, balance: &Balance<'_>, extra: impl Fn(&Passed) -> f32) {
        let s = &self.s;
        let passed = self.pass(simd);
        let mut d_weights = values(s.rows * s.slots(), 3);
        let (mut d_x, mut d_router) = (vec![0.25; self.x.len()], vec![0.0; self.router.len()]);
        let mut d_noise = self.noise.as_ref().map(|noise| vec![0.0; noise.len()]);
        let mut scratch = vec![f32::NAN; s.scratch()];
        self.with(simd, |parameters| {
            backward(
                simd,
                s,
                &self.x,
                parameters,
                &self.disturbance,
                balance,
                &passed.kept,
                &passed.routing,
                &d_weights,
                (&mut d_x, Write::Accumulate),
                &mut d_router,
                d_noise.as_deref_mut(),
                &mut scratch,
            );
        });
        d_x.iter_mut().for_each(|d| *d -= 0.25);
        d_weights.push(1.0);
        let run = |case: Case| {
            let mut out = case.weights_by_expert(simd, &passed.routing);
            out.push(extra(&case.pass(simd)));
            out
        };
        let again = || Case {
            x: self.x.clone(),
            router: self.router.clone(),
            noise: self.noise.clone(),
            bias: self.bias.clone(),
            ..*self
        };
        gradient("x", &self.x, &d_x, &d_weights, |x| run(Case { x: x.to_vec(), ..again() }));
        gradient("router", &self.router, &d_router, &d_weights, |router| {
            run(Case { router: router.to_vec(), ..again() })
        });
        if let (Some(noise), Some(d_noise)) = (&self.noise, &d_noise) {
            gradient("noise", noise, d_noise, &d_weights, |noise| {
                run(Case { noise: Some(noise.to_vec()), ..again() })
            });
        }
    }
}

const NOTHING: Balance<'static> = Balance { shares: &[], factor: 0.0, z_factor: 0.0 };

fn forms() -> impl Iterator<Item = (RouterScore, RouterWeight)> {
    [RouterScore::Softmax, RouterScore::Sigmoid]
        .into_iter()
        .flat_map(|score| [RouterWeight::Score, RouterWeight::Renormalised].map(|weight| (score, weight)))
}

#[test]
fn every_form_has_the_gradient_of_its_weights() {
    for simd in Simd::available() {
        for (score, weight) in forms() {
            for (count, active) in [(1, 1), (4, 1), (5, 2), (7, 7), (9, 3)] {
                let s = Router { score, weight, ..shape(3, 6, count, active) };
                Case::new(s).check(simd, &NOTHING, |_| 0.0);
                Case::new(Router { shared: 2, ..s }).check(simd, &NOTHING, |_| 0.0);
            }
        }
    }
}

#[test]
fn one_renormalised_expert_gives_its_router_no_gradient_and_its_score_does() {
    for (weight, moves) in [(RouterWeight::Renormalised, false), (RouterWeight::Score, true)] {
        let case = Case::new(Router { weight, ..shape(5, 8, 4, 1) });
        let (simd, passed) = (Simd::best(), case.pass(Simd::best()));
        let (mut d_x, mut d_router) = (vec![f32::NAN; case.x.len()], vec![0.0; case.router.len()]);
        let (d_weights, mut scratch) = (values(5, 3), vec![f32::NAN; case.s.scratch()]);
        case.with(simd, |parameters| {
            backward(
                simd,
                &case.s,
                &case.x,
                parameters,
                &case.disturbance,
                &NOTHING,
                &passed.kept,
                &passed.routing,
                &d_weights,
                (&mut d_x, Write::Set),
                &mut d_router,
                None,
                &mut scratch,
            );
        });
        assert_eq!(d_router.iter().any(|d| *d != 0.0), moves, "{weight:?}");
        assert_eq!(d_x.iter().any(|d| *d != 0.0), moves, "{weight:?}");
    }
}

#[test]
fn both_balancing_losses_have_their_gradients() {
    for simd in Simd::available() {
        for (score, weight) in forms() {
            let s = Router { score, weight, ..shape(4, 5, 6, 2) };
            let case = Case::new(s);
            let shares = [0.3f32, 0.05, 0.2, 0.15, 0.1, 0.2];
            let rows = s.rows as f32;
            let balance = Balance { shares: &shares, factor: 0.7 * 6.0 / rows, z_factor: 2.0 * 0.3 / rows };
            case.check(simd, &balance, |passed| {
                let mut loss = 0.0;
                for row in 0..s.rows {
                    let scores = &passed.kept[row * s.count..][..s.count];
                    let sum: f32 = scores.iter().sum();
                    let mixed: f32 = scores.iter().zip(&shares).map(|(p, f)| p / sum * f).sum();
                    let log_sum = passed.kept[s.rows * s.count + row];
                    loss += 0.7 * 6.0 / rows * mixed + 0.3 / rows * log_sum * log_sum;
                }
                loss
            });
        }
    }
}

#[test]
fn noise_jitter_and_masks_have_their_gradients() {
    let noise = Noise::new(7, 3, 0.0);
    for simd in Simd::available() {
        for (score, weight) in forms() {
            let s = Router { score, weight, noisy: true, shared: 1, ..shape(3, 4, 5, 2) };
            let disturbance = Disturbance {
                jitter: Some((noise.draws(0, 0, s.width), 0.3)),
                noise: Some(noise.draws(1, 0, 2 * s.count)),
                outputs: noise.with(0.4).at(2, 0, s.slots()),
                experts: noise.with(0.3).at(3, 0, s.count),
            };
            let case = Case { disturbance, noise: Some(values(s.count * s.width, 9)), ..Case::new(s) };
            case.check(simd, &NOTHING, |_| 0.0);
        }
    }
}

#[test]
fn ties_go_to_the_lower_index_and_a_bias_moves_the_choice_alone() {
    let mut case = Case::new(shape(1, 1, 4, 2));
    case.x = vec![1.0];
    case.router = vec![0.5, 0.9, 0.9, 0.9];
    let plain = case.pass(Simd::best());
    assert_eq!(plain.routing.chosen, [1, 2]);
    case.bias = Some(vec![1.0, 0.0, 0.0, 0.0]);
    let biased = case.pass(Simd::best());
    assert_eq!(biased.routing.chosen, [0, 1]);
    assert_eq!(biased.weights[0], biased.kept[0], "the bias is not part of the weight");
}

#[test]
fn assignments_stand_by_expert_in_row_order_and_a_full_expert_drops_the_rest() {
    for capacity in [None, Some(2)] {
        let case = Case::new(Router { capacity, shared: 1, ..shape(9, 4, 3, 2) });
        let Routing { chosen, place, offsets, rows, .. } = case.pass(Simd::best()).routing;
        let (mut seen, mut dropped) = (vec![false; rows.len()], 0);
        for (assignment, (&expert, &place)) in chosen.iter().zip(&place).enumerate() {
            if place == DROPPED {
                dropped += 1;
                continue;
            }
            assert!((offsets[expert as usize]..offsets[expert as usize + 1]).contains(&place));
            assert_eq!(rows[place as usize] as usize, assignment / 3);
            assert!(!std::mem::replace(&mut seen[place as usize], true), "two rows in one place");
        }
        for expert in 0..4 {
            let range = offsets[expert] as usize..offsets[expert + 1] as usize;
            assert!(rows[range.clone()].is_sorted());
            assert!(expert == 3 || range.len() <= capacity.unwrap_or(usize::MAX));
        }
        assert_eq!(offsets[4] as usize + dropped, rows.len());
        assert_eq!(dropped > 0, capacity.is_some());
        let mut load_of = vec![0.0; case.s.load()];
        let passed = case.pass(Simd::best());
        load(&case.s, &passed.kept, &passed.routing, 9, &mut load_of);
        assert_eq!(load_of[..3].iter().sum::<f64>(), 18.0);
        assert!((load_of[3..6].iter().sum::<f64>() - 9.0).abs() < 1e-5);
        assert_eq!(load_of[7], dropped as f64);
    }
}

#[test]
fn what_is_no_number_is_routed_somewhere() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut case = Case::new(shape(2, 3, 4, 2));
        case.router.fill(value);
        let chosen = case.pass(Simd::best()).routing.chosen;
        assert!(chosen.iter().all(|expert| *expert < 4), "{chosen:?}");
        assert_ne!(chosen[0], chosen[1]);
    }
}

#[test]
fn a_step_never_does_without_more_experts_than_it_can() {
    let mut case = Case::new(shape(2, 3, 4, 3));
    case.disturbance.experts = Noise::new(1, 1, 0.999).at(0, 0, 4);
    assert!(case.pass(Simd::best()).weights.iter().all(|weight| *weight > 0.0));
}
