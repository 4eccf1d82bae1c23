//! Producing: owns the way from a record to its delivery; leaves what goes when, and what is repeated, to its parts.
//!
//! `send` copies a record into the open batch of its partition under a lock that is held for no more than that. One
//! task takes batches out, builds them and hands them to connections. [`accumulator`] decides, [`fate`] tells.
//!
//! Cost of a record: its value copied once, two references counted, no allocation. Cost of a batch: its fate, its
//! request, one task that waits for the answer.

pub(crate) mod accumulator;
pub(crate) mod fate;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use coulee_protocol::api::produce::v1::{self as produce, ACKS_DURABLE, ACKS_NONE};
use coulee_protocol::api::{ApiKey, decode};
use coulee_protocol::columns::builder::NewRecord;
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::{PartitionUid, Timestamp};
use coulee_protocol::limits::{BATCH_BYTES_DEFAULT_MAX, BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::accumulator::{Accumulator, Batch, Content, Landing, Next, Rules};
use self::fate::Delivery;
use crate::admin::partition_of;
use crate::client::{Client, lock};
use crate::connection::{Answer, Command, Connection, Failure};
use crate::error::{AdminError, SendError};
use crate::limits::{PRODUCER_MEMORY_MAX, RECORD_OVERHEAD_BYTES, WINDOW_MAX};
use crate::retry::{self, Verdict};

/// The topic's configuration key for what a batch may have.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// A record to be sent; borrows what it is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record<'a> {
    partition: Option<u32>,
    timestamp_ms: Option<i64>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: &'a [(&'a [u8], Option<&'a [u8]>)],
}

impl<'a> Record<'a> {
    /// A record with this value.
    #[must_use]
    pub fn new(value: &'a [u8]) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    /// A record without a value, which deletes its key from a compacted topic.
    #[must_use]
    pub fn tombstone(key: &'a [u8]) -> Self {
        Self { key: Some(key), ..Self::default() }
    }

    /// Its key, which also says its partition.
    #[must_use]
    pub fn key(mut self, key: &'a [u8]) -> Self {
        self.key = Some(key);
        self
    }

    /// Its headers, in order; duplicates are kept.
    #[must_use]
    pub fn headers(mut self, headers: &'a [(&'a [u8], Option<&'a [u8]>)]) -> Self {
        self.headers = headers;
        self
    }

    /// The partition that it goes to, whatever its key.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// When it happened, in milliseconds since 1970; without it, now.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// What it takes of the memory bound.
    fn cost(&self) -> usize {
        let bytes = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + bytes(*value) + 16).sum();
        bytes(self.key) + bytes(self.value) + headers + RECORD_OVERHEAD_BYTES
    }
}

/// What an acknowledgement of a record means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Nothing: a record counts as delivered when it has left, and has no offset.
    None,
    /// The topic's durability is reached: by default it is on disk.
    #[default]
    Durable,
}

