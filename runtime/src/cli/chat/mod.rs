//! `runtime chat`: a plain conversation, line by line.
//!
//! A turn is the user's prefix, a line and the assistant's prefix; the answer goes on from there until the model ends the
//! text, begins to speak for the user, or has given enough. What the session has computed of the past is kept: only what
//! is new is fed. When the context is full the oldest turns are forgotten whole, which stderr says once.

mod conversation;

use super::input;
use super::interrupt::Attention;
use super::output::{Halt, Outcome, Output, note};
use super::sampling::SamplingFlags;
use super::{Opening, SessionFlags};
use clap::Args;
use conversation::Conversation;
use formats::tokenizer::Tokenizer;
use formats::{Error, Result};
use runtime::generate::{AtContext, FinishReason, GenerateOptions, Generator};
use runtime::model::Model;
use runtime::session::Session;
use std::io::{self, BufRead, IsTerminal, Read, Write};

/// Longest line that is read.
const MOST_BYTES: u64 = 1 << 20;
/// The part of the context that is kept for an answer, at least.
const ANSWER_PART: usize = 4;

/// What `runtime chat` takes.
#[derive(Args, Debug)]
pub struct Chat {
    #[command(flatten)]
    opening: Opening,
    /// A text before the conversation, never forgotten
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// What stands before each of your lines; an answer ends before it
    #[arg(
        long,
        alias = "user_prefix",
        value_name = "TEXT",
        default_value = "User: ",
        allow_hyphen_values = true
    )]
    user_prefix: String,
    /// What stands before each answer
    #[arg(
        long,
        alias = "assistant_prefix",
        value_name = "TEXT",
        default_value = "Assistant:",
        allow_hyphen_values = true
    )]
    assistant_prefix: String,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    session: SessionFlags,
}

impl Chat {
    /// Runs the command.
    pub fn run(&self) -> Outcome {
        let model = self.opening.open()?;
        let tokenizer = input::tokenizer(&model, &self.opening.model)?;
        let options = self.options(&model);
        options.sampling.validate()?;
        let mut session = model.session_with(&self.session.options())?;
        let mut conversation = Conversation::new(self.beginning(&model, tokenizer)?, session.context())?;
        // What cannot be said at all is told before anybody has typed a line.
        self.turn(tokenizer, "", true)?;
        note(format_args!("seed: {}", options.seed));

        let attention = Attention::watch(session.canceller());
        let reserve = options.max_tokens.min(session.context() / ANSWER_PART).max(1);
        let (mut output, mut number, mut told) = (Output::new(), 0, false);
        while let Some(line) = next_line(&attention)? {
            if line.trim().is_empty() {
                continue;
            }
            let asked = self
                .turn(tokenizer, &line, conversation.is_new())
                .and_then(|turn| conversation.ask(turn, reserve));
            match asked {
                Err(error @ Error::Usage(_)) => {
                    note(format_args!("error: {error}"));
                    continue;
                }
                Err(error) => return Err(error.into()),
                Ok(forgotten) if forgotten > 0 && !told => {
                    told = true;
                    note(format_args!(
                        "the context of {} ids is full: the oldest turns are forgotten from here on",
                        session.context()
                    ));
                }
                Ok(_) => {}
            }
            attention.answering();
            let turn = GenerateOptions { seed: options.seed.wrapping_add(number), ..options.clone() };
            let answer = self.answer(&mut session, &conversation, &turn, &mut output)?;
            number += 1;
            conversation.answered(&kept(tokenizer, &answer, &turn)?);
        }
        Ok(0)
    }

    fn options(&self, model: &Model) -> GenerateOptions {
        let mut options = self.sampling.options(model);
        options.at_context = AtContext::Stop;
        let user = self.user_prefix.trim();
        if !user.is_empty() {
            options.stop.push(format!("\n{user}"));
        }
        options
    }

    /// The ids before the first turn.
    fn beginning(&self, model: &Model, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut ids = tokenizer.prefix().to_vec();
        if ids.is_empty() {
            ids.extend(model.generation().bos_token_id);
        }
        if let Some(system) = &self.system {
            ids.extend(tokenizer.encode_with_special(&format!("{system}\n"))?);
        }
        Ok(ids)
    }

