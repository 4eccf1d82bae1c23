//! Groups against the crash disk: no committed offset is lost or goes back; knows only requests, answers and effects.
//!
//! And no partition is read by two in one generation, whatever a power cut takes at whatever step.

mod model;

use coulee_core::config::TopicConfig;
use coulee_core::disk::memory::MemoryDisk;
use coulee_core::executor::{Random, Runner};
use coulee_core::groups::request::{Commit, CommitPartition, CommitTopic, Identity, Join, Sync, Wanted, WantedTopic};
use coulee_core::groups::{Answer, GroupRequest, OFFSETS_TOPIC_ID, Options, Request, partition_of};
use coulee_core::log::segment::Owner;
use coulee_core::shard::{Command, Effect, RequestId};
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::{ClusterId, PartitionUid, TopicId};
use model::{OPTIONS, Verdict, dice};
use std::collections::{BTreeMap, BTreeSet};

const TOPIC: TopicId = TopicId([1; 16]);
const PARTITIONS: u32 = 6;
const GROUPS: [&str; 2] = ["g", "other"];
const MEMBERS: usize = 4;

/// A client that wants to be a member.
#[derive(Clone, Debug, Default)]
struct Client {
    id: Box<str>,
    generation: i32,
    is_leader: bool,
    members: Vec<Box<str>>,
    /// Its request that is unanswered.
    waits: Option<u64>,
    reads: BTreeSet<u32>,
}

/// What a request was.
#[derive(Clone, Debug)]
enum Asked {
    Join(usize, usize),
    Sync(usize, usize, i32),
    Other,
    /// Group, partition, offset; a generation that is over already.
    Commit(usize, u32, u64, bool),
}

/// What clients know.
#[derive(Debug, Default)]
struct Model {
    clients: BTreeMap<(usize, usize), Client>,
    asked: BTreeMap<u64, Asked>,
    next: u64,
    /// Offsets that were asked to be committed, by group and partition, in order; and the last that was acknowledged.
    sent: BTreeMap<(usize, u32), Vec<u64>>,
    acked: BTreeMap<(usize, u32), u64>,
    /// Who was told to read what, by group, generation and partition.
    told: BTreeMap<(usize, i32, u32), Box<str>>,
    /// The latest generation of each group that anyone was told of.
    latest: BTreeMap<usize, i32>,
    commits: usize,
    stable: usize,
}

fn owner(at: usize) -> Owner {
    Owner {
        cluster_id: ClusterId([7; 16]),
        topic_id: OFFSETS_TOPIC_ID,
        partition_uid: PartitionUid(at as u64 + 1),
        partition: partition_of(GROUPS[at]),
    }
}

fn start(disk: MemoryDisk, seed: u64) -> Verdict<Runner> {
    let mut runner = Runner::start(disk, OPTIONS, seed).map_err(|error| error.to_string())?;
    let options = Options { initial_delay_ms: 20, snapshot_records_min: 24, ..Options::default() };
    runner.shard.allow_groups(options);
    let config = TopicConfig::parse([("segment.bytes", "65536")]).expect("a size that segments may have");
    (0..GROUPS.len()).for_each(|at| runner.command(Command::Open(owner(at), config)));
    for at in 0..GROUPS.len() {
        let opened = runner.wait_for(|effect| match effect {
            Effect::Opened(uid, result) if *uid == owner(at).partition_uid => Some(result.clone()),
            _ => None,
        });
        let opened = opened.ok_or("never opened")?.map_err(|error| error.to_string())?;
        if !opened.damage.is_empty() {
            return Err(format!("an unsynced tail was called damage: {:?}", opened.damage));
        }
    }
    runner.command(Command::Topics(BTreeSet::from([TOPIC])));
    Ok(runner)
}

impl Model {
    fn ask(&mut self, runner: &mut Runner, group: usize, request: Request, asked: Asked) -> u64 {
        self.next += 1;
        self.asked.insert(self.next, asked);
        let asked = GroupRequest { group: GROUPS[group].into(), request };
        runner.command(Command::Group(RequestId(self.next), Box::new(asked)));
        self.next
    }

