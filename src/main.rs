//! The `clonefs` command.

use std::process::ExitCode;

use clonefs::daemon::mount::buffers::Allocator;

/// The system's, but for the memory that requests are read into.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    clonefs::cli::main()
}
