//! Names for all partitions that ever were, as the history knows them; knows no broker.

use crate::checker::{Key, PartitionInfo, Promise};
use coulee_protocol::ids::{PartitionUid, TopicId};
use std::collections::BTreeMap;

/// A partition that a client has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its name in the history.
    pub key: Key,
    /// Whether somebody has asked for its removal.
    pub may_be_gone: bool,
    /// Whether it acknowledges what is only written.
    pub written: bool,
}

/// All of them, by topic id and number.
#[derive(Debug, Default)]
pub struct Topics {
    infos: Vec<PartitionInfo>,
    asked: BTreeMap<([u8; 16], u32), Asked>,
    by_uid: BTreeMap<PartitionUid, ([u8; 16], u32)>,
}

impl Topics {
    /// Somebody asks for a partition.
    pub fn ask(&mut self, topic: &str, id: TopicId, number: u32, written: bool) -> Key {
        if let Some(asked) = self.asked.get(&(id.0, number)) {
            return asked.key;
        }
        let key = Key(self.infos.len() as u32);
        let promise = if written { Promise::Written } else { Promise::Fsync };
        self.infos.push(PartitionInfo { name: format!("{topic}-{number}"), promise, retention: false });
        self.asked.insert((id.0, number), Asked { key, may_be_gone: false, written });
        key
    }

    /// Somebody asks for the removal of a topic; its partitions.
    pub fn ask_removal(&mut self, id: TopicId) -> Vec<Key> {
        let own = self.asked.range_mut((id.0, 0)..=(id.0, u32::MAX));
        own.map(|(_, asked)| {
            asked.may_be_gone = true;
            asked.key
        })
        .collect()
    }

    /// The partition of a topic, if anybody has asked for it; its uid is noted.
    pub fn find(&mut self, id: TopicId, number: u32, uid: PartitionUid) -> Option<Asked> {
        self.by_uid.insert(uid, (id.0, number));
        self.asked.get(&(id.0, number)).copied()
    }

    /// The partition with this uid.
    #[must_use]
    pub fn of_uid(&self, uid: PartitionUid) -> Option<Asked> {
        self.asked.get(self.by_uid.get(&uid)?).copied()
    }

    /// All partitions that anybody has asked for.
    pub fn all(&self) -> impl Iterator<Item = (TopicId, u32, Asked)> + '_ {
        self.asked.iter().map(|((id, number), asked)| (TopicId(*id), *number, *asked))
    }

    /// What the history has to know of them.
    #[must_use]
    pub fn infos(&self) -> Vec<PartitionInfo> {
        self.infos.clone()
    }
}
