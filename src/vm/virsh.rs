//! libvirt, through its own command `virsh`.
//!
//! Not through its library: clonefs builds and installs where there are no libvirt headers, a crash or a hanging
//! connection is another process's, and whatever a user can do by hand works the same here, with the same rights, also
//! with any URI that `virsh` understands. The price is a few milliseconds a call; where that matters
//! (while a machine is suspended) one `virsh` stays connected.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::xml::Element;
use crate::error::{Error, Kind, Result};

const VIRSH: &str = "virsh";
/// A call that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Starting a machine, and undefining one with much state, may take its time.
const LONG: Duration = Duration::from_secs(300);

/// Where libvirt is.
#[derive(Clone, Debug, Default)]
pub struct Virsh {
    uri: Option<String>,
}

impl Virsh {
    /// The libvirt at this URI; without one, that which `virsh` would take.
    pub fn new(uri: Option<String>) -> Virsh {
        Virsh { uri }
    }

    /// The command with what all calls have in common.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(VIRSH);
        command.arg("-q").env("LC_ALL", "C").env("VIRSH_HISTSIZE", "0");
        if let Some(uri) = &self.uri {
            command.args(["-c", uri]);
        }
        // A group of its own: Ctrl-C is for us to handle, or nothing would be left to undo things with.
        command.process_group(0);
        command
    }

    /// Runs a command of virsh; gives its output. `doing` says what for, in an error.
    pub fn run(&self, doing: &str, arguments: &[&str]) -> Result<String> {
        self.run_for(doing, arguments, PATIENCE)
    }

    /// The same for what may take minutes.
    pub fn run_long(&self, doing: &str, arguments: &[&str]) -> Result<String> {
        self.run_for(doing, arguments, LONG)
    }

    /// The same with a limit of time, after which it is killed and has failed.
    pub fn run_for(&self, doing: &str, arguments: &[&str], limit: Duration) -> Result<String> {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        match run(&mut command, limit) {
            Ok(Output { code: Some(0), stdout, .. }) => Ok(stdout),
            Ok(output) => Err(refused(doing, &output.stderr)),
            Err(error) => Err(not_run(doing, error)),
        }
    }

    /// The XML that a command of virsh prints.
    pub fn xml(&self, doing: &str, arguments: &[&str]) -> Result<Element> {
        Element::parse(&self.run(doing, arguments)?, doing)
    }

    /// Defines a domain, a pool: whatever `verb` reads from a file of XML.
    pub fn define(&self, doing: &str, verb: &str, xml: &Element) -> Result<String> {
        use std::io::Write;
        let io = |e| Error::io(doing.to_owned(), e).at(std::env::temp_dir());
        // Only the caller can read it: there may be passwords in it.
        let mut file = tempfile::Builder::new().prefix("clonefs-").suffix(".xml").tempfile().map_err(io)?;
        file.write_all(xml.to_string().as_bytes()).map_err(io)?;
        let path = file.path().to_string_lossy().into_owned();
        self.run(doing, &[verb, &path])
    }

    /// Names of all domains.
    pub fn domains(&self) -> Result<Vec<String>> {
        let list = self.run("list the domains", &["list", "--all", "--name"])?;
        Ok(list.lines().map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    /// Whether it is the system's libvirt, whose files lie below /var/lib; else it is the user's own.
    pub fn is_system(&self) -> Result<bool> {
        Ok(self.run("find out which libvirt this is", &["uri"])?.trim().ends_with("/system"))
    }
}

/// What a program did.
pub(super) struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Why it did nothing.
pub(super) enum NotRun {
    Io(std::io::Error),
    Hangs(Duration),
}

/// Runs a program to its end, or kills it when the time is over.
pub(super) fn run(command: &mut Command, limit: Duration) -> std::result::Result<Output, NotRun> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(NotRun::Io)?;
    let (sender, receiver) = mpsc::channel();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::spawn(move || {
        let errors = std::thread::spawn(move || text(stderr));
        let output = text(stdout);
        // Nobody waits any more when the time is over.
        let _ = sender.send((output, errors.join().unwrap_or_default()));
    });
    let Ok((stdout, stderr)) = receiver.recv_timeout(limit) else {
        end(&mut child);
        return Err(NotRun::Hangs(limit));
    };
    let status = child.wait().map_err(NotRun::Io)?;
    Ok(Output { code: status.code(), stdout, stderr })
}

