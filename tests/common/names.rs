//! The tree of names without a mount: files are found by looking.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clonefs::engine::io::{FileKey, Fs};
use clonefs::engine::pool::{Names, Spot};
use clonefs::error::Result;

/// Finds names in the root directory by looking: there are few files.
pub struct Finder(pub Arc<dyn Fs>);

impl Names for Finder {
    fn swap(
        &self,
        key: FileKey,
        _hint: Option<&Path>,
        swap: &mut dyn FnMut(&Spot) -> Result<FileKey>,
    ) -> Result<Option<FileKey>> {
        let spot = self.path_of(key).and_then(|path| Spot::find(&*self.0, &path).ok());
        spot.map(|spot| swap(&spot)).transpose()
    }

    fn path_of(&self, key: FileKey) -> Option<PathBuf> {
        let entries = self.0.list(Path::new("")).ok()?;
        let found = entries.into_iter().find(|e| self.0.stat(Path::new(&e.name)).is_ok_and(|s| s.key == key))?;
        Some(PathBuf::from(found.name))
    }

    fn flush_cached(&self, _key: FileKey) {}
}
