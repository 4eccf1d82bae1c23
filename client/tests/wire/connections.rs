//! The client against a real socket: owns claims about connections and requests; knows no broker.

use std::time::Duration;

use super::peer::{Door, Peer, answer, refusal};
use coulee_client::{AdminError, Client, ConnectError, ErrorCode, HelloFault, NewTopic, Violation};
use coulee_protocol::api::broker::v1 as broker;
use coulee_protocol::api::stats::v1 as stats;
use coulee_protocol::api::topics::v1 as topics;
use coulee_protocol::frame::FrameHeader;

/// A client and the peer that it is connected to.
async fn connected(door: &Door) -> (Client, Peer) {
    let (client, peer) = tokio::join!(Client::connect(door.address.as_str()), door.accept());
    (client.unwrap(), peer)
}

fn statistics(rss_bytes: u64) -> stats::Response {
    stats::Response { rss_bytes, ..Default::default() }
}

#[tokio::test]
async fn answers_may_overtake_each_other() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let (first, second) = (peer.request().await.unwrap(), peer.request().await.unwrap());
        assert_ne!(first.header.correlation, second.header.correlation);
        let is_stats = |header: &FrameHeader| header.api == 20;
        let (of_stats, of_broker) = if is_stats(&first.header) { (first, second) } else { (second, first) };
        peer.answer(&of_broker, &broker::Response { version: b"7".to_vec(), entries: vec![] }).await;
        peer.answer(&of_stats, &statistics(1)).await;
    };
    let (statistics, description, ()) = tokio::join!(client.stats(), client.describe_broker(), script);
    assert_eq!(statistics.unwrap().rss_bytes, 1);
    assert_eq!(description.unwrap().version, "7");
}

#[tokio::test]
async fn an_answer_may_come_byte_by_byte() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        peer.stream.set_nodelay(true).unwrap();
        let request = peer.request().await.unwrap();
        for byte in answer(&request, &statistics(5), &[]) {
            peer.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
    };
    let (statistics, ()) = tokio::join!(client.stats(), script);
    assert_eq!(statistics.unwrap().rss_bytes, 5);
}

#[tokio::test]
async fn a_lost_connection_is_made_anew_and_a_read_is_repeated() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        peer.request().await.unwrap();
        drop(peer);
        let mut peer = door.accept().await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &statistics(6)).await;
        peer
    };
    let (statistics, _peer) = tokio::join!(client.stats(), script);
    assert_eq!(statistics.unwrap().rss_bytes, 6);
}

#[tokio::test]
async fn a_change_that_was_sent_and_not_answered_is_not_repeated() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let request = peer.request().await.unwrap();
        let asked: topics::CreateRequest = request.body();
        assert_eq!((asked.name, asked.partitions), (b"t".to_vec(), 3));
        drop(peer);
    };
    let (created, ()) = tokio::join!(client.create_topic(NewTopic::new("t").partitions(3)), script);
    assert_eq!(created, Err(AdminError::OutcomeUnknown));
    assert_eq!(created.unwrap_err().code(), Some(ErrorCode::OutcomeUnknown));
}

#[tokio::test]
async fn a_change_that_was_surely_not_made_is_repeated() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let request = peer.request().await.unwrap();
        peer.refuse(&request, ErrorCode::Recovering).await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &topics::CreateResponse { topic_id: [3; 16], partitions: 1 }).await;
    };
    let (created, ()) = tokio::join!(client.create_topic(NewTopic::new("t")), script);
    assert_eq!(created.unwrap().topic_id.0, [3; 16]);
}

#[tokio::test]
async fn a_refusal_carries_code_message_and_detail() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let request = peer.request().await.unwrap();
        peer.refuse(&request, ErrorCode::UnknownTopicOrPartition).await;
    };
    let (deleted, ()) = tokio::join!(client.delete_topic("t"), script);
    let Err(AdminError::Refused(refusal)) = deleted else { panic!("{deleted:?}") };
    assert_eq!(refusal.code(), Some(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(
        (refusal.message.as_str(), refusal.detail.as_str()),
        (ErrorCode::UnknownTopicOrPartition.meaning(), "a detail")
    );
}

/// Sends `bytes` of an answer that was made wrong; the client has to close, and to say that the outcome is unknown.
async fn check_fatal(change: impl Fn(&mut Vec<u8>)) {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let request = peer.request().await.unwrap();
        let mut bytes = answer(&request, &topics::CreateResponse::default(), &[]);
        change(&mut bytes);
        peer.send(&bytes).await;
        assert!(peer.request().await.is_none(), "the connection is closed");
    };
    let (created, ()) = tokio::join!(client.create_topic(NewTopic::new("t")), script);
    assert_eq!(created, Err(AdminError::OutcomeUnknown));
}

