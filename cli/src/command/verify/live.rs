//! `coulee verify --for`: a workload against a running broker whose every record is checked; owns sending and reading.
//!
//! The broker may go away and come back: producers wait and go on, readers ask again. What nobody was told of is
//! counted as unknown. A topic of its own is made, and removed when the proof holds.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coulee_client::{Client, ConsumeError, Consumer, Delivery, NewTopic, OffsetSpec, Producer, Record};
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::proof::{Fate, Proof, RecordId, Seen};
use crate::arguments::{Output, VerifyArguments};
use crate::code::LocalCode;
use crate::command::ledger::progress;
use crate::command::{Context, interrupts, print};
use crate::failure::{Failure, Stop};
use crate::sheet::write_value;

/// Deliveries of one producer that wait for their turn to be looked at.
const PENDING_MAX: usize = 16_384;
/// How often a producer sends.
const TICK: Duration = Duration::from_millis(5);
/// Pause before a broker that is away is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// How often progress is shown.
const SHOWN_EVERY: Duration = Duration::from_millis(200);

/// Runs the workload and prints the proof.
pub(super) async fn run(context: &Context, arguments: &VerifyArguments) -> Result<(), Stop> {
    let client = context.connect().await?;
    let run = RandomState::new().hash_one(std::process::id());
    let topic = arguments.topic.clone().unwrap_or_else(|| format!("coulee-verify-{:08x}", run as u32));
    client.create_topic(NewTopic::new(&topic).partitions(arguments.partitions)).await.map_err(Failure::from)?;
    let run = Run { client, topic, run, arguments: arguments.clone(), patience: context.shared.timeout };
    let began = Instant::now();
    let proof = run.go(&progress(&context.terminal, None)).await;
    let took = began.elapsed();
    let is_kept = arguments.keep || !proof.as_ref().is_ok_and(Proof::holds);
    if is_kept {
        context.terminal.say(&format!("the topic is kept: coulee consume {}", run.topic));
    } else if let Err(error) = run.client.delete_topic(&run.topic).await {
        context.terminal.warn(&format!("topic {} could not be removed: {error}", run.topic));
    }
    let proof = proof?;
    let object = run.object(&proof, took);
    match arguments.answer.output {
        Output::Table => print(|out| writeln!(out, "{}", text(&proof, took)))?,
        output => print(|out| write_value(&object, output, out))?,
    }
    verdict(&proof)?;
    context.terminal.next("coulee verify --data-dir DIR, once the broker is stopped");
    Ok(())
}

/// One run against a broker.
#[derive(Clone, Debug)]
struct Run {
    client: Client,
    topic: String,
    run: u64,
    arguments: VerifyArguments,
    /// How long nothing may come at the end.
    patience: Duration,
}

/// Counts that are shown while it runs.
#[derive(Debug, Default)]
struct Shown {
    acknowledged: AtomicU64,
    read: AtomicU64,
}

impl Run {
    async fn go(&self, bar: &ProgressBar) -> Result<Proof, Failure> {
        let (stop, stopped) = watch::channel(false);
        let (found, ends) = watch::channel(None);
        let shown = Arc::new(Shown::default());
        let mut producers = JoinSet::new();
        for number in 0..self.arguments.producers {
            let producer = self.client.producer(&self.topic).delivery_timeout(self.patience).build().await?;
            let (run, stopped, shown) = (self.clone(), stopped.clone(), Arc::clone(&shown));
            producers.spawn(async move { (number, run.produce(number, &producer, stopped, &shown).await) });
        }
        let tail = {
            let (run, shown) = (self.clone(), Arc::clone(&shown));
            tokio::spawn(async move { run.read(ends, &shown).await })
        };
        self.wait(bar, &shown).await;
        stop.send_replace(true);
        let mut told = vec![Vec::new(); usize::from(self.arguments.producers)];
        while let Some(sent) = producers.join_next().await {
            let (number, fates) = sent.expect("a producer's task neither panics nor is cancelled");
            told[usize::from(number)] = fates;
        }
        let ends = self.ends().await?;
        found.send_replace(Some(ends.clone()));
        let first = tail.await.expect("the reader's task neither panics nor is cancelled")?;
        let again = self.read(watch::channel(Some(ends)).1, &Shown::default()).await?;
        bar.finish_and_clear();
        Ok(Proof::of(&told, &first, &again))
    }

