//! The whole model's gradient, from the trainer's recorded program, against differences of the float64 loss.

use formats::config::{
    Activation, AttentionScale, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore,
    RouterWeight,
};
use formats::layout::{FeedForward, Role};
use formats::{Config, Layout};
use tests::Chance;
use tests::models::{self, lecture};
use tests::reference::Reference;
use tests::training::{learner, mixing_learner};
use trainer::backend::Backend;
use trainer::backend::cpu::Cpu;
use trainer::learner::BatchShape;
use trainer::mixing::Mixing;

/// The derivative of the reference's loss by one weight, from four points:
/// `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h`, whose error is of the fourth order.
fn difference(reference: &mut Reference, index: usize, inputs: &[u32], targets: &[u32], block: usize) -> f64 {
    let (weight, step) = (reference.weights[index], 1e-4);
    let mut at = |offset: f64| {
        reference.weights[index] = weight + offset;
        reference.loss(inputs, targets, block)
    };
    let slope = (8.0 * (at(step) - at(-step)) - (at(2.0 * step) - at(-2.0 * step))) / (12.0 * step);
    reference.weights[index] = weight;
    slope
}

/// Compares up to `each` derivatives of every parameter.
#[track_caller]
fn check(config: &Config, sequences: usize, block: usize, each: usize, seed: u64) {
    let weights = models::random_weights(config, seed);
    let mut chance = Chance::new(seed);
    let inputs = chance.ids(sequences * block, config.vocabulary);
    let targets = chance.ids(sequences * block, config.vocabulary);
    let mut learner = learner(config, &weights, sequences, block, 1 + seed as usize % 3);
    let (loss, gradients) = learner.gradients(&inputs, &targets).expect("gradients");
    let mut reference = Reference::new(config, &weights);
    let expected = reference.loss(&inputs, &targets, block);
    assert!((loss - expected).abs() <= 1e-5 * expected, "loss {loss}, expected {expected}");
    let layout = reference.layout().clone();
    assert_eq!(gradients.len(), layout.parameters());
    let squares: f64 = gradients.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    let typical = (squares / gradients.len() as f64).sqrt();
    // The norm of a single value is zero, and nothing before it matters.
    assert!(typical > 1e-6 || config.width == 1, "a gradient of zero proves nothing");
    for (_, parameter) in layout.iter() {
        for _ in 0..each.min(parameter.len()) {
            let index = parameter.offset + chance.below(parameter.len());
            let expected = difference(&mut reference, index, &inputs, &targets, block);
            let actual = f64::from(gradients[index]);
            // f32 sums err in proportion to the gradient's size as a whole, not to one entry that may cancel.
            let allowed = 1e-4 * expected.abs() + 2e-5 * typical;
            assert!(
                (actual - expected).abs() <= allowed,
                "{:?} of layer {:?}, entry {}: {actual:e}, expected {expected:e}; allowed {allowed:e}\n{config:?}",
                parameter.role,
                parameter.layer,
                index - parameter.offset
            );
        }
    }
}

/// Relu has a corner where no difference is right; GELU has none.
fn smooth(config: Config) -> Config {
    match config.activation {
        Activation::Relu => Config { activation: Activation::GeluErf, ..config },
        _ => config,
    }
}

#[test]
fn every_parameter_of_a_small_lecture_model() {
    check(&models::small(), 4, 6, 40, 1);
}

#[test]
fn every_switch_alone() {
    let base = || Config { layers: 1, ..models::small() };
    let switched = [
        Config { activation: Activation::GeluTanh, ..base() },
        Config { attention_scale: AttentionScale::Width, ..base() },
        Config { norm_bias: false, ..base() },
        Config { qkv_bias: false, ..base() },
        Config { attention_bias: false, ..base() },
        Config { feed_forward_bias: false, ..base() },
        Config { head_bias: false, ..base() },
        Config { tied: true, ..base() },
        Config { tied: true, head_bias: false, ..base() },
        Config { norm_order: NormOrder::Post, ..base() },
        Config { norm_order: NormOrder::Post, layers: 3, tied: true, head_bias: false, ..base() },
        Config { norm_order: NormOrder::Post, norm: NormKind::RmsNorm, norm_bias: false, ..base() },
        Config { query_key_norm: QueryKeyNorm::Head, ..base() },
        Config { query_key_norm: QueryKeyNorm::Whole, ..base() },
        Config { query_key_norm: QueryKeyNorm::Whole, position: Position::Rotary, ..base() },
        Config { query_key_norm: QueryKeyNorm::Head, norm_order: NormOrder::Post, ..base() },
    ];
    for (seed, config) in switched.iter().enumerate() {
        check(config, 3, 5, 12, seed as u64);
    }
}

#[test]
fn configs_batches_and_blocks_of_any_shape() {
    for seed in 0..16 {
        let config = smooth(models::random_config(seed));
        let mut chance = Chance::new(seed);
        let block = 1 + chance.below(config.context);
        check(&config, 1 + chance.below(9), block, 5, seed);
    }
}

#[test]
fn mixtures_and_llamas_of_any_shape() {
    // Seeds whose choices of experts no difference moves.
    for seed in 0..24 {
        let config = models::random_mixture(seed);
        let mut chance = Chance::new(seed);
        let block = 1 + chance.below(config.context);
        check(&config, 1 + chance.below(5), block, 4, seed);
    }
}

