//! Model of a whole node: shards, controller and views over one crash disk; knows only commands, events and effects.

mod model;

use coulee_core::block::BlockPool;
use coulee_core::catalog::{CATALOG_TOPIC, Change, ChangeError};
use coulee_core::controller::{
    CATALOG_REQUEST, Changed, Controller, Effect as ControllerEffect, Event, StartError, View,
};
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::disk::{Dir, Disk, FileName};
use coulee_core::executor::{Random, block_on};
use coulee_core::meta;
use coulee_core::partition::Acks;
use coulee_core::shard::fetches::{FetchPart, FetchSpec};
use coulee_core::shard::{Command, Effect, Listed, Now, OffsetQuery, RequestId, Shard, ShardOptions};
use coulee_protocol::batch::HEADER_BYTES;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{ClusterId, Offset, PartitionUid, Timestamp, TopicId};
use model::{OPTIONS, batch, dice, incoming};
use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Waker};

type Answer = Result<Changed, ChangeError>;

/// A broker in memory: what happens next is chosen by chance from one seed.
struct Node {
    disk: MemoryDisk,
    shards: Vec<Shard<MemoryDisk>>,
    /// Orders on their way to each shard, and what is told on its way to each view.
    orders: Vec<VecDeque<Command>>,
    told: Vec<VecDeque<coulee_core::controller::Told>>,
    views: Vec<View>,
    controller: Controller,
    events: VecDeque<Event>,
    random: Random,
    now: Now,
    answers: BTreeMap<u64, Answer>,
    effects: Vec<Effect>,
    foreign: Vec<PartitionUid>,
    failed: Option<StartError>,
}

impl Node {
    fn start(disk: MemoryDisk, shards: u16, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let pool = BlockPool::new(1 << 20);
        let meta = block_on(&disk, &mut random, meta::open(&disk, &pool, ClusterId([7; 16])))
            .expect("a directory that was ours stays so");
        let directories = block_on(&disk, &mut random, disk.list_partitions()).expect("this disk lists");
        let start = |id: u16, random: &mut Random| {
            let options = ShardOptions { id, ..OPTIONS };
            block_on(&disk, random, Shard::start(disk.clone(), pool.clone(), options)).expect("this disk reads")
        };
        let started: Vec<_> = (0..shards).map(|id| start(id, &mut random)).collect();
        Self {
            shards: started,
            orders: (0..shards).map(|_| VecDeque::new()).collect(),
            told: (0..shards).map(|_| VecDeque::new()).collect(),
            views: (0..shards).map(|_| View::default()).collect(),
            controller: Controller::new(meta.cluster_id, shards, directories),
            events: (0..shards).map(|_| Event::ShardStarted).collect(),
            disk,
            random,
            now: Now { monotonic_ms: 1, wall_ms: 1_700_000_000_000 },
            answers: BTreeMap::new(),
            effects: Vec::new(),
            foreign: Vec::new(),
            failed: None,
        }
    }

    /// One thing happens: a completion, a message that arrives, or a cycle.
    fn step(&mut self) {
        let pending = self.disk.pending();
        let shard = self.random.below(self.shards.len() as u64) as usize;
        match self.random.below(5) {
            0 | 1 if pending > 0 => self.disk.complete(self.random.below(pending as u64) as usize),
            2 => {
                if let Some(order) = self.orders[shard].pop_front() {
                    self.shards[shard].command(order);
                }
                if let Some(told) = self.told[shard].pop_front() {
                    self.views[shard].hear(&told);
                }
            }
            3 => {
                if let Some(event) = self.events.pop_front() {
                    let effects = self.controller.step(self.now, event);
                    effects.into_iter().for_each(|effect| self.carry_out(effect));
                }
            }
            _ => {
                self.now.monotonic_ms += self.random.below(20);
                self.shards[shard].cycle(self.now, &mut Context::from_waker(Waker::noop()));
                let effects = self.shards[shard].take_effects();
                effects.into_iter().for_each(|effect| self.route(effect));
            }
        }
    }

    fn carry_out(&mut self, effect: ControllerEffect) {
        match effect {
            ControllerEffect::Own(command) => self.shards[0].command(command),
            ControllerEffect::Order(shard, order) => self.orders[usize::from(shard.0)].push_back(order.into()),
            ControllerEffect::Tell(told) => self.told.iter_mut().for_each(|queue| queue.push_back(told.clone())),
            ControllerEffect::Changed(request, answer) => drop(self.answers.insert(request.0, answer)),
            ControllerEffect::Foreign(uid) => self.foreign.push(uid),
            ControllerEffect::Failed(error) => self.failed = Some(error),
        }
    }

