//! Consuming by assignment: owns fetches under way and what they have brought; keeps no offsets for groups.
//!
//! One fetch is under way for each shard, and the next one begins before the caller has taken what the last one
//! brought, as long as that is less than `max_bytes`. [`cursor`] decides what may come next; [`batch`] checks and
//! opens.

pub(crate) mod batch;
pub(crate) mod cursor;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use coulee_protocol::api::fetch::v1 as fetch;
use coulee_protocol::api::{ApiKey, BodyError, access, decode};
use coulee_protocol::ids::ShardId;
use coulee_protocol::limits::FETCH_PARTITIONS_MAX;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::batch::{Batch, split};
use self::cursor::{Cursor, Part};
use crate::admin::OffsetSpec;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::connection::frames::Frame;
use crate::connection::{Command, Failure};
use crate::error::{AdminError, ConnectError, ConsumeError};
use crate::limits::FETCH_BYTES_MAX;
use crate::retry;
use crate::topic::Topic;

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first readable record.
    #[default]
    Start,
    /// Behind what is visible now.
    End,
    /// At this offset of each partition.
    Offset(u64),
    /// At the first record with at least this timestamp, in milliseconds; behind what is visible where there is none.
    Time(u64),
}

/// A consumer that is still to be configured.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    partitions: Vec<u32>,
    start: Start,
    max_bytes: usize,
    partition_max_bytes: usize,
    max_wait: Duration,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        Self {
            client,
            topic,
            partitions: Vec::new(),
            start: Start::default(),
            max_bytes: 8 << 20,
            partition_max_bytes: 1 << 20,
            max_wait: Duration::from_millis(500),
        }
    }

    /// The partitions to read; without this, all that the topic has now.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = partitions.into_iter().collect();
        self
    }

    /// Where to begin. [`Start::Start`] by default.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Bytes of one fetch, at most: 8 MiB by default, up to 15 MiB. A consumer holds twice that for each shard, and one
    /// batch that is larger comes all the same.
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes.clamp(1, FETCH_BYTES_MAX);
        self
    }

    /// Bytes of one partition in one fetch, at most. 1 MiB by default.
    #[must_use]
    pub fn partition_max_bytes(mut self, bytes: usize) -> Self {
        self.partition_max_bytes = bytes.clamp(1, FETCH_BYTES_MAX);
        self
    }

    /// How long a fetch waits for records. 500 ms by default.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Looks the topic up and finds where to begin.
    ///
    /// # Errors
    /// [`AdminError`]: the topic or a partition does not exist, or no broker answers.
    pub async fn build(self) -> Result<Consumer, AdminError> {
        let topic = self.client.topic(&self.topic).await?;
        let partitions =
            if self.partitions.is_empty() { (0..topic.partition_count()).collect() } else { self.partitions.clone() };
        for index in &partitions {
            if *index >= topic.partition_count() {
                let (partition, partitions) = (*index, topic.partition_count());
                return Err(AdminError::NoPartition { topic: self.topic, partition, partitions });
            }
        }
        let offsets = self.offsets(&partitions).await?;
        let cursors = offsets.into_iter().map(|(partition, at)| (partition, Cursor::new(partition, at))).collect();
        Ok(Consumer { cursors, ..self.bare() })
    }

    /// A consumer that reads nothing until it is told to.
    pub(crate) fn bare(self) -> Consumer {
        Consumer {
            options: self,
            cursors: BTreeMap::new(),
            assigned: 0,
            fetches: JoinSet::new(),
            shards: BTreeMap::new(),
            ready: VecDeque::new(),
            rounds: 0,
        }
    }

    /// Where each partition begins.
    async fn offsets(&self, partitions: &[u32]) -> Result<Vec<(u32, u64)>, AdminError> {
        let spec = match self.start {
            Start::Offset(offset) => return Ok(partitions.iter().map(|partition| (*partition, offset)).collect()),
            Start::Start => OffsetSpec::Start,
            Start::End => OffsetSpec::End,
            Start::Time(timestamp_ms) => OffsetSpec::Time(timestamp_ms),
        };
        let listed = self.client.list_offsets(&self.topic, partitions, spec).await?;
        let mut offsets: BTreeMap<u32, u64> =
            listed.iter().filter_map(|listed| Some((listed.partition, listed.offset?))).collect();
        let later: Vec<u32> = partitions.iter().copied().filter(|index| !offsets.contains_key(index)).collect();
        if !later.is_empty() {
            let ends = self.client.list_offsets(&self.topic, &later, OffsetSpec::End).await?;
            offsets.extend(ends.iter().map(|listed| (listed.partition, listed.offset.unwrap_or_default())));
        }
        Ok(offsets.into_iter().collect())
    }
}

/// The consumer does not read this partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAssigned {
    /// Which.
    pub partition: u32,
}