    /// One random client does one random thing.
    fn act(&mut self, runner: &mut Runner) {
        let (group, who) = (runner.random.below(2) as usize, runner.random.below(MEMBERS as u64) as usize);
        let client = self.clients.entry((group, who)).or_default().clone();
        let identity = Identity { member_id: client.id.clone(), instance_id: None };
        match runner.random.below(8) {
            0 | 1 if client.waits.is_none() => {
                let request = Request::Join(join(identity, runner.random.next()));
                let id = self.ask(runner, group, request, Asked::Join(group, who));
                self.clients.insert((group, who), Client { waits: Some(id), ..client });
            }
            2 | 3 if client.waits.is_none() && !client.id.is_empty() => {
                let assignments = share(&client, &mut runner.random);
                let generation = client.generation;
                let sync = Sync { identity, generation, assignments, ..Sync::default() };
                let id = self.ask(runner, group, Request::Sync(sync), Asked::Sync(group, who, generation));
                self.clients.insert((group, who), Client { waits: Some(id), ..client });
            }
            4 if !client.id.is_empty() => {
                let request = Request::Heartbeat(identity, client.generation);
                self.ask(runner, group, request, Asked::Other);
            }
            5 if runner.random.below(6) == 0 && !client.id.is_empty() => {
                self.ask(runner, group, Request::Leave(vec![identity]), Asked::Other);
                self.clients.insert((group, who), Client::default());
            }
            _ if !client.reads.is_empty() => self.commit(runner, group, (client, identity)),
            _ => {}
        }
    }

    fn commit(&mut self, runner: &mut Runner, group: usize, (client, identity): (Client, Identity)) {
        let at = runner.random.below(client.reads.len() as u64) as usize;
        let index = *client.reads.iter().nth(at).expect("it was counted");
        let offset = self.next + 1;
        let partition = CommitPartition { index, offset, leader_epoch: -1, metadata: "".into() };
        let found = Some((TOPIC, PARTITIONS));
        let topics = vec![CommitTopic { name: "t".into(), found, partitions: vec![partition] }];
        let commit = Commit { identity, generation: client.generation, topics };
        let is_over = self.latest.get(&group).is_some_and(|latest| *latest > client.generation);
        self.sent.entry((group, index)).or_default().push(offset);
        self.ask(runner, group, Request::Commit(commit), Asked::Commit(group, index, offset, is_over));
    }

    /// Takes the answers that have come.
    fn hear(&mut self, runner: &mut Runner) -> Verdict {
        for effect in std::mem::take(&mut runner.effects) {
            if let Effect::Group(request, answer) = effect {
                let asked = self.asked.remove(&request.0).ok_or("an answer to nothing")?;
                self.answered(request.0, asked, answer)?;
            }
        }
        Ok(())
    }

