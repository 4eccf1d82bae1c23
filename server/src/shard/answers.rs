//! Answers on their way back: to a connection, a shard, or an answer that is put together; decides nothing.

use super::ShardServer;
use super::groups::put_group_answer;
use crate::connection::{Charge, Connection};
use crate::message::{Answer, Greeting, Message};
use crate::output::{Output, Spare};
use crate::pending::{Asker, Pending};
use crate::slab::Key;
use coulee_core::block::Block;
use coulee_core::catalog::ChangeError;
use coulee_core::controller::Changed;
use coulee_core::groups::Answer as GroupAnswer;
use coulee_core::groups::request::Listed as ListedGroup;
use coulee_core::log::reader::ReadError;
use coulee_core::partition::ProduceError;
use coulee_core::shard::fetches::{FetchError, FetchedPart};
use coulee_core::shard::{Described, Listed, Produced, RequestId};
use coulee_protocol::api;
use coulee_protocol::api::stats::v1::Shard as ShardStats;
use coulee_protocol::api::{ApiKey, fetch, produce, topics};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::hello::HelloResponse;

/// An answer that has come, from here or from another shard.
#[derive(Debug)]
pub(super) enum Come {
    Produced(Result<Produced, ProduceError>),
    Fetched(Vec<FetchedPart>),
    Listed(Listed),
    Described(Result<Described, ErrorCode>),
    Stats(Box<ShardStats>),
    Group(GroupAnswer),
    Groups(Result<Vec<ListedGroup>, ErrorCode>),
}

impl Come {
    /// Bytes of record batches in it, which are copied on their way to another shard.
    fn batches_bytes(&self) -> u64 {
        let Self::Fetched(parts) = self else { return 0 };
        let blocks = parts.iter().filter_map(|part| part.batches.as_ref().ok()).flatten();
        blocks.map(|block| block.len() as u64).sum()
    }
}

impl From<Answer> for Come {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Produced(result) => Self::Produced(result),
            Answer::Fetched(parts) => Self::Fetched(parts.into_iter().map(Into::into).collect()),
            Answer::Listed(listed) => Self::Listed(listed),
            Answer::Described(described) => Self::Described(described),
            Answer::Stats(stats) => Self::Stats(stats),
            Answer::Group(answer) => Self::Group(answer),
            Answer::Groups(groups) => Self::Groups(groups),
        }
    }
}

impl From<Come> for Answer {
    fn from(come: Come) -> Self {
        match come {
            Come::Produced(result) => Self::Produced(result),
            Come::Fetched(parts) => Self::Fetched(parts.into_iter().map(Into::into).collect()),
            Come::Listed(listed) => Self::Listed(listed),
            Come::Described(described) => Self::Described(described),
            Come::Stats(stats) => Self::Stats(stats),
            Come::Group(answer) => Self::Group(answer),
            Come::Groups(groups) => Self::Groups(groups),
        }
    }
}

impl ShardServer {
    /// Passes an answer on to whom it is for. Who has gone gets none.
    pub(super) fn answered(&mut self, request: RequestId, come: Come) {
        let Some(pending) = self.pending.remove(Key(request.0)) else { return };
        match pending.asker {
            Asker::Shard(shard, number) => {
                self.counts.copied_bytes += come.batches_bytes();
                self.send_to(shard, Message::Answer(number, come.into()));
            }
            Asker::Part { whole, at } => self.part_came(whole, at, come),
            Asker::Connection(key) => self.answer_connection((request, key), pending, come),
        }
    }

    fn answer_connection(&mut self, (request, key): (RequestId, Key), mut pending: Pending, come: Come) {
        self.free(pending.reservation.take());
        let is_in_time = self.is_in_time(request, &pending);
        let began_us = pending.began_us;
        let us = self.clock.monotonic_us().saturating_sub(began_us);
        let Some(connection) = present(self.connections.find(key)) else { return };
        connection.discharge(pending.charge);
        let (spare, header) = (&mut self.spare, &pending.header);
        match come {
            _ if !is_in_time => {}
            Come::Produced(Ok(produced)) => {
                self.counts.produced(us);
                let body = produce::v1::Response {
                    base_offset: produced.base_offset.0,
                    log_start: produced.log_start.0,
                    high_watermark: produced.high_watermark.0,
                    leader_epoch: produced.epoch.0,
                };
                connection.output.answer(spare, header, &body, Vec::new());
            }
            Come::Produced(Err(error)) => {
                self.counts.produce_refused(&error);
                connection.output.refuse(spare, header, error.code(), &error.to_string());
            }
            Come::Fetched(parts) => {
                self.counts.fetched(&parts, us);
                let (body, batches) = fetch_response(parts);
                connection.output.answer(spare, header, &body, batches);
            }
            // These are parts of an answer that is put together.
            Come::Listed(_) | Come::Described(_) | Come::Stats(_) | Come::Groups(_) => {}
            Come::Group(answer) => put_group_answer(&mut connection.output, spare, header, answer),
        }
        self.flush_soon(key);
    }

