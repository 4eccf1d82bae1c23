//! `coulee consume --group`: owns when offsets are committed; who reads what is the group's to decide.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use coulee_client::{GroupConsumer, GroupError, OffsetReset, Rebalance, Start};

use crate::arguments::{ConsumeArguments, Lines};
use crate::command::{Context, interrupts, stdout};
use crate::failure::{Failure, Stop, corrupt};
use crate::record_format::write_json;

/// How often what was printed is committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Reads as a member of a group until enough was printed or somebody interrupts; commits what was printed, and leaves.
pub(super) async fn run(context: &Context, group: &str, arguments: &ConsumeArguments) -> Result<(), Stop> {
    let client = context.connect().await?;
    // What does not exist is said at once: a group would wait for it.
    if let Err(error) = client.topic(&arguments.topic).await {
        return Err(crate::command::of_topic(&client, &arguments.topic, error).await.into());
    }
    let reset = match arguments.offset.0 {
        Start::End => OffsetReset::Latest,
        _ => OffsetReset::Earliest,
    };
    let terminal = context.terminal;
    let consumer = client
        .group(group)
        .topic(&arguments.topic)
        .client_id("coulee-cli")
        .offset_reset(reset)
        .auto_commit(None)
        .on_rebalance(move |rebalance| terminal.say(&told(rebalance)))
        .join();
    let mut reading = Reading { consumer, printed: BTreeMap::new(), left: arguments.num.unwrap_or(u64::MAX) };
    let read = reading.run(arguments).await;
    let committed = reading.commit().await;
    reading.consumer.close().await.map_err(Failure::from)?;
    read?;
    committed?;
    context.terminal.next(&format!("coulee group describe {group}"));
    Ok(())
}

/// What a rebalance has changed, for people.
fn told(rebalance: &Rebalance) -> String {
    let list = |places: &[(String, u32)]| {
        let partitions: Vec<String> = places.iter().map(|(_, partition)| partition.to_string()).collect();
        partitions.join(", ")
    };
    match rebalance {
        Rebalance::Assigned(places) => format!("reads partitions {} from now on", list(places)),
        Rebalance::Revoked(places) => format!("reads partitions {} no longer", list(places)),
        Rebalance::Lost(places) => format!("has lost partitions {} to others", list(places)),
    }
}

/// A member and how far it is.
#[derive(Debug)]
struct Reading {
    consumer: GroupConsumer,
    /// Behind the last record that was printed of each partition, and not committed.
    printed: BTreeMap<u32, u64>,
    /// Records that may still be printed.
    left: u64,
}

impl Reading {
    async fn run(&mut self, arguments: &ConsumeArguments) -> Result<(), Stop> {
        let (interrupted, mut out) = (interrupts(), stdout());
        let mut commit_at = Instant::now() + COMMIT_INTERVAL;
        while self.left > 0 {
            let polled = tokio::select! {
                biased;
                () = interrupted.notified() => break,
                polled = self.consumer.poll() => polled.map_err(Failure::from)?,
            };
            if let Some(mut polled) = polled {
                let (partition, first) = (polled.batch.partition(), polled.batch.first_offset());
                let records = polled.batch.records().map_err(|fault| corrupt(partition, first, &fault))?;
                for record in records.take(usize::try_from(self.left).unwrap_or(usize::MAX)) {
                    match arguments.output {
                        Some(Lines::Jsonl) => write_json(&polled.topic, &record, &mut out)?,
                        None => arguments.format.write(&polled.topic, &record, &mut out)?,
                    }
                    self.printed.insert(partition, record.offset + 1);
                    self.left -= 1;
                }
                out.flush()?;
            }
            if Instant::now() >= commit_at {
                commit_at = Instant::now() + COMMIT_INTERVAL;
                self.commit().await?;
            }
        }
        Ok(())
    }

    /// Commits what was printed of what it still reads; what went to others they have from where it was committed.
    async fn commit(&mut self) -> Result<(), Failure> {
        let assigned = self.consumer.assignment();
        let topic = assigned.first().map(|(topic, _)| topic.clone()).unwrap_or_default();
        self.printed.retain(|partition, _| assigned.iter().any(|(_, own)| own == partition));
        let offsets: Vec<(&str, u32, u64)> =
            self.printed.iter().map(|(partition, offset)| (&*topic, *partition, *offset)).collect();
        if offsets.is_empty() {
            return Ok(());
        }
        match self.consumer.commit_offsets(&offsets).await {
            Ok(()) => self.printed.clear(),
            // The group rebalances: the next commit finds it settled.
            Err(GroupError::Refused(refusal)) if refusal.code().is_some_and(is_of_rebalance) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn is_of_rebalance(code: coulee_client::ErrorCode) -> bool {
    use coulee_client::ErrorCode as Code;
    matches!(code, Code::RebalanceInProgress | Code::IllegalGeneration | Code::UnknownMemberId)
}
