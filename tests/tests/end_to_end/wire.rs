//! Bad input on raw sockets: each has its documented error, and nobody else notices; knows no client crate.

use crate::{connect_with_topic, run};
use coulee_client::{ErrorCode, PartitionUid};
use coulee_protocol::api::{ApiKey, fetch::v1 as fetch, produce::v1 as produce, stats::v1 as stats};
use coulee_protocol::batch::HEADER_BYTES;
use coulee_protocol::frame::FrameHeader;
use coulee_protocol::hello::PROTOCOL_VERSION;
use coulee_protocol::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use coulee_tests::broker::Broker;
use coulee_tests::wire::{Answer, Wire, batch, encoded, hello_body};

/// A broker, the one partition of its topic, and a connection that is open all the time.
struct Scene {
    broker: Broker,
    uid: PartitionUid,
    bystander: Wire,
    produced: u64,
}

impl Scene {
    fn open() -> Self {
        let broker = Broker::start();
        let uid = run(async { connect_with_topic(&broker, 1).await.topic("t").await.unwrap().partitions[0].uid });
        let bystander = Wire::open(broker.address(), None);
        Self { broker, uid, bystander, produced: 0 }
    }

    fn wire(&self) -> Wire {
        Wire::open(self.broker.address(), None)
    }

    fn stranger(&self) -> Wire {
        Wire::connect(self.broker.address())
    }

    fn request(&self) -> produce::Request {
        produce::Request { partition_uid: self.uid.0, acks: 1, flags: 0, timeout_ms: 0 }
    }

    /// The connection is served as before, and so is another one; nothing of what was refused was written.
    #[track_caller]
    fn survives(&mut self, wire: &mut Wire) {
        let request = self.request();
        for wire in [wire, &mut self.bystander] {
            let response: produce::Response = wire.call(ApiKey::Produce, &request, &batch(&[b"sound"])).read();
            assert_eq!(response.base_offset, self.produced);
            self.produced += 1;
        }
    }

    /// The connection is closed, after an answer with this error; another one is served as before.
    #[track_caller]
    fn is_closed(&mut self, wire: &mut Wire, error: ErrorCode) {
        let answer = wire.answer();
        assert_eq!(answer.as_ref().map(Answer::error), Some(error), "{:?}", answer.map(|answer| answer.detail()));
        assert_eq!(wire.answer(), None, "the connection is closed");
        let mut other = self.wire();
        self.survives(&mut other);
    }
}

/// The bytes of a frame's header with one field changed.
fn header(api: u16, version: u16, body_bytes: usize, at: usize, field: &[u8]) -> Vec<u8> {
    let mut header = FrameHeader::request(api, version, 7, body_bytes, 0).encode().to_vec();
    header[at..at + field.len()].copy_from_slice(field);
    header
}

#[test]
fn what_is_no_hello_closes_its_connection_with_the_reason() {
    let mut scene = Scene::open();
    let hello = hello_body(None, PROTOCOL_VERSION);
    let mut wrong_magic = hello.clone();
    wrong_magic[0] = b'X';
    let mut reserved = hello.clone();
    reserved[22] = 1;
    let mut mechanism = hello.clone();
    mechanism[19] = 9;
    let upside_down = [&hello[..4], &[2, 0, 1, 0], &hello[8..]].concat();
    for (body, error) in [
        (wrong_magic, ErrorCode::HelloRequired),
        (hello[..hello.len() - 1].to_vec(), ErrorCode::HelloRequired),
        ([&hello[..], b"x"].concat(), ErrorCode::HelloRequired),
        (Vec::new(), ErrorCode::HelloRequired),
        (reserved, ErrorCode::InvalidRequest),
        (mechanism, ErrorCode::UnsupportedSaslMechanism),
        (upside_down, ErrorCode::InvalidRequest),
        (hello_body(None, PROTOCOL_VERSION + 1), ErrorCode::UnsupportedVersion),
    ] {
        let mut wire = scene.stranger();
        wire.ask(ApiKey::Hello.code(), 0, &body, &[]);
        scene.is_closed(&mut wire, error);
    }
}

#[test]
fn whoever_does_not_begin_with_hello_is_told_to() {
    let mut scene = Scene::open();
    let mut wire = scene.stranger();
    wire.ask(ApiKey::Stats.code(), 1, &encoded(&stats::Request { flags: 0 }), &[]);
    scene.is_closed(&mut wire, ErrorCode::HelloRequired);
    // Larger than a Hello may be.
    let mut wire = scene.stranger();
    let len = (HELLO_BYTES_MAX as u32 + 1).to_le_bytes();
    wire.send(&header(0, 0, 0, 0, &len));
    scene.is_closed(&mut wire, ErrorCode::FrameTooLarge);
    // Another protocol.
    let mut wire = scene.stranger();
    wire.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    scene.is_closed(&mut wire, ErrorCode::FrameTooLarge);
}

