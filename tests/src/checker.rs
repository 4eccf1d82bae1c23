//! History checker: what clients did and were told, held against every promise; knows no broker, disk or protocol.
//!
//! Whoever drives a broker writes down each operation twice, when it begins and when its answer comes, with one
//! [`Recorder`] for each client, and gives them all to [`History::check`]. An operation that gets no answer, or the
//! answer [`Ended::Unknown`], may have happened, now or later. Every value is sent once, so that a value names the
//! operation that sent it; values of one produce follow each other, and batches are kept as runs: 24 bytes each,
//! whatever they hold.
//!
//! [`Rule`] says what is checked. The cost is one look-up a run and a few instructions a record.

use coulee_protocol::ids::Offset;

mod commits;
mod partition;
mod rules;
#[cfg(test)]
mod tests;
mod walk;

pub use rules::{Report, Rule, Violation};

/// One client, or one connection of it: what it sends to one partition has to get there in that order. A client whose
/// old connection may still deliver something after the new one has begun is a new process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process(pub u32);

/// One partition of one topic: its place in [`History::new`]'s list. A topic made anew is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub u32);

/// The value of one record. It is sent once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value(pub u64);

impl Value {
    /// Stands for bytes that are no value: nobody has sent it.
    pub const UNREADABLE: Self = Self(u64::MAX);

    fn advance(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

/// Values that follow each other at offsets that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the first lies.
    pub offset: Offset,
    /// The first.
    pub first: Value,
    /// How many.
    pub count: u32,
}

/// Runs of the records of an answer, which come one by one.
#[derive(Clone, Debug, Default)]
pub struct Runs(Vec<Run>);

impl Runs {
    /// Adds the next record.
    pub fn push(&mut self, offset: Offset, value: Value) {
        if let Some(last) = self.0.last_mut()
            && last.offset.advance(u64::from(last.count)) == offset
            && last.first != Value::UNREADABLE
            && last.first.advance(u64::from(last.count)) == value
        {
            last.count += 1;
            return;
        }
        self.0.push(Run { offset, first: value, count: 1 });
    }

    /// The answer.
    #[must_use]
    pub fn fetched(self, high_watermark: Offset, log_start: Offset) -> Ended {
        Ended::Fetched { runs: self.0.into(), high_watermark, log_start }
    }
}

/// Names an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Op {
    process: Process,
    number: u32,
}

/// An operation that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Sends `count` values from `first` on as one whole.
    Produce {
        /// Where to.
        key: Key,
        /// The first.
        first: Value,
        /// How many.
        count: u32,
        /// It is sent once, or the broker knows a repetition: no value may come to lie at two offsets.
        once: bool,
    },
    /// Reads.
    Fetch {
        /// Where.
        key: Key,
        /// From which offset; `None`: from where the process's last fetch has ended.
        from: Option<Offset>,
    },
    /// Stores an offset for a consumer group.
    Commit {
        /// The group.
        group: u32,
        /// Of which partition.
        key: Key,
        /// The offset.
        offset: Offset,
    },
    /// Asks for a committed offset.
    AskCommitted {
        /// The group.
        group: u32,
        /// Of which partition.
        key: Key,
    },
    /// Makes the topic of a partition.
    Create(Key),
    /// Removes the topic of a partition.
    Delete(Key),
    /// Asks whether there is such a partition.
    Describe(Key),
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// A produce is acknowledged.
    Acked {
        /// Offset of its first value.
        base: Offset,
        /// The high watermark, where the answer has it.
        high_watermark: Option<Offset>,
    },
    /// A fetch brings this.
    Fetched {
        /// The records, in order.
        runs: Box<[Run]>,
        /// The high watermark.
        high_watermark: Offset,
        /// The log start.
        log_start: Offset,
    },
    /// A fetch is told that these offsets are damaged.
    Damaged {
        /// First offset that is lost.
        from: Offset,
        /// First offset behind the loss.
        to: Offset,
    },
    /// A fetch is told that there is no such offset.
    OutOfRange,
    /// The committed offset, if there is one.
    Committed(Option<Offset>),
    /// Whether the partition is there. Any operation on a partition may be told that it is not.
    There(bool),
    /// A commit, a creation or a removal has happened.
    Done,
    /// It has surely not happened and will not.
    Failed,
    /// It may have happened, or may happen later.
    Unknown,
}

/// How a broker went down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process alone: what the device was given is there.
    Process,
    /// The power: what was not flushed may be gone.
    Power,
}

/// What happens to the world, not to one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incident {
    /// The broker went down.
    Crash(Crash),
    /// The test has damaged what is stored of these offsets.
    Damage(Key, Offset, Offset),
    /// The test wants the process to go on reading here.
    Seek(Key, Offset),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Begun(Begun),
    Ended(Ended),
    Incident(Incident),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    time_us: u64,
    op: Op,
    what: What,
}

/// Writes down what one process does.
#[derive(Clone, Debug)]
pub struct Recorder {
    process: Process,
    next: u32,
    events: Vec<Event>,
}

impl Recorder {
    /// For one process.
    #[must_use]
    pub const fn new(process: Process) -> Self {
        Self { process, next: 0, events: Vec::new() }
    }

    fn note(&mut self, time_us: u64, op: Op, what: What) {
        assert!(self.events.last().is_none_or(|last| last.time_us <= time_us), "a process knows one clock");
        self.events.push(Event { time_us, op, what });
    }

    /// An operation begins, in microseconds of a clock that all processes share.
    pub fn begin(&mut self, time_us: u64, begun: Begun) -> Op {
        let op = Op { process: self.process, number: self.next };
        self.next += 1;
        self.note(time_us, op, What::Begun(begun));
        op
    }

    /// The answer to an operation has come.
    pub fn end(&mut self, time_us: u64, op: Op, ended: Ended) {
        self.note(time_us, op, What::Ended(ended));
    }

    /// Something happens to the world.
    pub fn incident(&mut self, time_us: u64, incident: Incident) {
        let op = Op { process: self.process, number: u32::MAX };
        self.note(time_us, op, What::Incident(incident));
    }
}

/// What a partition promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// What is acknowledged, or was shown to a reader, survives a power cut.
    Fsync,
    /// It survives the crash of the process; a power cut takes an end of the log.
    Written,
}

/// A partition that is written about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// What people call it.
    pub name: String,
    /// What it promises.
    pub promise: Promise,
    /// Whether records may go from its front.
    pub retention: bool,
}

impl PartitionInfo {
    /// One that keeps everything, durably.
    #[must_use]
    pub fn durable(name: impl Into<String>) -> Self {
        Self { name: name.into(), promise: Promise::Fsync, retention: false }
    }
}

/// What all processes did.
#[derive(Clone, Debug)]
pub struct History {
    partitions: Vec<PartitionInfo>,
    events: Vec<Event>,
}

impl History {
    /// Puts what several processes have written down into one order. At one and the same time operations begin before
    /// others end, so that nothing is taken for later that may not be.
    #[must_use]
    pub fn new(partitions: Vec<PartitionInfo>, recorders: impl IntoIterator<Item = Recorder>) -> Self {
        let mut events: Vec<Event> = recorders.into_iter().flat_map(|recorder| recorder.events).collect();
        events.sort_by_key(|event| (event.time_us, matches!(event.what, What::Ended(_))));
        Self { partitions, events }
    }

    /// Holds everything against every rule.
    #[must_use]
    pub fn check(&self) -> Report {
        walk::check(&self.partitions, &self.events)
    }
}
