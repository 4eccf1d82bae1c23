//! Redis Streams: a log is a stream, a record an entry of one field, appended by a pipelined XADD; decides nothing.

use super::drive::{Link, Taken, Talk};
use super::peer::{Log, Protocol};
use super::server::{self, Server};
use super::values::Values;
use crate::fault::Fault;
use resp::{Item, Items, command};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

mod resp;

/// Entries in one answer to XRANGE.
const ENTRIES: u64 = 1_000;
/// What a started server is told beside the mode of its syncs: a log, no snapshot, no rewriting of it meanwhile.
pub(super) const SETTINGS: &str = "appendonly yes, save \"\", auto-aof-rewrite-percentage 0";

/// A server, spoken to by command and reply.
#[derive(Debug)]
pub(super) struct Redis {
    address: SocketAddr,
    stream: TcpStream,
}

/// Starts a server with an empty directory.
pub(super) fn start(program: &Path, directory: &Path, appendfsync: &str) -> Result<(Server, Redis), Fault> {
    let address = server::free_address()?;
    let mut command = Command::new(program);
    command.args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--appendonly", "yes"]);
    command.args(["--appendfsync", appendfsync, "--save", "", "--auto-aof-rewrite-percentage", "0"]);
    command.arg("--dir").arg(directory);
    let mut server = Server::start(&mut command, address, &directory.join("server.log"))?;
    let process = format!("process_id:{}", server.id());
    let redis = server.wait(|address| {
        let mut redis = Redis::connect(address)?;
        let info = redis.text(&["INFO", "server"])?;
        if info.contains(&process) { Ok(redis) } else { Err(fault("another server answers at this port")) }
    })?;
    Ok((server, redis))
}

fn fault(detail: impl ToString) -> Fault {
    Fault::Peer { peer: "redis", detail: detail.to_string() }
}

fn malformed(_: resp::Malformed) -> Fault {
    fault("a reply that is no RESP")
}

/// The error that an item is.
fn refused(error: &[u8]) -> Fault {
    fault(String::from_utf8_lossy(error))
}

impl Redis {
    pub(super) fn connect(address: SocketAddr) -> Result<Self, Fault> {
        let stream = TcpStream::connect(address).map_err(Fault::machine("connect to redis"))?;
        Ok(Self { address, stream })
    }

    /// Calls and waits for the last item of the reply, as text: enough for replies of one item and for CONFIG GET.
    fn text(&mut self, words: &[&str]) -> Result<String, Fault> {
        let (mut out, mut reply, mut room) = (Vec::new(), Vec::new(), [0; 4_096]);
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        command(&words, &mut out);
        self.stream.write_all(&out).map_err(Fault::machine("a call of redis"))?;
        loop {
            let count = self.stream.read(&mut room).map_err(Fault::machine("a reply of redis"))?;
            if count == 0 {
                return Err(fault("it has closed the connection"));
            }
            reply.extend_from_slice(&room[..count]);
            if let Some(text) = last_item(&reply)? {
                return Ok(text);
            }
        }
    }

    /// Its version, and how it keeps its log: the value of appendfsync, or `None` where it keeps none.
    pub(super) fn describe(&mut self) -> Result<(String, Option<String>), Fault> {
        let info = self.text(&["INFO", "server"])?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
        let keeps = self.text(&["CONFIG", "GET", "appendonly"])? == "yes";
        let appendfsync = self.text(&["CONFIG", "GET", "appendfsync"])?;
        Ok((version.trim().to_owned(), keeps.then_some(appendfsync)))
    }

    fn link<T: Talk>(&self, talk: T) -> Result<Link<T>, Fault> {
        Link::new(TcpStream::connect(self.address).map_err(Fault::machine("connect to redis"))?, &[], talk)
    }
}

/// The last item of a whole reply; `None` where it has not come whole.
fn last_item(reply: &[u8]) -> Result<Option<String>, Fault> {
    let mut items = Items::new(reply);
    let (mut left, mut text) = (1, String::new());
    while left > 0 {
        left -= 1;
        text = match items.next().map_err(malformed)? {
            None => return Ok(None),
            Some(Item::Error(error)) => return Err(refused(error)),
            Some(Item::Simple(found) | Item::Bulk(Some(found))) => String::from_utf8_lossy(found).into_owned(),
            Some(Item::Integer(number)) => number.to_string(),
            Some(Item::Bulk(None)) => String::new(),
            Some(Item::Array(count)) => {
                left += count;
                String::new()
            }
        };
    }
    Ok(Some(text))
}