impl fmt::Display for NotAssigned {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the consumer does not read partition {}", self.partition)
    }
}

impl std::error::Error for NotAssigned {}

/// Reads partitions of one topic.
#[derive(Debug)]
pub struct Consumer {
    options: ConsumerBuilder,
    cursors: BTreeMap<u32, Cursor>,
    /// Partitions that were assigned later: each is told from an earlier life of itself.
    assigned: u64,
    fetches: JoinSet<Fetch>,
    shards: BTreeMap<ShardId, Shard>,
    ready: VecDeque<Ready>,
    rounds: usize,
}

/// What a consumer knows of a shard that it fetches from.
#[derive(Debug, Default)]
struct Shard {
    is_fetching: bool,
    /// Bytes that came from it and wait for the caller.
    ready_bytes: usize,
    not_before: Option<Instant>,
    failing_since: Option<Instant>,
    backoff: Backoff,
}

impl Shard {
    fn may_fetch(&self, max_bytes: usize) -> bool {
        !self.is_fetching && self.ready_bytes < max_bytes
    }
}

/// What waits for the caller.
#[derive(Debug)]
struct Ready {
    /// Partition and generation that it was fetched for; `None` for what concerns no partition.
    of: Option<(u32, u64)>,
    shard: ShardId,
    bytes: usize,
    item: Result<Batch, ConsumeError>,
}

/// A partition in a fetch.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    partition: u32,
    generation: u64,
    uid: u64,
    offset: u64,
}

/// A fetch that has come back.
#[derive(Debug)]
struct Fetch {
    shard: ShardId,
    wanted: Vec<Wanted>,
    result: Result<Vec<Part>, AdminError>,
}

