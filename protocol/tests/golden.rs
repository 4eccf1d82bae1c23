//! Published bytes stay: owns fixed values and compares them with golden files; knows no broker.
//!
//! It also compares the code's tables with those of docs/PROTOCOL.md.
//!
//! The files lie in tests/format/golden/protocol; golden.json lists what each of them holds, so that readers in other
//! languages can check themselves. `COULEE_GOLDEN=write` writes anew: for new versions only, never for a changed one.

use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use coulee_protocol::api::error_body::ErrorBody;
use coulee_protocol::api::stats::{Counter, Histogram};
use coulee_protocol::api::{
    APIS, Body, broker, decode, encode, fetch, groups, list_offsets, members, metadata, offsets, produce, stats, topics,
};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FLAG_RESPONSE, FrameHeader};
use coulee_protocol::hello::{ApiRange, HelloRequest, HelloResponse};
use coulee_protocol::ids::{ClusterId, ShardId};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The fixed values met so far: file name, bytes, fields as JSON.
#[derive(Default)]
struct Golden(Vec<(&'static str, Vec<u8>, String)>);

impl Golden {
    fn add(&mut self, name: &'static str, bytes: Vec<u8>, value: &impl Debug) {
        self.0.push((name, bytes, json(&format!("{value:?}"))));
    }

    fn body<T: Body + Debug + PartialEq>(&mut self, name: &'static str, value: &T) {
        let mut bytes = Vec::new();
        encode(value, &mut bytes);
        assert_eq!(&decode::<T>(&bytes).expect("what was encoded"), value, "{name}");
        self.add(name, bytes, value);
    }

    /// Compares with the committed files, or writes them.
    #[expect(clippy::disallowed_methods, reason = "the switch to write golden files is given to the test by hand")]
    fn check(self) {
        let directory = root().join("tests/format/golden/protocol");
        let write = std::env::var("COULEE_GOLDEN").is_ok_and(|value| value == "write");
        if write {
            fs::create_dir_all(&directory).expect("a writable checkout");
        }
        let mut listing: Vec<_> =
            self.0.iter().map(|(name, _, fields)| format!("  \"{name}.bin\": {fields}")).collect();
        listing.sort();
        let listing = format!("{{\n{}\n}}\n", listing.join(",\n")).into_bytes();
        let files = self.0.into_iter().map(|(name, bytes, _)| (format!("{name}.bin"), bytes));
        let files: Vec<_> = files.chain([("golden.json".to_owned(), listing)]).collect();
        for (name, bytes) in &files {
            let path = directory.join(name);
            if write {
                fs::write(&path, bytes).expect("a writable checkout");
            }
            let committed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(&committed == bytes, "{name} differs:\ncommitted {committed:02x?}\nencoded   {bytes:02x?}");
        }
        let count = fs::read_dir(&directory).expect("the golden directory").count();
        assert_eq!(count, files.len(), "files in {}", directory.display());
    }
}

/// JSON from the derived `Debug` of structs that hold numbers, texts, lists and options only.
fn json(debug: &str) -> String {
    let mut out = String::new();
    let mut rest = debug;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word_end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        if first == '"' {
            let end = rest[1..].find('"').expect("Debug closes its quotes") + 2;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        } else if !first.is_alphabetic() {
            let end = word_end.max(1);
            if !matches!(first, '(' | ')') {
                out.push_str(&rest[..end]);
            }
            rest = &rest[end..];
        } else {
            match after.trim_start().chars().next() {
                Some('{' | '(') => rest = after.trim_start(),
                Some(':') => {
                    out.push_str(&format!("\"{word}\""));
                    rest = after;
                }
                _ => {
                    assert_eq!(word, "None", "no JSON for {debug}");
                    out.push_str("null");
                    rest = after;
                }
            }
        }
    }
    out
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// 16 bytes that differ from each other.
fn id(first: u8) -> [u8; 16] {
    std::array::from_fn(|index| first + index as u8)
}

fn add_frames(golden: &mut Golden) {
    let request = FrameHeader {
        len: 0x0001_0203,
        body_len: 0x0405,
        api: 0x0607,
        version: 0x0809,
        correlation: 0x0a0b_0c0d,
        flags: 0,
        error: 0,
    };
    golden.add("frame_header_request", request.encode().to_vec(), &request);
    let response = FrameHeader { flags: FLAG_RESPONSE, error: ErrorCode::DiskFull.code(), ..request };
    golden.add("frame_header_response", response.encode().to_vec(), &response);
}

fn add_hello(golden: &mut Golden) {
    let request = HelloRequest {
        protocol_min: 1,
        protocol_max: 2,
        features: 0x0102_0304_0506_0708,
        wanted_shard: Some(ShardId(3)),
        client_name: "golden/1.0",
        auth_mechanism: 1,
        credentials: &[0, 97, 0, 98],
    };
    let any = HelloRequest { features: 0, wanted_shard: None, auth_mechanism: 0, credentials: &[], ..request };
    for (name, request) in [("hello_request_v0", request), ("hello_request_v0_any_shard", any)] {
        let mut bytes = Vec::new();
        request.encode(&mut bytes).expect("a valid hello");
        golden.add(name, bytes, &request);
    }
    let response = HelloResponse {
        protocol: 1,
        features: 0x0807_0605_0403_0201,
        broker_version: "0.1.0",
        cluster_id: ClusterId(id(0x10)),
        shard: ShardId(3),
        shards: 4,
        apis: vec![ApiRange { api: 0, min: 0, max: 0 }, ApiRange { api: 0x0102, min: 0x0304, max: 0x0506 }],
    };
    let mut bytes = Vec::new();
    response.encode(&mut bytes).expect("a valid hello");
    golden.add("hello_response_v0", bytes, &response);
}

fn add_metadata(golden: &mut Golden) {
    use metadata::v1::{Broker, FLAG_INCLUDE_INTERNAL, Partition, Request, Response, Topic, TopicName};
    let names = ["orders", "__catalog"].map(|name| TopicName { name: text(name) }).to_vec();
    golden.body("metadata_request_v1", &Request { topics: names, flags: FLAG_INCLUDE_INTERNAL });
    golden.body("metadata_request_v1_all", &Request { topics: vec![], flags: 3 });
    let partition = |index| Partition {
        index,
        partition_uid: 0x0102_0304_0506_0708 + u64::from(index),
        shard: 0x090a,
        broker_id: 0x0b0c_0d0e,
        leader_epoch: 0x0f10_1112,
        error: 1007,
    };
    let topic = Topic {
        topic_id: id(0x20),
        name: text("orders"),
        durability: 1,
        partitions: vec![partition(0), partition(1)],
        ..Default::default()
    };
    let unknown = Topic { error: 3, name: text("nil"), flags: 1, ..Default::default() };
    let brokers = vec![
        Broker { broker_id: 1, host: text("127.0.0.1"), port: 7700 },
        Broker { broker_id: 2, host: text("::1"), port: 7701 },
    ];
    golden.body(
        "metadata_response_v1",
        &Response { cluster_id: id(0x40), controller_shard: 0x0102, brokers, shards: 2, topics: vec![topic, unknown] },
    );
}

fn add_data(golden: &mut Golden) {
    let uid = 0x0102_0304_0506_0708;
    golden.body(
        "produce_request_v1",
        &produce::v1::Request { partition_uid: uid, acks: 1, flags: 0, timeout_ms: 0x090a_0b0c },
    );
    golden.body(
        "produce_response_v1",
        &produce::v1::Response { base_offset: uid, log_start: 9, high_watermark: 0x0a0b, leader_epoch: 0x0c0d_0e0f },
    );
    let partition = |offset| fetch::v1::RequestPartition { partition_uid: uid, offset, max_bytes: 0x0010_0000 };
    let partitions = vec![partition(0), partition(0x1112_1314)];
    golden.body(
        "fetch_request_v1",
        &fetch::v1::Request { max_wait_ms: 500, min_bytes: 1, max_bytes: 0x0080_0000, isolation: 1, partitions },
    );
    let partition = fetch::v1::ResponsePartition {
        partition_uid: uid,
        error: 1006,
        high_watermark: 0x2122,
        last_stable_offset: 0x2324,
        log_start: 0x2526,
        batches_len: 0x2728,
        damaged_from: 0x292a,
        damaged_to: 0x2b2c,
    };
    golden.body("fetch_response_v1", &fetch::v1::Response { partitions: vec![partition.clone(), partition] });
    let partition = |timestamp| list_offsets::v1::RequestPartition { partition_uid: uid, timestamp };
    let partitions = vec![partition(-1), partition(-2), partition(-3), partition(1_700_000_000_000)];
    golden.body("list_offsets_request_v1", &list_offsets::v1::Request { partitions });
    let found = list_offsets::v1::ResponsePartition {
        partition_uid: uid,
        error: 0,
        offset: 0x3132,
        timestamp: 1_700_000_000_001,
        leader_epoch: 0x3334,
    };
    let none = list_offsets::v1::ResponsePartition { offset: u64::MAX, timestamp: -1, error: 3, ..found };
    golden.body("list_offsets_response_v1", &list_offsets::v1::Response { partitions: vec![found, none] });
}

fn add_topics(golden: &mut Golden) {
    use topics::v1::*;
    let entry = |key: &str, value: &str| ConfigEntry { key: text(key), value: text(value) };
    let configs = vec![entry("durability", "written"), entry("compression.type", "")];
    let create = CreateRequest {
        name: text("orders"),
        partitions: 0x0102_0304,
        replication_factor: 0x0506,
        configs: configs.clone(),
        flags: 1,
    };
    golden.body("create_topic_request_v1", &create);
    golden.body("create_topic_response_v1", &CreateResponse { topic_id: id(0x50), partitions: 0x0102_0304 });
    golden.body("delete_topic_request_v1", &DeleteRequest { name: text("orders"), flags: 1 });
    golden.body("delete_topic_response_v1", &DeleteResponse { topic_id: id(0x50) });
    let removed = vec![ConfigKey { key: text("segment.bytes") }];
    let alter = AlterRequest { name: text("orders"), set: configs, removed, partitions: 0x0102_0304, flags: 1 };
    golden.body("alter_topic_request_v1", &alter);
    golden.body("alter_topic_response_v1", &AlterResponse { topic_id: id(0x50), partitions: 0x0102_0304 });
    golden.body("describe_topic_request_v1", &DescribeRequest { name: text("orders"), flags: 0 });
    let partition = |index| Partition {
        index,
        partition_uid: 0x0102,
        shard: 0x0304,
        error: 0x0506,
        leader_epoch: 0x0708,
        log_start: 0x090a,
        high_watermark: 0x0b0c,
        log_end: 0x0d0e,
        bytes: 0x0f10,
        segments: 0x1112,
    };
    let configs = vec![
        Config { key: text("durability"), value: text("fsync"), origin: ORIGIN_DEFAULT },
        Config { key: text("segment.bytes"), value: text("65536"), origin: ORIGIN_TOPIC },
    ];
    let partitions = vec![partition(0), partition(1)];
    let topic_id = id(0x50);
    golden.body(
        "describe_topic_response_v1",
        &DescribeResponse { topic_id, flags: 1, durability: 1, replication_factor: 0x1314, partitions, configs },
    );
}

fn add_operations(golden: &mut Golden) {
    golden.body("stats_request_v1", &stats::v1::Request { flags: 0 });
    let counters = vec![
        stats::v1::CounterValue { id: 1, value: 0x0102_0304_0506_0708 },
        stats::v1::CounterValue { id: 100, value: 9 },
    ];
    let buckets = vec![stats::v1::Bucket { le: 250, count: 7 }, stats::v1::Bucket { le: u64::MAX, count: 1 }];
    let histograms = vec![stats::v1::HistogramValue { id: 1, buckets }];
    let shard = stats::v1::Shard { shard: 0, recovery_percent: 100, counters, histograms };
    let idle = stats::v1::Shard { shard: 1, recovery_percent: 42, ..Default::default() };
    let shards = vec![shard, idle];
    golden.body("stats_response_v1", &stats::v1::Response { shards, process_cpu_us: 0x1112, rss_bytes: 0x1314 });
    golden.body("describe_broker_request_v1", &broker::v1::Request { flags: 0 });
    let entry = |key: &str, value: &str, origin: broker::Origin, detail: &str| broker::v1::Entry {
        key: text(key),
        value: text(value),
        origin: origin.code(),
        origin_detail: text(detail),
    };
    let entries = vec![
        entry("native.listen", "127.0.0.1:7700", broker::Origin::Default, ""),
        entry("shards", "2", broker::Origin::File, "coulee.toml:3"),
    ];
    golden.body("describe_broker_response_v1", &broker::v1::Response { version: text("0.1.0"), entries });
    let error = ErrorBody { message: text("the disk is full"), detail: text("orders-3"), outcome: 1 };
    golden.body("error_body", &error);
}

fn add_members(golden: &mut Golden) {
    use members::v1::*;
    golden.body("find_coordinator_request_v1", &FindRequest { group: text("billing") });
    let host = text("127.0.0.1");
    let found = FindResponse { partition: 49, shard: 0x0102, broker_id: 0x0304_0506, host, port: 7700 };
    golden.body("find_coordinator_response_v1", &found);
    let protocol = |name: &str, metadata: &str| Protocol { name: text(name), metadata: text(metadata) };
    let join = JoinRequest {
        group: text("billing"),
        member_id: text("app-1"),
        instance_id: text("node-1"),
        client_id: text("app"),
        session_timeout_ms: 45_000,
        rebalance_timeout_ms: 300_000,
        protocol_type: text("consumer"),
        protocols: vec![protocol("cooperative-sticky", "abc"), protocol("range", "")],
    };
    golden.body("join_group_request_v1", &join);
    let member = |id: &str, instance: &str| JoinedMember {
        member_id: text(id),
        instance_id: text(instance),
        metadata: text("abc"),
    };
    let joined = JoinResponse {
        error: 0,
        generation: 0x0102_0304,
        protocol: text("range"),
        leader: text("app-1"),
        member_id: text("app-1"),
        flags: FLAG_SKIP_ASSIGNMENT,
        protocol_type: text("consumer"),
        members: vec![member("app-1", "node-1"), member("app-2", "")],
    };
    golden.body("join_group_response_v1", &joined);
    let member_id = text("app-1");
    golden.body("join_group_response_v1_id_required", &JoinResponse { error: 79, member_id, ..Default::default() });
    let assignments = vec![MemberAssignment { member_id: text("app-1"), assignment: text("xyz") }];
    let (group, member_id, instance_id) = (text("billing"), text("app-1"), text("node-1"));
    let (protocol_type, protocol) = (text("consumer"), text("range"));
    let sync = SyncRequest { group, generation: 7, member_id, instance_id, protocol_type, protocol, assignments };
    golden.body("sync_group_request_v1", &sync);
    let SyncRequest { group, member_id, instance_id, protocol_type, protocol, .. } = sync;
    golden.body("sync_group_response_v1", &SyncResponse { protocol_type, protocol, assignment: text("xyz") });
    golden.body("heartbeat_request_v1", &HeartbeatRequest { group, generation: 7, member_id, instance_id });
    golden.body("heartbeat_response_v1", &HeartbeatResponse { flags: 0 });
    let (member_id, instance_id) = (text("app-1"), text("node-1"));
    let leaving = Leaving { member_id: member_id.clone(), instance_id: instance_id.clone() };
    golden.body("leave_group_request_v1", &LeaveRequest { group: text("billing"), members: vec![leaving] });
    let left = Left { member_id, instance_id, error: 25 };
    golden.body("leave_group_response_v1", &LeaveResponse { members: vec![left] });
}

fn add_offsets(golden: &mut Golden) {
    use offsets::v1::*;
    let (group, name) = (text("billing"), text("orders"));
    let (offset, leader_epoch) = (0x0102_0304_0506_0708, 0x090a_0b0c);
    let partition = CommitPartition { index: 3, offset, leader_epoch, metadata: text("here") };
    let bare = CommitPartition { index: 4, offset: 0, leader_epoch: NO_LEADER_EPOCH, metadata: text("") };
    let topics = vec![CommitTopic { name: name.clone(), partitions: vec![partition, bare] }];
    let (member_id, instance_id) = (text("app-1"), text("node-1"));
    golden.body(
        "offset_commit_request_v1",
        &CommitRequest { group: group.clone(), generation: 7, member_id, instance_id, topics },
    );
    let partitions = vec![PartitionResult { index: 3, error: 0 }, PartitionResult { index: 4, error: 12 }];
    let topics = vec![TopicResults { name: name.clone(), partitions }];
    golden.body("offset_commit_response_v1", &ResultsResponse { topics: topics.clone() });
    golden.body("offset_delete_response_v1", &ResultsResponse { topics });
    let topics = vec![TopicPartitions { name: name.clone(), partitions: vec![3, 4] }];
    golden.body("offset_delete_request_v1", &DeleteRequest { group: group.clone(), topics: topics.clone() });
    golden.body("offset_fetch_request_v1", &FetchRequest { group: group.clone(), topics, flags: 0 });
    golden.body("offset_fetch_request_v1_all", &FetchRequest { group, topics: vec![], flags: FLAG_ALL });
    let commit_timestamp = 1_700_000_000_000;
    let found = PartitionOffset { index: 3, offset, leader_epoch, metadata: text("here"), commit_timestamp };
    let none = PartitionOffset { index: 4, offset: NO_OFFSET, leader_epoch: -1, commit_timestamp: -1, ..found.clone() };
    let none = PartitionOffset { metadata: text(""), ..none };
    let topics = vec![TopicOffsets { name, partitions: vec![found, none] }];
    golden.body("offset_fetch_response_v1", &FetchResponse { topics });
}

fn add_groups(golden: &mut Golden) {
    use groups::v1::*;
    let group = text("billing");
    golden.body("list_groups_request_v1", &ListRequest { flags: 0 });
    let listed = ListedGroup { group: group.clone(), protocol_type: text("consumer"), state: 3, members: 0x0102_0304 };
    let bare = ListedGroup { group: text("tool"), ..Default::default() };
    golden.body("list_groups_response_v1", &ListResponse { groups: vec![listed, bare] });
    golden.body("describe_group_request_v1", &DescribeRequest { group: group.clone() });
    let member = DescribedMember {
        member_id: text("app-1"),
        instance_id: text("node-1"),
        client_id: text("app"),
        client_host: text("/127.0.0.1"),
        metadata: text("abc"),
        assignment: text("xyz"),
    };
    let described = DescribeResponse {
        state: 3,
        generation: 7,
        protocol_type: text("consumer"),
        protocol: text("range"),
        leader: text("app-1"),
        partition: 0x0102,
        members: vec![member],
    };
    golden.body("describe_group_response_v1", &described);
    golden.body("delete_group_request_v1", &DeleteRequest { group, flags: FLAG_VALIDATE_ONLY });
    golden.body("delete_group_response_v1", &DeleteResponse { flags: 0 });
}

#[test]
fn golden_files_hold_what_is_encoded_today() {
    let mut golden = Golden::default();
    add_frames(&mut golden);
    add_hello(&mut golden);
    add_metadata(&mut golden);
    add_data(&mut golden);
    add_topics(&mut golden);
    add_operations(&mut golden);
    add_members(&mut golden);
    add_offsets(&mut golden);
    add_groups(&mut golden);
    golden.check();
}

#[test]
fn debug_becomes_json() {
    let request = HelloRequest {
        protocol_min: 1,
        protocol_max: 1,
        features: 0,
        wanted_shard: None,
        client_name: "a b",
        auth_mechanism: 0,
        credentials: &[1],
    };
    let found = json(&format!("{:?}", (request.wanted_shard, ShardId(7), request.client_name, request.credentials)));
    assert_eq!(found, r#"null, 7, "a b", [1]"#);
}

fn document() -> String {
    fs::read_to_string(root().join("docs/PROTOCOL.md")).expect("docs/PROTOCOL.md")
}

/// Asserts that each row stands in the document.
fn check_rows(rows: impl Iterator<Item = String>) {
    let document = document();
    let missing: Vec<_> = rows.filter(|row| !document.lines().any(|line| line == row)).collect();
    assert!(missing.is_empty(), "docs/PROTOCOL.md lacks these rows:\n{}", missing.join("\n"));
}

#[test]
fn document_lists_every_error_code() {
    check_rows(ErrorCode::ALL.iter().map(|code| {
        let (retriable, outcome) = (code.retriable().name(), code.outcome().name());
        format!("| {} | {} | {retriable} | {outcome} | {} |", code.code(), code.name(), code.meaning())
    }));
}

#[test]
fn document_lists_every_api() {
    check_rows(APIS.iter().map(|row| {
        format!(
            "| {} | {} | {}–{} | {:?} | {:?} |",
            row.key.code(),
            row.name,
            row.min,
            row.max,
            row.operation,
            row.resource
        )
    }));
}

#[test]
fn document_lists_every_counter_and_histogram() {
    check_rows(Counter::ALL.iter().map(|counter| {
        format!("| {} | `{}` | {} | {} |", counter.id(), counter.name(), counter.kind().name(), counter.meaning())
    }));
    check_rows(
        Histogram::ALL
            .iter()
            .map(|histogram| format!("| {} | `{}` | {} |", histogram.id(), histogram.name(), histogram.meaning())),
    );
}

#[test]
fn document_gives_the_layout_of_every_archive() {
    let document = document();
    let mut archives = 0;
    let data = ["metadata", "produce", "fetch", "list_offsets", "topics"];
    let operations = ["stats", "broker", "members", "offsets", "groups", "error_body"];
    for module in data.into_iter().chain(operations) {
        let source = fs::read_to_string(root().join(format!("protocol/src/api/{module}.rs"))).unwrap();
        for block in source.split("archived! {").skip(1) {
            let declaration = block.split_once("pub struct ").unwrap().1;
            let (name, rest) = declaration.split_once(": ").unwrap();
            let (bytes, fields) = rest.split_once(" {").unwrap();
            let heading = format!("**`{module}::{name}`**, {bytes} bytes\n\n");
            let section = document.split_once(&heading).unwrap_or_else(|| panic!("docs/PROTOCOL.md lacks {heading}")).1;
            let table = section.split_once("\n\n").unwrap().0;
            let fields = fields.split_once('}').unwrap().0.lines().map(str::trim);
            let fields: Vec<_> = fields.filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).collect();
            // Two lines of heading, then one for each field.
            assert_eq!(table.lines().count(), 2 + fields.len(), "{heading}");
            for (field, row) in fields.iter().zip(table.lines().skip(2)) {
                let (offset, field) = field.trim_end_matches(',').split_once(' ').unwrap();
                let (field, kind) = field.split_once(": ").unwrap();
                let expected = format!("| {offset} | `{field}` | {kind} | ");
                assert!(row.starts_with(&expected), "{heading}expected {expected}\nfound    {row}");
            }
            archives += 1;
        }
    }
    assert_eq!(archives, 73, "archives found in the sources");
}
