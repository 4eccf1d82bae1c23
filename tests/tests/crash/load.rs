//! Four clients that send until their broker is gone, and remember what they were told; knows no log.

use crate::PARTITIONS;
use crate::ledger::{Ledger, Number, Sent, Told};
use coulee_client::{Client, Delivery, Producer, Record};
use coulee_tests::chance::Chance;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

/// Records of a batch, by client.
const BATCHES: [usize; 4] = [1, 1, 100, 100];
/// Batches of a client that wait for their acks.
const BATCHES_IN_FLIGHT: usize = 20;
/// A client whose broker is gone waits no longer for what it was never told.
const PATIENCE: Duration = Duration::from_millis(30);

/// The clients of one round, each a thread with connections of its own.
pub(crate) struct Load {
    is_gone: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Sent>>>,
}

impl Load {
    pub(crate) fn start(address: &str, ledger: &Ledger, chance: &mut Chance) -> Self {
        let is_gone = Arc::new(AtomicBool::new(false));
        let mut clients = Vec::new();
        for (client, batch) in (0..).zip(BATCHES) {
            let sender = Sender {
                client,
                batch,
                next: ledger.next_sequence(client),
                chance: Chance(chance.below(u64::MAX)),
                is_gone: is_gone.clone(),
                patience: PATIENCE,
                waiting: VecDeque::new(),
                sent: Vec::new(),
            };
            let address = address.to_owned();
            clients.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(sender.run(&address))
            }));
        }
        Self { is_gone, clients }
    }

    /// The broker was killed: takes what the clients were told.
    pub(crate) fn finish(self, ledger: &mut Ledger) {
        self.is_gone.store(true, Ordering::Relaxed);
        for (client, thread) in (0..).zip(self.clients) {
            ledger.note(client, thread.join().expect("a client does not fail"));
        }
    }
}

/// One client.
struct Sender {
    client: u32,
    batch: usize,
    next: u64,
    chance: Chance,
    is_gone: Arc<AtomicBool>,
    patience: Duration,
    waiting: VecDeque<(u32, Number, Delivery)>,
    sent: Vec<Sent>,
}

impl Sender {
    async fn run(mut self, address: &str) -> Vec<Sent> {
        // The broker may be killed before anyone is connected.
        if let Some(Ok(client)) = self.unless_gone(Client::connect(address)).await {
            let build = client.producer("t").batch_records_max(self.batch).build();
            if let Some(Ok(producer)) = self.unless_gone(build).await {
                self.produce(&producer).await;
            }
        }
        self.sent
    }

    async fn produce(&mut self, producer: &Producer) {
        while !self.is_gone.load(Ordering::Relaxed) {
            let partition = self.chance.below(u64::from(PARTITIONS)) as u32;
            for _ in 0..self.batch {
                let number = Number { client: self.client, sequence: self.next };
                self.next += 1;
                let value = number.encode();
                let delivery = producer.send(Record::new(&value).partition(partition)).await.unwrap();
                self.waiting.push_back((partition, number, delivery));
            }
            while self.waiting.len() > self.batch * BATCHES_IN_FLIGHT {
                self.hear().await;
            }
        }
        while !self.waiting.is_empty() {
            self.hear().await;
        }
    }

    /// Waits for what becomes of the oldest record.
    async fn hear(&mut self) {
        let Some((partition, number, delivery)) = self.waiting.pop_front() else { return };
        let told = match self.unless_gone(delivery).await {
            Some(Ok(delivered)) => Told::Acknowledged(delivered.offset.expect("an ack says the offset")),
            Some(Err(error)) if !error.may_be_written() => Told::NotWritten,
            Some(Err(_)) | None => Told::Unknown,
        };
        self.sent.push(Sent { partition, number, told });
    }

    /// Waits; once the broker is gone, not for long, and for everything together.
    async fn unless_gone<F: Future>(&mut self, future: F) -> Option<F::Output> {
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
            if self.is_gone.load(Ordering::Relaxed) {
                self.patience = Duration::ZERO;
                return None;
            }
        }
    }
}
