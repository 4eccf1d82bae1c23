//! Consuming as a member of a group: owns what is read and what is committed; who reads what the group decides.
//!
//! [`membership`] is a task that keeps the member alive and tells what to begin and to stop; [`assignor`] shares
//! partitions; [`admin`] looks at groups from outside. Offsets are committed for what [`GroupConsumer::poll`] has
//! handed out before the call that commits: a record is never skipped by a crash, and may come again after one.

pub(crate) mod admin;
pub(crate) mod assignor;
mod membership;

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use coulee_protocol::api::ApiKey;
use coulee_protocol::api::offsets::v1 as offsets;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::assignor::{Assignor, Place};
use self::membership::{Membership, Notice, Options, Standing};
use crate::admin::OffsetSpec;
use crate::client::{Client, lock};
use crate::consumer::Consumer;
use crate::consumer::batch::Batch;
use crate::error::{AdminError, ConsumeError, Refusal};

/// Where a partition begins for which the group has committed nothing (Kafka's `auto.offset.reset`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// At the first readable record.
    Earliest,
    /// Behind what is visible now. The default.
    #[default]
    Latest,
    /// Nowhere: [`GroupError::NoOffset`].
    None,
}

/// What a rebalance has changed for this member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// These partitions are read from now on.
    Assigned(Vec<(String, u32)>),
    /// These are read no longer; what was polled of them is committed.
    Revoked(Vec<(String, u32)>),
    /// These are others' already: nothing can be committed for them any more.
    Lost(Vec<(String, u32)>),
}

/// Why consuming in a group fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// The coordinator refused, for good: the code says why.
    Refused(Refusal),
    /// No broker answers, or not as it should.
    Unreachable(AdminError),
    /// The member does not read this partition, so it cannot commit for it.
    NotAssigned {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// The group has committed nothing for a partition, and nothing says where to begin.
    NoOffset {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
    },
    /// A topic cannot be read.
    Consume {
        /// Which.
        topic: String,
        /// Why.
        error: ConsumeError,
    },
    /// Another member says something that cannot be read.
    Unintelligible {
        /// What.
        what: &'static str,
    },
    /// The consumer is closed.
    Closed,
}

impl GroupError {
    /// The broker's error code, where it gave one.
    #[must_use]
    pub fn code(&self) -> Option<crate::ErrorCode> {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Unreachable(error) => error.code(),
            _ => None,
        }
    }
}

impl fmt::Display for GroupError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(formatter),
            Self::Unreachable(error) => error.fmt(formatter),
            Self::NotAssigned { topic, partition } => {
                write!(formatter, "this member does not read partition {partition} of {topic}")
            }
            Self::NoOffset { topic, partition } => {
                write!(formatter, "the group has no offset for partition {partition} of {topic}")
            }
            Self::Consume { topic, error } => write!(formatter, "{topic}: {error}"),
            Self::Unintelligible { what } => write!(formatter, "the {what} of another member cannot be read"),
            Self::Closed => formatter.write_str("the consumer is closed"),
        }
    }
}

impl std::error::Error for GroupError {}

/// Hears of rebalances.
type Listener = Box<dyn FnMut(&Rebalance) + Send>;

/// A member of a group that is still to be configured.
pub struct GroupBuilder {
    client: Client,
    options: Options,
    reset: OffsetReset,
    auto_commit: Option<Duration>,
    max_wait: Duration,
    listener: Option<Listener>,
}

impl fmt::Debug for GroupBuilder {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "GroupBuilder({:?})", self.options)
    }
}

impl GroupBuilder {
    pub(crate) fn new(client: Client, group: String) -> Self {
        Self {
            client,
            options: Options {
                group,
                topics: Vec::new(),
                instance_id: None,
                client_id: "coulee".into(),
                assignors: vec![Assignor::CooperativeSticky],
                session_timeout: Duration::from_secs(45),
                rebalance_timeout: Duration::from_secs(300),
                heartbeat_interval: Duration::from_millis(500),
            },
            reset: OffsetReset::default(),
            auto_commit: Some(Duration::from_secs(5)),
            max_wait: Duration::from_millis(500),
            listener: None,
        }
    }

