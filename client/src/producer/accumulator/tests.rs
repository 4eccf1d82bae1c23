//! Tests of the accumulator: owns its claims, with time given by hand; knows no runtime and no socket.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::producer::fate::Delivery;
use coulee_protocol::error::ErrorCode;

const MS: Duration = Duration::from_millis(1);
const RULES: Rules = Rules {
    codec: Codec::None,
    batch_bytes_max: 4_096,
    record_bytes_max: 4_096,
    batch_records_max: 3,
    linger: Duration::from_millis(5),
    window: 2,
    delivery_timeout: Duration::from_secs(10),
};

fn accumulator(rules: Rules) -> Accumulator {
    Accumulator::new(rules, 4, 0)
}

/// Takes a record for partition 0 at `now`.
fn push(accumulator: &mut Accumulator, now: Duration) -> Taken {
    let record = NewRecord { value: Some(b"value"), ..NewRecord::default() };
    accumulator.push(now, Some(0), &record, 10).unwrap()
}

/// The batch that goes at `now`, with its records.
fn sent(accumulator: &mut Accumulator, now: Duration) -> Option<(u32, Batch, usize)> {
    let Next::Send(partition, mut batch) = accumulator.next(now) else { return None };
    let records = match &mut batch.content {
        Content::Records(builder) => builder.len(),
        Content::Built(_) => 0,
    };
    Some((partition, batch, records))
}

fn expect_sent(accumulator: &mut Accumulator, now: Duration) -> Batch {
    sent(accumulator, now).expect("a batch goes").1
}

/// What became of the record, if that is decided.
fn outcome(taken: &Taken) -> Option<Result<Option<u64>, DeliveryError>> {
    let delivery = pin!(Delivery::new(taken.fate.clone(), taken.index, taken.partition, 0));
    match delivery.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result.map(|delivered| delivered.offset)),
        Poll::Pending => None,
    }
}

fn repeat() -> Landing {
    Landing::Failed(Verdict::Repeat(Some(Refusal::of_code(ErrorCode::Overloaded.code()))))
}

#[test]
fn a_batch_goes_when_its_linger_is_over_and_not_before() {
    let mut accumulator = accumulator(RULES);
    assert!(push(&mut accumulator, MS).wakes);
    assert!(!push(&mut accumulator, 3 * MS).wakes, "the second record changes nothing");
    assert!(matches!(accumulator.next(3 * MS), Next::Wait(Some(at)) if at == 6 * MS));
    assert!(sent(&mut accumulator, 5 * MS).is_none());
    assert!(matches!(sent(&mut accumulator, 6 * MS), Some((0, _, 2))));
    assert!(matches!(accumulator.next(6 * MS), Next::Wait(None)));
}

#[test]
fn a_batch_goes_at_once_when_it_has_its_records_or_bytes() {
    let mut by_records = accumulator(RULES);
    (0..3).for_each(|_| drop(push(&mut by_records, MS)));
    assert!(matches!(sent(&mut by_records, MS), Some((0, _, 3))));
    let mut by_bytes = accumulator(RULES);
    let large = NewRecord { value: Some(&[0; 3_000]), ..NewRecord::default() };
    let first = by_bytes.push(MS, Some(0), &large, 1).unwrap();
    let second = by_bytes.push(MS, Some(0), &large, 1).unwrap();
    assert!(second.wakes && !Arc::ptr_eq(&first.fate, &second.fate));
    assert!(matches!(sent(&mut by_bytes, MS), Some((0, _, 1))));
    assert!(sent(&mut by_bytes, MS).is_none(), "the second one lingers");
}

#[test]
fn without_linger_a_record_goes_at_once_and_others_gather_while_the_window_is_full() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, batch_records_max: 100, ..RULES });
    push(&mut accumulator, MS);
    let first = expect_sent(&mut accumulator, MS);
    push(&mut accumulator, MS);
    let second = expect_sent(&mut accumulator, MS);
    let gathered: Vec<_> = (0..5).map(|_| push(&mut accumulator, MS)).collect();
    assert!(sent(&mut accumulator, MS).is_none(), "the window of two is full");
    accumulator.land(0, first, Landing::Written(Some(0)), (MS, 0));
    assert!(matches!(sent(&mut accumulator, MS), Some((0, _, 5))));
    assert_eq!(gathered.last().map(|last| last.index), Some(4));
    accumulator.land(0, second, Landing::Written(Some(1)), (MS, 0));
}

#[test]
fn partitions_do_not_wait_for_each_other() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, window: 1, ..RULES });
    let record = NewRecord { value: Some(b"v"), ..NewRecord::default() };
    for partition in [0, 0, 1, 2] {
        accumulator.push(MS, Some(partition), &record, 1).unwrap();
    }
    let mut gone: Vec<_> = (0..3).map(|_| sent(&mut accumulator, MS).unwrap().0).collect();
    gone.sort_unstable();
    assert_eq!(gone, [0, 1, 2]);
}