#[test]
fn the_balancing_loss_is_that_of_all_shards_together() {
    const BLOCK: usize = 8;
    for seed in 0..6 {
        let config = Config { context: BLOCK, ..models::random_mixture(seed) };
        if config.experts.is_none() {
            continue;
        }
        let weights = models::random_weights(&config, seed);
        let mut chance = Chance::new(seed);
        let shape = BatchShape { sequences: 16, block: BLOCK };
        assert_eq!(shape.cut_for(1, Cpu::LIMITS).shards, 2, "the loss must meet more than one shard");
        let [inputs, targets] = [0, 1].map(|_| chance.ids(shape.rows(), config.vocabulary));
        let gradients = |balance: f32| {
            let mixing = Mixing { balance, ..Mixing::default() };
            mixing_learner(&config, &weights, shape, 2, &mixing).gradients(&inputs, &targets)
        };
        let [with, without] = [1.0, 0.0].map(|balance| gradients(balance).expect("gradients").1);
        let mut reference = Reference::new(&config, &weights);
        let layout = reference.layout().clone();
        let mut moved = 0;
        for (_, router) in layout.iter().filter(|(_, parameter)| parameter.role == Role::Router) {
            for _ in 0..6 {
                let index = router.offset + chance.below(router.len());
                let (weight, step) = (reference.weights[index], 1e-5);
                let mut at = |offset: f64| {
                    reference.weights[index] = weight + offset;
                    reference.balance(&inputs, BLOCK)
                };
                let expected = (at(step) - at(-step)) / (2.0 * step);
                reference.weights[index] = weight;
                let actual = f64::from(with[index]) - f64::from(without[index]);
                assert!((actual - expected).abs() <= 1e-5 + 1e-3 * expected.abs(), "{actual} {expected}");
                moved += usize::from(expected.abs() > 1e-4);
            }
        }
        let choice = config.experts.is_some_and(|experts| experts.active < experts.count);
        assert!(moved > 0 || !choice, "a gradient of zero proves nothing: {config:?}");
    }
}

#[test]
fn one_expert_of_weight_one_is_the_dense_layer() {
    let dense = models::small();
    let one = Experts {
        count: 1,
        active: 1,
        width: dense.feed_forward,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Score,
        selection_bias: false,
        noise: false,
    };
    let mixture = Config { experts: Some(one), ..dense.clone() };
    let weights = models::random_weights(&dense, 3);
    let (dense_layout, layout) = (Layout::new(&dense), Layout::new(&mixture));
    let mut with_routers = models::random_weights(&mixture, 4);
    for (_, parameter) in layout.iter().filter(|(_, parameter)| parameter.role != Role::Router) {
        let same = dense_layout.iter().find(|(_, p)| (p.role, p.layer) == (parameter.role, parameter.layer));
        let (_, same) = same.expect("every other parameter is one of the dense model's");
        with_routers[parameter.range()].copy_from_slice(&weights[same.range()]);
    }
    let ids = Chance::new(1).ids(24, dense.vocabulary);
    let logits = |config: &Config, weights: &[f32]| learner(config, weights, 4, 6, 2).model().logits(&ids, 6);
    assert_eq!(logits(&mixture, &with_routers).expect("logits"), logits(&dense, &weights).expect("logits"));
}

#[test]
fn relu_where_no_weight_moves_a_hidden_value_across_its_corner() {
    // Biases of a whole unit hold half of the hidden values clear above zero and half clear below.
    let config = Config { activation: Activation::Relu, layers: 1, ..models::small() };
    let mut weights = models::random_weights(&config, 5);
    let reference = Reference::new(&config, &weights);
    let FeedForward::Dense { up, .. } = reference.layout().layers[0].feed_forward else { panic!("dense") };
    let range = reference.layout().parameter(up.weight).range();
    weights[range].iter_mut().for_each(|weight| *weight *= 0.1);
    let bias = reference.layout().parameter(up.bias.expect("a bias")).range();
    for (index, bias) in weights[bias].iter_mut().enumerate() {
        *bias = if index % 2 == 0 { 2.0 } else { -2.0 };
    }
    let mut reference = Reference::new(&config, &weights);
    let mut chance = Chance::new(5);
    let (inputs, targets) = (chance.ids(18, config.vocabulary), chance.ids(18, config.vocabulary));
    let mut learner = learner(&config, &weights, 3, 6, 1);
    let (_, gradients) = learner.gradients(&inputs, &targets).expect("gradients");
    let layout = reference.layout().clone();
    for (_, parameter) in layout.iter() {
        for _ in 0..8 {
            let index = parameter.offset + chance.below(parameter.len());
            let expected = difference(&mut reference, index, &inputs, &targets, 6);
            let actual = f64::from(gradients[index]);
            assert!(
                (actual - expected).abs() <= 1e-4 * expected.abs() + 1e-6,
                "{parameter:?}: {actual} {expected}"
            );
        }
    }
}

#[test]
fn the_lectures_own_shape() {
    let config = lecture();
    check(&config, 16, 8, 1, 9);
}
