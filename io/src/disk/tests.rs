//! The disk on a real filesystem: each operation, a model, a full disk, a whole shard; knows nothing of sockets.

use super::*;
use crate::ring::RingOptions;
use crate::ring::tests::{all, cycle, on_executor, poll_once};
use coulee_core::disk::{Copy2, File, WriteMode};
use coulee_core::executor::Random;
use coulee_protocol::ids::Offset;
use std::os::unix::fs::MetadataExt as _;
use std::pin::pin;
use std::process::Command;

mod shards;

/// Runs `test` with a disk in a directory of its own.
pub(crate) fn with_disk<T>(test: impl AsyncFnOnce(FileDisk) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    on_executor(RingOptions::default(), async |ring| test(open(dir.path(), &ring)).await)
}

fn open(path: &Path, ring: &Ring) -> FileDisk {
    FileDisk::open(path, ring.clone(), BlockPool::new(8 << 20)).unwrap()
}

pub(crate) fn filled(byte: u8, blocks: usize) -> Block {
    let mut block = BlockPool::new(0).take(blocks * BLOCK_BYTES);
    block.extend(&vec![byte; blocks * BLOCK_BYTES]);
    block.freeze()
}

const UID: PartitionUid = PartitionUid(7);
const SEGMENT: FileName = FileName::Segment(UID, Offset(12));

