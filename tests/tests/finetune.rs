//! Models trained further: directories of every family, as Hugging Face wrote them, begin a run with their own weights
//! and tokenizer, and what comes out is of the same family.

use formats::checkpoint::{Directory, Dtype};
use formats::families::Family;
use formats::tokenizer::Tokenizer;
use std::path::{Path, PathBuf};
use tests::Chance;
use tests::folder::{self, Folder};
use tests::models;
use tests::peers;
use tests::programs::{Program, Ran};
use tests::training::assert_same_tree;
use trainer::weights::arena;

/// The fixtures' vocabulary.
const VOCABULARY: usize = 31;

/// A folder with a text of as many characters as `vocabulary`, which repeats itself enough to be learned.
fn text(vocabulary: usize) -> Folder {
    let folder = Folder::new("finetune");
    let alphabet: Vec<char> = models::alphabet(vocabulary).chars().collect();
    let ids = Chance::new(1).ids(40, vocabulary);
    let phrase: String =
        ids.iter().map(|id| alphabet[*id as usize]).chain(alphabet.iter().copied()).collect();
    folder.write("text.txt", phrase.repeat(25));
    folder
}

/// A fixture with a tokenizer of its own.
fn fixture(folder: &Folder, name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families");
    let path = folder.join(name);
    folder::copy(&root.join(name), &path);
    let tokenizer = Tokenizer::characters(&models::alphabet(VOCABULARY)).expect("a tokenizer");
    std::fs::write(path.join("tokenizer.json"), tokenizer.to_json()).expect("can be written");
    path
}

/// Trains further into `out`.
fn tune(folder: &Folder, from: &Path, out: &Path, more: &[&str]) -> Ran {
    let mut command =
        Program::Trainer.command(&["train", "--progress", "plain", "--sample", "0", "--seed", "3"]);
    command.arg("--from").arg(from).arg("--data").arg(folder.join("text.txt")).arg("--out").arg(out);
    command.args(["--batch", "8", "--eval-every", "20", "--eval-batches", "4", "--dtype", "f32"]);
    // The last of two equal flags would be refused: what a test sets stands before the defaults.
    let defaults = [("--steps", "20"), ("--block", "16"), ("--learning-rate", "0.003")];
    for (flag, value) in defaults.into_iter().filter(|(flag, _)| !more.contains(flag)) {
        command.args([flag, value]);
    }
    command.args(more);
    tests::programs::run(command)
}

/// First and last validation loss.
fn losses(out: &Path) -> (f64, f64) {
    let rows = std::fs::read_to_string(out.join("metrics.jsonl")).expect("metrics");
    let rows = rows.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a row"));
    let losses: Vec<f64> = rows.filter_map(|row| row["val_loss"].as_f64()).collect();
    (losses[0], losses[losses.len() - 1])
}

const NAMES: [&str; 7] = ["gpt2", "gpt2-bare", "openai-gpt", "llama", "mixtral", "olmoe", "qwen3_moe"];

#[test]
fn every_family_learns_further_and_stays_what_it_is() {
    let folder = text(VOCABULARY);
    for name in NAMES {
        let from = fixture(&folder, name);
        let out = folder.join(format!("{name} tuned"));
        tune(&folder, &from, &out, &[]).expect(0).naming("from    ");
        let (first, last) = losses(&out);
        assert!(last < first - 0.2, "{name}: {first} became {last}");
        let (before, after) =
            (Directory::open(&from).expect("a model"), Directory::open(&out).expect("a model"));
        assert_eq!(after.config, before.config, "{name}: the block is no part of the model");
        assert_eq!((after.config.context, &after.generation), (48, &before.generation));
        assert_eq!(Family::of(&after.config), Family::of(&before.config));
        assert_eq!(after.tokenizer, before.tokenizer);
        if peers::transformers() {
            let ids = Chance::new(2).ids(12, VOCABULARY);
            peers::assert_opens_in_transformers(&out.join("model"), &ids);
        }
    }
}

