//! How experts are used: after a generation, and over a text.

use super::output::note;
use formats::checkpoint::source;
use formats::{Config, Error, Result};
use runtime::census::{LayerCensus, census};
use runtime::load;
use runtime::model::Model;
use runtime::session::Session;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// What tokens are told apart by: the first character of their text.
const CLASSES: [&str; 7] = ["lower", "upper", "digit", "space", "newline", "punctuation", "other"];
/// Longest text that is looked at.
const MOST_TEXT: u64 = 1 << 30;
/// Pairs of experts that a line names.
const PAIRS: usize = 3;

/// A config's experts in a few words.
pub(super) fn sentence(config: &Config) -> String {
    let Some(experts) = &config.experts else { return "none".into() };
    let mut text = format!("{} in every layer, {} active", experts.count, experts.active);
    if experts.every > 1 {
        text = format!("{} in every layer of {}, {} active", experts.count, experts.every, experts.active);
    }
    if experts.shared > 0 {
        text += &format!(", {} shared", experts.shared);
    }
    text
}

/// Which tokens of a text go to which experts, layer by layer.
pub(super) fn of_text(model: &Path, text: &Path) -> Result<Vec<LayerCensus>> {
    let opened = Model::open(model)?;
    if opened.config().experts.is_none() {
        return Err(Error::Usage(format!(
            "{} has no experts, so --data has nothing to tell\n  help: `runtime score` gives a text's loss",
            model.display()
        )));
    }
    let tokenizer = opened.require_tokenizer()?;
    let ids = tokenizer.encode(&source::read_text(text, MOST_TEXT)?)?;
    let class = |id: u32| {
        let bytes = tokenizer.decode(&[id]).unwrap_or_default();
        match String::from_utf8_lossy(&bytes).chars().next() {
            Some('\n') => 4,
            Some(c) if c.is_whitespace() => 3,
            Some(c) if c.is_lowercase() => 0,
            Some(c) if c.is_uppercase() => 1,
            Some(c) if c.is_numeric() => 2,
            Some(c) if c.is_ascii_punctuation() => 5,
            _ => 6,
        }
    };
    census(&mut opened.session()?, &ids, CLASSES.len(), &class)
}

/// The pairs of experts that one token chose most often, most often first.
fn pairs(census: &LayerCensus) -> Vec<(u64, usize, usize)> {
    let experts = census.together.len();
    let mut pairs: Vec<(u64, usize, usize)> = (0..experts)
        .flat_map(|a| (a + 1..experts).map(move |b| (a, b)))
        .map(|(a, b)| (census.together[a][b], a, b))
        .filter(|(count, _, _)| *count > 0)
        .collect();
    pairs.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    pairs
}

/// A few lines a layer.
pub(super) fn lines(censuses: &[LayerCensus]) -> String {
    let mut text = String::new();
    for census in censuses {
        let counts = census.counts();
        let percent = |counts: &[f64]| {
            load::shares(counts).map(|share| format!("{:5.1}", 100.0 * share)).collect::<Vec<_>>().join(" ")
        };
        let _ = writeln!(
            text,
            "layer {}: load entropy {:.3}, maxvio {:.3}, {:.3} bits of a choice tell the token's class",
            census.layer,
            load::entropy(&counts),
            load::max_violation(&counts),
            census.mutual_information()
        );
        let _ = writeln!(text, "  {:<12} {}", "all, %", percent(&counts));
        for (name, class) in
            CLASSES.iter().zip(&census.by_class).filter(|(_, class)| class.iter().any(|c| *c > 0))
        {
            let wide: Vec<f64> = class.iter().map(|count| *count as f64).collect();
            let _ = writeln!(text, "  {name:<12} {}", percent(&wide));
        }
        let together: Vec<String> =
            pairs(census).iter().take(PAIRS).map(|(count, a, b)| format!("{a}+{b} ({count})")).collect();
        if !together.is_empty() {
            let _ = writeln!(text, "  most often together: {}", together.join(", "));
        }
    }
    text
}

/// The same as JSON.
pub(super) fn object(censuses: &[LayerCensus]) -> Value {
    let layer = |census: &LayerCensus| {
        let counts = census.counts();
        let classes: serde_json::Map<String, Value> = CLASSES
            .iter()
            .zip(&census.by_class)
            .map(|(name, class)| (name.to_string(), json!(class)))
            .collect();
        json!({
            "layer": census.layer,
            "load": load::shares(&counts).collect::<Vec<_>>(),
            "load_entropy": load::entropy(&counts),
            "max_violation": load::max_violation(&counts),
            "mutual_information_bits": census.mutual_information(),
            "by_class": classes,
            "together": census.together,
        })
    };
    censuses.iter().map(layer).collect()
}

/// One line a layer, and what a budget came to. Nothing of a dense model.
pub(super) fn tell(model: &Model, session: &Session) {
    for (layer, counts) in session.expert_stats().counts.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        let wide: Vec<f64> = counts.iter().map(|count| *count as f64).collect();
        let touched = counts.iter().filter(|count| **count > 0).count();
        let shares: Vec<String> = load::shares(&wide).map(|share| format!("{:.1}", 100.0 * share)).collect();
        note(format_args!(
            "experts of layer {layer}: {touched} of {} touched, load entropy {:.3}, maxvio {:.3}, % of choices {}",
            counts.len(),
            load::entropy(&wide),
            load::max_violation(&wide),
            shares.join(" ")
        ));
    }
    if let Some(residency) = model.residency() {
        let choices = (residency.hits + residency.misses).max(1);
        note(format_args!(
            "expert budget: {} of {} bytes in use, at most {}; {:.1} % of {choices} choices were there, {} bytes read",
            residency.bytes,
            residency.budget,
            residency.most,
            100.0 * residency.hits as f64 / choices as f64,
            residency.read
        ));
    }
}