    fn route(&mut self, effect: Effect) {
        match effect {
            Effect::Opened(uid, opened) => self.events.push_back(Event::Opened(uid, opened)),
            Effect::Offline(uid) => self.events.push_back(Event::Offline(uid)),
            Effect::Deleted(uid, _) => self.events.push_back(Event::Deleted(uid)),
            Effect::Produced(CATALOG_REQUEST, result) => self.events.push_back(Event::Produced(result)),
            Effect::Fetched(CATALOG_REQUEST, parts) => self.events.push_back(Event::Fetched(parts)),
            other => self.effects.push(other),
        }
    }

    fn until(&mut self, mut there: impl FnMut(&Self) -> bool) {
        for _ in 0..200_000 {
            if there(self) || self.failed.is_some() {
                return;
            }
            self.step();
        }
        panic!("it does not come");
    }

    fn settle(&mut self) {
        self.until(|node| node.views.iter().all(View::is_settled));
    }

    fn change(&mut self, number: u64, change: Change) -> Answer {
        self.events.push_back(Event::Change(RequestId(number), change));
        self.until(|node| node.answers.contains_key(&number) && node.told.iter().all(VecDeque::is_empty));
        self.answers[&number].clone()
    }

    fn shard_of(&mut self, topic: &str, partition: usize) -> (PartitionUid, &mut Shard<MemoryDisk>) {
        let placed = self.controller.catalog().topic(topic).expect("the topic was made").partitions[partition];
        let shard = placed.slot.shard(self.shards.len() as u16);
        (placed.uid, &mut self.shards[usize::from(shard.0)])
    }

    fn produce(&mut self, number: u64, topic: &str, partition: usize) -> Offset {
        let batch = incoming(&batch(number, 3, 20));
        let (uid, shard) = self.shard_of(topic, partition);
        let request = RequestId(number);
        shard.command(Command::Produce { request, partition: uid, acks: Acks::Acknowledged, batch });
        let is = |effect: &Effect| matches!(effect, Effect::Produced(answered, _) if *answered == request);
        self.until(|node| node.effects.iter().any(is));
        let Some(Effect::Produced(_, Ok(produced))) = self.effects.drain(..).find(is) else { panic!("not produced") };
        produced.base_offset
    }

    fn payloads(&mut self, number: u64, topic: &str, partition: usize) -> Vec<Vec<u8>> {
        let (uid, shard) = self.shard_of(topic, partition);
        let parts = vec![FetchPart { partition: uid, offset: Offset(0), bytes_max: 1 << 20 }];
        shard.command(Command::Fetch(
            RequestId(number),
            FetchSpec { parts, bytes_min: 1, bytes_max: 1 << 20, wait_ms: 0 },
        ));
        let is = |effect: &Effect| matches!(effect, Effect::Fetched(answered, _) if answered.0 == number);
        self.until(|node| node.effects.iter().any(is));
        let Some(Effect::Fetched(_, parts)) = self.effects.drain(..).find(is) else { panic!("not fetched") };
        let slices = parts[0].batches.as_ref().expect("the fetch succeeds");
        slices.iter().map(|slice| slice[HEADER_BYTES..].to_vec()).collect()
    }
}

fn create(name: &str, partitions: u32, id: u8) -> Change {
    let (name, topic_id) = (name.into(), TopicId([id; 16]));
    Change::Create { topic_id, name, partitions, replication_factor: 1, settings: vec![] }
}

fn random_change(dice: &mut Random, number: u64) -> Change {
    let name: Box<str> = format!("topic-{}", dice.below(4)).into();
    match dice.below(5) {
        0 => Change::Delete { name },
        1 => {
            let set = vec![("segment.bytes".into(), (65_536 + dice.below(1_000)).to_string().into())];
            Change::Alter { name, set, removed: vec![], partitions: dice.below(6) as u32 }
        }
        _ => {
            let mut id = [3; 16];
            id[..8].copy_from_slice(&number.to_le_bytes());
            let partitions = 1 + dice.below(4) as u32;
            Change::Create { topic_id: TopicId(id), name, partitions, replication_factor: 0, settings: vec![] }
        }
    }
}

