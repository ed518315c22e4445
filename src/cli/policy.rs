//! `clonefs policy`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::args_policy::{PolicyCommand, PolicyGetArgs, PolicyListArgs, PolicySetArgs, PolicyUnsetArgs};
use super::failure::{Failure, Outcome, note};
use super::table::{Align, Table};
use super::{place, text};
use crate::client;
use crate::engine::policy::{BELOW, KEYS, Patch, Setting};

/// Runs one of the commands.
pub fn policy(command: PolicyCommand) -> Outcome {
    match command {
        PolicyCommand::Get(args) => get(args),
        PolicyCommand::Set(args) => set(args),
        PolicyCommand::Unset(args) => unset(args),
        PolicyCommand::List(args) => list(args),
    }
}

fn get(args: PolicyGetArgs) -> Outcome {
    let path = place::resolve(args.path.as_deref())?;
    let settings = client::policy(&path)?;
    if let Some(key) = &args.key {
        let Some(setting) = settings.get(key) else { return Err(Failure::Exit(super::failure::FAILED)) };
        return if args.json {
            text::print_json(&setting.value)
        } else {
            text::print(format!("{}\n", shown(&setting.value)))
        };
    }
    if args.json {
        return text::print_json(&settings);
    }
    text::print(settings_table(&settings))
}

fn settings_table(settings: &BTreeMap<String, Setting>) -> Vec<u8> {
    let mut table = Table::new(&[("SETTING", Align::Left), ("VALUE", Align::Left), ("FROM", Align::Left)]);
    for (name, Setting { value, from }) in settings {
        let from = text::name(from.as_ref(), text::on_terminal());
        table.row(vec![name.clone().into_bytes(), text::name(shown(value).as_ref(), text::on_terminal()), from]);
    }
    table.render()
}

/// A value as it is given on the command line.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn set(args: PolicySetArgs) -> Outcome {
    let path = place::resolve(Some(&args.path))?;
    let mut patch = Patch::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            patch.insert(name.to_owned(), value);
        }
    };
    add("deepen", args.deepen.map(|when| when.to_string().into()));
    add("order", args.order.map(|order| order.to_string().into()));
    add("keep-linked", args.keep_linked.map(Value::Bool));
    add("protect", args.protect.map(Value::Bool));
    add("rate", args.rate.map(|rate| rate.to_string().into()));
    add("clone-name", args.clone_name.map(|name| name.to_string().into()));
    add("names", args.names.map(|pattern| pattern.to_string().into()));
    add("snapshots", args.snapshots.map(|schedule| schedule.to_string().into()));
    if patch.is_empty() {
        return Err(Failure::Usage("say what to set, such as --deepen idle".into()));
    }
    Ok(client::set_policy(&path, &patch)?)
}

fn unset(args: PolicyUnsetArgs) -> Outcome {
    // What was set for a file that is not there any more can be taken back too, through the directory it was in.
    let there = args.path.ancestors().find(|path| !path.as_os_str().is_empty() && path.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("."));
    let gone = args.path.strip_prefix(there).unwrap_or(&args.path);
    let path = place::resolve(Some(there))?;
    let names: Vec<String> = match args.keys.is_empty() {
        true => KEYS.iter().map(|key| (*key).to_owned()).collect(),
        false => args.keys,
    };
    let mut patch: Patch = names.into_iter().map(|name| (name, Value::Null)).collect();
    if !gone.as_os_str().is_empty() {
        patch.insert(BELOW.to_owned(), gone.to_string_lossy().into());
    }
    Ok(client::set_policy(&path, &patch)?)
}

fn list(args: PolicyListArgs) -> Outcome {
    let path = place::resolve(args.path.as_deref())?;
    let directory = if path.is_dir() { path } else { parent_of(&path) };
    let listing = client::policies(&directory)?;
    if args.json {
        return text::print_json(&listing);
    }
    if let Some(trouble) = &listing.trouble {
        note(&format!("the last good policies are in force: {trouble}"));
    }
    let mut table = Table::new(&[("PATH", Align::Left), ("SETTING", Align::Left), ("VALUE", Align::Left)]);
    for (path, policy) in &listing.policies {
        let value = serde_json::to_value(policy).unwrap_or_default();
        for (name, value) in value.as_object().into_iter().flatten() {
            let cell = |text: &str| text::name(text.as_ref(), text::on_terminal());
            table.row(vec![cell(path), name.clone().into_bytes(), cell(&shown(value))]);
        }
    }
    text::print(table.render())
}

fn parent_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
}
