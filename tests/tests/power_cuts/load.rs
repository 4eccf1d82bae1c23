//! Clients that write until their broker is gone, and note how long the log was at each ack; they know no power cut.

use crate::ledger::{Acked, Event, Place, Sent};
use coulee_client::{Client, Delivery, NewTopic, Producer, Record};
use coulee_tests::block_device::Journal;
use coulee_tests::chance::Chance;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

/// A topic under load.
pub(crate) struct Topic {
    pub(crate) name: &'static str,
    pub(crate) partitions: u32,
    segment_bytes: &'static str,
    durability: &'static str,
}

/// Many partitions, so that one flush serves several.
pub(crate) const TOPICS: [Topic; 5] = [
    Topic { name: "rolling", partitions: 4, segment_bytes: "65536", durability: "fsync" },
    Topic { name: "growing", partitions: 6, segment_bytes: "1048576", durability: "fsync" },
    Topic { name: "wide", partitions: 10, segment_bytes: "1048576", durability: "fsync" },
    // What is acknowledged there may be lost, and nothing else.
    Topic { name: "loose", partitions: 3, segment_bytes: "65536", durability: "written" },
    Topic { name: "steady", partitions: 20, segment_bytes: "1048576", durability: "fsync" },
];
/// Numbers of topics that come and go begin here.
pub(crate) const FLEETING: u32 = 1_000;
const FLEETING_PARTITIONS: u32 = 3;
const FLEETING_BATCHES: u64 = 40;
/// Records of a batch, batches that wait for their acks, and bytes of a value, by client.
const CLIENTS: [(usize, usize, u64); 7] =
    [(1, 1, 200), (1, 1, 2_000), (1, 8, 200), (1, 24, 100), (10, 4, 400), (100, 4, 200), (1, 2, 100_000)];
/// Steady work is in a topic that is made when there are zeroed files for all of it, of values up to so many bytes, and
/// so many batches at once: a single one would be made durable by itself.
const STEADY: usize = TOPICS.len() - 1;
const STEADY_BYTES: u64 = 300;
const STEADY_BATCHES: usize = 16;
/// A client whose broker is gone waits no longer for what it was never told.
const PATIENCE: Duration = Duration::from_millis(30);

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Everything: segments begin, roll and go all the time.
    Mixed,
    /// Small records into segments that were zeroed ahead.
    Steady,
}

impl Work {
    /// The topics that it is in, of [`TOPICS`].
    pub(crate) fn topics(self) -> Range<usize> {
        match self {
            Self::Mixed => 0..STEADY,
            Self::Steady => STEADY..TOPICS.len(),
        }
    }
}

/// Whether what a topic acknowledges has to outlive a power cut.
pub(crate) fn is_durable(topic: u32) -> bool {
    TOPICS.get(topic as usize).is_none_or(|topic| topic.durability == "fsync")
}

/// The name of a topic that comes and goes.
pub(crate) fn fleeting(topic: u32) -> String {
    format!("fleeting-{topic}")
}

/// Makes the topics that stay, of some work.
pub(crate) async fn create_topics(address: &str, work: Work) {
    let client = Client::connect(address).await.unwrap();
    for topic in &TOPICS[work.topics()] {
        let new = NewTopic::new(topic.name).partitions(topic.partitions).config("durability", topic.durability);
        client.create_topic(new.config("segment.bytes", topic.segment_bytes)).await.unwrap();
    }
}

/// What the clients do next, from one life of the broker to the next.
#[derive(Clone, Default)]
pub(crate) struct Next {
    sequences: [u64; CLIENTS.len() + 1],
    topic: u32,
}

/// Clients at work, each a thread with connections of its own.
pub(crate) struct Load {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Hand>>,
    events: Receiver<Event>,
}

impl Load {
    pub(crate) fn start(address: &str, journal: &Arc<Journal>, work: Work, next: &Next, chance: &mut Chance) -> Self {
        let (is_over, (sender, events)) = (Arc::new(AtomicBool::new(false)), channel());
        let mut clients = Vec::new();
        for (client, next_sequence) in (0..).zip(next.sequences) {
            let mut hand = Hand {
                client,
                work,
                next: next_sequence,
                topic: next.topic,
                chance: Chance(chance.below(u64::MAX)),
                journal: Arc::clone(journal),
                is_over: Arc::clone(&is_over),
                patience: PATIENCE,
                waiting: VecDeque::new(),
                events: sender.clone(),
            };
            let address = address.to_owned();
            clients.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(hand.run(&address));
                hand
            }));
        }
        Self { is_over, clients, events }
    }

    /// What the clients were told since it was last asked for, when they have been told something.
    pub(crate) fn event(&self, patience: Duration) -> Option<Event> {
        self.events.recv_timeout(patience).ok()
    }

    /// The broker is gone: what the clients were told besides.
    pub(crate) fn finish(self, next: &mut Next) -> Vec<Event> {
        self.is_over.store(true, Ordering::Relaxed);
        for (client, thread) in self.clients.into_iter().enumerate() {
            let hand = thread.join().expect("a client does not fail");
            next.sequences[client] = hand.next;
            next.topic = next.topic.max(hand.topic);
        }
        self.events.into_iter().collect()
    }
}

