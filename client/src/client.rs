//! A client of one cluster: owns its connections and what it knows of topics; knows nothing of records.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coulee_protocol::api::metadata::v1 as metadata;
use coulee_protocol::api::topics::check_topic_name;
use coulee_protocol::api::{ApiKey, Body};
use coulee_protocol::ids::{ClusterId, ShardId};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::connection::{Connection, Failure, Greeting};
use crate::consumer::ConsumerBuilder;
use crate::error::{AdminError, ConnectError, Refusal};
use crate::group::GroupBuilder;
use crate::producer::ProducerBuilder;
use crate::retry;
use crate::topic::Topic;

/// A client of one cluster. Cheap to clone: clones share connections and what is known of topics.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What a client is made with.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    addresses: Vec<String>,
    greeting: Greeting,
    request_timeout: Duration,
    metadata_age_max: Duration,
}

#[derive(Debug)]
struct Shared {
    options: ClientBuilder,
    links: Mutex<BTreeMap<Option<ShardId>, Arc<Link>>>,
    topics: Mutex<BTreeMap<String, Known>>,
    /// One look-up of topics at a time: who comes second finds what the first has brought.
    looking_up: tokio::sync::Mutex<()>,
    chance: Chance,
}

/// The connection to one shard, or (without a shard) to any.
#[derive(Debug)]
struct Link {
    shard: Option<ShardId>,
    current: Mutex<Option<Connection>>,
    connecting: tokio::sync::Mutex<Attempts>,
}

/// Tries to connect so far.
#[derive(Debug, Default)]
struct Attempts {
    backoff: Backoff,
    not_before: Option<Instant>,
    next_address: usize,
}

/// What is known of a topic.
#[derive(Debug)]
struct Known {
    topic: Arc<Topic>,
    since: Instant,
    is_stale: bool,
}

/// Numbers that spread pauses and sticky partitions; nothing depends on their being random.
#[derive(Debug)]
pub(crate) struct Chance {
    state: RandomState,
    count: AtomicU64,
}

impl Chance {
    fn new() -> Self {
        Self { state: RandomState::new(), count: AtomicU64::new(0) }
    }

    /// The next number.
    pub(crate) fn next(&self) -> u64 {
        self.state.hash_one(self.count.fetch_add(1, Ordering::Relaxed))
    }
}

/// Locks state that no panic leaves half changed: every change is one assignment.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientBuilder {
    /// One more address, `host:port`, tried after those before.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.addresses.push(address.into());
        self
    }

    /// How the client calls itself in the broker's logs: at most 255 bytes.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.greeting.client_name = name.into();
        self
    }

    /// How long connecting and Hello may take together. 5 s by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.greeting.timeout = timeout;
        self
    }

    /// How long a request may take, tries and pauses included. 30 s by default.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How old knowledge of a topic may become before it is looked up again. 5 min by default, at least 1 s.
    #[must_use]
    pub fn metadata_age_max(mut self, age: Duration) -> Self {
        // What is old at once could never be used.
        self.metadata_age_max = age.max(Duration::from_secs(1));
        self
    }

    /// Connects to the first address that answers. Each is tried once.
    ///
    /// # Errors
    /// [`ConnectError`] of the last address.
    pub async fn connect(self) -> Result<Client, ConnectError> {
        let shared = Shared {
            options: self,
            links: Mutex::default(),
            topics: Mutex::default(),
            looking_up: tokio::sync::Mutex::default(),
            chance: Chance::new(),
        };
        let client = Client { shared: Arc::new(shared) };
        let link = client.link(None);
        let mut attempts = link.connecting.lock().await;
        client.open_any(&link, &mut attempts).await?;
        drop(attempts);
        Ok(client)
    }
}

/// Tries of what is refused *inside* of an answer: a broker that has just started knows its topics before it has opened
/// all partitions.
#[derive(Debug)]
pub(crate) struct Tries {
    backoff: Backoff,
    deadline: Instant,
}

impl Tries {
    pub(crate) fn new(client: &Client) -> Self {
        Self { backoff: Backoff::default(), deadline: Instant::now() + client.request_timeout() }
    }

    /// How long to wait before the next try; the error, if another one does not help or comes too late.
    pub(crate) fn pause(&mut self, client: &Client, error: AdminError) -> Result<Duration, AdminError> {
        let passes =
            matches!(&error, AdminError::Refused(refusal) if refusal.code().is_some_and(retry::passes_by_itself));
        let pause = self.backoff.failed(client.chance());
        if passes && Instant::now() + pause < self.deadline { Ok(pause) } else { Err(error) }
    }
}

