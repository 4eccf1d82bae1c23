//! The work of an application: the Rust client writes and reads, one task for each producer; knows no wire.
//!
//! Every record is looked at when it comes back: its partition's next number stands in its first eight bytes, the rest
//! has to be what was sent. A latency goes from the call that sends a record to its delivery.

use crate::arguments::RunArguments;
use crate::fault::Fault;
use crate::generator::Outcome;
use crate::machine;
use crate::run::measured;
use crate::tally::{Tally, Window};
use coulee_client::{Client, Delivery, Producer, Record, Start};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::Builder;

/// Nothing may be missing for longer than this.
const STALL: Duration = Duration::from_secs(30);
/// Deliveries that are looked at before the clock is read again.
const DELIVERED_TOGETHER: usize = 64;

fn failed(what: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Fault {
    move |error| Fault::Control { what, detail: error.to_string() }
}

/// Runs a client on the first CPU of the generators.
fn on_thread<T: Send>(cpu: usize, work: impl AsyncFnOnce() -> Result<T, Fault> + Send) -> Result<T, Fault> {
    let body = move || {
        machine::pin(cpu)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Fault::machine("a runtime"))?;
        runtime.block_on(work())
    };
    thread::scope(|scope| scope.spawn(body).join().expect("a client does not panic"))
}

/// Producers write, each its own partition, until the time is over.
pub(crate) fn write(arguments: &RunArguments, address: SocketAddr, topic: &str) -> Result<Outcome, Fault> {
    let window = measured(arguments.seconds);
    on_thread(arguments.cpus[0], async || {
        let client = Client::connect(address.to_string()).await.map_err(|error| failed("connect")(&error))?;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for partition in 0..arguments.producers() {
            let batch = arguments.batch() as usize;
            let built = client.producer(topic).batch_records_max(batch).in_flight(arguments.in_flight() as usize);
            let producer = built.build().await.map_err(|error| failed("a producer")(&error))?;
            let in_flight = batch * arguments.in_flight() as usize;
            let lane = Lane { producer, partition, size: arguments.size as usize, in_flight, window, start };
            tasks.spawn(lane.run());
        }
        let mut acks = Tally::new(window);
        while let Some(joined) = tasks.join_next().await {
            acks.add(&joined.expect("a producer does not panic")?);
        }
        Ok(Outcome { acks, reads: Tally::new(window) })
    })
}

/// One producer.
struct Lane {
    producer: Producer,
    partition: u32,
    size: usize,
    in_flight: usize,
    window: Window,
    start: Instant,
}

impl Lane {
    async fn run(self) -> Result<Tally, Fault> {
        let (mut tally, mut pending) = (Tally::new(self.window), VecDeque::new());
        let (mut value, mut number, mut next) = (value_of(self.size), 0_u64, 0);
        loop {
            let now_ns = self.now_ns();
            let is_over = now_ns >= self.window.end_ns;
            while !is_over && pending.len() < self.in_flight {
                value[..8].copy_from_slice(&number.to_le_bytes());
                let record = Record::new(&value).partition(self.partition);
                let taken = self.producer.send(record).await.map_err(|error| failed("a record")(&error))?;
                pending.push_back((taken, now_ns));
                number += 1;
            }
            if pending.is_empty() {
                return Ok(tally);
            }
            self.deliver(&mut pending, &mut next, &mut tally).await?;
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("runs are shorter than 500 years")
    }

    /// Waits for the first deliveries and checks that each record lies behind the one before.
    async fn deliver(
        &self,
        pending: &mut VecDeque<(Delivery, u64)>,
        next: &mut u64,
        tally: &mut Tally,
    ) -> Result<(), Fault> {
        let mut sent = Vec::with_capacity(DELIVERED_TOGETHER);
        while sent.len() < DELIVERED_TOGETHER
            && let Some((delivery, sent_ns)) = pending.pop_front()
        {
            let delivered = delivery.await.map_err(|error| failed("a delivery")(&error))?;
            if delivered.offset != Some(*next) {
                let (partition, found) = (u64::from(self.partition), delivered.offset.unwrap_or(u64::MAX));
                return Err(Fault::Record { partition, what: "the offset of a delivery", expected: *next, found });
            }
            *next += 1;
            sent.push(sent_ns);
        }
        let now_ns = self.now_ns();
        sent.iter().for_each(|sent_ns| tally.done(1, *sent_ns, now_ns));
        Ok(())
    }
}

/// Bytes behind the number of a record, the same for all.
fn value_of(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at as u8).wrapping_mul(167)).collect()
}

