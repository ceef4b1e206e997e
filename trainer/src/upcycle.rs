//! A mixture of experts begun from a dense model (Komatsuzaki et al. 2022, section 3): every expert is a copy of the
//! dense feed-forward layer, everything else is taken as it is, and only the routers are new.
//!
//! With weights that sum to one, equal experts compute what the dense layer did: the loss before the first step is
//! the dense model's.

use crate::weights::read;
use formats::checkpoint::Directory;
use formats::config::{Config, Experts, RouterWeight};
use formats::layout::{FeedForward, Layout, ParameterId, Role};
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use std::path::Path;

/// Overwrites every weight of `arena` but the routers' with those of the dense model in `directory`.
pub fn copy(
    directory: &Path,
    tokenizer: &Tokenizer,
    config: &Config,
    layout: &Layout,
    arena: &mut [f32],
) -> Result<()> {
    let dense = Directory::open(directory)?;
    check(directory, &dense, tokenizer, config)?;
    for (id, parameter) in layout.iter() {
        if let Some(source) = source(layout, &dense.layout, id) {
            read(&dense.weights, &dense.layout, source, &mut arena[parameter.range()]);
        }
    }
    Ok(())
}

/// The dense model's parameter that one of the mixture's begins as; routers begin as they were drawn.
fn source(layout: &Layout, dense: &Layout, id: ParameterId) -> Option<ParameterId> {
    let parameter = layout.parameter(id);
    if matches!(parameter.role, Role::Router | Role::SelectionBias | Role::RouterNoise) {
        return None;
    }
    let same = |(_, other): &(ParameterId, &formats::layout::Parameter)| {
        other.role == parameter.role && other.layer == parameter.layer
    };
    dense.iter().find(same).map(|(id, _)| id)
}

/// Refuses a pair of models of which the one is not the other with copied feed-forward layers.
fn check(directory: &Path, dense: &Directory, tokenizer: &Tokenizer, config: &Config) -> Result<()> {
    let origin = || directory.display().to_string();
    let Some(experts) = &config.experts else {
        return Err(Error::Usage(
            "--upcycle makes a mixture of a dense model, and no experts are asked for\n  help: set --experts"
                .to_owned(),
        ));
    };
    check_experts(experts)?;
    if dense.layout.layers.iter().any(|layer| matches!(layer.feed_forward, FeedForward::Experts(_))) {
        return Err(Error::config(origin(), "experts", "a mixture", "a dense model to upcycle"));
    }
    if dense.tokenizer.as_ref().is_some_and(|known| known != tokenizer) {
        return Err(Error::config(
            origin(),
            "tokenizer",
            "another than the text's",
            "the same characters: train on the text that the dense model learned from",
        ));
    }
    let width = if experts.every == 1 { experts.width } else { config.feed_forward };
    let wanted =
        Config { experts: None, feed_forward: width, dropout: dense.config.dropout, ..config.clone() };
    if experts.width != dense.config.feed_forward {
        let expected = format!("{}, the width of the experts", experts.width);
        return Err(Error::config(origin(), "feed_forward", dense.config.feed_forward, expected));
    }
    refuse_another_shape(directory, &dense.config, &wanted, "the mixture's but for its experts")
}

/// Refuses a model in `directory` that is not what is `wanted`, naming each difference; `expected` says whose that is.
pub(crate) fn refuse_another_shape(
    directory: &Path,
    found: &Config,
    wanted: &Config,
    expected: &str,
) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let (found, wanted) = (described(found), described(wanted));
    let differences: Vec<String> = found
        .iter()
        .zip(&wanted)
        .filter(|(found, wanted)| found != wanted)
        .map(|((key, found), (_, wanted))| format!("{key} is {found}, expected {wanted}"))
        .collect();
    Err(Error::config(
        directory.display().to_string(),
        "config.json",
        format!("another shape ({})", differences.join("; ")),
        expected,
    ))
}

fn check_experts(experts: &Experts) -> Result<()> {
    if experts.active < 2 || experts.weight != RouterWeight::Renormalised {
        return Err(Error::config(
            "--upcycle",
            "active_experts",
            format!("{} with the weight {:?}", experts.active, experts.weight),
            "2 or more, renormalised: only weights that sum to one leave the dense model's loss as it is",
        ));
    }
    if experts.shared > 0 {
        return Err(Error::config(
            "--upcycle",
            "shared_experts",
            experts.shared,
            "0: a shared copy would add the dense layer's result a second time",
        ));
    }
    Ok(())
}

/// A config key by key, as text.
fn described(config: &Config) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(object)) = serde_json::to_value(config) else { return vec![] };
    object.into_iter().map(|(key, value)| (key, value.to_string())).collect()
}
