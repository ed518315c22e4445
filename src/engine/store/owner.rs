//! Whose `.clonefs` is.

use super::DIR;
use crate::error::{Error, Kind, Result};

/// Fails if others than those who control the pool anyway could put into its metadata what they like, or read it.
///
/// `uid` and `mode` are those of `.clonefs`, `above` owns the directory that it is in (and can replace it), `me` is the
/// user that this process runs as.
///
/// # Errors
/// [`Kind::Permission`], with the owner named.
pub fn check_owner((uid, mode): (u32, u32), above: u32, me: u32) -> Result<()> {
    let refuse = |why: String, remedy| {
        Err(Error::new(Kind::Permission, "use the metadata directory").at(DIR).because(why).remedy(remedy))
    };
    if ![me, 0, above].contains(&uid) {
        let why = format!("user {uid} owns it, and could read and change what is shared between files");
        return refuse(why, "if you trust what is in it, give it to root (chown -R 0:0); if not, move it away");
    }
    if mode & 0o022 != 0 {
        let why = format!("its mode is {:o}: others than its owner may change what is in it", mode & 0o7777);
        return refuse(why, "if you trust what is in it, run `chmod 700` on it; if not, move it away");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_control_the_pool_may_own_its_metadata() {
        for (uid, mode, above, me, good) in [
            (0, 0o700, 0, 0, true),
            (0, 0o755, 0, 0, true),
            (0, 0o770, 0, 0, false),
            (0, 0o702, 0, 0, false),
            (64201, 0o700, 0, 0, false),
            (64201, 0o700, 64201, 0, true),
            (64201, 0o700, 64201, 64201, true),
            (64201, 0o700, 0, 64201, true),
            (64202, 0o700, 64201, 64201, false),
        ] {
            let found = check_owner((uid, mode), above, me);
            assert_eq!(found.is_ok(), good, "{uid} {mode:o} {above} {me}");
            if let Err(error) = found {
                assert!(error.to_string().contains(".clonefs"), "{error}");
            }
        }
    }
}
