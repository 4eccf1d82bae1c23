//! Tests of printed failures: owns the golden text of each kind and the page that explains the codes; knows no broker.

use std::fs;

use coulee_client::{HelloFault, Outcome};
use coulee_protocol::api::topics::check_topic_name;
use coulee_protocol::api::{ApiKey, BodyError};
use coulee_server::config::{Layers, Machine};

use super::*;

fn refusal(number: u16, message: &str, detail: &str) -> Refusal {
    Refusal { number, message: message.into(), detail: detail.into(), outcome: Outcome::NotWritten }
}

fn check(failure: impl Into<Failure>, exit: Exit, expected: &str) {
    let failure = failure.into();
    assert_eq!((failure.text(false).as_str(), failure.exit), (expected, exit));
}

#[test]
fn connection_failures_print_as_agreed() {
    let address = || "127.0.0.1:7700".to_owned();
    check(
        ConnectError::Unreachable { address: address(), kind: io::ErrorKind::ConnectionRefused },
        Exit::Unavailable,
        "error[E2003]: no connection to 127.0.0.1:7700: connection refused\n  \
         hint: start a broker with: coulee serve\n        or name another one with --address HOST:PORT\n  \
         docs: docs/errors.md#e2003\n",
    );
    check(
        ConnectError::TimedOut { address: address() },
        Exit::Unavailable,
        "error[E2003]: no answer from 127.0.0.1:7700 in time\n  \
         hint: start a broker with: coulee serve\n        or name another one with --address HOST:PORT\n  \
         docs: docs/errors.md#e2003\n",
    );
    check(
        ConnectError::NotABroker { address: address(), fault: HelloFault::Closed },
        Exit::Failed,
        "error[E2004]: 127.0.0.1:7700 does not speak this protocol: Closed\n  \
         hint: is it the port of the native protocol? 7700 by default; give another one with --address\n  \
         docs: docs/errors.md#e2004\n",
    );
    check(
        ConnectError::Refused(refusal(1_003, "The broker has no room for this at the moment.", "20000 connections")),
        Exit::Unavailable,
        "error[E1003]: the broker has no room for this at the moment: 20000 connections\n  \
         hint: try again in a moment, or give the broker more memory: memory.shard\n  \
         docs: docs/errors.md#e1003\n",
    );
}

#[test]
fn refusals_of_changes_print_as_agreed() {
    check(
        AdminError::Refused(refusal(40, "A configuration key is unknown or its value is not allowed.", "durabilty")),
        Exit::Usage,
        "error[E40]: a configuration key is unknown or its value is not allowed: durabilty\n  \
         hint: see the keys and their values with: coulee topic describe TOPIC\n  \
         docs: docs/errors.md#e40\n",
    );
    check(
        AdminError::Refused(refusal(36, "A topic of this name exists.", "")),
        Exit::Conflict,
        "error[E36]: a topic of this name exists\n  \
         hint: see what it is with: coulee topic describe TOPIC\n  docs: docs/errors.md#e36\n",
    );
    check(
        AdminError::OutcomeUnknown,
        Exit::Unavailable,
        "error[E1008]: no answer came, the change may have happened\n  \
         hint: look before you try again: coulee topic list\n  docs: docs/errors.md#e1008\n",
    );
    check(
        AdminError::TopicName(check_topic_name("a b").unwrap_err()),
        Exit::Usage,
        "error[E17]: topic name holds ' ' at byte 1, expected letters, digits, '.', '_' and '-'\n  \
         hint: a name is 1 to 249 letters and digits of ASCII, '.', '_' and '-', not '.' or '..'\n  \
         docs: docs/errors.md#e17\n",
    );
    check(
        AdminError::NoPartition { topic: "t".into(), partition: 9, partitions: 3 },
        Exit::NotFound,
        "error[E3]: topic t has no partition 9: there are 3, counted from 0\n  \
         hint: partitions are counted from 0; see them with: coulee topic describe TOPIC\n  \
         docs: docs/errors.md#e3\n",
    );
    check(
        AdminError::Unreadable(BodyError::Duplicate { what: "config key" }),
        Exit::Failed,
        &format!(
            "error[E2011]: the answer can't be read: {}\n  docs: docs/errors.md#e2011\n",
            BodyError::Duplicate { what: "config key" }
        ),
    );
    check(
        AdminError::Refused(refusal(4_711, "Something new.", "")),
        Exit::Failed,
        "error[E4711]: something new\n  \
         hint: the broker is newer than this program: use the `coulee` that came with it\n  \
         docs: docs/errors.md#e4711\n",
    );
    let unsupported = Failure::from(AdminError::Unsupported { api: ApiKey::Stats });
    assert_eq!((unsupported.number, unsupported.exit), (35, Exit::Failed));
}

