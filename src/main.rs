//! The `clonefs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    clonefs::cli::main()
}
