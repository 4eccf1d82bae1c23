//! `coulee consume`: owns where to end and what to do about damage; order and checks are the client's.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, StdoutLock, Write};

use coulee_client::{Batch, Client, ConsumeError, Consumer, ErrorCode, OffsetSpec};

use crate::arguments::{ConsumeArguments, Lines};
use crate::command::{Context, interrupts, of_topic, stdout};
use crate::failure::{Failure, Stop, corrupt, damage_text};
use crate::record_format::write_json;
use crate::terminal::Terminal;

/// Reads until an end is reached.
pub(crate) async fn run(context: &Context, arguments: ConsumeArguments) -> Result<(), Stop> {
    let client = context.connect().await?;
    let ends = match arguments.until_end {
        true => Some(ends(&client, &arguments).await?),
        false => None,
    };
    let builder = client.consumer(&arguments.topic).start(arguments.offset.0);
    let consumer = match builder.partitions(arguments.partition.iter().copied()).build().await {
        Ok(consumer) => consumer,
        Err(error) => return Err(of_topic(&client, &arguments.topic, error).await.into()),
    };
    let mut reading = Reading {
        terminal: context.terminal,
        open: consumer.partitions().collect(),
        left: arguments.num.unwrap_or(u64::MAX),
        out: stdout(),
        trouble: None,
        consumer,
        ends,
        arguments,
    };
    reading.run().await?;
    reading.out.flush()?;
    let topic = &reading.arguments.topic;
    match reading.trouble {
        Some(failure) => Err(failure.into()),
        None => {
            context.terminal.next(&format!("coulee topic describe {topic}"));
            Ok(())
        }
    }
}

/// Where each partition ends at this moment.
async fn ends(client: &Client, arguments: &ConsumeArguments) -> Result<BTreeMap<u32, u64>, Failure> {
    match client.list_offsets(&arguments.topic, &arguments.partition, OffsetSpec::End).await {
        Ok(listed) => Ok(listed.iter().map(|listed| (listed.partition, listed.offset.unwrap_or_default())).collect()),
        Err(error) => Err(of_topic(client, &arguments.topic, error).await),
    }
}

/// A run and how far it is.
#[derive(Debug)]
struct Reading {
    arguments: ConsumeArguments,
    terminal: Terminal,
    consumer: Consumer,
    /// With `--until-end`, the end of each partition.
    ends: Option<BTreeMap<u32, u64>>,
    /// Partitions that are still read.
    open: BTreeSet<u32>,
    /// Records that may still be printed.
    left: u64,
    out: BufWriter<StdoutLock<'static>>,
    /// Why the command fails in the end, though it goes on.
    trouble: Option<Failure>,
}

impl Reading {
    async fn run(&mut self) -> Result<(), Stop> {
        let interrupted = interrupts();
        self.close_finished();
        while self.left > 0 && !self.open.is_empty() {
            let polled = tokio::select! {
                biased;
                () = interrupted.notified() => return Ok(()),
                polled = self.consumer.poll() => polled,
            };
            match polled {
                Ok(Some(batch)) => self.print(batch)?,
                Ok(None) => {}
                Err(error) => self.fail(error)?,
            }
            self.out.flush()?;
            self.close_finished();
        }
        Ok(())
    }

    /// A partition whose end is reached is read no further.
    fn close_finished(&mut self) {
        let Some(ends) = &self.ends else { return };
        let position = |partition: &u32| self.consumer.position(*partition).unwrap_or(u64::MAX);
        let is_finished = |partition: &u32| ends.get(partition).is_none_or(|end| position(partition) >= *end);
        let (finished, open): (BTreeSet<u32>, BTreeSet<u32>) = self.open.iter().partition(|at| is_finished(at));
        self.open = open;
        finished.into_iter().for_each(|partition| self.consumer.pause(partition).expect("open partitions are read"));
    }

    fn close(&mut self, partition: u32) {
        self.open.remove(&partition);
        self.consumer.pause(partition).expect("open partitions are read");
    }

    fn print(&mut self, mut batch: Batch) -> Result<(), Stop> {
        let (partition, first) = (batch.partition(), batch.first_offset());
        // Fetched before its partition was closed.
        if !self.open.contains(&partition) {
            return Ok(());
        }
        let end = self.ends.as_ref().and_then(|ends| ends.get(&partition)).copied().unwrap_or(u64::MAX);
        let records = match batch.records() {
            Ok(records) => records,
            Err(fault) => {
                self.note(corrupt(partition, first, &fault));
                if !self.arguments.skip_damaged {
                    self.close(partition);
                }
                return Ok(());
            }
        };
        let ConsumeArguments { topic, format, output, .. } = &self.arguments;
        for record in records.take_while(|record| record.offset < end) {
            if self.left == 0 {
                break;
            }
            match output {
                Some(Lines::Jsonl) => write_json(topic, &record, &mut self.out)?,
                None => format.write(topic, &record, &mut self.out)?,
            }
            self.left -= 1;
        }
        Ok(())
    }

    /// A fault of one partition ends that partition, or is stepped over; a fault of all of them ends the command.
    fn fail(&mut self, error: ConsumeError) -> Result<(), Stop> {
        match error {
            ConsumeError::Damaged { partition, from, to } => {
                let is_skipped = self.arguments.skip_damaged;
                let what = if is_skipped { "stepped over" } else { "the partition is read no further" };
                self.out.flush()?;
                self.terminal.warn(&format!("{}; {what}", damage_text(partition, from, to)));
                self.note(ConsumeError::Damaged { partition, from, to }.into());
                if is_skipped {
                    self.consumer.skip_damaged(partition).expect("what was fetched is read");
                } else {
                    self.close(partition);
                }
                Ok(())
            }
            ConsumeError::Corrupt { partition, position, fault } => {
                self.note(corrupt(partition, position, &fault));
                self.close(partition);
                Ok(())
            }
            error => Err(Failure::from(error).into()),
        }
    }

    /// The first trouble is the one that the command ends with; the others are told as they come.
    fn note(&mut self, failure: Failure) {
        match &self.trouble {
            None => {
                let is_skipped = self.arguments.skip_damaged && failure.number == ErrorCode::RangeDamaged.code();
                let hint = "what is damaged is lost on this broker; everything else was read";
                self.trouble = Some(if is_skipped { failure.hint(hint) } else { failure });
            }
            Some(_) if failure.number != ErrorCode::RangeDamaged.code() => self.terminal.warn(&failure.message),
            Some(_) => {}
        }
    }
}
