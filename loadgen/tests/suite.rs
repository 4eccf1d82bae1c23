//! A tiny suite for real: a broker, two short rows, the report and how it ends; holds nobody to a speed.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PACES: &str = "
[full]
runs = 2
seconds = 0.3
bare_seconds = 0.1
bare_mib = 64
pool_gib = 0
small_files = 0
growing_gib = 1
[quick]
runs = 1
seconds = 0.2
bare_seconds = 0.1
bare_mib = 64
pool_gib = 0
small_files = 0
growing_gib = 1
";

/// A directory for one test, on a filesystem with direct I/O.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a directory can be made");
    folder
}

/// Runs a suite of these rows.
fn suite(folder: &Path, rows: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_coulee-loadgen"));
    let broker = program.with_file_name("coulee");
    assert!(broker.exists(), "{} is missing: run `cargo build -p coulee-cli --profile test`", broker.display());
    let targets = folder.join("targets.toml");
    fs::write(&targets, format!("{PACES}{rows}")).expect("a file can be written");
    let mut command = Command::new(program);
    command.arg("suite").arg("--targets").arg(&targets).arg("--out").arg(folder.join("out"));
    command.output().expect("the program was built")
}

fn rows(at_least: &str) -> String {
    format!(
        "[[row]]\nid = \"bulk\"\ntitle = \"bulk\"\nwork = \"produce\"\nproducers = 2\nin_flight = 2\nbatch = 100\n\
         [[row.target]]\nmetric = \"records_per_second\"\nat_least = {at_least}\n\
         [[row]]\nid = \"e2e\"\ntitle = \"end to end\"\nwork = \"e2e\"\nrate = 200\n"
    )
}

#[test]
fn a_suite_ends_with_0_when_targets_are_met_and_counts_what_it_has_read() {
    let folder = folder("met");
    let output = suite(&folder, &rows("1"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.contains("1 targets met, 0 missed, 0 rows failed"), "{printed}");
    let out = folder.join("out");
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    assert_eq!((&report["exit_code"], &report["targets_met"]), (&0.into(), &1.into()));
    let count =
        |row: usize, part: usize, name: &str| report["rows"][row]["parts"][part]["counts"][name].as_u64().unwrap();
    let produced = count(0, 0, "records_acknowledged");
    assert!(produced >= 200 && produced == count(0, 0, "produced_records"), "{produced}");
    assert!(count(0, 0, "syncs") > 0 && count(0, 0, "copied_bytes") > 0);
    assert_eq!(report["rows"][0]["parts"][0]["runs"].as_array().unwrap().len(), 2);
    let (sent, read) = (count(1, 0, "records_acknowledged"), count(1, 0, "records_verified"));
    assert!(sent > 0 && sent == read, "{sent} {read}");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("<polyline"));
    assert!(fs::read_to_string(out.join("e2e-end-to-end.hlog")).unwrap().contains("Tag=run-2"));
    assert_eq!(fs::read_dir(&out).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 0);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_suite_ends_with_3_when_a_target_is_missed_and_with_1_when_it_cannot_run() {
    let folder = folder("missed");
    let output = suite(&folder, &rows("1e15"));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{printed}");
    assert!(printed.contains("missed records_per_second ≥ 1,000,000,000,000,000"), "{printed}");
    let output = suite(&folder, "[[row]]\nid = \"a\"\ntitle = \"A\"\nwork = \"dig\"\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("dig"));
    fs::remove_dir_all(folder).unwrap();
}
