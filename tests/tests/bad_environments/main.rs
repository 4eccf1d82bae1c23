//! Bad environments, each a clear error of the real program; refuses to know how the broker finds them out.
//!
//! What needs root is skipped without it, and says so: `SKIPPED` lines are counted by whoever runs the gate.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use coulee_tests::broker::{Folder, program};
use ground::{Mount, NOBODY, acknowledged, ask_for_newer_reader, find, held, is_root, lines, system};
use process::{Broker, piped, refused, run, tell};

#[cfg(test)]
mod ground;
#[cfg(test)]
mod process;

#[test]
fn a_directory_without_rights_is_refused_with_what_to_change() {
    let folder = Folder::new();
    let copy = std::env::temp_dir().join(format!("coulee-{}", std::process::id()));
    // Root may do everything, so that another user tries; the program has to lie where that one may read it.
    fs::copy(program(), &copy).unwrap();
    fs::create_dir(folder.at("locked")).unwrap();
    fs::set_permissions(folder.at("locked"), fs::Permissions::from_mode(0o500)).unwrap();
    for dir in [folder.at("locked"), folder.at("locked/data")] {
        let mut command = Command::new(&copy);
        command.args(["serve", "--listen", "127.0.0.1:0", "--shards", "1", "--data-dir", &dir]).env_clear();
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        run(piped(command), b"").is_error(1, 2_013, &["ermission denied", &dir]);
    }
    fs::remove_file(&copy).unwrap();
}

#[test]
fn a_directory_in_use_is_refused_with_the_process_that_has_it() {
    let folder = Folder::new();
    let broker = Broker::start(&folder.at("data"));
    let process = format!("process {}", broker.process());
    refused(&folder.at("data"), &[]).is_error(6, 2_007, &["in use", &process]);
    broker.tell(&["topic", "list"]).is_good();
}

#[test]
fn a_directory_of_a_newer_format_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    Broker::start(&folder.at("data")).kill();
    for copy in ["data/meta.a", "data/meta.b"] {
        let Ok(mut bytes) = fs::read(folder.at(copy)) else { continue };
        // The oldest version that a reader has to know, and the checksum over it (docs/STORAGE_FORMAT.md, "Meta").
        bytes[6] = 2;
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        fs::write(folder.at(copy), bytes).unwrap();
    }
    refused(&folder.at("data"), &[]).is_error(1, 1_009, &["format version 2", "up to 1"]);
    assert_eq!(fs::read(folder.at("data/meta.a")).unwrap()[6], 2);
}

#[test]
fn a_lost_meta_file_is_refused_where_there_are_partitions() {
    let folder = Folder::new();
    let broker = Broker::start(&folder.at("data"));
    broker.tell(&["topic", "create", "kept"]).is_good();
    broker.kill();
    let copies: Vec<String> = ["data/meta.a", "data/meta.b"].map(|name| folder.at(name)).into();
    let kept: Vec<Option<Vec<u8>>> = copies.iter().map(|copy| fs::read(copy).ok()).collect();
    copies.iter().for_each(|copy| drop(fs::remove_file(copy)));
    refused(&folder.at("data"), &[]).is_error(1, 2_005, &["meta.a", "meta.b", "restore"]);
    // One of them is enough.
    let (copy, bytes) = copies.iter().zip(kept).find_map(|(copy, bytes)| Some((copy, bytes?))).unwrap();
    fs::write(copy, bytes).unwrap();
    let broker = Broker::start(&folder.at("data"));
    assert!(broker.tell(&["topic", "list"]).is_good().out.contains("kept"));
}

