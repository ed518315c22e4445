//! The file that the report goes to: a new one, there only when it is complete.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::failure::{During, Failure, Outcome};

/// A place for the report, tried before anything is measured.
pub struct Page {
    file: NamedTempFile,
    path: PathBuf,
}

impl Page {
    /// Sees that a new file can be made there.
    pub fn new(path: &Path) -> Outcome<Page> {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::line(format!("{path:?} is there already; name a new file for the report")));
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let mut builder = tempfile::Builder::new();
        let mode = std::fs::Permissions::from_mode(0o644);
        let file = builder.prefix(".clonebench-").permissions(mode).tempfile_in(dir).during("make a file in", dir)?;
        Ok(Page { file, path: path.to_owned() })
    }

    /// Writes it and gives it its name.
    pub fn keep(mut self, text: &str) -> Outcome<()> {
        self.file.write_all(text.as_bytes()).during("write", &self.path)?;
        self.file.as_file().sync_all().during("sync", &self.path)?;
        let kept = self.file.persist_noclobber(&self.path);
        kept.map(drop).map_err(|failed| failed.error).during("make", &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_already_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        let page = Page::new(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(Page::new(&path).is_err());
        assert!(page.keep("page").is_err(), "somebody else made it meanwhile");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
