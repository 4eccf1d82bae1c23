//! Frames of clients become questions: each goes through the one table of APIs; decides nothing about data.

use super::ShardServer;
use crate::connection::{Charge, Connection, Stage};
use crate::input::Frame;
use crate::limits::{FETCH_WAIT_MS_MAX, MODEST_FETCH_BYTES};
use crate::message::{Greeting, Message, Question};
use crate::pending::{Asker, Fetching, Gather, Pending, SoFar};
use crate::slab::Key;
use coulee_core::partition::Acks;
use coulee_core::shard::fetches::{FetchPart, FetchSpec};
use coulee_core::shard::{Command, OffsetQuery, RequestId};
use coulee_protocol::api::{Api, ApiKey, BodyError, fetch, list_offsets, open, produce};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::hello::HelloRequest;
use coulee_protocol::ids::{Offset, PartitionUid, ShardId, Timestamp};
use coulee_protocol::limits::{BATCH_BYTES_MAX, FETCH_PARTITIONS_MAX, FRAME_BYTES_MAX};

/// Record batches in the answer to a fetch: one more of the largest size still fits the frame.
pub(super) const FETCH_BYTES_MAX: usize = FRAME_BYTES_MAX - BATCH_BYTES_MAX - (1 << 20);
const _: () = assert!(FETCH_PARTITIONS_MAX * 54 + 64 < 1 << 20);

/// A request that is refused at once.
pub(super) struct Refusal {
    pub(super) code: ErrorCode,
    pub(super) detail: String,
}

impl Refusal {
    pub(super) fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        Self { code: error.code(), detail: error.to_string() }
    }
}

impl ShardServer {
    /// Takes a frame. Whether the connection is to be handed over to another shard.
    pub(super) fn frame(&mut self, key: Key, connection: &mut Connection, frame: Frame) -> bool {
        if frame.header.is_response() {
            self.free(frame.reservation);
            self.refuse(connection, &frame.header, ErrorCode::FrameInvalid, "a client sends requests, not responses");
            connection.stage = Stage::Closing;
            return false;
        }
        if connection.stage == Stage::Greeting {
            return self.hello(connection, &frame);
        }
        let header = frame.header;
        let refused = match Api::find(header.api, header.version) {
            Err(error) => {
                self.free(frame.reservation);
                Some(Refusal::new(error.code(), error.to_string()))
            }
            Ok(api) => self.request(key, connection, api.key, frame).err(),
        };
        if let Some(Refusal { code, detail }) = refused {
            self.refuse(connection, &header, code, &detail);
        }
        false
    }

    fn refuse(&mut self, connection: &mut Connection, header: &FrameHeader, code: ErrorCode, detail: &str) {
        connection.output.refuse(&mut self.spare, header, code, detail);
    }

    fn hello(&mut self, connection: &mut Connection, frame: &Frame) -> bool {
        let header = frame.header;
        let greeting = match self.read_hello(frame) {
            Ok(greeting) => greeting,
            Err(Refusal { code, detail }) => {
                self.refuse(connection, &header, code, &detail);
                connection.stage = Stage::Closing;
                return false;
            }
        };
        connection.client_name.clone_from(&greeting.0.client_name);
        connection.stage = Stage::Open;
        match greeting.1.filter(|shard| *shard != self.id()) {
            Some(shard) => {
                self.handed_over = Some((shard, greeting.0));
                true
            }
            None => {
                self.greet(connection, &greeting.0);
                false
            }
        }
    }

