//! The generator over small models of random weights.

use super::*;
use crate::random::{Purpose, Stream};
use crate::session::SessionOptions;
use formats::checkpoint::{Commit, Dtype, GenerationConfig, ModelFiles, write_model};
use formats::config::{Activation, AttentionScale, NormKind, NormOrder, Position, QueryKeyNorm};
use formats::tokenizer::Tokenizer;
use formats::{Config, Layout};
use std::sync::atomic::{AtomicU64, Ordering};

const CONTEXT: usize = 8;

/// What a small model is made with.
pub(crate) struct Recipe {
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) generation: GenerationConfig,
    /// Multiplies the weights; large enough, what they compute overflows.
    pub(crate) scale: f32,
}

impl Recipe {
    /// Characters of one to three bytes.
    pub(crate) fn characters() -> Recipe {
        let tokenizer = Tokenizer::characters("abcdefghé一\n").expect("some characters");
        Recipe { tokenizer: Some(tokenizer), generation: GenerationConfig::plain(), scale: 1.0 }
    }

    pub(crate) fn model(&self) -> Model {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let vocabulary = self.tokenizer.as_ref().map_or(11, Tokenizer::vocabulary);
        let config = Config {
            vocabulary,
            context: CONTEXT,
            width: 16,
            layers: 2,
            heads: 2,
            kv_heads: 2,
            head_size: 8,
            feed_forward: 32,
            experts: None,
            position: Position::Learned,
            rotary_base: 10_000.0,
            norm: NormKind::LayerNorm,
            norm_order: NormOrder::Pre,
            query_key_norm: QueryKeyNorm::None,
            activation: Activation::GeluErf,
            attention_scale: AttentionScale::HeadSize,
            norm_eps: 1e-5,
            norm_bias: true,
            qkv_bias: true,
            attention_bias: true,
            feed_forward_bias: true,
            tied: false,
            head_bias: true,
            dropout: 0.0,
        };
        let layout = Layout::new(&config);
        let stream = Stream::new(1, Purpose::Init);
        let values: Vec<f32> = (0..layout.parameters() as u64)
            .map(|index| (stream.uniform(0, index) - 0.5) * self.scale)
            .collect();
        let folder =
            format!("lectern-generate-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).expect("the temporary directory can be written");
        let mut commit = Commit::begin(&folder, 0).expect("a commit begins");
        let files = ModelFiles {
            config: &config,
            layout: &layout,
            dtype: Dtype::F32,
            values: &values,
            tokenizer: self.tokenizer.as_ref(),
            generation: &self.generation,
        };
        write_model(&mut commit, "model/", &files).expect("a model is written");
        let path = commit.finish().expect("a commit is finished");
        let model = Model::open(&path.join("model")).expect("a model that was written is read");
        // What is mapped stays mapped.
        std::fs::remove_dir_all(&folder).expect("what was written can be removed");
        model
    }
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, sampling: Sampling::PLAIN, seed: 7, ..GenerateOptions::default() }
}

/// Everything a generation gives: ids, text, why it ended.
fn run(model: &Model, prompt: &[u32], options: &GenerateOptions) -> (Vec<u32>, String, Option<FinishReason>) {
    let mut session = model.session().expect("a session");
    let mut generator = Generator::new(&mut session, prompt, options).expect("a generator");
    let (mut ids, mut text) = (Vec::new(), String::new());
    while let Some(token) = generator.next() {
        ids.push(token.expect("a token").id);
        assert_eq!(generator.tail(), "");
        text.push_str(generator.text());
        if generator.finish_reason().is_some() {
            break;
        }
    }
    assert!(generator.next().is_none() && generator.next().is_none());
    assert_eq!(generator.text(), "");
    text.push_str(generator.tail());
    (ids, text, generator.finish_reason())
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    best.expect("a logit") as u32
}

#[test]
fn past_the_context_every_token_comes_from_the_window_of_the_last_ids() {
    let model = Recipe::characters().model();
    for prompt_length in [1, 3, 7, 8, 9, 16, 17, 40] {
        let prompt: Vec<u32> = (0..prompt_length).map(|index| index * 5 % 11).collect();
        let greedy = GenerateOptions { sampling: Sampling::GREEDY, ..options(40) };
        let (ids, _, reason) = run(&model, &prompt, &greedy);
        assert_eq!(reason, Some(FinishReason::Length));

        let mut past = prompt.clone();
        for _ in 0..40 {
            let window = &past[past.len().saturating_sub(CONTEXT)..];
            let mut session = model.session().expect("a session");
            let next = argmax(session.feed(window).expect("logits"));
            past.push(next);
        }
        assert_eq!(ids, past[prompt.len()..], "prompt of {prompt_length}");
    }
}

