//! What each client was told of each record, and whether the log agrees; knows no broker.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// Who sent a record, and its number among that client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number {
    pub(crate) client: u32,
    pub(crate) sequence: u64,
}

impl Number {
    pub(crate) fn encode(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.client.to_le_bytes());
        bytes[4..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let (client, sequence) = bytes.split_at(4);
        let client = u32::from_le_bytes(client.try_into().unwrap());
        Self { client, sequence: u64::from_le_bytes(sequence.try_into().unwrap()) }
    }
}

/// What a client was told of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is on disk, at this offset.
    Acknowledged(u64),
    /// It surely was not written.
    NotWritten,
    /// Nothing that is sure.
    Unknown,
}

/// A record that was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) partition: u32,
    pub(crate) number: Number,
    pub(crate) told: Told,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// What was read of each partition, and agreed with what was told.
    read: Vec<Vec<Number>>,
    /// What was sent since, in order: by client and partition.
    sent: BTreeMap<(u32, u32), VecDeque<Sent>>,
    next_sequence: BTreeMap<u32, u64>,
    acknowledged: u64,
    found: u64,
    gone: u64,
    not_written: u64,
}

impl Ledger {
    pub(crate) fn new(partitions: u32) -> Self {
        Self {
            read: vec![Vec::new(); partitions as usize],
            sent: BTreeMap::new(),
            next_sequence: BTreeMap::new(),
            acknowledged: 0,
            found: 0,
            gone: 0,
            not_written: 0,
        }
    }

    pub(crate) fn read_ends(&self) -> Vec<u64> {
        self.read.iter().map(|numbers| numbers.len() as u64).collect()
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    pub(crate) fn next_sequence(&self, client: u32) -> u64 {
        self.next_sequence.get(&client).copied().unwrap_or_default()
    }

    /// Notes what one client has sent, in order.
    pub(crate) fn note(&mut self, client: u32, sent: Vec<Sent>) {
        for sent in sent {
            assert_eq!(sent.number.sequence, self.next_sequence(client));
            self.next_sequence.insert(client, sent.number.sequence + 1);
            self.sent.entry((client, sent.partition)).or_default().push_back(sent);
        }
    }

    /// Takes what has come to each partition, which has to be what the clients were told.
    pub(crate) fn take(&mut self, seen: Vec<Vec<Number>>) {
        let mut sent = std::mem::take(&mut self.sent);
        for (partition, numbers) in (0..).zip(seen) {
            for number in numbers {
                let offset = self.read[partition as usize].len() as u64;
                let place = format!("client {}, record {}: partition {partition}", number.client, number.sequence);
                let queue = sent.entry((number.client, partition)).or_default();
                let at = queue.iter().position(|sent| sent.number == number);
                let at =
                    at.unwrap_or_else(|| panic!("{place}, offset {offset}: twice, or out of order, or never sent"));
                queue.drain(..at).for_each(|missing| self.is_gone(missing));
                match queue.pop_front().expect("it was found there").told {
                    Told::Acknowledged(told) => {
                        assert_eq!(told, offset, "{place}: another offset than the acknowledged one");
                        self.acknowledged += 1;
                    }
                    Told::Unknown => self.found += 1,
                    Told::NotWritten => panic!("{place}, offset {offset}: it was told not to be written"),
                }
                self.read[partition as usize].push(number);
            }
        }
        sent.into_values().flatten().for_each(|missing| self.is_gone(missing));
    }

    fn is_gone(&mut self, Sent { partition, number, told }: Sent) {
        match told {
            Told::Acknowledged(offset) => panic!(
                "client {}, record {}: acknowledged and missing in partition {partition} at offset {offset}",
                number.client, number.sequence
            ),
            Told::Unknown => self.gone += 1,
            Told::NotWritten => self.not_written += 1,
        }
    }

    /// Compares what was read in all rounds with what is there at last.
    pub(crate) fn compare(&self, seen: &[Vec<Number>]) {
        for (partition, (before, now)) in self.read.iter().zip(seen).enumerate() {
            let differs = before.iter().zip(now).position(|(before, now)| before != now);
            assert_eq!(differs, None, "partition {partition} has changed there");
            assert_eq!(before.len(), now.len(), "partition {partition}");
        }
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, found, gone, not_written, .. } = self;
        write!(
            formatter,
            "{acknowledged} records acknowledged and there, once and in order; of those with an unknown "
        )?;
        write!(formatter, "outcome {found} there once and {gone} not; {not_written} told not to be written, none there")
    }
}

#[test]
#[should_panic(expected = "acknowledged and missing")]
fn an_acknowledged_record_that_is_missing_is_noticed() {
    check(&[Told::Acknowledged(0), Told::Acknowledged(1)], &[1]);
}

#[test]
#[should_panic(expected = "twice, or out of order")]
fn a_record_that_is_there_twice_is_noticed() {
    check(&[Told::Acknowledged(0), Told::Unknown], &[0, 0]);
}

#[test]
#[should_panic(expected = "or out of order")]
fn records_out_of_order_are_noticed() {
    check(&[Told::Unknown, Told::Unknown], &[1, 0]);
}

#[test]
#[should_panic(expected = "told not to be written")]
fn a_record_that_was_not_to_be_written_is_noticed() {
    check(&[Told::NotWritten], &[0]);
}

/// Sends records with what is told of each, and takes those with these sequences.
fn check(told: &[Told], seen: &[u64]) {
    let mut ledger = Ledger::new(1);
    let number = |sequence| Number { client: 0, sequence };
    let sent = (0..).zip(told).map(|(at, told)| Sent { partition: 0, number: number(at), told: *told });
    ledger.note(0, sent.collect());
    ledger.take(vec![seen.iter().map(|sequence| number(*sequence)).collect()]);
}
