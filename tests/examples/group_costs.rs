//! Measures groups: how soon a large one settles after a change, and how fast many are read back; asserts no time.
//!
//! `cargo run --release -p coulee-tests --example group_costs` with `COULEE_PROGRAM` naming the release broker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coulee_client::{Client, NewTopic, Rebalance};
use coulee_tests::broker::{Broker, Options};
use tokio::task::JoinSet;

const MEMBERS: usize = 50;
const PARTITIONS: u32 = 200;
const GROUPS: usize = 100_000;

/// Who reads which partition.
type Owners = Arc<Mutex<BTreeMap<u32, usize>>>;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(settle());
    runtime.block_on(load());
}

/// One member, polled until it is told to leave.
async fn member(address: String, number: usize, owners: Owners, leave: Arc<tokio::sync::Notify>) {
    let client = Client::connect(address).await.expect("the broker is there");
    let own = owners.clone();
    let heard = move |rebalance: &Rebalance| {
        let mut owners = own.lock().expect("no panic under it");
        match rebalance {
            Rebalance::Assigned(places) => places.iter().for_each(|(_, partition)| {
                let before = owners.insert(*partition, number);
                assert_eq!(before, None, "partition {partition} has two readers");
            }),
            Rebalance::Revoked(places) | Rebalance::Lost(places) => {
                owners.retain(|partition, _| !places.iter().any(|(_, own)| own == partition));
            }
        }
    };
    let mut consumer = client.group("large").topic("t").on_rebalance(heard).join();
    loop {
        tokio::select! {
            () = leave.notified() => break,
            polled = consumer.poll() => drop(polled.expect("a member that lives")),
        }
    }
    let gone = consumer.assignment();
    owners.lock().expect("no panic under it").retain(|partition, _| !gone.iter().any(|(_, own)| own == partition));
    consumer.close().await.expect("it leaves");
}

/// How long it takes until each of `members` reads its share.
async fn until_even(owners: &Owners, members: usize) -> Duration {
    let began = Instant::now();
    loop {
        {
            let owners = owners.lock().expect("no panic under it");
            let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
            owners.values().for_each(|owner| *counts.entry(*owner).or_default() += 1);
            let (least, most) = (counts.values().min(), counts.values().max());
            let is_even = least.zip(most).is_some_and(|(least, most)| most - least <= 1);
            if owners.len() == PARTITIONS as usize && counts.len() == members && is_even {
                return began.elapsed();
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn settle() {
    let broker = Broker::start_with(&Options::default());
    let client = Client::connect(broker.address()).await.expect("the broker is there");
    client.create_topic(NewTopic::new("t").partitions(PARTITIONS)).await.expect("a topic");
    let (owners, mut members, mut leaves) = (Owners::default(), JoinSet::new(), Vec::new());
    let mut next = 0;
    let mut join = |members: &mut JoinSet<()>, leaves: &mut Vec<Arc<tokio::sync::Notify>>| {
        let leave = Arc::new(tokio::sync::Notify::new());
        members.spawn(member(broker.address().to_owned(), next, owners.clone(), leave.clone()));
        leaves.push(leave);
        next += 1;
    };
    (0..MEMBERS).for_each(|_| join(&mut members, &mut leaves));
    let formed = until_even(&owners, MEMBERS).await;
    println!("{MEMBERS} members, {PARTITIONS} partitions: formed after {} ms", formed.as_millis());
    for round in 0..5 {
        leaves.drain(..5).for_each(|leave| leave.notify_one());
        let left = until_even(&owners, MEMBERS - 5).await;
        (0..5).for_each(|_| join(&mut members, &mut leaves));
        let joined = until_even(&owners, MEMBERS).await;
        let (left, joined) = (left.as_millis(), joined.as_millis());
        println!("round {round}: five left, settled after {left} ms; five joined, settled after {joined} ms");
    }
    leaves.iter().for_each(|leave| leave.notify_one());
    while members.join_next().await.is_some() {}
}

async fn load() {
    let broker = Broker::start_with(&Options::default());
    let client = Client::connect(broker.address()).await.expect("the broker is there");
    client.create_topic(NewTopic::new("t")).await.expect("a topic");
    let (began, mut commits) = (Instant::now(), JoinSet::new());
    for number in 0..GROUPS {
        if commits.len() >= 48 {
            commits.join_next().await;
        }
        let client = client.clone();
        commits.spawn(async move {
            let offsets = [(("t".to_owned(), 0), number as u64)];
            client.set_committed_offsets(&format!("group-{number}"), &offsets).await.expect("a commit");
        });
    }
    while commits.join_next().await.is_some() {}
    println!("{GROUPS} groups committed in {} ms, 48 at a time", began.elapsed().as_millis());
    let folder = broker.kill();
    let began = Instant::now();
    let broker = Broker::start_on(folder, &Options::default());
    let started = began.elapsed();
    let client = Client::connect(broker.address()).await.expect("the broker is there");
    let groups = client.groups().await.expect("all coordinators have read their logs");
    assert_eq!(groups.len(), GROUPS);
    let (started, listed) = (started.as_millis(), began.elapsed().as_millis());
    println!("after kill -9: listening after {started} ms, all {GROUPS} groups there after {listed} ms");
    let stats = client.stats().await.expect("statistics");
    println!("memory then: {} MiB", stats.rss_bytes >> 20);
}
