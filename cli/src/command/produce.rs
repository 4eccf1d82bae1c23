//! `coulee produce`: owns the way from lines to records; batching, repeating and order are the client's.
//!
//! A thread reads lines, since reading may block; the runtime's thread sends them and looks at deliveries in order.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use coulee_client::{Acks, Producer, Record, SendError};
use coulee_protocol::limits::BATCH_BYTES_MAX;
use serde_json::Value;
use tokio::sync::{Notify, mpsc};

use crate::arguments::{ProduceArguments, Summary};
use crate::code::LocalCode;
use crate::command::ledger::{Ledger, PENDING_MAX, Sent, progress, settle};
use crate::command::{Context, interrupts, of_topic, print, stdout};
use crate::failure::{Failure, Stop, unreadable};
use crate::key_field::KeyField;
use crate::lines::{Line, Lines};

/// What one read takes in.
const READ_BYTES: usize = 256 << 10;
/// Lines handed over at once, while more are at hand.
const LINES_TOGETHER: usize = 1_024;
/// Hand-overs that wait.
const GROUPS_WAITING: usize = 8;

/// What the reading thread hands over.
type Group = io::Result<Vec<Line>>;

/// Sends every line.
pub(crate) async fn run(context: &Context, arguments: ProduceArguments) -> Result<(), Stop> {
    let name = arguments.file.as_deref().unwrap_or("standard input");
    let input: Box<dyn Read + Send> = match &arguments.file {
        Some(path) => Box::new(File::open(path).map_err(|error| unreadable(path, &error))?),
        None => Box::new(io::stdin()),
    };
    let key_field = arguments.key_field.as_deref().map(KeyField::new);
    let began = Instant::now();
    let done = match arguments.acks {
        _ if arguments.dry_run => "sound",
        0 => "sent",
        _ => "acknowledged",
    };
    let ledger = RefCell::new(Ledger::new("line", done));
    let groups = read(input).map_err(|error| unreadable(name, &error))?;
    let end = if arguments.dry_run {
        check(groups, key_field.as_ref(), &ledger).await
    } else {
        send(context, &arguments, groups, key_field.as_ref(), &ledger).await?
    };
    let ledger = ledger.into_inner();
    if arguments.output == Some(Summary::Json) {
        let object = Value::Object(ledger.object(began.elapsed()));
        print(|out| io::Write::write_fmt(out, format_args!("{object}\n")))?;
    }
    if let End::Unreadable(error) = &end {
        return Err(unreadable(name, error).note(ledger.text(began.elapsed())).into());
    }
    ledger.verdict(matches!(end, End::Interrupted))?;
    if arguments.dry_run {
        context.terminal.say("every line can be sent");
        return Ok(());
    }
    context.terminal.say(&ledger.text(began.elapsed()));
    context.terminal.next(&format!("coulee consume {} --until-end", arguments.topic));
    Ok(())
}

/// Why no more lines come.
#[derive(Debug)]
enum End {
    /// There are no more.
    Input,
    /// The input can't be read any further.
    Unreadable(io::Error),
    /// A signal.
    Interrupted,
    /// A line was not delivered: the ones behind it would not be either.
    Broken,
}

/// Starts the thread that reads.
fn read(input: Box<dyn Read + Send>) -> io::Result<mpsc::Receiver<Group>> {
    let (sender, receiver) = mpsc::channel(GROUPS_WAITING);
    thread::Builder::new().name("input".to_owned()).spawn(move || {
        let mut lines = Lines::new(BufReader::with_capacity(READ_BYTES, input), BATCH_BYTES_MAX);
        loop {
            let group = group(&mut lines);
            let is_last = !matches!(&group, Ok(lines) if !lines.is_empty());
            // An error here means that nobody wants more.
            if sender.blocking_send(group).is_err() || is_last {
                break;
            }
        }
    })?;
    Ok(receiver)
}

/// The lines that are at hand, at least one; none at the end.
fn group(lines: &mut Lines<BufReader<Box<dyn Read + Send>>>) -> Group {
    let mut group = Vec::new();
    let mut bytes = 0;
    while let Some(line) = lines.next()? {
        bytes += line.content.as_ref().map_or(0, Vec::len);
        group.push(line);
        let is_drained = lines.is_drained(|input| !input.buffer().is_empty());
        if is_drained || group.len() == LINES_TOGETHER || bytes >= READ_BYTES {
            break;
        }
    }
    Ok(group)
}

/// Looks at every line and sends none.
async fn check(mut groups: mpsc::Receiver<Group>, key_field: Option<&KeyField>, ledger: &RefCell<Ledger>) -> End {
    while let Some(group) = groups.recv().await {
        let lines = match group {
            Ok(lines) => lines,
            Err(error) => return End::Unreadable(error),
        };
        for line in lines {
            let mut ledger = ledger.borrow_mut();
            match parts(&line, key_field) {
                Ok(_) => ledger.accept(),
                Err(reason) => ledger.reject(line.number, &reason),
            }
        }
    }
    End::Input
}

