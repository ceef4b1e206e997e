//! A tokenizer as the text of a `tokenizer.json`.

use super::super::lexicon::Lexicon;
use super::super::special::Added;
use super::super::{Kind, Split, Tokenizer};
use serde_json::{Value, json};

/// What differs from kind to kind.
struct Form {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    added: Vec<Value>,
    unknown: Option<u32>,
    ignore_merges: bool,
    byte_fallback: bool,
}

/// The whole text, ids in order.
pub(in crate::tokenizer) fn to_json(tokenizer: &Tokenizer) -> String {
    let tokens = (0..tokenizer.vocabulary() as u32).map(|id| match &tokenizer.kind {
        Kind::Characters(_) => {
            tokenizer.token(id).map(|token| String::from_utf8_lossy(token).into_owned()).unwrap_or_default()
        }
        Kind::Bytes(bpe) => bpe.written(id),
        Kind::Fallback(fallback) => fallback.written(id),
    });
    let tokens: Vec<String> = tokens.collect();
    let quoted = |token: &String| Value::String(token.clone());
    let form = form(tokenizer, &tokens);
    let Form { normalizer, pre_tokenizer, decoder, added, ignore_merges, byte_fallback, .. } = form;
    let unknown = form.unknown.map_or(Value::Null, |id| quoted(&tokens[id as usize]));
    let post_processor = template(tokenizer.prefix(), &tokens);
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
    "unk_token": {unknown},
    "continuing_subword_prefix": null,
    "end_of_word_suffix": null,
    "fuse_unk": {byte_fallback},
    "byte_fallback": {byte_fallback},
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

fn form(tokenizer: &Tokenizer, tokens: &[String]) -> Form {
    let level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let listed = |lexicon: &Lexicon, normalized: &dyn Fn(u32) -> bool| -> Vec<Value> {
        let listed = |added: &Added| added_token(*added, &tokens[added.id as usize], normalized(added.id));
        lexicon.added().iter().map(listed).collect()
    };
    match &tokenizer.kind {
        Kind::Characters(_) => Form {
            normalizer: Value::Null,
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Fuse"}),
            added: Vec::new(),
            unknown: None,
            ignore_merges: false,
            byte_fallback: false,
        },
        Kind::Bytes(bpe) => Form {
            normalizer: if bpe.composes() { json!({"type": "NFC"}) } else { Value::Null },
            pre_tokenizer: pre_tokenizer(bpe.split(), &level),
            decoder: level(bpe.split() == Split::Gpt2),
            added: listed(bpe.lexicon(), &|_| false),
            unknown: None,
            ignore_merges: bpe.ignore_merges(),
            byte_fallback: false,
        },
        Kind::Fallback(fallback) => {
            let [normalizer, pre_tokenizer] = super::fallback::written(fallback.blanks());
            Form {
                normalizer,
                pre_tokenizer,
                decoder: super::fallback::decoder(fallback.strips()),
                added: listed(fallback.lexicon(), &|id| fallback.is_normalized(id)),
                unknown: fallback.unknown(),
                ignore_merges: false,
                byte_fallback: true,
            }
        }
    }
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
fn template(prefix: &[u32], tokens: &[String]) -> Value {
    let prefix: Vec<(&String, u32)> = prefix.iter().map(|&id| (&tokens[id as usize], id)).collect();
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

fn added_token(added: Added, content: &str, normalized: bool) -> Value {
    json!({
        "id": added.id,
        "content": content,
        "single_word": false,
        "lstrip": false,
        "rstrip": false,
        "normalized": normalized,
        "special": added.special,
    })
}