/// Kills a child that has outlived its use.
pub(super) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn text(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What was read until then is the answer.
        let _ = stream.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The error for a virsh that could not be run to its end.
pub(super) fn not_run(doing: &str, error: NotRun) -> Error {
    match error {
        NotRun::Io(e) if e.kind() == std::io::ErrorKind::NotFound => Error::new(Kind::Unsupported, doing.to_owned())
            .because("virsh is not installed")
            .remedy("install it: apt install libvirt-clients"),
        NotRun::Io(e) => Error::io(doing.to_owned(), e),
        NotRun::Hangs(limit) => Error::new(Kind::Busy, doing.to_owned())
            .because(format!("virsh did not answer for {} seconds", limit.as_secs()))
            .remedy("see whether libvirtd hangs: virsh list"),
    }
}

/// What an error message of virsh means.
pub(super) fn refused(doing: &str, said: &str) -> Error {
    let cause = one_line(said);
    let has = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    let (kind, remedy) =
        if has(&["Permission denied", "authentication", "Access denied"]) && has(&["connect", "authent"]) {
            (Kind::Permission, Some("run it as root, or join the group libvirt"))
        } else if has(&[
            "failed to connect to the hypervisor",
            "Failed to connect socket",
            "Cannot recv data",
            "connection is not open",
        ]) {
            (Kind::NotFound, Some("start libvirt: systemctl start libvirtd, or virtqemud and virtstoraged"))
        } else if has(&["failed to get domain", "Domain not found"]) {
            (Kind::NotFound, Some("virsh list --all shows the domains"))
        } else if has(&["failed to get pool", "Storage pool not found"]) {
            (Kind::NotFound, Some("virsh pool-list --all shows the pools"))
        } else if has(&["already exists", "already in use"]) {
            (Kind::Exists, None)
        } else {
            (Kind::Io, None)
        };
    let error = Error::new(kind, doing.to_owned()).because(cause);
    match remedy {
        Some(remedy) => error.remedy(remedy),
        None => error,
    }
}

/// The lines of an error message as one, without what is said on each.
fn one_line(said: &str) -> String {
    let lines = said.lines().map(|l| l.trim().trim_start_matches("error:").trim()).filter(|l| !l.is_empty());
    let line: String = lines.collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(600).collect();
    if line.is_empty() { "virsh failed and did not say why".into() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_errors_with_a_remedy() {
        for (said, kind, hint) in [
            ("error: failed to get domain 'x'\n", Kind::NotFound, "list --all"),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/run/x': No such file",
                Kind::NotFound,
                "systemctl",
            ),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/run/x': Permission denied",
                Kind::Permission,
                "group libvirt",
            ),
            ("error: authentication unavailable: no polkit agent\nerror: failed to connect", Kind::Permission, "root"),
            ("error: operation failed: domain 'x' already exists with uuid 1", Kind::Exists, "already exists"),
            ("error: internal error: \u{1b}[2Jboom", Kind::Io, "boom"),
            ("", Kind::Io, "did not say why"),
        ] {
            let error = refused("look", said);
            assert_eq!(error.kind(), kind, "{said}");
            let text = error.to_string();
            assert!(text.contains(hint) && !text.contains('\u{1b}') && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let result = run(Command::new("sleep").arg("1000"), Duration::from_millis(50));
        assert!(matches!(result, Err(NotRun::Hangs(_))));
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        let error = run(&mut Command::new("/no/such/virsh"), PATIENCE).err().expect("an error");
        assert!(not_run("look", error).to_string().contains("apt install libvirt-clients"));
    }
}
