use super::*;
use crate::backend::cpu::Cpu;
use crate::presets;

/// A learner of the lecture's model, and ids for it.
fn learner() -> (Learner<Cpu>, Vec<u32>, Vec<f32>) {
    let options = presets::find("gpt-zero").expect("a preset");
    let config = options.model(65).expect("a model");
    let shape = BatchShape { sequences: 2, block: 8 };
    let cpu = Cpu::new(1).expect("a thread");
    let learner = Learner::new(cpu, &config, shape, &options.optimizer()).expect("a learner");
    let weights =
        (0..learner.model().layout().parameters()).map(|index| (index as f32).sin() / 16.0).collect();
    (learner, (0..16).map(|id| id * 7 % 65).collect(), weights)
}

#[test]
fn a_step_that_diverges_changes_nothing_nor_does_any_after_it_until_it_was_told() {
    let (mut learner, ids, weights) = learner();
    let zeros = vec![0.0; weights.len()];
    let mut broken = weights.clone();
    broken[3] = f32::NAN;
    learner.load(&broken, &zeros, &zeros).expect("weights");
    let rates = |step| Rates { learning_rate: 1e-3, step, seed: 1 };
    let ids = ids.iter().map(|id| id % 2).collect::<Vec<_>>();
    for step in 7..10 {
        learner.step(&ids, &ids, rates(step)).expect("a step");
    }
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert!(bits(learner.model().weights().expect("weights")) == bits(broken));
    assert!(learner.first_moment().expect("a moment") == zeros);
    let error = learner.outcome().expect_err("no number");
    assert!(error.exit_code() == 9 && error.to_string().contains("step 7: the loss is NaN"), "{error}");

    learner.load(&weights, &zeros, &zeros).expect("weights");
    learner.step(&ids, &ids, rates(7)).expect("a step");
    assert!(learner.outcome().expect("a number").loss > 0.0);
    assert!(learner.model().weights().expect("weights") != weights);
}

#[test]
fn a_cut_covers_the_batch_whatever_its_size() {
    let (cpu, device) = (Cpu::LIMITS, Limits { shards: 1, pass_rows: usize::MAX, evaluation_rows: 1 });
    for sequences in 1..=70 {
        for block in [1, 8, 64, 256, 1024, 2000] {
            let shape = BatchShape { sequences, block };
            let cut = shape.cut_for(1, cpu);
            assert_eq!(cut.shards * cut.passes * cut.sequences, sequences, "{shape:?}");
            assert!(cut.sequences * block <= cpu.pass_rows.max(block), "{shape:?} {cut:?}");
            assert_eq!(shape.cut_for(1, device), Cut { first: 0, shards: 1, passes: 1, sequences });
        }
    }
    let cut = |sequences, block, parameters| BatchShape { sequences, block }.cut_for(parameters, cpu);
    assert_eq!(cut(16, 8, 1), Cut { first: 0, shards: 2, passes: 1, sequences: 8 });
    assert_eq!(cut(64, 256, MAX_SHARD_PARAMETERS), Cut { first: 0, shards: 4, passes: 4, sequences: 4 });
    assert_eq!(cut(64, 256, MAX_SHARD_PARAMETERS + 1), Cut { first: 0, shards: 1, passes: 16, sequences: 4 });
}
