//! How the stub of an overlay is recognised where its pool is not mounted: by whoever would take its text for a disk.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{fgetxattr, fstat};
use rustix::io::{Errno, pread};

/// Name of the attribute that marks a stub: `POOL-ID/VOLUME-ID`. In the `user` name space, as a daemon that is not root can
/// set no other; no user of a mount can set it.
pub const ATTRIBUTE: &str = "user.clonefs.stub";

/// No stub is larger than this.
pub const LONGEST: u64 = 1024;

/// The text of every stub begins with this.
pub const TEXT: &str = "clonefs volume ";

/// Whether a file that lies on no clonefs mount is a stub. The attribute says so; a copy that a program made without
/// attributes is known by its text, which no disk image begins with.
///
/// # Errors
/// The file cannot be looked at.
pub fn is_stub(file: impl AsFd) -> io::Result<bool> {
    let size = fstat(&file)?.st_size as u64;
    if size > LONGEST {
        // The mark may have outlived the stub: it cannot always be taken off a file that became whole.
        return Ok(false);
    }
    let mut start = [0; TEXT.len()];
    if pread(&file, &mut start, 0)? == TEXT.len() && start == *TEXT.as_bytes() {
        return Ok(true);
    }
    // Made, and the text not written or not on the disk.
    let mut none: [u8; 0] = [];
    let marked = match fgetxattr(&file, ATTRIBUTE, &mut none) {
        Ok(_) => true,
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => false,
        Err(e) => return Err(e.into()),
    };
    Ok(marked && size == 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_stub_is_known_by_its_mark_or_its_text_and_a_small_file_is_none() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let made = |name: &str, content: &[u8], marked: bool| {
            let mut file = File::create_new(dir.path().join(name)).unwrap();
            file.write_all(content).unwrap();
            if marked {
                rustix::fs::fsetxattr(&file, ATTRIBUTE, b"a/b", rustix::fs::XattrFlags::empty()).unwrap();
            }
            is_stub(File::open(dir.path().join(name)).unwrap()).unwrap()
        };
        let text = format!("{TEXT}0011, 1M\nThis is not the disk image itself.\n");
        assert!(made("stub", text.as_bytes(), true));
        assert!(made("copied without attributes", text.as_bytes(), false));
        assert!(made("not described yet", b"", true));
        assert!(!made("empty", b"", false));
        assert!(!made("small", b"clonefs", false));
        assert!(!made("finished, its mark left on it", b"bytes of a user", true));
        assert!(!made("large", &[1; 4096], true));
    }
}
