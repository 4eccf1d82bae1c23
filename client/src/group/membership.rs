//! Being a member: joins, syncs, sends heartbeats, in a task of its own; reads no records and commits no offsets.
//!
//! ```text
//!   join ─▶ sync ─▶ take over what is new, give up what is not ─▶ heartbeats ─▶ (rebalance) ─▶ join …
//! ```
//! What a member reads is its consumer's: it is told what to begin and what to stop, and says when it has stopped. With
//! a cooperative assignor that is only what moves; with the others it is everything, before each join.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coulee_protocol::api::ApiKey;
use coulee_protocol::api::members::v1 as members;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::ShardId;
use coulee_protocol::kafka::consumer_protocol::{Assignment, CONSUMER, StickyUserData, Subscription, TopicPartitions};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::GroupError;
use super::assignor::{Assignor, Counts, Members, Place};
use crate::backoff::Backoff;
use crate::client::{Client, lock};
use crate::connection::Failure;
use crate::error::{AdminError, Refusal};
use crate::retry;

/// How a member takes part.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) group: String,
    pub(super) topics: Vec<String>,
    pub(super) instance_id: Option<String>,
    pub(super) client_id: String,
    pub(super) assignors: Vec<Assignor>,
    pub(super) session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) heartbeat_interval: Duration,
}

impl Options {
    /// Whether members read on while the group rebalances: only if every assignor that may be chosen lets them.
    fn is_cooperative(&self) -> bool {
        self.assignors.iter().all(|assignor| assignor.is_cooperative())
    }
}

/// Who the member is, for commits, and when its consumer was last polled.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) member_id: String,
    pub(super) generation: i32,
    pub(super) last_poll: Instant,
}

/// What the consumer is told.
#[derive(Debug)]
pub(super) enum Notice {
    /// Read these too.
    Assign(Vec<Place>),
    /// Stop reading these, and say so.
    Revoke(Vec<Place>, oneshot::Sender<()>),
    /// These are others' already.
    Lost(Vec<Place>),
    /// The member is none any more, for good.
    Failed(GroupError),
}

/// The member. Its task ends when its consumer is closed or dropped.
#[derive(Debug)]
pub(super) struct Membership {
    client: Client,
    options: Options,
    standing: Arc<Mutex<Standing>>,
    notices: mpsc::Sender<Notice>,
    owned: BTreeSet<Place>,
    /// The generation in which it got that.
    owned_generation: i32,
    coordinator: Option<ShardId>,
    backoff: Backoff,
    /// What the leader has counted, to see when it changes.
    counted: Option<Counts>,
}

/// What is to be done about a refusal.
enum Verdict {
    Again,
    Fatal(GroupError),
    /// The coordinator does not know the member any more.
    Forgotten,
    Rebalances,
}

type Outcome<T = ()> = Result<T, GroupError>;

impl Membership {
    pub(super) fn new(
        client: Client,
        options: Options,
        standing: Arc<Mutex<Standing>>,
        notices: mpsc::Sender<Notice>,
    ) -> Self {
        Self {
            client,
            options,
            standing,
            notices,
            owned: BTreeSet::new(),
            owned_generation: -1,
            coordinator: None,
            backoff: Backoff::default(),
            counted: None,
        }
    }

    /// Is a member until `closing` says otherwise, or its other end is gone; then leaves.
    pub(super) async fn run(mut self, mut closing: mpsc::Receiver<oneshot::Sender<()>>) {
        let told = tokio::select! {
            ended = self.live() => {
                if let Err(error) = ended {
                    self.tell(Notice::Failed(error)).await;
                }
                closing.recv().await
            }
            told = closing.recv() => told,
        };
        // A static member keeps its place until its session is over: it may be back before.
        if self.options.instance_id.is_none() {
            self.leave().await;
        }
        let _is_heard = told.is_some_and(|told| told.send(()).is_ok());
    }