    /// One more topic to read.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.options.topics.push(topic.into());
        self
    }

    /// Makes it a static member of this name: it keeps its partitions over a restart (Kafka's `group.instance.id`).
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.options.instance_id = Some(instance_id.into());
        self
    }

    /// How the member calls itself: its id begins with it.
    #[must_use]
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.options.client_id = client_id.into();
        self
    }

    /// How partitions are shared, best first. [`Assignor::CooperativeSticky`] by default.
    #[must_use]
    pub fn assignors(mut self, assignors: impl IntoIterator<Item = Assignor>) -> Self {
        self.options.assignors = assignors.into_iter().collect();
        self
    }

    /// How long the member may be silent before its partitions go to others. 45 s by default.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> Self {
        self.options.session_timeout = timeout;
        self
    }

    /// How long the caller may take between two polls, and the others wait in a rebalance. 5 min by default.
    #[must_use]
    pub fn max_poll_interval(mut self, interval: Duration) -> Self {
        self.options.rebalance_timeout = interval;
        self
    }

    /// How often the member says that it lives, and hears that the group rebalances. 500 ms by default (Kafka's
    /// clients: 3 s): a rebalance is over after one or two of these.
    #[must_use]
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.options.heartbeat_interval = interval;
        self
    }

    /// Where partitions begin without a committed offset. [`OffsetReset::Latest`] by default.
    #[must_use]
    pub fn offset_reset(mut self, reset: OffsetReset) -> Self {
        self.reset = reset;
        self
    }

    /// How often what was polled is committed by itself; `None` for never. Every 5 s by default.
    #[must_use]
    pub fn auto_commit(mut self, interval: Option<Duration>) -> Self {
        self.auto_commit = interval;
        self
    }

    /// How long [`GroupConsumer::poll`] waits for records. 500 ms by default.
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Called within [`GroupConsumer::poll`] when partitions come or go.
    #[must_use]
    pub fn on_rebalance(mut self, listener: impl FnMut(&Rebalance) + Send + 'static) -> Self {
        self.listener = Some(Box::new(listener));
        self
    }

    /// Joins the group, in the background. Which partitions it reads the first polls will tell.
    #[must_use]
    pub fn join(self) -> GroupConsumer {
        let Self { client, options, reset, auto_commit, max_wait, listener } = self;
        let now = Instant::now();
        let standing = Standing { member_id: String::new(), generation: -1, last_poll: now };
        let standing = Arc::new(Mutex::new(standing));
        let (tell, notices) = mpsc::channel(16);
        let (closing, closed) = mpsc::channel(1);
        let membership = Membership::new(client.clone(), options.clone(), standing.clone(), tell);
        tokio::spawn(membership.run(closed));
        GroupConsumer {
            client,
            group: options.group,
            standing,
            notices,
            closing,
            consumers: BTreeMap::new(),
            turn: 0,
            committed: BTreeMap::new(),
            starting: Vec::new(),
            revoking: None,
            auto_commit,
            commit_at: now + auto_commit.unwrap_or_default(),
            committing: None,
            reset,
            max_wait,
            listener,
        }
    }
}

/// A batch and the topic that it is of.
#[derive(Debug)]
pub struct GroupBatch {
    /// The topic.
    pub topic: String,
    /// The batch.
    pub batch: Batch,
}

/// A member of a group that reads what it is assigned.
pub struct GroupConsumer {
    client: Client,
    group: String,
    standing: Arc<Mutex<Standing>>,
    notices: mpsc::Receiver<Notice>,
    closing: mpsc::Sender<oneshot::Sender<()>>,
    /// What is read, by topic.
    consumers: BTreeMap<String, Consumer>,
    turn: usize,
    /// What is committed, as far as this member knows.
    committed: BTreeMap<Place, u64>,
    /// Assigned, and not begun yet.
    starting: Vec<Place>,
    /// To be stopped, and whom to tell.
    revoking: Option<(Vec<Place>, oneshot::Sender<()>)>,
    auto_commit: Option<Duration>,
    commit_at: Instant,
    committing: Option<JoinHandle<Result<BTreeMap<Place, u64>, GroupError>>>,
    reset: OffsetReset,
    max_wait: Duration,
    listener: Option<Listener>,
}

impl fmt::Debug for GroupConsumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "GroupConsumer({:?}, {:?})", self.group, self.consumers)
    }
}

