//! One model, one text: whatever the threads, the chunks, the cache and the vector instructions, and as the
//! trainer's own forward pass would have it, also where the text has slid far past the context.

use formats::checkpoint::Dtype;
use runtime::generate::{AtContext, FinishReason, GenerateOptions, Generator};
use runtime::model::{Model, ModelOptions};
use runtime::sampler::Sampling;
use runtime::session::{CacheType, Session, SessionOptions};
use runtime::simd::Simd;
use std::path::Path;
use std::sync::OnceLock;
use tests::Chance;
use tests::compare::assert_same_greedy;
use tests::fixtures;
use tests::models::{self, Written};
use tests::programs::{Program, run};
use tests::reference::{Reference, best};
use tests::training::{Job, adamw, learner};
use trainer::backend::cpu::Cpu;
use trainer::learner::{BatchShape, Learner, Rates};

/// Where the two best logits lie closer than this, rounding may choose either.
const NEARLY: f64 = 1e-4;
const TOKENS: usize = 2000;

fn sampling(temperature: f32) -> Sampling {
    Sampling { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
}

fn greedy() -> GenerateOptions {
    GenerateOptions { max_tokens: TOKENS, sampling: sampling(0.0), ..GenerateOptions::default() }
}

fn open(path: &Path, threads: usize) -> Model {
    Model::open_with(path, &ModelOptions { threads: Some(threads), ..ModelOptions::default() })
        .expect("the model opens")
}

fn session(model: &Model, cache: CacheType, chunk: usize) -> Session {
    model.session_with(&SessionOptions { cache, chunk, ..SessionOptions::default() }).expect("a session")
}

fn generate(session: &mut Session, prompt: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let generator = Generator::new(session, prompt, options).expect("a generator");
    generator.map(|token| token.expect("a token").id).collect()
}

/// The lecture's shape after some hundred steps: its text wanders, where random weights soon go round in circles.
fn trained() -> &'static (Written, Reference, Vec<u32>) {
    static MODEL: OnceLock<(Written, Reference, Vec<u32>)> = OnceLock::new();
    MODEL.get_or_init(|| {
        let text = fixtures::text();
        let tokenizer = formats::tokenizer::Tokenizer::characters(&text).expect("a tokenizer");
        let ids = tokenizer.encode(&text).expect("its own text");
        let config = formats::Config { vocabulary: tokenizer.vocabulary(), ..models::lecture() };
        let mut weights = models::random_weights(&config, 1);
        // Half the size of random weights lets learning begin at once.
        weights.iter_mut().for_each(|weight| *weight *= 0.5);
        let shape = BatchShape { sequences: 16, block: 8 };
        let backend = Cpu::new(2).expect("threads");
        let mut learner = Learner::new(backend, &config, shape, &adamw(1e-3)).expect("a learner");
        let zeros = vec![0.0; weights.len()];
        learner.load(&weights, &zeros, &zeros).expect("weights");
        let mut chance = Chance::new(3);
        for step in 1..=400 {
            let (mut inputs, mut targets) = (vec![], vec![]);
            for _ in 0..shape.sequences {
                let at = chance.below(ids.len() - shape.block);
                inputs.extend_from_slice(&ids[at..at + shape.block]);
                targets.extend_from_slice(&ids[at + 1..at + shape.block + 1]);
            }
            let rates = Rates { learning_rate: 3e-3, step, seed: 1 };
            learner.step(&inputs, &targets, rates).expect("a step");
        }
        let weights = learner.model().weights().expect("weights");
        let written = models::write(&config, &weights, Dtype::F32);
        let reference = Reference::new(&config, &weights);
        let expected = reference.greedy(&[0], TOKENS);
        (written, reference, expected)
    })
}

/// Compares with the reference's own greedy text from id 0.
#[track_caller]
fn assert_references_text(what: &str, actual: &[u32]) {
    let (_, reference, expected) = trained();
    let gap = |index: usize| reference.gap(&[&[0], &expected[..index]].concat());
    let same = assert_same_greedy(what, actual, expected, NEARLY, gap);
    println!("{what}: {same} of {TOKENS} tokens");
}

#[test]
fn the_text_past_the_context_is_the_references_for_any_threads_chunks_and_cache() {
    let (written, ..) = trained();
    for (threads, chunk) in [(1, 256), (2, 256), (3, 256), (1, 1), (2, 3), (3, 7)] {
        let model = open(&written.path, threads);
        let actual = generate(&mut session(&model, CacheType::F32, chunk), &[], &greedy());
        assert_references_text(&format!("{threads} threads, chunks of {chunk}"), &actual);
    }
}

