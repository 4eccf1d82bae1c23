//! NATS JetStream: a log is a stream of one subject, a record a message published with an inbox for its ack; decides
//! nothing.

use super::drive::{Link, Taken, Talk};
use super::peer::{Log, Protocol};
use super::server::{self, Server};
use super::values::Values;
use crate::fault::Fault;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use text::{Message, Said, publish};

mod text;

/// Where acks and answers of the API go; each connection has its own account of subscriptions, but not of subjects.
const INBOX: &str = "_INBOX.coulee-loadgen";

/// When a server syncs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    Always,
    Default,
    /// The server was named by its address.
    AsConfigured,
}

impl Sync {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Always => "sync always",
            Self::Default => "default",
            Self::AsConfigured => "by address",
        }
    }

    pub(super) const fn settings(self) -> &'static str {
        match self {
            Self::Always => "file storage, 1 replica, sync_interval always",
            Self::Default => "file storage, 1 replica, sync_interval 2m (the default)",
            Self::AsConfigured => "file storage, 1 replica, as it is configured",
        }
    }
}

/// `sync_interval` came with 2.10.
pub(super) fn knows_sync_always(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(2), Some(10))
}

/// A server, spoken to by request and answer.
#[derive(Debug)]
pub(super) struct Nats {
    address: SocketAddr,
    wire: Wire,
    info: Value,
    links: u64,
}

/// Starts a server with an empty directory.
pub(super) fn start(program: &Path, directory: &Path, sync: Sync) -> Result<(Server, Nats), Fault> {
    let address = server::free_address()?;
    let name = format!("coulee-loadgen-{}-{}", std::process::id(), address.port());
    let interval = if sync == Sync::Always { "sync_interval: always" } else { "" };
    // Paths in JSON quotes: the format of its configuration takes them.
    let store = json!(directory.join("store").to_string_lossy());
    let config =
        format!("listen: \"{address}\"\nserver_name: {name}\njetstream {{ store_dir: {store}\n{interval} }}\n");
    let path = directory.join("nats.conf");
    fs::write(&path, config).map_err(Fault::machine("the configuration of nats"))?;
    let mut command = Command::new(program);
    command.arg("-c").arg(path);
    let mut server = Server::start(&mut command, address, &directory.join("server.log"))?;
    let nats = server.wait(|address| {
        let mut nats = Nats::connect(address)?;
        nats.api("INFO", &json!({}))?;
        if nats.info["server_name"] == name.as_str() {
            Ok(nats)
        } else {
            Err(fault("another server answers at this port"))
        }
    })?;
    Ok((server, nats))
}

fn fault(detail: impl ToString) -> Fault {
    Fault::Peer { peer: "nats", detail: detail.to_string() }
}

fn malformed(_: text::Malformed) -> Fault {
    fault("something said that is no NATS")
}

/// A blocking connection.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects and says who it is; the server's INFO.
    fn connect(address: SocketAddr) -> Result<(Self, Value), Fault> {
        let stream = TcpStream::connect(address).map_err(Fault::machine("connect to nats"))?;
        let mut wire = Self { stream, buffer: Vec::new() };
        let info = wire.wait(|said| match said {
            Said::Info(info) => serde_json::from_slice::<Value>(info).map(Some).map_err(fault),
            _ => Ok(None),
        })?;
        let connect = json!({
            "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "lang": "rust",
            "name": "coulee-loadgen", "version": env!("CARGO_PKG_VERSION"), "protocol": 1,
        });
        wire.send(format!("CONNECT {connect}\r\nPING\r\n").as_bytes())?;
        wire.wait(|said| Ok((said == Said::Pong).then_some(())))?;
        Ok((wire, info))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(bytes).map_err(Fault::machine("a request to nats"))
    }

    /// Reads until `take` has what it wants.
    fn wait<T>(&mut self, mut take: impl FnMut(Said<'_>) -> Result<Option<T>, Fault>) -> Result<T, Fault> {
        let mut room = [0; 16 << 10];
        loop {
            while let Some((said, length)) = text::next(&self.buffer).map_err(malformed)? {
                if let Said::Error(error) = said {
                    return Err(fault(String::from_utf8_lossy(error)));
                }
                let (is_ping, taken) = (said == Said::Ping, take(said)?);
                self.buffer.drain(..length);
                if is_ping {
                    self.send(b"PONG\r\n")?;
                }
                if let Some(taken) = taken {
                    return Ok(taken);
                }
            }
            let count = self.stream.read(&mut room).map_err(Fault::machine("an answer of nats"))?;
            if count == 0 {
                return Err(fault("it has closed the connection"));
            }
            self.buffer.extend_from_slice(&room[..count]);
        }
    }
}