#[test]
fn failures_of_reading_print_as_agreed() {
    check(
        ConsumeError::Damaged { partition: 2, from: 100, to: 250 },
        Exit::Failed,
        "error[E1006]: partition 2: stored records of offsets 100 to 250 (exclusive) are damaged\n  \
         hint: step over what is damaged, and read the rest, with: --skip-damaged\n  \
         docs: docs/errors.md#e1006\n",
    );
    check(
        ConsumeError::OutOfRange { partition: 0, position: 900, log_start: 5, high_watermark: 80 },
        Exit::Failed,
        "error[E1]: partition 0 has no offset 900, it has 5 to 80\n  \
         hint: begin with --offset start, or behind the last record with --offset end\n  docs: docs/errors.md#e1\n",
    );
    check(
        ConsumeError::Refused { partition: 1, refusal: refusal(1_007, "The broker is still reading its log.", "") },
        Exit::Unavailable,
        "error[E1007]: partition 1: the broker is still reading its log\n  \
         hint: the broker reads its log after a start: try again in a moment\n  docs: docs/errors.md#e1007\n",
    );
    check(
        ConsumeError::Corrupt { partition: 1, position: 7, fault: BatchFault::Chain },
        Exit::Failed,
        "error[E2]: partition 1, offset 7: batch is not chained to the one before\n  \
         hint: try again; if it stays, the broker's memory or disk is broken: see its log\n  \
         docs: docs/errors.md#e2\n",
    );
}

#[test]
fn failures_of_sending_print_as_agreed() {
    check(
        DeliveryError::NotWritten {
            refusal: refusal(1_004, "The disk is full; nothing was written, reads go on.", ""),
        },
        Exit::Unavailable,
        "error[E1004]: the disk is full; nothing was written, reads go on\n  \
         hint: make room on the disk of the broker's data directory; writes go on by themselves\n  \
         docs: docs/errors.md#e1004\n",
    );
    check(
        DeliveryError::OutcomeUnknown { refusal: None },
        Exit::Unavailable,
        "error[E1008]: may have been written: no answer came\n  \
         hint: it may be there: look before sending it again, which may double it\n  \
         docs: docs/errors.md#e1008\n",
    );
    check(
        SendError::TooLarge { bytes: 2_000_000, max: 1_048_588 },
        Exit::Failed,
        "error[E10]: record needs 2000000 bytes, at most 1048588 allowed\n  \
         hint: raise the topic's limit with: coulee topic alter TOPIC --set max.message.bytes=N\n  \
         docs: docs/errors.md#e10\n",
    );
}

#[test]
fn failures_of_this_machine_print_as_agreed() {
    let machine =
        Machine { cpus: vec![0], cpu_quota: None, memory_bytes: 1 << 30, disk_bytes: 1 << 30, log_is_terminal: false };
    let layers = Layers { sets: vec!["native.lisen=x", "shards=0"], ..Layers::default() };
    check(
        coulee_server::config::Config::load(&layers, &machine).unwrap_err(),
        Exit::Usage,
        "error[E2001]: the configuration has 2 faults\n  \
         --set: unknown key \"native.lisen\", did you mean \"native.listen\"?\n  \
         --set: shards can't be \"0\", allowed: 1 to 256\n  \
         hint: list the keys with: coulee config show --effective\n  docs: docs/errors.md#e2001\n",
    );
    let missing = io::Error::from(io::ErrorKind::NotFound);
    check(
        unreadable("events.ndjson", &missing),
        Exit::NotFound,
        "error[E2002]: events.ndjson can't be read: entity not found\n  \
         hint: check the path, and who may read the file\n  docs: docs/errors.md#e2002\n",
    );
    assert_eq!(Stop::from(io::Error::from(io::ErrorKind::BrokenPipe)), Stop::PipeClosed);
    let full = Stop::from(io::Error::from(io::ErrorKind::StorageFull));
    assert!(matches!(full, Stop::Failed(failure) if failure.number == 2_009 && failure.exit == Exit::Failed));
}

#[test]
fn colours_mark_the_code_and_nothing_else_changes() {
    let failure = Failure::local(LocalCode::Usage, "no").hint("yes");
    let coloured = failure.text(true);
    assert!(coloured.starts_with("\x1b[1;31merror[E2000]\x1b[0m\x1b[1m: no\x1b[0m\n"), "{coloured:?}");
    let plain = ["\x1b[1;31m", "\x1b[1m", "\x1b[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(plain, failure.text(false));
}

/// The beginning of the row of a code in docs/errors.md.
fn row(number: u16, name: &str, meaning: &str, retriable: &str, outcome: &str) -> String {
    format!("| <a id=\"e{number}\"></a>{number} | {name} | {meaning} | {retriable} | {outcome} | ")
}

#[test]
fn the_page_explains_every_code_as_the_code_has_it() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
    let page = fs::read_to_string(path).expect("docs/errors.md can be read");
    let protocol = ErrorCode::ALL
        .iter()
        .filter(|code| **code != ErrorCode::None)
        .map(|code| row(code.code(), code.name(), code.meaning(), code.retriable().name(), code.outcome().name()));
    let local = LocalCode::ALL.iter().map(|code| row(code.number(), code.name(), code.meaning(), "–", "–"));
    let rows: Vec<String> = protocol.chain(local).collect();
    let of_page: Vec<&str> = page.lines().filter(|line| line.starts_with("| <a id=")).collect();
    let is_explained = |row: &String| {
        let advice = of_page.iter().find_map(|line| line.strip_prefix(row.as_str()));
        advice.is_some_and(|advice| advice.trim_end_matches(['|', ' ']).ends_with('.'))
    };
    let missing: Vec<&String> = rows.iter().filter(|row| !is_explained(row)).collect();
    assert!(missing.is_empty(), "rows of docs/errors.md to write or correct, advice behind them:\n{missing:#?}");
    assert_eq!(of_page.len(), rows.len(), "docs/errors.md has rows for codes that there are not");
}
