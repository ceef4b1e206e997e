//! Whole models: training on the device beside the CPU's, loss by loss; the same bytes twice, on from a saved state, and
//! recorded or not.

use super::compare::{Allowance, compare};
use super::subject::drawn;
use super::{Extent, Rounding, Row};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::learner::{BatchShape, Learner, Rates};
use crate::mixing::Mixing;
use crate::optimizer::{Decay, OptimizerKind, OptimizerOptions};
use crate::random::{Generator, RngKind};
use crate::tape::recompute::Recompute;
use formats::config::{
    Activation, Config, Experts, NormKind, NormOrder, Position, QueryKeyNorm, RouterScore, RouterWeight,
};
use formats::layout::InitScheme;
use formats::{Layout, Result};
use runtime::random::{Purpose, Stream};
use runtime::team::Crew;

/// Ids of the models' vocabulary: a prime, and no multiple of anything.
const VOCABULARY: usize = 61;
const SEED: u64 = 5;

/// How a device is opened for a model of its own.
pub struct Ways<'a, B> {
    /// As it trains.
    pub open: &'a dyn Fn() -> Result<B>,
    /// Without recording what it does, where it records.
    pub eager: Option<&'a dyn Fn() -> Result<B>>,
}

/// One small model.
struct Model {
    name: &'static str,
    config: Config,
    shape: BatchShape,
    mixing: Mixing,
    recompute: Recompute,
}

/// One of each family, with every kind of noise among them.
fn models() -> Vec<Model> {
    let shape = BatchShape { sequences: 4, block: 16 };
    let gpt = Config {
        vocabulary: VOCABULARY,
        context: 16,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_size: 8,
        feed_forward: 96,
        activation: Activation::GeluTanh,
        dropout: 0.1,
        ..super::subject::config(32)
    };
    let llama = Config {
        kv_heads: 2,
        position: Position::Rotary,
        norm: NormKind::RmsNorm,
        activation: Activation::SwiGlu,
        norm_bias: false,
        qkv_bias: false,
        attention_bias: false,
        feed_forward_bias: false,
        head_bias: false,
        dropout: 0.0,
        ..gpt.clone()
    };
    let mixtral = Experts {
        count: 5,
        active: 2,
        width: 48,
        every: 1,
        shared: 0,
        score: RouterScore::Softmax,
        weight: RouterWeight::Renormalised,
        selection_bias: false,
        noise: false,
    };
    let noisy = Experts {
        shared: 1,
        score: RouterScore::Sigmoid,
        selection_bias: true,
        noise: true,
        every: 2,
        ..mixtral
    };
    let quiet = Mixing { balance: 0.01, router_z: 0.001, ..Mixing::default() };
    let everything = Mixing {
        bias_rate: 0.001,
        jitter: 0.01,
        expert_dropout: 0.1,
        output_dropout: 0.05,
        router_dropout: 0.05,
        capacity: 1.25,
        ..quiet
    };
    let model = |name, config, mixing| Model { name, config, shape, mixing, recompute: Recompute::Nothing };
    let gpt1 = Config { norm_order: NormOrder::Post, tied: true, head_bias: false, ..gpt.clone() };
    let qwen = Config { query_key_norm: QueryKeyNorm::Head, ..llama.clone() };
    vec![
        model("gpt", gpt.clone(), Mixing::default()),
        model("llama", llama.clone(), Mixing::default()),
        model("mixtral", Config { experts: Some(mixtral), ..llama.clone() }, quiet),
        model(
            "moe, all noise",
            Config { experts: Some(noisy), activation: Activation::GeluErf, ..gpt },
            everything,
        ),
        Model { recompute: Recompute::Layers, ..model("gpt1, tied", gpt1, Mixing::default()) },
        model("qwen3-moe", Config { experts: Some(mixtral), ..qwen }, quiet),
    ]
}

/// Weights and both moments.
type State = [Vec<f32>; 3];

impl Model {
    fn learner<B: Backend>(&self, backend: B, state: &State) -> Result<Learner<B>> {
        let optimizer = OptimizerOptions {
            kind: OptimizerKind::Adamw,
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            decay: Decay::Matrices,
            clip: 1.0,
        };
        let Model { config, shape, mixing, recompute, .. } = self;
        let mut learner = Learner::with(backend, config, *shape, &optimizer, mixing, *recompute)?;
        let [weights, first, second] = state;
        learner.load(weights, first, second)?;
        Ok(learner)
    }

    fn beginning(&self) -> State {
        let layout = Layout::new(&self.config);
        let mut weights = vec![0.0; layout.parameters()];
        let mut generator = Generator::new(RngKind::Counter, SEED);
        let mut crew = Crew::new(1).expect("no thread but this one");
        generator.initialise(&mut crew, &mut weights, &layout, &self.config, InitScheme::Gpt2);
        // The noise's scale begins at zero, where it would teach nothing.
        for (_, parameter) in layout.iter().filter(|(_, parameter)| !parameter.is_stored()) {
            let values = drawn(Rounding::Bf16, parameter.len(), SEED).into_iter().map(|x| 0.05 * x);
            weights[parameter.range()].iter_mut().zip(values).for_each(|(to, from)| *to = from);
        }
        let zero = vec![0.0; weights.len()];
        [weights, zero.clone(), zero]
    }