#[tokio::test]
async fn frames_that_break_the_rules_close_the_connection() {
    check_fatal(|bytes| bytes[0..4].copy_from_slice(&u32::MAX.to_le_bytes())).await;
    check_fatal(|bytes| bytes[0..4].copy_from_slice(&((16_u32 << 20) + 1).to_le_bytes())).await;
    check_fatal(|bytes| bytes[0..4].copy_from_slice(&23_u32.to_le_bytes())).await;
    check_fatal(|bytes| bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes())).await;
    check_fatal(|bytes| bytes[20] = 1).await;
}

#[tokio::test]
async fn answers_to_nothing_that_was_asked_close_the_connection() {
    check_fatal(|bytes| bytes[12] ^= 0x40).await;
    check_fatal(|bytes| bytes[8] = 3).await;
    check_fatal(|bytes| bytes[10] = 2).await;
    check_fatal(|bytes| bytes[16] = 0).await;
}

#[tokio::test]
async fn a_broken_body_in_a_sound_frame_fails_its_request_only() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let script = async {
        let request = peer.request().await.unwrap();
        let mut bytes = answer(&request, &statistics(0), &[]);
        bytes[28..32].fill(0xff);
        peer.send(&bytes).await;
        let request = peer.request().await.unwrap();
        peer.answer(&request, &statistics(8)).await;
    };
    let asking = async { (client.stats().await, client.stats().await) };
    let ((broken, sound), ()) = tokio::join!(asking, script);
    assert!(matches!(broken, Err(AdminError::Unreadable(_))));
    assert_eq!(sound.unwrap().rss_bytes, 8);
}

#[tokio::test]
async fn a_request_that_fits_no_frame_is_refused_without_being_sent() {
    let door = Door::open().await;
    let (client, mut peer) = connected(&door).await;
    let topic = NewTopic::new("t").config("key", "x".repeat(17 << 20));
    let refused = client.create_topic(topic).await.unwrap_err();
    assert_eq!(refused.code(), Some(ErrorCode::FrameTooLarge));
    drop(client);
    assert!(peer.request().await.is_none(), "nothing came");
}

#[tokio::test]
async fn a_silent_peer_is_given_up_after_the_time_for_a_request() {
    let door = Door::open().await;
    let builder = Client::builder().address(door.address.clone()).request_timeout(Duration::from_millis(200));
    let (client, mut peer) = tokio::join!(builder.connect(), door.accept());
    let client = client.unwrap();
    let script = async {
        peer.request().await.unwrap();
        assert!(peer.request().await.is_none(), "the connection is closed");
    };
    let (created, ()) = tokio::join!(client.create_topic(NewTopic::new("t")), script);
    assert_eq!(created, Err(AdminError::OutcomeUnknown));
}

#[tokio::test]
async fn the_next_address_is_tried_when_the_first_does_not_answer() {
    let closed = Door::open().await.address;
    let door = Door::open().await;
    let connecting = Client::builder().address(closed.clone()).address(door.address.clone()).connect();
    let (client, _peer) = tokio::join!(connecting, door.accept());
    assert_eq!(client.unwrap().shards().await, Ok(2));
    let refused = Client::connect(closed.clone()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Unreachable { address, .. } if address == closed));
    assert_eq!(Client::builder().connect().await.unwrap_err(), ConnectError::NoAddress);
}

#[tokio::test]
async fn what_does_not_answer_a_hello_is_told_apart() {
    let door = Door::open().await;
    let connect =
        || Client::builder().address(door.address.clone()).connect_timeout(Duration::from_millis(300)).connect();
    let script = async {
        let mut peer = door.accept_raw().await;
        peer.request().await.unwrap();
        peer.stream
    };
    let (silent, _stream) = tokio::join!(connect(), script);
    assert!(matches!(silent, Err(ConnectError::TimedOut { .. })));
    let script = async {
        let mut peer = door.accept_raw().await;
        let hello = peer.request().await.unwrap();
        peer.send(&refusal(&hello, ErrorCode::UnsupportedVersion)).await;
        peer
    };
    let (refused, _peer) = tokio::join!(connect(), script);
    assert_eq!(refused.unwrap_err().code(), Some(ErrorCode::UnsupportedVersion));
    let script = async {
        let mut peer = door.accept_raw().await;
        let mut hello = peer.request().await.unwrap();
        hello.header.correlation ^= 1;
        peer.answer(&hello, &statistics(0)).await;
        peer
    };
    let (wrong, _peer) = tokio::join!(connect(), script);
    let expected = HelloFault::Violation(Violation::UnknownCorrelation { found: 1 });
    assert!(matches!(wrong, Err(ConnectError::NotABroker { fault, .. }) if fault == expected));
    let (garbage, ()) =
        tokio::join!(connect(), async { door.accept_raw().await.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await });
    assert!(matches!(garbage, Err(ConnectError::NotABroker { .. } | ConnectError::Unreachable { .. })));
}