    fn read_hello(&self, frame: &Frame) -> Result<(Greeting, Option<ShardId>), Refusal> {
        if frame.header.api != ApiKey::Hello.code() {
            return Err(Refusal::new(ErrorCode::HelloRequired, "the first frame of a connection is a Hello"));
        }
        let hello = HelloRequest::decode(&frame.body).map_err(|error| Refusal::new(error.code(), error.to_string()))?;
        let Some(protocol) = hello.protocol() else {
            let detail = format!("protocols {} to {}, expected 1", hello.protocol_min, hello.protocol_max);
            return Err(Refusal::new(ErrorCode::UnsupportedVersion, detail));
        };
        if hello.auth_mechanism != coulee_protocol::hello::AUTH_NONE {
            let detail = format!("auth mechanism {}, expected 0", hello.auth_mechanism);
            return Err(Refusal::new(ErrorCode::UnsupportedSaslMechanism, detail));
        }
        let wanted = hello.wanted_shard;
        if let Some(shard) = wanted.filter(|shard| shard.0 >= self.shards()) {
            let detail = format!("shard {shard}, expected 0 to {}", self.shards() - 1);
            return Err(Refusal::new(ErrorCode::InvalidRequest, detail));
        }
        let client_name = hello.client_name.into();
        Ok((Greeting { correlation: frame.header.correlation, protocol, client_name }, wanted))
    }

    /// Passes a connection on to the shard that it wants.
    pub(super) fn hand_over(&mut self, key: Key, mut connection: Box<Connection>) {
        let Some((shard, greeting)) = self.handed_over.take() else { return };
        self.release(key, &mut connection);
        let Connection { socket, .. } = *connection;
        self.send_to(shard, Message::Connection(socket, greeting));
    }

    fn request(&mut self, key: Key, connection: &mut Connection, api: ApiKey, frame: Frame) -> Result<(), Refusal> {
        if api == ApiKey::Produce {
            return self.produce(key, connection, frame);
        }
        let Frame { header, body, batches, reservation } = frame;
        // Only what follows was held for it, and a body this large is dealt with now.
        self.free(reservation);
        if !batches.bytes().is_empty() {
            return Err(Refusal::new(ErrorCode::InvalidRequest, "no record batch follows this request"));
        }
        self.counts.request(api);
        match api {
            ApiKey::Hello => Err(Refusal::new(ErrorCode::InvalidRequest, "this connection has said Hello already")),
            ApiKey::Produce => unreachable!("it was dealt with above"),
            ApiKey::Fetch => self.fetch(key, connection, header, &body),
            ApiKey::ListOffsets => self.list_offsets(key, connection, header, &body),
            ApiKey::Metadata => self.metadata(connection, &header, &body),
            ApiKey::CreateTopic => self.create_topic(key, connection, header, &body),
            ApiKey::DeleteTopic => self.delete_topic(key, connection, header, &body),
            ApiKey::AlterTopic => self.alter_topic(key, connection, header, &body),
            ApiKey::DescribeTopic => self.describe_topic(key, connection, header, &body),
            ApiKey::Stats => self.gather_stats(key, connection, header, &body),
            ApiKey::DescribeBroker => self.describe_broker(connection, &header, &body),
            ApiKey::FindCoordinator => self.find_coordinator(connection, &header, &body),
            ApiKey::ListGroups => self.list_groups(key, connection, header, &body),
            ApiKey::JoinGroup
            | ApiKey::SyncGroup
            | ApiKey::Heartbeat
            | ApiKey::LeaveGroup
            | ApiKey::OffsetCommit
            | ApiKey::OffsetFetch
            | ApiKey::DescribeGroup
            | ApiKey::DeleteGroup
            | ApiKey::OffsetDelete => self.ask_group(key, connection, header, (api, &body)),
        }
    }

    pub(super) fn pending(&self, key: Key, header: FrameHeader, gather: Option<Gather>) -> Pending {
        let pending = Pending::new(Asker::Connection(key), header, self.clock.monotonic_us());
        Pending { gather: gather.map(Box::new), ..pending }
    }

    /// The shard that owns a partition; this one where nobody knows it, to say so.
    pub(super) fn owner(&self, uid: PartitionUid) -> ShardId {
        self.view.catalog().shard_of(uid, self.shards()).unwrap_or_else(|| self.id())
    }