impl Nats {
    pub(super) fn connect(address: SocketAddr) -> Result<Self, Fault> {
        let (mut wire, info) = Wire::connect(address)?;
        wire.send(format!("SUB {INBOX}.{}.api 1\r\n", std::process::id()).as_bytes())?;
        Ok(Self { address, wire, info, links: 0 })
    }

    pub(super) fn version(&self) -> &str {
        self.info["version"].as_str().unwrap_or("unknown")
    }

    /// Asks the API of JetStream.
    fn api(&mut self, subject: &str, request: &Value) -> Result<Value, Fault> {
        let mut out = Vec::new();
        let inbox = format!("{INBOX}.{}.api", std::process::id());
        let subject = format!("$JS.API.{subject}");
        publish(subject.as_bytes(), Some(inbox.as_bytes()), request.to_string().as_bytes(), &mut out);
        self.wire.send(&out)?;
        self.wire.wait(|said| match said {
            Said::Message(message) => answer(&message).map(Some),
            _ => Ok(None),
        })
    }

    /// A connection of its own with subscriptions, before anything is measured.
    fn link<T: Talk>(&self, subscriptions: &[(&str, u32)], talk: T) -> Result<Link<T>, Fault> {
        let (mut wire, _) = Wire::connect(self.address)?;
        let lines: String = subscriptions.iter().map(|(subject, sid)| format!("SUB {subject} {sid}\r\n")).collect();
        wire.send(format!("{lines}PING\r\n").as_bytes())?;
        wire.wait(|said| Ok((said == Said::Pong).then_some(())))?;
        Link::new(wire.stream, &wire.buffer, talk)
    }

    /// A subject that nothing else uses.
    fn inbox(&mut self) -> String {
        self.links += 1;
        format!("{INBOX}.{}.{}", std::process::id(), self.links)
    }
}

/// An answer of JetStream, where it is no error.
fn answer(message: &Message<'_>) -> Result<Value, Fault> {
    if let Some(status) = message.status() {
        let detail =
            if status == b"503" { "nobody answers: is JetStream on?".into() } else { String::from_utf8_lossy(status) };
        return Err(fault(detail));
    }
    let answer: Value = serde_json::from_slice(message.payload).map_err(fault)?;
    match answer.get("error") {
        Some(error) => Err(fault(error)),
        None => Ok(answer),
    }
}

impl Protocol for Nats {
    type Writer = Writer;
    type Reader = Reader;

    fn create(&mut self, log: &Log) -> Result<(), Fault> {
        let config = json!({
            "name": log.name, "subjects": [log.name], "storage": "file", "retention": "limits", "num_replicas": 1,
            "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "discard": "old",
        });
        self.api(&format!("STREAM.CREATE.{}", log.name), &config).map(|_| ())
    }

    fn writer(&mut self, log: &Log, values: &Values) -> Result<Link<Writer>, Fault> {
        let inbox = self.inbox();
        let prefix = format!("PUB {} {inbox} {}\r\n", log.name, values.bytes()).into_bytes();
        self.link(&[(&inbox, 1)], Writer { prefix, place: log.place, next: 0, acked: 0 })
    }

    fn reader(&mut self, log: &Log) -> Result<Link<Reader>, Fault> {
        let (deliver, inbox) = (self.inbox(), self.inbox());
        let talk = Reader { log: log.clone(), deliver: deliver.clone(), inbox: inbox.clone(), read: 0 };
        self.link(&[(&deliver, 1), (&inbox, 2)], talk)
    }

    fn count(&mut self, log: &Log) -> Result<u64, Fault> {
        let info = self.api(&format!("STREAM.INFO.{}", log.name), &json!({}))?;
        info["state"]["messages"].as_u64().ok_or_else(|| fault("a stream without a count of messages"))
    }

