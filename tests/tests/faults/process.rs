//! Faults of the process and of what it is given; they know no byte of the log.
//!
//! It is stopped, or has no descriptors, memory or room on the disk, or a clock that jumps.

use crate::load::{create_topic, runtime};
use crate::{Trial, rounds};
use coulee_client::{Client, NewTopic, Record, Start};
use coulee_tests::broker::{Folder, Options, Process, address};
use coulee_tests::mounts::{Mount, own_mounts, skip, system};
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

/// Acks between one thing that is done and the next.
const ACKS: usize = 300;
/// What the memory cgroup allows: the least that the broker's own share of it is enough for.
const MEMORY_BYTES: u64 = 256 << 20;

fn spawn(starter: &[&str], folder: &Folder, data: &Path, options: &Options) -> (Process, String) {
    let mut process = Process::spawn_under(starter, folder, data, options);
    let ready = process.ready_line().unwrap_or_else(|ended| panic!("{}\n{}", ended.status, ended.log));
    let address = address(&ready);
    (process, address)
}

/// Kills the broker, starts it again without what disturbed it, and checks what is there.
fn restart_and_check(trial: &mut Trial, mut broker: Process, folder: &Folder, data: &Path) {
    broker.kill();
    trial.crashed();
    let (_broker, address) = spawn(&[], folder, data, &Options::default());
    trial.check(&address);
}

#[test]
fn a_broker_that_stands_still_and_goes_on_keeps_every_promise() {
    let (mut trial, folder) = (Trial::new(), Folder::new());
    let (broker, address) = spawn(&[], &folder, &folder.data(), &Options::default());
    runtime().block_on(create_topic(&address));
    let load = trial.load(&address);
    for _ in 0..rounds() {
        load.await_acks(ACKS);
        broker.pause();
        trial.chance.moment(400_000);
        broker.go_on();
    }
    load.await_acks(ACKS);
    trial.finish(load);
    trial.check(&address);
    restart_and_check(&mut trial, broker, &folder, &folder.data());
}

#[test]
fn a_broker_that_runs_out_of_descriptors_serves_whom_it_has_and_later_others() {
    let (mut trial, folder) = (Trial::new(), Folder::new());
    // No files lie open in reserve.
    let options = Options::default().and("pool.bytes=0");
    let (mut broker, address) = spawn(&["prlimit", "--nofile=128:128"], &folder, &folder.data(), &options);
    runtime().block_on(create_topic(&address));
    for _ in 0..rounds() {
        let load = trial.load(&address);
        load.await_acks(ACKS);
        // Some of these are refused, or closed again.
        let crowd: Vec<_> = (0..300).map(|_| TcpStream::connect(&address)).collect();
        load.await_acks(ACKS);
        drop(crowd);
        load.await_acks(ACKS);
        trial.finish(load);
    }
    assert!(broker.is_alive());
    trial.check(&address);
    restart_and_check(&mut trial, broker, &folder, &folder.data());
}

