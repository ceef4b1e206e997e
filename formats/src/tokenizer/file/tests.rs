use super::*;
use serde_json::json;

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
    refused(
        &changed("\"byte_fallback\": false", "\"byte_fallback\": true"),
        "with model.byte_fallback the normalizers",
    );
    refused(&changed("\"fuse_unk\": false", "\"fuse_unk\": true"), "model.fuse_unk is true");
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

/// A byte-level file of the bytes, "ab", "abc" (no merge makes it) and a special token.
fn level() -> Value {
    let tokens = Tokenizer::byte_order().map(|byte| vec![byte]).into_iter();
    let tokens: Vec<Vec<u8>> = tokens.chain([b"ab".to_vec(), b"abc".to_vec()]).collect();
    let (a, b) = (u32::from(b'a' - b'!'), u32::from(b'b' - b'!'));
    let tokenizer = Tokenizer::byte_level(Split::Gpt2, tokens, vec![(a, b)], &["<|endoftext|>".into()]);
    serde_json::from_str(&tokenizer.expect("a vocabulary").to_json()).expect("JSON")
}

/// That file with one part exchanged; `path` is a JSON pointer.
fn exchanged(path: &str, value: Value) -> String {
    let mut file = level();
    *file.pointer_mut(path).unwrap_or_else(|| panic!("{path} is not there")) = value;
    file.to_string()
}

#[test]
fn both_forms_of_a_merge_are_read() {
    let lists = read(&level().to_string()).expect("a tokenizer");
    assert_eq!(lists, read(&exchanged("/model/merges", json!(["a b"]))).expect("a tokenizer"));
    assert_eq!(lists.encode("abc").expect("text"), [256, 66]);
    for (merges, words) in [
        (json!(["ab"]), "has no two sides"),
        (json!(["a b c"]), "has no two sides"),
        (json!([" b"]), "has no two sides"),
        (json!([["a"]]), "has no two sides"),
        (json!([["a", "b", "c"]]), "has no two sides"),
        (json!([7]), "a merge, written"),
        (json!([["a", "日"]]), "merge 0 names \"日\", which the vocabulary lacks"),
        (json!([["a", "b"], ["b", "c"]]), "merge 1 joins \"b\" and \"c\" into what the vocabulary lacks"),
        (json!([["a", "b"], ["a", "b"]]), "merge 1 joins \"a\" and \"b\" a second time"),
    ] {
        refused(&exchanged("/model/merges", merges), words);
    }
}

#[test]
fn a_piece_that_is_a_token_may_stand_above_the_merges() {
    let tokenizer = read(&exchanged("/model/ignore_merges", json!(true))).expect("a tokenizer");
    assert_eq!(tokenizer.encode("abc abc").expect("text"), [257, 220, 256, 66]);
    let text = tokenizer.to_json();
    assert_eq!(read(&text).expect("our own file"), tokenizer);
}

#[test]
fn added_tokens_are_checked() {
    let token = |id: u32, content: &str| json!({"id": id, "content": content, "special": true});
    let with = |tokens: Value| exchanged("/added_tokens", tokens);
    refused(&with(json!([token(259, "<x>"), token(261, "<y>")])), "without gaps");
    refused(&with(json!([token(5, "<x>")])), "both have id 5");
    refused(&with(json!([token(259, "<x>"), token(259, "<x>")])), "both have id 259");
    refused(
        &with(json!([token(258, "<|endoftext|>"), token(258, "<|endoftext|>")])),
        "id 258 is added twice",
    );
    refused(&with(json!([token(7, "<|endoftext|>")])), "has id 7, and id 258 in the vocabulary");
    refused(&with(json!([token(259, "")])), "is empty");
    refused(&with(json!([token(259, &"x".repeat(513))])), "has 513 bytes; at most 512");
    refused(&with(json!([{"id": 259, "content": "<x>", "lstrip": true}])), "\"<x>\" has lstrip");
    refused(&with(json!([{"id": 259, "content": "<x>", "color": 1}])), "unknown field `color`");

    // One that is not special is found in plain text, too; a longer one goes before a shorter one.
    let spaces = json!({"id": 259, "content": "    ", "special": false});
    let tokenizer =
        read(&with(json!([token(258, "<|endoftext|>"), spaces, token(260, "    <")]))).expect("added");
    assert_eq!(tokenizer.encode("a     <|endoftext|>").expect("text")[..3], [64, 259, 220]);
    assert_eq!(tokenizer.encode_with_special("    <<|endoftext|>b").expect("text"), [260, 258, 65]);
    assert_eq!(tokenizer.encode_with_special("<|endoftext|").expect("text").len(), 12);
    assert_eq!(read(&tokenizer.to_json()).expect("our own file"), tokenizer);
}

