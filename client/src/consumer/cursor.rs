//! Where a consumer stands in one partition: owns what may come next and what rests; knows no broker and no task.

use coulee_protocol::api::fetch::v1 as fetch;
use coulee_protocol::batch::{BatchHeader, BatchType};
use coulee_protocol::error::ErrorCode;

use super::batch::{Batch, Fetched};
use crate::error::{BatchFault, ConsumeError, Refusal};
use crate::retry;

/// The place in one partition.
#[derive(Debug)]
pub(crate) struct Cursor {
    partition: u32,
    /// Behind the last batch that the caller has.
    pub(crate) position: u64,
    /// Behind the last batch that has come: what is fetched next.
    pub(crate) fetch_at: u64,
    /// The last batch that has come, to which the next one is chained.
    last: Option<BatchHeader>,
    /// Known once something was fetched.
    pub(crate) high_watermark: Option<u64>,
    /// The first readable offset, known once something was fetched.
    pub(crate) log_start: Option<u64>,
    pub(crate) is_paused: bool,
    /// An error was given to the caller, who has to decide.
    pub(crate) rests: bool,
    /// Where damage ends that the caller was told of.
    pub(crate) damage_end: Option<u64>,
    /// Grows with each seek: what was fetched before it is dropped.
    pub(crate) generation: u64,
}

/// What a fetch has brought for one partition.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) answer: fetch::ResponsePartition,
    pub(crate) batches: Vec<Fetched>,
    pub(crate) fault: Option<BatchFault>,
}

/// What is to be done after a part was taken.
#[derive(Debug, Default)]
pub(crate) struct Takings {
    pub(crate) batches: Vec<Batch>,
    pub(crate) error: Option<ConsumeError>,
    /// The broker asks to come again later.
    pub(crate) pauses: bool,
    /// What is known of the topic is wrong.
    pub(crate) is_stale: bool,
}

impl Cursor {
    pub(crate) fn new(partition: u32, position: u64) -> Self {
        Self {
            partition,
            position,
            fetch_at: position,
            last: None,
            high_watermark: None,
            log_start: None,
            is_paused: false,
            rests: false,
            damage_end: None,
            generation: 0,
        }
    }

