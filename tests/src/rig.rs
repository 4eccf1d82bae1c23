//! A filesystem of a test's own on a disk that logs what is done to it and fails when told; knows no broker.

use crate::block_device::BlockDevice;
use crate::broker::Folder;
use crate::chance::Chance;
use crate::mounts::{Mount, own_mounts, skip, system};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The least that mkfs.xfs takes, and some room.
pub const IMAGE_BYTES: u64 = 320 << 20;
/// `FS_IOC_FIEMAP` of linux/fiemap.h, and how many extents are asked for: files of ours have few.
const FIEMAP: libc::c_ulong = 0xc020_660b;
const EXTENTS_MAX: usize = 64;

/// A filesystem, and how it is made.
#[derive(Clone, Copy, Debug)]
pub struct Filesystem {
    /// What it is called.
    pub name: &'static str,
    make: &'static [&'static str],
}

/// Those where one flush of the device may stand in for many syncs.
pub const FILESYSTEMS: [Filesystem; 2] = [
    Filesystem { name: "ext4", make: &["mkfs.ext4", "-q", "-m", "0"] },
    Filesystem { name: "xfs", make: &["mkfs.xfs", "-q"] },
];

impl Filesystem {
    /// Makes one in a new file.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(&self, image: &str) -> Result<(), String> {
        let file = File::create(image).and_then(|file| file.set_len(IMAGE_BYTES));
        file.map_err(|error| format!("{image}: {error}"))?;
        let (make, flags) = self.make.split_first().expect("a program makes it");
        system(make, &[flags, &[image]].concat()).map(drop)
    }
}

/// It, mounted. What is on top goes first.
#[derive(Debug)]
pub struct Rig {
    mount: Option<Mount>,
    disk: BlockDevice,
    _memory: Mount,
    folder: Folder,
}

impl Rig {
    /// A new one, in mounts of this thread's own; nothing where the machine has no root, FUSE or loop devices, which is
    /// said in the name of `test`.
    ///
    /// # Panics
    /// If the system refuses what it should not.
    #[must_use]
    pub fn new(test: &str, filesystem: Filesystem) -> Option<Self> {
        if let Err(why) = own_mounts() {
            skip(test, &why);
            return None;
        }
        let folder = Folder::new();
        let good = |what: Result<Mount, String>| what.unwrap_or_else(|why| panic!("{why}"));
        let memory = good(Mount::new(&folder.at("memory"), &["-t", "tmpfs", "-o", "size=1G", "tmpfs"]));
        let (image, served) = (folder.at("memory/image"), folder.at("served"));
        filesystem.make(&image).unwrap_or_else(|why| panic!("{why}"));
        std::fs::create_dir_all(&served).expect("a directory can be made");
        let disk = BlockDevice::serve(Path::new(&image), Path::new(&served), Chance(1)).expect("FUSE mounts");
        let mount = good(Mount::direct_image(&folder.at("mounted"), &disk.path().to_string_lossy()));
        Some(Self { mount: Some(mount), disk, _memory: memory, folder })
    }

    /// Where a broker's data lies.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        PathBuf::from(self.folder.at("mounted/data"))
    }

    /// Unmounts it and mounts it again, so that nothing of it is in memory and no error sticks.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn remount(&mut self) {
        self.mount = None;
        let mount = Mount::direct_image(&self.folder.at("mounted"), &self.disk.path().to_string_lossy());
        self.mount = Some(mount.unwrap_or_else(|why| panic!("{why}")));
    }

    /// Where its log lies: not on the disk that fails.
    #[must_use]
    pub const fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> &BlockDevice {
        &self.disk
    }
}

/// Where on its device a file lies.
///
/// # Panics
/// If the filesystem does not say.
#[must_use]
pub fn extents(path: &Path) -> Vec<Range<u64>> {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Extent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved: [u64; 2],
        flags: [u32; 4],
    }
    #[repr(C)]
    struct Map {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [Extent; EXTENTS_MAX],
    }
    let none = Extent { logical: 0, physical: 0, length: 0, reserved: [0; 2], flags: [0; 4] };
    let (count, extents) = (EXTENTS_MAX as u32, [none; EXTENTS_MAX]);
    let mut map = Map { start: 0, length: u64::MAX, flags: 0, mapped: 0, count, reserved: 0, extents };
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // SAFETY: the descriptor is open, and the kernel writes at most `count` extents into a `fiemap` with room for them.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut map) };
    assert_eq!(asked, 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    let known = &map.extents[..map.mapped as usize];
    known.iter().map(|extent| extent.physical..extent.physical + extent.length).collect()
}
