//! A broker as its users have it: owns the process, its directory and its log; knows no request and no answer.
//!
//! The program is the one in the profile directory above the test's own executable (or the one that `COULEE_PROGRAM`
//! names), since Cargo names no other package's programs. It listens on a free port, and its directory lies beside the
//! build, on a filesystem with direct I/O, which a temporary filesystem often is not.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Counts directories made by this process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// What a broker is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its shards.
    pub shards: u16,
    /// Where it listens.
    pub listen: String,
    /// Further `key=value`.
    pub set: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self::shards(2)
    }
}

impl Options {
    /// This many shards, a free port, little memory, and a pool that is soon filled.
    #[must_use]
    pub fn shards(shards: u16) -> Self {
        let set = ["pool.bytes=2MiB", "memory.shard=64MiB", "log.format=json"];
        Self { shards, listen: "127.0.0.1:0".into(), set: set.map(Into::into).into() }
    }

    /// With one more `key=value`.
    #[must_use]
    pub fn and(mut self, set: &str) -> Self {
        self.set.push(set.into());
        self
    }
}

/// A directory of one test, removed when it is dropped; kept for a look at it when the test fails.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let target = profile_dir().parent().expect("a profile directory lies in the build directory").to_owned();
        let folder = target.join(format!("tmp/brokers/{}-{number}", std::process::id()));
        // What an earlier process of this number has left.
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        Self(folder)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it, as text.
    ///
    /// # Panics
    /// If the build directory has a name that is no text.
    #[must_use]
    pub fn at(&self, name: &str) -> String {
        self.0.join(name).into_os_string().into_string().expect("the build directory's name is text")
    }

    /// The data directory of a broker.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept: {}", self.0.display());
        } else {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}

/// How a program ended that was to be a broker.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote on standard error.
    pub log: String,
}

/// The process of a broker that may not be ready yet; killed when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    log: PathBuf,
    log_begin: u64,
}

impl Process {
    /// Starts one on `data`, whose log goes into `folder`.
    ///
    /// # Panics
    /// If the program is not there.
    #[must_use]
    pub fn spawn(folder: &Folder, data: &Path, options: &Options) -> Self {
        Self::spawn_under(&[], folder, data, options)
    }

    /// The same, started by a program that becomes it: `prlimit`, `faketime`, a shell that ends with `exec "$@"`.
    ///
    /// # Panics
    /// If one of the programs is not there.
    #[must_use]
    pub fn spawn_under(starter: &[&str], folder: &Folder, data: &Path, options: &Options) -> Self {
        let log = folder.log();
        let file = File::options().create(true).append(true).open(&log).expect("a log can be opened");
        let log_begin = file.metadata().expect("a file says its size").len();
        let program = program();
        let mut words = starter.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().expect("the program is one of them"));
        command.args(words).arg("serve").arg("--data-dir").arg(data).args(["--listen", &options.listen]);
        command.args(["--shards", &options.shards.to_string()]);
        for set in &options.set {
            command.args(["--set", set]);
        }
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        if let Some(path) = std::env::var_os("PATH").filter(|_| !starter.is_empty()) {
            command.env("PATH", path);
        }
        let go_with_us = || {
            // SAFETY: one system call, of integers.
            let asked = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if asked == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // It goes with the test's thread, also where that is killed: what it has mounted and locked is free again.
        // SAFETY: between fork and exec only that call is made, and nothing is allocated.
        unsafe { command.pre_exec(go_with_us) };
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{starter:?} {}: {error}", program.display()));
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdout, log, log_begin }
    }

    /// Waits for the ready line.
    ///
    /// # Errors
    /// [`Ended`]: it ended without one.
    pub fn ready_line(&mut self) -> Result<String, Ended> {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line).expect("standard output is text");
        if read == 0 { Err(self.wait()) } else { Ok(line) }
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).expect("the log can be read");
        String::from_utf8_lossy(&bytes[self.log_begin as usize..]).into_owned()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If the system does not say so.
    pub fn wait(&mut self) -> Ended {
        let status = self.child.wait().expect("a child can be waited for");
        Ended { status, log: self.log() }
    }

    /// Kill -9. When this returns the process is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.wait();
    }

    /// Sends it SIGTERM.
    pub fn terminate(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Stops it where it stands, until [`Process::go_on`].
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Lets it go on after [`Process::pause`].
    pub fn go_on(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: libc::c_int) {
        let pid = i32::try_from(self.child.id()).expect("process numbers are small");
        // SAFETY: two integers; the child was not waited for, so that nobody else can have its number.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "a child can be sent a signal");
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// If the system does not say so.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("--- log of the broker\n{}--- end of its log", self.log());
        }
    }
}

/// A broker that is ready, and its directory.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    address: String,
    folder: Folder,
}

impl Broker {
    /// A new broker of two shards.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&Options::default())
    }

    /// A new broker with these options.
    #[must_use]
    pub fn start_with(options: &Options) -> Self {
        Self::start_on(Folder::new(), options)
    }

    /// A broker on the data of an earlier one.
    ///
    /// # Panics
    /// If it does not become ready.
    #[must_use]
    pub fn start_on(folder: Folder, options: &Options) -> Self {
        let mut process = Process::spawn(&folder, &folder.data(), options);
        let address = address(&process.ready_line().unwrap_or_else(|ended| panic!("{}\n{}", ended.status, ended.log)));
        Self { process, address, folder }
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its directory.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What it has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends it SIGTERM and goes on.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// Kill -9; gives what is left.
    #[must_use]
    pub fn kill(mut self) -> Folder {
        self.process.kill();
        self.folder
    }

    /// SIGTERM, then waits for the end, which has to be a good one; gives what is left.
    ///
    /// # Panics
    /// If it ends with an error.
    #[must_use]
    pub fn stop(self) -> Folder {
        self.terminate();
        self.end()
    }

    /// Waits for the end after [`Broker::terminate`], which has to be a good one; gives what is left.
    ///
    /// # Panics
    /// If it ends with an error.
    #[must_use]
    pub fn end(mut self) -> Folder {
        let ended = self.process.wait();
        assert_eq!(ended.status.code(), Some(0), "signal {:?}\n{}", ended.status.signal(), ended.log);
        self.folder
    }
}

/// The address in a ready line.
///
/// # Panics
/// If it is none.
#[must_use]
pub fn address(ready_line: &str) -> String {
    assert!(ready_line.starts_with(r#"{"ready":true,"#), "{ready_line}");
    let after = ready_line.split_once(r#""native":""#).map(|(_, after)| after);
    let address = after.and_then(|after| after.split_once('"')).map(|(address, _)| address);
    address.unwrap_or_else(|| panic!("no address in {ready_line}")).to_owned()
}

/// The program.
///
/// # Panics
/// If it was not built.
#[must_use]
pub fn program() -> PathBuf {
    let path = std::env::var_os("COULEE_PROGRAM").map_or_else(|| profile_dir().join("coulee"), PathBuf::from);
    assert!(path.exists(), "{} is missing: run `cargo build -p coulee-cli --profile test`", path.display());
    path
}

/// The directory `target/<profile>`: tests lie one below.
fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its program");
    own.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned()
}
