//! What large models need: operations split among threads, layers computed again, batches in parts, and updates as
//! PyTorch makes them. None of the first three changes what is learned.

use formats::config::NormOrder;
use formats::{Config, Layout};
use serde::Deserialize;
use tests::programs::Program;
use tests::training::{Job, adamw, assert_same_run, rows, tiny, with};
use tests::{Chance, fixtures, folder, models};
use trainer::backend::Backend;
use trainer::backend::cpu::Cpu;
use trainer::learner::{BatchShape, Learner, Rates};
use trainer::mixing::Mixing;
use trainer::ops::adamw::{self, Adam};
use trainer::optimizer::{OptimizerKind, OptimizerOptions};
use trainer::tape::recompute::Recompute;

/// Everything that draws noise, and a loss of the whole micro-batch.
fn noisy() -> Mixing {
    Mixing {
        balance: 0.1,
        router_z: 0.01,
        jitter: 0.1,
        expert_dropout: 0.2,
        output_dropout: 0.2,
        router_dropout: 0.2,
        ..Mixing::default()
    }
}

/// The weights after two updates.
#[track_caller]
fn trained(
    config: &Config,
    shape: BatchShape,
    micro_batches: usize,
    threads: usize,
    mixing: &Mixing,
    recompute: Recompute,
) -> Vec<f32> {
    let backend = Cpu::new(threads).expect("threads");
    let mut learner =
        Learner::with(backend, config, shape, &adamw(1e-3), mixing, recompute).expect("a learner");
    let weights = models::random_weights(config, 3);
    let zeros = vec![0.0; weights.len()];
    learner.load(&weights, &zeros, &zeros).expect("weights of the right length");
    let mut chance = Chance::new(7);
    for step in 1..=2 {
        let inputs = chance.ids(shape.rows() * micro_batches, config.vocabulary);
        let targets = chance.ids(shape.rows() * micro_batches, config.vocabulary);
        learner.step(&inputs, &targets, Rates { learning_rate: 1e-3, step, seed: 5 }).expect("a step");
    }
    let after = learner.model().weights().expect("weights");
    assert!(after != weights, "two updates change something");
    after
}

#[test]
fn layers_computed_again_give_the_same_bytes() {
    let dense = Config { layers: 4, dropout: 0.2, ..models::small() };
    let post = Config { norm_order: NormOrder::Post, ..dense.clone() };
    let mixtures = (0..6).map(|seed| Config { layers: 3, dropout: 0.1, ..models::random_mixture(seed) });
    for config in [dense, post].into_iter().chain(mixtures) {
        let shape = BatchShape { sequences: 6, block: config.context };
        let by = |recompute| trained(&config, shape, 2, 2, &noisy(), recompute);
        assert!(by(Recompute::Layers) == by(Recompute::Nothing), "{config:?}");
    }
}

#[test]
fn micro_batches_of_one_shard_are_the_large_batch_to_the_bit() {
    // Of an untied model every gradient is a sum over rows in order, wherever the batch is cut.
    let config = Config { dropout: 0.2, ..models::small() };
    assert!(!config.tied);
    let shape = |sequences| BatchShape { sequences, block: 6 };
    assert_eq!(shape(8).cut_for(1, Cpu::LIMITS).shards, 1, "one shard");
    let whole = trained(&config, shape(8), 1, 1, &Mixing::default(), Recompute::Nothing);
    for parts in [2, 4, 8] {
        let found = trained(&config, shape(8 / parts), parts, 2, &Mixing::default(), Recompute::Layers);
        assert!(found == whole, "{parts} parts");
    }
}