/// One client.
struct Hand {
    client: u32,
    work: Work,
    next: u64,
    topic: u32,
    chance: Chance,
    journal: Arc<Journal>,
    is_over: Arc<AtomicBool>,
    patience: Duration,
    waiting: VecDeque<(Sent, Delivery)>,
    events: Sender<Event>,
}

impl Hand {
    async fn run(&mut self, address: &str) {
        let Some(Ok(client)) = self.unless_over(Client::connect(address)).await else { return };
        if self.client as usize == CLIENTS.len() {
            let is_at_work = |hand: &Self| hand.work == Work::Mixed && !hand.is_over.load(Ordering::Relaxed);
            while is_at_work(self) && self.make_and_delete(&client).await.is_some() {}
            return;
        }
        let (batch, in_flight, value_bytes) = CLIENTS[self.client as usize];
        // How many records may wait before acks are waited for, and how many then still wait.
        let (value_bytes, most, rest) = match self.work {
            Work::Mixed => (value_bytes, batch * (in_flight - 1), batch * (in_flight - 1)),
            Work::Steady => (value_bytes.min(STEADY_BYTES), batch * (STEADY_BATCHES - 1), 0),
        };
        let topics = self.work.topics();
        let mut producers = Vec::new();
        for topic in &TOPICS[topics.clone()] {
            let build = client.producer(topic.name).batch_records_max(batch).linger(Duration::ZERO).build();
            let Some(Ok(producer)) = self.unless_over(build).await else { return };
            producers.push(producer);
        }
        while !self.is_over.load(Ordering::Relaxed) {
            let topic = topics.start + self.chance.below(topics.len() as u64) as usize;
            let partition = self.chance.below(u64::from(TOPICS[topic].partitions)) as u32;
            let place = Place { topic: topic as u32, partition };
            if self.send(&producers[topic - topics.start], place, batch, value_bytes).await.is_none() {
                break;
            }
            if self.waiting.len() > most {
                while self.waiting.len() > rest {
                    self.hear().await;
                }
            }
        }
        while !self.waiting.is_empty() {
            self.hear().await;
        }
    }

    /// Sends one batch to one partition; nothing when the broker is gone.
    async fn send(&mut self, producer: &Producer, place: Place, batch: usize, value_bytes: u64) -> Option<()> {
        for _ in 0..batch {
            let len = self.chance.below(value_bytes) as u32;
            let sent = Sent { client: self.client, sequence: self.next, place, len };
            self.next += 1;
            let value = sent.value();
            let send = producer.send(Record::new(&value).partition(place.partition));
            let delivery = self.unless_over(send).await?.ok()?;
            self.waiting.push_back((sent, delivery));
        }
        Some(())
    }

    /// Waits for what becomes of the oldest record.
    async fn hear(&mut self) {
        let Some((sent, delivery)) = self.waiting.pop_front() else { return };
        if let Some(Ok(delivered)) = self.unless_over(delivery).await {
            let offset = delivered.offset.expect("an ack says the offset");
            self.tell(Event::Acked(Acked { sent, offset, position: self.journal.position() }));
        }
    }

    /// A topic is made, written to and in most cases deleted; nothing when the broker is gone.
    async fn make_and_delete(&mut self, client: &Client) -> Option<()> {
        let topic = FLEETING + self.topic;
        self.topic += 1;
        self.tell(Event::Creating(topic));
        let segment_bytes = if self.chance.is_hit(1, 4) { "1048576" } else { "65536" };
        let new = NewTopic::new(fleeting(topic)).partitions(FLEETING_PARTITIONS);
        self.unless_over(client.create_topic(new.config("segment.bytes", segment_bytes))).await?.ok()?;
        self.tell(Event::Created(topic, self.journal.position()));
        let producer = client.producer(fleeting(topic)).linger(Duration::ZERO).build();
        let producer = self.unless_over(producer).await?.ok()?;
        for _ in 0..self.chance.below(FLEETING_BATCHES) {
            let place = Place { topic, partition: self.chance.below(u64::from(FLEETING_PARTITIONS)) as u32 };
            let batch = 1 + self.chance.below(20) as usize;
            self.send(&producer, place, batch, 500).await?;
        }
        while !self.waiting.is_empty() {
            self.hear().await;
        }
        if self.chance.is_hit(3, 4) {
            self.tell(Event::Deleting(topic, self.journal.position()));
            self.unless_over(client.delete_topic(&fleeting(topic))).await?.ok()?;
            self.tell(Event::Deleted(topic, self.journal.position()));
        }
        Some(())
    }

    fn tell(&self, event: Event) {
        self.events.send(event).expect("they are taken until all clients are gone");
    }

    /// Waits; once the broker is gone, not for long, and for everything together.
    async fn unless_over<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        if self.patience.is_zero() {
            // A timer would take a millisecond for each record.
            let mut context = Context::from_waker(Waker::noop());
            return if let Poll::Ready(done) = future.as_mut().poll(&mut context) { Some(done) } else { None };
        }
        loop {
            if let Ok(done) = tokio::time::timeout(self.patience, &mut future).await {
                return Some(done);
            }
            if self.is_over.load(Ordering::Relaxed) {
                self.patience = Duration::ZERO;
                return None;
            }
        }
    }
}
