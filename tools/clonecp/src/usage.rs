//! Mistakes on the command line, told as `getopt` programs tell them: exit status 1 and where to find help.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::unix::ffi::OsStrExt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::quote;
use crate::report::{Failed, PROGRAM, say};

/// Reports a mistake and says where help is.
pub fn mistake(message: impl Display) -> Failed {
    say(message);
    hint()
}

/// Says where help is.
pub fn hint() -> Failed {
    eprintln!("Try '{PROGRAM} --help' for more information.");
    Failed::Here
}

/// Finds `word` among `choices`, where a beginning that fits one value only is enough.
pub fn choose<T: Copy + PartialEq>(option: &str, word: &OsStr, choices: &[(&str, T)]) -> Result<T, Failed> {
    let bytes = word.as_bytes();
    if let Some(&(_, value)) = choices.iter().find(|(name, _)| name.as_bytes() == bytes) {
        return Ok(value);
    }
    let mut fitting = choices.iter().filter(|(name, _)| name.as_bytes().starts_with(bytes)).map(|&(_, value)| value);
    let problem = match fitting.next() {
        Some(value) if fitting.all(|other| other == value) => return Ok(value),
        Some(_) => "ambiguous",
        None => "invalid",
    };
    say(format_args!("{problem} argument {} for {}", quote::locale(word), quote::locale(option)));
    eprint!("Valid arguments are:");
    let mut last = None;
    for &(name, value) in choices {
        let separator = if last == Some(value) { ", " } else { "\n  - " };
        eprint!("{separator}{}", quote::locale(name));
        last = Some(value);
    }
    eprintln!();
    Err(hint())
}

/// Reports what clap found wrong with `words` (the command line without the program's name).
pub fn explain(error: &clap::Error, words: &[OsString], long_options: &[&str]) -> Failed {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let long_name = argument.strip_prefix("--").map(|rest| rest.split([' ', '=', '[']).next().unwrap_or(rest));
    match error.kind() {
        ErrorKind::UnknownArgument => unknown(argument, words, long_options),
        ErrorKind::TooManyValues => {
            mistake(format_args!("option '--{}' doesn't allow an argument", long_name.unwrap_or_default()))
        }
        // An option that lacks its value can only be the last word.
        ErrorKind::InvalidValue | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues | ErrorKind::NoEquals => {
            match words.last().map(|word| word.to_string_lossy()) {
                Some(word) if !word.starts_with("--") => {
                    let letter = word.chars().next_back().unwrap_or('?');
                    mistake(format_args!("option requires an argument -- '{letter}'"))
                }
                _ => mistake(format_args!("option '--{}' requires an argument", long_name.unwrap_or_default())),
            }
        }
        _ => mistake(error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ")),
    }
}

/// An option that there is not, or a beginning that fits several.
fn unknown(argument: &str, words: &[OsString], long_options: &[&str]) -> Failed {
    let Some(name) = argument.strip_prefix("--") else {
        let letter = argument.trim_start_matches('-').chars().next().unwrap_or('?');
        return mistake(format_args!("invalid option -- '{letter}'"));
    };
    let name = name.split('=').next().unwrap_or(name);
    let as_written = words
        .iter()
        .map(|word| word.to_string_lossy())
        .find(|word| word.strip_prefix("--").is_some_and(|w| w.split('=').next() == Some(name)))
        .unwrap_or_else(|| argument.into());
    let fitting: Vec<String> =
        long_options.iter().filter(|o| o.starts_with(name)).map(|option| format!("'--{option}'")).collect();
    if fitting.len() > 1 {
        mistake(format_args!("option '{as_written}' is ambiguous; possibilities: {}", fitting.join(" ")))
    } else {
        mistake(format_args!("unrecognized option '{as_written}'"))
    }
}