#[test]
fn the_text_past_the_context_is_the_trainers() {
    let (written, reference, expected) = trained();
    let weights: Vec<f32> = reference.weights.iter().map(|&weight| weight as f32).collect();
    let learner = learner(reference.config(), &weights, 1, 1, 1);
    let mut ids = vec![0];
    for _ in 0..TOKENS {
        let window = &ids[ids.len().saturating_sub(reference.config().context)..];
        let logits = learner.model().logits(window, window.len()).expect("logits");
        let last = &logits[logits.len() - reference.config().vocabulary..];
        let last: Vec<f64> = last.iter().map(|&logit| f64::from(logit)).collect();
        ids.push(best(&last).0);
    }
    let trainer = &ids[1..];
    assert_references_text("the trainer", trainer);
    let runtime = generate(&mut session(&open(&written.path, 1), CacheType::F32, 256), &[], &greedy());
    let gap = |index: usize| reference.gap(&[&[0], &expected[..index]].concat());
    assert_same_greedy("runtime and trainer", &runtime, trainer, NEARLY, gap);
}

#[test]
fn the_text_past_the_context_is_the_same_with_every_table_of_instructions() {
    let (written, ..) = trained();
    let count = TOKENS.to_string();
    let tables: Vec<&str> = Simd::available().iter().map(|simd| simd.name).collect();
    assert!(tables.contains(&"scalar"), "{tables:?}");
    for table in tables {
        let arguments =
            ["generate", "--greedy", "--ids", "0", "-n", &count, "--format", "ids", "--cache", "f32"];
        let mut command = Program::Runtime.command(&arguments);
        command.arg("--model").arg(&written.path).env("LECTERN_SIMD", table);
        assert_references_text(table, &run(command).expect(0).ids());
    }
}

#[test]
fn every_window_of_ids_has_the_references_best_next() {
    // Greedy text visits few windows; these are of any ids.
    let (written, reference, _) = trained();
    let model = open(&written.path, 2);
    let mut session = session(&model, CacheType::F32, 256);
    let mut chance = Chance::new(9);
    for _ in 0..1000 {
        let ids = chance.ids(1 + chance.clone().below(8), reference.config().vocabulary);
        session.rewind(0).expect("a rewind");
        let logits: Vec<f64> = session.feed(&ids).expect("logits").iter().map(|&l| f64::from(l)).collect();
        let (expected, gap) = best(&reference.last_logits(&ids));
        assert!(best(&logits).0 == expected || gap <= NEARLY, "{ids:?}");
    }
}

/// Models whose context is long enough to hold all that is generated.
fn long() -> Vec<(Written, Reference)> {
    (0..6)
        .map(|seed| {
            let config = formats::Config { context: 48, ..models::random_config(seed) };
            let weights = models::random_weights(&config, seed);
            (models::write(&config, &weights, Dtype::F32), Reference::new(&config, &weights))
        })
        .collect()
}

#[test]
fn with_the_cache_and_without_it_the_tokens_are_the_same() {
    for (written, reference) in long() {
        let vocabulary = reference.config().vocabulary;
        let prompt = Chance::new(4).ids(7, vocabulary);
        let expected = reference.greedy(&prompt, 41);
        let gap = |index: usize| reference.gap(&[&prompt[..], &expected[..index]].concat());
        for (threads, chunk) in [(1, 256), (1, 1), (2, 2), (3, 5)] {
            let model = open(&written.path, threads);
            let mut session = session(&model, CacheType::F32, chunk);
            let options = GenerateOptions { max_tokens: 41, ..greedy() };
            let cached = generate(&mut session, &prompt, &options);
            assert_same_greedy("cached", &cached, &expected, NEARLY, gap);
            // Without: all that is known, fed again from the start for every token.
            let mut ids = prompt.clone();
            for _ in 0..41 {
                session.rewind(0).expect("a rewind");
                let logits: Vec<f64> =
                    session.feed(&ids).expect("logits").iter().map(|&l| f64::from(l)).collect();
                ids.push(best(&logits).0);
            }
            assert_same_greedy("uncached", &ids[prompt.len()..], &expected, NEARLY, gap);
        }
    }
}

#[test]
fn an_f16_cache_gives_one_text_too() {
    // Against itself: the reference keeps nothing in f16. The feeds round alike, so the logits differ by f32
    // rounding alone.
    for (written, reference) in long() {
        let prompt = Chance::new(5).ids(7, reference.config().vocabulary);
        let feed = |threads: usize, chunk: usize, pieces: usize| {
            let model = open(&written.path, threads);
            let mut session = session(&model, CacheType::F16, chunk);
            let mut logits = vec![];
            for piece in prompt.chunks(pieces) {
                logits = session.feed(piece).expect("logits").to_vec();
            }
            logits
        };
        let expected = feed(1, 256, prompt.len());
        let tolerance = tests::compare::Tolerance::relative_to(1e-5, &expected);
        for (threads, chunk, pieces) in [(1, 1, 7), (2, 256, 1), (3, 3, 7), (1, 2, 5), (1, 256, 2)] {
            let what = format!("{threads} threads, chunks of {chunk}, feeds of {pieces}");
            tests::compare::assert_close(&what, &feed(threads, chunk, pieces), &expected, tolerance);
        }
    }
}

