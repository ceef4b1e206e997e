//! Files that are damaged, hostile or not files at all. Whatever they hold, the answer is a typed error with the
//! right exit code, or the identical model where the damage touched nothing that counts; never a panic, and soon.

use formats::checkpoint::{self, Dtype};
use formats::layout::Layout;
use formats::{Config, Error, families};
use runtime::model::Model;
use safetensors::Dtype as Stored;
use safetensors::tensor::TensorView;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;
use tests::folder;
use tests::models::{self, Written};
use tests::programs::{Program, Ran, run};
use tests::training::{Job, assert_same_run, tiny};

/// The smallest model that has every kind of parameter, as files in memory.
struct Files {
    written: Written,
    config: String,
    tokenizer: String,
    weights: Vec<u8>,
    header: usize,
    logits: Vec<f32>,
}

fn config() -> Config {
    Config {
        vocabulary: 5,
        context: 3,
        width: 4,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        head_size: 2,
        feed_forward: 6,
        ..models::lecture()
    }
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let written = models::write(&config(), &models::random_weights(&config(), 1), Dtype::F32);
        let read = |name: &str| std::fs::read(written.path.join(name)).expect("a file of the model");
        let text = |name: &str| String::from_utf8(read(name)).expect("text");
        let weights = read("model.safetensors");
        let length = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes"));
        let (config, tokenizer) = (text("config.json"), text("tokenizer.json"));
        let model = Model::from_bytes(&config, &weights, Some(&tokenizer)).expect("the undamaged model");
        let logits = logits(&model);
        Files { header: 8 + length as usize, written, config, tokenizer, weights, logits }
    })
}

fn logits(model: &Model) -> Vec<f32> {
    model.session().expect("a session").feed(&[1, 2, 3]).expect("logits").to_vec()
}

/// Opens a model from memory: a damaged one must be refused as a file or a config, or be the same model.
#[track_caller]
fn refused_or_identical(what: &str, weights: &[u8]) -> bool {
    let files = files();
    match Model::from_bytes(&files.config, weights, Some(&files.tokenizer)) {
        Err(error) => {
            assert!(matches!(error.exit_code(), 3 | 4), "{what}: {error}");
            assert!(error.to_string().len() < 2000, "{what}: an error of {} bytes", error.to_string().len());
            true
        }
        Ok(model) => {
            assert_eq!(logits(&model), files.logits, "{what}: another model was accepted");
            false
        }
    }
}

