//! Power cuts with the real broker on a real filesystem, over a disk that logs what is done to it; owns the runs and
//! what has to be true after each cut.
//!
//! Load is put on once, and the power is cut many times: at any place of the log, on a disk that holds what was flushed
//! and what chance leaves of the rest. `COULEE_CUTS`, `COULEE_CUTS_SEED` and `COULEE_CUTS_LOG` change what is run.

#![allow(clippy::unwrap_used, reason = "what the tests share fails as they do")]

mod ledger;
mod load;
mod recording;

use coulee_client::{Client, OffsetSpec, Start};
use coulee_tests::block_device::Entry;
use coulee_tests::broker::{Folder, Process, address};
use coulee_tests::chance::{Chance, setting};
use coulee_tests::mounts::{Mount, own_mounts, skip, system};
use coulee_tests::power_cut::{Durable, survive};
use coulee_tests::rig::{FILESYSTEMS, Filesystem};
use ledger::{Ledger, Seen, Sent};
use load::{FLEETING, TOPICS};
use recording::{Recording, options};
use std::fmt::Write;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// Cuts of `make test`, on each filesystem half of them.
const CUTS: usize = 200;
/// Cuts in the log of one recording.
const CUTS_OF_A_RECORDING_MAX: usize = 100;
/// What one fetch asks for.
const FETCH_BYTES: usize = 256 << 10;
/// What the broker may log after a cut at this level or worse: the cut was amid the making of a topic.
const ALLOWED: &str = "a partition's directory that the catalog does not know";