impl Protocol for Redis {
    type Writer = Writer;
    type Reader = Reader;

    /// A stream is made by its first entry.
    fn create(&mut self, _: &Log) -> Result<(), Fault> {
        Ok(())
    }

    fn writer(&mut self, log: &Log, values: &Values) -> Result<Link<Writer>, Fault> {
        self.link(Writer::new(&log.name, values))
    }

    fn reader(&mut self, log: &Log) -> Result<Link<Reader>, Fault> {
        self.link(Reader::new(log))
    }

    fn count(&mut self, log: &Log) -> Result<u64, Fault> {
        self.text(&["XLEN", &log.name])?.parse().map_err(fault)
    }

    fn delete(&mut self, log: &Log) -> Result<(), Fault> {
        self.text(&["DEL", &log.name]).map(|_| ())
    }
}

/// XADD after XADD.
#[derive(Debug)]
pub(super) struct Writer {
    /// A command up to the record.
    prefix: Vec<u8>,
    next: u64,
}

impl Writer {
    fn new(key: &str, values: &Values) -> Self {
        let mut prefix = Vec::new();
        command(&[b"XADD", key.as_bytes(), b"*", b"v"], &mut prefix);
        prefix[1] = b'5';
        prefix.extend_from_slice(format!("${}\r\n", values.bytes()).as_bytes());
        Self { prefix, next: 0 }
    }
}

impl Talk for Writer {
    fn request(&mut self, values: &Values, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.prefix);
        values.write(self.next, out);
        out.extend_from_slice(b"\r\n");
        self.next += 1;
    }

    fn answers(&mut self, _: &Values, bytes: &[u8], _: &mut Vec<u8>) -> Result<Taken, Fault> {
        let mut items = Items::new(bytes);
        let mut records = 0;
        loop {
            match items.next().map_err(malformed)? {
                None => return Ok(Taken { bytes: items.taken(), records }),
                Some(Item::Bulk(Some(_))) => records += 1,
                Some(Item::Error(error)) => return Err(refused(error)),
                Some(other) => return Err(fault(format!("{other:?} in place of an entry's id"))),
            }
        }
    }
}

/// XRANGE after XRANGE, each from behind the last entry.
#[derive(Debug)]
pub(super) struct Reader {
    key: String,
    place: u64,
    /// Entries of the answer at hand that have not come.
    left: usize,
    last: Vec<u8>,
    read: u64,
    wanted: u64,
}

impl Reader {
    fn new(log: &Log) -> Self {
        Self { key: log.name.clone(), place: log.place, left: 0, last: Vec::new(), read: 0, wanted: log.records }
    }

    fn ask(&self, out: &mut Vec<u8>) {
        if self.read < self.wanted {
            let from = if self.last.is_empty() { b"-".to_vec() } else { [b"(", &self.last[..]].concat() };
            command(&[b"XRANGE", self.key.as_bytes(), &from, b"+", b"COUNT", ENTRIES.to_string().as_bytes()], out);
        }
    }

    /// One entry, where it has come whole.
    fn entry(&mut self, items: &mut Items<'_>, values: &Values) -> Result<bool, Fault> {
        let mut found: [&[u8]; 5] = [b""; 5];
        for (part, bytes) in found.iter_mut().enumerate() {
            *bytes = match (items.next().map_err(malformed)?, part) {
                (None, _) => return Ok(false),
                (Some(Item::Array(2)), 0 | 2) => b"",
                (Some(Item::Bulk(Some(bytes))), 1 | 3 | 4) => bytes,
                (Some(Item::Error(error)), _) => return Err(refused(error)),
                (Some(other), _) => return Err(fault(format!("{other:?} in an entry"))),
            };
        }
        values.check(self.place, self.read, found[4])?;
        self.last.clear();
        self.last.extend_from_slice(found[1]);
        self.read += 1;
        Ok(true)
    }
}

impl Talk for Reader {
    fn request(&mut self, _: &Values, out: &mut Vec<u8>) {
        self.ask(out);
    }

