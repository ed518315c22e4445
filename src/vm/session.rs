//! One `virsh` that stays connected, for calls that must follow each other fast: a new one takes some 20 milliseconds
//! to connect, a command of one that is connected takes one.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use super::virsh::{self, NotRun, Virsh};
use crate::error::{Error, Result};

/// No command given here takes as long.
const PATIENCE: Duration = Duration::from_secs(60);
/// What virsh prints before it reads a command.
const PROMPT: &str = "virsh # ";

/// A connected virsh that takes commands.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    read: String,
    calls: u32,
}

impl Session {
    /// Starts and connects one.
    pub fn open(virsh: &Virsh) -> Result<Session> {
        let doing = "connect to libvirt";
        let io = |e| virsh::not_run(doing, NotRun::Io(e));
        let (mut reader, writer) = std::io::pipe().map_err(io)?;
        let mut command = virsh.command();
        // Both into one pipe: what is said of a command comes before the end of its output.
        command.stdin(Stdio::piped()).stdout(writer.try_clone().map_err(io)?).stderr(writer);
        let mut child = command.spawn().map_err(io)?;
        // The command has our ends of the pipe, and while they are open the reader would never end.
        drop(command);
        let Some(stdin) = child.stdin.take() else {
            return Err(Error::io(doing, std::io::ErrorKind::BrokenPipe.into()));
        };
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 16 << 10];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut session = Session { child, stdin, output, read: String::new(), calls: 0 };
        // Something that needs the connection, so that an error comes here.
        session.call(doing, "uri")?;
        Ok(session)
    }

    /// Runs a command, whose words must not need quoting; gives its output.
    pub fn call(&mut self, doing: &str, command: &str) -> Result<String> {
        self.calls += 1;
        // The answer differs from the command, so that an echo of that is not taken for it.
        let (mark, answer) = (format!("'end<{}'", self.calls), format!("end&lt;{}", self.calls));
        let lost = || virsh::refused(doing, "the connection is not open");
        self.stdin.write_all(format!("{command}\necho --xml {mark}\n").as_bytes()).map_err(|_| lost())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.read.find(&answer) {
                let said = self.read[..at].to_owned();
                self.read.drain(..at + answer.len());
                return outcome(doing, &said);
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.read.push_str(&String::from_utf8_lossy(&bytes)),
                Err(mpsc::RecvTimeoutError::Timeout) => return Err(virsh::not_run(doing, NotRun::Hangs(PATIENCE))),
                Err(mpsc::RecvTimeoutError::Disconnected) if self.read.trim().is_empty() => return Err(lost()),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(virsh::refused(doing, &without_prompts(&self.read)));
                }
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        virsh::end(&mut self.child);
    }
}

fn outcome(doing: &str, said: &str) -> Result<String> {
    let said = without_prompts(said);
    if said.lines().any(|line| line.starts_with("error:")) { Err(virsh::refused(doing, &said)) } else { Ok(said) }
}

/// What was said without the lines that were read, which some builds of virsh echo.
fn without_prompts(said: &str) -> String {
    said.lines().filter(|line| !line.starts_with(PROMPT.trim_end())).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_echoes_and_errors() {
        assert_eq!(
            outcome("x", "virsh # uri\nqemu:///system\n\nvirsh # echo --xml 'end<1'\n").unwrap(),
            "qemu:///system\n\n"
        );
        let error = outcome("x", "virsh # suspend y\nerror: failed to get domain 'y'\n").unwrap_err();
        assert!(error.to_string().contains("failed to get domain"), "{error}");
    }
}