#[test]
fn a_template_may_put_tokens_before_a_text() {
    let special = json!({"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let with = |single: Value| {
        let template =
            json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}});
        exchanged(
            "/post_processor",
            json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}),
        )
    };
    let tokenizer = read(&with(json!([special, text]))).expect("a prefix");
    assert_eq!(tokenizer.prefix(), [258]);
    assert_eq!(tokenizer.encode_prompt("a<|endoftext|>").expect("text"), [258, 64, 258]);
    assert_eq!(tokenizer.encode_with_special("a").expect("text"), [64]);
    assert_eq!(read(&tokenizer.to_json()).expect("our own file"), tokenizer);
    assert_eq!(read(&with(json!([text]))).expect("nothing before it").prefix(), [0u32; 0]);
    refused(&with(json!([text, special])), "puts tokens after a text");
    refused(&with(json!([])), "puts tokens after a text");
    let strange = json!({"SpecialToken": {"id": "<x>", "type_id": 0}});
    refused(&with(json!([strange, text])), "names \"<x>\", which the vocabulary lacks");
    refused(
        &exchanged("/post_processor", json!({"type": "BertProcessing"})),
        "post_processor is BertProcessing",
    );
}

#[test]
fn a_text_may_be_composed_first() {
    let tokenizer = read(&exchanged("/normalizer", json!({"type": "NFC"}))).expect("composes");
    let composed = tokenizer.encode("\u{e9}ab").expect("text");
    assert_eq!(tokenizer.encode("e\u{301}ab").expect("text"), composed);
    let bytes = tokenizer.encode_bytes(b"\xffe\xcc\x81ab\xcc").expect("bytes");
    assert_eq!(tokenizer.decode(&bytes).expect("its ids"), b"\xff\xc3\xa9ab\xcc");
    assert_eq!(read(&tokenizer.to_json()).expect("our own file"), tokenizer);
    refused(&exchanged("/normalizer", json!({"type": "Lowercase"})), "normalizer is Lowercase");
}

#[test]
fn patterns_that_are_not_known_are_named() {
    let split = |regex: &str, behavior: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": false});
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        exchanged("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split, level]}))
    };
    for known in Split::ALL {
        if let Some(regex) = known.pattern() {
            assert_eq!(read(&split(regex, "Isolated")).expect("known").split(), Some(known));
        }
    }
    refused(&split(r"\w+", "Isolated"), r#"the pattern "\\w+"; those of gpt2, llama3"#);
    refused(&split(r"\w+", "Removed"), "behavior \"Isolated\"");
    refused(&exchanged("/pre_tokenizer", json!({"type": "Whitespace"})), "pre_tokenizer is Whitespace");
    refused(&exchanged("/pre_tokenizer", json!(null)), "pre_tokenizer is null");
    let twice = json!([{"type": "Split"}, {"type": "ByteLevel", "add_prefix_space": false}]);
    refused(&exchanged("/pre_tokenizer", json!({"type": "Sequence", "pretokenizers": twice})), "cuts twice");
    refused(&exchanged("/model/byte_fallback", json!(true)), "with model.byte_fallback the normalizers");
    refused(&exchanged("/model/dropout", json!(0.1)), "model.dropout is set");
}

#[test]
fn damage_to_a_byte_level_file_is_an_error_or_a_tokenizer() {
    let text = level().to_string();
    for end in (0..text.len()).step_by(7) {
        assert!(text.get(..end).is_none_or(|cut| read(cut).is_err()), "cut at {end}");
    }
    for place in (0..text.len()).step_by(5) {
        let mut bytes = text.clone().into_bytes();
        bytes[place] ^= 1 << (place % 7);
        if let Ok(Ok(tokenizer)) = String::from_utf8(bytes).map(|text| read(&text)) {
            let all: Vec<u8> = (0..=u8::MAX).collect();
            let ids = tokenizer.encode_bytes(&all).expect("any bytes");
            assert_eq!(tokenizer.decode(&ids).expect("its ids"), all);
        }
    }
}

/// A file of characters that fall back on bytes: two letters, a blank, and some merges.
fn falling_back() -> Value {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "ab", "\u{2581}a", "\u{2581}ab"].map(String::from));
    let vocabulary: Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let special =
        |id: u32, content: &str| json!({"id": id, "content": content, "normalized": true, "special": true});
    let replace =
        |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    json!({
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]},
        "decoder": {"type": "Sequence", "decoders": [replace("\u{2581}", " "), {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
            "merges": ["\u{2581} a", "a b", "\u{2581}a b", "\u{2581} ab"]},
    })
}

/// That file with one part exchanged.
fn fallen(path: &str, value: Value) -> String {
    let mut file = falling_back();
    let (parent, key) = path.rsplit_once('/').expect("a pointer");
    file.pointer_mut(parent).unwrap_or_else(|| panic!("{path} is not there"))[key] = value;
    file.to_string()
}

fn said_of(text: &str) -> (bool, String) {
    let error = read(text).expect_err("must be refused");
    (matches!(error, Error::Foreign { .. }), error.to_string())
}