    /// Refuses a request for a partition that may be known once the catalog has been read.
    fn check_known(&self, uid: PartitionUid) -> Result<(), Refusal> {
        let known = self.view.is_settled() || self.view.catalog().shard_of(uid, self.shards()).is_some();
        known.then_some(()).ok_or_else(|| Refusal::new(ErrorCode::Recovering, "the catalog is being read"))
    }

    fn produce(&mut self, key: Key, connection: &mut Connection, frame: Frame) -> Result<(), Refusal> {
        let Frame { header, body, batches, reservation } = frame;
        let request = match open::<produce::v1::Request>(&body) {
            Ok(request) => request,
            Err(error) => {
                self.free(reservation);
                return Err(error.into());
            }
        };
        let partition = PartitionUid(request.partition_uid.to_native());
        let timeout_ms = request.timeout_ms.to_native();
        let acks = if request.acks == produce::v1::ACKS_NONE { Acks::None } else { Acks::Acknowledged };
        self.counts.produce_requests += 1;
        if acks == Acks::Acknowledged
            && let Err(refusal) = self.check_known(partition)
        {
            self.free(reservation);
            return Err(refusal);
        }
        let owner = match self.view.writable(partition, self.shards()) {
            Ok(owner) => owner.unwrap_or_else(|| self.id()),
            Err(code) => {
                self.free(reservation);
                let refused = Refusal::new(code, "the topic is the broker's own");
                return if acks == Acks::None { Ok(()) } else { Err(refused) };
            }
        };
        let pending = Pending { reservation, ..self.pending(key, header, None) };
        // Without an answer nothing is kept of the request; its memory is the core's.
        let request = match acks {
            Acks::None => {
                self.free(pending.reservation);
                RequestId(u64::MAX - 1)
            }
            Acks::Acknowledged => self.expect(key, connection, pending),
        };
        self.limit_patience(request, timeout_ms);
        if owner == self.id() {
            self.parts.core.command(Command::Produce { request, partition, acks, batch: batches });
        } else {
            self.counts.copied_bytes += batches.bytes().len() as u64;
            self.ask(owner, request, Question::Produce(partition, acks, batches.bytes().to_vec()));
        }
        Ok(())
    }

