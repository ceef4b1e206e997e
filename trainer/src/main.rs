//! The `trainer` command: each subcommand is a room of `cli`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a bug of ours and has an exit code of its own; its message is already on stderr.
    std::panic::catch_unwind(cli::run).unwrap_or(ExitCode::from(1))
}
