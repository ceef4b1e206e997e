//! A tokenizer as the text of a `tokenizer.json`.

use super::super::bpe::Bpe;
use super::super::{Kind, Split, Tokenizer};
use serde_json::{Value, json};

/// The whole text, ids in order.
pub(in crate::tokenizer) fn to_json(tokenizer: &Tokenizer) -> String {
    let tokens = (0..tokenizer.vocabulary() as u32).map(|id| match &tokenizer.kind {
        Kind::Characters(_) => {
            tokenizer.token(id).map(|token| String::from_utf8_lossy(token).into_owned()).unwrap_or_default()
        }
        Kind::Bytes(bpe) => bpe.written(id),
    });
    let tokens: Vec<String> = tokens.collect();
    let quoted = |token: &String| Value::String(token.clone());
    let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let null = Value::Null;
    let file = match &tokenizer.kind {
        Kind::Characters(_) => [null.clone(), null.clone(), null, json!({"type": "Fuse"})],
        Kind::Bytes(bpe) => [
            if bpe.composes() { json!({"type": "NFC"}) } else { null },
            pre_tokenizer(bpe.split(), &level),
            template(bpe, &tokens),
            level(bpe.split() == Split::Gpt2),
        ],
    };
    let [normalizer, pre_tokenizer, post_processor, decoder] = file;
    let (added, ignore_merges) = match &tokenizer.kind {
        Kind::Characters(_) => (Vec::new(), false),
        Kind::Bytes(bpe) => (added_tokens(bpe), bpe.ignore_merges()),
    };
    let entries = tokens.iter().enumerate().map(|(id, token)| format!("      {}: {id}", quoted(token)));
    let merges = tokenizer.merges().iter().map(|&(left, right)| {
        format!("      [{}, {}]", quoted(&tokens[left as usize]), quoted(&tokens[right as usize]))
    });
    format!(
        r#"{{
  "version": "1.0",
  "truncation": null,
  "padding": null,
  "added_tokens": {},
  "normalizer": {normalizer},
  "pre_tokenizer": {pre_tokenizer},
  "post_processor": {post_processor},
  "decoder": {decoder},
  "model": {{
    "type": "BPE",
    "dropout": null,
    "unk_token": null,
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": false,
    "byte_fallback": false,
    "ignore_merges": {ignore_merges},
    "vocab": {},
    "merges": {}
  }}
}}
"#,
        lines(added.into_iter().map(|token| format!("      {token}")), '[', ']'),
        lines(entries, '{', '}'),
        lines(merges, '[', ']'),
    )
}

/// Lines between brackets, or an empty pair of them.
fn lines(lines: impl Iterator<Item = String>, open: char, close: char) -> String {
    let lines: Vec<String> = lines.collect();
    match lines.is_empty() {
        true => format!("{open}{close}"),
        false => format!("{open}\n{}\n    {close}", lines.join(",\n")),
    }
}

fn pre_tokenizer(split: Split, level: &dyn Fn(bool) -> Value) -> Value {
    match split.pattern() {
        None => level(false),
        Some(_) if split == Split::Gpt2 => level(true),
        Some(regex) => json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            level(false),
        ]}),
    }
}

/// The post-processor that puts the prefix before a text.
fn template(bpe: &Bpe, tokens: &[String]) -> Value {
    let prefix: Vec<(&String, u32)> = bpe.prefix().iter().map(|&id| (&tokens[id as usize], id)).collect();
    if prefix.is_empty() {
        return Value::Null;
    }
    let before = prefix.iter().map(|(name, _)| json!({"SpecialToken": {"id": name, "type_id": 0}}));
    let single: Vec<Value> = before.chain([json!({"Sequence": {"id": "A", "type_id": 0}})]).collect();
    let again = single.iter().cloned().map(|mut step| {
        for body in step.as_object_mut().into_iter().flat_map(|step| step.values_mut()) {
            body["type_id"] = json!(1);
            if body["id"] == "A" {
                body["id"] = json!("B");
            }
        }
        step
    });
    let pair: Vec<Value> = single.iter().cloned().chain(again).collect();
    let special =
        prefix.iter().map(|(name, id)| ((*name).clone(), json!({"id": name, "ids": [id], "tokens": [name]})));
    json!({"type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": Value::Object(special.collect())})
}

fn added_tokens(bpe: &Bpe) -> Vec<Value> {
    let added = bpe.added().iter().map(|added| {
        json!({
            "id": added.id,
            "content": bpe.written(added.id),
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": added.special,
        })
    });
    added.collect()
}