/// The names of the users' topics.
fn topics(node: &Node) -> Vec<String> {
    let names = node.controller.catalog().topics().map(|topic| topic.name.to_string());
    names.filter(|name| name != CATALOG_TOPIC).collect()
}

#[test]
fn acknowledged_changes_survive_power_cuts_and_any_other_number_of_shards() {
    let mut changed = 0;
    for seed in 0..150 {
        let mut dice = dice(seed);
        let mut node = Node::start(MemoryDisk::crashing(), 1 + dice.below(4) as u16, seed);
        let mut number = 0;
        for round in 0..4 {
            node.settle();
            assert_eq!(node.failed, None, "seed {seed}, round {round}");
            assert_eq!(node.foreign, [], "seed {seed}, round {round}: nothing of ours is foreign");
            for _ in 0..dice.below(8) {
                number += 1;
                changed += usize::from(node.change(number, random_change(&mut dice, number)).is_ok());
            }
            for view in &node.views {
                assert_eq!(view.catalog(), node.controller.catalog(), "seed {seed}");
            }
            // A change that nobody has been told of may come through or not: it must only be whole.
            let open = random_change(&mut dice, u64::MAX - round);
            let before = node.controller.catalog().clone();
            let mut after = before.clone();
            if let Ok(record) = before.plan(open.clone(), node.shards.len() as u16) {
                after.apply(&record).unwrap();
            }
            let request = (1 << 40) + round;
            node.events.push_back(Event::Change(RequestId(request), open));
            (0..dice.below(150)).for_each(|_| node.step());
            let told = node.answers.contains_key(&request);
            let crashed = node.disk.crash(&mut dice);
            node = Node::start(crashed, 1 + dice.below(4) as u16, seed);
            node.settle();
            assert_eq!(node.failed, None, "seed {seed}, round {round}");
            let catalog = node.controller.catalog();
            assert!(*catalog == after || (!told && *catalog == before), "seed {seed}, round {round}: {catalog:?}");
            for name in topics(&node) {
                number += 1;
                node.produce(number, &name, 0);
            }
        }
    }
    assert!(changed > 500, "only {changed} changes were made: the test has lost its teeth");
}

#[test]
fn a_directory_opens_with_any_number_of_shards_and_keeps_its_records() {
    let mut node = Node::start(MemoryDisk::crashing(), 2, 5);
    node.settle();
    node.change(1, create("orders", 5, 1)).unwrap();
    let mut sent = vec![Vec::new(); 5];
    for (round, shards) in [3, 1, 4, 2, 1, 2].into_iter().enumerate() {
        for (partition, sent) in sent.iter_mut().enumerate() {
            let number = 100 * (round as u64 + 1) + partition as u64;
            assert_eq!(node.produce(number, "orders", partition), Offset(3 * round as u64));
            sent.push(batch(number, 3, 20)[HEADER_BYTES..].to_vec());
        }
        let crashed = node.disk.crash(&mut dice(round as u64));
        node = Node::start(crashed, shards, 5 + round as u64);
        node.settle();
        for (partition, sent) in sent.iter().enumerate() {
            assert_eq!(node.payloads(9_000 + partition as u64, "orders", partition), *sent, "{shards} shards");
        }
    }
}

#[test]
fn files_of_deleted_partitions_are_removed_and_those_of_foreign_ones_stay() {
    let mut node = Node::start(MemoryDisk::new(), 2, 3);
    node.settle();
    node.change(1, create("orders", 4, 1)).unwrap();
    node.produce(2, "orders", 1);
    node.change(3, Change::Delete { name: "orders".into() }).unwrap();
    let disk = node.disk.clone();
    let partitions = || block_on(&disk, &mut Random::new(1), disk.list_partitions()).unwrap();
    assert_eq!(partitions(), [PartitionUid(1)]);
    // What a crash in the middle of a deletion leaves, and what nobody knows.
    for uid in [3, 77] {
        block_on(&disk, &mut Random::new(1), disk.create_dir(Dir::Partition(PartitionUid(uid)))).unwrap();
        let name = FileName::Segment(PartitionUid(uid), Offset(0));
        block_on(&disk, &mut Random::new(1), disk.create(name, 65_536)).unwrap();
    }
    let mut node = Node::start(disk.clone(), 1, 4);
    node.settle();
    node.until(|_| partitions().len() == 2);
    assert_eq!(partitions(), [PartitionUid(1), PartitionUid(77)]);
    assert_eq!(node.foreign, [PartitionUid(77)]);
}