#[test]
fn a_created_file_reads_as_zeros_replaces_its_namesake_and_holds_what_is_written() {
    with_disk(async |disk| {
        assert_eq!(disk.open(FileName::Meta(Copy2::A)).await.err(), Some(DiskError::NotFound));
        let former = disk.create(FileName::Meta(Copy2::A), 4_096).await.unwrap();
        former.write_at(vec![filled(1, 1)], 0, WriteMode::Written).await.unwrap();
        let file = disk.create(FileName::Meta(Copy2::A), 16_384).await.unwrap();
        assert_eq!(file.len(), 16_384);
        assert!(file.read_at(0, 16_384).await.unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(&*former.read_at(0, 4_096).await.unwrap(), [1; 4_096], "an open file outlives its name");
        file.write_at(vec![filled(2, 1), filled(3, 1)], 4_096, WriteMode::Written).await.unwrap();
        file.write_at(vec![filled(4, 1)], 12_288, WriteMode::Durable).await.unwrap();
        file.sync().await.unwrap();
        let again = disk.open(FileName::Meta(Copy2::A)).await.unwrap();
        assert_eq!(again.len(), 16_384);
        let bytes = again.read_at(0, 16_384).await.unwrap();
        assert_eq!(bytes.iter().step_by(4_096).copied().collect::<Vec<_>>(), [0, 2, 3, 4]);
        file.zero(4_096..12_288).await.unwrap();
        let bytes = again.read_at(0, 16_384).await.unwrap();
        assert_eq!(bytes.iter().step_by(4_096).copied().collect::<Vec<_>>(), [0, 0, 0, 4]);
        assert_eq!(fs::read_dir(disk.root().join(NEW_DIR)).unwrap().count(), 0, "nothing unfinished is left");
    });
}

#[test]
fn reads_and_writes_beyond_the_end_say_so_and_a_cut_file_too() {
    with_disk(async |disk| {
        let file = disk.create(FileName::Meta(Copy2::B), 8_192).await.unwrap();
        assert_eq!(file.read_at(4_096, 8_192).await.err(), Some(DiskError::BeyondEnd));
        assert_eq!(file.read_at(u64::MAX - 4_095, 4_096).await.err(), Some(DiskError::BeyondEnd));
        let beyond = file.write_at(vec![filled(1, 2)], 4_096, WriteMode::Written).await;
        assert_eq!(beyond, Err(DiskError::BeyondEnd));
        let other = OpenOptions::new().write(true).open(disk.root().join("meta.b")).unwrap();
        other.set_len(5_000).unwrap();
        assert_eq!(file.read_at(4_096, 4_096).await.err(), Some(DiskError::BeyondEnd));
        let cut = disk.open(FileName::Meta(Copy2::B)).await.unwrap();
        assert_eq!(cut.len(), 5_000);
        assert!(cut.read_at(0, 4_096).await.is_ok());
        assert_eq!(cut.read_at(4_096, 4_096).await.err(), Some(DiskError::BeyondEnd));
    });
}

#[test]
fn names_are_made_renamed_listed_and_removed() {
    with_disk(async |disk| {
        assert_eq!(disk.list(Dir::Pool(3)).await, Ok(vec![]), "no such directory is an empty one");
        assert_eq!(disk.list_partitions().await, Ok(vec![]));
        for dir in [Dir::Partitions, Dir::Checkpoints, Dir::Pool(3), Dir::Partition(UID), Dir::Partition(UID)] {
            disk.create_dir(dir).await.unwrap();
            disk.sync_dir(dir).await.unwrap();
        }
        disk.create_dir(Dir::Partition(PartitionUid(30))).await.unwrap();
        disk.create_dir(Dir::Partition(PartitionUid(4))).await.unwrap();
        fs::create_dir(disk.root().join("p/007")).unwrap();
        assert_eq!(disk.list_partitions().await, Ok(vec![PartitionUid(4), UID, PartitionUid(30)]));

        disk.create(FileName::Fresh(3, 1), 4_096).await.unwrap();
        disk.rename(FileName::Fresh(3, 1), FileName::Pool(3, 1)).await.unwrap();
        disk.create(FileName::Pool(3, 0), 4_096).await.unwrap();
        fs::write(disk.root().join("pool/3/foreign"), "").unwrap();
        assert_eq!(disk.list(Dir::Pool(3)).await, Ok(vec![FileName::Pool(3, 0), FileName::Pool(3, 1)]));
        assert_eq!(disk.rename(FileName::Fresh(3, 1), SEGMENT).await, Err(DiskError::NotFound));
        disk.rename(FileName::Pool(3, 1), SEGMENT).await.unwrap();
        assert_eq!(disk.list(Dir::Partition(UID)).await, Ok(vec![SEGMENT]));
        assert!(disk.remove_dir(Dir::Partition(UID)).await.is_err(), "a directory that holds a file stays");
        disk.remove(SEGMENT).await.unwrap();
        disk.remove(SEGMENT).await.unwrap();
        disk.remove_dir(Dir::Partition(UID)).await.unwrap();
        disk.remove_dir(Dir::Partition(UID)).await.unwrap();
        assert_eq!(disk.sync_dir(Dir::Partition(UID)).await, Err(DiskError::NotFound));
        disk.sync_dir(Dir::Root).await.unwrap();
    });
}

#[test]
fn an_empty_file_opened_first_spoils_nothing_for_the_files_after_it() {
    with_disk(async |disk| {
        fs::write(disk.root().join("meta.a"), "").unwrap();
        let empty = disk.open(FileName::Meta(Copy2::A)).await.unwrap();
        assert!(empty.is_empty());
        assert_eq!(empty.read_at(0, 4_096).await.err(), Some(DiskError::BeyondEnd));
        let file = disk.create(FileName::Meta(Copy2::B), 4_096).await.unwrap();
        file.write_at(vec![filled(5, 1)], 0, WriteMode::Durable).await.unwrap();
        assert_eq!(&*file.read_at(0, 4_096).await.unwrap(), [5; 4_096]);
    });
}

#[test]
fn a_create_that_is_dropped_half_way_leaves_a_whole_file_or_none() {
    with_disk(async |disk| {
        // Polled once it opens, twice it reserves space, three times it takes its name.
        for polls in 1..4 {
            assert_eq!(disk.list(Dir::Root).await, Ok(vec![]), "after {} polls", polls - 1);
            {
                let mut create = pin!(disk.create(FileName::Meta(Copy2::A), 1 << 20));
                for _ in 0..polls {
                    if poll_once(create.as_mut()).await.is_ready() {
                        break;
                    }
                    while disk.ring().in_flight() > 0 {
                        disk.ring().submit().unwrap();
                        disk.ring().reap();
                    }
                }
            }
            while disk.ring().in_flight() > 0 {
                disk.ring().submit().unwrap();
                disk.ring().reap();
            }
        }
        assert_eq!(disk.open(FileName::Meta(Copy2::A)).await.unwrap().len(), 1 << 20);
        let left = fs::read_dir(disk.root().join(NEW_DIR)).unwrap().count();
        // An open that nobody waits for any more may have made its file: the next start removes it.
        assert!(left <= 1, "{left} files are left");
        drop(lock(disk.root()).unwrap());
        assert_eq!(fs::read_dir(disk.root().join(NEW_DIR)).unwrap().count(), 0);
    });
}

/// Flushes that the block device below `path` has completed, or `None` where it does not count them, as a device
/// without a volatile cache does not.
fn device_flushes(path: &Path) -> Option<u64> {
    let device = fs::metadata(path).unwrap().dev();
    let block = format!("/sys/dev/block/{}:{}", libc::major(device), libc::minor(device));
    let cache = fs::read_to_string(format!("{block}/queue/write_cache")).ok()?;
    let stat = fs::read_to_string(format!("{block}/stat")).ok()?;
    (cache.trim() == "write back").then(|| stat.split_whitespace().nth(15)?.parse().ok())?
}

#[test]
fn a_sync_of_the_device_flushes_it_each_time_also_where_nothing_was_written() {
    with_disk(async |disk| {
        let Some(before) = device_flushes(disk.root()) else {
            println!("the device below counts no flushes: nothing to compare");
            return disk.sync_device().await.unwrap();
        };
        for _ in 0..50 {
            disk.sync_device().await.unwrap();
        }
        let flushes = device_flushes(disk.root()).unwrap() - before;
        assert!(flushes >= 50 || !disk.device_flush_proved(), "{flushes} flushes for 50 syncs of the device");
    });
}

#[test]
fn only_filesystems_that_flush_for_a_clean_file_stand_in_for_syncs_of_each() {
    with_disk(async |disk| {
        let proved = disk.device_flush_proved();
        let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(disk.root()).output().unwrap();
        let kind = String::from_utf8(kind.stdout).unwrap();
        assert_eq!(proved, ["ext2/ext3", "ext4", "xfs"].contains(&kind.trim()), "{kind}");
    });
}

#[test]
fn ten_thousand_random_writes_read_back_as_the_model_says() {
    let seed = 41;
    with_disk(async |disk| {
        let blocks = 256_u64;
        let file = disk.create(FileName::Pool(0, 1), blocks * 4_096).await;
        assert_eq!(file.err(), Some(DiskError::NotFound), "there is no such directory yet");
        disk.create_dir(Dir::Pool(0)).await.unwrap();
        let file = disk.create(FileName::Pool(0, 1), blocks * 4_096).await.unwrap();
        let (mut random, mut model, mut done) = (Random::new(seed), vec![0_u8; blocks as usize], 0);
        while done < 10_000 {
            // Up to sixteen at once, side by side: no two cover one block.
            let (mut at, mut writes) = (random.below(8), Vec::new());
            while writes.len() < 16 && at + 6 < blocks {
                let (byte, count) = (random.next() as u8, 1 + random.below(6) as usize);
                model[at as usize..at as usize + count].fill(byte);
                let parts =
                    if count > 2 { vec![filled(byte, 2), filled(byte, count - 2)] } else { vec![filled(byte, count)] };
                let mode = if random.below(50) == 0 { WriteMode::Durable } else { WriteMode::Written };
                writes.push(file.write_at(parts, at * 4_096, mode));
                at += count as u64 + random.below(20);
            }
            done += writes.len();
            assert!(all(writes).await.iter().all(Result::is_ok), "seed {seed}");
            match random.below(20) {
                0 => file.sync().await.unwrap(),
                1 => disk.sync_device().await.unwrap(),
                _ => {}
            }
            let (at, count) = (random.below(blocks - 64), 1 + random.below(64));
            let bytes = file.read_at(at * 4_096, count as usize * 4_096).await.unwrap();
            for (index, block) in bytes.chunks(4_096).enumerate() {
                let byte = model[at as usize + index];
                assert!(block.iter().all(|b| *b == byte), "seed {seed}, {done} writes, block {}", at as usize + index);
            }
        }
        file.sync().await.unwrap();
        let stored = fs::read(disk.root().join("pool/0/1.log")).unwrap();
        assert!(stored.chunks(4_096).zip(&model).all(|(block, byte)| block.iter().all(|b| b == byte)), "seed {seed}");
    });
}

#[test]
fn a_sealed_file_is_mapped_and_its_blocks_outlive_file_and_disk() {
    let dir = tempfile::tempdir().unwrap();
    let block = on_executor(RingOptions::default(), async |ring| {
        let disk = open(dir.path(), &ring);
        let file = disk.create(FileName::Meta(Copy2::A), 1 << 20).await.unwrap();
        file.write_at((0..64).map(|byte| filled(byte, 4)).collect(), 0, WriteMode::Written).await.unwrap();
        file.sync().await.unwrap();
        assert!(!file.resident(0..1 << 20), "what was written past the page cache is not in it");
        file.will_need(0..1 << 20);
        let block = file.map(4_096..1 << 20).unwrap();
        assert!(block.iter().step_by(4_096).zip(1..).all(|(byte, at)| *byte == (at / 4) as u8));
        assert!(file.resident(0..1 << 20) && file.resident(5..6), "what was touched is resident");
        assert!(file.map(0..(1 << 20) + 1).is_none() && !file.resident(0..u64::MAX));
        assert!(file.map(8..8).is_some_and(|empty| empty.is_empty()));
        block
    });
    assert_eq!(block[block.len() - 1], 63);
}

#[test]
fn a_file_that_is_written_again_after_its_mapping_shows_the_new_bytes() {
    with_disk(async |disk| {
        let file = disk.create(FileName::Meta(Copy2::A), 65_536).await.unwrap();
        for round in 1..50 {
            file.write_at(vec![filled(round, 16)], 0, WriteMode::Written).await.unwrap();
            file.sync().await.unwrap();
            let mapped = file.map(0..65_536).unwrap();
            assert!(mapped.iter().all(|byte| *byte == round), "round {round}");
        }
    });
}

#[test]
fn a_second_process_is_refused_the_directory_with_the_pid_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let held = lock(dir.path()).unwrap();
    let refused = lock(dir.path()).unwrap_err();
    assert_eq!(refused, LockError::Held { pid: Some(std::process::id()) });
    assert!(refused.to_string().ends_with(&std::process::id().to_string()), "{refused}");
    let mut other = Command::new("flock");
    other.args(["--nonblock", "--conflict-exit-code", "9"]).arg(dir.path().join("LOCK")).arg("true");
    let code = other.status().unwrap().code();
    assert_eq!(code, Some(9), "another process finds it locked");
    drop(held);
    assert!(lock(dir.path()).is_ok(), "the lock goes with its holder");
}