    /// Ids that can be learned: most follow from the one before.
    fn batch(&self, step: u64) -> [Vec<u32>; 2] {
        let stream = Stream::new(SEED, Purpose::Batch);
        let BatchShape { sequences, block } = self.shape;
        let (mut inputs, mut targets) = (vec![], vec![]);
        for sequence in 0..sequences {
            let mut id = stream.draw(step, sequence as u64) % VOCABULARY as u32;
            for place in 0..block {
                inputs.push(id);
                let word = stream.draw(step, (sequences + sequence * block + place) as u64);
                id = if word.is_multiple_of(8) { word / 8 } else { 7 * id + 3 } % VOCABULARY as u32;
                targets.push(id);
            }
        }
        [inputs, targets]
    }

    /// Trains the steps after the first `done` up to `to`: the loss and the gradient's norm of each.
    fn train<B: Backend>(&self, learner: &mut Learner<B>, done: u64, to: u64) -> Result<Vec<[f32; 2]>> {
        (done + 1..=to)
            .map(|step| {
                let [inputs, targets] = self.batch(step);
                learner.step(&inputs, &targets, Rates { learning_rate: 1e-3, step, seed: SEED })?;
                let outcome = learner.outcome()?;
                Ok([outcome.loss as f32, outcome.gradient_norm as f32])
            })
            .collect()
    }
}

fn state<B: Backend>(learner: &Learner<B>) -> Result<State> {
    Ok([learner.model().weights()?, learner.first_moment()?, learner.second_moment()?])
}

/// What the gradients' norms of a training may be apart after so many steps, as a share, and four times what its losses may:
/// rounding that each step hands on to the next, not a bound that could be derived. It is stated and held, and a choice of
/// experts that tips over stays within it too.
fn tolerance(rounding: Rounding, steps: usize) -> f64 {
    let first = match rounding {
        Rounding::F32 => 3e-4,
        Rounding::Bf16 => 1e-2,
    };
    first * (1.0 + steps as f64 / 10.0)
}

/// Trains every small model on the device; `done` is given the rows of each as they come.
pub fn train<B: Backend>(
    ways: &Ways<'_, B>,
    reference: &dyn Fn() -> Result<Cpu>,
    rounding: Rounding,
    extent: Extent,
    mut done: impl FnMut(&[Row]) -> Result<()>,
) -> Result<Vec<Row>> {
    let (steps, kinds) = match extent {
        Extent::Whole => (100, 6),
        Extent::Quick => (4, 4),
    };
    let mut all = vec![];
    for (index, model) in models().into_iter().take(kinds).enumerate() {
        let mut rows = vec![];
        let beginning = model.beginning();
        let mut learner = model.learner((ways.open)()?, &beginning)?;
        let mut outcomes = model.train(&mut learner, 0, steps / 2)?;
        let half = state(&learner)?;
        outcomes.extend(model.train(&mut learner, steps / 2, steps)?);
        let end = state(&learner)?;
        let mut theirs = model.learner(reference()?, &beginning)?;
        let expected = model.train(&mut theirs, 0, steps)?;

        let parts = [("losses beside the CPU's", 0.25), ("gradients' norms beside", 1.0)];
        for (index, (what, part)) in parts.into_iter().enumerate() {
            let mut row = Row::new(model.name, what);
            for (step, (found, expected)) in outcomes.iter().zip(&expected).enumerate() {
                let (found, expected) = (&found[index..=index], &expected[index..=index]);
                let allowance = Allowance::share(part * tolerance(rounding, step), expected);
                let outcome = compare(found, expected, &allowance, rounding);
                row.note(expected, format!("step {}", step + 1), outcome);
            }
            rows.push(row);
        }
        let [first, last] =
            [expected.first(), expected.last()].map(|seen| seen.map_or(f32::NAN, |seen| seen[0]));
        if extent == Extent::Whole && (last.is_nan() || last >= first - 0.2) {
            let sentence =
                format!("{}: the loss went from {first} to {last}, which teaches nothing", model.name);
            rows[0].failure.get_or_insert(sentence);
        }

        let mut same = |what, found: &State| {
            let mut row = Row::new(model.name, what);
            for (found, expected) in found.iter().zip(&end) {
                let outcome = compare(found, expected, &Allowance::none(expected.len()), rounding);
                row.note(expected, format!("{steps} steps"), outcome);
            }
            rows.push(row);
        };
        let mut resumed = model.learner((ways.open)()?, &half)?;
        model.train(&mut resumed, steps / 2, steps)?;
        same("the same bytes from a saved state", &state(&resumed)?);
        if extent == Extent::Whole || index == 0 {
            let mut again = model.learner((ways.open)()?, &beginning)?;
            model.train(&mut again, 0, steps)?;
            same("the same bytes twice", &state(&again)?);
        }
        if let Some(eager) = ways.eager
            && (extent == Extent::Whole || index == 3)
        {
            let mut eager = model.learner(eager()?, &beginning)?;
            model.train(&mut eager, 0, steps)?;
            same("the same bytes without a graph", &state(&eager)?);
        }
        done(&rows)?;
        all.extend(rows);
    }
    Ok(all)
}
