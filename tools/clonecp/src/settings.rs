//! What the command line asks for, resolved: no option is looked at again after this.

use std::ffi::OsString;

/// Which symbolic links in the source are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// None: links are copied as links.
    Never,
    /// Those named on the command line.
    Operands,
    /// All.
    Always,
}

/// What happens to a destination that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// It is overwritten.
    Yes,
    /// The user is asked.
    Ask,
    /// It stays.
    Never,
}

/// How a destination that exists is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backup {
    /// Not at all.
    None,
    /// As `name~`.
    Simple,
    /// As `name.~1~`, `name.~2~` and so on.
    Numbered,
    /// Numbered where there is a numbered one, else simple.
    Existing,
}

/// When holes are made in the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparse {
    /// Never.
    Never,
    /// Where the source has them.
    Auto,
    /// Wherever there are zeros.
    Always,
}

/// Whether the destination shares the source's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reflink {
    /// If it can.
    Auto,
    /// Or else it is a failure.
    Always,
    /// No: the bytes are copied.
    Never,
}

/// Attributes that go with the contents.
#[derive(Clone, Copy, Debug, Default)]
pub struct Preserve {
    /// Permission bits and ACL.
    pub mode: bool,
    /// Owner and group.
    pub ownership: bool,
    /// Times of access and modification.
    pub timestamps: bool,
    /// Which names are one file.
    pub links: bool,
    /// Extended attributes.
    pub xattr: bool,
    /// The SELinux context.
    pub context: bool,
    /// `--no-preserve=mode` was given: new files get the mode of any new file.
    pub not_mode: bool,
    /// An extended attribute that cannot be set is a failure.
    pub need_xattr: bool,
    /// Say nothing of extended attributes that cannot be set.
    pub quiet_xattr: bool,
}

/// Everything that decides how one file is copied.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Links that are followed.
    pub follow: Follow,
    /// Existing destinations.
    pub overwrite: Overwrite,
    /// Backups of them.
    pub backup: Backup,
    /// Suffix of simple backups.
    pub suffix: OsString,
    /// Remove an existing destination that cannot be opened, and try again.
    pub force: bool,
    /// Remove every existing destination first.
    pub remove_first: bool,
    /// Copy only what is newer than its destination.
    pub update: bool,
    /// Directories, with what is in them.
    pub recursive: bool,
    /// Read from device files and pipes rather than make new ones.
    pub copy_contents: bool,
    /// Stay on the filesystem where each operand begins.
    pub one_file_system: bool,
    /// Make hard links.
    pub hard_link: bool,
    /// Make symbolic links.
    pub symbolic_link: bool,
    /// Leave the contents of the destination alone.
    pub attributes_only: bool,
    /// Attributes to keep.
    pub preserve: Preserve,
    /// Holes.
    pub sparse: Sparse,
    /// Shared blocks.
    pub reflink: Reflink,
    /// Tell what is done.
    pub verbose: bool,
    /// The process may do what only root may.
    pub privileged: bool,
    /// Permission bits that new files do not get.
    pub umask: u32,
}

/// Where the copies go.
#[derive(Clone, Debug, Default)]
pub struct Operands {
    /// Sources, and the destination last if it is not in `target`.
    pub names: Vec<OsString>,
    /// Directory of `--target-directory`.
    pub target: Option<OsString>,
    /// The destination is never a directory to copy into.
    pub no_target_directory: bool,
    /// Rebuild the source's whole path under the destination.
    pub parents: bool,
    /// Take slashes off the end of sources.
    pub strip_slashes: bool,
}

/// Attributes that `--preserve` and `--no-preserve` name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Permission bits and ACL.
    Mode,
    /// Times.
    Timestamps,
    /// Owner and group.
    Ownership,
    /// Hard links.
    Links,
    /// SELinux context.
    Context,
    /// Extended attributes.
    Xattr,
    /// All of them, as far as they can be.
    All,
}

impl Preserve {
    /// Switches an attribute on (`--preserve`) or off (`--no-preserve`).
    pub fn switch(&mut self, attribute: Attribute, on: bool) {
        match attribute {
            Attribute::Mode => (self.mode, self.not_mode) = (on, !on),
            Attribute::Timestamps => self.timestamps = on,
            Attribute::Ownership => self.ownership = on,
            Attribute::Links => self.links = on,
            Attribute::Context => self.context = on,
            Attribute::Xattr => (self.xattr, self.need_xattr) = (on, on),
            Attribute::All => {
                self.switch(Attribute::Mode, on);
                self.timestamps = on;
                self.ownership = on;
                self.links = on;
                self.xattr = on;
            }
        }
    }
}

impl Settings {
    /// A symbolic link here is followed; `operand`: it is named on the command line.
    pub fn follows(&self, operand: bool) -> bool {
        self.follow == Follow::Always || (operand && self.follow == Follow::Operands)
    }
}
