//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// Measures what clones cost on your disk: clonefs beside the disk itself, cp, reflinks and qcow2.
///
/// Everything is made in a directory of its own below DIR and removed at the end, also after Ctrl-C. Nothing else is
/// touched. Mounts and loop devices need root; what cannot run here is named and left out.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Args {
    /// Directory on the disk to measure.
    #[arg(required_unless_present = "list")]
    pub dir: Option<PathBuf>,
    /// Rows to measure, separated by commas; all of them when none is named. --list shows them.
    #[arg(long, value_delimiter = ',', value_name = "ROW")]
    pub rows: Vec<String>,
    /// Ways to clone for the row "clone", separated by commas; all of them when none is named.
    #[arg(long, value_delimiter = ',', value_name = "METHOD")]
    pub methods: Vec<String>,
    /// Rounds of each measurement; what is compared takes turns in each of them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Seconds of each measurement of input and output.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    pub seconds: f64,
    /// Size of the images, such as 1G.
    #[arg(long, default_value = "1G", value_name = "SIZE", value_parser = size)]
    pub size: u64,
    /// Extents of the fragmented image.
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub extents: u64,
    /// Layers of the deep clone.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub depth: u32,
    /// Clones of one image where their number counts.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(20..))]
    pub clones: u32,
    /// Options for mounting the pool, as for clonefs mount -o.
    #[arg(long, default_value = "", value_name = "OPTIONS")]
    pub mount_options: String,
    /// The clonefs program [default: the one beside this program, or else the one in PATH].
    #[arg(long, value_name = "PATH")]
    pub clonefs: Option<PathBuf>,
    /// Everything small and once: whether it works here, in seconds. The figures mean nothing.
    #[arg(long)]
    pub quick: bool,
    /// The results as JSON.
    #[arg(long)]
    pub json: bool,
    /// Also write the results as a page of HTML with plots; a file that is not there yet.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Show the rows and end.
    #[arg(long)]
    pub list: bool,
}

/// Sizes in whole MiB: all tests of input and output divide them.
fn size(text: &str) -> Result<u64, String> {
    let size = clonefs::units::parse_size(text).map_err(|error| error.to_string())?;
    if size < 16 << 20 || !size.is_multiple_of(1 << 20) {
        return Err("at least 16M, in whole MiB".to_owned());
    }
    Ok(size)
}

/// Fio takes whole milliseconds.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("from 0.001 to 3600".to_owned()),
    }
}

impl Args {
    /// With --quick: as small as everything can be.
    pub fn settled(&self) -> Settings {
        if self.quick {
            return Settings {
                rounds: 1,
                seconds: 0.1,
                size: 16 << 20,
                extents: 100,
                depth: 10,
                clones: 20,
                repeats: 3,
            };
        }
        let Args { rounds, seconds, size, extents, depth, clones, .. } = *self;
        Settings { rounds, seconds, size, extents, depth, clones, repeats: 100 }
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Rounds.
    pub rounds: u32,
    /// Seconds of each measurement of input and output.
    pub seconds: f64,
    /// Size of images in bytes.
    pub size: u64,
    /// Extents of the fragmented image.
    pub extents: u64,
    /// Layers of the deep clone.
    pub depth: u32,
    /// Clones of one image.
    pub clones: u32,
    /// How often something quick is done to measure it.
    pub repeats: u32,
}