    fn answers(&mut self, values: &Values, bytes: &[u8], out: &mut Vec<u8>) -> Result<Taken, Fault> {
        let (mut items, before, mut whole) = (Items::new(bytes), self.read, 0);
        loop {
            if self.left > 0 {
                if !self.entry(&mut items, values)? {
                    break;
                }
                self.left -= 1;
                if self.left == 0 {
                    self.ask(out);
                }
            } else {
                match items.next().map_err(malformed)? {
                    None => break,
                    Some(Item::Array(0)) => {
                        let what = "the count of a log's records";
                        let (expected, found) = (self.wanted, self.read);
                        return Err(Fault::Record { partition: self.place, what, expected, found });
                    }
                    Some(Item::Array(count)) => self.left = count,
                    Some(Item::Error(error)) => return Err(refused(error)),
                    Some(other) => return Err(fault(format!("{other:?} in place of entries"))),
                }
            }
            whole = items.taken();
        }
        Ok(Taken { bytes: whole, records: self.read - before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(records: u64) -> Log {
        Log { name: "s".to_owned(), place: 0, records }
    }

    /// What XRANGE answers of these entries.
    fn entries(values: &Values, numbers: std::ops::Range<u64>) -> Vec<u8> {
        let mut out = format!("*{}\r\n", numbers.end - numbers.start).into_bytes();
        for number in numbers {
            out.extend_from_slice(format!("*2\r\n$3\r\n7-{number}\r\n*2\r\n$1\r\nv\r\n$16\r\n").as_bytes());
            values.write(number, &mut out);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    #[test]
    fn a_record_is_a_whole_xadd_and_its_ack_an_id() {
        let values = Values::new(16);
        let (mut writer, mut out, mut plain) = (Writer::new("s", &values), Vec::new(), Vec::new());
        writer.request(&values, &mut out);
        let mut value = Vec::new();
        values.write(0, &mut value);
        command(&[b"XADD", b"s", b"*", b"v", &value], &mut plain);
        assert_eq!(out, plain);
        let taken = writer.answers(&values, b"$3\r\n1-0\r\n$3\r\n1-1\r\n$3\r\n1", &mut out).unwrap();
        assert_eq!(taken, Taken { bytes: 18, records: 2 });
        let refused = writer.answers(&values, b"-OOM no memory\r\n", &mut out).unwrap_err();
        assert_eq!(refused.to_string(), "redis: OOM no memory");
        assert!(writer.answers(&values, b":1\r\n", &mut out).is_err());
    }

    #[test]
    fn entries_are_checked_wherever_an_answer_is_split_and_the_next_ones_asked_for() {
        let values = Values::new(16);
        let answer = entries(&values, 0..3);
        for split in 0..=answer.len() {
            let (mut reader, mut out) = (Reader::new(&log(4)), Vec::new());
            let first = reader.answers(&values, &answer[..split], &mut out).unwrap();
            let rest = reader.answers(&values, &answer[first.bytes..], &mut out).unwrap();
            assert_eq!((first.records + rest.records, first.bytes + rest.bytes), (3, answer.len()), "split at {split}");
            assert!(String::from_utf8_lossy(&out).contains("(7-2"), "the next demand begins behind the last entry");
        }
    }

    #[test]
    fn a_lost_entry_ends_the_replay() {
        let values = Values::new(16);
        let (mut reader, mut out) = (Reader::new(&log(4)), Vec::new());
        let fault = reader.answers(&values, &entries(&values, 1..2), &mut out).unwrap_err();
        assert!(fault.to_string().contains("is 1, expected 0"), "{fault}");
        let fault = Reader::new(&log(4)).answers(&values, b"*0\r\n", &mut out).unwrap_err();
        assert!(fault.to_string().contains("is 0, expected 4"), "{fault}");
    }

    #[test]
    fn the_last_item_of_a_reply_is_taken_once_it_is_whole() {
        let reply = b"*2\r\n$10\r\nappendonly\r\n$3\r\nyes\r\n";
        assert_eq!(last_item(reply).unwrap(), Some("yes".to_owned()));
        assert_eq!(last_item(&reply[..reply.len() - 1]).unwrap(), None);
        assert!(last_item(b"-ERR no\r\n").is_err());
    }
}
