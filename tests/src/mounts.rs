//! Mounts that nothing outlives: a mount namespace of the test's own thread, memory, loop devices; knows no broker.
//!
//! Loop devices are made by `mount -o loop`, which gives them back with the last unmount; and the kernel unmounts all
//! of the namespace when nobody is in it any more, also after a kill -9.

use crate::chance::Chance;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What io_uring still holds of a killed process keeps its filesystem busy for a moment.
const UNMOUNT_TRIES: u32 = 2_000;
const UNMOUNT_WAIT: Duration = Duration::from_millis(5);

/// Says that a test cannot run here, in a line that is shown also when it passes: these lines are counted.
///
/// # Panics
/// If nobody takes the line.
pub fn skip(test: &str, why: &str) {
    writeln!(std::io::stdout(), "\nSKIPPED {test}: {why}").expect("stdout takes a line");
}

/// Runs a program to its end; what it has said.
///
/// # Errors
/// If it says that something failed, with what.
pub fn system(name: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(name).args(arguments).output().map_err(|error| format!("{name}: {error}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(said(&output.stdout)) } else { Err(format!("{name}: {}", said(&output.stderr))) }
}

/// Gives this thread and what it starts from now on mounts of their own.
///
/// # Errors
/// Why FUSE, loop devices or mounts are not to be had here.
pub fn own_mounts() -> Result<(), String> {
    for device in ["/dev/fuse", "/dev/loop-control"] {
        File::options().read(true).write(true).open(device).map_err(|error| format!("{device}: {error}"))?;
    }
    // SAFETY: one integer; it changes nothing but what this thread sees as mounted and its working directory's owner.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if result != 0 {
        return Err(format!("mounts of its own: {}", std::io::Error::last_os_error()));
    }
    system("mount", &["--make-rprivate", "/"]).map(drop)
}

/// Something mounted; unmounted when it is dropped.
#[derive(Debug)]
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts, in a directory that is made, what `arguments` say.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(at: &str, arguments: &[&str]) -> Result<Self, String> {
        std::fs::create_dir_all(at).map_err(|error| format!("{at}: {error}"))?;
        system("mount", &[arguments, &[at]].concat())?;
        Ok(Self(at.into()))
    }

    /// Mounts the filesystem in the file `image` through a loop device.
    ///
    /// # Errors
    /// What the system says.
    pub fn image(at: &str, image: &str) -> Result<Self, String> {
        Self::new(at, &["-o", "loop", image])
    }

    /// The same with a loop device that keeps nothing in the page cache: what is written goes to the file at once.
    ///
    /// # Errors
    /// What the system says.
    pub fn direct_image(at: &str, image: &str) -> Result<Self, String> {
        let mount = Self::image(at, image)?;
        let device = system("losetup", &["-n", "-O", "NAME", "-j", image])?;
        system("losetup", &["--direct-io=on", &device])?;
        let is_direct = system("losetup", &["-n", "-O", "DIO", &device])?;
        if is_direct == "1" { Ok(mount) } else { Err(format!("{device}: direct I/O is {is_direct:?}")) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let at = self.0.to_string_lossy();
        for _ in 0..UNMOUNT_TRIES {
            if system("umount", &[&at]).is_ok() {
                return;
            }
            Chance::wait(UNMOUNT_WAIT);
        }
        // It goes when the last file is closed.
        drop(system("umount", &["-l", &at]));
    }
}