impl GroupConsumer {
    /// The next batch of any partition that this member reads, or `None` when nothing came within the wait. Takes part
    /// in rebalances on the way. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`GroupError`]. After [`GroupError::Refused`] and [`GroupError::Closed`] the member is none any more.
    pub async fn poll(&mut self) -> Result<Option<GroupBatch>, GroupError> {
        let deadline = Instant::now() + self.max_wait;
        lock(&self.standing).last_poll = Instant::now();
        self.commit_by_itself().await;
        loop {
            self.settle().await?;
            self.turn = self.turn.wrapping_add(1);
            let polled = tokio::select! {
                biased;
                notice = self.notices.recv() => {
                    self.take(notice.ok_or(GroupError::Closed)?)?;
                    continue;
                }
                polled = poll_any(&mut self.consumers, self.turn) => polled,
                () = sleep_until(deadline) => return Ok(None),
            };
            match polled {
                (topic, Ok(Some(batch))) => return Ok(Some(GroupBatch { topic, batch })),
                (_, Ok(None)) if Instant::now() >= deadline => return Ok(None),
                (_, Ok(None)) => {}
                (topic, Err(error)) => self.recover(topic, error)?,
            }
        }
    }

    /// Notes what the membership tells; what takes time is done by [`Self::settle`].
    fn take(&mut self, notice: Notice) -> Result<(), GroupError> {
        match notice {
            Notice::Assign(places) => self.starting.extend(places),
            Notice::Revoke(places, done) => self.revoking = Some((places, done)),
            Notice::Lost(places) => {
                self.stop(&places);
                self.hear(Rebalance::Lost(places));
            }
            Notice::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// Stops and begins what is to be; all of it may be interrupted and done again.
    async fn settle(&mut self) -> Result<(), GroupError> {
        if let Some((places, _)) = &self.revoking {
            let places = places.clone();
            if self.auto_commit.is_some() {
                let due: Vec<(Place, u64)> =
                    self.due().into_iter().filter(|(place, _)| places.contains(place)).collect();
                // Who reads on begins at the last commit: a commit that fails costs a repetition, no record.
                drop(self.commit_these(due).await);
            }
            self.stop(&places);
            if let Some((_, done)) = self.revoking.take() {
                self.hear(Rebalance::Revoked(places));
                let _is_heard = done.send(()).is_ok();
            }
        }
        if !self.starting.is_empty() {
            let begins = self.begins().await?;
            let places = std::mem::take(&mut self.starting);
            for ((topic, partition), position) in begins {
                let client = &self.client;
                let consumer = || client.consumer(topic.clone()).max_wait(self.max_wait).bare();
                self.consumers.entry(topic.clone()).or_insert_with(consumer).assign(partition, position);
            }
            self.hear(Rebalance::Assigned(places));
        }
        Ok(())
    }

    fn hear(&mut self, rebalance: Rebalance) {
        if let Some(listener) = &mut self.listener {
            listener(&rebalance);
        }
    }

    fn stop(&mut self, places: &[Place]) {
        for (topic, partition) in places {
            if let Some(consumer) = self.consumers.get_mut(topic) {
                consumer.unassign(*partition);
            }
            self.committed.remove(&(topic.clone(), *partition));
        }
        self.starting.retain(|place| !places.contains(place));
        self.consumers.retain(|_, consumer| consumer.partitions().next().is_some());
    }

    /// Where each new partition begins.
    async fn begins(&mut self) -> Result<Vec<(Place, u64)>, GroupError> {
        let found = self.client.committed_offsets(&self.group, &self.starting).await;
        let found = found.map_err(GroupError::Unreachable)?;
        let mut begins = Vec::with_capacity(self.starting.len());
        for committed in found {
            let place = (committed.topic, committed.partition);
            self.committed.insert(place.clone(), committed.offset);
            begins.push((place, committed.offset));
        }
        let known: std::collections::BTreeSet<&Place> = begins.iter().map(|(place, _)| place).collect();
        let mut fresh: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for place in self.starting.iter().filter(|place| !known.contains(place)) {
            fresh.entry(place.0.clone()).or_default().push(place.1);
        }
        for (topic, partitions) in fresh {
            let spec = match self.reset {
                OffsetReset::Earliest => OffsetSpec::Start,
                OffsetReset::Latest => OffsetSpec::End,
                OffsetReset::None => return Err(GroupError::NoOffset { topic, partition: partitions[0] }),
            };
            let listed = self.client.list_offsets(&topic, &partitions, spec).await.map_err(GroupError::Unreachable)?;
            begins.extend(
                listed.iter().map(|listed| ((topic.clone(), listed.partition), listed.offset.unwrap_or_default())),
            );
        }
        Ok(begins)
    }

    /// A committed offset that is not there any more is reset; other errors are the caller's.
    fn recover(&mut self, topic: String, error: ConsumeError) -> Result<(), GroupError> {
        let ConsumeError::OutOfRange { partition, log_start, high_watermark, .. } = error else {
            return Err(GroupError::Consume { topic, error });
        };
        let begin = match self.reset {
            OffsetReset::Earliest => log_start,
            OffsetReset::Latest => high_watermark,
            OffsetReset::None => return Err(GroupError::Consume { topic, error }),
        };
        let consumer = self.consumers.get_mut(&topic).map(|consumer| consumer.seek(partition, begin));
        debug_assert!(matches!(consumer, Some(Ok(()))), "what was fetched is read");
        Ok(())
    }

    /// The partitions that this member reads now.
    #[must_use]
    pub fn assignment(&self) -> Vec<(String, u32)> {
        let of = |(topic, consumer): (&String, &Consumer)| {
            consumer.partitions().map(|partition| (topic.clone(), partition)).collect::<Vec<_>>()
        };
        self.consumers.iter().flat_map(of).collect()
    }

    /// The offset behind the last batch that was polled of a partition.
    #[must_use]
    pub fn position(&self, topic: &str, partition: u32) -> Option<u64> {
        self.consumers.get(topic)?.position(partition)
    }

    /// The generation that the member is in; −1 before the first.
    #[must_use]
    pub fn generation(&self) -> i32 {
        lock(&self.standing).generation
    }

    /// Goes on at `offset` of a partition that it reads.
    ///
    /// # Errors
    /// [`GroupError::NotAssigned`].
    pub fn seek(&mut self, topic: &str, partition: u32, offset: u64) -> Result<(), GroupError> {
        let not_assigned = || GroupError::NotAssigned { topic: topic.to_owned(), partition };
        let consumer = self.consumers.get_mut(topic).ok_or_else(not_assigned)?;
        consumer.seek(partition, offset).map_err(|_| not_assigned())
    }

    /// Positions that are not committed.
    fn due(&self) -> Vec<(Place, u64)> {
        let mut due = Vec::new();
        for (topic, partition) in self.assignment() {
            let Some(position) = self.position(&topic, partition) else { continue };
            let place = (topic, partition);
            if self.committed.get(&place) != Some(&position) {
                due.push((place, position));
            }
        }
        due
    }

    /// Commits everything that was polled, durably.
    ///
    /// # Errors
    /// [`GroupError`]; `Refused` with REBALANCE_IN_PROGRESS, UNKNOWN_MEMBER_ID, ILLEGAL_GENERATION or
    /// FENCED_INSTANCE_ID where others may have the partitions already: poll on.
    pub async fn commit(&mut self) -> Result<(), GroupError> {
        let due = self.due();
        self.commit_these(due).await
    }

    /// Commits these offsets of partitions that it reads, durably.
    ///
    /// # Errors
    /// [`GroupError::NotAssigned`] for the first that it does not read, before anything is committed; else as
    /// [`GroupConsumer::commit`].
    pub async fn commit_offsets(&mut self, offsets: &[(&str, u32, u64)]) -> Result<(), GroupError> {
        for (topic, partition, _) in offsets {
            if self.position(topic, *partition).is_none() {
                return Err(GroupError::NotAssigned { topic: (*topic).to_owned(), partition: *partition });
            }
        }
        let due = offsets.iter().map(|(topic, partition, offset)| (((*topic).to_owned(), *partition), *offset));
        self.commit_these(due.collect()).await
    }

    async fn commit_these(&mut self, due: Vec<(Place, u64)>) -> Result<(), GroupError> {
        // In order: what is under way first.
        if let Some(committing) = self.committing.take() {
            drop(committing.await);
        }
        let committed = commit(self.client.clone(), self.request(due)).await?;
        self.committed.extend(committed);
        Ok(())
    }

    /// Commits everything that was polled, without waiting; the next commit waits for it. How it ended the future says.
    pub fn commit_async(&mut self) -> impl Future<Output = Result<(), GroupError>> + Send + 'static {
        let before = self.committing.take();
        let (client, request) = (self.client.clone(), self.request(self.due()));
        let (tell, told) = oneshot::channel();
        self.committing = Some(tokio::spawn(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            let committed = commit(client, request).await;
            drop(tell.send(committed.as_ref().map(|_| ()).map_err(Clone::clone)));
            committed
        }));
        async move { told.await.unwrap_or(Err(GroupError::Closed)) }
    }