impl Consumer {
    /// The next batch of any partition, or `None` when nothing came within `max_wait`. Batches of one partition come in
    /// order. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`ConsumeError`]. A partition that is named in it rests until [`Consumer::seek`] or [`Consumer::skip_damaged`];
    /// the next poll goes on with the others.
    pub async fn poll(&mut self) -> Result<Option<Batch>, ConsumeError> {
        let deadline = Instant::now() + self.options.max_wait;
        loop {
            let known = self.options.client.known_topic(&self.options.topic);
            // The next fetches are under way while the caller works on what the last ones brought.
            let retry_at = known.as_ref().and_then(|topic| self.start_fetches(topic));
            if let Some(item) = self.next_ready() {
                return item.map(Some);
            }
            if known.is_none() {
                let found = self.options.client.topic(&self.options.topic).await;
                found.map_err(ConsumeError::Unreachable)?;
                continue;
            }
            if self.fetches.is_empty() {
                let until = retry_at.unwrap_or(deadline).min(deadline);
                sleep_until(until).await;
                if until == deadline {
                    return Ok(None);
                }
                continue;
            }
            // A shard that has to be asked again comes in between; it does not end the wait for the others.
            let come = tokio::select! {
                come = self.fetches.join_next() => come,
                () = sleep_until(retry_at.unwrap_or(deadline)), if retry_at.is_some() => continue,
            };
            let fetch = come.and_then(Result::ok);
            let brought = fetch.map(|fetch| self.take(fetch));
            if brought == Some(Brought::Nothing) && self.ready.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Reads a partition too, from `position` on.
    pub(crate) fn assign(&mut self, partition: u32, position: u64) {
        self.assigned += 1;
        // What was fetched for it before it was unassigned has a generation below this.
        let generation = self.assigned << 32;
        let mut cursor = Cursor::new(partition, position);
        cursor.generation = generation;
        self.cursors.insert(partition, cursor);
    }

    /// Reads a partition no longer. What was fetched and not yet polled is dropped.
    pub(crate) fn unassign(&mut self, partition: u32) {
        self.cursors.remove(&partition);
    }

    /// Goes on at `offset`. What was fetched and not yet polled is dropped.
    ///
    /// # Errors
    /// [`NotAssigned`].
    pub fn seek(&mut self, partition: u32, offset: u64) -> Result<(), NotAssigned> {
        self.cursor(partition)?.seek(offset);
        Ok(())
    }

    /// Goes on behind the damage that [`ConsumeError::Damaged`] told of, and says where. `Ok(None)` if there is none.
    ///
    /// # Errors
    /// [`NotAssigned`].
    pub fn skip_damaged(&mut self, partition: u32) -> Result<Option<u64>, NotAssigned> {
        let cursor = self.cursor(partition)?;
        let end = cursor.damage_end;
        if let Some(end) = end {
            cursor.seek(end);
        }
        Ok(end)
    }

    /// Stops fetching a partition. What was fetched before may still be polled.
    ///
    /// # Errors
    /// [`NotAssigned`].
    pub fn pause(&mut self, partition: u32) -> Result<(), NotAssigned> {
        self.cursor(partition)?.is_paused = true;
        Ok(())
    }

    /// Fetches a partition again.
    ///
    /// # Errors
    /// [`NotAssigned`].
    pub fn resume(&mut self, partition: u32) -> Result<(), NotAssigned> {
        self.cursor(partition)?.is_paused = false;
        Ok(())
    }

    /// The offset behind the last batch that was polled; `None` for a partition that is not read.
    #[must_use]
    pub fn position(&self, partition: u32) -> Option<u64> {
        Some(self.cursors.get(&partition)?.position)
    }

    /// The end of what is visible, as of the last fetch; `None` before the first one.
    #[must_use]
    pub fn high_watermark(&self, partition: u32) -> Option<u64> {
        self.cursors.get(&partition)?.high_watermark
    }

    /// The first readable offset, as of the last fetch; `None` before the first one.
    #[must_use]
    pub fn log_start(&self, partition: u32) -> Option<u64> {
        self.cursors.get(&partition)?.log_start
    }

    /// The partitions that are read, ascending.
    pub fn partitions(&self) -> impl Iterator<Item = u32> {
        self.cursors.keys().copied()
    }

    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.options.topic
    }

    fn cursor(&mut self, partition: u32) -> Result<&mut Cursor, NotAssigned> {
        self.cursors.get_mut(&partition).ok_or(NotAssigned { partition })
    }

    /// What waits first and is still wanted.
    fn next_ready(&mut self) -> Option<Result<Batch, ConsumeError>> {
        while let Some(Ready { of, shard, bytes, item }) = self.ready.pop_front() {
            if let Some(shard) = self.shards.get_mut(&shard) {
                shard.ready_bytes -= bytes;
            }
            let Some((partition, generation)) = of else { return Some(item) };
            let Some(cursor) = self.cursors.get_mut(&partition) else { continue };
            if cursor.generation != generation {
                continue;
            }
            if let Ok(batch) = &item {
                cursor.position = batch.end_offset();
            }
            return Some(item);
        }
        None
    }

    /// Begins a fetch on each shard that has none and may have one. Gives the time when the next one may begin.
    fn start_fetches(&mut self, topic: &Topic) -> Option<Instant> {
        let max_bytes = self.options.max_bytes;
        if !self.ready.is_empty() && !self.shards.values().any(|shard| shard.may_fetch(max_bytes)) {
            return None;
        }
        let client = self.options.client.clone();
        let now = Instant::now();
        let mut retry_at: Option<Instant> = None;
        for (shard, wanted) in self.wanted(topic) {
            let state = self.shards.entry(shard).or_default();
            if !state.may_fetch(max_bytes) {
                continue;
            }
            if let Some(not_before) = state.not_before.filter(|not_before| *not_before > now) {
                retry_at = Some(retry_at.map_or(not_before, |at| at.min(not_before)));
                continue;
            }
            state.is_fetching = true;
            let (client, request) = (client.clone(), self.request(&wanted));
            self.fetches.spawn(async move {
                let result = fetch_once(&client, shard, &request, wanted.len()).await;
                Fetch { shard, wanted, result }
            });
        }
        // What did not fit this time comes first the next time.
        let fits = self.cursors.len() <= FETCH_PARTITIONS_MAX;
        self.rounds = self.rounds.wrapping_add(if fits { 1 } else { FETCH_PARTITIONS_MAX });
        retry_at
    }

    /// The partitions to be fetched, by shard; each time another one comes first.
    fn wanted(&self, topic: &Topic) -> BTreeMap<ShardId, Vec<Wanted>> {
        let mut by_shard: BTreeMap<ShardId, Vec<Wanted>> = BTreeMap::new();
        let first = self.rounds % self.cursors.len().max(1);
        let turned = self.cursors.iter().cycle().skip(first).take(self.cursors.len());
        for (partition, cursor) in turned.filter(|(_, cursor)| cursor.is_wanted()) {
            let Some(found) = topic.partitions.get(*partition as usize) else { continue };
            let wanted = by_shard.entry(found.shard).or_default();
            if wanted.len() < FETCH_PARTITIONS_MAX {
                let (generation, offset) = (cursor.generation, cursor.fetch_at);
                wanted.push(Wanted { partition: *partition, generation, uid: found.uid.0, offset });
            }
        }
        by_shard
    }

    fn request(&self, wanted: &[Wanted]) -> fetch::Request {
        let max_bytes = self.options.partition_max_bytes as u32;
        let partition =
            |wanted: &Wanted| fetch::RequestPartition { partition_uid: wanted.uid, offset: wanted.offset, max_bytes };
        fetch::Request {
            max_wait_ms: u32::try_from(self.options.max_wait.as_millis()).unwrap_or(u32::MAX),
            min_bytes: u32::from(!self.options.max_wait.is_zero()),
            max_bytes: self.options.max_bytes as u32,
            isolation: fetch::READ_UNCOMMITTED,
            partitions: wanted.iter().map(partition).collect(),
        }
    }

    fn take(&mut self, fetch: Fetch) -> Brought {
        let Fetch { shard, wanted, result } = fetch;
        self.shards.entry(shard).or_default().is_fetching = false;
        let parts = match result {
            Ok(parts) => parts,
            Err(error) => return self.take_failure(shard, error),
        };
        let (mut pauses, mut brought) = (false, Brought::Nothing);
        for (wanted, part) in wanted.iter().zip(parts) {
            let Some(cursor) = self.cursors.get_mut(&wanted.partition) else { continue };
            if cursor.generation != wanted.generation {
                brought = Brought::Something;
                continue;
            }
            let takings = cursor.take(wanted.uid, part);
            pauses |= takings.pauses;
            if takings.is_stale {
                self.options.client.forget_topic(&self.options.topic);
            }
            let items = takings.batches.into_iter().map(Ok).chain(takings.error.map(Err));
            for item in items {
                let bytes = item.as_ref().map_or(0, |batch| batch.header().batch_len());
                let of = Some((wanted.partition, wanted.generation));
                self.shards.entry(shard).or_default().ready_bytes += bytes;
                self.ready.push_back(Ready { of, shard, bytes, item });
                brought = Brought::Something;
            }
        }
        let chance = self.options.client.chance();
        let state = self.shards.entry(shard).or_default();
        state.failing_since = None;
        if pauses {
            state.not_before = Some(Instant::now() + state.backoff.failed(chance));
            return Brought::Failure;
        }
        state.backoff.succeeded();
        brought
    }

    /// Tries again later; tells the caller once it has lasted for the time of a request.
    fn take_failure(&mut self, shard: ShardId, error: AdminError) -> Brought {
        self.options.client.forget_topic(&self.options.topic);
        let (now, chance) = (Instant::now(), self.options.client.chance());
        let state = self.shards.entry(shard).or_default();
        state.not_before = Some(now + state.backoff.failed(chance));
        let since = *state.failing_since.get_or_insert(now);
        let passes = match &error {
            AdminError::Connect(_) | AdminError::OutcomeUnknown => true,
            AdminError::Refused(refusal) => refusal.code().is_some_and(retry::repeats_fetch),
            _ => false,
        };
        if !passes || now.duration_since(since) >= self.options.client.request_timeout() {
            state.failing_since = None;
            let item = Err(ConsumeError::Unreachable(error));
            self.ready.push_back(Ready { of: None, shard, bytes: 0, item });
        }
        Brought::Failure
    }
}

/// What a fetch was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    Something,
    Nothing,
    Failure,
}

