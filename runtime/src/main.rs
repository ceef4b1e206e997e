//! The `runtime` command: text on stdout, everything else on stderr, an exit code for every kind of failure.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A panic is a bug of ours and has an exit code of its own; its message is already on stderr.
    let code = std::panic::catch_unwind(cli::main).unwrap_or(1);
    ExitCode::from(code)
}