/// A producer that is still to be configured.
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    rules: Rules,
    acks: Acks,
    memory_bytes_max: usize,
    /// Whether the topic says how large a record may be.
    asks_topic: bool,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        let rules = Rules {
            codec: Codec::None,
            batch_bytes_max: BATCH_BYTES_DEFAULT_MAX,
            record_bytes_max: BATCH_BYTES_DEFAULT_MAX,
            batch_records_max: BATCH_RECORDS_MAX as usize,
            linger: Duration::from_millis(5),
            window: 5,
            delivery_timeout: Duration::from_secs(120),
        };
        Self { client, topic, rules, acks: Acks::default(), memory_bytes_max: 32 << 20, asks_topic: true }
    }

    /// How long a batch waits for more records; 0 sends at once. 5 ms by default. While the window has no room a batch
    /// goes on growing, whatever this says.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.rules.linger = linger;
        self
    }

    /// Bytes of a batch before compression, at most; never above 8 MiB. Without this, 1,048,588, which is the default
    /// `max.message.bytes` of topics, and a record that is larger goes alone if the topic takes it.
    #[must_use]
    pub fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.rules.batch_bytes_max = bytes.min(BATCH_BYTES_MAX);
        self.rules.record_bytes_max = self.rules.batch_bytes_max;
        self.asks_topic = false;
        self
    }

    /// Records of a batch, at most. 1,000,000 by default, which is also the greatest.
    #[must_use]
    pub fn batch_records_max(mut self, records: usize) -> Self {
        self.rules.batch_records_max = records.clamp(1, BATCH_RECORDS_MAX as usize);
        self
    }

    /// How batches are compressed. Not at all by default.
    #[must_use]
    pub fn compression(mut self, codec: Codec) -> Self {
        self.rules.codec = codec;
        self
    }

    /// What an acknowledgement means. [`Acks::Durable`] by default.
    #[must_use]
    pub fn acks(mut self, acks: Acks) -> Self {
        self.acks = acks;
        self
    }

    /// Batches of one partition in flight, at most. 5 by default. With 1, a batch is never overtaken, and so can be
    /// repeated whenever it surely was not written.
    #[must_use]
    pub fn in_flight(mut self, batches: usize) -> Self {
        self.rules.window = batches.clamp(1, WINDOW_MAX);
        self
    }

    /// How long a record is tried to be delivered. 2 min by default. A request that is under way then is waited for.
    #[must_use]
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.rules.delivery_timeout = timeout;
        self
    }

    /// Bytes of records that are taken and not yet delivered, at most: `send` waits beyond it. 32 MiB by default.
    #[must_use]
    pub fn memory_bytes_max(mut self, bytes: usize) -> Self {
        self.memory_bytes_max = bytes.clamp(1, PRODUCER_MEMORY_MAX);
        self
    }

    /// Looks the topic up and starts the producer.
    ///
    /// # Errors
    /// [`AdminError`]: the topic does not exist, or no broker answers.
    pub async fn build(self) -> Result<Producer, AdminError> {
        let topic = self.client.topic(&self.topic).await?;
        let sticky = (self.client.chance() % u64::from(topic.partition_count())) as u32;
        let core = Arc::new(Core {
            accumulator: Mutex::new(Accumulator::new(self.rules, topic.partition_count(), sticky)),
            room: Semaphore::new(self.memory_bytes_max),
            wake: Notify::new(),
            decided_end: watch::Sender::new(0),
            began: Instant::now(),
            options: self,
        });
        tokio::spawn(drive(core.clone()));
        Ok(Producer { core })
    }
}

/// Sends records to one topic. Share it by reference or in an `Arc`; all tasks together fill the same batches.
///
/// When it is dropped it takes no more, and what it holds is still sent as long as the runtime lives; [`Self::close`]
/// waits for that.
#[derive(Debug)]
pub struct Producer {
    core: Arc<Core>,
}

/// What the producer and its task share.
#[derive(Debug)]
struct Core {
    options: ProducerBuilder,
    accumulator: Mutex<Accumulator>,
    /// One permit for each byte that may be held.
    room: Semaphore,
    wake: Notify,
    /// Below this id every batch has its fate.
    decided_end: watch::Sender<u64>,
    began: Instant,
}

impl Producer {
    /// Takes a record, waiting while too much is held. When it returns, the record has its place in the order of its
    /// partition; the [`Delivery`] says what became of it.
    ///
    /// # Errors
    /// [`SendError`]; nothing was taken.
    pub async fn send(&self, record: Record<'_>) -> Result<Delivery, SendError> {
        let cost = record.cost();
        let max = self.core.options.memory_bytes_max;
        if cost > max {
            return Err(SendError::TooLarge { bytes: cost, max });
        }
        let permit = match self.core.room.try_acquire_many(cost as u32) {
            Ok(permit) => permit,
            Err(_) => {
                // Nothing comes free as long as what is held lingers.
                self.core.hurry();
                self.core.room.acquire_many(cost as u32).await.map_err(|_| SendError::Closed)?
            }
        };
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let Record { key, value, headers, .. } = record;
        let new = NewRecord { timestamp: Timestamp(timestamp_ms), key, value, headers };
        let push = || lock(&self.core.accumulator).push(self.core.now(), record.partition, &new, cost);
        let taken = match push() {
            // Seldom enough to ask each time: the limit may have been raised a moment ago.
            Err(SendError::TooLarge { .. }) if self.core.options.asks_topic => {
                self.core.learn_record_bytes_max().await;
                push()?
            }
            taken => taken?,
        };
        // The batch gives it back.
        permit.forget();
        if taken.wakes {
            self.core.wake.notify_one();
        }
        Ok(Delivery::new(taken.fate, taken.index, taken.partition, timestamp_ms))
    }

