//! `coulee verify` with the real program: a stopped directory and a running broker, sound and not; knows no format.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use coulee_tests::broker::{Broker, Folder, Options, program};

/// Exit code, standard output and standard error of a command line.
fn run(address: &str, line: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program());
    command.args(line).env_clear().env("COULEE_ADDRESS", address).stdin(Stdio::null());
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("it was not killed"), text(output.stdout), text(output.stderr))
}

fn verify(data: &Path) -> (i32, String, String) {
    run("", &["verify", "--data-dir", data.to_str().expect("UTF-8"), "-o", "json"])
}

/// A broker that has 3,000 events on three partitions.
fn filled() -> Broker {
    let broker = Broker::start();
    for line in ["topic create t -p 3", "simulate users t --count 3000 --seed 1"] {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(run(broker.address(), &words).0, 0, "{line}");
    }
    broker
}

/// Every file below `dir` with its time of change and its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, (SystemTime, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), (entry.metadata().unwrap().modified().unwrap(), fs::read(path).unwrap()));
        }
    }
    found
}

#[test]
fn a_stopped_and_a_killed_brokers_directory_are_sound_and_left_as_they_are() {
    for folder in [filled().stop(), filled().kill()] {
        let before = files(&folder.data());
        let (code, out, err) = verify(&folder.data());
        assert_eq!(code, 0, "{out}{err}");
        assert!(out.contains("\"verdict\": \"sound\"") && out.contains("\"topic\": \"t\""), "{out}");
        assert!(before == files(&folder.data()), "a check has left a trace");
        let records = out.split("\"records\": ").nth(1).unwrap();
        assert!(records.starts_with("3001,"), "3,000 events and one record of the catalog: {out}");
        drop(Broker::start_on(folder, &Options::default()));
    }
}

#[test]
fn damage_is_named_with_topic_file_byte_and_offsets_and_has_an_exit_code_of_its_own() {
    let folder = filled().stop();
    let is_segment = |path: &&PathBuf| path.to_string_lossy().contains("/p/2/") && path.extension().unwrap() == "log";
    let all = files(&folder.data());
    let segment = all.keys().find(is_segment).unwrap();
    let mut bytes = all[segment].1.clone();
    bytes[4_096 + 300] ^= 1;
    fs::write(segment, bytes).unwrap();
    let (code, out, err) = verify(&folder.data());
    assert_eq!(code, 8, "{out}{err}");
    assert!(
        err.starts_with("error[E2017]: 1 partitions are damaged: ") && err.contains("coulee repair --data-dir"),
        "{err}"
    );
    assert!(err.contains("topic t partition 0: p/2/00000000000000000000.log at byte 4096, offsets 0 to "), "{err}");
    assert!(
        out.contains("\"verdict\": \"damaged\"") && out.contains("\"what\": \"payload crc does not fit\""),
        "{out}"
    );
}

#[test]
fn a_directory_that_is_in_use_missing_or_nobodys_is_refused() {
    let broker = Broker::start();
    let (code, out, err) = verify(&broker.folder().data());
    assert_eq!((code, out.as_str()), (6, ""), "{err}");
    assert!(err.starts_with("error[E2007]: ") && err.contains("in use by process"), "{err}");
    let folder = Folder::new();
    assert_eq!(verify(&folder.data()).0, 3);
    fs::create_dir(folder.data()).unwrap();
    let (code, _, err) = verify(&folder.data());
    assert!(code == 3 && err.contains("this is no data directory"), "{err}");
    assert_eq!(fs::read_dir(folder.data()).unwrap().count(), 0);
}

#[test]
fn a_running_broker_proves_that_it_keeps_what_it_acknowledges() {
    let broker = Broker::start();
    let (code, out, err) =
        run(broker.address(), &["verify", "--for", "1s", "--rate", "20000", "-p", "3", "-o", "json"]);
    assert_eq!(code, 0, "{out}{err}");
    for count in ["lost", "doubled", "out_of_order", "changed", "unknown", "not_written"] {
        assert!(out.contains(&format!("\"{count}\": 0,")), "{count}: {out}");
    }
    assert!(out.contains("\"verdict\": \"holds\"") && !out.contains("\"acknowledged\": 0,"), "{out}");
    assert_eq!(run(broker.address(), &["topic", "list", "-o", "json"]).1, "[]\n", "its topic is gone");
    let taken = ["verify", "--for", "1s", "--rate", "1000", "--topic", "mine", "--keep"];
    assert_eq!(run(broker.address(), &taken).0, 0);
    let (code, _, err) = run(broker.address(), &taken);
    assert!(code == 6 && err.starts_with("error[E36]: "), "{err}");
}

