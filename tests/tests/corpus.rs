//! Data of any size, through the command line: texts become shards, shards are trained from, and what is promised of
//! a run holds for them too. Memory is watched from outside, small every day and with 200 MB where `LECTERN_LONG` is set.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::Chance;
use tests::folder::{self, Folder};
use tests::programs::{Program, Ran, run};
use tests::training::{Job, assert_same_run, assert_same_tree, tiny, with};

const SEPARATOR: &str = "<|endoftext|>";

/// Documents of at most so many words, about `bytes` in all, each followed by the separator.
fn write_corpus(path: &Path, bytes: usize, most_words: usize, seed: u64) {
    let mut chance = Chance::new(seed);
    let words: Vec<String> = (0..2000)
        .map(|_| (0..1 + chance.below(9)).map(|_| char::from(b'a' + chance.below(26) as u8)).collect())
        .collect();
    let file = std::fs::File::create(path).expect("a file for the test");
    let (mut out, mut written) = (std::io::BufWriter::new(file), 0);
    while written < bytes {
        let mut document = String::new();
        for _ in 0..1 + chance.below(most_words) {
            document += &words[chance.below(words.len())];
            document.push(if chance.below(12) == 0 { '\n' } else { ' ' });
        }
        document += SEPARATOR;
        out.write_all(document.as_bytes()).expect("can write");
        written += document.len();
    }
    out.into_inner().expect("can write");
}

fn encode(text: &Path, shard: &Path, more: &[&str]) -> Command {
    let mut command =
        Program::Trainer.command(&["tokenizer", "encode", "--format", "shard", "--tokenizer", "bytes"]);
    command.args(["--document-separator", SEPARATOR]).args(more).arg("--out").arg(shard).arg(text);
    command
}