    /// Sends what is held without lingering, and waits until every record taken before has its fate.
    pub async fn flush(&self) {
        let end = lock(&self.core.accumulator).flush(self.core.now());
        self.core.wait_for(end).await;
    }

    /// Takes no more and waits until every record has its fate.
    pub async fn close(self) {
        let end = lock(&self.core.accumulator).close(self.core.now());
        self.core.wait_for(end).await;
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.core.options.topic
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        lock(&self.core.accumulator).close(self.core.now());
        self.core.wake.notify_one();
    }
}

/// What happened outside of the accumulator.
#[derive(Debug)]
enum Event {
    /// A batch in flight has ended.
    Landed(u32, Batch, Landing),
    /// What a lane waited for is there, or not.
    Unparked { partition: u32, is_there: bool },
}

impl Core {
    /// Time since the producer's beginning.
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Asks how large a record of the topic may be. Where nobody answers it stays as it was.
    async fn learn_record_bytes_max(&self) {
        let Ok(described) = self.options.client.describe_topic(&self.options.topic).await else { return };
        let limit = described.configs.iter().find(|config| config.key == MAX_MESSAGE_BYTES);
        if let Some(bytes_max) = limit.and_then(|config| config.value.parse().ok()) {
            lock(&self.accumulator).allow_records(bytes_max);
        }
    }

    /// What is held goes as soon as it can.
    fn hurry(&self) {
        lock(&self.accumulator).flush(self.now());
        self.wake.notify_one();
    }

    /// Waits until every batch below `end` has its fate.
    async fn wait_for(&self, end: u64) {
        self.wake.notify_one();
        let decided = self.decided_end.subscribe().wait_for(|decided| *decided >= end).await.map(|_| ());
        assert!(decided.is_ok(), "the sender lives beside its receiver");
    }

    fn settle(&self, event: Event) {
        let (now, chance) = (self.now(), self.options.client.chance());
        let mut accumulator = lock(&self.accumulator);
        match event {
            Event::Landed(partition, batch, landing) => accumulator.land(partition, batch, landing, (now, chance)),
            Event::Unparked { partition, is_there } => {
                accumulator.unpark(partition, now, (!is_there).then_some(chance));
            }
        }
    }

    /// What to do next, with what was decided before told to those who wait.
    fn next(&self) -> Next {
        let (next, released, decided_end) = {
            let mut accumulator = lock(&self.accumulator);
            (accumulator.next(self.now()), accumulator.take_released(), accumulator.decided_end())
        };
        self.room.add_permits(released);
        self.decided_end.send_if_modified(|end| std::mem::replace(end, decided_end) != decided_end);
        next
    }

    /// The partition's uid and the connection to its shard, if both are known right now.
    fn route(&self, partition: u32) -> Option<(PartitionUid, Connection)> {
        let topic = self.options.client.known_topic(&self.options.topic)?;
        let found = topic.partitions.get(partition as usize).filter(|found| found.error == 0)?;
        Some((found.uid, self.options.client.live_connection(found.shard)?))
    }

    /// Finds what [`Core::route`] did not.
    async fn find_route(&self, partition: u32) -> bool {
        let Ok(topic) = self.options.client.topic(&self.options.topic).await else { return false };
        lock(&self.accumulator).grow(topic.partition_count());
        if let Err(error) = partition_of(&topic, partition) {
            if let AdminError::Refused(refusal) = error {
                lock(&self.accumulator).blame(partition, refusal);
            }
            self.options.client.forget_topic(&self.options.topic);
            return false;
        }
        let deadline = Instant::now() + self.options.client.request_timeout();
        let shard = topic.partitions[partition as usize].shard;
        self.options.client.connection(Some(shard), deadline).await.is_ok()
    }

