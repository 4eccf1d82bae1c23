//! `coulee consume`: owns where to end and what to do about damage; order and checks are the client's.

mod group;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, StdoutLock, Write};

use coulee_client::{Batch, Client, ConsumeError, Consumer, ErrorCode, OffsetSpec, Start};

use crate::arguments::{ConsumeArguments, Lines};
use crate::command::{Context, interrupts, of_topic, stdout};
use crate::failure::{Failure, Stop, corrupt, damage_text};
use crate::record_format::write_json;
use crate::terminal::Terminal;

/// Reads until an end is reached.
pub(crate) async fn run(context: &Context, arguments: ConsumeArguments) -> Result<(), Stop> {
    if let Some(name) = &arguments.group {
        return group::run(context, name, &arguments).await;
    }
    let client = context.connect().await?;
    let ends = match arguments.until_end {
        true => Some(places(&client, &arguments, OffsetSpec::End).await?),
        false => None,
    };
    if let (Some(ends), Start::Offset(offset)) = (&ends, arguments.offset.0) {
        // What begins behind its end would be finished before it began, and nobody would hear that nothing is there.
        check_begin(offset, &places(&client, &arguments, OffsetSpec::Start).await?, ends)?;
    }
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

/// Where each partition begins or ends at this moment.
async fn places(
    client: &Client,
    arguments: &ConsumeArguments,
    spec: OffsetSpec,
) -> Result<BTreeMap<u32, u64>, Failure> {
    match client.list_offsets(&arguments.topic, &arguments.partition, spec).await {
        Ok(listed) => Ok(listed.iter().map(|listed| (listed.partition, listed.offset.unwrap_or_default())).collect()),
        Err(error) => Err(of_topic(client, &arguments.topic, error).await),
    }
}

/// Refuses an offset that a partition does not have. Its end is one that it has: nothing is to be read there yet.
fn check_begin(offset: u64, starts: &BTreeMap<u32, u64>, ends: &BTreeMap<u32, u64>) -> Result<(), Failure> {
    for (partition, high_watermark) in ends.iter().map(|(partition, end)| (*partition, *end)) {
        let log_start = starts.get(&partition).copied().unwrap_or_default();
        if offset < log_start || offset > high_watermark {
            return Err(ConsumeError::OutOfRange { partition, position: offset, log_start, high_watermark }.into());
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_one_of_the_partitions_does_not_have_is_refused_with_the_range_of_that_one() {
        let (starts, ends) = (BTreeMap::from([(0, 0), (3, 10)]), BTreeMap::from([(0, 30), (3, 20)]));
        for offset in [10, 15, 20] {
            assert_eq!(check_begin(offset, &starts, &ends), Ok(()), "{offset}");
        }
        for offset in [9, 21] {
            let failure = check_begin(offset, &starts, &ends).unwrap_err();
            let expected = format!("partition 3 has no offset {offset}, it has 10 to 20");
            assert_eq!((failure.number, failure.message), (1, expected));
        }
    }
}
