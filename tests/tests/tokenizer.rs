//! Byte-pair encoding of bytes, and of characters that fall back on bytes, against Hugging Face's tokenizers and tiktoken: small vocabularies in the repository
//! (`scripts/make_tokenizer_fixture.py`), GPT-2's own where `LECTERN_DATA` names a folder that holds it, and the
//! libraries themselves where `LECTERN_LONG` is set and python3 has them.

use formats::checkpoint::Dtype;
use formats::tokenizer::{Blanks, Split, TokenKind, Tokenizer};
use runtime::generate::{FinishReason, GenerateOptions, Generator};
use runtime::model::Model;
use runtime::sampler::Sampling;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use tests::folder::Folder;
use tests::programs::Program;
use tests::{Chance, models};
use trainer::tokenizer::{Lesson, learn};

/// What Hugging Face's tokenizers gave for one string: `expected.json`.
#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    with_special: Vec<u32>,
    /// What those ids are as text, special tokens left out; `None` where that is the string itself.
    decoded: Option<String>,
}

/// The vocabularies whose characters fall back on bytes, by how they write blanks.
const FALLBACKS: [(&str, Blanks); 6] = [
    ("prepended", Blanks::Prepended),
    ("prepended-words", Blanks::Prepended),
    ("replaced", Blanks::Replaced),
    ("first", Blanks::First),
    ("always", Blanks::Always),
    ("never", Blanks::Never),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/peers").join(name)
}

fn open(path: &Path) -> Tokenizer {
    Tokenizer::open(path).unwrap_or_else(|error| panic!("{error}"))
}

/// The folder of data, if there is one.
fn data(what: &str) -> Option<PathBuf> {
    let data = std::env::var_os("LECTERN_DATA").map(PathBuf::from);
    if data.is_none() {
        eprintln!("skipped: LECTERN_DATA names no folder with {what}");
    }
    data
}

