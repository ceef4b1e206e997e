//! Runs what `trainer` wrote: opens a model directory by mapping it, and generates.
//!
//! Small, synchronous, without gradients, without CUDA, without global state. An embedder switches the default
//! feature `cli` off: it belongs to the `runtime` command alone.
//!
//! ```no_run
//! use runtime::generate::{GenerateOptions, Generator};
//! use runtime::model::Model;
//!
//! # fn main() -> runtime::Result<()> {
//! let model = Model::open("runs/zero".as_ref())?;
//! let prompt = match model.tokenizer() {
//!     Some(tokenizer) => tokenizer.encode_prompt("ROMEO:")?,
//!     None => vec![0],
//! };
//! let mut session = model.session()?;
//! let mut generator = Generator::new(&mut session, &prompt, &GenerateOptions::of(&model))?;
//! while let Some(token) = generator.next() {
//!     token?;
//!     print!("{}", generator.text());
//! }
//! println!("{}", generator.tail());
//! # Ok(())
//! # }
//! ```
//!
//! What the outside may use, from what a program meets first to what it may never need:
//!
//! - [`model`]: a [`Model`](model::Model) is mapped, immutable, `Send + Sync` and cheap to clone; opened from a
//!   directory or from bytes in memory
//! - [`session`]: a [`Session`](session::Session) owns the cache of one conversation: feed ids, read logits, rewind,
//!   fork, and cancel from another thread
//! - [`generate`]: a [`Generator`](generate::Generator) is an iterator of tokens that lends their text, with stop
//!   strings, a window that slides past the context, and a reason for its end
//! - [`sampler`]: logits to a [`Token`](sampler::Token), filtered in Hugging Face's order
//! - [`score`]: the log-probability of every id of a text
//! - [`random`]: counter-based random numbers; the sampler and the trainer draw from them
//! - [`simd`]: the table of routines that fits this processor; the trainer computes with it too
//!
//! Sessions of one model take turns on its threads; they may live on different threads of the program. Every
//! failure is an [`Error`] that says what was found, where, and what to do; no file, option or id panics.

mod attention;
mod cache;
pub mod census;
mod compact;
pub mod generate;
mod heads;
pub mod load;
mod machine;
mod memory;
pub mod model;
pub mod random;
pub mod residency;
pub mod rotary;
pub mod sampler;
pub mod score;
pub mod session;
mod shortlist;
pub mod simd;
pub mod team;

pub use formats::{Error, Result};
