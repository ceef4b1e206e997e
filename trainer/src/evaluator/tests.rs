use super::*;
use crate::backend::cpu::Cpu;
use crate::presets;

/// The lecture's model, on one thread.
fn evaluator() -> Evaluator<Cpu> {
    let config = presets::find("gpt-zero").expect("a preset").model(65).expect("a model");
    let mut evaluator = Evaluator::new(Cpu::new(1).expect("a thread"), &config, 8).expect("a model");
    let weights: Vec<f32> =
        (0..evaluator.layout().parameters()).map(|index| (index as f32).sin() / 16.0).collect();
    evaluator.load(&weights).expect("weights");
    evaluator
}

#[test]
fn windows_evaluated_together_lose_what_each_loses_alone_to_the_bit() {
    let mut evaluator = evaluator();
    let windows = 8 * 65;
    let ids: Vec<u32> = (0..windows * 8 + 1).map(|index| (index * index / 7 + index) % 65).collect();
    let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
    let together = evaluator.evaluate_stretches(inputs, targets, &vec![1; windows as usize]);
    assert!(evaluator.placed.is_some(), "enough windows to have their first rows from each id alone");
    for (window, together) in together.expect("losses").into_iter().enumerate() {
        let at = window * 8..window * 8 + 8;
        let alone = evaluator.evaluate_stretches(&inputs[at.clone()], &targets[at], &[1]).expect("a loss");
        assert!(together > 0.0 && together.to_bits() == alone[0].to_bits(), "{window}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_made() {
    let large = presets::find("gpt3-175b").expect("a preset").model(50257).expect("a model");
    let refused = Evaluator::new(Cpu::new(1).expect("a thread"), &large, 2048).err().expect("no room");
    assert_eq!(refused.exit_code(), 7, "{refused}");
}

#[test]
fn an_evaluator_holds_no_gradient_and_no_moments() {
    let (cpu, config) =
        (Cpu::new(1).expect("a thread"), presets::find("gpt2").expect("a preset").model(50257));
    let config = config.expect("a model");
    let plan = Evaluator::plan(&cpu, &config, 8);
    assert_eq!((plan.gradients, plan.moments), (0, 0));
    let weights = 4 * Layout::new(&config).parameters() as u64;
    assert!(plan.weights >= weights && plan.copies >= weights && plan.activations > 0, "{plan:?}");
}
