//! A client in another language, made from the documents alone, against a live broker; knows no byte of it.

use crate::{connect_with_topic, read, run};
use coulee_client::{Record, Start};
use coulee_tests::broker::Broker;
use std::path::Path;
use std::process::{Command, Stdio};

/// What the Python client prints; its input are values, one a line.
fn python(broker: &Broker, arguments: &[&str], input: &str) -> String {
    use std::io::Write;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("format/client.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(broker.address()).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("python3 is there");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_client_made_from_the_documents_alone_produces_and_fetches() {
    let broker = Broker::start();
    run(async {
        let client = connect_with_topic(&broker, 3).await;
        for partition in ["0", "1", "2"] {
            assert_eq!(python(&broker, &["produce", "t", partition], "one\ntwo\nthree\n"), "0\n");
        }
        let mut seen = read(&client, Start::Start, 9).await;
        seen.sort();
        let values = [&b"one"[..], b"two", b"three"];
        for (at, (partition, offset, key, value)) in seen.into_iter().enumerate() {
            assert_eq!((partition as usize, offset as usize, key), (at / 3, at % 3, None));
            assert_eq!(value.as_deref(), Some(values[at % 3]));
        }
        let producer = client.producer("t").build().await.unwrap();
        for value in ["four", "five"] {
            drop(producer.send(Record::new(value.as_bytes()).key(b"k").partition(1)).await.unwrap());
        }
        producer.send(Record::tombstone(b"k").partition(1)).await.unwrap().await.unwrap();
        let fetched = python(&broker, &["fetch", "t", "1", "2"], "");
        assert_eq!(fetched, "2 None b'three'\n3 b'k' b'four'\n4 b'k' b'five'\n5 b'k' None\n");
        let refused = python(&broker, &["corrupt", "t", "0"], "one\n");
        assert_eq!(refused, "error 2\n", "a batch with a wrong checksum");
    });
}