    fn answered(&mut self, request: u64, asked: Asked, answer: Answer) -> Verdict {
        match (asked, answer) {
            (Asked::Commit(group, partition, offset, is_over), Answer::Partitions(topics)) => {
                if topics[0].partitions[0].1 != ErrorCode::None {
                    return Ok(());
                }
                if is_over {
                    return Err(format!("{} took a commit of a generation that was over", GROUPS[group]));
                }
                self.commits += 1;
                let acked = self.acked.entry((group, partition)).or_default();
                if offset < *acked {
                    return Err(format!("commit {offset} was acknowledged behind {acked}"));
                }
                *acked = offset;
            }
            (Asked::Join(group, who), answer) => {
                let client = self.clients.entry((group, who)).or_default();
                if client.waits.take_if(|waits| *waits == request).is_none() {
                    return Ok(());
                }
                match answer {
                    Answer::MemberIdRequired(id) => *client = Client { id, ..Client::default() },
                    Answer::Joined(joined) => {
                        client.is_leader = joined.leader == joined.member_id;
                        client.members = joined.members.into_iter().map(|member| member.identity.member_id).collect();
                        client.generation = joined.generation;
                        client.reads.clear();
                        let latest = self.latest.entry(group).or_default();
                        *latest = joined.generation.max(*latest);
                    }
                    Answer::Refused(ErrorCode::UnknownMemberId) => *client = Client::default(),
                    _ => {}
                }
            }
            (Asked::Sync(group, who, generation), answer) => {
                let client = self.clients.entry((group, who)).or_default();
                if client.waits.take_if(|waits| *waits == request).is_none() {
                    return Ok(());
                }
                if let Answer::Synced(synced) = answer {
                    client.reads = synced.assignment.iter().map(|at| u32::from(*at)).collect();
                    let (id, reads) = (client.id.clone(), client.reads.clone());
                    self.stable += 1;
                    return self.note(group, generation, id, reads);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// A member was told to read these.
    fn note(&mut self, group: usize, generation: i32, id: Box<str>, reads: BTreeSet<u32>) -> Verdict {
        for partition in reads {
            let before = self.told.insert((group, generation, partition), id.clone());
            if before.as_ref().is_some_and(|before| *before != id) {
                let (group, before) = (GROUPS[group], before.unwrap_or_default());
                return Err(format!("{group}-{partition} is read by {before} and {id} in generation {generation}"));
            }
        }
        Ok(())
    }

    /// What is committed is the last that was acknowledged, or a later one that was asked for.
    fn check(&mut self, runner: &mut Runner) -> Verdict {
        self.asked.clear();
        // A generation that was begun and not stored has never been, for those of the one before.
        self.latest.clear();
        self.clients.values_mut().for_each(|client| client.waits = None);
        for (group, name) in GROUPS.into_iter().enumerate() {
            let committed = fetch(runner, name)?;
            for partition in 0..PARTITIONS {
                let found = committed.get(&partition).copied();
                let acked = self.acked.get(&(group, partition)).copied();
                if found < acked {
                    return Err(format!("{name}-{partition}: {found:?} is committed, {acked:?} was"));
                }
                let sent = self.sent.get(&(group, partition));
                if found.is_some_and(|found| !sent.is_some_and(|sent| sent.contains(&found))) {
                    return Err(format!("{name}-{partition}: nobody committed {found:?}"));
                }
                // What has survived has been seen, and has to stay.
                self.acked.extend(found.map(|found| ((group, partition), found)));
            }
        }
        Ok(())
    }
}

/// What is committed of each partition.
fn fetch(runner: &mut Runner, group: &str) -> Verdict<BTreeMap<u32, u64>> {
    let topic = WantedTopic { name: "t".into(), id: Some(TOPIC), partitions: (0..PARTITIONS).collect() };
    for attempt in 0..1_000 {
        let id = 1 << 40 | attempt;
        let request = Request::Fetch(Wanted::Some(vec![topic.clone()]));
        runner.command(Command::Group(RequestId(id), Box::new(GroupRequest { group: group.into(), request })));
        let answer = runner.wait_for(|effect| match effect {
            Effect::Group(request, answer) if request.0 == id => Some(answer.clone()),
            _ => None,
        });
        match answer.ok_or("a fetch was not answered")? {
            Answer::Offsets(topics) => {
                let found = topics[0].partitions.iter();
                return Ok(found.filter_map(|(at, own)| Some((*at, own.as_ref()?.offset))).collect());
            }
            Answer::Refused(ErrorCode::CoordinatorLoadInProgress) => drop(runner.step()),
            other => return Err(format!("{other:?}")),
        }
    }
    Err("the coordinator never loads".into())
}

fn join(identity: Identity, chance: u64) -> Join {
    let mut random = [0; 16];
    random[..8].copy_from_slice(&chance.to_le_bytes());
    Join {
        identity,
        client_id: "c".into(),
        client_host: "/".into(),
        session_timeout_ms: 6_000,
        rebalance_timeout_ms: 500,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Box::from(*b"metadata"))],
        requires_known_member: true,
        can_skip_assignment: true,
        random,
    }
}

/// Each partition to a random member that the leader was told of.
fn share(client: &Client, random: &mut Random) -> Vec<(Box<str>, Box<[u8]>)> {
    if !client.is_leader || client.members.is_empty() {
        return Vec::new();
    }
    let mut shares: BTreeMap<Box<str>, Vec<u8>> = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let member = &client.members[random.below(client.members.len() as u64) as usize];
        shares.entry(member.clone()).or_default().push(partition as u8);
    }
    shares.into_iter().map(|(member, own)| (member, own.into())).collect()
}

/// Runs one seed: members that come, go and commit, time, and power cuts at random steps.
fn run(seed: u64) -> Verdict<(usize, usize)> {
    let mut dice = dice(seed);
    let disk = MemoryDisk::crashing();
    disk.set_device_flush(dice.below(2) == 0);
    let (mut model, mut runner) = (Model::default(), start(disk, seed)?);
    for round in 0..2 + dice.below(3) {
        for _ in 0..dice.below(900) {
            match runner.random.below(4) {
                0 => model.act(&mut runner),
                1 => {
                    let ms = runner.random.below(30);
                    runner.pass(ms);
                }
                _ => drop(runner.step()),
            }
            model.hear(&mut runner).map_err(|wrong| format!("seed {seed}: {wrong}"))?;
        }
        runner = start(runner.disk.crash(&mut dice), seed + round)?;
        model.check(&mut runner).map_err(|wrong| format!("seed {seed}, crash {round}: {wrong}"))?;
    }
    Ok((model.commits, model.stable))
}

#[test]
fn no_committed_offset_is_lost_or_goes_back_and_no_partition_has_two_readers_whatever_a_power_cut_takes() {
    let (mut commits, mut stable) = (0, 0);
    for seed in 0..1_000 {
        let ran = run(seed).unwrap_or_else(|wrong| panic!("{wrong}"));
        commits += ran.0;
        stable += ran.1;
    }
    println!("1,000 seeds, {commits} commits acknowledged, {stable} assignments handed out");
    assert!(commits > 2_000, "only {commits} commits were acknowledged: the test has lost its teeth");
    assert!(stable > 2_000, "only {stable} assignments were handed out: the test has lost its teeth");
}