#[test]
fn changes_are_refused_while_the_catalog_is_read_and_while_the_broker_stops() {
    let mut node = Node::start(MemoryDisk::new(), 1, 3);
    node.events.push_front(Event::Change(RequestId(1), create("early", 1, 1)));
    node.settle();
    assert_eq!(node.answers[&1].clone().unwrap_err().code(), ErrorCode::Recovering);
    node.events.push_back(Event::Stop);
    let late = node.change(2, create("late", 1, 2));
    assert_eq!(late.unwrap_err().code(), ErrorCode::ShuttingDown);
}

#[test]
fn a_damaged_catalog_is_a_refusal_to_start_and_removes_nothing() {
    let mut node = Node::start(MemoryDisk::new(), 1, 3);
    node.settle();
    for number in 1..20 {
        node.change(number, create(&format!("topic-{number}"), 1, number as u8)).unwrap();
    }
    node.orders[0].push_back(Command::Stop);
    node.until(|node| node.effects.iter().any(|effect| matches!(effect, Effect::Stopped)));
    // The second batch of the catalog's log.
    let damaged = node.disk.damaged(FileName::Segment(PartitionUid(1), Offset(0)), |mut bytes| {
        bytes[4_096 + 400] ^= 0x20;
        Some(bytes)
    });
    let mut node = Node::start(damaged, 1, 4);
    node.settle();
    assert!(matches!(node.failed, Some(StartError::Damaged { .. })), "{:?}", node.failed);
    let disk = node.disk.clone();
    let partitions = block_on(&disk, &mut Random::new(1), disk.list_partitions()).unwrap();
    assert_eq!(partitions.len(), 20);
}

#[test]
fn a_fetch_that_waits_is_answered_at_once_when_it_is_hurried() {
    let mut node = Node::start(MemoryDisk::new(), 1, 3);
    node.settle();
    node.change(1, create("orders", 1, 1)).unwrap();
    let (uid, shard) = node.shard_of("orders", 0);
    let parts = vec![FetchPart { partition: uid, offset: Offset(0), bytes_max: 1 << 20 }];
    let spec = FetchSpec { parts, bytes_min: 1, bytes_max: 1 << 20, wait_ms: u64::MAX / 2 };
    shard.command(Command::Fetch(RequestId(9), spec));
    assert_eq!(shard.gauges().waiting_fetches, 1);
    shard.command(Command::Hurry(RequestId(8)));
    assert_eq!(shard.gauges().waiting_fetches, 1, "another request is meant");
    shard.command(Command::Hurry(RequestId(9)));
    let is = |effect: &Effect| matches!(effect, Effect::Fetched(answered, _) if answered.0 == 9);
    node.until(|node| node.effects.iter().any(is));
}

#[test]
fn offsets_by_time_name_the_record_and_the_youngest_one_is_found() {
    let mut node = Node::start(MemoryDisk::new(), 1, 3);
    node.settle();
    node.change(1, create("orders", 1, 1)).unwrap();
    // Three records each, all with the number of their batch as their time.
    for number in [10, 40, 20, 30] {
        node.produce(number, "orders", 0);
    }
    let mut listed = |number: u64, query| {
        let (uid, shard) = node.shard_of("orders", 0);
        shard.command(Command::ListOffsets(RequestId(number), uid, query));
        let is = |effect: &Effect| matches!(effect, Effect::Listed(answered, _) if answered.0 == number);
        node.until(|node| node.effects.iter().any(is));
        let Some(Effect::Listed(_, listed)) = node.effects.drain(..).find(is) else { panic!("not listed") };
        listed
    };
    let at = |offset, time: Option<i64>| Listed::At(Offset(offset), time.map(Timestamp));
    assert_eq!(listed(101, OffsetQuery::MaxTimestamp), at(3, Some(40)));
    assert_eq!(listed(102, OffsetQuery::AtOrAfter(Timestamp(15))), at(3, Some(40)));
    assert_eq!(listed(103, OffsetQuery::AtOrAfter(Timestamp(10))), at(0, Some(10)));
    assert_eq!(listed(104, OffsetQuery::AtOrAfter(Timestamp(41))), Listed::Nowhere);
    assert_eq!(listed(105, OffsetQuery::Latest), at(12, None));
}