#[test]
fn frames_that_cannot_be_framed_close_their_connection_with_the_reason() {
    let mut scene = Scene::open();
    let stats = ApiKey::Stats.code();
    for (bytes, error) in [
        (header(stats, 1, 0, 0, &(FRAME_BYTES_MAX as u32 + 1).to_le_bytes()), ErrorCode::FrameTooLarge),
        (header(stats, 1, 0, 0, &u32::MAX.to_le_bytes()), ErrorCode::FrameTooLarge),
        (header(stats, 1, 0, 0, &23_u32.to_le_bytes()), ErrorCode::FrameInvalid),
        (header(stats, 1, 0, 4, &1_u32.to_le_bytes()), ErrorCode::FrameInvalid),
        (header(stats, 1, 0, 16, &2_u16.to_le_bytes()), ErrorCode::FrameInvalid),
        (header(stats, 1, 0, 18, &5_u16.to_le_bytes()), ErrorCode::FrameInvalid),
        (header(stats, 1, 0, 20, &[1]), ErrorCode::FrameInvalid),
        (header(stats, 1, 0, 16, &1_u16.to_le_bytes()), ErrorCode::FrameInvalid),
    ] {
        let mut wire = scene.wire();
        wire.send(&bytes);
        scene.is_closed(&mut wire, error);
    }
}

#[test]
fn what_was_asked_before_a_broken_frame_is_answered() {
    let mut scene = Scene::open();
    let mut wire = scene.wire();
    let body = encoded(&stats::Request { flags: 0 });
    let sound = FrameHeader::request(77, 1, 5, body.len(), 0).encode();
    wire.send(&[&sound[..], &body, &header(20, 1, 0, 20, &[1])].concat());
    assert_eq!(wire.answer().unwrap().error(), ErrorCode::UnsupportedVersion);
    scene.is_closed(&mut wire, ErrorCode::FrameInvalid);
}

#[test]
fn a_connection_that_ends_amid_a_frame_leaves_nothing_behind() {
    let mut scene = Scene::open();
    let body = encoded(&scene.request());
    let small = batch(&[b"whole"]);
    let large = batch(&[&vec![b'x'; 1 << 20]]);
    for batch in [small, large] {
        let header = FrameHeader::request(ApiKey::Produce.code(), 1, 1, body.len(), batch.len()).encode();
        let frame = [&header[..], &body, &batch].concat();
        for cut in [1, 23, 24, 30, 24 + body.len(), 24 + body.len() + HEADER_BYTES, frame.len() - 1] {
            let mut wire = scene.wire();
            wire.send(&frame[..cut]);
            drop(wire);
            let mut wire = scene.stranger();
            wire.send(&frame[..cut.min(24)]);
        }
    }
    let mut wire = scene.wire();
    scene.survives(&mut wire);
}

/// How large a frame of ours is that never comes in whole.
const NEVER_WHOLE_BYTES: usize = 1 << 20;

#[test]
fn whoever_says_nothing_is_told_that_hello_is_awaited_and_goes() {
    let mut scene = Scene::open();
    let (mut silent, mut amid_hello) = (scene.stranger(), scene.stranger());
    let hello = FrameHeader::request(0, 0, 1, 100, 0).encode();
    amid_hello.send(&hello);
    // They wait side by side for the broker's own limit.
    scene.is_closed(&mut silent, ErrorCode::HelloRequired);
    scene.is_closed(&mut amid_hello, ErrorCode::HelloRequired);
}

#[test]
fn a_frame_that_does_not_come_on_closes_its_connection_and_one_that_rests_between_frames_stays() {
    let mut scene = Scene::open();
    let body = encoded(&scene.request());
    let batch_bytes = NEVER_WHOLE_BYTES - body.len();
    let header = FrameHeader::request(ApiKey::Produce.code(), 1, 1, body.len(), batch_bytes).encode();
    let begun: Vec<u8> = header.iter().chain(&body).copied().collect();
    let (mut cut_header, mut cut_batch, mut resting) = (scene.wire(), scene.wire(), scene.wire());
    cut_header.send(&header[..7]);
    cut_batch.send(&begun);
    // What they had begun is no request: it has no answer.
    assert_eq!(cut_header.answer(), None);
    assert_eq!(cut_batch.answer(), None);
    scene.survives(&mut resting);
}