/// One fetch from one shard, its batches cut apart and checked.
async fn fetch_once(
    client: &Client,
    shard: ShardId,
    request: &fetch::Request,
    partitions: usize,
) -> Result<Vec<Part>, AdminError> {
    let wait = Duration::from_millis(u64::from(request.max_wait_ms));
    let deadline = Instant::now() + client.request_timeout() + wait;
    let connection = client.connection(Some(shard), deadline).await.map_err(AdminError::Connect)?;
    let (command, answer) = Command::new(ApiKey::Fetch, request, deadline);
    let command = command.expecting(request.max_bytes as usize);
    let frame = connection.exchange(command, answer).await.map_err(|failure| match failure {
        Failure::NotSent => AdminError::Connect(ConnectError::TimedOut { address: String::new() }),
        Failure::Unanswered => AdminError::OutcomeUnknown,
        Failure::Refused(refusal) => AdminError::Refused(refusal),
        Failure::Unsupported(api) => AdminError::Unsupported { api },
        Failure::Unreadable(error) => AdminError::Unreadable(error),
    })?;
    parts(frame, partitions).map_err(AdminError::Unreadable)
}

/// Cuts an answer into its partitions' parts.
fn parts(frame: Frame, partitions: usize) -> Result<Vec<Part>, BodyError> {
    access::<fetch::Response>(&frame.body)?.check_batches(frame.batches.len())?;
    let response: fetch::Response = decode(&frame.body)?;
    if response.partitions.len() != partitions {
        let (max, found) = (partitions, response.partitions.len());
        return Err(BodyError::TooMany { what: "partitions in a fetch's answer", max, found });
    }
    let mut rest = frame.batches;
    let part = |answer: fetch::ResponsePartition| {
        let (batches, fault) = split(rest.split_to(answer.batches_len as usize));
        Part { answer, batches, fault }
    };
    Ok(response.partitions.into_iter().map(part).collect())
}