#[test]
fn weights_of_any_type_and_orientation_begin_as_they_were() {
    let folder = text(VOCABULARY);
    for name in NAMES {
        let from = fixture(&folder, name);
        let out = folder.join(format!("{name} unmoved"));
        tune(&folder, &from, &out, &["--steps", "1", "--learning-rate", "1e-30"]).expect(0);
        let of = |path: &Path| {
            let directory = Directory::open(path).expect("a model");
            arena(&directory.weights, &directory.layout)
        };
        // A zero moves by the step's size, whatever that is.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-25;
        assert!(of(&out).iter().zip(&of(&from)).all(near), "{name}");
    }
}

#[test]
fn a_run_that_began_needs_the_first_model_no_more() {
    let folder = text(VOCABULARY);
    let from = fixture(&folder, "gpt2");
    let (whole, part) = (folder.join("whole"), folder.join("part"));
    tune(&folder, &from, &whole, &["--steps", "6"]).expect(0);
    tune(&folder, &from, &part, &["--steps", "3"]).expect(0);
    folder::remove(&from);
    let mut command =
        Program::Trainer.command(&["train", "--resume", "--steps", "6", "--progress", "off", "--out"]);
    command.arg(&part);
    tests::programs::run(command).expect(0);
    let model = |run: &Path| run.join("checkpoints/0000000006/model");
    assert_same_tree("resumed", &model(&part), &model(&whole));
}

#[test]
fn what_the_model_is_cannot_be_changed_and_how_it_learns_can() {
    let folder = text(VOCABULARY);
    let from = fixture(&folder, "gpt2");
    let out = folder.join("out");
    for (flags, words) in [
        (&["--width", "17"][..], "width is 17, expected 16, as the model in"),
        (&["--activation", "relu"], "activation is relu, expected gelu-tanh, as the model in"),
        (&["--tied", "false"], "tied is false, expected true"),
        (&["--norm-eps", "1e-3"], "norm_eps is 0.001, expected 0.00001"),
        (&["--context", "64"], "context is 64, expected 48"),
        (&["--experts", "2"], "experts is 2, expected 0"),
        (&["--bias-rate", "0.1"], "bias_rate is 0.1, expected 0"),
        (&["--block", "49"], "block is 49, expected at most the 48 tokens"),
    ] {
        tune(&folder, &from, &out, flags).expect(4).naming(words);
    }
    tune(&folder, &from, &out, &["--upcycle", "elsewhere"]).expect(2).naming("--from and --upcycle");
    assert!(!out.exists(), "a mistake leaves nothing behind");
    let allowed =
        ["--dropout", "0.3", "--preset", "nano", "--norm-eps", "1e-5", "--width", "16", "--steps", "2"];
    tune(&folder, &from, &out, &allowed).expect(0);
    assert_eq!(Directory::open(&out).expect("a model").config.dropout, 0.3);
    tune(&folder, &folder.join("absent"), &folder.join("none"), &[]).expect(3).naming("cannot be read");
}

#[test]
fn without_a_tokenizer_the_texts_must_fit() {
    let folder = text(VOCABULARY);
    let from = fixture(&folder, "gpt2");
    std::fs::remove_file(from.join("tokenizer.json")).expect("is there");
    let out = folder.join("bytes");
    let ran = tune(&folder, &from, &out, &["--tokenizer", "bytes"]).expect(4);
    ran.naming("vocabulary is 31, expected the 256 of the text's tokenizer");
    tune(&folder, &from, &folder.join("characters"), &["--steps", "1"]).expect(0);

    let config = formats::Config { vocabulary: 256, ..Directory::open(&from).expect("a model").config };
    let written = models::write(&config, &models::random_weights(&config, 1), Dtype::Bf16);
    let bare = folder.join("bare");
    folder::copy(&written.path, &bare);
    std::fs::remove_file(bare.join("tokenizer.json")).expect("is there");
    tune(&folder, &bare, &out, &["--tokenizer", "bytes", "--steps", "2"]).expect(0);
    let tuned = Directory::open(&out).expect("a model");
    assert_eq!((tuned.config, tuned.tokenizer), (config, Some(Tokenizer::bytes())));
}

#[test]
fn a_text_the_tokenizer_lacks_a_character_of_is_refused() {
    let folder = text(VOCABULARY);
    let from = fixture(&folder, "llama");
    folder.write("text.txt", "zzz ".repeat(200));
    tune(&folder, &from, &folder.join("out"), &[]).expect(2).naming("'z'");
}
