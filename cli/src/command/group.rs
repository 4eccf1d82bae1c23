//! `coulee group`: owns how groups are shown and where they are moved; whether they may be is the broker's to say.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, SystemTime};

use coulee_client::{
    Client, CommittedOffset, ConsumeError, ErrorCode, GroupDescription, GroupState, OffsetSpec, Start,
};
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::arguments::{AnswerArguments, GroupCommand, Output};
use crate::command::{Context, of_topic, print};
use crate::failure::{Failure, Stop};
use crate::offset::SeekTo;
use crate::sheet::{Sheet, write_value};

/// Between two looks at a group, to see which way its lag goes.
const TREND_MS: u64 = 500;

/// A partition of a topic.
type Place = (String, u32);

/// Runs one of the group commands.
pub(crate) async fn run(context: &Context, command: GroupCommand) -> Result<(), Stop> {
    let client = context.connect().await?;
    match command {
        GroupCommand::List { answer } => list(context, &client, answer).await,
        GroupCommand::Describe { name, answer } => describe(context, &client, &name, answer).await,
        GroupCommand::Seek { name, to, topic, dry_run, answer } => {
            let seek = Seek { name: &name, to, topics: &topic, dry_run };
            seek.run(context, &client, answer).await
        }
        GroupCommand::Delete { name, yes, dry_run } => delete(context, &client, &name, (yes, dry_run)).await,
    }
}

async fn list(context: &Context, client: &Client, answer: AnswerArguments) -> Result<(), Stop> {
    let groups = client.groups().await.map_err(Failure::from)?;
    let mut sheet = Sheet::new(&["name", "state", "members", "protocol_type"]);
    for group in &groups {
        sheet.push([
            group.name.as_str().into(),
            group.state.to_string().into(),
            group.members.into(),
            group.protocol_type.as_str().into(),
        ]);
    }
    print(|out| sheet.write(answer.output, out))?;
    context.terminal.next(match groups.first() {
        Some(_) => "coulee group describe GROUP",
        None => "coulee consume TOPIC --group GROUP",
    });
    Ok(())
}

/// A group as the broker knows it; one that does not exist gets those that do as a hint.
async fn look_up(client: &Client, name: &str) -> Result<GroupDescription, Failure> {
    let error = match client.describe_group(name).await {
        Ok(described) => return Ok(described),
        Err(error) => error,
    };
    if error.code() != Some(ErrorCode::GroupIdNotFound) {
        return Err(error.into());
    }
    let failure = Failure::coded(ErrorCode::GroupIdNotFound, format!("group {name:?} does not exist"));
    Err(failure.hint("see the groups with: coulee group list"))
}

/// One partition that a group reads or has read.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    place: Place,
    committed: Option<u64>,
    high_watermark: Option<u64>,
    lag_seconds: Option<f64>,
    /// Member and host that read it.
    reader: Option<(String, String)>,
    /// How many records more the lag is than a moment before.
    trend: Option<i64>,
}

impl Line {
    fn lag(&self) -> Option<u64> {
        Some(self.high_watermark?.saturating_sub(self.committed?))
    }

    fn trend(&self) -> Option<&'static str> {
        Some(match self.trend? {
            ..0 => "shrinking",
            0 => "steady",
            1.. => "growing",
        })
    }
}

async fn describe(context: &Context, client: &Client, name: &str, answer: AnswerArguments) -> Result<(), Stop> {
    let described = look_up(client, name).await?;
    let before = lags(client, name, &described).await?;
    sleep(Duration::from_millis(TREND_MS)).await;
    let mut lines = lags(client, name, &described).await?;
    for line in &mut lines {
        let earlier = before.iter().find(|earlier| earlier.place == line.place).and_then(Line::lag);
        line.trend = line.lag().zip(earlier).map(|(now, then)| now as i64 - then as i64);
        line.lag_seconds = lag_seconds(client, line).await;
    }
    print(|out| write_description(name, &described, &lines, answer.output, out))?;
    let next = if described.members.is_empty() { "--to start --dry-run" } else { "--to end --dry-run" };
    context.terminal.next(&format!("coulee group seek {name} {next}"));
    Ok(())
}

/// Every partition that the group has committed an offset of, or that a member reads.
async fn lags(client: &Client, name: &str, described: &GroupDescription) -> Result<Vec<Line>, Failure> {
    let committed = client.committed_offsets(name, &[]).await?;
    let mut readers: BTreeMap<Place, (String, String)> = BTreeMap::new();
    for member in &described.members {
        for (topic, partitions) in &member.assignment {
            for partition in partitions {
                readers.insert((topic.clone(), *partition), (member.member_id.clone(), member.host.clone()));
            }
        }
    }
    let of = |committed: CommittedOffset| ((committed.topic, committed.partition), committed.offset);
    let offsets: BTreeMap<Place, u64> = committed.into_iter().map(of).collect();
    let places: BTreeSet<Place> = offsets.keys().chain(readers.keys()).cloned().collect();
    let ends = listed(client, &places, OffsetSpec::End).await?;
    let line = |place: Place| Line {
        committed: offsets.get(&place).copied(),
        high_watermark: ends.get(&place).copied(),
        lag_seconds: None,
        reader: readers.get(&place).cloned(),
        trend: None,
        place,
    };
    Ok(places.into_iter().map(line).collect())
}

