use super::*;
use std::fs;

struct Texts(PathBuf);

impl Texts {
    fn new(name: &str, texts: &[&[u8]]) -> (Texts, Vec<PathBuf>) {
        let folder = std::env::temp_dir().join(format!("lectern-learn-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let write = |(number, text): (usize, &&[u8])| {
            let path = folder.join(number.to_string());
            fs::write(&path, text).expect("a text");
            path
        };
        let paths = texts.iter().enumerate().map(write).collect();
        (Texts(folder), paths)
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lesson(vocabulary: usize) -> Lesson {
    Lesson { vocabulary, split: Split::Gpt2, special: Vec::new(), threads: 2 }
}

fn learned(name: &str, lesson: &Lesson, texts: &[&[u8]]) -> Result<Tokenizer> {
    let (_folder, paths) = Texts::new(name, texts);
    learn(lesson, &paths, &mut |_| ())
}

/// The merges as the tokens they join.
fn merges(tokenizer: &Tokenizer) -> Vec<(String, String)> {
    let text = |id| tokenizer.written(id).expect("a token");
    tokenizer.merges().iter().map(|&(left, right)| (text(left), text(right))).collect()
}

#[test]
fn the_most_frequent_pair_goes_first_and_of_equal_ones_the_smaller_ids() {
    let tokenizer = learned("ties", &lesson(260), &[b"ba ab ab cd cd dc"]).expect("learned");
    // Twice each: "ab", "cd", "\xC4\xA0a", "\xC4\xA0c"; ids of letters come before that of the space.
    let expected = [("a", "b"), ("c", "d"), ("Ġ", "ab"), ("Ġ", "cd")];
    let expected: Vec<(String, String)> =
        expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect();
    assert_eq!(merges(&tokenizer), expected);
    assert_eq!(tokenizer.vocabulary(), 260);
    assert_eq!(tokenizer.encode(" ab").expect("bytes").len(), 1);
}

#[test]
fn a_text_without_pairs_left_gives_what_there_is() {
    let tokenizer = learned("few", &lesson(1000), &[b"abc abc"]).expect("learned");
    assert_eq!(tokenizer.vocabulary(), 256 + 3);
    assert_eq!(tokenizer.encode("abc abc").expect("bytes"), [257, 258]);
    assert_eq!(learned("none", &lesson(300), &[b"a"]).expect("learned").vocabulary(), 256);
}

#[test]
fn special_tokens_come_on_top_and_the_split_is_kept() {
    let lesson =
        Lesson { special: vec!["<|endoftext|>".into(), "<x>".into()], split: Split::Llama3, ..lesson(257) };
    let tokenizer = learned("special", &lesson, &[b"aa aa\xff"]).expect("learned");
    assert_eq!((tokenizer.id_of("<|endoftext|>"), tokenizer.id_of("<x>")), (Some(257), Some(258)));
    assert_eq!((tokenizer.end_of_text(), tokenizer.split()), (Some(257), Some(Split::Llama3)));
    let twice = Lesson { special: vec!["<x>".into(), "<x>".into()], ..lesson.clone() };
    assert!(learned("twice", &twice, &[b"aa"]).is_err());
}

#[test]
fn threads_files_and_blocks_change_nothing() {
    let mut text = Vec::new();
    let mut state = 5u32;
    let mut random = |bound: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % bound
    };
    // More than two blocks of words, signs and bytes that are no text.
    while text.len() < 9 << 20 {
        for _ in 0..=random(5) {
            text.push(b"abcdef!7\xff"[random(9) as usize]);
        }
        text.push(b" \n"[random(2) as usize]);
    }
    let of = |threads| {
        let lesson = Lesson { threads, ..lesson(400) };
        learned(&format!("threads-{threads}"), &lesson, &[&text, b"the end"]).expect("learned")
    };
    let one = of(1);
    assert_eq!(one, of(3));
    assert!(one.merges().len() > 20);
}

#[test]
fn what_cannot_be_learned_is_told() {
    for size in [0, 255, usize::MAX] {
        assert_eq!(learned("size", &lesson(size), &[b"a"]).expect_err("no size").exit_code(), 2);
    }
    assert_eq!(learned("empty", &lesson(300), &[b"", b""]).expect_err("empty").exit_code(), 3);
    assert_eq!(learn(&lesson(300), &["/nowhere".into()], &mut |_| ()).expect_err("absent").exit_code(), 3);
}