/// A small corpus as a shard, and the job that trains from it.
fn job(name: &str, more: &[(&'static str, &str)]) -> (Job, PathBuf) {
    let keys = with(tiny(12), &[&[("tokenizer", "\"bytes\"")], more].concat());
    let job = Job::new(name, "unused", &keys);
    let (text, shard) = (job.folder.join("corpus.txt"), job.folder.join("corpus.shard"));
    write_corpus(&text, 8000, 40, 1);
    run(encode(&text, &shard, &[])).expect(0).naming("documents");
    (job, shard)
}

/// Trains from other data than the job's text.
fn train(job: &Job, data: &[&Path], out: &Path, more: &[&str]) -> Ran {
    let mut command = Program::Trainer.command(&["train", "--progress", "plain", "--config"]);
    command.arg(job.folder.join("options.toml")).arg("--data").args(data).arg("--out").arg(out).args(more);
    run(command)
}

#[test]
fn every_step_of_a_corpus_is_a_place_to_resume_from_and_threads_change_nothing() {
    // Of some 1,200 windows the first run reads a few; the second run's longer ones are few, and it begins them again.
    for more in [&[][..], &[("block", "60"), ("batch", "12")]] {
        let (job, shard) = job("corpus-resume", more);
        let other = job.folder.join("other.shard");
        write_corpus(&job.folder.join("other.txt"), 3000, 40, 2);
        run(encode(&job.folder.join("other.txt"), &other, &["--threads", "3"])).expect(0);
        for weights in [&[][..], &["--data-weight", "3", "1"]] {
            let whole = job.out("whole");
            folder::remove(&whole);
            train(&job, &[&shard, &other], &whole, &[&["--threads", "1"], weights].concat()).expect(0);
            for step in [1, 4, 7, 11] {
                let part = job.out("part");
                folder::remove(&part);
                folder::copy(&whole, &part);
                for later in step + 1..=12 {
                    folder::remove(&part.join(format!("checkpoints/{later:010}")));
                }
                let resume = ["train".as_ref(), "--resume".as_ref(), "--out".as_ref(), part.as_os_str()];
                Program::Trainer.run(&resume).expect(0).naming(&format!("resumed from step {step}"));
                assert_same_run(&format!("{weights:?} from step {step}"), &part, &whole);
            }
        }
    }
}

#[test]
fn another_corpus_other_weights_and_another_split_are_refused_by_name() {
    let (job, shard) = job("corpus-refused", &[]);
    let out = job.out("run");
    train(&job, &[&shard], &out, &["--steps", "2"]).expect(0);
    train(&job, &[&shard], &out, &["--resume", "--held-out", "0.2"]).expect(4).naming("held_out");
    train(&job, &[&shard], &out, &["--resume", "--data-weight", "2"]).expect(4).naming("data_weight");
    train(&job, &[&shard], &out, &["--resume", "--tokenizer", "characters"]).expect(4).naming("tokenizer");
    let text = job.folder.join("corpus.txt");
    let changed = std::fs::read_to_string(&text).expect("the text").replacen('e', "a", 1);
    let (other, another) = (job.folder.write("other.txt", changed), job.folder.join("other.shard"));
    run(encode(&other, &another, &[])).expect(0);
    train(&job, &[&another], &out, &["--resume"]).expect(4).naming("data is");
    // The same text under another name is the same corpus.
    run(encode(&text, &another, &["--threads", "1"])).expect(0);
    train(&job, &[&another], &out, &["--resume"]).expect(0);
}

#[test]
fn shards_that_are_none_are_code_3_and_wrong_usage_is_code_2() {
    let (job, shard) = job("corpus-hostile", &[]);
    let out = job.out("run");
    let good = std::fs::read(&shard).expect("the shard");
    let last_id = good.len() - good.len() / 3;
    for (name, bytes, words) in [
        ("short", good[..100].to_vec(), "has 100 bytes"),
        ("cut", good[..good.len() - 1].to_vec(), "take"),
        ("longer", [&good[..], &[0]].concat(), "take"),
        ("flipped", good.iter().enumerate().map(|(i, b)| b ^ u8::from(i == 17)).collect(), "checksum"),
        ("ids", good.iter().enumerate().map(|(i, b)| b ^ u8::from(i > 128 && i < last_id)).collect(), "id"),
    ] {
        let path = job.folder.write(format!("{name}.shard"), bytes);
        train(&job, &[&path], &out, &[]).expect(3).naming(words).naming(name);
        folder::remove(&out);
    }
    train(&job, &[&shard], &out, &["--tokenizer", "characters"]).expect(3).naming("--tokenizer");
    train(&job, &[&shard], &out, &["--rng", "torch"]).expect(4).naming("rng");
    train(&job, &[&shard], &out, &["--block", "60000"]).expect(3).naming("held-out");
    train(&job, &[&shard], &out, &["--data-weight", "1", "2"]).expect(2).naming("--data-weight");
    train(&job, &[&shard], &out, &["--data-weight", "0"]).expect(2).naming("above 0");
    train(&job, &[&shard], &out, &["--tokenizer", "no/such/file"]).expect(3).naming("no/such/file");
    train(&job, &[&shard], &out, &["--tokenizer", "byte"]).expect(3).naming("did you mean bytes");
    assert!(!out.exists(), "a refusal left something");

    let text = job.folder.join("corpus.txt");
    run(encode(&text, &job.folder.join("no/such/place"), &[])).expect(5);
    run(encode(&shard, &job.folder.join("twice"), &[])).expect(3).naming("already");
    let encode = |more: &[&str]| {
        let mut command = Program::Trainer.command(&["tokenizer", "encode"]);
        command.args(more).arg(&text);
        run(command)
    };
    encode(&["--tokenizer", "characters"]).expect(2);
    encode(&["--tokenizer", "bytes", "--format", "shard"]).expect(2).naming("--out");
    let never = job.folder.join("x");
    encode(&["--tokenizer", "bytes", "--out", never.to_str().expect("UTF-8")]).expect(2).naming("--out");
    encode(&["--tokenizer", "bytes", "--document-separator", ""]).expect(2);
    assert!(!never.exists() && !job.folder.join("twice").exists());
}

#[test]
fn ids_are_those_of_the_text_a_document_a_line() {
    let folder = Folder::new("corpus-ids");
    let text = folder.write("text", "ab|c\n|");
    let encode = |more: &[&str]| {
        let mut command = Program::Trainer.command(&["tokenizer", "encode", "--tokenizer", "bytes"]);
        command.args(more).arg(&text);
        run(command).expect(0)
    };
    assert_eq!(encode(&[]).text(), "97 98 124 99 10 124\n");
    assert_eq!(encode(&["--document-separator", "|"]).text(), "97 98\n99 10\n");
}

#[test]
fn a_corpus_is_inspected_and_evaluated_as_it_is_split() {
    let (job, shard) = job("corpus-eval", &[]);
    let out = job.out("run");
    train(&job, &[&shard], &out, &[]).expect(0).naming("tokens, vocabulary 256");
    let inspect = |path: &Path| {
        let mut command =
            Program::Trainer.command(&["inspect", "data", "--tokenizer", "bytes", "--block", "6"]);
        command.arg("--data").arg(path);
        run(command)
    };
    let told = inspect(&shard).expect(0);
    for words in ["documents train", "are held out", "windows", "vocabulary 256", "For input ["] {
        assert!(told.text().contains(words), "{words}: {told}");
    }
    // A changed id passes the header's check, and not that of everything.
    let mut bytes = std::fs::read(&shard).expect("the shard");
    bytes[200] ^= 1;
    inspect(&job.folder.write("changed.shard", bytes)).expect(3).naming("other contents");

    let eval = |data: &Path, more: &[&str]| {
        let mut command = Program::Trainer.command(&["eval", "--format", "json", "--model"]);
        command.arg(&out).arg("--data").arg(data).args(more);
        run(command).expect(0).json()
    };
    let exact = eval(&shard, &[]);
    for key in ["train_loss", "val_loss", "val_bits_per_byte"] {
        assert!(exact[key].as_f64().is_some_and(|loss| loss > 0.0 && loss < 10.0), "{exact}");
    }
    // One byte a token: bits a byte are nats a token over ln 2.
    let (nats, bits) = (exact["val_loss"].as_f64(), exact["val_bits_per_byte"].as_f64());
    assert!((nats.expect("a loss") / std::f64::consts::LN_2 - bits.expect("bits")).abs() < 1e-9, "{exact}");
    assert_ne!(eval(&shard, &["--held-out", "0.5"])["val_loss"], exact["val_loss"]);
    // One document as a shard is cut where its text is: the same ids, the same exact losses.
    let text = job.folder.write("one.txt", tests::fixtures::text());
    let one = job.folder.join("one.shard");
    run(encode(&text, &one, &[])).expect(0);
    let (held, mapped) = (eval(&text, &[]), eval(&one, &[]));
    for key in ["train_loss", "val_loss"] {
        let losses = [&held, &mapped].map(|exact| exact[key].as_f64().expect("a loss"));
        assert!((losses[0] - losses[1]).abs() < 1e-9, "{key}: {losses:?}");
    }
}

#[test]
fn a_tokenizer_of_a_file_is_used_as_it_is_and_kept_with_the_run() {
    let text: String = tests::fixtures::text().chars().take(700).collect();
    let job = Job::new("corpus-tokenizer", &text, &tiny(6));
    // The characters of another text, of which this one's are some.
    let alphabet = formats::tokenizer::Tokenizer::characters(&(text.clone() + "\u{2744}0123456789"));
    let alphabet = alphabet.expect("not empty");
    let file = job.folder.write("tokenizer.json", alphabet.to_json());
    let path = file.to_str().expect("UTF-8");
    let (whole, part) = (job.out("whole"), job.out("part"));
    job.train(&whole, &["--tokenizer", path])
        .expect(0)
        .naming(&format!("vocabulary {}", alphabet.vocabulary()));
    assert_eq!(
        std::fs::read_to_string(whole.join("model/tokenizer.json")).expect("kept"),
        alphabet.to_json()
    );
    job.train(&part, &["--tokenizer", path, "--steps", "3"]).expect(0);
    // Whoever names another one is told, whoever names an equal one is not, and the file itself is not needed.
    let other = job.folder.write("other.json", formats::tokenizer::Tokenizer::bytes().to_json());
    let resume = |more: &[&str]| {
        let mut command = Program::Trainer.command(&["train", "--resume", "--steps", "6", "--out"]);
        command.arg(&part).args(more);
        run(command)
    };
    resume(&["--tokenizer", other.to_str().expect("UTF-8")]).expect(4).naming("tokenizer");
    std::fs::rename(&file, job.folder.join("moved.json")).expect("can be moved");
    resume(&[]).expect(0).naming("resumed from step 3");
    let checkpoints = |run: &Path| run.join("checkpoints");
    assert_same_tree("resumed without the file", &checkpoints(&part), &checkpoints(&whole));
    // A run is a tokenizer too, in a flag as in a file.
    let again = job.out("again");
    job.train(&again, &["--tokenizer", whole.to_str().expect("UTF-8")]).expect(0);
    assert_same_run("with the tokenizer of a run", &again, &whole);
    let shard = job.folder.join("text.shard");
    let mut command = Program::Trainer.command(&["tokenizer", "encode", "--format", "shard", "--tokenizer"]);
    command.arg(&whole).arg("--out").arg(&shard).arg(job.folder.join("text.txt"));
    run(command).expect(0);
    train(&job, &[&shard], &job.out("shard"), &["--tokenizer", whole.to_str().expect("UTF-8")]).expect(0);
}

/// Anonymous memory of a process, in bytes.
fn anonymous(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Runs a command and reads its anonymous memory every few milliseconds, from when `begun` is there.
fn watched(mut command: Command, begun: Option<&Path>) -> Vec<u64> {
    let line = format!("{command:?}");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a command");
    let mut samples = vec![];
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if begun.is_none_or(Path::exists) {
            samples.extend(anonymous(child.id()).filter(|bytes| *bytes > 0));
        }
        std::thread::sleep(Duration::from_millis(4));
    };
    assert!(status.success(), "{line}");
    assert!(samples.len() > 10, "{line} was too quick to be watched: {samples:?}");
    samples
}

/// Encodes a corpus of `bytes` and trains from it; neither may hold more than `most` bytes, and training none more as
/// it goes on.
fn memory_stays_flat(bytes: usize, steps: &str, most: u64) {
    const MIB: f64 = (1 << 20) as f64;
    let job =
        Job::new("corpus-memory", "unused", &with(tiny(1), &[("tokenizer", "\"bytes\""), ("keep", "1")]));
    let (text, shard) = (job.folder.join("corpus.txt"), job.folder.join("corpus.shard"));
    write_corpus(&text, bytes, 400, 3);
    let largest = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    let encoding = largest(&watched(encode(&text, &shard, &[]), None));
    let out = job.out("run");
    let mut command = Program::Trainer.command(&["train", "--progress", "off", "--config"]);
    command.arg(job.folder.join("options.toml")).arg("--data").arg(&shard).arg("--out").arg(&out);
    command.args([
        "--block",
        "64",
        "--batch",
        "8",
        "--eval-every",
        "100",
        "--save-every",
        "0",
        "--steps",
        steps,
    ]);
    let training = watched(command, Some(&out.join("metrics.jsonl")));
    let (early, late) = training.split_at(training.len() / 4);
    println!(
        "corpus {:.0} MiB, shard {:.0} MiB; anonymous memory: encoding at most {:.1} MiB, training at most {:.1} MiB early \
         and {:.1} MiB late ({} samples)",
        bytes as f64 / MIB,
        shard.metadata().expect("the shard").len() as f64 / MIB,
        encoding as f64 / MIB,
        largest(early) as f64 / MIB,
        largest(late) as f64 / MIB,
        training.len()
    );
    assert!(encoding < most && largest(&training) < most, "more than {most} bytes");
    assert!(largest(late) <= largest(early) + (2 << 20), "training holds more and more");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_follow_the_corpus() {
    memory_stays_flat(24 << 20, "1500", 24 << 20);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_follow_a_corpus_of_200_megabytes() {
    if std::env::var_os("LECTERN_LONG").is_none() {
        println!("skipped: LECTERN_LONG is not set");
        return;
    }
    memory_stays_flat(200_000_000, "3000", 64 << 20);
}
