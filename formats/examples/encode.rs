//! Encodes a text several times on one thread: how many tokens, and how fast at best.
//!
//!     encode TOKENIZER TEXT [ROUNDS]        a tokenizer.json or a directory with GPT-2's pair of files

use formats::tokenizer::Tokenizer;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, text, rounds @ ..] = arguments.as_slice() else {
        return Err("usage: encode TOKENIZER TEXT [ROUNDS]".into());
    };
    let rounds = rounds.first().map_or(Ok(1), |rounds| rounds.parse::<usize>())?;
    let tokenizer = Tokenizer::open(Path::new(tokenizer))?;
    let text = std::fs::read_to_string(text)?;
    let mut best = f64::INFINITY;
    let mut tokens = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        tokens = tokenizer.encode(&text)?.len();
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!(
        "{{\"tokens\": {tokens}, \"seconds\": {best:.6}, \"mb_per_s\": {:.1}}}",
        text.len() as f64 / best / 1e6
    );
    Ok(())
}