    /// Builds a batch, unless it was built for an earlier try.
    fn build(&self, batch: &mut Batch) -> Result<Bytes, Landing> {
        if let Content::Records(builder) = &mut batch.content {
            let bytes = builder.bytes();
            let built = builder.finish().map_err(Landing::Unbuilt)?;
            let content = std::mem::replace(&mut batch.content, Content::Built(Bytes::from(built)));
            let mut accumulator = lock(&self.accumulator);
            // The builder of a large record has a bound of its own.
            if let Content::Records(builder) = content
                && bytes <= accumulator.batch_bytes_max()
            {
                accumulator.keep_builder(*builder);
            }
        }
        match &batch.content {
            Content::Built(bytes) => Ok(bytes.clone()),
            Content::Records(_) => unreachable!("built right above"),
        }
    }
}

/// The producer's task. Its events are bounded by the windows of the lanes and by one parking each.
async fn drive(core: Arc<Core>) {
    let (sender, mut events) = mpsc::unbounded_channel();
    loop {
        while let Ok(event) = events.try_recv() {
            core.settle(event);
        }
        match core.next() {
            Next::Send(partition, batch) => launch(&core, partition, batch, &sender),
            Next::Wait(until) => {
                let at = core.began + until.unwrap_or_default();
                tokio::select! {
                    Some(event) = events.recv() => core.settle(event),
                    () = core.wake.notified() => {}
                    () = sleep_until(at), if until.is_some() => {}
                }
            }
            Next::Finished => break,
        }
    }
}

/// Hands a batch to its connection, or parks its lane until that is possible.
fn launch(core: &Arc<Core>, partition: u32, mut batch: Batch, events: &mpsc::UnboundedSender<Event>) {
    let Some((uid, connection)) = core.route(partition) else {
        lock(&core.accumulator).park(partition, batch);
        let (core, events) = (core.clone(), events.clone());
        tokio::spawn(async move {
            let is_there = core.find_route(partition).await;
            tell(&events, Event::Unparked { partition, is_there });
        });
        return;
    };
    let built = match core.build(&mut batch) {
        Ok(built) => built,
        Err(landing) => return tell(events, Event::Landed(partition, batch, landing)),
    };
    let timeout = core.options.client.request_timeout();
    let (acks, is_answered) = match core.options.acks {
        Acks::None => (ACKS_NONE, false),
        Acks::Durable => (ACKS_DURABLE, true),
    };
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let request = produce::Request { partition_uid: uid.0, acks, flags: 0, timeout_ms };
    let (command, answer) = Command::new(ApiKey::Produce, &request, Instant::now() + timeout);
    if connection.try_submit(command.with_batch(built, is_answered)).is_err() {
        lock(&core.accumulator).park(partition, batch);
        let events = events.clone();
        tokio::spawn(async move {
            connection.room().await;
            tell(&events, Event::Unparked { partition, is_there: true });
        });
        return;
    }
    let (core, events) = (core.clone(), events.clone());
    tokio::spawn(async move {
        let landing = landing(&core.options, answer, is_answered).await;
        tell(&events, Event::Landed(partition, batch, landing));
    });
}

/// Waits for the answer to a batch and reads it.
async fn landing(options: &ProducerBuilder, answer: Answer, is_answered: bool) -> Landing {
    let answered = answer.await.unwrap_or(Err(Failure::Unanswered)).and_then(|frame| {
        if !is_answered {
            return Ok(None);
        }
        let response: produce::Response = decode(&frame.body).map_err(Failure::Unreadable)?;
        Ok(Some(response.base_offset))
    });
    let verdict = match answered {
        Ok(base) => return Landing::Written(base),
        Err(failure) => retry::judge_produce(failure),
    };
    if let Verdict::Repeat(Some(refusal)) = &verdict
        && refusal.code().is_some_and(retry::is_of_stale_metadata)
    {
        options.client.forget_topic(&options.topic);
    }
    Landing::Failed(verdict)
}

/// Tells the producer's task; it is gone only when every batch has its fate.
fn tell(events: &mpsc::UnboundedSender<Event>, event: Event) {
    drop(events.send(event));
}

/// The clock, in milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
