//! A tiny comparison for real, with each peer that is installed; holds nobody to a speed.

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory for one test, on a filesystem with direct I/O.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compare-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a directory can be made");
    folder
}

/// Runs a comparison of one short round.
fn compare(folder: &Path, arguments: &[&str], path: Option<&Path>) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_coulee-loadgen"));
    let broker = program.with_file_name("coulee");
    assert!(broker.exists(), "{} is missing: run `cargo build -p coulee-cli --profile test`", broker.display());
    let mut command = Command::new(program);
    command.args(["compare", "--rounds", "1", "--seconds", "0.2", "--connections", "2", "--in-flight", "16"]);
    command.args(["-o", "json"]).args(arguments).arg("--data-dir").arg(folder);
    path.into_iter().for_each(|path| {
        command.env("PATH", path);
    });
    command.output().expect("the program was built")
}

/// Whether a server is there; where it is not, the test says that it is skipped, past what captures its output.
fn is_installed(server: &str, test: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(server).is_file());
    if !found {
        writeln!(std::io::stdout(), "\nSKIPPED {test}: {server} is not installed").expect("stdout takes a line");
    }
    found
}

/// Compares with a peer and looks over what is told; how many of its modes ran.
fn check(peer: &str, first_mode: &str) -> usize {
    let folder = folder(peer);
    let output = compare(&folder, &["--with", peer], None);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("it prints one JSON object");
    let list = |name: &str| told[name].as_array().cloned().expect("a list");
    let count = |value: &Value| value.as_u64().expect("a count");
    let rows = list("rows");
    for row in &rows {
        let round = &row["rounds"][0];
        let written = count(&round["produce"]["records_acknowledged"]);
        let read = count(&round["replay"]["records_verified"]);
        assert!(written > 0 && read >= written && read.is_multiple_of(written), "{row:#}");
        assert!(row["batch"] != 1 || count(&round["ack"]["records_acknowledged"]) > 0, "{row:#}");
        assert!(row["fault"].is_null() && row["version"].to_string().contains('.'), "{row:#}");
    }
    let modes: Vec<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert!(modes.contains(&first_mode), "{modes:?}");
    let peers = modes.iter().filter(|mode| !mode.starts_with("Coulee")).count();
    let ratios = list("ratios");
    assert_eq!(ratios.len(), 2 * peers, "batches and singles against each: {ratios:#?}");
    assert!(ratios.iter().all(|ratio| ratio["times_as_fast"]["produce"].as_f64() > Some(0.0)), "{ratios:#?}");
    assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 0, "what servers have left is removed");
    fs::remove_dir_all(folder).expect("it can be removed");
    peers
}

#[test]
fn redis_in_both_modes_is_written_and_read_back() {
    if is_installed("redis-server", "redis_in_both_modes_is_written_and_read_back") {
        assert_eq!(check("redis", "Redis Streams, appendfsync always"), 2);
    }
}

#[test]
fn nats_is_written_and_read_back() {
    if is_installed("nats-server", "nats_is_written_and_read_back") {
        assert!((1..=2).contains(&check("nats", "NATS JetStream, default")), "sync always came with 2.10");
    }
}

#[test]
fn a_peer_that_is_not_installed_is_named_and_none_at_all_is_an_error() {
    let folder = folder("nobody");
    let output = compare(&folder, &["--with", "redis,nats"], Some(&folder));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("redis: not found: install redis-server"), "{errors}");
    assert!(errors.contains("nats: not found: install nats-server"), "{errors}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_named_server_that_does_not_answer_is_an_error() {
    let folder = folder("silent");
    // A port that was free a moment ago: whoever takes it meanwhile is no Redis.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = compare(&folder, &["--with", "redis", "--redis-address", &address], None);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(folder).unwrap();
}