/// A directory of 1 MiB in a mount namespace of its own, where this very test runs again with its path.
fn in_small_filesystem(test: &str, dir: &Path) -> Option<std::process::ExitStatus> {
    let script = "mount -t tmpfs -o size=1m coulee \"$1\" && COULEE_SMALL_DIR=\"$1\" \"$2\" --exact \"$3\" --nocapture";
    let user: &[&str] = if fs::metadata(dir).unwrap().uid() == 0 { &[] } else { &["--user", "--map-root-user"] };
    let possible = Command::new("unshare").args(user).args(["--mount", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return None;
    }
    let exe = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(user).args(["--mount", "sh", "-c", script, "sh"]).arg(dir).arg(exe).arg(test);
    Some(command.status().unwrap())
}

#[test]
fn a_full_filesystem_refuses_creation_whole_and_takes_it_when_there_is_room_again() {
    if let Ok(small) = std::env::var("COULEE_SMALL_DIR") {
        return on_executor(RingOptions::default(), async |ring| full_then_room(&open(Path::new(&small), &ring)).await);
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "disk::tests::a_full_filesystem_refuses_creation_whole_and_takes_it_when_there_is_room_again";
    match in_small_filesystem(name, dir.path()) {
        Some(status) => assert!(status.success(), "{status}"),
        None => println!("SKIPPED a_full_filesystem: no right to mount a small one"),
    }
}

async fn full_then_room(disk: &FileDisk) {
    assert!(!disk.device_flush_proved(), "nobody has proved it for tmpfs");
    let (first, second) = (FileName::Meta(Copy2::A), FileName::Meta(Copy2::B));
    let file = disk.create(first, 512 << 10).await.unwrap();
    file.write_at(vec![filled(1, 128)], 0, WriteMode::Written).await.unwrap();
    assert_eq!(disk.create(second, 768 << 10).await.err(), Some(DiskError::NoSpace));
    assert_eq!(disk.list(Dir::Root).await, Ok(vec![first]), "nothing of it was done");
    assert_eq!(fs::read_dir(disk.root().join(NEW_DIR)).unwrap().count(), 0);
    assert!(file.read_at(0, 512 << 10).await.unwrap().iter().all(|byte| *byte == 1), "reads go on");
    file.sync().await.unwrap();
    drop(file);
    disk.remove(first).await.unwrap();
    assert_eq!(disk.create(second, 768 << 10).await.unwrap().len(), 768 << 10);
}

#[test]
fn a_write_that_is_dropped_half_way_goes_on_and_keeps_its_file_open() {
    let dir = tempfile::tempdir().unwrap();
    on_executor(RingOptions::default(), async |ring| {
        let disk = open(dir.path(), &ring);
        for round in 1..40_u8 {
            let file = disk.create(FileName::Meta(Copy2::A), 65_536).await.unwrap();
            {
                let mut write = pin!(file.write_at(vec![filled(round, 16)], 0, WriteMode::Written));
                let begun = poll_once(write.as_mut()).await;
                assert!(begun.is_pending() || cfg!(coulee_mutation = "writes_wait_for_sync"));
            }
            // Closed by us with the write not even submitted; another file may get its number.
            drop(file);
            let other = disk.create(FileName::Meta(Copy2::B), 65_536).await.unwrap();
            cycle(&ring, async {
                while ring.in_flight() > 0 {
                    tick(&ring)
                }
            })
            .await;
            assert!(other.read_at(0, 65_536).await.unwrap().iter().all(|byte| *byte == 0), "round {round}");
            let again = disk.open(FileName::Meta(Copy2::A)).await.unwrap();
            assert!(again.read_at(0, 65_536).await.unwrap().iter().all(|byte| *byte == round), "round {round}");
        }
    });
}

fn tick(ring: &Ring) {
    ring.submit().unwrap();
    ring.reap();
}