    /// Commits in the background, when it is time for it.
    async fn commit_by_itself(&mut self) {
        if self.committing.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(committing) = self.committing.take()
            && let Ok(Ok(committed)) = committing.await
        {
            let still = committed.into_iter().filter(|((topic, at), _)| self.position(topic, *at).is_some());
            let still: Vec<(Place, u64)> = still.collect();
            self.committed.extend(still);
        }
        let Some(interval) = self.auto_commit else { return };
        if Instant::now() >= self.commit_at && self.committing.is_none() {
            self.commit_at = Instant::now() + interval;
            if !self.due().is_empty() {
                drop(self.commit_async());
            }
        }
    }

    fn request(&self, due: Vec<(Place, u64)>) -> offsets::CommitRequest {
        let mut topics: BTreeMap<String, Vec<offsets::CommitPartition>> = BTreeMap::new();
        for ((topic, index), offset) in due {
            let (leader_epoch, metadata) = (offsets::NO_LEADER_EPOCH, Vec::new());
            topics.entry(topic).or_default().push(offsets::CommitPartition { index, offset, leader_epoch, metadata });
        }
        let topic = |(name, partitions): (String, Vec<_>)| offsets::CommitTopic { name: name.into_bytes(), partitions };
        let standing = lock(&self.standing);
        offsets::CommitRequest {
            group: self.group.clone().into_bytes(),
            generation: standing.generation,
            member_id: standing.member_id.clone().into_bytes(),
            instance_id: Vec::new(),
            topics: topics.into_iter().map(topic).collect(),
        }
    }

