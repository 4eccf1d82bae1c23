//! What producers were told, held against what readers saw: owns the rules and the count; sends and reads nothing.
//!
//! Each record has a value that no other has: its run, its producer and its number there. So whatever is lost, doubled,
//! changed or out of order shows, and no clock is needed to say so.

use serde_json::{Map, Value};

/// No record was seen at an offset.
const NOTHING: u64 = u64::MAX;
/// Bits of a record's number in its id; its producer has the others.
const NUMBER_BITS: u32 = 48;

/// A record: its producer and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RecordId(u64);

impl RecordId {
    pub(super) fn new(producer: u16, number: u64) -> Self {
        assert!(number < 1 << NUMBER_BITS, "no run lasts that long");
        Self(u64::from(producer) << NUMBER_BITS | number)
    }

    fn producer(self) -> usize {
        (self.0 >> NUMBER_BITS) as usize
    }

    fn number(self) -> usize {
        (self.0 & ((1 << NUMBER_BITS) - 1)) as usize
    }

    /// Writes the record's value in run `run`.
    pub(super) fn write(self, run: u64, bytes: usize, value: &mut String) {
        *value = format!("coulee-verify {run:016x} {} {} ", self.producer(), self.number());
        while value.len() < bytes {
            value.push('.');
        }
    }

    /// The record that a value names, if it is of run `run`.
    pub(super) fn read(run: u64, value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?.strip_prefix("coulee-verify ")?;
        let mut words = text.split(' ');
        let is_of_run = u64::from_str_radix(words.next()?, 16) == Ok(run);
        let (producer, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let is_whole = words.next()?.bytes().all(|byte| byte == b'.') && words.next().is_none();
        (is_of_run && is_whole && number < 1 << NUMBER_BITS).then(|| Self::new(producer, number))
    }
}

/// What a producer was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there, at this offset of this partition.
    Acknowledged(u32, u64),
    /// It may be there.
    Unknown,
    /// It surely is not there.
    NotWritten,
}

/// What one reader saw: for each partition, a record for each offset.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    partitions: Vec<Vec<u64>>,
    records: u64,
    /// Records that nobody of this run has sent.
    foreign: u64,
    /// Records that came at an offset that was passed already.
    back: u64,
    /// Offsets that were said to be damaged.
    damaged: u64,
}

impl Seen {
    pub(super) fn new(partitions: u32) -> Self {
        Self { partitions: vec![Vec::new(); partitions as usize], ..Self::default() }
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    /// A record came; without an id it is none of this run's.
    pub(super) fn take(&mut self, partition: u32, offset: u64, id: Option<RecordId>) {
        self.records += 1;
        self.foreign += u64::from(id.is_none());
        let log = &mut self.partitions[partition as usize];
        let at = usize::try_from(offset).expect("a run has fewer records than memory has bytes");
        if at < log.len() {
            self.back += 1;
            return;
        }
        log.resize(at, NOTHING);
        log.push(id.map_or(NOTHING, |id| id.0));
    }

    /// Offsets up to `to` were said to be damaged.
    pub(super) fn damage(&mut self, partition: u32, from: u64, to: u64) {
        self.damaged += to - from;
        let log = &mut self.partitions[partition as usize];
        log.resize(log.len().max(to as usize), NOTHING);
    }

    /// Whether everything below these ends was seen.
    pub(super) fn reaches(&self, ends: &[u64]) -> bool {
        self.partitions.iter().zip(ends).all(|(log, end)| log.len() as u64 >= *end)
    }

    fn at(&self, partition: u32, offset: u64) -> Option<RecordId> {
        let id = self.partitions.get(partition as usize)?.get(usize::try_from(offset).ok()?)?;
        (*id != NOTHING).then_some(RecordId(*id))
    }
}

/// What was counted of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    /// Records that were acknowledged.
    pub(super) acknowledged: u64,
    /// Records whose fate nobody was told.
    pub(super) unknown: u64,
    /// Of these, those that are there.
    pub(super) unknown_written: u64,
    /// Records that were said not to be written.
    pub(super) not_written: u64,
    /// Records that were read while the run went on.
    pub(super) read: u64,
    /// Records that were read once more from the start.
    pub(super) read_again: u64,
    /// Acknowledged, and not there.
    pub(super) lost: u64,
    /// At more than one offset.
    pub(super) doubled: u64,
    /// Behind one that its producer sent later, or read at an offset that was passed already.
    pub(super) out_of_order: u64,
    /// Different for the second reader, or what nobody has sent.
    pub(super) changed: u64,
    /// Said not to be written, and there.
    pub(super) wrongly_refused: u64,
    /// Offsets that the broker says are damaged.
    pub(super) damaged: u64,
}

