use super::*;

fn read(text: &str) -> Result<Tokenizer> {
    Tokenizer::from_json(text, Path::new("tokenizer.json"))
}

fn refused(text: &str, words: &str) {
    let message = read(text).expect_err("must be refused").to_string();
    assert!(message.contains(words), "{message:?} does not say {words:?}");
    assert!(message.starts_with("tokenizer.json: "), "{message}");
}

/// Characters `a` and `b`, with one piece of the file exchanged.
fn changed(from: &str, to: &str) -> String {
    let text = Tokenizer::characters("ab").expect("not empty").to_json();
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1)
}

#[test]
fn both_kinds_survive_their_file() {
    let odd = "\u{0}\t\n\r \"\\/{}é\u{7f}\u{ad}\u{2028}日\u{fffd}\u{10ffff}";
    for tokenizer in [Tokenizer::characters(odd).expect("not empty"), Tokenizer::bytes()] {
        let text = tokenizer.to_json();
        assert_eq!(read(&text).expect("our own file"), tokenizer);
        assert_eq!(text, tokenizer.to_json());
        let ids = tokenizer.encode(odd).expect("known");
        assert_eq!(tokenizer.decode(&ids).expect("known"), odd.as_bytes());
    }
}

#[test]
fn key_order_and_permuted_ids_do_not_matter() {
    let text = r#"{"model": {"merges": [], "vocab": {"b": 0, "a": 1}}, "decoder": {"type": "Fuse"}}"#;
    let tokenizer = read(text).expect("the same form");
    assert_eq!(tokenizer.encode("ab").expect("known"), [1, 0]);
    assert_eq!(tokenizer.decode(&[1, 0]).expect("known"), b"ab");
}

#[test]
fn broken_vocabularies_are_refused() {
    refused(&changed("\"b\": 1", "\"b\": 2"), "has id 2; 2 tokens must have the ids 0 to 1 without gaps");
    refused(&changed("\"b\": 1", "\"b\": 0"), "both have id 0");
    refused(&changed("\"b\": 1", "\"a\": 1"), "\"a\" has two ids");
    refused(&changed("\"b\": 1", "\"\": 1"), "is empty");
    refused(&changed("\"b\": 1", "\"bc\": 1"), "is not one character");
    refused(&changed("\"b\": 1", "\"b\": -1"), "not a tokenizer we know");
    refused(&changed("\"b\": 1", "\"b\": 1.0"), "not a tokenizer we know");
    refused(&changed("\"b\": 1", "\"b\": 4294967296"), "not a tokenizer we know");
    refused(&changed("\"a\": 0,\n      \"b\": 1", ""), "vocabulary is empty");
}

#[test]
fn what_we_do_not_compute_is_refused_by_name() {
    refused(&changed("\"merges\": []", "\"merges\": [\"a b\"]"), "it has 1 merges; characters have none");
    let token = "\"added_tokens\": [{\"id\": 2, \"content\": \"<x>\", \"special\": true}]";
    refused(&changed("\"added_tokens\": []", token), "adds the token \"<x>\"");
    refused(&changed("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}"), "normalizer is set");
    refused(&changed("\"truncation\": null", "\"truncation\": {}"), "truncation is set");
    refused(&changed("\"unk_token\": null", "\"unk_token\": \"a\""), "model.unk_token is set");
    refused(&changed("\"end_of_word_suffix\": null", "\"end_of_word_suffix\": \"w\""), "end_of_word_suffix");
    refused(&changed("\"byte_fallback\": false", "\"byte_fallback\": true"), "byte_fallback is true");
    refused(&changed("\"version\": \"1.0\"", "\"version\": \"2.0\""), "version is \"2.0\"");
    refused(&changed("\"BPE\"", "\"WordLevel\""), "type \"WordLevel\"");
    refused(&changed("\"Fuse\"", "\"WordPiece\""), "decoder is WordPiece");
    refused(&changed("\"pre_tokenizer\": null", "\"pre_tokenizer\": {}"), "pre_tokenizer is set");
    refused(&changed("\"padding\": null", "\"color\": null"), "unknown field `color`");
    refused(&changed("\"padding\": null", "\"truncation\": null"), "duplicate field");
    refused("", "not a tokenizer we know");
    refused(
        r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}"#,
        "type \"Unigram\"; only",
    );
    refused(&"[".repeat(100_000), "not a tokenizer we know");
}

#[test]
fn a_byte_file_must_have_every_byte() {
    let text = Tokenizer::bytes().to_json();
    refused(&text.replacen("\"A\": 65", "\"日\": 65", 1), "(id 65) has '日', which stands for no byte");
    refused(&text.replacen("\"A\": 65", "\"AB\": 65", 1), "byte 0x41 (written \"A\") is missing");
    refused(&text.replacen("\"A\": 65", "\"A\": 66", 1), "both have id 66");
    let exchanged = text.replacen("\"A\": 65", "\"A\": 66", 1).replacen("\"B\": 66", "\"B\": 65", 1);
    assert_eq!(read(&exchanged).expect("any order will do").encode("AB").expect("bytes"), [66, 65]);
    refused(
        &text.replacen("\"add_prefix_space\":false", "\"add_prefix_space\":true", 1),
        "add_prefix_space must be false",
    );
    refused(&text.replacen("\"add_prefix_space\":false,", "", 1), "add_prefix_space must be false");
    refused(&text.replacen("\"use_regex\":false", "\"use_regex\":1", 1), "use_regex is 1");
}

#[test]
fn every_truncation_and_bit_flip_of_a_file_is_an_error_or_a_tokenizer() {
    let text = Tokenizer::characters("ab\n").expect("not empty").to_json();
    for end in 0..text.trim_end().len() {
        assert!(read(&text[..end]).is_err(), "cut at {end}");
    }
    for place in 0..text.len() {
        for bit in 0..8 {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1 << bit;
            if let Ok(Ok(tokenizer)) = String::from_utf8(bytes).map(|text| read(&text)) {
                assert_eq!(tokenizer.vocabulary(), 3);
            }
        }
    }
}