async fn send(
    context: &Context,
    arguments: &ProduceArguments,
    groups: mpsc::Receiver<Group>,
    key_field: Option<&KeyField>,
    ledger: &RefCell<Ledger>,
) -> Result<End, Stop> {
    let client = context.connect().await?;
    let acks = if arguments.acks == 0 { Acks::None } else { Acks::Durable };
    let builder = client.producer(&arguments.topic).acks(acks).delivery_timeout(context.shared.timeout);
    let producer = match builder.build().await {
        Ok(producer) => producer,
        Err(error) => return Err(of_topic(&client, &arguments.topic, error).await.into()),
    };
    let (sender, deliveries) = mpsc::channel(PENDING_MAX);
    let (broken, interrupted) = (Notify::new(), interrupts());
    let bar = progress(&context.terminal, None);
    let told = (arguments.output == Some(Summary::Jsonl)).then(stdout);
    let feeding = Feeding { producer, key_field, ledger, sender };
    let feeding = feeding.run(groups, &broken, interrupted);
    let (end, settled) = tokio::join!(feeding, settle(ledger, deliveries, &broken, &bar, told));
    bar.finish_and_clear();
    settled?;
    Ok(end?)
}

/// What lines go through on their way out.
#[derive(Debug)]
struct Feeding<'a> {
    producer: Producer,
    key_field: Option<&'a KeyField>,
    ledger: &'a RefCell<Ledger>,
    sender: mpsc::Sender<Sent>,
}

impl Feeding<'_> {
    /// Feeds until there is no more to feed, or no sense in it, and waits until all is decided.
    async fn run(
        self,
        mut groups: mpsc::Receiver<Group>,
        broken: &Notify,
        interrupted: Arc<Notify>,
    ) -> Result<End, Failure> {
        let end = loop {
            let group = tokio::select! {
                biased;
                () = interrupted.notified() => break End::Interrupted,
                () = broken.notified() => break End::Broken,
                group = groups.recv() => group,
            };
            match group {
                None => break End::Input,
                Some(Err(error)) => break End::Unreadable(error),
                Some(Ok(lines)) => {
                    for line in lines {
                        self.feed(&line).await?;
                    }
                }
            }
        };
        self.producer.close().await;
        Ok(end)
    }

    async fn feed(&self, line: &Line) -> Result<(), Failure> {
        let (key, value) = match parts(line, self.key_field) {
            Ok(parts) => parts,
            Err(reason) => {
                self.ledger.borrow_mut().reject(line.number, &reason);
                return Ok(());
            }
        };
        let record = Record::new(value);
        let record = key.as_deref().map_or(record, |key| record.key(key));
        match self.producer.send(record).await {
            Ok(delivery) => {
                let sent = Sent { number: line.number, event_id: None, delivery };
                let is_taken = self.sender.send(sent).await.is_ok();
                assert!(is_taken, "deliveries are looked at until the last sender is gone");
            }
            Err(SendError::TooLarge { bytes, max }) => {
                let reason = format!("record needs {bytes} bytes, max.message.bytes of the topic is {max}");
                self.ledger.borrow_mut().reject(line.number, &reason);
            }
            Err(error) if error.code().is_some() => {
                self.ledger.borrow_mut().reject(line.number, &error.to_string());
            }
            Err(error) => return Err(Failure::local(LocalCode::Interrupted, error.to_string())),
        }
        Ok(())
    }
}

/// Key and value of a line, or what is wrong with it.
fn parts<'a>(line: &'a Line, key_field: Option<&KeyField>) -> Result<(Option<Vec<u8>>, &'a [u8]), String> {
    let value = match &line.content {
        Ok(value) => value.as_slice(),
        Err(long) => return Err(format!("{} bytes, a record holds at most {BATCH_BYTES_MAX}", long.bytes)),
    };
    let key = key_field.map(|field| field.key(value)).transpose().map_err(|error| error.to_string())?;
    Ok((key, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::runtime;

    #[test]
    fn a_dry_run_finds_every_bad_line() {
        let input = b"{\"u\":1}\nno json\n{\"u\":{}}\n{\"u\":\"x\"}";
        let ledger = RefCell::new(Ledger::new("line", "sound"));
        let end = runtime().unwrap().block_on(async {
            let groups = read(Box::new(&input[..])).unwrap();
            check(groups, Some(&KeyField::new("u")), &ledger).await
        });
        assert!(matches!(end, End::Input));
        let failure = ledger.into_inner().verdict(false).unwrap_err();
        assert_eq!(failure.message, "2 of 4 lines were sound");
        assert_eq!(
            failure.notes,
            ["line 2: no JSON from column 2 on", "line 3: field \"u\" is no text, number or boolean"]
        );
    }

    #[test]
    fn an_input_that_fails_halfway_says_so() {
        struct Failing(bool);
        impl Read for Failing {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    return Err(io::Error::other("the disk is gone"));
                }
                buffer[..4].copy_from_slice(b"one\n");
                Ok(4)
            }
        }
        let ledger = RefCell::new(Ledger::new("line", "sound"));
        let end =
            runtime().unwrap().block_on(async { check(read(Box::new(Failing(false))).unwrap(), None, &ledger).await });
        assert!(matches!(end, End::Unreadable(_)), "{end:?}");
    }
}