    /// The ids of a question. Special tokens are recognised in the prefixes and are text in the line; a blank between
    /// the prefix and the line is merged with the line, as it is in the texts that models learn from.
    fn turn(&self, tokenizer: &Tokenizer, line: &str, first: bool) -> Result<Vec<u32>> {
        let Chat { user_prefix, assistant_prefix, .. } = self;
        let seam = if first { "" } else { "\n" };
        let (before, blank) = user_prefix.split_at(user_prefix.trim_end().len());
        let mut ids = tokenizer.encode_with_special(&format!("{seam}{before}"))?;
        ids.extend(tokenizer.encode(&format!("{blank}{line}\n"))?);
        ids.extend(tokenizer.encode_with_special(assistant_prefix)?);
        Ok(ids)
    }

    /// Generates an answer to what was asked last, and writes it as it comes.
    fn answer(
        &self,
        session: &mut Session,
        conversation: &Conversation,
        options: &GenerateOptions,
        output: &mut Output,
    ) -> Result<Vec<u32>, Halt> {
        let ids = conversation.ids();
        let known = session.ids().iter().zip(&ids).take_while(|(held, wanted)| held == wanted).count();
        // The logits after the last id are not kept, so that one is always fed.
        let known = known.min(ids.len() - 1);
        session.rewind(known)?;
        let mut generator = Generator::new(session, &ids[known..], options)?;
        let (mut answer, mut begun) = (Vec::new(), false);
        let mut say = |text: &str, output: &mut Output| -> Result<(), Halt> {
            // The blank after a prefix belongs to the form of a conversation, not to the answer.
            let text = if begun { text } else { text.trim_start() };
            begun |= !text.is_empty();
            output.write(text.as_bytes())?;
            output.flush()
        };
        while let Some(token) = generator.next() {
            answer.push(token.map_err(|error| self.opening.blame(error))?.id);
            say(generator.text(), output)?;
        }
        say(generator.tail(), output)?;
        output.write(b"\n")?;
        output.flush()?;
        match generator.finish_reason() {
            Some(FinishReason::Context) => note("the context is full: the answer ends here"),
            Some(FinishReason::Cancelled) => note("stopped"),
            _ => {}
        }
        Ok(answer)
    }
}

/// The ids of an answer without the stop string that ended it: a token that only began with the answer's end is encoded
/// again in part.
fn kept(tokenizer: &Tokenizer, answer: &[u32], options: &GenerateOptions) -> Result<Vec<u32>> {
    let bytes = tokenizer.decode(answer)?;
    let place = |stop: &String| bytes.windows(stop.len()).position(|window| window == stop.as_bytes());
    let Some(end) = options.stop.iter().filter_map(place).min() else { return Ok(answer.to_vec()) };
    let (mut ids, mut length) = (Vec::new(), 0);
    for &id in answer {
        let longer = length + tokenizer.token(id).map_or(0, <[u8]>::len);
        if longer > end {
            break;
        }
        length = longer;
        ids.push(id);
    }
    if let Ok(rest) = std::str::from_utf8(&bytes[length..end]) {
        ids.extend(tokenizer.encode(rest)?);
    }
    Ok(ids)
}

/// The next line without its end, or nothing at the end of the input.
fn next_line(attention: &Attention) -> Result<Option<String>> {
    let stdin = io::stdin();
    let terminal = stdin.is_terminal();
    let prompt = |text: &str| {
        if terminal {
            // Where stderr is closed nobody sees a prompt, and nobody misses it.
            let _ = io::stderr().write_all(text.as_bytes()).and_then(|()| io::stderr().flush());
        }
    };
    let refuse = |problem: String, help: &str| Error::file("standard input", problem, help);
    loop {
        prompt("> ");
        attention.waiting();
        let mut bytes = Vec::new();
        let read = stdin.lock().take(MOST_BYTES).read_until(b'\n', &mut bytes);
        read.map_err(|error| refuse(format!("cannot be read: {error}"), "type or pipe lines of text"))?;
        if bytes.is_empty() {
            prompt("\n");
            return Ok(None);
        }
        if bytes.len() as u64 == MOST_BYTES {
            return Err(refuse(format!("has a line of {MOST_BYTES} bytes or more"), "say less at once"));
        }
        match String::from_utf8(bytes) {
            Ok(line) => return Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned())),
            Err(_) => note("error: this line is not UTF-8 text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_up_to_what_stopped_it() {
        let tokenizer = Tokenizer::bytes();
        let ids = |text: &str| tokenizer.encode(text).expect("any text");
        let options =
            GenerateOptions { stop: vec!["\nUser:".into(), "!".into()], ..GenerateOptions::default() };
        for (said, rest) in [("ok\nUser:", "ok"), ("a\nUse", "a\nUse"), ("é!\nUser:", "é"), ("", "")] {
            assert_eq!(kept(&tokenizer, &ids(said), &options).expect("bytes"), ids(rest), "{said:?}");
        }
    }
}