/// Starts the broker on what a cut has left, and compares; how many records were due, or what is wrong.
fn check_cut(folder: &Folder, image: &str, ledger: &Ledger, cut: usize) -> Result<usize, String> {
    // The filesystem replays its journal here.
    let mount = Mount::image(&folder.at("cut"), image)?;
    // No files are zeroed ahead: they are not needed any more.
    let mut broker = Process::spawn(folder, &mount.path().join("data"), &options(2, 0));
    let ready = broker.ready_line().map_err(|ended| format!("no start: {}\n{}", ended.status, ended.log))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = runtime.block_on(read(&address(&ready), ledger));
    let log = broker.log();
    let is_bad = |line: &&str| line.contains(r#""level":"WARN"#) || line.contains(r#""level":"ERROR"#);
    let complaint = log.lines().filter(is_bad).find(|line| !line.contains(ALLOWED));
    broker.kill();
    let due = ledger.check(cut, &seen?).map_err(|wrong| wrong.to_string())?;
    complaint.map_or(Ok(due), |complaint| Err(complaint.to_owned()))
}

/// What each partition of each topic holds.
async fn read(address: &str, ledger: &Ledger) -> Result<Seen, String> {
    let client = Client::connect(address).await.map_err(|error| error.to_string())?;
    let there = client.topics(false).await.map_err(|error| error.to_string())?;
    let mut seen = Seen::new();
    for number in ledger.topics().0 {
        let name = if number < FLEETING { TOPICS[number as usize].name.to_owned() } else { load::fleeting(number) };
        if there.iter().any(|there| there.name == name) {
            read_topic(&client, number, &name, &mut seen).await?;
        }
    }
    Ok(seen)
}

async fn read_topic(client: &Client, number: u32, name: &str, seen: &mut Seen) -> Result<(), String> {
    let topic = seen.entry(number).or_default();
    let ends = client.list_offsets(name, &[], OffsetSpec::End).await.map_err(|error| format!("{name}: {error}"))?;
    let mut left: u64 = ends.iter().map(|end| end.offset.unwrap_or_default()).sum();
    // A connection has room for fetches of so many bytes, also for those of consumers that are gone.
    let consumer = client.consumer(name).start(Start::Start).max_bytes(FETCH_BYTES).max_wait(Duration::from_secs(10));
    let mut consumer = consumer.build().await.map_err(|error| format!("{name}: {error}"))?;
    while left > 0 {
        let batch = consumer.poll().await.map_err(|error| format!("{name}: {error}"))?;
        let mut batch = batch.ok_or_else(|| format!("{name}: {left} records below the end do not come"))?;
        for record in batch.records().map_err(|error| format!("{name}: {error}"))? {
            let (partition, offset) = (record.partition, record.offset);
            let sent = record.value.and_then(Sent::of);
            let sent = sent.ok_or_else(|| format!("{name}-{partition}, offset {offset}: a changed value"))?;
            let records = topic.entry(partition).or_default();
            if offset != records.len() as u64 {
                return Err(format!("{name}-{partition}: offset {offset} follows {} records", records.len()));
            }
            records.push(sent);
            left -= 1;
        }
    }
    Ok(())
}

/// What came of many cuts.
#[derive(Default)]
struct Tally {
    cuts: usize,
    due: usize,
    unflushed: usize,
    wrong: Vec<String>,
    /// A line for each cut.
    log: String,
}

impl Tally {
    fn note(&mut self, cut: &str, unflushed: usize, result: Result<usize, String>) {
        self.cuts += 1;
        self.unflushed += unflushed;
        match result {
            Ok(due) => {
                self.due += due;
                writeln!(self.log, "{cut} {unflushed} {due} ok").unwrap();
                println!("cut {cut} ok");
            }
            Err(wrong) => {
                writeln!(self.log, "{cut} {unflushed} - BAD").unwrap();
                println!("cut {cut} BAD\nBAD {cut}: {wrong}");
                self.wrong.push(format!("{cut}: {wrong}"));
            }
        }
    }
}

/// One recording, and cuts at random places of its log.
fn run(filesystem: Filesystem, cuts: usize, seed: u64, tally: &mut Tally) {
    let folder = Folder::new();
    let _memory = Mount::new(&folder.at("memory"), &["-t", "tmpfs", "-o", "size=2G", "tmpfs"]).unwrap();
    let mut chance = Chance(seed);
    let (base, live, cut_image) = (folder.at("memory/base"), folder.at("memory/live"), folder.at("memory/cut"));
    filesystem.make(&base).unwrap();
    copy(&base, &live);
    let recording = Recording::make(&folder, &live, &mut chance);
    let Recording { entries, ledger, .. } = &recording;
    std::fs::remove_file(live).unwrap();
    let mut places: Vec<usize> = (0..cuts).map(|_| place(&recording, &mut chance)).collect();
    places.sort_unstable();
    let write = |name: &str| File::options().write(true).open(name).unwrap();
    let mut durable = Durable::new(write(&base));
    for cut in places {
        let flushed = durable.advance(entries, cut).unwrap();
        copy(&base, &cut_image);
        survive(&write(&cut_image), &entries[flushed..cut], &mut chance).unwrap();
        let result = check_cut(&folder, &cut_image, ledger, cut);
        tally.note(&format!("{} {seed} {cut}/{}", filesystem.name, entries.len()), cut - flushed, result);
        std::fs::remove_file(&cut_image).unwrap();
    }
}

/// Where to cut: half of the time at steady work, else at any. There, where all acks that were under way had come;
/// right before a flush, of some the one that has the most writes to flush; or anywhere.
fn place(Recording { entries, steady_at, stills, .. }: &Recording, chance: &mut Chance) -> usize {
    let is_write = |entry: &&Entry| matches!(entry, Entry::Write(..));
    let begin = if chance.is_hit(1, 2) { *steady_at } else { 0 };
    let kind = chance.below(4);
    let mut anywhere = || begin + chance.below((entries.len() - begin) as u64 + 1) as usize;
    let before_flush = |place: usize| place + entries[place..].iter().take_while(is_write).count();
    let in_doubt = |end: &usize| entries[..*end].iter().rev().take_while(is_write).count();
    match kind {
        0..2 => {
            let place = anywhere();
            stills.iter().copied().find(|still| *still >= place).unwrap_or(place)
        }
        2 => (0..8).map(|_| before_flush(anywhere())).max_by_key(in_doubt).expect("there are some"),
        _ => anywhere(),
    }
}

fn copy(from: &str, to: &str) {
    system("cp", &["--sparse=always", from, to]).unwrap();
}

#[test]
fn every_acknowledged_record_outlives_a_power_cut_in_order_and_once() {
    if let Err(why) = own_mounts() {
        return skip("every_acknowledged_record_outlives_a_power_cut_in_order_and_once", &why);
    }
    let mut left = setting("COULEE_CUTS").map_or(CUTS, |cuts| cuts as usize);
    let mut seed = setting("COULEE_CUTS_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let began = Instant::now();
    let mut tallies = FILESYSTEMS.map(|filesystem| (filesystem, Tally::default()));
    let of_a_recording = left.div_ceil(FILESYSTEMS.len()).min(CUTS_OF_A_RECORDING_MAX);
    while left > 0 {
        for (filesystem, tally) in &mut tallies {
            let cuts = of_a_recording.min(left);
            left -= cuts;
            println!("{}: COULEE_CUTS_SEED={seed}, {cuts} cuts", filesystem.name);
            run(*filesystem, cuts, seed, tally);
        }
        seed = seed.wrapping_add(1);
    }
    let mut log = String::from("# filesystem seed cut/log writes_in_doubt records_due result\n");
    for (Filesystem { name, .. }, Tally { cuts, due, unflushed, wrong, log: lines }) in &tallies {
        let bad = wrong.len();
        let sum = format!("{name}: {cuts} cuts, {bad} bad; {due} times a record was due; {unflushed} writes in doubt");
        println!("{sum}");
        write!(log, "# {sum}\n{lines}").unwrap();
    }
    println!("{:.1?}", began.elapsed());
    if let Some(path) = std::env::var_os("COULEE_CUTS_LOG") {
        std::fs::write(path, log).unwrap();
    }
    let wrong: Vec<String> = tallies.into_iter().flat_map(|(_, tally)| tally.wrong).collect();
    assert!(wrong.is_empty(), "{} cuts:\n{}", wrong.len(), wrong.join("\n"));
}