#[test]
fn batches_that_were_not_written_are_repeated_in_order_once_all_have_landed() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, batch_records_max: 1, ..RULES });
    let records: Vec<_> = (0..3).map(|_| push(&mut accumulator, MS)).collect();
    let (first, second) = (expect_sent(&mut accumulator, MS), expect_sent(&mut accumulator, MS));
    let ids = [first.id, second.id];
    accumulator.land(0, first, repeat(), (MS, 0));
    assert!(sent(&mut accumulator, 100 * MS).is_none(), "the lane rests while one is in flight");
    accumulator.land(0, second, repeat(), (MS, 0));
    assert!(sent(&mut accumulator, MS).is_none(), "first a pause");
    let again = [expect_sent(&mut accumulator, 100 * MS), expect_sent(&mut accumulator, 100 * MS)];
    assert_eq!([again[0].id, again[1].id], ids);
    for (batch, base) in again.into_iter().zip([7, 8]) {
        accumulator.land(0, batch, Landing::Written(Some(base)), (101 * MS, 0));
    }
    assert_eq!(outcome(&records[0]), Some(Ok(Some(7))));
    assert_eq!(outcome(&records[1]), Some(Ok(Some(8))));
    assert_eq!(outcome(&records[2]), None);
}

#[test]
fn a_batch_that_was_overtaken_fails_instead_of_being_repeated_behind_a_later_one() {
    let unknown = Landing::Failed(Verdict::Unknown(None));
    for later in [Landing::Written(Some(3)), unknown] {
        let mut accumulator = accumulator(Rules { linger: Duration::ZERO, batch_records_max: 1, ..RULES });
        let records = [push(&mut accumulator, MS), push(&mut accumulator, MS)];
        let (first, second) = (expect_sent(&mut accumulator, MS), expect_sent(&mut accumulator, MS));
        accumulator.land(0, first, repeat(), (MS, 0));
        accumulator.land(0, second, later, (MS, 0));
        let refusal = Refusal::of_code(ErrorCode::Overloaded.code());
        assert_eq!(outcome(&records[0]), Some(Err(DeliveryError::NotWritten { refusal })));
        assert!(outcome(&records[1]).is_some());
        assert!(matches!(accumulator.next(1_000 * MS), Next::Wait(None)));
    }
}

#[test]
fn a_refused_batch_fails_and_does_not_hold_up_the_next() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, batch_records_max: 1, ..RULES });
    let records = [push(&mut accumulator, MS), push(&mut accumulator, MS)];
    let (first, second) = (expect_sent(&mut accumulator, MS), expect_sent(&mut accumulator, MS));
    let refusal = Refusal::of_code(ErrorCode::MessageTooLarge.code());
    accumulator.land(0, first, Landing::Failed(Verdict::NotWritten(refusal.clone())), (MS, 0));
    accumulator.land(0, second, Landing::Written(Some(0)), (MS, 0));
    assert_eq!(outcome(&records[0]), Some(Err(DeliveryError::NotWritten { refusal })));
    assert_eq!(outcome(&records[1]), Some(Ok(Some(0))));
}

#[test]
fn nothing_is_repeated_for_longer_than_the_delivery_timeout() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, ..RULES });
    let record = push(&mut accumulator, MS);
    let batch = expect_sent(&mut accumulator, MS);
    accumulator.land(0, batch, repeat(), (RULES.delivery_timeout + MS, 0));
    assert!(matches!(outcome(&record), Some(Err(DeliveryError::NotWritten { .. }))));
    let waiting = push(&mut accumulator, MS);
    let batch = expect_sent(&mut accumulator, MS);
    accumulator.park(0, batch);
    accumulator.unpark(0, RULES.delivery_timeout + MS, None);
    assert!(sent(&mut accumulator, RULES.delivery_timeout + MS).is_none());
    assert_eq!(outcome(&waiting), Some(Err(DeliveryError::Undelivered)));
}

#[test]
fn what_waits_too_long_behind_a_refused_batch_is_told_why() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, ..RULES });
    let first = push(&mut accumulator, MS);
    let batch = expect_sent(&mut accumulator, MS);
    let waiting = push(&mut accumulator, MS);
    let late = RULES.delivery_timeout + 2 * MS;
    accumulator.land(0, batch, repeat(), (late, 0));
    assert!(sent(&mut accumulator, late + Duration::from_secs(60)).is_none());
    let refusal = Refusal::of_code(ErrorCode::Overloaded.code());
    for record in [first, waiting] {
        assert_eq!(outcome(&record), Some(Err(DeliveryError::NotWritten { refusal: refusal.clone() })));
    }
}

