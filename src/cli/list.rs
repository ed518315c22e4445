//! `clonefs list`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::args::ListArgs;
use super::failure::Outcome;
use super::table::{Align, Table};
use super::{place, text};
use crate::client::{Found, volumes};
use crate::error::{Context, Result};
use crate::protocol::VolumeInfo;
use crate::units::format_size;

/// Lists the volumes below a directory.
pub fn list(args: ListArgs) -> Outcome {
    let root = place::resolve(args.path.as_deref())?;
    let found = volumes(&root)?;
    if args.json {
        let root = std::path::absolute(&root).context("find the path of", &root)?;
        let rows: Vec<Row> = found.iter().map(|found| Row::new(&root, found)).collect();
        return text::print_json(&rows);
    }
    text::print(table(&root, &found, text::on_terminal()))
}

/// One volume as JSON.
#[derive(Serialize)]
pub struct Row<'a> {
    /// Path below the directory that was listed.
    name: String,
    /// Absolute path.
    path: String,
    /// The path's bytes in hexadecimal, where they are not UTF-8 and so `path` is not exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(flatten)]
    state: State<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum State<'a> {
    Known(&'a VolumeInfo),
    Unknown { state: &'static str, error: String },
}

impl<'a> Row<'a> {
    fn new(root: &Path, found: &'a Found) -> Row<'a> {
        let path = found.path(root);
        let exact = path.to_str().is_some();
        let hex = || path.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Row {
            name: shown_name(found, root).to_string_lossy().into_owned(),
            path: path.to_string_lossy().into_owned(),
            path_hex: (!exact).then(hex),
            state: match &found.info {
                Ok(info) => State::Known(info),
                Err(error) => State::Unknown { state: "unknown", error: error.to_string() },
            },
        }
    }
}

/// The name in the list: below the directory, or the file's own when a file was asked for.
fn shown_name<'a>(found: &'a Found, root: &'a Path) -> &'a Path {
    if found.name.as_os_str().is_empty() { root } else { &found.name }
}

fn table(root: &Path, found: &[Found], terminal: bool) -> Vec<u8> {
    const COLUMNS: [(&str, Align); 9] = [
        ("NAME", Align::Left),
        ("SIZE", Align::Right),
        ("STATE", Align::Left),
        ("DONE", Align::Right),
        ("DEPTH", Align::Right),
        ("UNIQUE", Align::Right),
        ("SHARED", Align::Right),
        ("FREED", Align::Right),
        ("ORIGIN", Align::Left),
    ];
    let mut table = Table::new(&COLUMNS);
    for found in found {
        let name = text::name(shown_name(found, root).as_os_str(), terminal);
        table.row(std::iter::once(name).chain(cells(&found.info, terminal)).collect());
    }
    table.render()
}

fn cells(info: &Result<VolumeInfo>, terminal: bool) -> Vec<Vec<u8>> {
    let Ok(info) = info else {
        return ["-", "unknown", "-", "-", "-", "-", "-", "-"].map(|cell| cell.as_bytes().to_vec()).to_vec();
    };
    let origin = text::name(info.origin.as_deref().unwrap_or("-").as_ref(), terminal);
    let mut cells: Vec<Vec<u8>> = [
        format_size(info.size),
        info.state.word().to_owned(),
        text::percent(info.progress),
        info.depth.to_string(),
        format_size(info.unique_bytes),
        format_size(info.shared_bytes),
        format_size(info.freed_if_deleted),
    ]
    .map(String::into_bytes)
    .to_vec();
    cells.push(origin);
    cells
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use crate::protocol::VolumeState;

    pub fn info(state: VolumeState) -> VolumeInfo {
        VolumeInfo {
            id: None,
            size: 2 << 30,
            state,
            progress: 42.78,
            origin: Some("base.img".into()),
            parent: None,
            shared_layer: None,
            depth: 1,
            unique_bytes: 1 << 20,
            shared_bytes: 3 << 29,
            freed_if_deleted: 4096,
            to_copy: 0,
            queued: false,
            why: None,
            error: None,
            cannot_clone: None,
        }
    }

    fn found(name: &str, info: Result<VolumeInfo>) -> Found {
        Found { name: name.into(), info }
    }

    #[test]
    fn a_list_has_a_line_for_each_volume() {
        let denied = Error::new(Kind::Permission, "read the state of");
        let rows = [found("vm\x1b1.img", Ok(info(VolumeState::Deepening))), found("sub/x", Err(denied))];
        let text = String::from_utf8(table(Path::new("/pool"), &rows, true)).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["NAME", "SIZE", "STATE", "DONE", "DEPTH", "UNIQUE", "SHARED", "FREED", "ORIGIN"]);
        assert_eq!(lines[1], [r"vm\u{1b}1.img", "2G", "deepening", "42.7%", "1", "1M", "1.5G", "4K", "base.img"]);
        assert_eq!(lines[2], ["sub/x", "-", "unknown", "-", "-", "-", "-", "-", "-"]);
    }

    #[test]
    fn json_is_exact_also_for_names_that_are_not_text() {
        use std::os::unix::ffi::OsStringExt;
        let name = std::ffi::OsString::from_vec(b"a\xff".to_vec());
        let rows = [
            Found { name: name.into(), info: Ok(info(VolumeState::Overlay)) },
            found("b\n", Err(Error::new(Kind::Permission, "read"))),
        ];
        let json: Vec<serde_json::Value> =
            rows.iter().map(|f| serde_json::to_value(Row::new(Path::new("/p"), f)).unwrap()).collect();
        assert_eq!(json[0]["path_hex"], "2f702f61ff");
        assert_eq!(json[0]["state"], "overlay");
        assert_eq!(json[0]["size"], 2u64 << 30);
        assert_eq!(json[1]["path"], "/p/b\n");
        assert_eq!(json[1]["state"], "unknown");
        assert!(json[1].get("path_hex").is_none());
    }
}
