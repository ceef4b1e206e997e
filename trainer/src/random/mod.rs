//! Where a run's random numbers come from: its first weights, and which windows of the text it reads.
//!
//! The default is counter-based, so that every value is a function of seed, purpose, step and index and a run's
//! randomness has no state. [`torch`] draws what PyTorch's CPU generator would, and has one. Dropout's masks are the
//! backend's, from the same counters.

pub mod torch;

use formats::config::Config;
use formats::layout::{Init, InitScheme, Layout};
use runtime::random::{Purpose, Stream, uniform, uniform_f64};
use runtime::team::Crew;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use torch::Torch;

/// Values that one thread draws at a time, whole blocks of a counter.
const PIECE: usize = 1 << 16;

/// Which generator a run draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RngKind {
    /// Philox: stateless, ours.
    Counter,
    /// MT19937 in PyTorch's order, to replay a log that PyTorch made.
    Torch,
}

/// A run's generator.
#[derive(Clone, Debug, PartialEq)]
pub enum Generator {
    /// Only the seed.
    Counter {
        /// The run's seed.
        seed: u64,
    },
    /// A state that training and evaluation both advance.
    Torch(Torch),
}

impl Generator {
    /// The generator of `seed`.
    pub fn new(kind: RngKind, seed: u64) -> Generator {
        match kind {
            RngKind::Counter => Generator::Counter { seed },
            RngKind::Torch => Generator::Torch(Torch::new(seed)),
        }
    }

    /// What must be saved to go on drawing; nothing for the counter, whose numbers are a function of the step.
    pub fn state(&self) -> Option<torch::TorchState> {
        match self {
            Generator::Counter { .. } => None,
            Generator::Torch(torch) => Some(torch.state()),
        }
    }

    /// The generator that was saved, unless it is damaged.
    pub fn restore(state: &torch::TorchState) -> Option<Generator> {
        Torch::from_state(state).map(Generator::Torch)
    }