    /// Commits what was polled, where that is done by itself, and leaves the group: others have its partitions at once.
    ///
    /// # Errors
    /// [`GroupError`] of the commit; the member has left all the same.
    pub async fn close(mut self) -> Result<(), GroupError> {
        let committed = if self.auto_commit.is_some() { self.commit().await } else { Ok(()) };
        let (tell, told) = oneshot::channel();
        if self.closing.send(tell).await.is_ok() {
            drop(told.await);
        }
        committed
    }
}

/// Commits, and says what is committed now. A commit of the same offsets may be repeated.
async fn commit(client: Client, request: offsets::CommitRequest) -> Result<BTreeMap<Place, u64>, GroupError> {
    if request.topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut committed = BTreeMap::new();
    for topic in &request.topics {
        let name = String::from_utf8_lossy(&topic.name).into_owned();
        committed.extend(topic.partitions.iter().map(|own| ((name.clone(), own.index), own.offset)));
    }
    let answer: Result<offsets::ResultsResponse, AdminError> = client.read(ApiKey::OffsetCommit, &request).await;
    let answer = answer.map_err(|error| match error {
        AdminError::Refused(refusal) => GroupError::Refused(refusal),
        error => GroupError::Unreachable(error),
    })?;
    let failed = answer.topics.iter().flat_map(|topic| &topic.partitions).find(|partition| partition.error != 0);
    match failed {
        Some(failed) => Err(GroupError::Refused(Refusal::of_code(failed.error))),
        None => Ok(committed),
    }
}

/// Polls each topic; another one comes first each time.
async fn poll_any(
    consumers: &mut BTreeMap<String, Consumer>,
    turn: usize,
) -> (String, Result<Option<Batch>, ConsumeError>) {
    let mut polls: Vec<_> = consumers.iter_mut().map(|(topic, consumer)| (topic, Box::pin(consumer.poll()))).collect();
    let first = turn % polls.len().max(1);
    polls.rotate_left(first);
    poll_fn(|context| {
        for (topic, poll) in &mut polls {
            if let Poll::Ready(polled) = poll.as_mut().poll(context) {
                return Poll::Ready((topic.clone(), polled));
            }
        }
        Poll::Pending
    })
    .await
}
