//! The `trainer` command: each subcommand is a room of `cli`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