    async fn live(&mut self) -> Outcome {
        loop {
            if !self.options.is_cooperative() {
                self.revoke(self.owned.clone()).await?;
            }
            let joined = self.join().await?;
            let Some(assigned) = self.sync(joined).await? else { continue };
            let revoked: BTreeSet<Place> = self.owned.difference(&assigned).cloned().collect();
            let added: Vec<Place> = assigned.difference(&self.owned).cloned().collect();
            let moves = !revoked.is_empty();
            self.revoke(revoked).await?;
            self.owned = assigned;
            self.owned_generation = lock(&self.standing).generation;
            if !added.is_empty() {
                self.tell(Notice::Assign(added)).await;
            }
            // What it has given up waits for its new reader.
            if !(moves && self.options.is_cooperative()) {
                self.beat().await?;
            }
        }
    }

    async fn tell(&self, notice: Notice) {
        // A consumer that is gone closes this task, too.
        drop(self.notices.send(notice).await);
    }

    /// Asks the coordinator.
    async fn call<Q: coulee_protocol::api::Body, R: coulee_protocol::api::Body>(
        &mut self,
        api: ApiKey,
        body: &Q,
        patience: Duration,
    ) -> Result<R, Failure> {
        let deadline = Instant::now() + patience;
        if self.coordinator.is_none() {
            let request = members::FindRequest { group: self.options.group.clone().into_bytes() };
            let connection = self.client.connection(None, deadline).await.map_err(|_| Failure::NotSent)?;
            let limit = deadline.min(Instant::now() + self.client.request_timeout());
            let found: members::FindResponse = connection.call(ApiKey::FindCoordinator, &request, limit).await?;
            self.coordinator = Some(ShardId(found.shard));
        }
        let connection = self.client.connection(self.coordinator, deadline).await.map_err(|_| Failure::NotSent)?;
        connection.call(api, body, deadline).await
    }

    /// What a failed request means; waits before another try.
    async fn judge(&mut self, failure: Failure) -> Verdict {
        use ErrorCode as Code;
        let code = match &failure {
            Failure::Refused(refusal) => refusal.code(),
            Failure::NotSent | Failure::Unanswered => Some(Code::CoordinatorNotAvailable),
            Failure::Unsupported(_) | Failure::Unreadable(_) => None,
        };
        match code {
            Some(Code::RebalanceInProgress) => Verdict::Rebalances,
            Some(Code::UnknownMemberId | Code::IllegalGeneration) => Verdict::Forgotten,
            Some(code) if retry::passes_by_itself(code) || code == Code::DiskFull => {
                self.coordinator = None;
                let pause = self.backoff.failed(self.client.chance());
                sleep(pause).await;
                Verdict::Again
            }
            _ => Verdict::Fatal(match failure {
                Failure::Refused(refusal) => GroupError::Refused(refusal),
                Failure::Unsupported(api) => GroupError::Unreachable(AdminError::Unsupported { api }),
                Failure::Unreadable(error) => GroupError::Unreachable(AdminError::Unreadable(error)),
                Failure::NotSent | Failure::Unanswered => GroupError::Unreachable(AdminError::OutcomeUnknown),
            }),
        }
    }

    /// Others have what it read: it begins anew, as someone nobody knows.
    async fn forget(&mut self) {
        {
            let mut standing = lock(&self.standing);
            standing.generation = -1;
            standing.member_id.clear();
        }
        let lost: Vec<Place> = std::mem::take(&mut self.owned).into_iter().collect();
        self.owned_generation = -1;
        if !lost.is_empty() {
            self.tell(Notice::Lost(lost)).await;
        }
    }

    fn names(&self) -> (Vec<u8>, Vec<u8>, Vec<u8>, i32) {
        let standing = lock(&self.standing);
        let instance_id = self.options.instance_id.clone().unwrap_or_default();
        let group = self.options.group.clone().into_bytes();
        (group, standing.member_id.clone().into_bytes(), instance_id.into_bytes(), standing.generation)
    }

    fn subscription(&self, assignor: Assignor) -> Vec<u8> {
        let owned = by_topic(&self.owned);
        let data = StickyUserData { previous: owned.clone(), generation: self.owned_generation };
        let user_data = (assignor == Assignor::Sticky).then(|| data.encode());
        let topics = self.options.topics.clone();
        Subscription { topics, user_data, owned, generation: self.owned_generation, rack: None }.encode()
    }

