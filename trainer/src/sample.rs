//! Text from a model just saved, by the runtime its users will run.

use formats::{Error, Result};
use runtime::generate::{GenerateOptions, Generator};
use runtime::model::Model;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// Writes `tokens` tokens that follow the start token to standard output, as they are drawn, and adds them to `text`.
///
/// A reader that leaves ends only the writing.
pub fn write(model: &Path, tokens: usize, seed: u64, text: &mut String) -> Result<()> {
    let model = Model::open(model)?;
    let mut session = model.session()?;
    let options = GenerateOptions { max_tokens: tokens, seed, ..GenerateOptions::of(&model) };
    let mut generator = Generator::new(&mut session, &[], &options)?;
    let mut out = std::io::stdout().lock();
    let mut give = |part: &str| match out.write_all(part.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::write("standard output", error)),
        _ => Ok(()),
    };
    while let Some(token) = generator.next() {
        token?;
        text.push_str(generator.text());
        give(generator.text())?;
    }
    text.push_str(generator.tail());
    give(generator.tail())?;
    give("\n")
}

/// The runtime's command: beside this program if it stands there, else by name.
pub fn runtime() -> String {
    let beside = std::env::args().next().map(|program| Path::new(&program).with_file_name("runtime"));
    match beside {
        Some(path) if path.is_file() => path.display().to_string(),
        _ => "runtime".to_owned(),
    }
}