#[test]
fn the_cache_and_its_chunks_change_no_token() {
    let model = Recipe::characters().model();
    let expected = run(&model, &[1, 2, 3, 4, 5], &options(30));
    for chunk in [1, 2, 3, 8, 100] {
        let mut session =
            model.session_with(&SessionOptions { chunk, ..SessionOptions::default() }).expect("a session");
        let generator = Generator::new(&mut session, &[1, 2, 3, 4, 5], &options(30)).expect("a generator");
        let ids: Vec<u32> = generator.map(|token| token.expect("a token").id).collect();
        assert_eq!(ids, expected.0, "chunks of {chunk}");
    }
}

#[test]
fn text_is_that_of_the_ids() {
    let model = Recipe::characters().model();
    let (ids, text, _) = run(&model, &[0], &options(200));
    let bytes = model.tokenizer().expect("a tokenizer").decode(&ids).expect("ids of the vocabulary");
    assert_eq!(text.as_bytes(), bytes);
}

#[test]
fn a_stop_string_ends_the_text_wherever_tokens_cut_it() {
    let model = Recipe::characters().model();
    let (_, whole, _) = run(&model, &[0], &options(60));
    let places: Vec<usize> = whole.char_indices().map(|(place, _)| place).collect();
    for length in 1..5 {
        for start in [0, 10, 30] {
            let stop = &whole[places[start]..places[start + length]];
            let absent = "\u{1f980}".to_string();
            let stopping = GenerateOptions {
                stop: vec![absent, format!("{stop}\u{1f980}"), stop.into()],
                ..options(60)
            };
            let (ids, text, reason) = run(&model, &[0], &stopping);
            let first = whole.find(stop).expect("taken from there");
            assert_eq!(reason, Some(FinishReason::Stop(2)), "{stop:?}");
            assert_eq!(text, whole[..first]);
            assert_eq!(ids.len(), whole[..first].chars().count() + length);
        }
    }
}

#[test]
fn what_was_held_back_comes_at_the_end() {
    let model = Recipe::characters().model();
    let (_, whole, _) = run(&model, &[0], &options(20));
    let stop = format!("{}\u{1f980}", &whole[whole.char_indices().nth(15).expect("20 characters").0..]);
    let mut session = model.session().expect("a session");
    let holding = GenerateOptions { stop: vec![stop], ..options(20) };
    let mut generator = Generator::new(&mut session, &[0], &holding).expect("a generator");
    let mut text = String::new();
    while let Some(token) = generator.next() {
        token.expect("a token");
        text.push_str(generator.text());
    }
    assert_eq!(text.chars().count(), 15);
    assert_eq!(generator.finish_reason(), Some(FinishReason::Length));
    assert_eq!(text + generator.tail(), whole);
}

#[test]
fn the_context_can_be_the_end() {
    let model = Recipe::characters().model();
    let ending = |max_tokens| GenerateOptions { at_context: AtContext::Stop, ..options(max_tokens) };
    for length in 1..=CONTEXT {
        let prompt = vec![1; length];
        let (ids, _, reason) = run(&model, &prompt, &ending(100));
        assert_eq!((ids.len(), reason), (CONTEXT + 1 - length, Some(FinishReason::Context)));
        let (sliding, ..) = run(&model, &prompt, &options(ids.len()));
        assert_eq!(ids, sliding);
    }
    let mut session = model.session().expect("a session");
    assert!(matches!(Generator::new(&mut session, &[1; CONTEXT + 1], &ending(1)), Err(Error::Usage(_))));
    let (_, _, reason) = run(&model, &[1], &ending(3));
    assert_eq!(reason, Some(FinishReason::Length));
}