#[test]
fn what_the_broker_does_not_know_is_refused_and_the_connection_goes_on() {
    let mut scene = Scene::open();
    let mut wire = scene.wire();
    let stats = encoded(&stats::Request { flags: 0 });
    for (api, version) in [(5, 1), (60, 1), (u16::MAX, 1), (20, 0), (20, 2), (20, u16::MAX), (2, 0), (0, 1)] {
        let answer = wire.request(api, version, &stats, &[]);
        assert_eq!(answer.error(), ErrorCode::UnsupportedVersion, "{api} {version}: {}", answer.detail());
        scene.survives(&mut wire);
    }
    assert_eq!(wire.hello(None).error(), ErrorCode::InvalidRequest, "Hello is said once");
    scene.survives(&mut wire);
}

#[test]
fn bodies_that_make_no_sense_are_refused_and_the_connection_goes_on() {
    let mut scene = Scene::open();
    let mut wire = scene.wire();
    let sound = batch(&[b"x"]);
    let request = scene.request();
    let none = fetch::Request { isolation: 7, ..Default::default() };
    let flags = stats::Request { flags: 1 };
    let twice = [&sound[..], &sound].concat();
    let table: [(ApiKey, Vec<u8>, &[u8], ErrorCode); 9] = [
        (ApiKey::Stats, Vec::new(), &[], ErrorCode::InvalidRequest),
        (ApiKey::Stats, encoded(&flags), &[], ErrorCode::InvalidRequest),
        (ApiKey::Stats, encoded(&stats::Request { flags: 0 }), &sound, ErrorCode::InvalidRequest),
        (ApiKey::Fetch, encoded(&none), &[], ErrorCode::InvalidRequest),
        (ApiKey::Metadata, vec![0xff; 9], &[], ErrorCode::InvalidRequest),
        (ApiKey::Produce, vec![0; 13], &sound, ErrorCode::InvalidRequest),
        (
            ApiKey::Produce,
            encoded(&produce::Request { acks: 2, ..request.clone() }),
            &sound,
            ErrorCode::InvalidRequiredAcks,
        ),
        (ApiKey::Produce, encoded(&request), &[], ErrorCode::CorruptMessage),
        (ApiKey::Produce, encoded(&request), &twice, ErrorCode::CorruptMessage),
    ];
    for (api, body, batches, error) in table {
        let answer = wire.request(api.code(), 1, &body, batches);
        assert_eq!(answer.error(), error, "{api}: {}", answer.detail());
        scene.survives(&mut wire);
    }
}

#[test]
fn batches_that_are_not_whole_or_not_for_producers_are_refused_and_nothing_is_written() {
    let mut scene = Scene::open();
    let mut wire = scene.wire();
    let request = scene.request();
    let sound = batch(&[b"value one", b"value two"]);
    let changed = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        bytes
    };
    // A change that is covered by the header's checksum again.
    let forged = |at: usize, field: &[u8]| {
        let mut bytes = sound.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[..8]);
        crc.update(&bytes[12..HEADER_BYTES]);
        bytes[8..12].copy_from_slice(&crc.finalize().to_le_bytes());
        bytes
    };
    let refused = [
        (changed(0), ErrorCode::CorruptMessage),
        (changed(70), ErrorCode::CorruptMessage),
        (changed(HEADER_BYTES), ErrorCode::CorruptMessage),
        (changed(sound.len() - 1), ErrorCode::CorruptMessage),
        (sound[..sound.len() - 1].to_vec(), ErrorCode::CorruptMessage),
        (sound[..HEADER_BYTES].to_vec(), ErrorCode::CorruptMessage),
        (sound[..40].to_vec(), ErrorCode::CorruptMessage),
        ([&sound[..], &[0]].concat(), ErrorCode::CorruptMessage),
        // `batch_len`, `record_count`, `offset_count`.
        (forged(16, &u32::MAX.to_le_bytes()), ErrorCode::CorruptMessage),
        (forged(68, &3_u32.to_le_bytes()), ErrorCode::CorruptMessage),
        (forged(64, &3_u32.to_le_bytes()), ErrorCode::CorruptMessage),
        // `partition_uid` and `base_offset` are the leader's; a transaction marker and a control batch the broker's.
        (forged(24, &scene.uid.0.to_le_bytes()), ErrorCode::InvalidRecord),
        (forged(56, &9_u64.to_le_bytes()), ErrorCode::InvalidRecord),
        (forged(7, &[3]), ErrorCode::InvalidRecord),
        (forged(102, &32_u16.to_le_bytes()), ErrorCode::InvalidRecord),
        (forged(102, &1_u16.to_le_bytes()), ErrorCode::UnsupportedCompressionType),
        (batch(&[&vec![0; 2 << 20]]), ErrorCode::MessageTooLarge),
    ];
    for (at, (batch, error)) in refused.into_iter().enumerate() {
        let answer = wire.call(ApiKey::Produce, &request, &batch);
        assert_eq!(answer.error(), error, "batch {at}: {}", answer.detail());
        scene.survives(&mut wire);
    }
}