/// An offset of each partition; a topic that is gone has none.
async fn listed(client: &Client, places: &BTreeSet<Place>, spec: OffsetSpec) -> Result<BTreeMap<Place, u64>, Failure> {
    let mut topics: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    places.iter().for_each(|(topic, partition)| topics.entry(topic).or_default().push(*partition));
    let mut offsets = BTreeMap::new();
    for (topic, partitions) in topics {
        match client.list_offsets(topic, &partitions, spec).await {
            Ok(listed) => offsets
                .extend(listed.iter().filter_map(|found| Some(((topic.to_owned(), found.partition), found.offset?)))),
            Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(offsets)
}

/// How long the next record has waited; nothing where it cannot be read.
async fn lag_seconds(client: &Client, line: &Line) -> Option<f64> {
    if line.lag()? == 0 {
        return Some(0.0);
    }
    let (topic, partition) = &line.place;
    let builder = client.consumer(topic.clone()).partitions([*partition]).start(Start::Offset(line.committed?));
    let mut consumer = builder.max_bytes(1).build().await.ok()?;
    let mut batch = consumer.poll().await.ok()??;
    let written_ms = batch.records().ok()?.next()?.timestamp_ms;
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis() as i64;
    Some((now_ms - written_ms).max(0) as f64 / 1_000.0)
}

fn write_description(
    name: &str,
    described: &GroupDescription,
    lines: &[Line],
    output: Output,
    out: &mut impl io::Write,
) -> io::Result<()> {
    let names = ["topic", "partition", "committed", "high_watermark", "lag", "lag_seconds", "trend", "member", "host"];
    let mut sheet = Sheet::new(&names);
    for line in lines {
        let (member, host) = line.reader.clone().unzip();
        sheet.push([
            json!(line.place.0),
            json!(line.place.1),
            json!(line.committed),
            json!(line.high_watermark),
            json!(line.lag()),
            json!(line.lag_seconds),
            json!(line.trend()),
            json!(member),
            json!(host.map(|host| host.trim_start_matches('/').to_owned())),
        ]);
    }
    if output == Output::Csv {
        return sheet.write(output, out);
    }
    let lag: u64 = lines.iter().filter_map(Line::lag).sum();
    if output == Output::Table {
        writeln!(out, "group       {name}\nstate       {}", described.state)?;
        writeln!(out, "generation  {}\nassignor    {}", described.generation, described.protocol)?;
        writeln!(out, "members     {}\nlag         {lag}\n", described.members.len())?;
        return sheet.write(output, out);
    }
    let mut object = Map::new();
    object.insert("name".into(), name.into());
    object.insert("state".into(), described.state.to_string().into());
    object.insert("generation".into(), described.generation.into());
    object.insert("assignor".into(), described.protocol.as_str().into());
    object.insert("coordinator_partition".into(), described.partition.into());
    object.insert("members".into(), described.members.len().into());
    object.insert("lag".into(), lag.into());
    object.insert("partitions".into(), sheet.objects().into());
    write_value(&Value::Object(object), output, out)
}

/// A group that is to be moved.
#[derive(Clone, Copy, Debug)]
struct Seek<'a> {
    name: &'a str,
    to: SeekTo,
    topics: &'a [(String, Option<u32>)],
    dry_run: bool,
}

impl Seek<'_> {
    async fn run(&self, context: &Context, client: &Client, answer: AnswerArguments) -> Result<(), Stop> {
        self.check_idle(client).await?;
        let committed = client.committed_offsets(self.name, &[]).await.map_err(Failure::from)?;
        let before: BTreeMap<Place, u64> =
            committed.into_iter().map(|own| ((own.topic, own.partition), own.offset)).collect();
        let places = self.places(client, &before).await?;
        if places.is_empty() {
            let failure = Failure::coded(ErrorCode::GroupIdNotFound, format!("group {:?} has no offsets", self.name));
            return Err(failure.hint("name what it is to read: --topic TOPIC").into());
        }
        let after = self.targets(client, &places).await?;
        let mut sheet = Sheet::new(&["topic", "partition", "before", "after", "change"]);
        for (place, to) in &after {
            let from = before.get(place);
            let change = from.map(|from| *to as i64 - *from as i64);
            sheet.push([json!(place.0), json!(place.1), json!(from), json!(to), json!(change)]);
        }
        if !self.dry_run {
            let offsets: Vec<(Place, u64)> = after.into_iter().collect();
            let moved = client.set_committed_offsets(self.name, &offsets).await;
            moved.map_err(|error| match error.code() {
                // Somebody has joined since.
                Some(ErrorCode::UnknownMemberId) => self.in_use(),
                _ => error.into(),
            })?;
        }
        print(|out| sheet.write(answer.output, out))?;
        let name = self.name;
        context.terminal.say(&if self.dry_run {
            format!("group {name} would be moved")
        } else {
            format!("group {name} moved")
        });
        context.terminal.next(&format!("coulee group describe {name}"));
        Ok(())
    }

    fn in_use(&self) -> Failure {
        let failure = Failure::coded(ErrorCode::NonEmptyGroup, format!("group {:?} has members", self.name));
        failure.hint("stop its members first: who reads would go on where it was")
    }

    /// A group can be moved while nobody reads. One that is not there yet may be given a place to begin.
    async fn check_idle(&self, client: &Client) -> Result<(), Failure> {
        match client.describe_group(self.name).await {
            Ok(described) if described.state != GroupState::Empty => Err(self.in_use()),
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) && !self.topics.is_empty() => Ok(()),
            Err(_) => look_up(client, self.name).await.map(|_| ()),
        }
    }

    /// What is moved: what was named, else all that the group has offsets of.
    async fn places(&self, client: &Client, before: &BTreeMap<Place, u64>) -> Result<BTreeSet<Place>, Failure> {
        if self.topics.is_empty() {
            return Ok(before.keys().cloned().collect());
        }
        let mut places = BTreeSet::new();
        for (topic, partition) in self.topics {
            let found = match client.topic(topic).await {
                Ok(found) => found,
                Err(error) => return Err(of_topic(client, topic, error).await),
            };
            let count = found.partition_count();
            match partition {
                Some(partition) if *partition >= count => {
                    let message = format!("topic {topic} has partitions 0 to {}, not {partition}", count - 1);
                    return Err(Failure::coded(ErrorCode::UnknownTopicOrPartition, message));
                }
                Some(partition) => drop(places.insert((topic.clone(), *partition))),
                None => places.extend((0..count).map(|partition| (topic.clone(), partition))),
            }
        }
        Ok(places)
    }

    /// Where each partition goes. An offset has to be one that the partition has.
    async fn targets(&self, client: &Client, places: &BTreeSet<Place>) -> Result<BTreeMap<Place, u64>, Failure> {
        let ends = listed(client, places, OffsetSpec::End).await?;
        let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        match self.to.at(now_ms) {
            Start::End => Ok(ends),
            Start::Start => listed(client, places, OffsetSpec::Start).await,
            Start::Time(timestamp_ms) => {
                // Where nothing is that young, behind everything.
                let mut targets = ends;
                targets.extend(listed(client, places, OffsetSpec::Time(timestamp_ms)).await?);
                Ok(targets)
            }
            Start::Offset(offset) => {
                let starts = listed(client, places, OffsetSpec::Start).await?;
                for (place, high_watermark) in &ends {
                    let log_start = starts.get(place).copied().unwrap_or_default();
                    if offset < log_start || offset > *high_watermark {
                        let (partition, high_watermark) = (place.1, *high_watermark);
                        let error = ConsumeError::OutOfRange { partition, position: offset, log_start, high_watermark };
                        return Err(Failure::from(error).hint("see what there is with: coulee topic describe TOPIC"));
                    }
                }
                Ok(ends.into_keys().map(|place| (place, offset)).collect())
            }
        }
    }
}

async fn delete(context: &Context, client: &Client, name: &str, (yes, dry_run): (bool, bool)) -> Result<(), Stop> {
    let described = look_up(client, name).await?;
    let offsets = client.committed_offsets(name, &[]).await.map_err(Failure::from)?.len();
    let stake = format!("group {name} with {offsets} committed {}", if offsets == 1 { "offset" } else { "offsets" });
    let refused = |error: coulee_client::AdminError| match error.code() {
        Some(ErrorCode::NonEmptyGroup) => {
            let count = described.members.len();
            let message = format!("group {name:?} has {count} {}", if count == 1 { "member" } else { "members" });
            Failure::coded(ErrorCode::NonEmptyGroup, message).hint("stop its members first")
        }
        _ => error.into(),
    };
    client.delete_group(name, true).await.map_err(refused)?;
    if dry_run {
        context.terminal.say(&format!("would delete {stake}"));
        return Ok(());
    }
    if !yes {
        context.terminal.confirm(&format!("delete {stake}"))?;
    }
    client.delete_group(name, false).await.map_err(refused)?;
    context.terminal.say(&format!("deleted {stake}"));
    context.terminal.next("coulee group list");
    Ok(())
}
