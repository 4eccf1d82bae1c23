//! A broker's beginning and end: restarts, signals, who may not start; knows no record but that it is there.

use crate::{connect, connect_with_topic, read, run};
use coulee_client::{Client, ErrorCode, NewTopic, Record, Start};
use coulee_protocol::api::{ApiKey, metadata::v1 as metadata, produce::v1 as produce};
use coulee_tests::broker::{Broker, Folder, Options, Process};
use coulee_tests::wire::{Wire, batch, encoded};

/// Sends `count` records numbered from `first`, and waits for all their acks.
async fn fill(client: &Client, first: u32, count: u32) {
    let producer = client.producer("t").build().await.unwrap();
    let mut deliveries = Vec::new();
    for number in first..first + count {
        deliveries.push(producer.send(Record::new(&number.to_le_bytes()).partition(number % 3)).await.unwrap());
    }
    producer.close().await;
    for delivery in deliveries {
        delivery.await.unwrap();
    }
}

/// The numbers that are there, sorted.
async fn numbers(client: &Client, count: usize) -> Vec<u32> {
    let seen = read(client, Start::Start, count).await;
    let number = |value: Option<Vec<u8>>| u32::from_le_bytes(value.unwrap().try_into().unwrap());
    let mut numbers: Vec<u32> = seen.into_iter().map(|(.., value)| number(value)).collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn acknowledged_records_outlive_kill_and_sigterm_and_another_number_of_shards() {
    let mut broker = Broker::start();
    run(async { fill(&connect_with_topic(&broker, 3).await, 0, 1_000).await });
    for (shards, life) in [(3, 1), (1, 2), (2, 3), (2, 4)] {
        let folder = if life % 2 == 0 { broker.stop() } else { broker.kill() };
        broker = Broker::start_on(folder, &Options::shards(shards));
        run(async {
            let client = connect(&broker).await;
            assert_eq!(client.shards().await.unwrap(), shards);
            let there = 1_000 * life;
            assert_eq!(numbers(&client, there as usize).await, (0..there).collect::<Vec<_>>());
            fill(&client, there, 1_000).await;
        });
    }
}

#[test]
fn nothing_stays_in_reserve_for_a_shard_that_is_no_more() {
    let folder = Broker::start().stop();
    let pool = folder.data().join("pool/7");
    std::fs::create_dir(&pool).unwrap();
    std::fs::write(pool.join("3.log"), vec![0; 128 << 10]).unwrap();
    std::fs::write(pool.join("4.new"), "").unwrap();
    let folder = Broker::start_on(folder, &Options::shards(2)).stop();
    assert_eq!(std::fs::read_dir(&pool).unwrap().count(), 0);
    drop(folder);
}

#[test]
fn a_client_outlives_its_broker() {
    // Nobody else takes a port of this address while the broker is away.
    let broker = Broker::start_with(&Options { listen: "127.9.8.7:0".into(), ..Options::default() });
    let options = Options { listen: broker.address().into(), ..Options::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = connect_with_topic(&broker, 3).await;
        fill(&client, 0, 10).await;
        client
    });
    let broker = Broker::start_on(broker.kill(), &options);
    runtime.block_on(async {
        let producer = client.producer("t").build().await.unwrap();
        for number in 10..20_u32 {
            // What goes over a connection that is gone and not yet known to be gone has an unknown outcome.
            while let Err(error) = producer.send(Record::new(&number.to_le_bytes())).await.unwrap().await {
                assert!(error.may_be_written(), "{error}");
            }
        }
        assert_eq!(numbers(&client, 20).await, (0..20).collect::<Vec<_>>());
    });
    drop(broker);
}

#[test]
fn a_second_broker_on_the_directory_is_refused_and_the_first_goes_on() {
    let broker = Broker::start();
    let folder = Folder::new();
    let mut second = Process::spawn(&folder, &broker.folder().data(), &Options::default());
    let ended = second.ready_line().unwrap_err();
    assert!(ended.status.code().is_some_and(|code| code != 0), "{}", ended.status);
    assert!(ended.log.contains("the data directory is in use by process"), "{}", ended.log);
    run(async { fill(&connect_with_topic(&broker, 3).await, 0, 10).await });
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    let broker = Broker::start();
    let folder = Folder::new();
    let options = Options { listen: broker.address().into(), ..Options::default() };
    let ended = Process::spawn(&folder, &folder.data(), &options).ready_line().unwrap_err();
    assert!(ended.status.code().is_some_and(|code| code != 0), "{}", ended.status);
    assert!(ended.log.contains(broker.address()), "{}", ended.log);
}

#[test]
fn a_start_waits_a_moment_for_a_port_that_a_killed_broker_may_still_hold() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = Folder::new();
    let options = Options { listen: holder.local_addr().unwrap().to_string(), ..Options::default() };
    let mut process = Process::spawn(&folder, &folder.data(), &options);
    while !process.log().contains("waiting for it") {
        std::thread::yield_now();
    }
    drop(holder);
    process.ready_line().unwrap();
    process.kill();
}