    fn fetch(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Result<(), Refusal> {
        let request = open::<fetch::v1::Request>(body)?;
        let part = |part: &fetch::v1::ArchivedRequestPartition| FetchPart {
            partition: PartitionUid(part.partition_uid.to_native()),
            offset: Offset(part.offset.to_native()),
            bytes_max: part.max_bytes.to_native() as usize,
        };
        let parts: Vec<FetchPart> = request.partitions.iter().map(part).collect();
        parts.iter().try_for_each(|part| self.check_known(part.partition))?;
        let wait_ms = request.max_wait_ms.to_native().min(FETCH_WAIT_MS_MAX);
        let bytes_min = request.min_bytes.to_native() as usize;
        let owners: Vec<ShardId> = parts.iter().map(|part| self.owner(part.partition)).collect();
        let is_own = owners.iter().all(|owner| *owner == self.id());
        let room = if is_own && !self.is_crowded() { FETCH_BYTES_MAX } else { MODEST_FETCH_BYTES };
        let spec = FetchSpec {
            bytes_min,
            bytes_max: (request.max_bytes.to_native() as usize).min(room),
            wait_ms: if bytes_min == 0 { 0 } else { u64::from(wait_ms) },
            parts,
        };
        // One that waits here for records takes no memory, and what it brings then is in memory anyway.
        let waits = is_own && self.parts.core.would_wait(&spec);
        let answer_bytes = if waits { 0 } else { spec.bytes_max };
        let charge = Charge { answer_bytes, ..Charge::default() };
        let first = owners.first().copied().unwrap_or_else(|| self.id());
        if owners.iter().all(|owner| *owner == first) {
            let pending = Pending { charge, ..self.pending(key, header, None) };
            let request = self.expect(key, connection, pending);
            self.ask(first, request, Question::Fetch(spec));
        } else {
            self.fetch_of_several(key, connection, (header, charge), &spec, &owners);
        }
        Ok(())
    }

    /// Asks each shard for its part, and answers when one has enough or all have waited.
    fn fetch_of_several(
        &mut self,
        key: Key,
        connection: &mut Connection,
        (header, charge): (FrameHeader, Charge),
        spec: &FetchSpec,
        owners: &[ShardId],
    ) {
        let mut shards: Vec<ShardId> = owners.to_vec();
        shards.sort();
        shards.dedup();
        let fetching = Fetching {
            parts: spec.parts.iter().map(|_| None).collect(),
            asked: Vec::new(),
            bytes_min: spec.bytes_min,
            hurried: false,
        };
        let gather = Gather { left: shards.len(), so_far: SoFar::Fetch(fetching) };
        let pending = Pending { charge, ..self.pending(key, header, Some(gather)) };
        let whole = self.expect(key, connection, pending);
        let mut asked = Vec::new();
        for (at, shard) in shards.iter().enumerate() {
            let places: Vec<usize> = (0..owners.len()).filter(|place| owners[*place] == *shard).collect();
            let request = self.expect_answer(Asker::Part { whole, at });
            let parts = places.iter().map(|place| spec.parts[*place]).collect();
            let bytes_max = spec.bytes_max / shards.len();
            let own = FetchSpec { parts, bytes_min: 1, bytes_max, wait_ms: spec.wait_ms };
            asked.push((*shard, request, places));
            self.ask(*shard, request, Question::Fetch(own));
        }
        if let Some(Pending { gather: Some(gather), .. }) = self.pending.find(Key(whole.0))
            && let SoFar::Fetch(fetching) = &mut gather.so_far
        {
            fetching.asked = asked;
        }
    }

    fn list_offsets(
        &mut self,
        key: Key,
        connection: &mut Connection,
        header: FrameHeader,
        body: &[u8],
    ) -> Result<(), Refusal> {
        use list_offsets::v1::{HIGH_WATERMARK, LOG_START, MAX_TIMESTAMP, Request, Response, ResponsePartition};
        let request = open::<Request>(body)?;
        let asked: Vec<(PartitionUid, OffsetQuery)> = request
            .partitions
            .iter()
            .map(|part| {
                let query = match part.timestamp.to_native() {
                    HIGH_WATERMARK => OffsetQuery::Latest,
                    LOG_START => OffsetQuery::Earliest,
                    MAX_TIMESTAMP => OffsetQuery::MaxTimestamp,
                    timestamp => OffsetQuery::AtOrAfter(Timestamp(timestamp)),
                };
                (PartitionUid(part.partition_uid.to_native()), query)
            })
            .collect();
        asked.iter().try_for_each(|(uid, _)| self.check_known(*uid))?;
        let place = |(uid, _): &(PartitionUid, OffsetQuery)| ResponsePartition {
            partition_uid: uid.0,
            offset: list_offsets::v1::NO_OFFSET,
            timestamp: -1,
            leader_epoch: self.view.state(*uid).map_or(0, |epoch| epoch.0),
            ..Default::default()
        };
        let response = Response { partitions: asked.iter().map(place).collect() };
        if asked.is_empty() {
            connection.output.answer(&mut self.spare, &header, &response, Vec::new());
            return Ok(());
        }
        let so_far = SoFar::Offsets(response);
        let pending = self.pending(key, header, Some(Gather { left: asked.len(), so_far }));
        let whole = self.expect(key, connection, pending);
        for (at, (uid, query)) in asked.into_iter().enumerate() {
            let part = self.expect_answer(Asker::Part { whole, at });
            self.ask(self.owner(uid), part, Question::Offset(uid, query));
        }
        Ok(())
    }
}
