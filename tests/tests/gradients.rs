//! The whole model's gradient, from the trainer's recorded program, against differences of the float64 loss.

use formats::Config;
use formats::config::{Activation, AttentionScale};
use tests::Chance;
use tests::models::{self, lecture};
use tests::reference::Reference;
use tests::training::learner;

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
fn relu_where_no_weight_moves_a_hidden_value_across_its_corner() {
    // Biases of a whole unit hold half of the hidden values clear above zero and half clear below.
    let config = Config { activation: Activation::Relu, layers: 1, ..models::small() };
    let mut weights = models::random_weights(&config, 5);
    let reference = Reference::new(&config, &weights);
    let up = reference.layout().layers[0].up;
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
