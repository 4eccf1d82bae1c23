//! Which shard owns which partition: slots and their shards; knows no topic and no load.
//!
//! Each partition gets the next slot when it is made and keeps it. Its shard is slot mod shards, computed at start: so
//! a data directory opens with any number of shards, and the partitions of one topic spread evenly.

use coulee_protocol::ids::ShardId;

/// Position of a partition in the order of placement. Stored with the partition, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u64);

impl Slot {
    /// The catalog's own partition lies here, so that shard 0 always owns it.
    pub const CATALOG: Self = Self(0);
    /// The first slot of a user's partition.
    pub const FIRST: Self = Self(1);

    /// The shard that owns it when there are `shards`. `Slot(5)` of 2 shards is on shard 1.
    #[must_use]
    pub fn shard(self, shards: u16) -> ShardId {
        assert!(shards > 0, "a broker has at least one shard");
        let shard = self.0 % u64::from(shards);
        ShardId(u16::try_from(shard).expect("a remainder is below its divisor, a u16"))
    }

    /// The slot `count` further.
    #[must_use]
    pub fn advance(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("partitions are counted one by one: 2^64 of them never come"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_made_one_after_the_other_spread_evenly_over_any_number_of_shards() {
        for shards in 1..20 {
            let mut counts = vec![0; usize::from(shards)];
            for slot in 1..=1_000 {
                counts[usize::from(Slot(slot).shard(shards).0)] += 1;
            }
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{shards} shards: {counts:?}");
            assert_eq!(Slot::CATALOG.shard(shards), ShardId(0));
        }
    }
}