#[test]
fn partitions_and_offsets_that_do_not_exist_are_refused_one_by_one() {
    let mut scene = Scene::open();
    let mut wire = scene.wire();
    let stray = produce::Request { partition_uid: 999_999, ..scene.request() };
    let answer = wire.call(ApiKey::Produce, &stray, &batch(&[b"x"]));
    assert_eq!(answer.error(), ErrorCode::UnknownTopicOrPartition);
    scene.survives(&mut wire);
    let part = |uid, offset| fetch::RequestPartition { partition_uid: uid, offset, max_bytes: 1 << 20 };
    let partitions = vec![part(999_999, 0), part(scene.uid.0, 0), part(scene.uid.0, 99)];
    let request = fetch::Request { max_wait_ms: 60_000, min_bytes: 1, max_bytes: 1 << 20, isolation: 0, partitions };
    let response: fetch::Response = wire.call(ApiKey::Fetch, &request, &[]).read();
    let errors: Vec<_> = response.partitions.iter().map(|part| ErrorCode::from_code(part.error).unwrap()).collect();
    assert_eq!(errors, [ErrorCode::UnknownTopicOrPartition, ErrorCode::None, ErrorCode::OffsetOutOfRange]);
    assert!(response.partitions[1].batches_len > 0);
}

/// Connections that say nothing, beside each other.
const SILENT: usize = 5_000;

/// Lets this process have as many descriptors as it may.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to the last argument, which lives beyond the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one `rlimit`, which lives beyond the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    assert!(limit.rlim_max > SILENT as u64 + 500, "ulimit -Hn is {}: raise it", limit.rlim_max);
}

#[test]
fn five_thousand_connections_that_say_nothing_are_sent_away_and_others_are_served_meanwhile() {
    raise_open_files();
    let mut scene = Scene::open();
    let mut silent = Vec::with_capacity(SILENT);
    for at in 0..SILENT {
        silent.push(scene.stranger());
        if at % 500 == 0 {
            let mut other = scene.wire();
            scene.survives(&mut other);
        }
    }
    for wire in &mut silent {
        assert_eq!(wire.answer().map(|answer| answer.error()), Some(ErrorCode::HelloRequired));
        assert_eq!(wire.answer(), None, "the connection is closed");
    }
    let mut other = scene.wire();
    scene.survives(&mut other);
}

#[test]
fn a_consumer_that_never_reads_is_in_nobodys_way_and_gets_its_answers_when_it_does() {
    let mut scene = Scene::open();
    let mut filling = scene.wire();
    for _ in 0..8 {
        let request = scene.request();
        let large = batch(&[&vec![b'x'; 1_000_000]]);
        let answer: produce::Response = filling.call(ApiKey::Produce, &request, &large).read();
        assert_eq!(answer.base_offset, scene.produced);
        scene.produced += 1;
    }
    let partitions = vec![fetch::RequestPartition { partition_uid: scene.uid.0, offset: 0, max_bytes: 8 << 20 }];
    let request = fetch::Request { max_wait_ms: 0, min_bytes: 1, max_bytes: 8 << 20, isolation: 0, partitions };
    let mut greedy = scene.wire();
    let asked: Vec<u32> = (0..100).map(|_| greedy.ask(ApiKey::Fetch.code(), 1, &encoded(&request), &[])).collect();
    // A gigabyte waits for it; others produce as before.
    for _ in 0..20 {
        let mut other = scene.wire();
        scene.survives(&mut other);
    }
    for _ in asked {
        let answer = greedy.answer().expect("what was asked is answered");
        let response: fetch::Response = answer.read();
        assert!(response.partitions[0].batches_len > 1_000_000, "{response:?}");
    }
    scene.survives(&mut greedy);
}