    /// Joins, again and again until it is a member of the next generation.
    async fn join(&mut self) -> Outcome<members::JoinResponse> {
        loop {
            let (group, member_id, instance_id, _) = self.names();
            let protocol = |assignor: &Assignor| members::Protocol {
                name: assignor.name().as_bytes().to_vec(),
                metadata: self.subscription(*assignor),
            };
            let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
            let request = members::JoinRequest {
                group,
                member_id,
                instance_id,
                client_id: self.options.client_id.clone().into_bytes(),
                session_timeout_ms: millis(self.options.session_timeout),
                rebalance_timeout_ms: millis(self.options.rebalance_timeout),
                protocol_type: CONSUMER.as_bytes().to_vec(),
                protocols: self.options.assignors.iter().map(protocol).collect(),
            };
            // The answer may take as long as the slowest member is waited for.
            let patience = self.options.rebalance_timeout + Duration::from_secs(10);
            let joined: Result<members::JoinResponse, Failure> = self.call(ApiKey::JoinGroup, &request, patience).await;
            match joined {
                Ok(joined) => {
                    self.backoff.succeeded();
                    let mut standing = lock(&self.standing);
                    standing.member_id = String::from_utf8_lossy(&joined.member_id).into_owned();
                    if joined.error == 0 {
                        standing.generation = joined.generation;
                        return Ok(joined);
                    }
                    if joined.error != ErrorCode::MemberIdRequired.code() {
                        return Err(GroupError::Refused(Refusal::of_code(joined.error)));
                    }
                }
                Err(failure) => match self.judge(failure).await {
                    Verdict::Again | Verdict::Rebalances => {}
                    Verdict::Forgotten => self.forget().await,
                    Verdict::Fatal(error) => return Err(error),
                },
            }
        }
    }

    /// Gets what it is to read; as the leader says what all are to. `None` to join again.
    async fn sync(&mut self, joined: members::JoinResponse) -> Outcome<Option<BTreeSet<Place>>> {
        let is_leader = joined.leader == joined.member_id;
        let skips = joined.flags & members::FLAG_SKIP_ASSIGNMENT != 0;
        self.counted = None;
        let assignments = if is_leader && !skips { self.assign(&joined).await? } else { Vec::new() };
        loop {
            let (group, member_id, instance_id, generation) = self.names();
            let request = members::SyncRequest {
                group,
                generation,
                member_id,
                instance_id,
                protocol_type: joined.protocol_type.clone(),
                protocol: joined.protocol.clone(),
                assignments: assignments.clone(),
            };
            let patience = self.options.rebalance_timeout + Duration::from_secs(10);
            let synced: Result<members::SyncResponse, Failure> = self.call(ApiKey::SyncGroup, &request, patience).await;
            match synced {
                Ok(synced) => {
                    let assignment = Assignment::decode(&synced.assignment);
                    let assignment = assignment.map_err(|_| GroupError::Unintelligible { what: "assignment" })?;
                    return Ok(Some(places_of(&assignment.partitions)));
                }
                Err(failure) => match self.judge(failure).await {
                    Verdict::Again => {}
                    Verdict::Rebalances => return Ok(None),
                    Verdict::Forgotten => {
                        self.forget().await;
                        return Ok(None);
                    }
                    Verdict::Fatal(error) => return Err(error),
                },
            }
        }
    }

    /// What each member is to read.
    async fn assign(&mut self, joined: &members::JoinResponse) -> Outcome<Vec<members::MemberAssignment>> {
        let name = String::from_utf8_lossy(&joined.protocol).into_owned();
        let assignor = Assignor::named(&name).ok_or(GroupError::Unintelligible { what: "assignor" })?;
        let mut all = Members::new();
        for member in &joined.members {
            let subscription = Subscription::decode(&member.metadata);
            let subscription = subscription.map_err(|_| GroupError::Unintelligible { what: "subscription" })?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let instance = Some(text(&member.instance_id)).filter(|instance| !instance.is_empty());
            all.insert(text(&member.member_id), (instance, subscription));
        }
        let topics: BTreeSet<String> =
            all.values().flat_map(|(_, subscription)| subscription.topics.iter().cloned()).collect();
        let counts = self.count(&topics).await;
        let plan = assignor.assign(&all, &counts);
        self.counted = Some(counts);
        let given = |(member, places): (String, BTreeSet<Place>)| members::MemberAssignment {
            member_id: member.into_bytes(),
            assignment: Assignment { partitions: by_topic(&places), user_data: None }.encode(),
        };
        Ok(plan.into_iter().map(given).collect())
    }

