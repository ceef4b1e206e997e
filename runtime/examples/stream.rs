//! Opens the model directory given as the first argument and streams a continuation of the second.

use runtime::generate::{GenerateOptions, Generator};
use runtime::model::Model;
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let model = Model::open(arguments.next().ok_or("usage: stream MODEL [PROMPT]")?.as_ref())?;
    let prompt = arguments.next().unwrap_or_default();
    let prompt = model.require_tokenizer()?.encode_prompt(&prompt)?;

    let mut session = model.session()?;
    let mut generator = Generator::new(&mut session, &prompt, &GenerateOptions::of(&model))?;
    while let Some(token) = generator.next() {
        token?;
        print!("{}", generator.text());
        std::io::stdout().flush()?;
    }
    println!("{}", generator.tail());
    Ok(())
}
