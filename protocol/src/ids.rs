//! Offsets, epochs, ids and timestamps as distinct types; knows nothing of what they point at.
//!
//! Plain integers live only inside the codec. Every *end* is exclusive.

use std::fmt;

/// Declares a newtype over an integer with `Display` and a constructor.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }
    };
}

id!(
    /// Position of a record in its partition, from 0.
    Offset,
    u64
);
id!(
    /// Position of a record batch in its partition: 1, 2, 3 … (the consensus log index, later).
    BatchIndex,
    u64
);
id!(
    /// Grows at each start of a single node and at each change of leader; never 0 in a stored batch.
    LeaderEpoch,
    u32
);
id!(
    /// Identity of one partition of one topic for ever; a catalog counter, never reused, never 0.
    PartitionUid,
    u64
);
id!(
    /// Milliseconds since 1970-01-01T00:00:00Z.
    Timestamp,
    i64
);
id!(
    /// Identity of an idempotent producer; −1 where there is none.
    ProducerId,
    i64
);
id!(
    /// One core of the broker.
    ShardId,
    u16
);

impl Offset {
    /// The offset `count` records further. Offsets are bounded by 2⁶³, so this cannot wrap for stored data.
    #[must_use]
    pub fn advance(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("offsets stay below 2^63, counts below 2^32"))
    }
}

impl BatchIndex {
    /// The next batch index.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("a partition cannot hold 2^64 batches"))
    }
}

impl ProducerId {
    /// "No producer id".
    pub const NONE: Self = Self(-1);
}

/// Declares a random 128-bit id that prints as 32 hexadecimal digits.
macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
            }
        }
    };
}

id128!(
    /// Random identity of a cluster.
    ClusterId
);
id128!(
    /// Random identity of a topic: a topic deleted and made again has another one.
    TopicId
);
