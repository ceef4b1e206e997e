//! Text from a model just saved, by the runtime its users will run.

use formats::{Error, Result};
use runtime::generate::{GenerateOptions, Generator, Pace};
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
    let (mut out, mut pace) = (std::io::stdout().lock(), Pace::default());
    let mut give = |part: &str, now: bool| match out
        .write_all(part.as_bytes())
        .and_then(|()| if now || pace.due() { out.flush() } else { Ok(()) })
    {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::write("standard output", error)),
        _ => Ok(()),
    };
    while let Some(token) = generator.next() {
        token?;
        text.push_str(generator.text());
        give(generator.text(), false)?;
    }
    text.push_str(generator.tail());
    give(generator.tail(), false)?;
    give("\n", true)
}

/// The runtime's command: beside this program if it stands there, else by name.
pub fn runtime() -> String {
    let beside = std::env::args().next().map(|program| Path::new(&program).with_file_name("runtime"));
    match beside {
        Some(path) if path.is_file() => path.display().to_string(),
        _ => "runtime".to_owned(),
    }
}
