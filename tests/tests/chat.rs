//! Conversations and the ends of texts, as a user meets them.

use formats::checkpoint::Dtype;
use runtime::generate::{AtContext, GenerateOptions, Generator};
use runtime::model::Model;
use runtime::sampler::Sampling;
use runtime::session::{CacheType, SessionOptions};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use tests::models::{self, Written};
use tests::programs::{Program, run, run_with_input, wait};

/// A model of the printable ASCII characters and of Latin letters in several bytes, but of no line end.
fn model(context: usize) -> Written {
    let config = formats::Config { vocabulary: 95, context, width: 24, head_size: 8, ..models::small() };
    models::write(&config, &models::random_weights(&config, 3), Dtype::F32)
}

/// The same with the characters of conversations.
fn speaker(context: usize) -> Written {
    let written = model(context);
    let tokenizer = formats::tokenizer::Tokenizer::characters(&format!("\n{}", &models::alphabet(94)[..]))
        .expect("a tokenizer");
    replace(&written, "tokenizer.json", &tokenizer.to_json());
    written
}

fn replace(written: &Written, name: &str, text: &str) {
    let path = written.path.join(name);
    let _ = std::fs::remove_file(&path);
    std::fs::write(path, text).expect("can be written");
}

fn chat(written: &Written, words: &[&str]) -> Command {
    let mut command = Program::Runtime.command(&["chat", "--greedy", "--cache", "f32"]);
    command.arg("--model").arg(&written.path).args(words);
    command
}

/// What a session that knows nothing answers to `text`, to the first of `n` tokens, `stop` or the context's end.
fn answer(model: &Model, text: &str, n: usize, stop: &str) -> String {
    let options = GenerateOptions {
        max_tokens: n,
        stop: vec![stop.to_owned()],
        at_context: AtContext::Stop,
        sampling: Sampling { temperature: 0.0, ..Sampling::PLAIN },
        ..GenerateOptions::default()
    };
    let ids = model.tokenizer().expect("a tokenizer").encode(text).expect("known characters");
    let session = SessionOptions { cache: CacheType::F32, ..SessionOptions::default() };
    let mut session = model.session_with(&session).expect("a session");
    let mut generator = Generator::new(&mut session, &ids, &options).expect("a generator");
    let mut text = String::new();
    while let Some(token) = generator.next() {
        token.expect("a token");
        text.push_str(generator.text());
    }
    text + generator.tail()
}

#[test]
fn each_answer_knows_everything_that_was_said() {
    let written = speaker(200);
    let opened = Model::open(&written.path).expect("a model");
    let (first, second, stop) = ("User: hello\nAssistant:", "\nUser: and then?\nAssistant:", "\nUser:");
    let one = answer(&opened, &format!("Be brief.\n{first}"), 12, stop);
    let two = answer(&opened, &format!("Be brief.\n{first}{one}{second}"), 12, stop);
    let alone = answer(&opened, &format!("Be brief.\n{}", &second[1..]), 12, stop);
    assert_ne!(two, alone, "this model does not care what was said");
    let input = b"hello\n   \nand then?\n";
    let ran = run_with_input(chat(&written, &["-n", "12", "--system", "Be brief."]), Some(input)).expect(0);
    // The blanks before an answer are left out.
    assert_eq!(ran.text(), format!("{}\n{}\n", one.trim_start(), two.trim_start()));
    assert!(!ran.stderr.contains("> "), "a prompt where nobody types: {ran}");
    // The turn's own forms.
    let words = ["-n", "5", "--user-prefix", "", "--assistant_prefix", "=", "--stop", "\u{7e}"];
    let ran = run_with_input(chat(&written, &words), Some(b"ab\n")).expect(0);
    assert_eq!(ran.text(), format!("{}\n", answer(&opened, "ab\n=", 5, "\u{7e}").trim_start()));
}

#[test]
fn a_full_context_forgets_the_oldest_turns_and_says_so_once() {
    let written = speaker(64);
    let opened = Model::open(&written.path).expect("a model");
    let input = "aaaaaaaaaa\nbbbbbbbbbb\ncccccccccc\n";
    let ran = run_with_input(chat(&written, &["-n", "8"]), Some(input.as_bytes())).expect(0);
    assert_eq!(ran.stderr.matches("oldest turns are forgotten").count(), 1, "{ran}");
    // Two turns of 36 or 37 ids do not fit into 64, so that the last was asked alone.
    let last = answer(&opened, "\nUser: cccccccccc\nAssistant:", 8, "\nUser:");
    assert!(ran.text().ends_with(&format!("\n{}\n", last.trim_start())), "{ran} {last:?}");
    // A turn that never fits is refused, and the conversation goes on.
    let long = format!("{}\nhi\n", "x".repeat(100));
    let ran =
        run_with_input(chat(&written, &["-n", "3"]), Some(long.as_bytes())).expect(0).naming("say less");
    let expected = answer(&opened, "User: hi\nAssistant:", 3, "\nUser:");
    assert_eq!(ran.text(), format!("{}\n", expected.trim_start()));
}

