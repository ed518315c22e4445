//! `clonefs doctor`.

use super::args_vm::DoctorArgs;
use super::failure::Outcome;

/// Looks at this host.
pub fn doctor(_args: DoctorArgs) -> Outcome {
    Ok(())
}