#[test]
fn sampled_tokens_follow_the_seed_and_nothing_else() {
    let (written, ..) = trained();
    let drawn = |threads: usize, chunk: usize, seed: u64| {
        let options = GenerateOptions { max_tokens: 300, sampling: sampling(1.0), seed, ..greedy() };
        generate(&mut session(&open(&written.path, threads), CacheType::F32, chunk), &[], &options)
    };
    let one = drawn(1, 256, 5);
    assert_eq!(one.len(), 300);
    assert_eq!(one, drawn(1, 256, 5));
    assert_eq!(one, drawn(3, 2, 5));
    assert_ne!(one, drawn(1, 256, 6));
}

#[test]
fn a_full_context_ends_or_slides_as_asked() {
    let (written, ..) = trained();
    let model = open(&written.path, 1);
    let options = GenerateOptions { at_context: AtContext::Stop, ..greedy() };
    let mut session = session(&model, CacheType::F32, 256);
    let mut generator = Generator::new(&mut session, &[1, 2, 3], &options).expect("a generator");
    let count = generator.by_ref().count();
    assert_eq!(generator.finish_reason(), Some(FinishReason::Context));
    // Eight places: three of the prompt, five fed back, and the token that follows the last.
    assert_eq!(count, 6);
}

#[test]
fn text_is_the_tokens_text_in_whole_characters() {
    // 300 tokens of one and three bytes each; a reader of the stream must never see half of one.
    let config = formats::Config { vocabulary: 300, context: 16, ..models::small() };
    let weights = models::random_weights(&config, 8);
    let written = models::write(&config, &weights, Dtype::F16);
    let model = open(&written.path, 1);
    let options = GenerateOptions { max_tokens: 200, sampling: sampling(1.0), seed: 1, ..greedy() };
    let mut session = session(&model, CacheType::F16, 256);
    let mut generator = Generator::new(&mut session, &[], &options).expect("a generator");
    let (mut ids, mut text) = (vec![], String::new());
    while let Some(token) = generator.next() {
        ids.push(token.expect("a token").id);
        text.push_str(generator.text());
    }
    text.push_str(generator.tail());
    let tokenizer = model.tokenizer().expect("a tokenizer");
    assert_eq!(tokenizer.decode(&ids).expect("known ids"), text.as_bytes());
    assert_eq!(tokenizer.encode(&text).expect("known characters"), ids);
    // And so does the command.
    let arguments =
        ["generate", "-n", "200", "--temperature", "1", "--top-k", "0", "--top-p", "1", "--min-p", "0"];
    let mut command = Program::Runtime.command(&arguments);
    command.args(["--seed", "1", "--model"]).arg(&written.path);
    let ran = run(command).expect(0);
    assert_eq!(ran.text().strip_suffix('\n').unwrap_or(ran.text()), text);
}

#[test]
fn an_f16_checkpoint_loses_at_most_two_thousandths() {
    let keys = [("steps", "400".into()), ("learning_rate", "3e-3".into()), ("sample", "0".into())];
    let keys = [&keys[..], &[("eval_every", "1000".into()), ("eval_batches", "1".into())]].concat();
    let text = fixtures::text();
    let losses = ["f32", "f16", "bf16"].map(|dtype| {
        let keys = [&keys[..], &[("dtype", format!("{dtype:?}"))]].concat();
        let job = Job::new("dtype", &text, &keys);
        let out = job.out("run");
        job.train(&out, &[]).expect(0);
        let evaluated = Program::Trainer
            .run(&[
                "eval".as_ref(),
                "--model".as_ref(),
                out.as_os_str(),
                "--data".as_ref(),
                job.folder.join("text.txt").as_os_str(),
                "--format".as_ref(),
                "json".as_ref(),
            ])
            .expect(0)
            .json();
        let evaluated = evaluated["val_loss"].as_f64().expect("a loss");
        // The runtime scores the validation split in the same windows: cut it where a whole one ends.
        let characters: Vec<char> = text.chars().collect();
        let split = &characters[(characters.len() as f64 * 0.9) as usize..];
        let whole = (split.len() - 1) / 8 * 8 + 1;
        let validation = job.folder.write("val.txt", split[..whole].iter().collect::<String>());
        let scored = Program::Runtime
            .run(&[
                "score".as_ref(),
                "--model".as_ref(),
                out.as_os_str(),
                "--file".as_ref(),
                validation.as_os_str(),
                "--format".as_ref(),
                "json".as_ref(),
                "--cache".as_ref(),
                "f32".as_ref(),
            ])
            .expect(0)
            .json();
        let scored = scored["nll_per_token"].as_f64().expect("a loss");
        assert!(
            (scored - evaluated).abs() <= 1e-5 * evaluated,
            "{dtype}: runtime {scored}, trainer {evaluated}"
        );
        evaluated
    });
    println!("exact validation loss in f32, f16, bf16: {losses:?}");
    assert!(losses[0] < 2.6, "the model learned nothing: {losses:?}");
    assert!((losses[1] - losses[0]).abs() <= 0.002, "{losses:?}");
    assert!((losses[2] - losses[0]).abs() <= 0.02, "{losses:?}");
}
