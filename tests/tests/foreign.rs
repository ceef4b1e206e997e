//! A model whose tokenizer is of a kind that is not computed here: it gives and takes ids, and says why it takes no text.
//! A damaged tokenizer is refused where the model is opened.

use formats::checkpoint::Dtype;
use formats::config::{Activation, Config};
use serde_json::{Value, json};
use std::path::Path;
use tests::models::{self, Written};
use tests::programs::{Program, Ran};

/// A small model beside a `tokenizer.json` of this text.
fn model(tokenizer: &str) -> Written {
    let config =
        Config { head_bias: false, activation: Activation::GeluTanh, qkv_bias: false, ..models::small() };
    let written = models::write(&config, &models::random_weights(&config, 8), Dtype::F32);
    std::fs::write(written.path.join("tokenizer.json"), tokenizer).expect("can be written");
    // As a directory that was downloaded: without the list of checksums, which has another file's.
    std::fs::remove_file(written.path.with_file_name("MANIFEST")).expect("is there");
    written
}

fn run(program: Program, arguments: &[&str], model: &Path) -> Ran {
    let mut command = program.command(arguments);
    command.arg("--model").arg(model);
    tests::programs::run(command)
}

/// Whole files that are not computed here, and what is said of them.
fn foreign() -> Vec<(String, &'static str)> {
    let characters = formats::tokenizer::Tokenizer::characters("abc").expect("characters").to_json();
    let changed = |path: &str, value: Value| {
        let mut file: Value = serde_json::from_str(&characters).expect("JSON");
        *file.pointer_mut(path).expect("a part") = value;
        file.to_string()
    };
    vec![
        (
            r#"{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.5]]}}"#.into(),
            "its model is of type \"Unigram\"",
        ),
        (
            r###"{"decoder": {"type": "WordPiece"}, "model": {"type": "WordPiece", "unk_token": "[UNK]",
                "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1}}}"###
                .into(),
            "its model is of type \"WordPiece\"",
        ),
        (changed("/normalizer", json!({"type": "Lowercase"})), "normalizer is set"),
        (changed("/pre_tokenizer", json!({"type": "Whitespace"})), "pre_tokenizer is set"),
        (changed("/model/byte_fallback", json!(true)), "normalizer is null and pre_tokenizer null"),
        (changed("/model", json!({"type": "BPE", "vocab": {"a": 0}, "novelty": 1})), "unknown field `novelty`"),
    ]
}

#[test]
fn a_model_with_a_foreign_tokenizer_speaks_ids_and_says_why() {
    for (tokenizer, reason) in foreign() {
        let written = model(&tokenizer);
        let opened = formats::checkpoint::Directory::open(&written.path).expect("it opens");
        assert_eq!(opened.tokenizer, None);
        assert!(opened.foreign_tokenizer.is_some_and(|foreign| foreign.problem.contains(reason)), "{reason}");
        let runtime = |arguments: &[&str]| run(Program::Runtime, arguments, &written.path);

        for text in [&["generate", "--prompt", "a"][..], &["generate", "--ids", "1"], &["generate"]] {
            let ran = runtime(&[text, &["-n", "3"]].concat()).expect(3);
            ran.naming(reason).naming("tokenizer.json").naming("--format ids");
        }
        runtime(&["score", "--text", "a"]).expect(3).naming(reason);
        runtime(&["chat"]).expect(3).naming(reason);

        let ids = runtime(&["generate", "--ids", "1,2", "-n", "5", "--format", "ids"]).expect(0).ids();
        assert_eq!(ids.len(), 5);
        let object = runtime(&["generate", "--ids", "1,2", "-n", "5", "--format", "json"]).expect(0).json();
        assert_eq!((&object["text"], object["ids"].as_array().map(Vec::len)), (&Value::Null, Some(5)));
        let object = runtime(&["score", "--ids", "1,2,3", "--format", "json"]).expect(0).json();
        assert_eq!(object["bits_per_byte"], Value::Null);
        let object = runtime(&["inspect", "--format", "json"]).expect(0).json();
        assert_eq!(object["tokenizer"], Value::Bool(false));
        assert!(object["foreign_tokenizer"].as_str().is_some_and(|told| told.contains(reason)));
        assert!(runtime(&["inspect"]).expect(0).text().contains(reason));
        assert!(runtime(&["verify"]).expect(0).text().contains(reason));
    }
    let written = model(&foreign()[0].0);
    run(Program::Runtime, &["bench", "--prompt", "4", "--decode", "2"], &written.path).expect(0);
    for (to, words) in [("hf", "was not written"), ("gguf", "is not computed here")] {
        let mut export = Program::Trainer.command(&["export", "--to", to, "--model"]);
        export.arg(&written.path).arg("--out").arg(written.folder.join(to));
        tests::programs::run(export).naming(words);
    }
    let data = written.folder.write("text.txt", "abcabcabcabc".repeat(20));
    let eval = ["eval", "--data", data.to_str().expect("a path")];
    run(Program::Trainer, &eval, &written.path).expect(3).naming("\"Unigram\"");
    let out = written.folder.join("run");
    let mut train = Program::Trainer.command(&["train", "--preset", "nano-cpu", "--data"]);
    train.arg(&data).arg("--from").arg(&written.path).arg("--out").arg(&out);
    tests::programs::run(train).expect(3).naming("\"Unigram\"");
}

#[test]
fn a_damaged_tokenizer_is_refused_where_the_model_is_opened() {
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer/prepended-words/tokenizer.json");
    let whole = std::fs::read_to_string(fixture).expect("a fixture");
    for (text, words) in [
        (whole[..whole.len() / 2].to_owned(), "not a tokenizer we know"),
        ("{}".to_owned(), "missing field `model`"),
        (whole.replacen("\"<0x41>\":", "\"<0x4G>\":", 1), "byte 0x41 (written \"<0x41>\") is missing"),
        (whole.replacen("\"<s>\":1", "\"<s>\":5000", 1), "id 5000"),
        (whole.replacen("\"<unk>\":0", "\"<unk>\":1", 1), "added token \"<unk>\" has id 0, and id 1"),
    ] {
        let written = model(&text);
        run(Program::Runtime, &["inspect"], &written.path).expect(3).naming(words);
        run(Program::Runtime, &["generate", "--ids", "1", "--format", "ids"], &written.path)
            .expect(3)
            .naming(words);
    }
}
