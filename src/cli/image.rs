//! `clonefs export` and `import`.

use super::args::{ExportArgs, ImportArgs};
use super::failure::{Outcome, note};
use super::progress::{Meter, Unit};
use super::{interrupt, text};
use crate::client::transfer::{self, ExportOptions, ImportOptions, PointInTime};

/// Writes a volume to an image file.
pub fn export(args: ExportArgs) -> Outcome {
    let ExportArgs { volume, out, format, compress, cluster_size, force } = args;
    let source = crate::client::file_or_snapshot(&volume)?;
    let mut meter = Meter::new(format!("exporting {}", text::safe(source.as_os_str())), Unit::Bytes);
    let shown = source.clone();
    let options = ExportOptions { source, out, format, compress, cluster_size, force, cancel: interrupt::watch() };
    let report = transfer::export(options, &mut |done, total| meter.update(done, total))?;
    drop(meter);
    if report.point_in_time == PointInTime::NotGuaranteed {
        note(&format!(
            "{shown:?} is not on a mounted pool: what was written to it meanwhile may be in the image in part"
        ));
    }
    Ok(())
}

/// Makes a volume from an image file.
pub fn import(args: ImportArgs) -> Outcome {
    let ImportArgs { image, target: dst, format, force, allow_backing } = args;
    let mut meter = Meter::new(format!("importing {}", text::safe(image.as_os_str())), Unit::Bytes);
    let shown = dst.clone();
    let options = ImportOptions { image, dst, format, allow_backing, force, cancel: interrupt::watch() };
    let report = transfer::import(options, &mut |done, total| meter.update(done, total))?;
    drop(meter);
    if !report.in_pool {
        note(&format!("{shown:?} is not on a mounted pool: it can be cloned once its directory is mounted"));
    }
    Ok(())
}