#[test]
fn what_a_tokenizer_cannot_say_is_told() {
    let written = speaker(64);
    let ran = run_with_input(chat(&written, &["-n", "3"]), Some("é\nhi\n".as_bytes())).expect(0);
    assert_eq!(ran.naming("'é'").text().lines().count(), 1);
    // No line end: not even a turn can be made.
    run_with_input(chat(&model(64), &[]), Some(b"hi\n")).expect(2).naming("'\\n'");
    run_with_input(chat(&written, &["--system", &"s".repeat(64)]), Some(b"hi\n"))
        .expect(2)
        .naming("--system");
    std::fs::remove_file(written.path.join("tokenizer.json")).expect("is there");
    run_with_input(chat(&written, &[]), Some(b"hi\n")).expect(2).naming("no tokenizer.json");
}

fn interrupt(child: &std::process::Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn ctrl_c_stops_the_answer_and_at_the_prompt_the_conversation() {
    let config = formats::Config { vocabulary: 95, context: 100_000, ..models::small() };
    let written = models::write(&config, &models::random_weights(&config, 3), Dtype::F32);
    let alphabet = format!("\n{}", models::alphabet(94));
    let tokenizer = formats::tokenizer::Tokenizer::characters(&alphabet).expect("a tokenizer");
    replace(&written, "tokenizer.json", &tokenizer.to_json());
    let mut command = chat(&written, &["-n", "90000", "--user-prefix", ""]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = child.stdout.take().expect("a pipe");
    input.write_all(b"go on\n").expect("can be asked");
    // An answer of 90,000 tokens is under way.
    output.read_exact(&mut [0; 10]).expect("it speaks");
    interrupt(&child);
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).map(|_| rest)
    });
    // It goes on with the next line, and ends with the input.
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("can be asked").is_none(), "Ctrl-C ended more than the answer");
    interrupt(&child);
    let status = wait(&mut child, Duration::from_secs(20)).expect("it ends at the prompt");
    assert_eq!(status.code(), Some(130));
    let rest = reader.join().expect("a thread").expect("a pipe");
    assert!(rest.len() < 80_000, "{} bytes came after Ctrl-C", rest.len());
    drop(input);
}

#[test]
fn the_id_that_ends_a_text_ends_it_unless_told_otherwise() {
    let written = model(30);
    let generate = |words: &[&str]| {
        let mut command = Program::Runtime
            .command(&["generate", "--greedy", "--prompt", "abc", "-n", "6", "--format", "json"]);
        command.arg("--model").arg(&written.path).args(words);
        run(command).expect(0).json()
    };
    let free = generate(&[]);
    let ids: Vec<u64> = free["ids"].as_array().expect("ids").iter().filter_map(|id| id.as_u64()).collect();
    assert_eq!((ids.len(), &free["finish_reason"]), (6, &"length".into()));
    let last = *ids.last().expect("six ids");
    let before = ids.iter().take_while(|&&id| id != last).count();
    // As a number, and as one of several.
    for eos in [format!("{last}"), format!("[{}, {last}]", (last + 1) % 95)] {
        replace(&written, "generation_config.json", &format!("{{\"eos_token_id\": {eos}}}"));
        let ended = generate(&[]);
        assert!(ended["ids"].as_array().is_some_and(|ids| ids.len() <= before), "{ended}");
        assert_eq!(ended["finish_reason"], "eos");
        assert_eq!(generate(&["--ignore-eos"])["ids"], free["ids"]);
    }
    // Not to sample is to take the likeliest, whatever else the file says.
    replace(&written, "generation_config.json", "{\"do_sample\": false, \"temperature\": 3.0}");
    let mut command =
        Program::Runtime.command(&["generate", "--prompt", "abc", "-n", "6", "--format", "json"]);
    command.arg("--model").arg(&written.path);
    assert_eq!(run(command).expect(0).json()["ids"], free["ids"]);
}