impl Proof {
    /// Holds what each producer was told, by number, against what both readers saw.
    pub(super) fn of(told: &[Vec<Fate>], first: &Seen, again: &Seen) -> Self {
        let mut proof = Self {
            read: first.records,
            read_again: again.records,
            changed: first.foreign + again.foreign,
            out_of_order: first.back + again.back,
            damaged: first.damaged.max(again.damaged),
            ..Self::default()
        };
        let mut found: Vec<Vec<u8>> = told.iter().map(|fates| vec![0; fates.len()]).collect();
        for log in &first.partitions {
            let mut last = vec![None; told.len()];
            for id in log.iter().filter(|id| **id != NOTHING).map(|id| RecordId(*id)) {
                let Some(times) = found.get_mut(id.producer()).and_then(|found| found.get_mut(id.number())) else {
                    proof.changed += 1;
                    continue;
                };
                *times = times.saturating_add(1);
                proof.doubled += u64::from(*times == 2);
                let before = last[id.producer()].replace(id);
                proof.out_of_order += u64::from(before.is_some_and(|before| before > id));
            }
        }
        for (partition, log) in first.partitions.iter().enumerate() {
            let other = &again.partitions[partition];
            proof.changed += log.iter().zip(other).filter(|(one, other)| one != other).count() as u64;
        }
        for (producer, fates) in (0..).zip(told) {
            for (number, fate) in (0..).zip(fates) {
                let id = RecordId::new(producer, number);
                proof.count(*fate, id, found[id.producer()][id.number()] > 0, [first, again]);
            }
        }
        proof
    }

    fn count(&mut self, fate: Fate, id: RecordId, is_there: bool, readers: [&Seen; 2]) {
        match fate {
            Fate::Acknowledged(partition, offset) => {
                self.acknowledged += 1;
                let is_lost = readers.iter().any(|seen| seen.at(partition, offset) != Some(id));
                self.lost += u64::from(is_lost);
            }
            Fate::Unknown => {
                self.unknown += 1;
                self.unknown_written += u64::from(is_there);
            }
            Fate::NotWritten => {
                self.not_written += 1;
                self.wrongly_refused += u64::from(is_there);
            }
        }
    }

    /// Whether nothing speaks against it.
    pub(super) fn holds(&self) -> bool {
        self.violations().iter().all(|(_, count)| *count == 0)
    }