/// One consumer reads `records` records from their start and looks at each; with the bytes of their values.
pub(crate) fn read(
    arguments: &RunArguments,
    address: SocketAddr,
    topic: &str,
    records: u64,
) -> Result<(Outcome, u64), Fault> {
    let window = Window { start_ns: 0, end_ns: u64::MAX };
    let (acks, mut reads) = (Tally::new(window), Tally::new(window));
    let reads = on_thread(arguments.cpus[0], async move || {
        let client = Client::connect(address.to_string()).await.map_err(|error| failed("connect")(&error))?;
        let building = client.consumer(topic).start(Start::Offset(0)).max_wait(STALL).build();
        let mut consumer = building.await.map_err(|error| failed("a consumer")(&error))?;
        let (expected, start, mut asked_ns) = (value_of(arguments.size as usize), Instant::now(), 0);
        let mut next: BTreeMap<u32, u64> = BTreeMap::new();
        while reads.records < records {
            let polled = consumer.poll().await.map_err(|error| failed("a poll")(&error))?;
            let Some(mut batch) = polled else {
                let outstanding = records - reads.records;
                return Err(Fault::Stalled { what: "records", seconds: STALL.as_secs(), outstanding });
            };
            let mut count = 0;
            for record in batch.records().map_err(|error| failed("a batch")(&error))? {
                let next = next.entry(record.partition).or_default();
                check(record.partition, (record.offset, *next), record.value.unwrap_or_default(), &expected)?;
                *next += 1;
                count += 1;
            }
            let now_ns = start.elapsed().as_nanos() as u64;
            reads.done(count, asked_ns, now_ns);
            asked_ns = now_ns;
        }
        Ok(reads)
    })?;
    let bytes = reads.records * u64::from(arguments.size);
    Ok((Outcome { acks, reads }, bytes))
}

/// Whether a record is the one that has to come next, and holds what was sent.
fn check(partition: u32, (offset, next): (u64, u64), value: &[u8], expected: &[u8]) -> Result<(), Fault> {
    let mistaken = |what, expected, found| Fault::Record { partition: u64::from(partition), what, expected, found };
    if offset != next {
        return Err(mistaken("the offset of the next record", next, offset));
    }
    let number = value.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
    if number != next {
        return Err(mistaken("the number in a record", next, number));
    }
    if value[8..] != expected[8..] {
        let sum = |bytes: &[u8]| u64::from(crc32fast::hash(bytes));
        return Err(mistaken("the checksum of a record", sum(&expected[8..]), sum(&value[8..])));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_out_of_its_place_or_changed_is_noticed() {
        let mut value = value_of(20);
        let expected = value.clone();
        value[..8].copy_from_slice(&7_u64.to_le_bytes());
        let told = |offset, value: &[u8]| check(3, (offset, 7), value, &expected).map_err(|fault| fault.to_string());
        assert_eq!(told(7, &value), Ok(()));
        assert_eq!(told(8, &value), Err("partition 3: the offset of the next record is 8, expected 7".to_owned()));
        value[19] ^= 1;
        assert!(told(7, &value).unwrap_err().contains("checksum"));
        value[0] = 6;
        assert!(told(7, &value).unwrap_err().contains("the number in a record is 6"));
    }
}
