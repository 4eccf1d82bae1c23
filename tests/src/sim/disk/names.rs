//! Names of files and directories, and changes of them that a journal keeps in order; knows no bytes.

use coulee_core::disk::{Dir, DiskError, FileName};
use coulee_protocol::ids::PartitionUid;
use std::collections::{BTreeMap, BTreeSet};

/// A change of the names, until a directory sync has made it durable.
#[derive(Clone)]
pub(super) enum NameChange {
    Add(FileName, usize),
    Rename(FileName, FileName, usize),
    Remove(FileName),
    AddDir(Dir),
    RemoveDir(Dir),
}

impl NameChange {
    /// Whether it changes what `dir` holds.
    pub(super) fn is_in(&self, dir: Dir) -> bool {
        match self {
            Self::Add(name, _) | Self::Remove(name) => name.dir() == dir,
            Self::Rename(from, to, _) => from.dir() == dir || to.dir() == dir,
            Self::AddDir(made) | Self::RemoveDir(made) => {
                let parent = match made {
                    Dir::Partition(_) => Dir::Partitions,
                    _ => Dir::Root,
                };
                parent == dir
            }
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Names {
    pub(super) files: BTreeMap<FileName, usize>,
    dirs: BTreeSet<Dir>,
}

impl Names {
    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Add(name, inode) => drop(self.files.insert(*name, *inode)),
            NameChange::Rename(from, to, inode) => {
                self.files.remove(from);
                self.files.insert(*to, *inode);
            }
            NameChange::Remove(name) => drop(self.files.remove(name)),
            NameChange::AddDir(dir) => drop(self.dirs.insert(*dir)),
            NameChange::RemoveDir(dir) => drop(self.dirs.remove(dir)),
        }
    }

    /// Names can only be made in directories that are there.
    pub(super) fn has_dir_of(&self, name: FileName) -> Result<(), DiskError> {
        let there = name.dir() == Dir::Root || self.dirs.contains(&name.dir());
        if there { Ok(()) } else { Err(DiskError::NotFound) }
    }

    pub(super) fn files_in(&self, dir: Dir) -> Vec<FileName> {
        self.files.keys().filter(|name| name.dir() == dir).copied().collect()
    }

    pub(super) fn partitions(&self) -> Vec<PartitionUid> {
        let uid = |dir: &Dir| if let Dir::Partition(uid) = dir { Some(*uid) } else { None };
        self.dirs.iter().filter_map(uid).collect()
    }

    pub(super) fn pools(&self) -> Vec<u16> {
        let shard = |dir: &Dir| if let Dir::Pool(shard) = dir { Some(*shard) } else { None };
        self.dirs.iter().filter_map(shard).collect()
    }
}
