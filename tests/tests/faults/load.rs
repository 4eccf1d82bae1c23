//! Clients that write and read at once and write down what they were told, for the history checker; they know no fault.

use coulee_client::{Client, Delivery, NewTopic, OffsetSpec, Producer, Record, Start};
use coulee_protocol::ids::Offset;
use coulee_tests::chance::Chance;
use coulee_tests::checker::{Begun, Ended, Key, Op, PartitionInfo, Process, Recorder, Runs, Value};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The topic, which has [`PARTITIONS`].
pub(crate) const TOPIC: &str = "t";
/// On two shards.
pub(crate) const PARTITIONS: u32 = 6;
/// Records of a batch, batches that wait for their acks, and bytes of a value, by client that writes.
const WRITERS: [(usize, usize, u64); 4] = [(1, 1, 200), (1, 16, 200), (20, 4, 1_000), (1, 2, 60_000)];
const READERS: u32 = 2;
/// A value's sender stands above its number.
const SENDER_SHIFT: u32 = 40;
/// What one fetch asks for: a connection has room for several that wait.
const FETCH_BYTES: usize = 256 << 10;
/// What cannot be written for the moment is not tried for longer.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(1);
/// Whoever waits longer for an ack than this waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Makes the topic, with small segments, so that many are begun and sealed.
pub(crate) async fn create_topic(address: &str) {
    let client = Client::connect(address).await.unwrap();
    let topic = NewTopic::new(TOPIC).partitions(PARTITIONS).config("segment.bytes", "65536");
    client.create_topic(topic).await.unwrap();
}

/// The topic's partitions, for the checker.
pub(crate) fn partitions() -> Vec<PartitionInfo> {
    (0..PARTITIONS).map(|partition| PartitionInfo::durable(format!("{TOPIC}-{partition}"))).collect()
}

/// Bytes of a value, each of which hangs on it.
fn encode(value: Value, filling: u64) -> Vec<u8> {
    let mut bytes = value.0.to_le_bytes().to_vec();
    bytes.extend(Chance(value.0).bytes(filling as usize));
    bytes
}

fn decode(bytes: &[u8]) -> Value {
    let Some((number, filling)) = bytes.split_first_chunk() else { return Value::UNREADABLE };
    let value = Value(u64::from_le_bytes(*number));
    if Chance(value.0).bytes(filling.len()) == filling { value } else { Value::UNREADABLE }
}

/// Clients at work, each a thread with a connection of its own.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Recorder>>,
    told: Receiver<bool>,
}

impl Load {
    /// Starts clients; each life of a broker has others, `life` numbers them.
    pub(crate) fn start(address: &str, life: u32, clock: Instant, chance: &mut Chance) -> Self {
        let (is_over, (sender, told)) = (Arc::new(AtomicBool::new(false)), channel());
        let mut clients = Vec::new();
        for client in 0..WRITERS.len() as u32 + READERS {
            let process = 100 * life + client;
            let mut hand = Hand {
                process,
                next: 0,
                chance: Chance(chance.below(u64::MAX)),
                is_over: Arc::clone(&is_over),
                told: sender.clone(),
                waiting: VecDeque::new(),
                notes: Notes { clock, recorder: Recorder::new(Process(process)) },
            };
            let address = address.to_owned();
            clients.push(std::thread::spawn(move || {
                match WRITERS.get(client as usize) {
                    Some(writer) => runtime().block_on(hand.write(&address, *writer)),
                    None => runtime().block_on(hand.read(&address)),
                }
                hand.notes.recorder
            }));
        }
        Self { is_over, clients, told }
    }

    /// Waits until `count` more records were acknowledged.
    pub(crate) fn await_acks(&self, count: usize) {
        self.await_told(count, true);
    }

    /// Waits until `count` more records were refused, or have an unknown outcome.
    pub(crate) fn await_refusals(&self, count: usize) {
        self.await_told(count, false);
    }

    fn await_told(&self, count: usize, wanted: bool) {
        let mut left = count;
        while left > 0 {
            let told = self.told.recv_timeout(PATIENCE);
            left -=
                usize::from(told.unwrap_or_else(|error| panic!("{left} of {count} still to come: {error}")) == wanted);
        }
    }

    /// Ends the load; what the clients have written down.
    pub(crate) fn finish(self) -> Vec<Recorder> {
        self.is_over.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().expect("a client does not fail")).collect()
    }
}

/// What a client writes down.
pub(crate) struct Notes {
    clock: Instant,
    pub(crate) recorder: Recorder,
}

impl Notes {
    pub(crate) fn new(clock: Instant, process: u32) -> Self {
        Self { clock, recorder: Recorder::new(Process(process)) }
    }

    fn now_us(&self) -> u64 {
        self.clock.elapsed().as_micros() as u64
    }

    fn begin(&mut self, begun: Begun) -> Op {
        self.recorder.begin(self.now_us(), begun)
    }

    fn end(&mut self, op: Op, ended: Ended) {
        self.recorder.end(self.now_us(), op, ended);
    }
}

