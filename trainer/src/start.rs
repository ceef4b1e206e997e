//! What a run begins from: its recipe settled, and its state restored from a checkpoint or drawn afresh.

use crate::backend::choice::all_threads;
use crate::data::{Data, TokenizerSource, open_tokenizer};
use crate::options::{Recipe, Request, refuse_differences};
use crate::presets;
use crate::random::Generator;
use crate::run::Run;
use crate::state::TrainState;
use crate::{finetune, upcycle};
use formats::tokenizer::Tokenizer;
use formats::{Config, Error, Layout, Result, checkpoint};
use runtime::team::Crew;
use std::path::Path;

/// What is to be done: a new run's recipe, or a recorded one's with the changes it allows.
///
/// The recorded recipe, if there is one, comes with it.
pub(crate) fn settle(
    request: &Request,
    run: Option<&Run>,
    out: &Path,
    resume: bool,
) -> Result<(Recipe, Option<Recipe>)> {
    if !resume && Run::exists(out) {
        return Err(Error::Usage(format!(
            "{} holds a run\n  help: pass --resume to continue it, or choose another --out",
            out.display()
        )));
    }
    let recorded = run.map(Run::recorded).transpose()?.flatten();
    let recipe = match &recorded {
        Some(recorded) => request.resume(recorded, out)?,
        None if request.names_a_model() => request.begin(checkpoint::model_config)?,
        None => {
            let place =
                if resume { format!("{} holds no run yet, and ", out.display()) } else { String::new() };
            return Err(Error::Usage(format!(
                "{place}there is no model to train\n  help: name one with --preset ({}), --config FILE or --from DIR",
                presets::names()
            )));
        }
    };
    if recipe.data.is_empty() {
        return Err(Error::Usage(
            "there is no text to learn from\n  help: name one with --data TEXT".to_owned(),
        ));
    }
    Ok((Recipe { options: recipe.options.settled(), ..recipe }, recorded))
}

/// The run's tokenizer, if it does not follow from the text: that of the run's newest `checkpoint`, where it has one,
/// so that a resumed run does not need the file it began with; another file that is asked for must hold the same.
pub(crate) fn tokenizer(
    recipe: &Recipe,
    recorded: Option<&Recipe>,
    checkpoint: Option<&Path>,
    run: &Path,
) -> Result<Option<Tokenizer>> {
    let source = &recipe.options.tokenizer;
    let (TokenizerSource::File(asked), Some(checkpoint)) = (source, checkpoint) else {
        return source.given();
    };
    let kept = open_tokenizer(checkpoint)?;
    if recorded.is_some_and(|recorded| recorded.options.tokenizer != *source)
        && open_tokenizer(asked)? != kept
    {
        return Err(Error::config(
            run.display().to_string(),
            "tokenizer",
            format!("{} with other tokens", asked.display()),
            "the tokenizer the run was started with; other runs need another --out",
        ));
    }
    Ok(Some(kept))
}

/// The state of a checkpoint, refused if it is of another run.
pub(crate) fn restore(
    path: &Path,
    run: &Run,
    recipe: &Recipe,
    data: &Data,
    layout: &Layout,
) -> Result<TrainState> {
    // Another text may change the vocabulary and with it the parameter count: say the cause, not the effect.
    let stored = TrainState::text_of(path)?;
    if stored != *data.fingerprint() {
        return Err(Error::config(
            run.path().display().to_string(),
            "data",
            data.fingerprint(),
            format!("{stored}, the text the run was started with"),
        ));
    }
    let state = TrainState::open(path, layout.parameters())?;
    refuse_differences(recipe, &state.options, run.path())?;
    Ok(state)
}

/// The state before the first step.
pub(crate) fn fresh(
    generator: &mut Generator,
    recipe: &Recipe,
    data: &Data,
    layout: &Layout,
    config: &Config,
    tokenizer: &Tokenizer,
) -> Result<TrainState> {
    let options = &recipe.options;
    let zero = vec![0.0; layout.parameters()];
    let mut weights = zero.clone();
    let mut crew = Crew::new(options.threads.unwrap_or_else(all_threads))?;
    generator.initialise(&mut crew, &mut weights, layout, config, options.init);
    if let Some(dense) = &recipe.upcycle {
        upcycle::copy(dense, tokenizer, config, layout, &mut weights)?;
    }
    if let Some(model) = &recipe.from {
        finetune::copy(model, config, layout, &mut weights)?;
    }
    Ok(TrainState {
        step: 0,
        weights,
        first_moment: zero.clone(),
        second_moment: zero,
        generator: generator.state(),
        best_validation: None,
        text: data.fingerprint().clone(),
        options: recipe.fixed()?,
    })
}
