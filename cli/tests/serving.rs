//! The program with its own broker: owns what a user sees of starts, refusals and ends; replaces no part of either.

use coulee_client::Client;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A broker on a port and in a folder of its own; both are gone when it is dropped.
struct Broker {
    child: Child,
    address: String,
    folder: PathBuf,
}

fn coulee(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coulee"));
    command.args(arguments).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn serve(folder: &Path, shards: u16) -> Child {
    let data_dir = folder.join("data");
    let data_dir = data_dir.to_str().expect("a path in UTF-8");
    coulee(&["serve", "--data-dir", data_dir, "--listen", "127.0.0.1:0", "--set", "pool.bytes=16MiB"])
        .args(["--shards", &shards.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

impl Broker {
    fn start() -> Self {
        Self::with_shards(2)
    }

    fn with_shards(shards: u16) -> Self {
        // Beside the executable: a temporary directory may lie in memory, where there is no direct I/O.
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("serving-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("the build directory can be written");
        let mut child = serve(&folder, shards);
        let address = ready(&mut child, shards);
        Self { child, address, folder }
    }

    /// Exit code, standard output, standard error of a command for this broker.
    fn told(&self, arguments: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut child =
            coulee(&[arguments, &["--address", &self.address]].concat()).spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        let _is_taken = stdin.write_all(input).is_ok();
        drop(stdin);
        let Output { status, stdout, stderr } = child.wait_with_output().expect("the program ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (status.code().expect("it was not killed"), text(stdout), text(stderr))
    }

    /// Asks it to stop, as an init system does, and gives its exit code.
    fn terminate(&mut self) -> Option<i32> {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("there is a kill").success());
        self.child.wait().expect("it is our child").code()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended before.
        let _is_killed = self.child.kill().is_ok();
        let _is_reaped = self.child.wait().is_ok();
        let _is_removed = std::fs::remove_dir_all(&self.folder).is_ok();
    }
}

/// The address in the ready line.
fn ready(child: &mut Child, shards: u16) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line comes");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
    assert_eq!((&line["ready"], &line["shards"]), (&true.into(), &shards.into()));
    line["native"].as_str().expect("an address").to_owned()
}

#[test]
fn what_was_produced_is_consumed_before_and_after_a_restart() {
    let mut broker = Broker::start();
    let lines = "{\"u\":\"a\",\"n\":1}\n{\"u\":\"b\",\"n\":2}\n{\"u\":\"a\",\"n\":3}\n";
    assert_eq!(broker.told(&["topic", "create", "events.raw", "-p", "1"], b"").0, 0);
    let produced = broker.told(&["produce", "events.raw", "--key-field", "u"], lines.as_bytes());
    assert!(produced.0 == 0 && produced.2.starts_with("3 lines acknowledged"), "{produced:?}");
    let consume = ["consume", "events.raw", "--until-end"];
    assert_eq!(broker.told(&consume, b""), (0, lines.to_owned(), String::new()));
    assert_eq!(broker.terminate(), Some(0), "a drain with nothing to do needs no grace");

    broker.child = serve(&broker.folder, 2);
    broker.address = ready(&mut broker.child, 2);
    assert_eq!(broker.told(&consume, b""), (0, lines.to_owned(), String::new()));
    let (code, keys, _) = broker.told(&["consume", "events.raw", "--offset", "1", "-n", "2", "-f", r"%o=%k\n"], b"");
    assert_eq!((code, keys.as_str()), (0, "1=b\n2=a\n"));
}

#[test]
fn every_refusal_is_told_with_its_code() {
    let broker = Broker::start();
    assert_eq!(broker.told(&["topic", "create", "t", "-p", "3"], b"").0, 0);
    let table: [(&[&str], i32, &str); 9] = [
        (&["topic", "create", "t"], 6, "error[E36]: topic \"t\" exists already\n"),
        (&["topic", "create", "u", "--set", "durabilty=fsync"], 2, "error[E40]: "),
        (&["topic", "create", "u", "-p", "10001"], 2, "error[E37]: "),
        (&["topic", "create", "a b"], 2, "error[E17]: "),
        (&["topic", "alter", "t", "-p", "2"], 2, "error[E37]: "),
        (&["topic", "describe", "tt"], 3, "error[E3]: topic \"tt\" does not exist\n  hint: did you mean \"t\"?"),
        (&["topic", "delete", "nothing", "-y"], 3, "error[E3]: topic \"nothing\" does not exist\n"),
        (&["produce", "nothing"], 3, "error[E3]: topic \"nothing\" does not exist\n"),
        (&["consume", "t", "--offset", "5", "-n", "1"], 1, "error[E1]: partition "),
    ];
    for (arguments, code, error) in table {
        // On both shards: which one a connection comes to is chance.
        for _ in 0..3 {
            let told = broker.told(&[arguments, &["--timeout", "10s"]].concat(), b"x\n");
            assert!(told.0 == code && told.2.starts_with(error), "{arguments:?}: {told:?}");
            assert!(told.2.contains("\n  docs: docs/errors.md#e"), "{told:?}");
        }
    }
}

#[test]
fn a_data_directory_or_an_address_in_use_is_a_conflict() {
    let broker = Broker::start();
    let data_dir = broker.folder.join("data");
    let other = broker.folder.join("other");
    let (data_dir, other) = (data_dir.to_str().unwrap(), other.to_str().unwrap());
    let table: [(&[&str], i32, &str); 3] = [
        (&["serve", "--data-dir", data_dir, "--listen", "127.0.0.1:0"], 6, "error[E2007]: "),
        (&["serve", "--data-dir", other, "--listen", &broker.address], 6, "error[E2006]: "),
        (&["serve", "--data-dir", "/proc/nothing", "--listen", "127.0.0.1:0"], 1, "error[E2013]: "),
    ];
    for (arguments, code, error) in table {
        let Output { status, stdout, stderr } = coulee(arguments).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.code() == Some(code) && stdout.is_empty() && stderr.contains(error), "{arguments:?}: {stderr}");
    }
}

#[test]
fn statistics_are_answered_by_a_broker_of_one_shard() {
    let broker = Broker::with_shards(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(async {
        let patience = Duration::from_secs(10);
        let client = Client::builder().address(&broker.address).request_timeout(patience).connect().await.unwrap();
        client.stats().await
    });
    assert_eq!(asked.map(|stats| stats.shards.len()), Ok(1));
}