    /// How many partitions topics have. One that does not exist has none, until it does.
    async fn count(&self, topics: &BTreeSet<String>) -> Counts {
        let mut counts = Counts::new();
        for topic in topics {
            let count = self.client.topic(topic).await.map_or(0, |topic| topic.partition_count());
            counts.insert(topic.clone(), count);
        }
        counts
    }

    /// Has the consumer stop reading partitions, and lives on meanwhile.
    async fn revoke(&mut self, places: BTreeSet<Place>) -> Outcome {
        if places.is_empty() {
            return Ok(());
        }
        let (done, mut stopped) = oneshot::channel();
        self.owned.retain(|place| !places.contains(place));
        self.tell(Notice::Revoke(places.into_iter().collect(), done)).await;
        let deadline = Instant::now() + self.options.rebalance_timeout;
        while Instant::now() < deadline {
            tokio::select! {
                // One that is dropped has stopped as well.
                _ = &mut stopped => return Ok(()),
                () = sleep(self.options.heartbeat_interval) => {}
            }
            // Whatever the answer: what it leads to comes behind this.
            drop(self.heartbeat().await);
        }
        Ok(())
    }

    async fn heartbeat(&mut self) -> Result<members::HeartbeatResponse, Failure> {
        let (group, member_id, instance_id, generation) = self.names();
        let request = members::HeartbeatRequest { group, generation, member_id, instance_id };
        let patience = self.options.session_timeout / 3;
        self.call(ApiKey::Heartbeat, &request, patience).await
    }

    /// Sends heartbeats until the group rebalances.
    async fn beat(&mut self) -> Outcome {
        loop {
            sleep(self.options.heartbeat_interval).await;
            if self.is_abandoned() {
                // Nobody takes what it reads: the others can (Kafka's `max.poll.interval.ms`).
                self.leave().await;
                self.forget().await;
                while self.is_abandoned() {
                    sleep(self.options.heartbeat_interval).await;
                }
                return Ok(());
            }
            if let Some(counted) = self.counted.clone() {
                let now = self.count(&counted.keys().cloned().collect()).await;
                if now != counted {
                    return Ok(());
                }
            }
            let Err(failure) = self.heartbeat().await else {
                self.backoff.succeeded();
                continue;
            };
            match self.judge(failure).await {
                Verdict::Again => {}
                Verdict::Rebalances => return Ok(()),
                Verdict::Forgotten => {
                    self.forget().await;
                    return Ok(());
                }
                Verdict::Fatal(error) => return Err(error),
            }
        }
    }

    fn is_abandoned(&self) -> bool {
        lock(&self.standing).last_poll.elapsed() > self.options.rebalance_timeout
    }

    /// Says that it goes. Who does not hear it will notice.
    async fn leave(&mut self) {
        let (group, member_id, instance_id, _) = self.names();
        if member_id.is_empty() {
            return;
        }
        let leaving = members::Leaving { member_id, instance_id };
        let request = members::LeaveRequest { group, members: vec![leaving] };
        let left: Result<members::LeaveResponse, Failure> =
            self.call(ApiKey::LeaveGroup, &request, Duration::from_secs(5)).await;
        drop(left);
    }
}

fn by_topic(places: &BTreeSet<Place>) -> Vec<TopicPartitions> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, partition) in places {
        topics.entry(topic).or_default().push(*partition as i32);
    }
    topics.into_iter().map(|(topic, partitions)| TopicPartitions { topic: topic.to_owned(), partitions }).collect()
}

fn places_of(partitions: &[TopicPartitions]) -> BTreeSet<Place> {
    let mut places = BTreeSet::new();
    for own in partitions {
        let known = own.partitions.iter().filter_map(|partition| u32::try_from(*partition).ok());
        places.extend(known.map(|partition| (own.topic.clone(), partition)));
    }
    places
}