#[test]
fn a_broker_that_is_killed_and_started_again_meanwhile_keeps_the_proof() {
    let mut broker = Broker::start();
    let options = Options { listen: broker.address().to_owned(), ..Options::default() };
    let mut command = Command::new(program());
    command.args(["verify", "--for", "4s", "--rate", "20000", "--topic", "v", "-o", "json"]).env_clear();
    command.env("COULEE_ADDRESS", broker.address()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    for round in 1..=2 {
        // Something of this life of the broker is acknowledged before it is killed.
        let has_records =
            || run(broker.address(), &["consume", "v", "--until-end", "-n", "1"]).1.starts_with("coulee-verify");
        while !has_records() {}
        broker = Broker::start_on(broker.kill(), &options);
        println!("killed {round} times");
    }
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("\"verdict\": \"holds\"") && out.contains("\"lost\": 0,"), "{out}");
    let (code, out, err) = verify(&broker.stop().data());
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn a_repair_says_what_it_would_do_does_it_when_told_and_then_finds_nothing_to_do() {
    let folder = filled().stop();
    let data = folder.data();
    let repair = |more: &[&str]| {
        let mut line = vec!["repair", "--data-dir", data.to_str().unwrap(), "-o", "json"];
        line.extend(more);
        run("", &line)
    };
    let all = files(&data);
    let of = |uid: &str| {
        all.keys().find(|path| path.to_string_lossy().contains(uid) && path.extension().unwrap() == "log").unwrap()
    };
    // A header page, a record, and both copies of the meta file.
    for (path, at) in [(of("/p/2/"), 100), (of("/p/3/"), 4_096 + 300)] {
        let mut bytes = all[path].1.clone();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    fs::remove_file(data.join("meta.a")).unwrap();
    fs::remove_file(data.join("meta.b")).unwrap();
    let damaged = files(&data);
    let (code, out, err) = repair(&[]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("\"done\": false") && out.contains("make meta.a and meta.b"), "{out}");
    assert!(damaged == files(&data), "without -y nothing is changed");
    let (code, out, err) = repair(&["-y"]);
    assert_eq!(code, 0, "{out}{err}");
    for told in ["make meta.a", "write the header page of p/2/", "mark offsets 0 to ", "\"sound\": true"] {
        assert!(out.contains(told), "{told}: {out}");
    }
    let (code, again, err) = repair(&["-y"]);
    assert!(code == 0 && again.contains("\"steps\": []") && err.contains("nothing to repair"), "{again}{err}");
    assert_eq!(verify(&data).0, 0);
    let kept = out.split("\"kept\": \"").nth(1).unwrap().split('"').next().unwrap();
    let kept = files(&data.join(kept));
    assert!(kept.keys().any(|path| path.ends_with("pass-1.txt")), "{kept:?}");
    let page =
        kept.iter().find(|(path, _)| path.to_string_lossy().ends_with("/2-00000000000000000000-0.bytes")).unwrap();
    assert_eq!(page.1.1, damaged[of("/p/2/")].1[..4_096], "the page as it was found");
    let broker = Broker::start_on(folder, &Options::default());
    let (code, out, err) = run(broker.address(), &["consume", "t", "--until-end", "-f", "%p\\n"]);
    assert!(code == 1 && err.contains("error[E1006]: partition 1: stored records of offsets 0 to "), "{err}");
    assert!(out.matches("0\n").count() > 500, "the partition whose page was restored is read");
    let (_, skipped, err) = run(broker.address(), &["consume", "t", "--until-end", "--skip-damaged", "-f", "%p\\n"]);
    assert!(skipped.len() >= out.len() && err.contains("stepped over"), "{err}");
}