#[test]
fn an_id_that_ends_a_text_is_no_token() {
    let model = Recipe::characters().model();
    let (whole, text, _) = run(&model, &[0], &options(60));
    let end = whole[20];
    let first = whole.iter().position(|&id| id == end).expect("it is there");
    let (ids, ended, reason) = run(&model, &[0], &GenerateOptions { end: vec![end], ..options(60) });
    assert_eq!((ids.as_slice(), reason), (&whole[..first], Some(FinishReason::EndOfText)));
    assert_eq!(ended, text.chars().take(first).collect::<String>());
}

#[test]
fn no_tokens_are_asked_for_and_none_are_given() {
    let model = Recipe::characters().model();
    assert_eq!(run(&model, &[0], &options(0)), (vec![], String::new(), Some(FinishReason::Length)));
}

#[test]
fn without_a_prompt_generation_starts_from_the_bos_id_or_from_zero() {
    let mut recipe = Recipe::characters();
    let model = recipe.model();
    assert_eq!(run(&model, &[], &options(20)), run(&model, &[0], &options(20)));
    recipe.generation.bos_token_id = Some(4);
    let model = recipe.model();
    assert_eq!(run(&model, &[], &options(20)), run(&model, &[4], &options(20)));
}

#[test]
fn a_session_goes_on_where_it_stands() {
    let model = Recipe::characters().model();
    let expected = run(&model, &[1, 2, 3, 4, 5], &options(20));
    for fed in 1..=5 {
        let mut session = model.session().expect("a session");
        session.feed(&[1, 2, 3, 4, 5][..fed]).expect("logits");
        let rest = &[1, 2, 3, 4, 5][fed..];
        let generator = Generator::new(&mut session, rest, &options(20)).expect("a generator");
        let ids: Vec<u32> = generator.map(|token| token.expect("a token").id).collect();
        assert_eq!(ids, expected.0, "{fed} fed before");
    }
}

#[test]
fn a_cancelled_generation_says_so() {
    let model = Recipe::characters().model();
    let mut session = model.session().expect("a session");
    let canceller = session.canceller();
    let mut generator = Generator::new(&mut session, &[1, 2], &options(100)).expect("a generator");
    for _ in 0..12 {
        generator.next().expect("not the end").expect("a token");
    }
    canceller.cancel();
    assert!(generator.next().is_none());
    assert_eq!(generator.finish_reason(), Some(FinishReason::Cancelled));
}

#[test]
fn a_model_that_computes_no_number_gives_one_error_and_ends() {
    let model = Recipe { scale: 1e30, ..Recipe::characters() }.model();
    let mut session = model.session().expect("a session");
    let mut generator = Generator::new(&mut session, &[1], &options(9)).expect("a generator");
    assert!(matches!(generator.next(), Some(Err(Error::Diverged(_)))));
    assert!(generator.next().is_none());
    assert_eq!(generator.finish_reason(), None);
}

#[test]
fn a_model_without_a_tokenizer_has_ids_and_no_text() {
    let model = Recipe { tokenizer: None, ..Recipe::characters() }.model();
    let (ids, text, _) = run(&model, &[1], &options(9));
    assert_eq!((ids.len(), text.as_str()), (9, ""));
    let mut session = model.session().expect("a session");
    let stopping = GenerateOptions { stop: vec!["a".into()], ..options(9) };
    assert!(matches!(Generator::new(&mut session, &[1], &stopping), Err(Error::Usage(_))));
}

#[test]
fn impossible_prompts_and_options_are_refused() {
    let model = Recipe::characters().model();
    let mut session = model.session().expect("a session");
    let mut refused = |prompt: &[u32], options: GenerateOptions| {
        assert!(
            matches!(Generator::new(&mut session, prompt, &options), Err(Error::Usage(_))),
            "{options:?}"
        );
    };
    refused(&[11], options(1));
    refused(&[u32::MAX; 100], options(1));
    refused(&[1], GenerateOptions { stop: vec![String::new()], ..options(1) });
    refused(&[1], GenerateOptions { sampling: Sampling { top_p: 2.0, ..Sampling::PLAIN }, ..options(1) });
}

#[test]
fn what_follows_within_a_moment_waits_for_the_next() {
    let begin = Instant::now();
    let mut pace = Pace::default();
    let due: Vec<bool> = [0, 1, 999, 1000, 1500, 1999, 2000, 9000]
        .map(|micros| pace.due_at(begin + Duration::from_micros(micros)))
        .into();
    assert_eq!(due, [true, false, false, true, false, false, true, true]);
}