#[test]
fn an_idle_broker_stops_at_once() {
    // The grace period is longer than the test may take: it ends because nothing is left to do.
    let options = Options::default().and("shutdown.grace=1h");
    let mut folder = Folder::new();
    for _ in 0..3 {
        let broker = Broker::start_on(folder, &options);
        // Every shard answers, and sleeps.
        run(async { connect(&broker).await.stats().await.unwrap() });
        folder = broker.stop();
    }
}

#[test]
fn the_ready_line_says_what_runs() {
    let folder = Folder::new();
    let mut process = Process::spawn(&folder, &folder.data(), &Options::shards(1));
    let line = process.ready_line().unwrap();
    let end = format!(r#","shards":1,"data_dir":"{}"}}"#, folder.data().display());
    assert!(line.trim_end().ends_with(&end), "{line}");
    let address = coulee_tests::broker::address(&line);
    assert!(address.starts_with("127.0.0.1:") && !address.ends_with(":0"), "{line}");
    process.terminate();
    let ended = process.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
}

/// Waits for the broker to listen, long before it is ready, and gives the address.
fn listening(process: &Process) -> String {
    loop {
        let log = process.log();
        if let Some((_, after)) = log.split_once(r#""native":""#)
            && let Some((address, _)) = after.split_once('"')
        {
            return address.to_owned();
        }
        assert!(!log.contains("error["), "{log}");
        std::thread::yield_now();
    }
}

#[test]
fn a_broker_that_reads_its_log_says_so_and_clients_wait_for_it() {
    let broker = Broker::start();
    let uid = run(async {
        let client = connect_with_topic(&broker, 3).await;
        fill(&client, 0, 10).await;
        // Enough to be read for a while.
        client.create_topic(NewTopic::new("many").partitions(1_000)).await.unwrap();
        client.topic("t").await.unwrap().partitions[0].uid
    });
    let folder = broker.kill();
    let mut there = 10;
    for _ in 0..20 {
        let mut process = Process::spawn(&folder, &folder.data(), &Options::default());
        let address = listening(&process);
        let mut wire = Wire::open(&address, Some(0));
        let request = produce::Request { partition_uid: uid.0, acks: 1, flags: 0, timeout_ms: 0 };
        let error = wire.call(ApiKey::Produce, &request, &batch(&[&[0; 4]])).error();
        // It was ready before it could be asked.
        there += usize::from(error == ErrorCode::None);
        // A client waits until it is answered.
        let seen = run(async { numbers(&Client::connect(address.as_str()).await.unwrap(), there).await });
        assert_eq!(seen.len(), there);
        process.ready_line().unwrap();
        if error == ErrorCode::Recovering {
            return;
        }
        assert_eq!(error, ErrorCode::None);
        process.kill();
    }
    panic!("no broker was asked while it was reading its log");
}

#[test]
fn a_broker_that_is_stopped_acknowledges_or_refuses_what_it_was_sent() {
    let mut folder = Folder::new();
    let (mut acknowledged, mut refused) = (0, 0);
    for round in 0..20 {
        let broker = Broker::start_on(folder, &Options::default());
        let uid = run(async {
            let client = connect(&broker).await;
            if round == 0 {
                client.create_topic(NewTopic::new("t").partitions(1)).await.unwrap();
            }
            client.topic("t").await.unwrap().partitions[0].uid
        });
        let mut wire = Wire::open(broker.address(), None);
        let request = produce::Request { partition_uid: uid.0, acks: 1, flags: 0, timeout_ms: 0 };
        let body = encoded(&request);
        // Until the connection is closed, some always are under way.
        let ask = |wire: &mut Wire| {
            wire.ask(ApiKey::Produce.code(), 1, &body, &batch(&[b"x"]));
        };
        (0..50).for_each(|_| ask(&mut wire));
        let mut answers = 0;
        while let Some(answer) = wire.answer() {
            match answer.error() {
                ErrorCode::None => acknowledged += 1,
                ErrorCode::ShuttingDown => refused += 1,
                other => panic!("{other}: {}", answer.detail()),
            }
            answers += 1;
            if answers == 100 {
                broker.terminate();
            }
            ask(&mut wire);
        }
        folder = broker.end();
        if refused > 0 {
            break;
        }
    }
    assert!(refused > 0, "a broker that stops says so");
    let broker = Broker::start_on(folder, &Options::default());
    let mut wire = Wire::open(broker.address(), None);
    let all: metadata::Response =
        wire.call(ApiKey::Metadata, &metadata::Request { flags: 1, ..Default::default() }, &[]).read();
    assert_eq!(all.topics.len(), 1);
    let end = run(async { connect(&broker).await.describe_topic("t").await.unwrap().partitions[0].log_end });
    // An ack may have been on its way when the connection was closed.
    assert!(end >= acknowledged, "{end} records of {acknowledged} that were acknowledged");
}