    /// Has the answers of a connection sent at the end of this cycle, and the connection served again if it was full.
    pub(super) fn flush_soon(&mut self, key: Key) {
        if let Some(Some(connection)) = self.connections.find(key)
            && !connection.flushing
        {
            connection.flushing = true;
            self.flush.push(key);
        }
    }

    /// Answers a request that was put together.
    pub(super) fn answer_with<T: api::Body>(&mut self, pending: Pending, body: &T, batches: Vec<Block>) {
        self.answering(pending, |output, spare, header| output.answer(spare, header, body, batches));
    }

    /// Refuses a request that was put together, or that another part of the broker was to carry out.
    pub(super) fn refuse_with(&mut self, pending: Pending, code: ErrorCode, detail: &str) {
        self.answering(pending, |output, spare, header| output.refuse(spare, header, code, detail));
    }

    /// Has the connection that asked answered, if it is still there.
    fn answering(&mut self, pending: Pending, answer: impl FnOnce(&mut Output, &mut Spare, &FrameHeader)) {
        self.free(pending.reservation);
        let Asker::Connection(key) = pending.asker else { return };
        let Some(connection) = present(self.connections.find(key)) else { return };
        connection.discharge(pending.charge);
        answer(&mut connection.output, &mut self.spare, &pending.header);
        self.flush_soon(key);
    }

    /// The controller has answered a change.
    pub(super) fn changed(&mut self, request: RequestId, result: Result<Changed, ChangeError>) {
        let Some(pending) = self.pending.remove(Key(request.0)) else { return };
        if let Asker::Shard(shard, number) = pending.asker {
            return self.send_to(shard, Message::Changed(number, result));
        }
        match result {
            Ok(changed) => {
                self.answering(pending, |output, spare, header| put_changed(output, spare, header, changed));
            }
            Err(error) => self.refuse_with(pending, error.code(), &error.to_string()),
        }
    }

    /// Answers a Hello: the connection is this shard's from now on.
    pub(super) fn greet(&mut self, connection: &mut Connection, greeting: &Greeting) {
        let answer = HelloResponse {
            protocol: greeting.protocol,
            features: 0,
            broker_version: crate::facts::VERSION,
            cluster_id: self.parts.facts.cluster_id,
            shard: self.id(),
            shards: self.shards(),
            apis: api::ranges().collect(),
        };
        let mut body = Vec::new();
        answer.encode(&mut body).expect("our own version and table fit a Hello");
        let request = FrameHeader::request(ApiKey::Hello.code(), 0, greeting.correlation, 0, 0);
        connection.output.answer_bytes(&mut self.spare, &request, &body);
    }

    /// Notes a request of a connection as unanswered.
    pub(super) fn expect(&mut self, key: Key, connection: &mut Connection, mut pending: Pending) -> RequestId {
        let bytes = pending.header.len as usize;
        let small = coulee_core::limits::SMALL_FRAME_BYTES;
        let large = bytes > small || pending.header.api != ApiKey::Produce.code();
        pending.charge = Charge { bytes, large, ..pending.charge };
        pending.asker = Asker::Connection(key);
        connection.charge(pending.charge);
        RequestId(self.pending.insert(pending).0)
    }
}

/// The answer to a change of a topic: which of the three it was, the request's header says.
pub(super) fn put_changed(output: &mut Output, spare: &mut Spare, header: &FrameHeader, changed: Changed) {
    let (topic_id, partitions) = (changed.topic_id.0, changed.partitions);
    match header.api {
        api if api == ApiKey::CreateTopic.code() => {
            output.answer(spare, header, &topics::v1::CreateResponse { topic_id, partitions }, Vec::new());
        }
        api if api == ApiKey::AlterTopic.code() => {
            output.answer(spare, header, &topics::v1::AlterResponse { topic_id, partitions }, Vec::new());
        }
        _ => output.answer(spare, header, &topics::v1::DeleteResponse { topic_id }, Vec::new()),
    }
}

/// The connection in a place, unless it has gone.
fn present(place: Option<&mut Option<Box<Connection>>>) -> Option<&mut Connection> {
    let place = place?;
    assert!(place.is_some(), "no answer is given while its connection is being served: it would be lost");
    place.as_deref_mut()
}

/// The answer to a fetch, and the batches behind it.
pub(super) fn fetch_response(parts: Vec<FetchedPart>) -> (fetch::v1::Response, Vec<Block>) {
    let mut batches = Vec::new();
    let mut partitions = Vec::with_capacity(parts.len());
    for part in parts {
        let mut entry = fetch::v1::ResponsePartition {
            partition_uid: part.partition.0,
            high_watermark: part.high_watermark.0,
            last_stable_offset: part.high_watermark.0,
            log_start: part.log_start.0,
            ..Default::default()
        };
        match part.batches {
            Ok(blocks) => {
                entry.batches_len = blocks.iter().map(|block| block.len() as u32).sum();
                batches.extend(blocks);
            }
            Err(error) => {
                entry.error = error.code().code();
                if let FetchError::Read(ReadError::Damaged { from, to, .. }) = error {
                    (entry.damaged_from, entry.damaged_to) = (from.0, to.0);
                }
            }
        }
        partitions.push(entry);
    }
    (fetch::v1::Response { partitions }, batches)
}
