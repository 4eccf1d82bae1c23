//! What the tests stand on: a filesystem of its own, another user, numbered lines; knows no claim that is tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Broker;
use coulee_tests::broker::Folder;
use coulee_tests::mounts::skip;

/// A user that owns nothing.
pub(crate) const NOBODY: u32 = 65_534;

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// The first file of a kind below a directory.
pub(crate) fn find(dir: &Path, is_wanted: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).ok()?.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| match path.is_dir() {
        true => find(&path, is_wanted),
        false => is_wanted(&path).then_some(path),
    })
}

/// Makes a header page ask for a newer reader, with a checksum that is right (docs/STORAGE_FORMAT.md).
pub(crate) fn ask_for_newer_reader(segment: &mut [u8]) {
    segment[6] = 2;
    let crc = crc32fast::hash(&segment[..4_092]);
    segment[4_092..4_096].copy_from_slice(&crc.to_le_bytes());
}

/// A small ext4 of its own in a file; unmounted with its owner.
pub(crate) struct Mount(Folder);

impl Mount {
    /// Nothing where the machine does not let us.
    pub(crate) fn new(test: &str, bytes: u64) -> Option<Self> {
        if !is_root() {
            skip(test, "only root may mount");
            return None;
        }
        let folder = Folder::new();
        fs::create_dir(folder.at("mounted")).unwrap();
        fs::File::create(folder.at("image")).unwrap().set_len(bytes).unwrap();
        let made = system("mkfs.ext4", &["-q", "-m", "0", &folder.at("image")])
            .and_then(|()| system("mount", &["-o", "loop", &folder.at("image"), &folder.at("mounted")]));
        match made {
            Ok(()) => Some(Self(folder)),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.at(&format!("mounted/{name}"))
    }

    /// Takes all room but `bytes`.
    pub(crate) fn fill_but(&self, bytes: u64) {
        let told = Command::new("stat").args(["-f", "-c", "%a %S", &self.at("")]).output().unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let free: u64 = told.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
        system("fallocate", &["-l", &(free - bytes).to_string(), &self.at("filler")]).unwrap();
    }

    pub(crate) fn remount(&self, option: &str) {
        system("mount", &["-o", &format!("remount,{option}"), &self.0.at("mounted")]).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazy: a broker that was just killed may still be going.
        drop(system("umount", &["-l", &self.0.at("mounted")]));
    }
}

pub(crate) fn system(name: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(name).args(arguments).output().map_err(|error| format!("{name}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{name}: {}", said.trim())) }
}

/// Lines `from` to `end` of one kilobyte, each with its number in front.
pub(crate) fn lines(from: usize, end: usize) -> Vec<u8> {
    (from..end).flat_map(|number| format!("{number:08}{:x<1015}\n", "").into_bytes()).collect()
}

/// Numbers of the lines that a topic holds.
pub(crate) fn held(broker: &Broker) -> Vec<usize> {
    let told = broker.tell(&["consume", "filled", "--until-end", "-f", "%v\\n"]);
    told.is_good().out.lines().map(|line| line[..8].parse().unwrap()).collect()
}

/// What `coulee produce -o json` says was acknowledged.
pub(crate) fn acknowledged(out: &str) -> usize {
    let rest = out.split("\"acknowledged\":").nth(1).unwrap_or_else(|| panic!("no count: {out}")).trim_start();
    rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap().parse().unwrap()
}
