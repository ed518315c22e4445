//! `clonefs completions` and `man`.

use std::path::Path;

use clap_complete::Shell;

use super::failure::Outcome;
use super::text;
use crate::error::Context;

/// Prints a completion script.
pub fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::definition(), "clonefs", &mut script);
    text::print(script)
}

/// Writes the manual pages.
pub fn man(dir: &Path) -> Outcome {
    std::fs::create_dir_all(dir).context("make directory", dir)?;
    clap_mangen::generate_to(super::definition(), dir).context("write the manual pages to", dir)?;
    Ok(())
}
