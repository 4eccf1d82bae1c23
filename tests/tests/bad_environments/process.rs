//! The program as a process in a directory of its own: started, asked, killed; knows no claim that is tested.

use coulee_tests::broker::{Folder, Options, Process, address, program};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) exit: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Told {
    /// Checks the form of an error: its code and what it says first, a hint and the page behind; nothing on stdout.
    pub(crate) fn is_error(&self, exit: i32, code: u16, says: &[&str]) {
        assert_eq!(self.exit, exit, "{self:?}");
        assert_eq!(self.out, "", "{self:?}");
        assert!(self.error.contains(&format!("error[E{code}]: ")), "{self:?}");
        assert!(self.error.contains("\n  hint: "), "{self:?}");
        assert!(self.error.contains(&format!("\n  docs: docs/errors.md#e{code}\n")), "{self:?}");
        for part in says {
            assert!(self.error.contains(part), "{part:?} is not said: {self:?}");
        }
    }

    pub(crate) fn is_good(&self) -> &Self {
        assert_eq!(self.exit, 0, "{self:?}");
        self
    }
}

/// With all its streams ours.
pub(crate) fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).env_clear();
    piped(command)
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command, input: &[u8]) -> Told {
    let mut child = command.spawn().unwrap();
    // What reads nothing may have closed it.
    let _is_taken = child.stdin.take().unwrap().write_all(input).is_ok();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Told { exit: output.status.code().unwrap(), out: text(output.stdout), error: text(output.stderr) }
}

/// Runs the program, without input.
pub(crate) fn tell(arguments: &[&str]) -> Told {
    run(command(arguments), b"")
}

/// Tries to start a broker on `dir`, which it refuses.
pub(crate) fn refused(dir: &str, more: &[&str]) -> Told {
    tell(&[&["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--data-dir", dir], more].concat())
}

/// A broker that is ready, on a directory that need not be its log's.
pub(crate) struct Broker {
    process: Process,
    pub(crate) address: String,
    _log: Folder,
}

impl Broker {
    pub(crate) fn start(dir: &str) -> Self {
        // No files are zeroed ahead: they would fill small filesystems.
        let set = ["pool.bytes=0", "log.format=json"];
        let options = Options { set: set.map(Into::into).into(), ..Options::shards(1) };
        let folder = Folder::new();
        let mut process = Process::spawn(&folder, Path::new(dir), &options);
        let ready = process.ready_line().unwrap_or_else(|ended| panic!("the broker is not ready: {}", ended.log));
        Self { process, address: address(&ready), _log: folder }
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }

    /// Runs a command against it.
    pub(crate) fn tell(&self, arguments: &[&str]) -> Told {
        self.tell_with(arguments, b"")
    }

    pub(crate) fn tell_with(&self, arguments: &[&str], input: &[u8]) -> Told {
        run(command(&[arguments, &["--address", &self.address]].concat()), input)
    }

    /// Kills it with SIGKILL; what it has logged.
    pub(crate) fn kill(mut self) -> String {
        self.process.kill();
        self.process.log()
    }
}
