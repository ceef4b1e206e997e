//! `trainer export`: a model written for other tools.

use clap::ValueEnum;
use formats::Result;
use formats::checkpoint::{Directory, Dtype};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::Write;
use std::path::PathBuf;
use trainer::export::{Target, export};

/// What `trainer export` takes.
#[derive(clap::Args)]
pub struct Export {
    /// A run, its model, or any model directory
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What it is written for
    #[arg(long, value_enum)]
    to: To,
    /// How matrices are encoded; as they are by default
    #[arg(long, value_name = "f32|f16|bf16")]
    dtype: Option<Dtype>,
    /// The file (gguf) or directory (hf) to write; it must not exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    /// One file for llama.cpp, tokenizer included
    Gguf,
    /// A directory for Hugging Face's transformers
    Hf,
}

impl Export {
    /// Writes the model; what was written is told on standard error.
    pub fn run(&self) -> Result<()> {
        let directory = Directory::open(&self.model)?;
        let dtype = self.dtype.unwrap_or(directory.weights.dtype());
        let target = match self.to {
            To::Gguf => Target::Gguf,
            To::Hf => Target::HuggingFace,
        };
        // Draws itself on a terminal only.
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bytes} of {total_bytes}  {bytes_per_sec}  eta {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let written = export(&directory, target, dtype, &self.out, &mut |done, all| {
            bar.set_length(all);
            bar.set_position(done);
        });
        bar.finish_and_clear();
        let written = written?;
        let mut lines = format!(
            "wrote {}: {}, {} tensors, {dtype}\n",
            self.out.display(),
            written.architecture,
            written.tensors
        );
        written.notes.iter().for_each(|note| lines += &format!("note: {note}\n"));
        // The file is there whether or not anybody reads this.
        let _ = std::io::stderr().write_all(lines.as_bytes());
        Ok(())
    }
}