#[test]
fn a_parked_lane_keeps_its_order_and_goes_on_after_its_pause() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, batch_records_max: 1, ..RULES });
    push(&mut accumulator, MS);
    push(&mut accumulator, MS);
    let first = expect_sent(&mut accumulator, MS);
    let id = first.id;
    accumulator.park(0, first);
    assert!(sent(&mut accumulator, 100 * MS).is_none());
    accumulator.unpark(0, 100 * MS, Some(0));
    let Next::Wait(Some(at)) = accumulator.next(100 * MS) else { panic!("a failed look-up is followed by a pause") };
    assert_eq!(at, 110 * MS);
    assert_eq!(expect_sent(&mut accumulator, at).id, id);
}

#[test]
fn records_without_a_key_stay_together_and_move_on_with_each_batch() {
    let mut accumulator = accumulator(RULES);
    let record = NewRecord { value: Some(b"v"), ..NewRecord::default() };
    let partitions: Vec<_> = (0..9).map(|_| accumulator.push(MS, None, &record, 1).unwrap().partition).collect();
    assert_eq!(partitions, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
}

#[test]
fn keys_choose_the_partition_that_kafka_would_choose() {
    let mut accumulator = Accumulator::new(RULES, 10, 0);
    for (key, partition) in [(&b"21"[..], 0), (b"abc", 7), (b"foobar", 6)] {
        let record = NewRecord { key: Some(key), ..NewRecord::default() };
        assert_eq!(accumulator.push(MS, None, &record, 1).unwrap().partition, partition);
        assert_eq!(accumulator.push(MS, Some(3), &record, 1).unwrap().partition, 3, "unless one is named");
    }
    let refused = accumulator.push(MS, Some(10), &NewRecord::default(), 1).map(|taken| taken.partition);
    assert_eq!(refused, Err(SendError::NoPartition { partition: 10, partitions: 10 }));
    accumulator.grow(11);
    assert!(accumulator.push(MS, Some(10), &NewRecord::default(), 1).is_ok());
}

#[test]
fn a_record_too_large_for_any_batch_is_refused_and_leaves_nothing_behind() {
    let mut accumulator = accumulator(RULES);
    let record = NewRecord { value: Some(&[0; 5_000]), ..NewRecord::default() };
    let refused = accumulator.push(MS, Some(0), &record, 1).map(|taken| taken.index);
    assert!(matches!(refused, Err(SendError::TooLarge { max: 4_096, .. })));
    assert_eq!(accumulator.decided_end(), 1, "its batch is not waited for");
    accumulator.close(MS);
    assert!(matches!(accumulator.next(MS), Next::Finished));
}

#[test]
fn a_record_above_the_bound_of_batches_goes_alone_and_in_its_order_once_the_topic_is_known_to_take_it() {
    let mut accumulator = accumulator(RULES);
    let before = push(&mut accumulator, MS);
    let record = NewRecord { value: Some(&[0; 5_000]), ..NewRecord::default() };
    assert!(accumulator.push(MS, Some(0), &record, 1).is_err());
    accumulator.allow_records(8_192);
    let large = accumulator.push(MS, Some(0), &record, 1).unwrap();
    let after = push(&mut accumulator, MS);
    let record = NewRecord { value: Some(&[0; 9_000]), ..NewRecord::default() };
    let refused = accumulator.push(MS, Some(0), &record, 1).map(|taken| taken.index);
    assert!(matches!(refused, Err(SendError::TooLarge { max: 8_192, .. })), "{refused:?}");
    accumulator.flush(MS);
    for taken in [before, large, after] {
        let (partition, batch, records) = sent(&mut accumulator, MS).unwrap();
        assert_eq!(records, 1);
        accumulator.land(partition, batch, Landing::Written(None), (MS, 0));
        assert_eq!(outcome(&taken), Some(Ok(None)));
    }
}

#[test]
fn memory_is_given_back_when_a_batch_has_its_fate() {
    let mut accumulator = accumulator(Rules { linger: Duration::ZERO, ..RULES });
    push(&mut accumulator, MS);
    push(&mut accumulator, MS);
    let batch = expect_sent(&mut accumulator, MS);
    assert_eq!(accumulator.take_released(), 0);
    accumulator.land(0, batch, Landing::Written(Some(0)), (MS, 0));
    assert_eq!((accumulator.take_released(), accumulator.take_released()), (20, 0));
}

#[test]
fn closing_sends_what_is_held_takes_no_more_and_ends_when_all_is_decided() {
    let mut accumulator = accumulator(RULES);
    push(&mut accumulator, MS);
    assert_eq!(accumulator.close(MS), 1);
    let late = accumulator.push(MS, Some(0), &NewRecord::default(), 1).map(|taken| taken.index);
    assert_eq!(late, Err(SendError::Closed));
    let batch = expect_sent(&mut accumulator, MS);
    assert!(matches!(accumulator.next(MS), Next::Wait(None)));
    assert_eq!(accumulator.decided_end(), 0);
    accumulator.land(0, batch, Landing::Written(Some(0)), (MS, 0));
    assert_eq!(accumulator.decided_end(), 1);
    assert!(matches!(accumulator.next(MS), Next::Finished));
}
