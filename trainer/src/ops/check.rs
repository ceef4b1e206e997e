//! The finite-difference check every operation's tests share.

use crate::device::{Device, Precision};
use formats::layout::{Layout, Linear};

/// Deterministic values in (-1, 1), away from zero's neighbourhood so that kinks are not straddled.
pub fn values(count: usize, seed: u64) -> Vec<f32> {
    let stream = runtime::random::Stream::new(seed, runtime::random::Purpose::Init);
    (0..count as u64)
        .map(|index| {
            let value = 2.0 * stream.uniform(0, index) - 1.0;
            value + value.signum() * 0.02
        })
        .collect()
}

/// Eighths in [-1, 1]: their products and the sums of these are exact in f32, in whatever order.
pub fn eighths(count: usize, seed: u64) -> Vec<f32> {
    values(count, seed).iter().map(|value| (8.0 * value).round() / 8.0).collect()
}

/// Does `work` on the first CUDA device in both precisions. Without one it is skipped, and says why, unless
/// LECTERN_EMULATOR promises an emulated one.
pub fn with_devices(work: impl Fn(&Device)) {
    for precision in [Precision::F32, Precision::Bf16] {
        match Device::open(precision) {
            Ok(device) => work(&device),
            Err(error) if std::env::var_os("LECTERN_EMULATOR").is_some() => panic!("{error}"),
            Err(error) => eprintln!("skipped: {error}"),
        }
    }
}

/// The smallest model.
pub fn config() -> formats::Config {
    formats::Config {
        vocabulary: 1,
        context: 1,
        width: 1,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_size: 1,
        feed_forward: 1,
        experts: None,
        position: formats::config::Position::Learned,
        rotary_base: 10_000.0,
        norm: formats::config::NormKind::LayerNorm,
        norm_order: formats::config::NormOrder::Pre,
        query_key_norm: formats::config::QueryKeyNorm::None,
        activation: formats::config::Activation::Relu,
        attention_scale: formats::config::AttentionScale::HeadSize,
        norm_eps: 1e-5,
        norm_bias: true,
        qkv_bias: true,
        attention_bias: true,
        feed_forward_bias: true,
        tied: false,
        head_bias: true,
        dropout: 0.0,
    }
}

/// A linear map's description with no arena behind it.
pub fn linear_of(inputs: usize, outputs: usize) -> Linear {
    Linear { inputs, outputs, ..Layout::new(&config()).head }
}

/// Holds `analytic`, the gradient of `sum d_out f(x)` for `x`, against central differences of `f`.
///
/// The sums run in float64 and the bound grows with what rounding `f` to f32 can do to the difference; a NaN
/// anywhere fails.
pub fn gradient(what: &str, x: &[f32], analytic: &[f32], d_out: &[f32], f: impl Fn(&[f32]) -> Vec<f32>) {
    assert_eq!(x.len(), analytic.len(), "{what}: one gradient a value");
    let loss = |x: &[f32]| -> f64 {
        let out = f(x);
        assert_eq!(out.len(), d_out.len(), "{what}: one cotangent an output");
        out.iter().zip(d_out).map(|(out, d)| f64::from(*out) * f64::from(*d)).sum()
    };
    let step = 1e-2f32;
    let mut nudged = x.to_vec();
    for index in 0..x.len() {
        let mut difference = |distance: f32| {
            nudged[index] = x[index] + distance * step;
            let (high, above) = (loss(&nudged), nudged[index]);
            nudged[index] = x[index] - distance * step;
            let (low, below) = (loss(&nudged), nudged[index]);
            nudged[index] = x[index];
            (high - low) / (f64::from(above) - f64::from(below))
        };
        // Richardson's combination of two steps cancels the error of third order.
        let numeric = (4.0 * difference(0.5) - difference(1.0)) / 3.0;
        let got = f64::from(analytic[index]);
        let error = (got - numeric).abs();
        assert!(error <= 2e-3 * (1.0 + numeric.abs()), "{what}[{index}]: {got} against {numeric}");
    }
}

#[test]
fn the_check_rejects_wrong_and_missing_gradients() {
    let square = |x: &[f32]| x.iter().map(|x| x * x).collect::<Vec<_>>();
    gradient("square", &[0.5], &[1.0], &[1.0], square);
    for wrong in [f32::NAN, f32::INFINITY, 1.01, 0.0] {
        let outcome = std::panic::catch_unwind(|| gradient("square", &[0.5], &[wrong], &[1.0], square));
        assert!(outcome.is_err(), "{wrong} passed");
    }
}