impl Client {
    /// A client that is still to be configured.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        let client_name = concat!("coulee-client ", env!("CARGO_PKG_VERSION")).to_owned();
        ClientBuilder {
            addresses: Vec::new(),
            greeting: Greeting { client_name, timeout: Duration::from_secs(5) },
            request_timeout: Duration::from_secs(30),
            metadata_age_max: Duration::from_secs(300),
        }
    }

    /// Connects to the broker at `address`, `host:port`.
    ///
    /// # Errors
    /// [`ConnectError`]: the address, what went wrong.
    pub async fn connect(address: impl Into<String>) -> Result<Self, ConnectError> {
        Self::builder().address(address).connect().await
    }

    /// A producer for `topic`, still to be configured.
    #[must_use]
    pub fn producer(&self, topic: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), topic.into())
    }

    /// A consumer of `topic`, still to be configured.
    #[must_use]
    pub fn consumer(&self, topic: impl Into<String>) -> ConsumerBuilder {
        ConsumerBuilder::new(self.clone(), topic.into())
    }

    /// A member of the consumer group of this name, still to be configured.
    #[must_use]
    pub fn group(&self, group: impl Into<String>) -> GroupBuilder {
        GroupBuilder::new(self.clone(), group.into())
    }

    /// The id of the cluster.
    ///
    /// # Errors
    /// [`AdminError::Connect`] if the connection was lost and none comes about in time.
    pub async fn cluster_id(&self) -> Result<ClusterId, AdminError> {
        Ok(self.any_connection().await?.welcome.cluster_id)
    }

    /// The broker's version, for people.
    ///
    /// # Errors
    /// As [`Client::cluster_id`].
    pub async fn broker_version(&self) -> Result<String, AdminError> {
        Ok(self.any_connection().await?.welcome.broker_version.clone())
    }

    /// How many shards the broker has.
    ///
    /// # Errors
    /// As [`Client::cluster_id`].
    pub async fn shards(&self) -> Result<u16, AdminError> {
        Ok(self.any_connection().await?.welcome.shards)
    }

    /// What is known of the topic, looked up if it isn't known or is too old.
    ///
    /// # Errors
    /// [`AdminError`]: the name is none, no broker answers, or the topic does not exist.
    pub async fn topic(&self, name: &str) -> Result<Arc<Topic>, AdminError> {
        check_topic_name(name).map_err(AdminError::TopicName)?;
        if let Some(topic) = self.known_topic(name) {
            return Ok(topic);
        }
        let _one_at_a_time = self.shared.looking_up.lock().await;
        if let Some(topic) = self.known_topic(name) {
            return Ok(topic);
        }
        let mut tries = Tries::new(self);
        let topic = loop {
            match self.look_up(name).await {
                Ok(topic) => break Arc::new(topic),
                Err(error) => sleep(tries.pause(self, error)?).await,
            }
        };
        let known = Known { topic: topic.clone(), since: Instant::now(), is_stale: false };
        lock(&self.shared.topics).insert(name.to_owned(), known);
        Ok(topic)
    }

    /// Asks for the topic once.
    async fn look_up(&self, name: &str) -> Result<Topic, AdminError> {
        let names = vec![metadata::TopicName { name: name.as_bytes().to_vec() }];
        let request = metadata::Request { topics: names, flags: metadata::FLAG_INCLUDE_INTERNAL };
        let response: metadata::Response = self.read(ApiKey::Metadata, &request).await?;
        let unknown = || coulee_protocol::error::ErrorCode::UnknownTopicOrPartition.code();
        let found = response.topics.into_iter().find(|topic| topic.name == name.as_bytes());
        match found {
            Some(topic) if topic.error == 0 => Topic::read(topic).map_err(AdminError::Unreadable),
            found => Err(AdminError::Refused(Refusal::of_code(found.map_or_else(unknown, |topic| topic.error)))),
        }
    }

    /// What is known of the topic right now, if it is fresh.
    pub(crate) fn known_topic(&self, name: &str) -> Option<Arc<Topic>> {
        let topics = lock(&self.shared.topics);
        let known = topics.get(name)?;
        let is_fresh = !known.is_stale && known.since.elapsed() < self.shared.options.metadata_age_max;
        is_fresh.then(|| known.topic.clone())
    }

    /// The topic is looked up again before it is used again.
    pub(crate) fn forget_topic(&self, name: &str) {
        if let Some(known) = lock(&self.shared.topics).get_mut(name) {
            known.is_stale = true;
        }
    }

    /// The connection to a shard, if there is one right now.
    pub(crate) fn live_connection(&self, shard: ShardId) -> Option<Connection> {
        lock(&self.shared.links).get(&Some(shard))?.live()
    }

    /// The connection to a shard, or to any; connects, again and again with pauses, until `deadline`.
    pub(crate) async fn connection(
        &self,
        shard: Option<ShardId>,
        deadline: Instant,
    ) -> Result<Connection, ConnectError> {
        if let Some(connection) = shard.map_or_else(|| self.live_any(), |shard| self.live_connection(shard)) {
            return Ok(connection);
        }
        let link = self.link(shard);
        let connected = timeout_at(deadline, self.reconnect(&link, deadline)).await;
        let address = || self.shared.options.addresses.first().cloned().unwrap_or_default();
        connected.unwrap_or_else(|_| Err(ConnectError::TimedOut { address: address() }))
    }

    /// How long a request may take.
    pub(crate) fn request_timeout(&self) -> Duration {
        self.shared.options.request_timeout
    }

    /// A number that spreads things.
    pub(crate) fn chance(&self) -> u64 {
        self.shared.chance.next()
    }

    /// A request that changes nothing, on any connection.
    pub(crate) async fn read<Q: Body, R: Body>(&self, api: ApiKey, body: &Q) -> Result<R, AdminError> {
        self.request(api, body, None, false).await
    }

    /// A request that changes something: repeated only while it surely has not.
    pub(crate) async fn change<Q: Body, R: Body>(&self, api: ApiKey, body: &Q) -> Result<R, AdminError> {
        self.request(api, body, None, true).await
    }

    /// A request with its tries.
    pub(crate) async fn request<Q: Body, R: Body>(
        &self,
        api: ApiKey,
        body: &Q,
        shard: Option<ShardId>,
        is_write: bool,
    ) -> Result<R, AdminError> {
        let deadline = Instant::now() + self.request_timeout();
        let mut backoff = Backoff::default();
        loop {
            let connection = self.connection(shard, deadline).await.map_err(AdminError::Connect)?;
            let failure = match connection.call(api, body, deadline).await {
                Ok(response) => return Ok(response),
                Err(failure) => failure,
            };
            let pause = backoff.failed(self.chance());
            if !retry::repeats_request(&failure, is_write) || Instant::now() + pause >= deadline {
                return Err(self.admin_error(failure));
            }
            sleep(pause).await;
        }
    }

    fn admin_error(&self, failure: Failure) -> AdminError {
        let address = || self.shared.options.addresses.first().cloned().unwrap_or_default();
        match failure {
            Failure::NotSent => AdminError::Connect(ConnectError::TimedOut { address: address() }),
            Failure::Unanswered => AdminError::OutcomeUnknown,
            Failure::Refused(refusal) => AdminError::Refused(refusal),
            Failure::Unsupported(api) => AdminError::Unsupported { api },
            Failure::Unreadable(error) => AdminError::Unreadable(error),
        }
    }

    async fn any_connection(&self) -> Result<Connection, AdminError> {
        let deadline = Instant::now() + self.request_timeout();
        self.connection(None, deadline).await.map_err(AdminError::Connect)
    }

    fn live_any(&self) -> Option<Connection> {
        lock(&self.shared.links).values().find_map(|link| link.live())
    }

    fn link(&self, shard: Option<ShardId>) -> Arc<Link> {
        let mut links = lock(&self.shared.links);
        let link = || Link { shard, current: Mutex::default(), connecting: tokio::sync::Mutex::default() };
        links.entry(shard).or_insert_with(|| Arc::new(link())).clone()
    }

    async fn reconnect(&self, link: &Link, deadline: Instant) -> Result<Connection, ConnectError> {
        let mut attempts = link.connecting.lock().await;
        loop {
            // Whoever held the lock before may have connected.
            if let Some(connection) = link.live() {
                return Ok(connection);
            }
            if let Some(not_before) = attempts.not_before {
                sleep_until(not_before).await;
            }
            let error = match self.open_any(link, &mut attempts).await {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if attempts.not_before.is_some_and(|not_before| not_before >= deadline) {
                return Err(error);
            }
        }
    }

    /// Tries each address once, from the one that is next.
    async fn open_any(&self, link: &Link, attempts: &mut Attempts) -> Result<Connection, ConnectError> {
        let ClientBuilder { addresses, greeting, .. } = &self.shared.options;
        let mut last = ConnectError::NoAddress;
        for _ in addresses {
            let address = &addresses[attempts.next_address % addresses.len()];
            match Connection::open(address, greeting, link.shard).await {
                Ok(connection) => {
                    attempts.backoff.succeeded();
                    attempts.not_before = None;
                    self.keep(link, &connection);
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
            attempts.next_address = attempts.next_address.wrapping_add(1);
        }
        attempts.not_before = Some(Instant::now() + attempts.backoff.failed(self.chance()));
        Err(last)
    }

    /// A connection serves its link, and the shard that has it if that has none.
    fn keep(&self, link: &Link, connection: &Connection) {
        *lock(&link.current) = Some(connection.clone());
        if link.shard.is_none() {
            let owner = self.link(Some(connection.welcome.shard));
            let mut current = lock(&owner.current);
            if !current.as_ref().is_some_and(Connection::is_open) {
                *current = Some(connection.clone());
            }
        }
    }
}

impl Link {
    fn live(&self) -> Option<Connection> {
        lock(&self.current).as_ref().filter(|connection| connection.is_open()).cloned()
    }
}