/// A memory cgroup, removed with its owner.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Nothing where there are none to be made (version 1).
    fn new(test: &str, bytes: u64) -> Option<Self> {
        let path = PathBuf::from(format!("/sys/fs/cgroup/memory/coulee-{}", std::process::id()));
        let made = fs::create_dir(&path);
        let made = made.and_then(|()| fs::write(path.join("memory.limit_in_bytes"), bytes.to_string()));
        if let Err(error) = made {
            skip(test, &format!("{}: {error}", path.display()));
            return None;
        }
        Some(Self(path))
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn a_broker_in_a_small_memory_cgroup_stays_within_it() {
    let Some(cgroup) = Cgroup::new("a_broker_in_a_small_memory_cgroup_stays_within_it", MEMORY_BYTES) else { return };
    let (mut trial, folder) = (Trial::new(), Folder::new());
    let enter = format!("echo $$ >{} && exec \"$@\"", cgroup.at("cgroup.procs"));
    // Memory is what the broker finds by itself.
    let set = ["pool.bytes=2MiB", "log.format=json"].map(Into::into).into();
    let options = Options { shards: 2, listen: "127.0.0.1:0".into(), set };
    let (mut broker, address) = spawn(&["sh", "-c", &enter, "sh"], &folder, &folder.data(), &options);
    runtime().block_on(create_topic(&address));
    let load = trial.load(&address);
    // More than there is memory, so that something has to be let go.
    for _ in 0..2 * rounds() {
        load.await_acks(5 * ACKS);
    }
    trial.finish(load);
    assert!(broker.is_alive(), "it was killed for its memory");
    trial.check(&address);
    let peak = fs::read_to_string(cgroup.at("memory.max_usage_in_bytes")).unwrap();
    println!("at most {} bytes of {MEMORY_BYTES}", peak.trim());
    restart_and_check(&mut trial, broker, &folder, &folder.data());
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing_that_was_acknowledged() {
    let (mut trial, folder) = (Trial::new(), Folder::new());
    let mounted = own_mounts().and_then(|()| {
        fs::File::create(folder.at("image")).unwrap().set_len(128 << 20).unwrap();
        system("mkfs.ext4", &["-q", "-m", "0", &folder.at("image")])?;
        Mount::image(&folder.at("mounted"), &folder.at("image"))
    });
    let mount = match mounted {
        Ok(mount) => mount,
        Err(why) => {
            return println!("SKIPPED a_disk_that_is_full_for_a_while_costs_nothing_that_was_acknowledged: {why}");
        }
    };
    let data = mount.path().join("data");
    let options = Options::default().and("pool.bytes=0");
    let (broker, address) = spawn(&[], &folder, &data, &options);
    runtime().block_on(create_topic(&address));
    let load = trial.load(&address);
    let filler = mount.path().join("filler");
    for _ in 0..rounds().min(5) {
        load.await_acks(ACKS);
        fill(mount.path(), &filler);
        load.await_refusals(20);
        fs::remove_file(&filler).unwrap();
        load.await_acks(ACKS);
    }
    trial.finish(load);
    trial.check(&address);
    restart_and_check(&mut trial, broker, &folder, &data);
    drop(mount);
}

/// Leaves 2 MiB free of a filesystem that a broker is writing to: how much is free changes meanwhile.
fn fill(filesystem: &Path, filler: &Path) {
    for _ in 0..100 {
        let told = system("stat", &["-f", "-c", "%a %S", &filesystem.to_string_lossy()]).unwrap();
        let free: u64 = told.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
        let bytes = free.saturating_sub(2 << 20).max(1).to_string();
        if system("fallocate", &["-l", &bytes, &filler.to_string_lossy()]).is_ok() {
            return;
        }
        fs::remove_file(filler).unwrap();
    }
    panic!("the broker is always faster");
}

/// The library that fakes the clock, of Debian's package `faketime`.
fn faketime() -> Option<PathBuf> {
    let machine = std::env::consts::ARCH;
    let path = PathBuf::from(format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"));
    path.exists().then_some(path)
}

/// The timestamp that a broker gives a record now, in seconds.
async fn stamped_s(client: &Client) -> u64 {
    let producer = client.producer("stamped").build().await.unwrap();
    let offset = producer.send(Record::new(b"now")).await.unwrap().await.unwrap().offset.unwrap();
    let mut consumer = client.consumer("stamped").start(Start::Offset(offset)).build().await.unwrap();
    let mut batch = consumer.poll().await.unwrap().unwrap();
    batch.records().unwrap().next().unwrap().timestamp_ms as u64 / 1_000
}

#[test]
fn a_clock_that_jumps_breaks_no_promise() {
    let Some(library) = faketime() else {
        return skip("a_clock_that_jumps_breaks_no_promise", "the package faketime is not installed");
    };
    let (mut trial, folder) = (Trial::new(), Folder::new());
    let jump = |offset: &str| {
        // At once, so that nobody reads half of it.
        fs::write(folder.at("offset.new"), offset).unwrap();
        fs::rename(folder.at("offset.new"), folder.at("offset")).unwrap();
    };
    jump("+0");
    let preload = format!("LD_PRELOAD={}", library.display());
    let offset = format!("FAKETIME_TIMESTAMP_FILE={}", folder.at("offset"));
    let starter = ["env", &preload, &offset, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    let (broker, address) = spawn(&starter, &folder, &folder.data(), &Options::default());
    runtime().block_on(async {
        create_topic(&address).await;
        let client = Client::connect(&address).await.unwrap();
        let stamped = NewTopic::new("stamped").config("message.timestamp.type", "LogAppendTime");
        client.create_topic(stamped).await.unwrap();
    });
    let load = trial.load(&address);
    let mut stamps = Vec::new();
    for offset in ["+0", "+400d", "-400d", "+1h", "-1h"] {
        jump(offset);
        load.await_acks(ACKS);
        stamps.push(runtime().block_on(async { stamped_s(&Client::connect(&address).await.unwrap()).await }));
    }
    let year_s = 365 * 24 * 3_600;
    assert!(stamps[1] > stamps[0] + year_s && stamps[2] + year_s < stamps[0], "the clock did not jump: {stamps:?}");
    trial.finish(load);
    trial.check(&address);
    // The next broker starts with the clock as it is, a year before or behind some of what is stored.
    restart_and_check(&mut trial, broker, &folder, &folder.data());
}