#[test]
fn characters_fall_back_on_bytes() {
    let tokenizer = read(&falling_back().to_string()).expect("a tokenizer");
    let (blank, a, b, ab, blank_a, blank_ab) = (259, 260, 261, 262, 263, 264);
    let ids = |text: &str| tokenizer.encode(text).expect("any text");
    assert_eq!(ids("ab a"), [blank_ab, blank_a]);
    assert_eq!(ids(" b"), [blank, blank, b]);
    assert_eq!(ids("\u{e9}ab"), [blank, 3 + 0xC3, 3 + 0xA9, ab]);
    assert_eq!(ids("a</s>"), [blank_a, 3 + 0x3C, 3 + 0x2F, 3 + 0x73, 3 + 0x3E]);
    assert_eq!(ids(""), [0u32; 0]);
    // Special tokens that say so are looked for in normalized text, with the blank before it.
    assert_eq!(tokenizer.encode_with_special("<s>ab </s>a").expect("text"), [1, ab, 2, a]);
    assert_eq!(tokenizer.decode(&[blank_ab, blank_a, blank]).expect("ids"), b"ab a ");
    assert_eq!(tokenizer.decode(&[3 + 0x20, blank_a]).expect("ids"), b" a");
    assert_eq!(tokenizer.encode_bytes(b"\xffa").expect("bytes"), [blank, 3 + 0xFF, a]);
    let text = tokenizer.to_json();
    assert_eq!((read(&text).expect("our own file"), text), (tokenizer.clone(), tokenizer.to_json()));
}

#[test]
fn what_is_not_computed_of_a_fallback_is_foreign() {
    let space = |more: Value| {
        let mut file = falling_back();
        file["normalizer"] = Value::Null;
        file["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "\u{2581}", "split": false});
        for (key, value) in more.as_object().expect("a map") {
            file["pre_tokenizer"][key] = value.clone();
        }
        file.to_string()
    };
    let blanks = |more: Value| read(&space(more)).expect("a tokenizer").blanks();
    use crate::tokenizer::Blanks;
    assert_eq!(blanks(json!({})), Some(Blanks::Always));
    assert_eq!(blanks(json!({"prepend_scheme": "first"})), Some(Blanks::First));
    assert_eq!(blanks(json!({"add_prefix_space": false})), Some(Blanks::Never));
    for (text, words) in [
        (space(json!({"split": true})), "pre_tokenizer.split must be false"),
        (space(json!({"split": null})), "pre_tokenizer.split must be false"),
        (space(json!({"replacement": "_"})), "pre_tokenizer.replacement must be"),
        (space(json!({"prepend_scheme": "last"})), "prepend_scheme is \"last\""),
        (fallen("/normalizer", json!({"type": "NFKC"})), "normalizer is {\"type\":\"NFKC\"}"),
        (fallen("/pre_tokenizer", json!({"type": "Whitespace"})), "pre_tokenizer {\"type\":\"Whitespace\"}"),
        (fallen("/decoder", json!({"type": "Metaspace"})), "decoder is {\"type\":\"Metaspace\"}"),
        (fallen("/decoder", Value::Null), "decoder is null"),
        (fallen("/model/ignore_merges", json!(true)), "model.ignore_merges is true"),
        (fallen("/model/dropout", json!(0.5)), "model.dropout is set"),
        (fallen("/model/color", json!(1)), "unknown field `color`"),
        (
            fallen("/added_tokens", json!([{"id": 0, "content": "<unk>", "rstrip": true}])),
            "\"<unk>\" has rstrip",
        ),
    ] {
        let (foreign, said) = said_of(&text);
        assert!(foreign && said.contains(words), "{said:?} does not say {words:?}");
    }
    for (text, words) in [
        (fallen("/model/unk_token", json!("<x>")), "model.unk_token is <x>, which the vocabulary lacks"),
        (
            fallen("/model/merges", json!(["b a"])),
            "merge 0 joins \"b\" and \"a\" into what the vocabulary lacks",
        ),
        (fallen("/model/vocab/a", json!(400)), "without gaps"),
        (
            falling_back().to_string().replacen("<0x0A>", "<0x0Z>", 1),
            "byte 0x0A (written \"<0x0A>\") is missing",
        ),
        (fallen("/added_tokens", json!([{"id": 7, "content": "<unk>"}])), "has id 7, and id 0"),
    ] {
        let (foreign, said) = said_of(&text);
        assert!(!foreign && said.contains(words), "{said:?} does not say {words:?}");
    }
}

#[test]
fn damage_to_a_fallback_file_is_an_error_or_a_tokenizer() {
    let text = falling_back().to_string();
    for end in (0..text.len()).step_by(7) {
        assert!(text.get(..end).is_none_or(|cut| read(cut).is_err()), "cut at {end}");
    }
    for place in (0..text.len()).step_by(5) {
        let mut bytes = text.clone().into_bytes();
        bytes[place] ^= 1 << (place % 7);
        if let Ok(Ok(tokenizer)) = String::from_utf8(bytes).map(|text| read(&text)) {
            let all: Vec<u8> = (0..=u8::MAX).chain(*b" ab a  b ab").collect();
            let ids = tokenizer.encode_bytes(&all).expect("any bytes");
            assert_eq!(ids.iter().filter(|&&id| tokenizer.token(id).is_none()).count(), 0);
        }
    }
}
