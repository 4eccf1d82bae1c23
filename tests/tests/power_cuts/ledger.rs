//! What was acknowledged when, and whether what a broker holds agrees; knows no broker and no disk.

use coulee_tests::chance::Chance;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Client, sequence, topic, partition, length.
const HEADER_BYTES: usize = 24;

/// A partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) topic: u32,
    pub(crate) partition: u32,
}

/// A record: who sent it, its number among that client's, where to, and how long its filling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sent {
    pub(crate) client: u32,
    pub(crate) sequence: u64,
    pub(crate) place: Place,
    pub(crate) len: u32,
}

impl Sent {
    /// Its value, every byte of which hangs on the rest.
    pub(crate) fn value(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.len as usize);
        bytes.extend(self.client.to_le_bytes());
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.place.topic.to_le_bytes());
        bytes.extend(self.place.partition.to_le_bytes());
        bytes.extend(self.len.to_le_bytes());
        let seed = self.sequence << 8 | u64::from(self.client);
        bytes.extend(Chance(seed).bytes(self.len as usize));
        bytes
    }

    /// The record that a value belongs to; none where a byte of it was changed.
    pub(crate) fn of(value: &[u8]) -> Option<Self> {
        let header = value.get(..HEADER_BYTES)?;
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let sequence = u64::from(number(8)) << 32 | u64::from(number(4));
        let place = Place { topic: number(12), partition: number(16) };
        let sent = Self { client: number(0), sequence, place, len: number(20) };
        (value.len() == HEADER_BYTES + sent.len as usize && sent.value() == value).then_some(sent)
    }
}

/// A record that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    pub(crate) sent: Sent,
    pub(crate) offset: u64,
    /// How long the disk's log was when the ack was seen.
    pub(crate) position: usize,
}

/// What a client has done or was told, and how long the disk's log was then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Acked(Acked),
    Creating(u32),
    Created(u32, usize),
    Deleting(u32, usize),
    Deleted(u32, usize),
}

/// A topic's life, in positions of the disk's log.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    created: Option<usize>,
    deleting: Option<usize>,
    deleted: Option<usize>,
}

/// What the clients were told.
#[derive(Default)]
pub(crate) struct Ledger {
    acked: Vec<Acked>,
    topics: BTreeMap<u32, Life>,
    /// Topics whose acks promise nothing.
    loose: BTreeSet<u32>,
}

/// What is wrong after a cut.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Missing(Sent, u64),
    Other(Sent, u64, Sent),
    Twice(Sent, u64),
    OutOfOrder(Sent, u64),
    Elsewhere(Sent, u64, Place),
    NoTopic(u32),
    DeletedTopic(u32),
}

impl fmt::Display for Wrong {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(sent, offset) => write!(formatter, "acknowledged and missing at offset {offset}: {sent:?}"),
            Self::Other(sent, offset, seen) => {
                write!(formatter, "acknowledged at offset {offset}: {sent:?}, where there is {seen:?}")
            }
            Self::Twice(sent, offset) => write!(formatter, "there twice, again at offset {offset}: {sent:?}"),
            Self::OutOfOrder(sent, offset) => write!(formatter, "out of order at offset {offset}: {sent:?}"),
            Self::Elsewhere(sent, offset, place) => {
                write!(formatter, "in another partition, {place:?}, at offset {offset}: {sent:?}")
            }
            Self::NoTopic(topic) => write!(formatter, "acknowledged and gone: topic {topic}"),
            Self::DeletedTopic(topic) => write!(formatter, "deleted and there: topic {topic}"),
        }
    }
}

/// What each partition of each topic that is there holds, from offset 0.
pub(crate) type Seen = BTreeMap<u32, BTreeMap<u32, Vec<Sent>>>;

impl Ledger {
    pub(crate) fn note(&mut self, event: Event) {
        match event {
            Event::Acked(acked) => self.acked.push(acked),
            Event::Creating(topic) => drop(self.topics.entry(topic).or_default()),
            Event::Created(topic, position) => self.topics.entry(topic).or_default().created = Some(position),
            Event::Deleting(topic, position) => self.topics.entry(topic).or_default().deleting = Some(position),
            Event::Deleted(topic, position) => self.topics.entry(topic).or_default().deleted = Some(position),
        }
    }

    /// The acks of this topic promise nothing.
    pub(crate) fn is_loose(&mut self, topic: u32) {
        self.loose.insert(topic);
    }

    pub(crate) fn acked(&self) -> usize {
        self.acked.len()
    }

    /// Topics that were to be made, and of those the ones that were deleted.
    pub(crate) fn topics(&self) -> (impl Iterator<Item = u32>, usize) {
        let deleted = self.topics.values().filter(|life| life.deleted.is_some()).count();
        (self.topics.keys().copied(), deleted)
    }

