//! A broker of one shard, as a process: owns what only that one gets wrong; knows nothing of answers of several shards.

use coulee_client::Client;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn statistics_are_answered_by_a_broker_of_one_shard() {
    // Beside the executable: a temporary directory may lie in memory, where there is no direct I/O.
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("one-shard-{}", std::process::id()));
    let mut child = Command::new(env!("CARGO_BIN_EXE_coulee"))
        .args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--set", "pool.bytes=16MiB", "--data-dir"])
        .arg(&folder)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = line["native"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(async {
        let patience = Duration::from_secs(10);
        let client = Client::builder().address(address).request_timeout(patience).connect().await.unwrap();
        client.stats().await
    });
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(asked.map(|stats| stats.shards.len()), Ok(1));
}