    /// Whether it is to be fetched from.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.is_paused && !self.rests
    }

    /// Goes on at `offset`.
    pub(crate) fn seek(&mut self, offset: u64) {
        self.position = offset;
        self.fetch_at = offset;
        self.last = None;
        self.rests = false;
        self.damage_end = None;
        self.generation += 1;
    }

    /// Takes what was fetched from `fetch_at` on.
    pub(crate) fn take(&mut self, uid: u64, part: Part) -> Takings {
        let Part { answer, batches, fault } = part;
        if answer.partition_uid != uid {
            let fault = BatchFault::OtherPartition { expected: uid, found: answer.partition_uid };
            return self.rest(Takings::default(), self.corrupt(fault));
        }
        let mut takings = Takings::default();
        if answer.error != 0 {
            self.take_error(&answer, &mut takings);
            return takings;
        }
        self.high_watermark = Some(answer.high_watermark);
        self.log_start = Some(answer.log_start);
        for fetched in batches {
            if let Err(fault) = self.check(uid, &fetched.header) {
                return self.rest(takings, self.corrupt(fault));
            }
            let header = fetched.header;
            let wanted = std::mem::replace(&mut self.fetch_at, header.end_offset().0);
            self.last = Some(header);
            // What is no data keeps its place in the partition and is nothing to the caller.
            if header.batch_type == BatchType::Data {
                takings.batches.push(Batch::new(self.partition, fetched, wanted, answer.high_watermark));
            }
        }
        match fault {
            Some(fault) => self.rest(takings, self.corrupt(fault)),
            None => takings,
        }
    }

    fn take_error(&mut self, answer: &fetch::ResponsePartition, takings: &mut Takings) {
        let partition = self.partition;
        let code = ErrorCode::from_code(answer.error);
        let error = match code {
            Some(code) if retry::repeats_fetch(code) => {
                takings.pauses = true;
                takings.is_stale = retry::is_of_stale_metadata(code);
                return;
            }
            // An end that is not behind the position would lead nowhere: it is a refusal like any other.
            Some(ErrorCode::RangeDamaged) if answer.damaged_to > self.fetch_at => {
                self.damage_end = Some(answer.damaged_to);
                ConsumeError::Damaged { partition, from: answer.damaged_from, to: answer.damaged_to }
            }
            Some(ErrorCode::OffsetOutOfRange) => ConsumeError::OutOfRange {
                partition,
                position: self.fetch_at,
                log_start: answer.log_start,
                high_watermark: answer.high_watermark,
            },
            _ => ConsumeError::Refused { partition, refusal: Refusal::of_code(answer.error) },
        };
        self.rests = true;
        takings.error = Some(error);
    }

    fn rest(&mut self, mut takings: Takings, error: ConsumeError) -> Takings {
        self.rests = true;
        takings.error = Some(error);
        takings
    }

    fn corrupt(&self, fault: BatchFault) -> ConsumeError {
        ConsumeError::Corrupt { partition: self.partition, position: self.fetch_at, fault }
    }

    /// Whether a batch is what comes next: the first one holds the offset asked for, each later one follows the one
    /// before without a gap and is chained to it.
    fn check(&self, uid: u64, header: &BatchHeader) -> Result<(), BatchFault> {
        let leader = &header.leader;
        if leader.partition_uid.0 != uid {
            return Err(BatchFault::OtherPartition { expected: uid, found: leader.partition_uid.0 });
        }
        let (base, end) = (leader.base_offset.0, header.end_offset().0);
        let offsets = BatchFault::Offsets { expected: self.fetch_at, base, end };
        let Some(last) = &self.last else {
            return if base <= self.fetch_at && end > self.fetch_at { Ok(()) } else { Err(offsets) };
        };
        if base != self.fetch_at {
            return Err(offsets);
        }
        let is_chained = leader.prev_header_crc == last.header_crc
            && leader.batch_index == last.leader.batch_index.next()
            && leader.leader_epoch >= last.leader.leader_epoch;
        if is_chained { Ok(()) } else { Err(BatchFault::Chain) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::split;
    use super::super::batch::tests::{leader, stored};
    use super::*;
    use bytes::Bytes;
    use coulee_protocol::compression::Codec;

    const UID: u64 = 7;

    fn answer(error: ErrorCode) -> fetch::ResponsePartition {
        let (partition_uid, error) = (UID, error.code());
        fetch::ResponsePartition { partition_uid, error, high_watermark: 100, log_start: 3, ..Default::default() }
    }

    fn part(batches: &[Vec<u8>]) -> Part {
        let (batches, fault) = split(Bytes::from(batches.concat()));
        Part { answer: answer(ErrorCode::None), batches, fault }
    }

    fn refused(answer: fetch::ResponsePartition) -> Part {
        Part { answer, batches: Vec::new(), fault: None }
    }

    /// Batches of two records each from offset 10 on, chained.
    fn chain(count: u64) -> Vec<Vec<u8>> {
        let mut prev = 99;
        let batch = |index: u64| {
            let (header, bytes) = stored(Codec::None, leader(5 + index, 10 + 2 * index, prev), &[b"a", b"b"]);
            prev = header.header_crc;
            bytes
        };
        (0..count).map(batch).collect()
    }

    #[test]
    fn chained_batches_are_taken_and_the_first_is_trimmed() {
        let mut cursor = Cursor::new(0, 11);
        let takings = cursor.take(UID, part(&chain(3)));
        let firsts: Vec<_> = takings.batches.iter().map(Batch::first_offset).collect();
        assert_eq!(firsts, [11, 12, 14]);
        assert!(takings.error.is_none());
        assert_eq!((cursor.fetch_at, cursor.position, cursor.high_watermark), (16, 11, Some(100)));
    }

    #[test]
    fn the_chain_is_kept_from_one_fetch_to_the_next() {
        let batches = chain(4);
        let mut cursor = Cursor::new(0, 10);
        assert!(cursor.take(UID, part(&batches[..2])).error.is_none());
        assert!(cursor.take(UID, part(&batches[2..])).error.is_none());
        let mut cursor = Cursor::new(0, 10);
        assert!(cursor.take(UID, part(&batches[..1])).error.is_none());
        let (_, forged) = stored(Codec::None, leader(6, 12, 1_234), &[b"x"]);
        let takings = cursor.take(UID, part(&[forged]));
        assert!(matches!(takings.error, Some(ConsumeError::Corrupt { fault: BatchFault::Chain, position: 12, .. })));
        assert!(!cursor.is_wanted());
        cursor.seek(12);
        assert!(cursor.is_wanted());
    }

    #[test]
    fn gaps_and_batches_of_elsewhere_are_faults_and_what_came_before_is_kept() {
        let batches = chain(4);
        let mut cursor = Cursor::new(0, 10);
        let takings = cursor.take(UID, part(&[batches[0].clone(), batches[2].clone()]));
        assert_eq!(takings.batches.len(), 1);
        assert!(matches!(
            takings.error,
            Some(ConsumeError::Corrupt { fault: BatchFault::Offsets { expected: 12, base: 14, end: 16 }, .. })
        ));
        for position in [9, 12, 1_000] {
            let takings = Cursor::new(0, position).take(UID, part(&batches[..1]));
            let fault = takings.error.expect("the batch does not hold the position");
            assert!(matches!(fault, ConsumeError::Corrupt { fault: BatchFault::Offsets { .. }, .. }), "{position}");
        }
        let takings = Cursor::new(0, 10).take(
            8,
            Part { answer: fetch::ResponsePartition { partition_uid: 8, ..answer(ErrorCode::None) }, ..part(&batches) },
        );
        assert!(matches!(
            takings.error,
            Some(ConsumeError::Corrupt { fault: BatchFault::OtherPartition { expected: 8, found: 7 }, .. })
        ));
    }

    #[test]
    fn damage_is_told_with_its_range_and_left_by_seeking_to_its_end() {
        let mut cursor = Cursor::new(4, 20);
        let damaged = fetch::ResponsePartition { damaged_from: 20, damaged_to: 35, ..answer(ErrorCode::RangeDamaged) };
        let takings = cursor.take(UID, refused(damaged));
        assert_eq!(takings.error, Some(ConsumeError::Damaged { partition: 4, from: 20, to: 35 }));
        assert_eq!((cursor.rests, cursor.damage_end), (true, Some(35)));
        cursor.seek(35);
        assert_eq!((cursor.rests, cursor.damage_end, cursor.position), (false, None, 35));
        let nowhere = fetch::ResponsePartition { damaged_to: 35, ..answer(ErrorCode::RangeDamaged) };
        assert!(matches!(cursor.take(UID, refused(nowhere)).error, Some(ConsumeError::Refused { .. })));
    }

    #[test]
    fn an_offset_out_of_range_rests_and_passing_errors_are_tried_again() {
        let mut cursor = Cursor::new(0, 2);
        let takings = cursor.take(UID, refused(answer(ErrorCode::OffsetOutOfRange)));
        let expected = ConsumeError::OutOfRange { partition: 0, position: 2, log_start: 3, high_watermark: 100 };
        assert_eq!(takings.error, Some(expected));
        let mut cursor = Cursor::new(0, 2);
        for (code, is_stale) in
            [(ErrorCode::Recovering, false), (ErrorCode::Overloaded, false), (ErrorCode::NotLeaderOrFollower, true)]
        {
            let takings = cursor.take(UID, refused(answer(code)));
            assert_eq!((takings.pauses, takings.is_stale, takings.error), (true, is_stale, None), "{code}");
        }
        assert!(cursor.is_wanted());
    }
}