    /// Compares what is there after a cut at `cut` with what was acknowledged before; how many records were due.
    pub(crate) fn check(&self, cut: usize, seen: &Seen) -> Result<usize, Wrong> {
        self.check_topics(cut, seen)?;
        let mut known = BTreeSet::new();
        for (topic, partitions) in seen {
            for (partition, records) in partitions {
                check_partition(Place { topic: *topic, partition: *partition }, records, &mut known)?;
            }
        }
        let mut due = 0;
        for Acked { sent, offset, position } in &self.acked {
            let is_due = *position <= cut && !self.loose.contains(&sent.place.topic);
            // One that is not there was rightly deleted.
            let Some(topic) = seen.get(&sent.place.topic) else { continue };
            let there = topic.get(&sent.place.partition).and_then(|records| records.get(*offset as usize));
            match there {
                // Where nothing was promised, or not yet, another record may have the offset after a restart.
                Some(there) if there != sent && is_due => return Err(Wrong::Other(*sent, *offset, *there)),
                None if is_due => return Err(Wrong::Missing(*sent, *offset)),
                _ => due += usize::from(is_due),
            }
        }
        Ok(due)
    }

    fn check_topics(&self, cut: usize, seen: &Seen) -> Result<(), Wrong> {
        let by = |position: Option<usize>| position.is_some_and(|position| position <= cut);
        for (topic, life) in &self.topics {
            let is_there = seen.contains_key(topic);
            if is_there && by(life.deleted) {
                return Err(Wrong::DeletedTopic(*topic));
            }
            if !is_there && by(life.created) && !by(life.deleting) {
                return Err(Wrong::NoTopic(*topic));
            }
        }
        Ok(())
    }
}

fn check_partition(place: Place, records: &[Sent], known: &mut BTreeSet<(u32, u64)>) -> Result<(), Wrong> {
    let mut last = BTreeMap::new();
    for (offset, sent) in (0..).zip(records) {
        if sent.place != place {
            return Err(Wrong::Elsewhere(*sent, offset, place));
        }
        if !known.insert((sent.client, sent.sequence)) {
            return Err(Wrong::Twice(*sent, offset));
        }
        if last.insert(sent.client, sent.sequence).is_some_and(|before| before > sent.sequence) {
            return Err(Wrong::OutOfOrder(*sent, offset));
        }
    }
    Ok(())
}

const PLACE: Place = Place { topic: 0, partition: 0 };

const fn sent(sequence: u64) -> Sent {
    Sent { client: 0, sequence, place: PLACE, len: 5 }
}

fn checked(acked_at: &[usize], cut: usize, seen: &[u64]) -> Result<usize, Wrong> {
    let mut ledger = Ledger::default();
    for (number, position) in (0..).zip(acked_at) {
        ledger.note(Event::Acked(Acked { sent: sent(number), offset: number, position: *position }));
    }
    let records = seen.iter().copied().map(sent).collect();
    ledger.check(cut, &Seen::from([(0, BTreeMap::from([(0, records)]))]))
}

#[test]
fn a_record_is_due_from_its_ack_on() {
    assert_eq!(checked(&[10, 20], 19, &[0]), Ok(1));
    assert_eq!(checked(&[10, 20], 20, &[0]), Err(Wrong::Missing(sent(1), 1)));
    assert_eq!(checked(&[10, 20], 9, &[0, 1, 2]), Ok(0));
}

#[test]
fn records_twice_out_of_order_or_in_place_of_others_are_noticed() {
    assert_eq!(checked(&[], 0, &[0, 0]), Err(Wrong::Twice(sent(0), 1)));
    assert_eq!(checked(&[], 0, &[1, 0]), Err(Wrong::OutOfOrder(sent(0), 1)));
    assert_eq!(checked(&[10], 10, &[1]), Err(Wrong::Other(sent(0), 0, sent(1))));
}

#[test]
fn a_topic_is_due_from_its_creation_to_its_deletion() {
    let mut ledger = Ledger::default();
    for event in [Event::Creating(7), Event::Created(7, 10), Event::Deleting(7, 20), Event::Deleted(7, 30)] {
        ledger.note(event);
    }
    let there = Seen::from([(7, BTreeMap::new())]);
    for (cut, with, without) in [
        (9, Ok(0), Ok(0)),
        (10, Ok(0), Err(Wrong::NoTopic(7))),
        (19, Ok(0), Err(Wrong::NoTopic(7))),
        (20, Ok(0), Ok(0)),
        (30, Err(Wrong::DeletedTopic(7)), Ok(0)),
    ] {
        assert_eq!(ledger.check(cut, &there), with, "{cut}");
        assert_eq!(ledger.check(cut, &Seen::new()), without, "{cut}");
    }
}

#[test]
fn a_changed_byte_of_a_value_is_noticed() {
    let value = sent(3).value();
    assert_eq!(Sent::of(&value), Some(sent(3)));
    for at in 0..value.len() {
        let mut changed = value.clone();
        changed[at] ^= 1;
        assert_ne!(Sent::of(&changed), Some(sent(3)), "byte {at}");
    }
}