#[test]
fn micro_batches_have_the_large_batchs_gradient() {
    for (tied, sequences, block) in [(true, 16, 8), (false, 16, 40)] {
        let config = Config { tied, head_bias: !tied, context: block, ..models::lecture() };
        let weights = models::random_weights(&config, 1);
        let mut chance = Chance::new(2);
        let inputs = chance.ids(sequences * block, config.vocabulary);
        let targets = chance.ids(sequences * block, config.vocabulary);
        let gradients = |sequences, threads| {
            let mut learner = tests::training::learner(&config, &weights, sequences, block, threads);
            learner.gradients(&inputs, &targets).expect("gradients")
        };
        let (loss, whole) = gradients(sequences, 1);
        let typical = (whole.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / whole.len() as f64).sqrt();
        let (part_loss, parts) = gradients(sequences / 4, 3);
        assert_eq!(parts, gradients(sequences / 4, 1).1, "threads");
        assert!((loss - part_loss).abs() <= 1e-6 * loss, "{loss} and {part_loss}");
        for (index, (whole, part)) in whole.iter().zip(&parts).enumerate() {
            let apart = f64::from(whole - part).abs();
            assert!(apart <= 1e-5 * (f64::from(whole.abs()) + typical), "{index}: {whole} and {part}");
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_model_too_large_for_shards() {
    // Wide in its vocabulary, so that the head's products are split as well as those of layers.
    let config = Config {
        vocabulary: 16_500,
        width: 512,
        layers: 1,
        heads: 4,
        kv_heads: 4,
        head_size: 128,
        ..models::lecture()
    };
    let config = Config { context: 64, feed_forward: 1024, dropout: 0.1, ..config };
    let shape = BatchShape { sequences: 3, block: 64 };
    let parameters = Layout::new(&config).parameters();
    assert_eq!(shape.cut_for(parameters, Cpu::LIMITS).shards, 1, "{parameters} parameters are few");
    let by = |threads| trained(&config, shape, 1, threads, &Mixing::default(), Recompute::Nothing);
    let alone = by(1);
    assert!(by(3) == alone, "threads changed a result");
}

#[test]
fn a_run_in_parts_learns_what_the_run_of_whole_batches_does_and_resumes() {
    let text: String = fixtures::text().chars().take(900).collect();
    let keys = |batch: &'static str, accumulate: &'static str| {
        with(tiny(8), &[("batch", batch), ("accumulate", accumulate), ("dropout", "0.1")])
    };
    let whole = Job::new("whole", &text, &keys("8", "1"));
    let parts = Job::new("parts", &text, &keys("2", "4"));
    let (one, other) = (whole.out("run"), parts.out("run"));
    let losses = |stderr: &str| rows(stderr);
    let first = losses(&whole.train(&one, &[]).expect(0).stderr);
    let second = losses(&parts.train(&other, &["--threads", "1"]).expect(0).stderr);
    assert_eq!(first.len(), 3);
    // Evaluation takes as many batches, of a quarter of the size: only training is the same.
    let trained = |run: &std::path::Path| -> Vec<f64> {
        let rows = tests::training::metrics(run);
        rows.iter().filter_map(|row| row.get("loss").and_then(serde_json::Value::as_f64)).collect()
    };
    let (losses, other_losses) = (trained(&one), trained(&other));
    assert_eq!((losses.len(), second.len()), (8, 3));
    for (a, b) in losses.iter().zip(&other_losses) {
        assert!((a - b).abs() <= 1e-5, "{losses:?} and {other_losses:?}");
    }

    let again = parts.out("again");
    parts
        .train(&again, &["--threads", "2", "--steps", "3", "--keep", "layer-inputs", "--keep", "9"])
        .expect(0);
    let resumed = Program::Trainer.run(&[
        "train".as_ref(),
        "--resume".as_ref(),
        "--out".as_ref(),
        again.as_os_str(),
        "--steps".as_ref(),
        "8".as_ref(),
    ]);
    resumed.expect(0).naming("resumed from step 3");
    let more = "recompute = \"layers\"";
    let config = std::fs::read_to_string(again.join("config.toml")).expect("a config");
    assert!(config.contains(more) && config.contains("keep = 9"), "{config}");
    // The last evaluation of the short run is not one of the long run's.
    assert_eq!(trained(&again), other_losses);
    let at = |run: &std::path::Path| run.join("checkpoints/0000000008");
    tests::training::assert_same_tree("the last step", &at(&again).join("model"), &at(&other).join("model"));
    folder::remove(&again);
}

#[test]
fn pytorchs_draws_come_one_micro_batch_after_another() {
    let text: String = fixtures::text().chars().take(900).collect();
    let keys = |batch: &'static str, accumulate: &'static str| {
        let more = [("batch", batch), ("accumulate", accumulate), ("rng", "\"torch\""), ("eval_every", "0")];
        with(tiny(6), &more)
    };
    let losses = |batch, accumulate| -> Vec<f64> {
        let job = Job::new("torch", &text, &keys(batch, accumulate));
        let out = job.out("run");
        job.train(&out, &[]).expect(0);
        let again = job.out("again");
        job.train(&again, &["--threads", "3"]).expect(0);
        assert_same_run("threads", &again, &out);
        let rows = tests::training::metrics(&out);
        rows.iter().filter_map(|row| row.get("loss").and_then(serde_json::Value::as_f64)).collect()
    };
    for (a, b) in losses("6", "1").iter().zip(losses("2", "3")) {
        assert!((a - b).abs() <= 1e-5, "{a} and {b}");
    }
}

/// Updates by PyTorch.
#[derive(Deserialize)]
struct Updates {
    kind: OptimizerKind,
    clip: f32,
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    initial: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

#[test]
fn updates_are_pytorchs() {
    let text = std::fs::read_to_string(fixtures::path("optimizers.json")).expect("the updates");
    let runs: Vec<Updates> = serde_json::from_str(&text).expect("updates");
    assert_eq!(runs.len(), 4);
    for run in runs {
        for simd in runtime::simd::Simd::available() {
            let mut weights = run.initial.clone();
            let (mut first, mut second) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
            for (step, (gradient, after)) in (1..).zip(run.gradients.iter().zip(&run.after)) {
                let mut gradient = gradient.clone();
                let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
                let clipped = (f64::from(run.clip) / (norm + 1e-6)).min(1.0) as f32;
                let adam = Adam {
                    learning_rate: run.lr,
                    beta1: run.betas[0],
                    beta2: run.betas[1],
                    eps: run.eps,
                    weight_decay: run.weight_decay,
                    decay_vectors: true,
                    coupled: run.kind == OptimizerKind::Adam,
                    step,
                    clip: 0.0,
                    gradient_scale: if run.clip > 0.0 { clipped } else { 1.0 },
                };
                let adam = match run.kind {
                    OptimizerKind::Adam => adamw::couple(simd, &adam, true, &weights, &mut gradient),
                    OptimizerKind::Adamw => adam,
                };
                adamw::update(simd, &adam, true, &mut weights, &mut first, &mut second, &mut gradient);
                for (found, expected) in weights.iter().zip(after) {
                    assert!((found - expected).abs() <= 1e-6, "step {step}: {found}, expected {expected}");
                }
            }
        }
    }
}

#[test]
fn adam_decays_through_its_moments_and_adamw_beside_them() {
    let config = models::small();
    let weights = models::random_weights(&config, 1);
    let after = |kind, weight_decay| {
        let options = OptimizerOptions { kind, weight_decay, ..adamw(1e-3) };
        let shape = BatchShape { sequences: 2, block: 6 };
        let mut learner =
            Learner::new(Cpu::new(2).expect("threads"), &config, shape, &options).expect("a learner");
        let zeros = vec![0.0; weights.len()];
        learner.load(&weights, &zeros, &zeros).expect("weights of the right length");
        let ids = Chance::new(1).ids(12, config.vocabulary);
        learner.step(&ids, &ids, Rates { learning_rate: 1e-3, step: 1, seed: 1 }).expect("a step");
        (learner.model().weights().expect("weights"), learner.first_moment().expect("a moment"))
    };
    let (plain, moment) = after(OptimizerKind::Adamw, 0.0);
    assert_eq!(after(OptimizerKind::Adam, 0.0).0, plain, "without decay the two are one");
    let (decoupled, its_moment) = after(OptimizerKind::Adamw, 0.5);
    assert!(decoupled != plain && its_moment == moment);
    let (coupled, its_moment) = after(OptimizerKind::Adam, 0.5);
    assert!(coupled != decoupled && its_moment != moment);
}

#[test]
fn a_step_of_gpt2_fits_in_eight_gigabytes() {
    if std::env::var_os("LECTERN_LONG").is_none() {
        eprintln!("skipped: needs LECTERN_LONG");
        return;
    }
    let arguments = ["bench", "--preset", "gpt2", "--batch", "2", "--block", "256", "--secs", "0.1"];
    let mut command = Program::Trainer.command(&arguments);
    let mut child = command.spawn().expect("the trainer");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().expect("a child").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak =
            text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse().ok());
        most = most.max(peak.unwrap_or(0u64));
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(child.wait().expect("a child").success());
    println!("a step of gpt2 held {} MiB", most >> 10);
    assert!(most > 2_000_000 && most < 8_000_000, "{most} KiB");
}