    /// What speaks against it, each with its name.
    pub(super) fn violations(&self) -> [(&'static str, u64); 6] {
        [
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("out of order", self.out_of_order),
            ("changed", self.changed),
            ("written though refused", self.wrongly_refused),
            ("damaged", self.damaged),
        ]
    }

    /// All counts as an object.
    pub(super) fn object(&self) -> Map<String, Value> {
        let counts = [
            ("acknowledged", self.acknowledged),
            ("read", self.read),
            ("read_again", self.read_again),
            ("unknown", self.unknown),
            ("unknown_written", self.unknown_written),
            ("not_written", self.not_written),
            ("lost", self.lost),
            ("doubled", self.doubled),
            ("out_of_order", self.out_of_order),
            ("changed", self.changed),
            ("wrongly_refused", self.wrongly_refused),
            ("damaged", self.damaged),
        ];
        counts.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One partition, one producer: what it was told, and what two readers saw at offsets 0, 1, ….
    fn proof(told: &[Fate], first: &[u64], again: &[u64]) -> Proof {
        let seen = |numbers: &[u64]| {
            let mut seen = Seen::new(1);
            for (offset, number) in (0..).zip(numbers) {
                seen.take(0, offset, Some(RecordId::new(0, *number)));
            }
            seen
        };
        Proof::of(&[told.to_vec()], &seen(first), &seen(again))
    }

    fn acked(offset: u64) -> Fate {
        Fate::Acknowledged(0, offset)
    }

    #[test]
    fn a_value_names_its_record_and_no_other_value_does() {
        let mut value = String::new();
        RecordId::new(3, 77).write(9, 100, &mut value);
        assert_eq!(value.len(), 100);
        assert_eq!(RecordId::read(9, value.as_bytes()), Some(RecordId::new(3, 77)));
        assert_eq!(RecordId::read(8, value.as_bytes()), None, "another run");
        for at in 0..value.len() {
            let mut changed = value.clone().into_bytes();
            changed[at] ^= 1;
            assert_ne!(RecordId::read(9, &changed), Some(RecordId::new(3, 77)), "byte {at}");
        }
    }

    #[test]
    fn a_run_without_fault_is_a_proof_and_unknown_fates_may_go_either_way() {
        let told = [acked(0), Fate::Unknown, acked(1), Fate::NotWritten, Fate::Unknown];
        let proof = proof(&told, &[0, 2, 4], &[0, 2, 4]);
        assert!(proof.holds(), "{proof:?}");
        assert_eq!((proof.acknowledged, proof.unknown, proof.unknown_written, proof.not_written), (2, 2, 1, 1));
        assert_eq!((proof.read, proof.read_again), (3, 3));
    }

    #[test]
    fn each_kind_of_violation_is_counted() {
        let lost = proof(&[acked(0), acked(1)], &[0], &[0]);
        assert_eq!((lost.lost, lost.holds()), (1, false));
        let elsewhere = proof(&[acked(1), acked(0)], &[0, 1], &[0, 1]);
        assert_eq!(elsewhere.lost, 2, "they are not where they were said to be");
        let doubled = proof(&[acked(0)], &[0, 0], &[0, 0]);
        assert_eq!((doubled.doubled, doubled.lost), (1, 0));
        let turned = proof(&[acked(1), acked(0)], &[1, 0], &[1, 0]);
        assert_eq!((turned.out_of_order, turned.lost), (1, 0));
        let changed = proof(&[acked(0), Fate::Unknown], &[0], &[1]);
        assert_eq!((changed.changed, changed.lost), (1, 1));
        let refused = proof(&[Fate::NotWritten], &[0], &[0]);
        assert_eq!((refused.wrongly_refused, refused.holds()), (1, false));
        let never_sent = proof(&[acked(0)], &[0, 7], &[0, 7]);
        assert_eq!((never_sent.changed, never_sent.holds()), (1, false));
    }

    #[test]
    fn offsets_that_go_back_or_are_skipped_or_damaged_are_noticed() {
        let mut seen = Seen::new(1);
        for (offset, number) in [(0, 0), (1, 1), (1, 1)] {
            seen.take(0, offset, Some(RecordId::new(0, number)));
        }
        let back = Proof::of(&[vec![acked(0), acked(1)]], &seen, &seen);
        assert!(back.out_of_order > 0 && !back.holds());
        let mut seen = Seen::new(1);
        seen.take(0, 0, Some(RecordId::new(0, 0)));
        seen.take(0, 2, Some(RecordId::new(0, 2)));
        assert!(seen.reaches(&[3]) && !seen.reaches(&[4]));
        let skipped = Proof::of(&[vec![acked(0), acked(1), acked(2)]], &seen, &seen);
        assert_eq!(skipped.lost, 1);
        let mut damaged = Seen::new(1);
        damaged.damage(0, 0, 2);
        let damaged = Proof::of(&[vec![acked(0), acked(1)]], &damaged, &damaged);
        assert_eq!((damaged.damaged, damaged.lost), (2, 2));
        let mut foreign = Seen::new(1);
        foreign.take(0, 0, None);
        assert_eq!(Proof::of(&[vec![]], &foreign, &Seen::new(1)).changed, 1);
    }
}