/// Whether python3 has a library here and is asked to use it.
fn python(library: &str) -> bool {
    let there = || {
        let found = Command::new("python3").args(["-c", &format!("import {library}")]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let able = std::env::var_os("LECTERN_LONG").is_some() && there();
    if !able {
        eprintln!("skipped: needs LECTERN_LONG and python3 with {library}");
    }
    able
}

fn run(command: &mut Command) {
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Merges as the tokens they join.
fn merges(tokenizer: &Tokenizer) -> Vec<(String, String)> {
    let text = |id| tokenizer.written(id).expect("a token");
    tokenizer.merges().iter().map(|&(left, right)| (text(left), text(right))).collect()
}

fn lesson(vocabulary: usize, split: Split) -> Lesson {
    Lesson { vocabulary, split, special: vec!["<|endoftext|>".into()], threads: 2 }
}

#[test]
fn ids_are_those_of_hugging_face() {
    for split in [Split::Gpt2, Split::Llama3] {
        let folder = fixture("tokenizer").join(split.name());
        let tokenizer = open(&folder.join("tokenizer.json"));
        assert_eq!(tokenizer.split(), Some(split));
        let rows = std::fs::read_to_string(folder.join("expected.json")).expect("expected ids");
        let rows: Vec<Row> = serde_json::from_str(&rows).expect("rows");
        assert!(rows.len() > 60);
        for Row { text, ids, with_special, .. } in &rows {
            assert_eq!(tokenizer.encode(text).expect("any text"), *ids, "{split:?}: {text:?}");
            assert_eq!(
                tokenizer.encode_with_special(text).expect("any text"),
                *with_special,
                "{split:?}: {text:?}"
            );
            assert_eq!(tokenizer.decode(ids).expect("its ids"), text.as_bytes());
            assert_eq!(tokenizer.decode(with_special).expect("its ids"), text.as_bytes());
        }
        let end = tokenizer.end_of_text().expect("it has one");
        assert_eq!(end as usize, tokenizer.vocabulary() - 1);
        assert_eq!(tokenizer.kind(end), Some(TokenKind::Special));
        assert!(rows.iter().all(|row| !row.ids.contains(&end)), "plain text yields no special token");
        assert!(rows.iter().any(|row| row.with_special.contains(&end)));
    }
}

#[test]
fn characters_that_fall_back_on_bytes_have_the_ids_of_hugging_face() {
    for (name, blanks) in FALLBACKS {
        let folder = fixture("tokenizer").join(name);
        let tokenizer = open(&folder.join("tokenizer.json"));
        assert_eq!((tokenizer.blanks(), tokenizer.prefix()), (Some(blanks), &[1][..]));
        assert_eq!((tokenizer.end_of_text(), tokenizer.unknown()), (Some(2), Some(0)));
        let rows = std::fs::read_to_string(folder.join("expected.json")).expect("expected ids");
        let rows: Vec<Row> = serde_json::from_str(&rows).expect("rows");
        assert!(rows.len() > 80);
        for Row { text, ids, with_special, decoded } in &rows {
            assert_eq!(tokenizer.encode(text).expect("any text"), *ids, "{name}: {text:?}");
            assert_eq!(tokenizer.encode_bytes(text.as_bytes()).expect("any text"), *ids);
            assert_eq!(tokenizer.encode_prompt(text).expect("any text"), *with_special, "{name}: {text:?}");
            let said: Vec<u32> =
                with_special.iter().copied().filter(|&id| !tokenizer.is_special(id)).collect();
            let bytes = tokenizer.decode(&said).expect("its ids");
            assert_eq!(
                String::from_utf8_lossy(&bytes),
                *decoded.as_ref().expect("a text"),
                "{name}: {text:?}"
            );
            assert!(ids.iter().all(|&id| !tokenizer.is_special(id)), "plain text yields no special token");
            // A blank is written "▁", so a text that holds that sign comes back with a blank.
            if blanks == Blanks::Prepended && !text.contains('\u{2581}') {
                assert_eq!(tokenizer.decode(ids).expect("its ids"), text.as_bytes(), "{name}");
            }
        }
        assert!(rows.iter().any(|row| row.with_special.contains(&2)));

        let written = tokenizer.to_json();
        let again = Tokenizer::from_json(&written, Path::new("tokenizer.json")).expect("our own file");
        assert_eq!((&again, again.to_json()), (&tokenizer, written));
    }
}

#[test]
fn a_text_that_goes_on_has_no_blank_before_it() {
    let tokenizer = open(&fixture("tokenizer/prepended-words/tokenizer.json"));
    let (whole, first) =
        (tokenizer.encode("the lamp").expect("text"), tokenizer.encode("the").expect("text"));
    let rest = tokenizer.encode_continued(" lamp", false).expect("text");
    assert_eq!([first.clone(), rest.clone()].concat(), whole);
    assert_eq!(tokenizer.decode_continued(&rest).expect("its ids"), b" lamp");
    assert_eq!(tokenizer.decode(&rest).expect("its ids"), b"lamp");
    assert_eq!(tokenizer.decode(&[&[1], &first[..]].concat()).expect("its ids"), b"<s>the");

    // A model's first word after a prompt keeps its blank; where nothing stands before it, it has none.
    let config = formats::Config { vocabulary: tokenizer.vocabulary(), context: 16, ..models::small() };
    let written = models::write(&config, &models::random_weights(&config, 8), Dtype::F32);
    std::fs::write(written.path.join("tokenizer.json"), tokenizer.to_json()).expect("can be written");
    let model = Model::open(&written.path).expect("a model");
    let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    let mut blanks = 0;
    for seed in 0..400 {
        for prompt in [&[1][..], &first] {
            let options = GenerateOptions {
                max_tokens: 3,
                sampling: plain,
                end: vec![],
                seed,
                ..GenerateOptions::default()
            };
            let mut session = model.session().expect("a session");
            let mut generator = Generator::new(&mut session, prompt, &options).expect("a generator");
            let (mut ids, mut text) = (vec![], String::new());
            while let Some(token) = generator.next() {
                ids.push(token.expect("a token").id);
                text.push_str(generator.text());
            }
            text.push_str(generator.tail());
            let bytes = match prompt {
                [1] => tokenizer.decode(&ids),
                _ => tokenizer.decode_continued(&ids),
            };
            assert_eq!(text, String::from_utf8_lossy(&bytes.expect("its ids")));
            blanks += usize::from(text.starts_with(' '));
        }
    }
    assert!(blanks > 20, "{blanks} texts begin with a blank");
}

#[test]
fn merges_are_those_of_hugging_face() {
    for split in [Split::Gpt2, Split::Llama3] {
        let theirs = open(&fixture("tokenizer").join(split.name()).join("tokenizer.json"));
        let lesson = lesson(theirs.vocabulary() - 1, split);
        let ours = learn(&lesson, &[fixture("text.txt")], &mut |_| ()).expect("learned");
        assert_eq!(merges(&ours), merges(&theirs));
        // The same ids, and therefore the same tokenizer.
        assert_eq!(ours, theirs);
    }
}

#[test]
fn files_come_back_as_they_went() {
    for split in Split::ALL {
        let lesson = Lesson { special: vec!["<|endoftext|>".into(), "<é x>".into()], ..lesson(300, split) };
        let tokenizer = learn(&lesson, &[fixture("text.txt")], &mut |_| ()).expect("learned");
        let text = tokenizer.to_json();
        let again = Tokenizer::from_json(&text, Path::new("tokenizer.json")).expect("our own file");
        assert_eq!(again, tokenizer);
        assert_eq!(again.to_json(), text);
    }
    let folder = Folder::new("pair");
    let tokenizer = learn(&lesson(300, Split::Gpt2), &[fixture("text.txt")], &mut |_| ()).expect("learned");
    let (vocabulary, merges) = tokenizer.to_pair().expect("it has merges");
    for (first, second) in [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")] {
        let vocabulary = folder.write(first, &vocabulary);
        let merges = folder.write(second, &merges);
        assert_eq!(open(folder.path()), tokenizer);
        std::fs::remove_file(&merges).expect("is there");
        assert_eq!(Tokenizer::open(folder.path()).expect_err("half of it").exit_code(), 3);
        std::fs::remove_file(&vocabulary).expect("is there");
    }
}

#[test]
fn decoding_inverts_encoding_on_every_byte_string() {
    let mut chance = Chance::new(3);
    for name in ["gpt2", "llama3", "prepended", "prepended-words", "never"] {
        let tokenizer = open(&fixture("tokenizer").join(name).join("tokenizer.json"));
        let sign = "\u{2581}".as_bytes();
        let check = |bytes: &[u8]| {
            // Where "▁" stands for a blank it comes back as one.
            if tokenizer.blanks().is_some() && bytes.windows(sign.len()).any(|window| window == sign) {
                return;
            }
            let ids = tokenizer.encode_bytes(bytes).expect("any bytes");
            let back = match name {
                "never" => tokenizer.decode_continued(&ids),
                _ => tokenizer.decode(&ids),
            };
            assert!(back.expect("its ids") == bytes, "{name}: {bytes:?}");
        };
        for _ in 0..3000 {
            let length = chance.below(120);
            let bytes: Vec<u8> = (0..length).map(|_| (chance.bits() >> 40) as u8).collect();
            check(&bytes);
            let text = fuzz(&mut chance, 40);
            check(text.as_bytes());
            assert_eq!(
                tokenizer.encode(&text).expect("text"),
                tokenizer.encode_bytes(text.as_bytes()).expect("text")
            );
            // A text that was cut inside a character.
            check(&text.as_bytes()[..text.len() - text.len().min(1)]);
        }
        check(&(0..1 << 20).map(|_| (chance.bits() >> 40) as u8).collect::<Vec<u8>>());
        check(&vec![b'a'; 1 << 20]);
        check(&vec![b' '; 1 << 20]);
        check(&"\u{1f600}".repeat(1 << 18).into_bytes());
    }
}

/// Characters that patterns treat in different ways, and some that are anywhere.
fn fuzz(chance: &mut Chance, most: usize) -> String {
    let pieces = [
        "a", "B", "é", "ß", "日", "ι", "'s", "'S", "'ll", "'Re", "'", "ſ", "1", "23", "½", "٣", " ", "  ",
        "\n", "\r\n", "\t", "\u{a0}", "\u{3000}", "\u{85}", "\u{301}", "\u{200d}", "🚀", ".", "!?", "<|",
        "the", " of", "\u{0}", "\u{1c}", "\u{fffd}",
    ];
    let mut text = String::new();
    for _ in 0..chance.below(most + 1) {
        match chance.below(8) {
            0 => text.extend(char::from_u32(chance.below(0x11_0000) as u32)),
            1 => text.extend(char::from_u32(chance.below(0x3000) as u32)),
            _ => text.push_str(chance.of(&pieces)),
        }
    }
    text
}

#[test]
fn the_command_learns_what_the_library_does() {
    let folder = Folder::new("learn");
    let out = folder.join("tokenizer.json");
    let text = fixture("text.txt");
    let paths = (text.to_str().expect("a path"), out.to_str().expect("a path"));
    let arguments = ["tokenizer", "train", "--vocab", "300", "--data", paths.0, "--out", paths.1];
    let ran = Program::Trainer.run(&arguments).expect(0).naming("300 tokens and 1 special ones");
    assert!(ran.stdout.is_empty());
    let learned =
        learn(&lesson(300, Split::Gpt2), std::slice::from_ref(&text), &mut |_| ()).expect("learned");
    assert_eq!(open(&out), learned);
    let options = [&arguments[..], &["--no-special", "--split", "llama3", "--threads", "1"]].concat();
    Program::Trainer.run(&options).expect(0);
    let bare = Lesson { special: vec![], ..lesson(300, Split::Llama3) };
    assert_eq!(open(&out), learn(&bare, std::slice::from_ref(&text), &mut |_| ()).expect("learned"));
    let files = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(files, 1, "nothing is left beside it");

    let with = |vocabulary: &str, data: &str, out: &str| {
        Program::Trainer.run(&["tokenizer", "train", "--vocab", vocabulary, "--data", data, "--out", out])
    };
    with("255", paths.0, paths.1).expect(2).naming("expected 256");
    with("300", "/nowhere", paths.1).expect(3).naming("/nowhere");
    with("300", paths.0, "/nowhere/tokenizer.json").expect(5).naming("/nowhere/tokenizer.json");
    with("100000", paths.0, paths.1).expect(0).naming("no pairs left");
}

#[test]
fn a_model_speaks_its_vocabulary() {
    let tokenizer = open(&fixture("tokenizer/gpt2/tokenizer.json"));
    let config = formats::Config { vocabulary: tokenizer.vocabulary(), context: 16, ..models::small() };
    let written = models::write(&config, &models::random_weights(&config, 8), Dtype::F32);
    std::fs::remove_file(written.path.join("tokenizer.json")).expect("is there");
    let (vocabulary, merges) = tokenizer.to_pair().expect("it has merges");
    std::fs::write(written.path.join("vocab.json"), vocabulary).expect("can be written");
    std::fs::write(written.path.join("merges.txt"), merges).expect("can be written");
    let model = Model::open(&written.path).expect("a model");
    assert_eq!(model.tokenizer(), Some(&tokenizer));

    // Tokens of a random model are any bytes: what is given out is their text, whole characters at a time.
    let end = tokenizer.end_of_text().expect("it has one");
    let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() };
    let options =
        GenerateOptions { max_tokens: 400, sampling: plain, end: vec![], ..GenerateOptions::of(&model) };
    assert_eq!(GenerateOptions::of(&model).end, [end]);
    let speak = |options: &GenerateOptions| {
        let mut session = model.session().expect("a session");
        let prompt = tokenizer.encode_prompt("Ada<|endoftext|>").expect("a prompt");
        assert_eq!(prompt.last(), Some(&end));
        let mut generator = Generator::new(&mut session, &prompt, options).expect("a generator");
        let (mut ids, mut text) = (vec![], String::new());
        while let Some(token) = generator.next() {
            ids.push(token.expect("a token").id);
            text.push_str(generator.text());
        }
        text.push_str(generator.tail());
        (ids, text, generator.finish_reason())
    };
    let (ids, text, reason) = speak(&options);
    let bytes = tokenizer.decode(&ids).expect("its ids");
    assert_eq!(text, String::from_utf8_lossy(&bytes));
    assert_eq!((ids.len(), reason), (400, Some(FinishReason::Length)));
    assert!(std::str::from_utf8(&bytes).is_err(), "bytes that are no text were to be tried");

    // A stop string that begins inside one token and ends inside another.
    let at = text.char_indices().map(|(place, _)| place).nth(60).expect("enough text");
    let stop: String = text[at..].chars().take(3).collect();
    let first = text.find(&stop).expect("it is there");
    let (_, before, reason) = speak(&GenerateOptions { stop: vec![stop], ..options });
    assert_eq!((before.as_str(), reason), (&text[..first], Some(FinishReason::Stop(0))));
}

#[test]
fn gpt2s_vocabulary_gives_the_counts_that_are_known() {
    let Some(data) = data("gpt2/encoder.json, gpt2/vocab.bpe and tinyshakespeare.txt") else { return };
    let tokenizer = open(&data.join("gpt2"));
    assert_eq!((tokenizer.vocabulary(), tokenizer.merges().len()), (50_257, 50_000));
    assert_eq!((tokenizer.end_of_text(), tokenizer.kind(50_256)), (Some(50_256), Some(TokenKind::Special)));
    assert_eq!(tokenizer.encode("hello world").expect("text"), [31_373, 995]);
    let text = std::fs::read_to_string(data.join("tinyshakespeare.txt")).expect("a text");
    let cut = text.char_indices().nth(text.chars().count() * 9 / 10).expect("a place").0;
    let count = |text: &str| tokenizer.encode(text).expect("text").len();
    assert_eq!((count(&text[..cut]), count(&text[cut..])), (301_966, 36_059));
    let again =
        Tokenizer::from_json(&tokenizer.to_json(), Path::new("tokenizer.json")).expect("our own file");
    assert_eq!(again, tokenizer);
}

#[test]
fn a_learned_vocabulary_of_1024_has_the_merges_of_hugging_face() {
    let Some(data) = data("tinyshakespeare.txt").filter(|_| python("tokenizers")) else { return };
    let (folder, text) = (Folder::new("merges"), data.join("tinyshakespeare.txt"));
    for vocabulary in [1024, 4000] {
        let out = folder.join("theirs.json");
        let size = vocabulary.to_string();
        run(Command::new("python3").arg(script("hf_tokenizer.py")).arg(&text).arg(size).arg(&out));
        let ours = learn(&lesson(vocabulary, Split::Gpt2), std::slice::from_ref(&text), &mut |_| ())
            .expect("learned");
        let theirs = open(&out);
        assert_eq!(merges(&ours), merges(&theirs));
        assert_eq!(merges(&ours).len(), vocabulary - 256);
    }
}

#[test]
fn hugging_face_reads_blanks_and_bytes_as_we_do() {
    /// What Hugging Face gives for one string.
    #[derive(Deserialize)]
    struct Theirs {
        ids: Vec<u32>,
        text: String,
    }
    if !python("tokenizers") {
        return;
    }
    let (folder, mut chance) = (Folder::new("fallback"), Chance::new(22));
    let pieces = [
        " ", "  ", "\u{2581}", "<s>", "</s>", "<unk>", "<|a b|>", " <|a b|>", "<0x41>", "the ", " lamp", "\n",
    ];
    let mut strings: Vec<String> = (0..20_000).map(|_| fuzz(&mut chance, 30)).collect();
    strings.extend((0..20_000).map(|_| {
        let count = 1 + chance.below(12);
        let piece = |chance: &mut Chance| match chance.below(3) {
            0 => fuzz(chance, 4),
            _ => chance.of(&pieces).to_owned(),
        };
        (0..count).map(|_| piece(&mut chance)).collect::<String>()
    }));
    let source = folder.write("strings.json", serde_json::to_string(&strings).expect("JSON"));
    for (name, blanks) in FALLBACKS {
        let tokenizer = open(&fixture("tokenizer").join(name).join("tokenizer.json"));
        let file = folder.write("tokenizer.json", tokenizer.to_json());
        let mut command = Command::new("python3");
        let output = command.arg(script("hf_encode.py")).arg(&file).arg(&source).arg("--text").output();
        let output = output.expect("python3");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Theirs> = serde_json::from_slice(&output.stdout).expect("ids");
        assert_eq!(rows.len(), strings.len());
        for (text, theirs) in strings.iter().zip(rows) {
            let ids = tokenizer.encode_prompt(text).expect("text");
            assert_eq!(ids, theirs.ids, "{name}: {text:?}");
            let said: Vec<u32> = ids.into_iter().filter(|&id| !tokenizer.is_special(id)).collect();
            let bytes = tokenizer.decode(&said).expect("its ids");
            assert_eq!(String::from_utf8_lossy(&bytes), theirs.text, "{name} ({blanks:?}): {text:?}");
        }
    }
}

#[test]
fn hugging_face_opens_what_we_write() {
    if !python("tokenizers") {
        return;
    }
    let (folder, mut chance) = (Folder::new("written"), Chance::new(21));
    let mut strings: Vec<String> = (0..2000).map(|_| fuzz(&mut chance, 30)).collect();
    strings.extend(["a<|endoftext|> b<|endoftext|>", "<é x>"].map(String::from));
    let source = folder.write("strings.json", serde_json::to_string(&strings).expect("JSON"));
    for split in Split::ALL {
        let lesson = Lesson { special: vec!["<|endoftext|>".into(), "<é x>".into()], ..lesson(320, split) };
        let tokenizer = learn(&lesson, &[fixture("text.txt")], &mut |_| ()).expect("learned");
        let file = folder.write("tokenizer.json", tokenizer.to_json());
        let output = Command::new("python3").arg(script("hf_encode.py")).arg(&file).arg(&source).output();
        let output = output.expect("python3");
        assert!(output.status.success(), "{split:?}: {}", String::from_utf8_lossy(&output.stderr));
        let rows: Vec<Vec<u32>> = serde_json::from_slice(&output.stdout).expect("ids");
        assert_eq!(rows.len(), strings.len());
        for (text, theirs) in strings.iter().zip(rows) {
            assert_eq!(tokenizer.encode_prompt(text).expect("text"), theirs, "{split:?}: {text:?}");
        }
    }
}

/// At least ten million bytes: code, many scripts, emoji, white space, bytes that are no text replaced.
fn mixed_text() -> String {
    let mut chance = Chance::new(11);
    let mut text = String::new();
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let roots = [
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."),
        cargo.unwrap_or_default().join("registry/src"),
    ];
    for root in roots {
        let most = text.len() + 4_000_000;
        let mut folders = vec![root];
        while let Some(folder) = folders.pop().filter(|_| text.len() < most) {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
                if path.is_dir() && !path.ends_with("target") {
                    folders.push(path);
                } else if ["rs", "md", "toml", "py"].contains(&kind) && text.len() < most {
                    text.push_str(&String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()));
                }
            }
        }
    }
    // Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Han, Hangul, signs, emoji, letters past them all.
    let scripts = [
        (0xC0, 0x180),
        (0x370, 0x400),
        (0x400, 0x500),
        (0x590, 0x600),
        (0x600, 0x700),
        (0x900, 0x980),
        (0xE00, 0xE80),
        (0x3040, 0x3100),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A3),
        (0x2000, 0x2BFF),
        (0x1F300, 0x1FAFF),
        (0x1D400, 0x1D800),
        (0x300, 0x370),
        (0x10000, 0x11000),
    ];
    let most = text.len() + 4_000_000;
    while text.len() < most {
        let (low, high) = chance.of(&scripts);
        for _ in 0..chance.below(60) {
            for _ in 0..1 + chance.below(9) {
                text.extend(char::from_u32(low + chance.below((high - low) as usize) as u32));
            }
            text.push_str(
                chance.of(&[" ", " ", " ", "", ", ", ". ", "\n", "\u{200d}", "\u{fe0f}", "'s ", "7", "  "]),
            );
        }
    }
    let most = text.len() + 1_000_000;
    while text.len() < most {
        let space = chance.of(&[" ", " ", "\n", "\t", "\r\n", "\u{a0}", "\u{2003}", " \n"]);
        text.push_str(&space.repeat(chance.below(40)));
        text.push_str(chance.of(&["x", "", "{", "12", "'ll", "é"]));
    }
    let bytes: Vec<u8> = (0..1_500_000).map(|_| (chance.bits() >> 40) as u8).collect();
    text.push_str(&String::from_utf8_lossy(&bytes));
    text.push_str(&"a".repeat(100_000));
    text.extend((0..200_000).map(|_| char::from(b'a' + chance.below(26) as u8)));
    // Every character there is.
    text.extend((0..=0x10_FFFF).filter_map(char::from_u32));
    assert!(text.len() >= 10_000_000, "{} bytes", text.len());
    text
}