#[test]
fn a_segment_of_a_newer_format_keeps_its_partition_shut_and_no_other() {
    let folder = Folder::new();
    let broker = Broker::start(&folder.at("data"));
    for topic in ["newer", "older"] {
        broker.tell(&["topic", "create", topic, "-p", "1"]).is_good();
        broker.tell_with(&["produce", topic], topic.as_bytes()).is_good();
    }
    broker.kill();
    let holds_newer = |path: &Path| {
        path.extension().is_some_and(|end| end == "log")
            && fs::read(path).unwrap().windows(5).any(|bytes| bytes == b"newer")
    };
    let mut changed = 0;
    for dir in fs::read_dir(folder.at("data/p")).unwrap().map(|entry| entry.unwrap().path()) {
        // The catalog holds the name too; its partition is 1.
        if dir.file_name().unwrap() != "1"
            && let Some(segment) = find(&dir, &holds_newer)
        {
            let mut bytes = fs::read(&segment).unwrap();
            ask_for_newer_reader(&mut bytes);
            fs::write(&segment, bytes).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 1);
    let broker = Broker::start(&folder.at("data"));
    let older = broker.tell(&["consume", "older", "--until-end", "-f", "%v\\n"]);
    assert_eq!(older.is_good().out, "older\n");
    broker.tell(&["consume", "newer", "--until-end"]).is_error(1, 1_009, &["newer version"]);
    broker.tell_with(&["produce", "newer", "--timeout", "2s"], b"more\n").is_error(1, 1_009, &["newer version"]);
    let said = broker.kill();
    assert!(said.contains("version"), "the log names the reason: {said}");
}

#[test]
fn a_file_in_place_of_the_directory_is_refused_by_its_name() {
    let folder = Folder::new();
    fs::write(folder.at("data"), "no directory").unwrap();
    refused(&folder.at("data"), &[]).is_error(1, 2_013, &[&folder.at("data")]);
    refused(&folder.at("data/below"), &[]).is_error(1, 2_013, &[&folder.at("data/below")]);
    assert_eq!(fs::read(folder.at("data")).unwrap(), b"no directory");
}

#[test]
fn faults_of_a_configuration_file_are_told_with_their_place_and_what_was_meant() {
    let folder = Folder::new();
    let (file, data) = (folder.at("coulee.toml"), folder.at("data"));
    fs::write(&file, "shards = 1\n[native]\n  lisen = \"127.0.0.1:0\"\n[memory]\nshard = \"12 parsecs\"\n").unwrap();
    let told = refused(&data, &["--config", &file]);
    told.is_error(2, 2_001, &["2 faults", "coulee.toml:3:3", "did you mean \"native.listen\"?", "coulee.toml:5:"]);
    assert!(!Path::new(&data).exists(), "nothing was made before the configuration was read");
    fs::write(&file, "shards = = 1\n").unwrap();
    refused(&data, &["--config", &file]).is_error(2, 2_001, &["coulee.toml:1:"]);
    refused(&data, &["--config", &folder.at("missing.toml")]).is_error(3, 2_002, &["missing.toml"]);
    refused(&data, &["--set", "memory.shard=1KiB"]).is_error(2, 2_001, &["memory.shard", "32MiB"]);
}

#[test]
fn flags_that_do_not_exist_are_refused_with_what_was_meant() {
    tell(&["serve", "--data-dri", "x"]).is_error(2, 2_000, &["--data-dri", "--data-dir"]);
    tell(&["topic", "creat", "x"]).is_error(2, 2_000, &["creat", "create"]);
    tell(&["consume", "t", "--offset", "yesterday"]).is_error(2, 2_000, &["yesterday"]);
}

#[test]
fn a_topic_that_does_not_exist_is_said_so_by_every_command() {
    let folder = Folder::new();
    let broker = Broker::start(&folder.at("data"));
    broker.tell(&["topic", "create", "orders"]).is_good();
    for arguments in [
        &["produce", "order"][..],
        &["consume", "order", "--until-end"],
        &["topic", "describe", "order"],
        &["topic", "delete", "order", "-y"],
    ] {
        broker.tell_with(arguments, b"one\n").is_error(3, 3, &["order"]);
    }
    let address = broker.address.clone();
    broker.kill();
    let told = tell(&["topic", "list", "--address", &address, "--timeout", "5s"]);
    told.is_error(5, 2_003, &[&address, "coulee serve"]);
}

#[test]
fn an_address_that_is_taken_is_refused_by_its_name() {
    let folder = Folder::new();
    let broker = Broker::start(&folder.at("data"));
    let told = tell(&["serve", "--shards", "1", "--listen", &broker.address, "--data-dir", &folder.at("other")]);
    told.is_error(6, 2_006, &[&broker.address]);
}

#[test]
fn a_read_only_filesystem_is_refused_by_the_start() {
    let Some(mount) = Mount::new("a_read_only_filesystem_is_refused_by_the_start", 64 << 20) else { return };
    Broker::start(&mount.at("data")).kill();
    mount.remount("ro");
    refused(&mount.at("data"), &[]).is_error(1, 2_013, &["ead-only"]);
    refused(&mount.at("other"), &[]).is_error(1, 2_013, &["ead-only"]);
    mount.remount("rw");
    Broker::start(&mount.at("data"));
}

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_room() {
    let test = "a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_room";
    let Some(mount) = Mount::new(test, 192 << 20) else { return };
    let broker = Broker::start(&mount.at("data"));
    broker.tell(&["topic", "create", "filled", "-p", "1"]).is_good();
    broker.tell_with(&["produce", "filled"], &lines(0, 1_000)).is_good();
    // Takes all room but 24 MiB.
    mount.fill_but(24 << 20);
    let told = broker.tell_with(&["produce", "filled", "--timeout", "3s", "-o", "json"], &lines(1_000, 101_000));
    assert_eq!(told.exit, 7, "{told:?}");
    assert!(told.error.contains("disk is full"), "{told:?}");
    let done = acknowledged(&told.out);
    assert!(done > 0, "there was some room: {told:?}");
    let there = held(&broker);
    assert!(there.len() >= 1_000 + done, "{} lines are there, 1000 and {done} were acknowledged", there.len());
    assert!(there.is_sorted(), "in the order in which they were sent");
    // The disk stays full: of the next lines those few go in that the last segment has room for.
    let told = broker.tell_with(&["produce", "filled", "--timeout", "2s", "-o", "json"], &lines(200_000, 240_000));
    assert!(told.exit == 5 || told.exit == 7, "{told:?}");
    assert!(told.error.contains("the disk is full"), "{told:?}");
    let late = acknowledged(&told.out);
    fs::remove_file(mount.at("filler")).unwrap();
    broker.tell_with(&["produce", "filled"], &lines(300_000, 301_000)).is_good();
    broker.kill();
    let broker = Broker::start(&mount.at("data"));
    let after = held(&broker);
    assert_eq!(after[..there.len()], there, "what was there is there after a kill");
    let between = |from, end| after.iter().filter(|number| (from..end).contains(*number)).count();
    assert!(between(200_000, 240_000) >= late, "{late} of these were acknowledged");
    assert_eq!(between(300_000, 301_000), 1_000);
}

#[test]
fn a_start_without_room_on_the_disk_says_so() {
    let Some(mount) = Mount::new("a_start_without_room_on_the_disk_says_so", 64 << 20) else { return };
    // Whatever is left is taken: the command fails when it has taken the last block.
    drop(system("dd", &["if=/dev/zero", &format!("of={}", mount.at("filler")), "bs=4096"]));
    refused(&mount.at("data"), &[]).is_error(1, 2_013, &["No space left"]);
    fs::remove_file(mount.at("filler")).unwrap();
    Broker::start(&mount.at("data"));
}