    /// Draws every parameter of `layout` into `arena`, in arena order: the order in which PyTorch makes its modules.
    /// Zeros and ones draw nothing. What a counter gives depends on its place alone, and is drawn by the whole crew.
    pub fn initialise(
        &mut self,
        crew: &mut Crew,
        arena: &mut [f32],
        layout: &Layout,
        config: &Config,
        scheme: InitScheme,
    ) {
        for (id, parameter) in layout.iter() {
            let values = &mut arena[parameter.range()];
            match (parameter.init(scheme, config), &mut *self) {
                (Init::Zeros, _) => values.fill(0.0),
                (Init::Ones, _) => values.fill(1.0),
                (Init::Uniform { bound }, Generator::Torch(torch)) => torch.uniform(values, bound),
                (Init::Normal { std }, Generator::Torch(torch)) => torch.normal(values, std),
                (Init::Uniform { bound }, Generator::Counter { seed }) => {
                    let stream = Stream::new(*seed, Purpose::Init);
                    crew.deal(values.chunks_mut(PIECE).enumerate(), |(piece, values)| {
                        for (block, four) in (piece * PIECE / 4..).zip(values.chunks_mut(4)) {
                            let words = stream.draws(id.index() as u64, block as u64);
                            for (value, word) in four.iter_mut().zip(words) {
                                *value = (2.0 * uniform(word) - 1.0) * bound;
                            }
                        }
                    });
                }
                (Init::Normal { std }, Generator::Counter { seed }) => {
                    let stream = Stream::new(*seed, Purpose::Init);
                    crew.deal(values.chunks_mut(PIECE).enumerate(), |(piece, values)| {
                        for (block, pair) in (piece * PIECE / 2..).zip(values.chunks_mut(2)) {
                            let [a, b, c, d] = stream.draws(id.index() as u64, block as u64);
                            // Box and Muller 1958; the first fraction is turned round so that it is never zero.
                            let radius = (-2.0 * (1.0 - uniform_f64([a, b])).ln()).sqrt();
                            let angle = 2.0 * PI * uniform_f64([c, d]);
                            for (value, part) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                                *value = (radius * part) as f32 * std;
                            }
                        }
                    });
                }
            }
        }
    }

    /// Where the windows of training step `step` begin: one offset below `range` for each sequence.
    pub fn training_offsets(&mut self, step: u64, range: usize, offsets: &mut [usize]) {
        self.offsets(Purpose::Batch, step, 0, range, offsets);
    }

    /// Where the windows of evaluation batch `batch` before training step `step` begin. Batches are asked for in
    /// order, those of the training split before those of the validation split.
    pub fn evaluation_offsets(&mut self, step: u64, batch: u64, range: usize, offsets: &mut [usize]) {
        self.offsets(Purpose::Evaluation, step, batch * offsets.len() as u64, range, offsets);
    }

    fn offsets(&mut self, purpose: Purpose, step: u64, first: u64, range: usize, offsets: &mut [usize]) {
        match self {
            Generator::Torch(torch) => {
                for offset in offsets {
                    *offset = torch.below(range as u64) as usize;
                }
            }
            Generator::Counter { seed } => {
                let stream = Stream::new(*seed, purpose);
                for (index, offset) in (first..).zip(offsets) {
                    let [high, low, ..] = stream.draws(step, index);
                    let word = u64::from(high) << 32 | u64::from(low);
                    // Lemire 2019: the upper half of the product is even over the range.
                    *offset = ((u128::from(word) * range as u128) >> 64) as usize;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::layout::FeedForward;
    use formats::layout::{Part, Role};

    fn initialised(kind: RngKind, seed: u64, scheme: InitScheme) -> (Config, Layout, Vec<f32>) {
        let config =
            crate::presets::find("gpt-zero").and_then(|preset| preset.model(65)).expect("a valid preset");
        let layout = Layout::new(&config);
        let mut arena = vec![f32::NAN; layout.parameters()];
        let mut crew = Crew::new(1).expect("no thread but this one");
        Generator::new(kind, seed).initialise(&mut crew, &mut arena, &layout, &config, scheme);
        (config, layout, arena)
    }

    #[test]
    fn torch_initialises_the_lecture_as_pytorch_does() {
        let (_, layout, arena) = initialised(RngKind::Torch, 1337, InitScheme::Torch);
        let head = layout.parameter(layout.head.bias.expect("the lecture's head has a bias"));
        // `model.token.weight[0, :2]`, `model.layers[3].down.bias[0]` and `model.head.bias[-1]` after
        // torch.manual_seed(1337) and the construction of the lecture's model in PyTorch 2.15.0.
        let FeedForward::Dense { down, .. } = layout.layers[3].feed_forward else { panic!("a dense layer") };
        let down = layout.parameter(down.bias.expect("a bias"));
        let expected = [
            (arena[0], 0.18077159),
            (arena[1], -0.069988094),
            (arena[down.offset], -0.001739338),
            (arena[head.range().end - 1], 0.058029607),
        ];
        for (found, expected) in expected {
            assert!((found - expected).abs() <= 1e-6f32 * expected.abs(), "{found} for {expected}");
        }
    }

    #[test]
    fn every_parameter_is_drawn_with_its_own_spread() {
        for kind in [RngKind::Counter, RngKind::Torch] {
            for scheme in [InitScheme::Torch, InitScheme::Gpt2] {
                let (config, layout, arena) = initialised(kind, 7, scheme);
                for (_, parameter) in layout.iter() {
                    let values = &arena[parameter.range()];
                    let count = values.len() as f64;
                    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
                    let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
                    let (expected_mean, deviation) = match parameter.init(scheme, &config) {
                        Init::Zeros => (0.0, 0.0),
                        Init::Ones => (1.0, 0.0),
                        Init::Uniform { bound } => (0.0, f64::from(bound) / 3f64.sqrt()),
                        Init::Normal { std } => (0.0, f64::from(std)),
                    };
                    let slack = 5.0 * deviation / count.sqrt() + 1e-12;
                    assert!((mean - expected_mean).abs() <= slack, "{parameter:?}: mean {mean}");
                    assert!(
                        (variance.sqrt() - deviation).abs() <= slack,
                        "{parameter:?}: variance {variance}"
                    );
                }
                let norm =
                    layout.iter().find(|(_, p)| p.role == Role::FinalNorm(Part::Weight)).expect("a norm").1;
                assert_eq!(arena[norm.offset], 1.0);
            }
        }
    }

    #[test]
    fn seeds_and_parameters_differ() {
        let (_, layout, first) = initialised(RngKind::Counter, 1, InitScheme::Torch);
        let (_, _, second) = initialised(RngKind::Counter, 2, InitScheme::Torch);
        assert_ne!(first, second);
        let start = |layer: usize| layout.parameter(layout.layers[layer].qkv.weight).offset;
        assert_ne!(first[start(0)..start(0) + 8], first[start(1)..start(1) + 8]);
    }

    #[test]
    fn no_number_of_threads_changes_a_value() {
        let config =
            crate::presets::find("gpt-zero").and_then(|preset| preset.model(5000)).expect("a valid preset");
        let layout = Layout::new(&config);
        assert!(layout.iter().any(|(_, parameter)| parameter.len() > 4 * PIECE), "one that is dealt");
        for scheme in [InitScheme::Torch, InitScheme::Gpt2] {
            let drawn = |threads: usize| {
                let (mut crew, mut arena) =
                    (Crew::new(threads).expect("threads"), vec![f32::NAN; layout.parameters()]);
                Generator::new(RngKind::Counter, 3)
                    .initialise(&mut crew, &mut arena, &layout, &config, scheme);
                arena
            };
            assert!(drawn(1) == drawn(3), "{scheme:?}");
        }
    }

    #[test]
    fn counter_offsets_are_a_function_of_the_step_and_fill_the_range() {
        let mut generator = Generator::new(RngKind::Counter, 5);
        let (mut first, mut again, mut later) = ([0; 16], [0; 16], [0; 16]);
        generator.training_offsets(3, 1000, &mut first);
        generator.training_offsets(4, 1000, &mut later);
        generator.evaluation_offsets(3, 0, 1000, &mut again);
        assert_ne!(first, later);
        assert_ne!(first, again);
        generator.training_offsets(3, 1000, &mut again);
        assert_eq!(first, again);

        let mut counts = [0u32; 10];
        for step in 0..1000 {
            generator.training_offsets(step, 10, &mut first);
            first.iter().for_each(|&offset| counts[offset] += 1);
        }
        // Binomial with n 16000, p 0.1: deviation 38.
        assert!(counts.iter().all(|&count| (1400..1800).contains(&count)), "{counts:?}");
    }

    #[test]
    fn evaluation_batches_do_not_repeat_one_another() {
        let mut generator = Generator::new(RngKind::Counter, 5);
        let mut seen = std::collections::HashSet::new();
        for batch in 0..50 {
            let mut offsets = [0; 4];
            generator.evaluation_offsets(100, batch, usize::MAX, &mut offsets);
            offsets.iter().for_each(|&offset| assert!(seen.insert(offset)));
        }
    }

    #[test]
    fn torch_offsets_are_one_sequence_of_draws() {
        let mut generator = Generator::new(RngKind::Torch, 1337);
        let (mut first, mut second) = ([0; 4], [0; 4]);
        generator.training_offsets(0, 1_003_842, &mut first);
        generator.evaluation_offsets(0, 0, 1_003_842, &mut second);
        assert_eq!(first, [80533, 243841, 937616, 564622]);
        assert_eq!(second, [976157, 588787, 201485, 348920]);
    }
}