#[test]
fn ids_are_those_of_tiktoken() {
    let Some(data) = data("gpt2/encoder.json and gpt2/vocab.bpe").filter(|_| python("tiktoken")) else {
        return;
    };
    let mut chance = Chance::new(12);
    let mut strings = vec![mixed_text()];
    strings.extend((0..100_000).map(|_| fuzz(&mut chance, 30)));
    let folder = Folder::new("tiktoken");
    let numbered = |text: &String| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let source = folder.write("strings", strings.iter().flat_map(numbered).collect::<Vec<u8>>());
    let gpt2 = open(&data.join("gpt2"));
    let tokens = (0..50_256).map(|id| gpt2.token(id).expect("a token").to_vec()).collect();
    let special = ["<|endoftext|>".to_owned()];
    let cl100k = Tokenizer::byte_level(Split::Cl100k, tokens, gpt2.merges().to_vec(), &special);
    for (split, tokenizer) in [("gpt2", gpt2), ("cl100k", cl100k.expect("a tokenizer"))] {
        let target = folder.join(split);
        let command = &mut Command::new("python3");
        run(command
            .arg(script("tiktoken_encode.py"))
            .arg("ids")
            .arg(data.join("gpt2"))
            .arg(split)
            .arg(&source)
            .arg(&target));
        let bytes = std::fs::read(&target).expect("ids");
        let mut numbers =
            bytes.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")));
        for text in &strings {
            let count = numbers.next().expect("a number") as usize;
            let theirs: Vec<u32> = numbers.by_ref().take(count).collect();
            let ours = tokenizer.encode(text).expect("text");
            if let Some(place) =
                (0..count.max(ours.len())).find(|&place| ours.get(place) != theirs.get(place))
            {
                let (before, end) = (place.saturating_sub(3), (place + 5).min(count).min(ours.len()));
                let around = |ids: &[u32]| {
                    String::from_utf8_lossy(&tokenizer.decode(&ids[before..end]).expect("ids")).into_owned()
                };
                panic!(
                    "{split}: id {place} of {count}: {:?} and {:?}, {:?} and {:?}",
                    ours.get(before..end),
                    theirs.get(before..end),
                    around(&ours),
                    around(&theirs)
                );
            }
            assert_eq!(tokenizer.decode(&ours).expect("its ids"), text.as_bytes());
        }
        assert_eq!(numbers.next(), None);
    }
}
