//! Extended attributes of the mount's root: the doors that the mount code itself uses.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_strings(path: &Path, name: &str) -> io::Result<(CString, CString)> {
    let invalid = |_| io::Error::from_raw_os_error(libc::EINVAL);
    Ok((CString::new(path.as_os_str().as_bytes()).map_err(invalid)?, CString::new(name).map_err(invalid)?))
}

/// Value of an attribute of the file at `path`.
pub fn get(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = c_strings(path, name)?;
    // The longest value that the kernel lets through; no need to ask for the length first.
    let mut value = vec![0u8; 65536];
    // SAFETY: both strings are NUL-terminated; the buffer has the length passed.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(len as usize);
    Ok(value)
}

/// Sets an attribute of the file at `path`.
pub fn set(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = c_strings(path, name)?;
    // SAFETY: both strings are NUL-terminated; pointer and length describe `value`.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