    /// Until the time is over or somebody has had enough.
    async fn wait(&self, bar: &ProgressBar, shown: &Shown) {
        let interrupted = interrupts();
        let (begun, mut tick) = (Instant::now(), interval(SHOWN_EVERY));
        while begun.elapsed() < self.arguments.duration.unwrap_or_default() {
            tokio::select! {
                () = interrupted.notified() => return,
                _ = tick.tick() => bar.set_position(shown.acknowledged.load(Ordering::Relaxed)),
            }
        }
    }

    /// Sends records until it is stopped, and says what became of each.
    async fn produce(
        &self,
        number: u16,
        producer: &Producer,
        stopped: watch::Receiver<bool>,
        shown: &Shown,
    ) -> Vec<Fate> {
        let (sender, deliveries) = mpsc::channel(PENDING_MAX);
        let (sent, fates) = tokio::join!(self.send(number, producer, stopped, sender), settle(deliveries, shown));
        assert_eq!(sent, fates.len() as u64, "each record has a fate");
        fates
    }

    /// Sends records at their times; how many.
    async fn send(
        &self,
        number: u16,
        producer: &Producer,
        stopped: watch::Receiver<bool>,
        sender: mpsc::Sender<Result<Delivery, Fate>>,
    ) -> u64 {
        let rate = (self.arguments.rate as f64 / f64::from(self.arguments.producers)).max(0.001);
        let (begun, mut tick) = (Instant::now(), interval(TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut sent, mut value) = (0_u64, String::new());
        while !*stopped.borrow() {
            tick.tick().await;
            let due = (begun.elapsed().as_secs_f64() * rate) as u64;
            while sent < due && !*stopped.borrow() {
                let partition = ((sent + u64::from(number)) % u64::from(self.arguments.partitions)) as u32;
                RecordId::new(number, sent).write(self.run, self.arguments.size, &mut value);
                let taken = producer.send(Record::new(value.as_bytes()).partition(partition)).await;
                // What is not even taken is nowhere.
                let passed = sender.send(taken.map_err(|_| Fate::NotWritten)).await;
                assert!(passed.is_ok(), "whoever settles stays to the end");
                sent += 1;
            }
        }
        producer.flush().await;
        sent
    }

    /// Reads every partition from its start until all ends that come are reached.
    async fn read(&self, ends: watch::Receiver<Option<Vec<u64>>>, shown: &Shown) -> Result<Seen, Failure> {
        let mut consumer = self.client.consumer(&self.topic).build().await?;
        let mut seen = Seen::new(self.arguments.partitions);
        let mut came = Instant::now();
        loop {
            if ends.borrow().as_ref().is_some_and(|ends| seen.reaches(ends)) {
                return Ok(seen);
            }
            match consumer.poll().await {
                Ok(Some(mut batch)) => {
                    let records = batch.records().map_err(|fault| unreadable(&fault.to_string()))?;
                    for record in records {
                        let id = record.value.and_then(|value| RecordId::read(self.run, value));
                        seen.take(record.partition, record.offset, id);
                    }
                    shown.read.store(seen.records(), Ordering::Relaxed);
                    came = Instant::now();
                }
                Ok(None) => {}
                Err(error) => self.bear(error, &mut consumer, &mut seen).await?,
            }
            if ends.borrow().is_some() && came.elapsed() > self.patience {
                let message = format!("not all was read back within {:?} of nothing coming", self.patience);
                return Err(Failure::local(LocalCode::BrokerUnreachable, message));
            }
        }
    }

    /// A broker that is away is asked again; damage is counted and stepped over; anything else is told.
    async fn bear(&self, error: ConsumeError, consumer: &mut Consumer, seen: &mut Seen) -> Result<(), Failure> {
        match error {
            ConsumeError::Damaged { partition, from, to } => {
                seen.damage(partition, from, to);
                consumer.skip_damaged(partition).expect("what was fetched is read");
            }
            ConsumeError::Unreachable(_) => sleep(PAUSE).await,
            error => return Err(error.into()),
        }
        Ok(())
    }

    /// Where each partition ends now.
    async fn ends(&self) -> Result<Vec<u64>, Failure> {
        let begun = Instant::now();
        loop {
            match self.client.list_offsets(&self.topic, &[], OffsetSpec::End).await {
                Ok(listed) => {
                    let mut ends = vec![0; self.arguments.partitions as usize];
                    for listed in listed {
                        ends[listed.partition as usize] = listed.offset.unwrap_or_default();
                    }
                    return Ok(ends);
                }
                Err(error) if begun.elapsed() > self.patience => return Err(error.into()),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    fn object(&self, proof: &Proof, took: Duration) -> Value {
        let mut object = proof.object();
        object.insert("verdict".into(), if proof.holds() { "holds" } else { "violated" }.into());
        object.insert("topic".into(), self.topic.as_str().into());
        object.insert("partitions".into(), self.arguments.partitions.into());
        object.insert("producers".into(), self.arguments.producers.into());
        object.insert("seconds".into(), took.as_secs_f64().into());
        Value::Object(object)
    }
}

/// Waits for deliveries in the order of sending.
async fn settle(mut deliveries: mpsc::Receiver<Result<Delivery, Fate>>, shown: &Shown) -> Vec<Fate> {
    let mut fates = Vec::new();
    while let Some(delivery) = deliveries.recv().await {
        let fate = match delivery {
            Err(fate) => fate,
            Ok(delivery) => match delivery.await {
                Ok(delivered) => {
                    shown.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let offset = delivered.offset.expect("an acknowledgement names the offset");
                    Fate::Acknowledged(delivered.partition, offset)
                }
                Err(error) if error.may_be_written() => Fate::Unknown,
                Err(_) => Fate::NotWritten,
            },
        };
        fates.push(fate);
    }
    fates
}

fn unreadable(fault: &str) -> Failure {
    Failure::local(LocalCode::ProofViolated, format!("a batch cannot be read: {fault}"))
}

/// The proof for people.
fn text(proof: &Proof, took: Duration) -> String {
    let mut text = format!(
        "{} acknowledged in {:.1} s; {} read back while it ran, {} once more from the start",
        proof.acknowledged,
        took.as_secs_f64(),
        proof.read,
        proof.read_again,
    );
    if proof.unknown > 0 {
        text += &format!("; {} without an answer, of which {} are there", proof.unknown, proof.unknown_written);
    }
    if proof.not_written > 0 {
        text += &format!("; {} refused, none of them there", proof.not_written - proof.wrongly_refused);
    }
    let violations: Vec<String> = proof.violations().iter().map(|(name, count)| format!("{count} {name}")).collect();
    text + "\n" + &violations.join(", ")
}

fn verdict(proof: &Proof) -> Result<(), Failure> {
    if !proof.holds() {
        let violations = proof.violations();
        let found = violations.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{count} {name}"));
        let message = format!("the proof does not hold: {}", found.collect::<Vec<_>>().join(", "));
        let hint = "stop the broker, keep a copy of its data directory, and see: coulee verify --data-dir DIR";
        return Err(Failure::local(LocalCode::ProofViolated, message).hint(hint));
    }
    if proof.acknowledged == 0 {
        let message = "nothing was acknowledged, so nothing is proved";
        return Err(Failure::local(LocalCode::NotAllAcknowledged, message).exit(crate::failure::Exit::Unavailable));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn a_proof_is_told_with_its_counts_and_a_violation_has_an_exit_code_of_its_own() {
        let proof =
            Proof { acknowledged: 5, read: 6, read_again: 6, unknown: 2, unknown_written: 1, ..Proof::default() };
        let expected = "5 acknowledged in 2.0 s; 6 read back while it ran, 6 once more from the start; \
                        2 without an answer, of which 1 are there\n\
                        0 lost, 0 doubled, 0 out of order, 0 changed, 0 written though refused, 0 damaged";
        assert_eq!(text(&proof, Duration::from_secs(2)), expected);
        assert_eq!(verdict(&proof), Ok(()));
        let violated = verdict(&Proof { lost: 3, out_of_order: 1, ..proof }).unwrap_err();
        assert_eq!(violated.message, "the proof does not hold: 3 lost, 1 out of order");
        assert_eq!((violated.number, violated.exit), (2_018, Exit::Violated));
        let nothing = verdict(&Proof::default()).unwrap_err();
        assert_eq!(nothing.exit, Exit::Unavailable);
    }
}