    fn delete(&mut self, log: &Log) -> Result<(), Fault> {
        self.api(&format!("STREAM.DELETE.{}", log.name), &json!({})).map(|_| ())
    }
}

/// Takes everything that was said to a link and answers its pings; `message` says how many records a message is.
fn take_all(
    bytes: &[u8],
    out: &mut Vec<u8>,
    mut message: impl FnMut(&Message<'_>, &mut Vec<u8>) -> Result<u64, Fault>,
) -> Result<Taken, Fault> {
    let mut taken = Taken::default();
    while let Some((said, length)) = text::next(&bytes[taken.bytes..]).map_err(malformed)? {
        taken.bytes += length;
        match said {
            Said::Message(found) => taken.records += message(&found, out)?,
            Said::Ping => out.extend_from_slice(b"PONG\r\n"),
            Said::Error(error) => return Err(fault(String::from_utf8_lossy(error))),
            Said::Info(_) | Said::Pong | Said::Ok => {}
        }
    }
    Ok(taken)
}

/// Message after message, each with the same inbox: acks of one stream come in order.
#[derive(Debug)]
pub(super) struct Writer {
    /// A message up to the record.
    prefix: Vec<u8>,
    place: u64,
    next: u64,
    acked: u64,
}

/// The sequence number in an ack. Most acks are read without a parser: `{"stream":"s","seq":7}`.
fn acked_sequence(message: &Message<'_>) -> Result<u64, Fault> {
    let quick = || {
        let text = std::str::from_utf8(message.payload).ok()?;
        let (head, sequence) = text.strip_suffix('}')?.rsplit_once(",\"seq\":")?;
        if head.starts_with("{\"stream\":\"") { sequence.trim().parse().ok() } else { None }
    };
    if let Some(sequence) = quick() {
        return Ok(sequence);
    }
    let ack = answer(message)?;
    ack["seq"].as_u64().filter(|_| ack["duplicate"] != true).ok_or_else(|| fault(format!("an ack that is none: {ack}")))
}

impl Talk for Writer {
    fn request(&mut self, values: &Values, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        values.write(self.next, out);
        out.extend_from_slice(b"\r\n");
        self.next += 1;
    }

    fn answers(&mut self, _: &Values, bytes: &[u8], out: &mut Vec<u8>) -> Result<Taken, Fault> {
        let Self { place, acked, .. } = self;
        take_all(bytes, out, |message, _| {
            let found = acked_sequence(message)?;
            *acked += 1;
            if found == *acked {
                return Ok(1);
            }
            Err(Fault::Record { partition: *place, what: "the sequence of the next ack", expected: *acked, found })
        })
    }
}

/// A consumer that is pushed to, without acks and with flow control, as the ordered consumer of the clients is.
#[derive(Debug)]
pub(super) struct Reader {
    log: Log,
    deliver: String,
    inbox: String,
    read: u64,
}

/// The stream's sequence in a reply subject: `$JS.ACK.stream.consumer.deliveries.sequence.…`, or with domain and
/// account before the stream.
fn delivered_sequence(reply: &[u8]) -> Option<u64> {
    let words: Vec<&[u8]> = reply.split(|byte| *byte == b'.').collect();
    let at = if words.len() > 9 { 7 } else { 5 };
    std::str::from_utf8(words.get(at)?).ok()?.parse().ok()
}

impl Talk for Reader {
    fn request(&mut self, _: &Values, out: &mut Vec<u8>) {
        let request = json!({"stream_name": self.log.name, "config": {
            "deliver_subject": self.deliver, "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            "flow_control": true, "idle_heartbeat": 10_000_000_000_u64, "mem_storage": true, "num_replicas": 1,
        }});
        let subject = format!("$JS.API.CONSUMER.CREATE.{}", self.log.name);
        publish(subject.as_bytes(), Some(self.inbox.as_bytes()), request.to_string().as_bytes(), out);
    }

    fn answers(&mut self, values: &Values, bytes: &[u8], out: &mut Vec<u8>) -> Result<Taken, Fault> {
        let Self { log, read, .. } = self;
        take_all(bytes, out, |message, out| {
            if message.sid == b"2" {
                return answer(message).map(|_| 0);
            }
            if message.status() == Some(b"100") {
                // A demand to say that all before it was read, or a heartbeat that repeats one.
                if let Some(reply) = message.reply.or_else(|| message.header("Nats-Consumer-Stalled")) {
                    publish(reply, None, b"", out);
                }
                return Ok(0);
            }
            let sequence =
                message.reply.and_then(delivered_sequence).ok_or_else(|| fault("a message without a place"))?;
            if sequence != *read + 1 {
                let (what, expected) = ("the sequence of the next message", *read + 1);
                return Err(Fault::Record { partition: log.place, what, expected, found: sequence });
            }
            values.check(log.place, *read, message.payload)?;
            *read += 1;
            Ok(1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(reply: &str, payload: &[u8]) -> Vec<u8> {
        let mut out = format!("MSG a 1 {reply} {}\r\n", payload.len()).into_bytes();
        out.extend_from_slice(payload);
        out.extend_from_slice(b"\r\n");
        out
    }

    fn writer() -> Writer {
        Writer { prefix: b"PUB s i 16\r\n".to_vec(), place: 0, next: 0, acked: 0 }
    }

    #[test]
    fn acks_are_counted_by_their_sequence_and_refusals_end_the_row() {
        let (values, mut out) = (Values::new(16), Vec::new());
        let acks =
            [said("", br#"{"stream":"s","seq":1}"#), said("", br#"{"stream":"s", "seq":2, "domain":"d"}"#)].concat();
        for split in 0..=acks.len() {
            let mut writer = writer();
            let first = writer.answers(&values, &acks[..split], &mut out).unwrap();
            let rest = writer.answers(&values, &acks[first.bytes..], &mut out).unwrap();
            assert_eq!((first.records + rest.records, first.bytes + rest.bytes), (2, acks.len()), "split at {split}");
        }
        let refused =
            |payload: &[u8]| writer().answers(&values, &said("", payload), &mut Vec::new()).unwrap_err().to_string();
        assert!(refused(br#"{"stream":"s","seq":2}"#).contains("is 2, expected 1"));
        assert!(refused(br#"{"error":{"code":503,"description":"no space"},"stream":"s","seq":0}"#).contains("503"));
        assert!(refused(br#"{"stream":"s","seq":1,"duplicate":true}"#).contains("an ack that is none"));
        let nobody = b"HMSG a 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        assert!(writer().answers(&values, nobody, &mut out).unwrap_err().to_string().contains("JetStream"));
        assert!(writer().answers(&values, b"-ERR 'Maximum Payload'\r\n", &mut out).is_err());
    }

    #[test]
    fn messages_are_checked_and_flow_control_is_answered() {
        let (values, mut out, mut value) = (Values::new(16), Vec::new(), Vec::new());
        let log = Log { name: "s".to_owned(), place: 0, records: 2 };
        let reader = || Reader { log: log.clone(), deliver: "d".to_owned(), inbox: "i".to_owned(), read: 0 };
        values.write(0, &mut value);
        let first = said("$JS.ACK.s.c.1.1.1.99.0", &value);
        let control = b"HMSG d 1 fc.1 36 36\r\nNATS/1.0 100 FlowControl Request\r\n\r\n\r\n";
        let mut one = reader();
        let taken = one.answers(&values, &[&first[..], control, b"PING\r\n"].concat(), &mut out).unwrap();
        assert_eq!((taken.records, String::from_utf8_lossy(&out).as_ref()), (1, "PUB fc.1 0\r\n\r\nPONG\r\n"));
        let hole = one.answers(&values, &said("$JS.ACK.s.c.1.3.2.99.0", &value), &mut out).unwrap_err();
        assert!(hole.to_string().contains("is 3, expected 2"), "{hole}");
        assert!(reader().answers(&values, &said("$JS.ACK.s.c.1.1.1.99.0", b"short"), &mut out).is_err());
        assert_eq!(delivered_sequence(b"$JS.ACK.d.h.s.c.1.7.1.99.0.x"), Some(7));
    }

    #[test]
    fn sync_always_is_known_since_2_10() {
        assert_eq!(["2.9.10", "2.10.0", "3.0.0", "x"].map(knows_sync_always), [false, true, true, false]);
    }
}