/// Asserts that a damaged model is refused.
#[track_caller]
fn refused(what: &str, weights: &[u8]) -> Error {
    let files = files();
    match Model::from_bytes(&files.config, weights, Some(&files.tokenizer)) {
        Err(error) => {
            assert!(matches!(error.exit_code(), 3 | 4), "{what}: {error}");
            error
        }
        Ok(_) => panic!("{what} was accepted"),
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let files = files();
    for end in 0..files.weights.len() {
        refused(&format!("cut at byte {end}"), &files.weights[..end]);
    }
    let mut longer = files.weights.clone();
    longer.push(0);
    refused("one byte longer", &longer);
}

#[test]
fn every_flipped_bit_of_the_header_is_refused_or_changes_nothing() {
    let files = files();
    let (mut refused, mut identical) = (0, 0);
    for byte in 0..files.header {
        for bit in 0..8 {
            let mut weights = files.weights.clone();
            weights[byte] ^= 1 << bit;
            match refused_or_identical(&format!("bit {bit} of byte {byte}"), &weights) {
                true => refused += 1,
                false => identical += 1,
            }
        }
    }
    println!("{refused} flips refused, {identical} changed nothing");
    assert!(refused > 20 * identical, "{refused} refused, {identical} identical");
}

#[test]
fn every_value_of_every_byte_of_the_length_is_refused_but_the_right_one() {
    let files = files();
    for byte in 0..8 {
        for value in 0..=255u8 {
            if files.weights[byte] != value {
                let mut weights = files.weights.clone();
                weights[byte] = value;
                refused(&format!("byte {byte} of the length is {value}"), &weights);
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_the_values_shows_in_verify() {
    let files = files();
    let folder = folder::Folder::new("flipped");
    folder::copy(files.written.path.parent().expect("the checkpoint"), folder.path());
    let path = folder.join("model/model.safetensors");
    let checkpoint = folder.path();
    checkpoint::verify(checkpoint).expect("the undamaged checkpoint");
    for byte in (0..files.weights.len()).step_by(7) {
        let mut weights = files.weights.clone();
        weights[byte] ^= 1 << (byte % 8);
        std::fs::remove_file(&path).expect("the file before");
        std::fs::write(&path, weights).expect("the damaged file");
        let error = checkpoint::verify(checkpoint).expect_err("a damaged checkpoint");
        assert_eq!(error.exit_code(), 3, "{error}");
    }
    let ran =
        Program::Runtime.run(&["verify".as_ref(), "--model".as_ref(), folder.join("model").as_os_str()]);
    ran.expect(3).naming("model.safetensors");
}

/// One tensor as a hostile file may hold it.
#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Stored,
    shape: Vec<usize>,
}

impl Tensor {
    fn new(name: impl Into<String>, dtype: Stored, shape: &[usize]) -> Tensor {
        Tensor { name: name.into(), dtype, shape: shape.to_vec() }
    }
}

/// The tensors of the undamaged model.
fn tensors() -> Vec<Tensor> {
    let config = config();
    let stored = families::stored(&config, &Layout::new(&config));
    stored.into_iter().map(|entry| Tensor::new(entry.name, Stored::F32, &entry.shape)).collect()
}

/// A well-formed file of these tensors, all zero.
fn file_of(tensors: &[Tensor]) -> Vec<u8> {
    let zeros = vec![0u8; 1 << 16];
    let views = tensors.iter().map(|tensor| {
        let bits = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize();
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &zeros[..bits / 8]).expect("a tensor");
        (tensor.name.clone(), view)
    });
    safetensors::serialize(views, None).expect("a file")
}

#[test]
fn wrong_shapes_types_and_names_are_refused_by_name() {
    let whole = tensors();
    let files = files();
    Model::from_bytes(&files.config, &file_of(&whole), None).expect("all zeros, and a model");
    for (index, tensor) in whole.iter().enumerate() {
        let with = |changed: Tensor| {
            let mut tensors = whole.clone();
            tensors[index] = changed;
            file_of(&tensors)
        };
        let name = &tensor.name;
        let mut shapes: Vec<Vec<usize>> = vec![
            [&tensor.shape[..], &[1]].concat(),
            [&[1], &tensor.shape[..]].concat(),
            vec![tensor.shape.iter().product::<usize>() + 1],
            vec![],
            vec![0],
        ];
        shapes.push(tensor.shape.iter().map(|size| size + 1).collect());
        if tensor.shape.len() == 2 && tensor.shape[0] != tensor.shape[1] {
            shapes.push(vec![tensor.shape[1], tensor.shape[0]]);
            shapes.push(vec![tensor.shape[0] * tensor.shape[1]]);
        }
        for shape in shapes {
            let error =
                refused(&format!("{name} of shape {shape:?}"), &with(Tensor::new(name, Stored::F32, &shape)));
            assert!(error.to_string().contains(name.as_str()), "{name} of {shape:?}: {error}");
        }
        for dtype in [Stored::F64, Stored::I32, Stored::U8, Stored::BOOL, Stored::I64, Stored::F8_E4M3] {
            let error =
                refused(&format!("{name} of {dtype:?}"), &with(Tensor::new(name, dtype, &tensor.shape)));
            assert!(error.to_string().contains(name.as_str()), "{name} of {dtype:?}: {error}");
        }
        let mut missing = whole.clone();
        missing.remove(index);
        let error = refused(&format!("{name} missing"), &file_of(&missing));
        assert!(error.to_string().contains(name.as_str()), "{name} missing: {error}");
    }
    for name in ["extra", "layers.1.attention.qkv.weight", "layers.00.up", "../../etc/passwd", "a\u{0}b", ""]
    {
        let mut more = whole.clone();
        more.push(Tensor::new(name, Stored::F32, &[2]));
        refused(&format!("an extra tensor {name:?}"), &file_of(&more));
    }
}

/// A file of the given header and this many bytes of data.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; data]].concat()
}

#[test]
fn headers_that_lie_are_refused() {
    let entry = |name: &str, shape: &str, from: u64, to: u64| {
        format!("\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("seven bytes", vec![0; 7]),
        ("an empty header", raw("", 0)),
        ("an empty object", raw("{}", 0)),
        ("no object", raw("[]", 0)),
        ("white space first", raw(" {}", 0)),
        ("two objects", raw("{}{}", 0)),
        ("deep nesting", raw(&deep, 0)),
        ("a length past the file", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("a length that wraps", [&(u64::MAX - 7).to_le_bytes()[..], b"{}"].concat()),
        (
            "a product that wraps to 4",
            raw(&format!("{{{}}}", entry("a", "[4194305,4194305,211106198978564]", 0, 16)), 16),
        ),
        (
            "a product that wraps to 0",
            raw(&format!("{{{}}}", entry("a", "[4294967296,4294967296]", 0, 0)), 0),
        ),
        (
            "a zero that hides",
            raw(&format!("{{{}}}", entry("a", "[0,9223372036854775808,9223372036854775808]", 0, 0)), 0),
        ),
        ("reversed offsets", raw(&format!("{{{}}}", entry("a", "[1]", 4, 0)), 4)),
        ("offsets past the file", raw(&format!("{{{}}}", entry("a", "[2]", 0, 8)), 4)),
        ("an offset of all ones", raw(&format!("{{{}}}", entry("a", "[1]", u64::MAX - 3, u64::MAX)), 4)),
        ("a hole", raw(&format!("{{{},{}}}", entry("a", "[1]", 0, 4), entry("b", "[1]", 8, 12)), 12)),
        ("an overlap", raw(&format!("{{{},{}}}", entry("a", "[1]", 0, 4), entry("b", "[1]", 0, 4)), 4)),
        ("one name twice", raw(&format!("{{{},{}}}", entry("a", "[1]", 0, 4), entry("a", "[1]", 4, 8)), 8)),
        (
            "an unknown field",
            raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"b\":1}}", 4),
        ),
        ("a negative size", raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4)),
        ("a fraction", raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4)),
        ("an exponent", raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[1e0],\"data_offsets\":[0,4]}}", 4)),
        ("three offsets", raw("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4)),
        ("an unknown type", raw("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4)),
        ("five dimensions", raw(&format!("{{{}}}", entry("a", "[1,1,1,1,1]", 0, 4)), 4)),
        (
            "a pointer of Git LFS",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n".to_vec(),
        ),
        ("a web page", b"<!DOCTYPE html><html></html>".to_vec()),
        ("a zip", b"PK\x03\x04aaaaaaaaaaaaaaaaaaaa".to_vec()),
        ("a pickle", b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01".to_vec()),
        ("GGUF", b"GGUF\x03\x00\x00\x00aaaaaaaaaaaa".to_vec()),
    ];
    for (what, bytes) in cases {
        let began = Instant::now();
        refused(what, &bytes);
        assert!(began.elapsed().as_secs_f64() < 1.0, "{what} took {:?}", began.elapsed());
    }
}

#[test]
fn absurd_configs_are_refused_and_take_no_memory() {
    let files = files();
    let whole: serde_json::Value = serde_json::from_str(&files.config).expect("a config");
    let open = |text: &str| Model::from_bytes(text, &files.weights, Some(&files.tokenizer));
    let values = [
        "0",
        "-1",
        "1.5",
        "1e30",
        "1e999",
        "4294967296",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "null",
        "\"8\"",
        "[]",
        "{}",
        "[8]",
        "true",
        "1099511627776",
        "NaN",
        "",
    ];
    for (key, value) in whole.as_object().expect("an object") {
        let line = format!("\"{key}\": ");
        let at = files.config.find(&line).expect("the key") + line.len();
        let length = serde_json::to_string_pretty(value).expect("a value").len();
        let end = match value.is_array() {
            // The one array stands indented.
            true => at + files.config[at..].find(']').expect("its end") + 1,
            false => at + files.config[at..].find([',', '\n']).map_or(length, |end| end),
        };
        for absurd in values {
            let text = [&files.config[..at], absurd, &files.config[end..]].concat();
            let began = Instant::now();
            match open(&text) {
                Err(error) => assert!(matches!(error.exit_code(), 3 | 4), "{key} {absurd}: {error}"),
                // What a reader may ignore, and values that happen to be valid.
                Ok(model) => {
                    let known =
                        matches!(key.as_str(), "architectures" | "dropout" | "norm_eps" | "rotary_base");
                    assert!(known || format!("{value}") == absurd, "{key} = {absurd} was accepted");
                    model.config().validate("config.json").expect("a valid config");
                }
            }
            assert!(began.elapsed().as_secs_f64() < 1.0, "{key} {absurd} took {:?}", began.elapsed());
        }
        let removed =
            whole.as_object().expect("an object").clone().into_iter().filter(|(name, _)| name != key);
        let removed = serde_json::Value::Object(removed.collect()).to_string();
        assert!(
            open(&removed).is_err() || matches!(key.as_str(), "architectures" | "dtype" | "norm_order"),
            "{key} removed"
        );
    }
    for text in
        ["", "{", "[]", "null", "\u{feff}{}", "{\"model_type\":\"gpt2\"}", "{}{}", &"[".repeat(100_000)]
    {
        assert!(matches!(open(text).expect_err("no config").exit_code(), 3 | 4), "{text:.20}");
    }
    // Sizes within their own bounds that together are far more than any memory.
    let huge = files.config.replacen("\"layers\": 1", "\"layers\": 1024", 1);
    let huge =
        huge.replacen("\"width\": 4", "\"width\": 65536", 1).replacen("\"heads\": 2", "\"heads\": 128", 1);
    let began = Instant::now();
    assert!(open(&huge).is_err());
    assert!(began.elapsed().as_secs_f64() < 1.0);
    // A long context is not in the weights' shapes alone.
    let long = files.config.replacen("\"context\": 3", "\"context\": 16777216", 1);
    assert!(open(&long).is_err());
}

#[test]
fn every_flipped_bit_of_the_texts_beside_the_weights_is_survived() {
    let files = files();
    for (name, text) in [("config.json", &files.config), ("tokenizer.json", &files.tokenizer)] {
        for byte in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[byte] ^= 1 << bit;
                let Ok(flipped) = String::from_utf8(bytes) else { continue };
                let (config, tokenizer) = if name == "config.json" {
                    (&flipped, &files.tokenizer)
                } else {
                    (&files.config, &flipped)
                };
                match Model::from_bytes(config, &files.weights, Some(tokenizer)) {
                    Err(error) => assert!(matches!(error.exit_code(), 3 | 4), "{name} {byte}.{bit}: {error}"),
                    Ok(model) => drop(logits(&model)),
                }
            }
        }
        for end in 0..text.len() {
            let Some(cut) = text.get(..end) else { continue };
            if cut.trim_end() == text.trim_end() {
                continue;
            }
            let outcome = match name {
                "config.json" => Model::from_bytes(cut, &files.weights, Some(&files.tokenizer)),
                _ => Model::from_bytes(&files.config, &files.weights, Some(cut)),
            };
            assert_eq!(outcome.expect_err("cut short").exit_code(), 3, "{name} cut at {end}");
        }
    }
}

#[test]
fn a_tokenizer_with_gaps_doubles_or_strangers_is_refused() {
    let files = files();
    let whole: serde_json::Value = serde_json::from_str(&files.tokenizer).expect("a tokenizer");
    let changed = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let mut value = whole.clone();
        change(value["model"]["vocab"].as_object_mut().expect("a vocabulary"));
        value.to_string()
    };
    let first =
        whole["model"]["vocab"].as_object().expect("a vocabulary").keys().next().expect("a token").clone();
    let set = |value: serde_json::Value| {
        let first = first.clone();
        changed(&move |vocabulary| {
            vocabulary.insert(first.clone(), value.clone());
        })
    };
    Model::from_bytes(&files.config, &files.weights, Some(&changed(&|_| {})))
        .expect("the undamaged tokenizer");
    let cases = [
        ("one missing", changed(&|vocabulary| drop(vocabulary.remove(&first)))),
        ("one too many", changed(&|vocabulary| drop(vocabulary.insert("z".into(), 5.into())))),
        ("none", changed(&|vocabulary| vocabulary.clear())),
        ("a gap", set(7.into())),
        ("one id twice", set(1.into())),
        ("a negative id", set((-1).into())),
        ("a fraction", set(0.5.into())),
        ("a huge id", set(u64::MAX.into())),
        ("an id of 32 bits", set(u32::MAX.into())),
        ("a word", set("0".into())),
        ("nothing", set(serde_json::Value::Null)),
    ];
    for (what, tokenizer) in cases {
        match Model::from_bytes(&files.config, &files.weights, Some(&tokenizer)) {
            Err(error) => assert!(matches!(error.exit_code(), 3 | 4), "{what}: {error}"),
            Ok(_) => panic!("a tokenizer with {what} was accepted"),
        }
    }
}

/// The model's directory once more, with one file taken away.
fn without(name: &str) -> folder::Folder {
    let folder = folder::Folder::new("without");
    folder::copy(&files().written.path, folder.path());
    std::fs::remove_file(folder.join(name)).expect("the file");
    folder
}

fn fifo(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path");
    // SAFETY: the string ends in a zero byte and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o644) }, 0, "a FIFO");
}

/// Makes at a path what is there instead of a file.
type Make = fn(&Path);

/// What may stand where a file should.
const IMPOSTORS: [(&str, Make); 6] = [
    ("a directory", |path| std::fs::create_dir(path).expect("a directory")),
    ("a FIFO", fifo),
    ("a device", |path| std::os::unix::fs::symlink("/dev/zero", path).expect("a link")),
    ("a dangling link", |path| std::os::unix::fs::symlink("/nowhere/at/all", path).expect("a link")),
    ("a link to itself", |path| std::os::unix::fs::symlink(path, path).expect("a link")),
    ("an empty file", |path| drop(std::fs::File::create(path).expect("a file"))),
];

#[track_caller]
fn soon(ran: Ran) -> Ran {
    assert!(ran.seconds < 1.0, "not within a second: {ran}");
    ran
}

#[test]
fn what_is_no_file_is_refused_at_once_by_every_command() {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        for (what, make) in IMPOSTORS {
            let folder = without(name);
            make(&folder.join(name));
            for words in [&["inspect"][..], &["generate", "-n", "1"], &["verify"], &["score", "--text", "!!"]]
            {
                let mut command = Program::Runtime.command(words);
                command.arg("--model").arg(folder.path());
                let ran = soon(run(command)).calm();
                assert!(matches!(ran.code, Some(3 | 4)), "{what} for {name}: {ran}");
                ran.naming(name);
            }
        }
    }
    for (what, make) in IMPOSTORS {
        let folder = folder::Folder::new("impostor");
        let path = folder.join("model");
        make(&path);
        let mut command = Program::Runtime.command(&["inspect"]);
        command.arg("--model").arg(&path);
        let ran = soon(run(command)).expect(3);
        assert!(ran.stderr.contains("model"), "{what}: {ran}");
    }
    let nothing = soon(Program::Runtime.run(&["inspect", "--model", "/nowhere/at/all"])).expect(3);
    nothing.naming("/nowhere/at/all");
}

#[test]
fn damaged_files_stop_the_command_with_the_right_code() {
    let files = files();
    let spoiled: [(&str, Vec<u8>, &[i32]); 8] = [
        ("model.safetensors", files.weights[..20].to_vec(), &[3]),
        ("model.safetensors", vec![0xff; 100], &[3]),
        ("model.safetensors", file_of(&tensors()[1..]), &[3]),
        ("config.json", b"{\"model_type\": \"lectern\"".to_vec(), &[3]),
        ("config.json", files.config.replace("\"heads\": 2", "\"heads\": 3").into_bytes(), &[4]),
        ("config.json", vec![0xff, 0xfe, 0x00], &[3]),
        ("tokenizer.json", vec![0xff, 0xfe, 0x00], &[3]),
        ("tokenizer.json", b"{}".to_vec(), &[3]),
    ];
    for (name, bytes, codes) in spoiled {
        let folder = without(name);
        folder.write(name, bytes);
        for words in [&["generate", "-n", "1"][..], &["verify"]] {
            let mut command = Program::Runtime.command(words);
            command.arg("--model").arg(folder.path());
            let ran = soon(run(command)).calm();
            assert!(codes.contains(&ran.code.unwrap_or(-1)), "{name}: {ran}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_are_found() {
    let files = files();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        // One bad value is for `verify` to find, wherever it stands; where all are bad nothing may be sampled.
        for (from, verify_only) in [(files.weights.len() - 4, true), (files.header, false)] {
            let folder = without("model.safetensors");
            let mut weights = files.weights.clone();
            weights[from..].as_chunks_mut::<4>().0.iter_mut().for_each(|value| *value = bad.to_le_bytes());
            folder.write("model.safetensors", weights);
            let command = |words: &[&str]| {
                let mut command = Program::Runtime.command(words);
                command.arg("--model").arg(folder.path());
                run(command).calm()
            };
            command(&["verify"]).expect(3).naming("tensor");
            for words in [
                &["generate", "-n", "5", "--greedy"][..],
                &["generate", "-n", "5"],
                &["score", "--text", "!!"],
            ] {
                let ran = command(words);
                assert!(verify_only || ran.code == Some(3), "{bad}: {ran}");
            }
        }
    }
}

#[test]
fn texts_that_cannot_be_learned_from_are_refused_at_once() {
    let folder = folder::Folder::new("texts");
    let no_text = [
        ("empty", folder.write("empty", "")),
        ("not UTF-8", folder.write("bytes", [b'a', 0xff, b'b'].repeat(100))),
        ("cut within a character", folder.write("cut", &"é".repeat(100).as_bytes()[..199])),
        ("too short for one block", folder.write("short", "ab")),
        ("missing", folder.join("missing")),
    ];
    let impostors = IMPOSTORS.map(|(what, make)| {
        let path = folder.join(what.replace(' ', "-"));
        make(&path);
        (what, path)
    });
    for (what, path) in no_text.iter().chain(&impostors) {
        for words in [&["train", "--preset", "gpt-zero", "--steps", "2", "--out"][..], &["inspect", "data"]] {
            let mut command = Program::Trainer.command(words);
            let out = folder.join("out");
            if words[0] == "train" {
                command.arg(&out);
            }
            command.arg("--data").arg(path);
            let ran = soon(run(command)).calm();
            assert_eq!(ran.code, Some(3), "{what}: {ran}");
            ran.naming(&path.file_name().expect("a name").to_string_lossy());
            assert!(!out.join("checkpoints").exists(), "{what}: something was trained");
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let job = Job::new("passed-over", &text, &tiny(6));
    let whole = job.out("whole");
    job.train(&whole, &[]).expect(0);
    for name in ["trainer/state.safetensors", "trainer/state.json", "model/model.safetensors", "MANIFEST"] {
        for damage in ["flip", "cut", "gone"] {
            let part = job.out("part");
            folder::remove(&part);
            folder::copy(&whole, &part);
            let path = part.join("checkpoints/0000000006").join(name);
            let mut bytes = std::fs::read(&path).expect("the file");
            std::fs::remove_file(&path).expect("the file");
            let middle = bytes.len() / 2;
            match damage {
                "flip" => bytes[middle] ^= 1,
                _ => bytes.truncate(middle),
            }
            if damage != "gone" {
                std::fs::write(&path, bytes).expect("the damaged file");
            }
            let what = format!("{name} {damage}");
            let ran = job.train(&part, &["--resume"]).expect(0);
            assert!(ran.stderr.contains("resumed from step 5"), "{what}: {ran}");
            assert!(ran.stderr.contains("0000000006"), "{what}: the damage is not told: {ran}");
            assert_same_run(&what, &part, &whole);
        }
    }
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_says_so_and_begins_again() {
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let job = Job::new("all-damaged", &text, &tiny(3));
    let (whole, out) = (job.out("whole"), job.out("run"));
    job.train(&whole, &[]).expect(0);
    folder::copy(&whole, &out);
    for step in 1..=3 {
        let path = out.join(format!("checkpoints/{step:010}/trainer/state.safetensors"));
        std::fs::remove_file(&path).expect("the file");
        std::fs::write(&path, "").expect("the damaged file");
    }
    let ran = job.train(&out, &["--resume"]).expect(0);
    for step in 1..=3 {
        assert!(ran.stderr.contains(&format!("{step:010}")), "damage is not told: {ran}");
    }
    assert_same_run("begun again", &out, &whole);
}