/// One client.
struct Hand {
    process: u32,
    next: u64,
    chance: Chance,
    is_over: Arc<AtomicBool>,
    told: Sender<bool>,
    waiting: VecDeque<(Op, Delivery)>,
    notes: Notes,
}

impl Hand {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    async fn write(&mut self, address: &str, (batch, in_flight, value_bytes): (usize, usize, u64)) {
        let Ok(client) = Client::connect(address).await else { return };
        let producer = client.producer(TOPIC).batch_records_max(batch).linger(Duration::ZERO);
        let Ok(producer) = producer.delivery_timeout(DELIVERY_TIMEOUT).build().await else { return };
        while !self.is_over() {
            let partition = self.chance.below(u64::from(PARTITIONS)) as u32;
            for _ in 0..batch {
                self.send(&producer, partition, value_bytes).await;
            }
            while self.waiting.len() > batch * (in_flight - 1) {
                self.hear().await;
            }
        }
        while !self.waiting.is_empty() {
            self.hear().await;
        }
    }

    async fn send(&mut self, producer: &Producer, partition: u32, value_bytes: u64) {
        let first = Value(u64::from(self.process) << SENDER_SHIFT | self.next);
        self.next += 1;
        let bytes = encode(first, self.chance.below(value_bytes));
        let op = self.notes.begin(Begun::Produce { key: Key(partition), first, count: 1, once: true });
        match producer.send(Record::new(&bytes).partition(partition)).await {
            Ok(delivery) => self.waiting.push_back((op, delivery)),
            Err(_) => self.notes.end(op, Ended::Failed),
        }
    }

    /// Waits for what becomes of the oldest record.
    async fn hear(&mut self) {
        let Some((op, delivery)) = self.waiting.pop_front() else { return };
        let ended = match delivery.await {
            Ok(delivered) => {
                let base = Offset(delivered.offset.expect("an ack says the offset"));
                Ended::Acked { base, high_watermark: None }
            }
            Err(error) if error.may_be_written() => Ended::Unknown,
            Err(_) => Ended::Failed,
        };
        // Nobody may want to know any more.
        let _is_wanted = self.told.send(matches!(ended, Ended::Acked { .. })).is_ok();
        self.notes.end(op, ended);
    }

    /// Reads a batch here and there.
    async fn read(&mut self, address: &str) {
        let Ok(client) = Client::connect(address).await else { return };
        while !self.is_over() {
            let partition = self.chance.below(u64::from(PARTITIONS)) as u32;
            let end = client.list_offsets(TOPIC, &[partition], OffsetSpec::End).await;
            let end = end.ok().and_then(|ends| ends.first().and_then(|end| end.offset)).unwrap_or_default();
            let from = self.chance.below(end + 1);
            read_from(&client, &mut self.notes, partition, from, from + 1).await;
        }
    }
}

/// Reads a partition from `from` on, at least one batch, until `end`; how far it came.
pub(crate) async fn read_from(client: &Client, notes: &mut Notes, partition: u32, from: u64, end: u64) -> u64 {
    let mut at = from;
    let consumer = client.consumer(TOPIC).partitions([partition]).start(Start::Offset(from));
    let op = notes.begin(Begun::Fetch { key: Key(partition), from: Some(Offset(from)) });
    let consumer = consumer.max_bytes(FETCH_BYTES).max_wait(Duration::from_millis(100)).build().await;
    let Ok(mut consumer) = consumer else {
        notes.end(op, Ended::Unknown);
        return at;
    };
    let mut op = Some(op);
    while at < end {
        let begun = Begun::Fetch { key: Key(partition), from: Some(Offset(at)) };
        let op = op.take().unwrap_or_else(|| notes.begin(begun));
        let mut runs = Runs::default();
        let polled = match consumer.poll().await {
            Ok(Some(mut batch)) => batch.records().map(|records| {
                for record in records {
                    runs.push(Offset(record.offset), record.value.map_or(Value::UNREADABLE, decode));
                    at = record.offset + 1;
                }
                true
            }),
            Ok(None) => Ok(false),
            Err(_) => {
                notes.end(op, Ended::Unknown);
                return at;
            }
        };
        let ends = consumer.high_watermark(partition).zip(consumer.log_start(partition));
        match (polled, ends) {
            (Ok(is_more), Some((high_watermark, log_start))) => {
                notes.end(op, runs.fetched(Offset(high_watermark), Offset(log_start)));
                if !is_more {
                    break;
                }
            }
            _ => {
                notes.end(op, Ended::Unknown);
                return at;
            }
        }
    }
    at
}

/// Where a partition ends.
pub(crate) async fn end_of(client: &Client, partition: u32) -> u64 {
    client.list_offsets(TOPIC, &[partition], OffsetSpec::End).await.unwrap()[0].offset.unwrap()
}

/// Reads everything there is.
pub(crate) async fn read_all(address: &str, notes: &mut Notes) {
    let client = Client::connect(address).await.unwrap();
    for end in client.list_offsets(TOPIC, &[], OffsetSpec::End).await.unwrap() {
        let offset = end.offset.expect("an end has an offset");
        let at = read_from(&client, notes, end.partition, 0, offset).await;
        assert_eq!(at, offset, "{TOPIC}-{} is read to its end", end.partition);
    }
}
