//! `coulee topic`: owns how topics are shown; what may be changed is the broker's to say.

use std::io::{self, Write};

use coulee_client::{Client, Durability, ErrorCode, NewTopic, TopicChange, TopicDescription, TopicSummary};
use serde_json::{Map, Value, json};

use crate::arguments::{AnswerArguments, Output, TopicCommand};
use crate::command::{Context, of_topic, print};
use crate::failure::{Failure, Stop};
use crate::sheet::{Sheet, write_value};

/// Runs one of the topic commands.
pub(crate) async fn run(context: &Context, command: TopicCommand) -> Result<(), Stop> {
    let client = context.connect().await?;
    match command {
        TopicCommand::Create { name, partitions, set, dry_run, answer } => {
            let topic = NewTopic::new(&name).partitions(partitions);
            let topic = set.into_iter().fold(topic, |topic, (key, value)| topic.config(key, value));
            let topic = if dry_run { topic.validate_only() } else { topic };
            let made = client.create_topic(topic).await.map_err(|error| named(Failure::from(error), &name))?;
            let next = if dry_run { "coulee topic create" } else { "coulee produce" };
            changed(context, &name, made, if dry_run { "could be created" } else { "created" }, answer)?;
            context.terminal.next(&format!("{next} {name}"));
        }
        TopicCommand::List { all, answer } => list(context, &client, all, answer).await?,
        TopicCommand::Describe { name, answer } => {
            let described = describe(&client, &name).await?;
            print(|out| write_description(&name, &described, answer.output, out))?;
            context.terminal.next(&format!("coulee consume {name} --until-end"));
        }
        TopicCommand::Alter { name, partitions, set, unset, dry_run, answer } => {
            let change = TopicChange::new(&name).partitions(partitions);
            let change = set.into_iter().fold(change, |change, (key, value)| change.set(key, value));
            let change = unset.into_iter().fold(change, TopicChange::remove);
            let change = if dry_run { change.validate_only() } else { change };
            let altered = match client.alter_topic(change).await {
                Ok(altered) => altered,
                Err(error) => return Err(named(of_topic(&client, &name, error).await, &name).into()),
            };
            changed(context, &name, altered, if dry_run { "could be changed" } else { "changed" }, answer)?;
            context.terminal.next(&format!("coulee topic describe {name}"));
        }
        TopicCommand::Delete { name, yes, dry_run } => delete(context, &client, &name, yes, dry_run).await?,
    }
    Ok(())
}

async fn list(context: &Context, client: &Client, all: bool, answer: AnswerArguments) -> Result<(), Stop> {
    let topics = client.topics(all).await.map_err(Failure::from)?;
    let mut sheet = Sheet::new(&["name", "partitions", "durability", "internal"]);
    for topic in &topics {
        let durability = durability(topic.durability);
        sheet.push([
            topic.name.as_str().into(),
            topic.partition_count().into(),
            durability.into(),
            topic.is_internal.into(),
        ]);
    }
    print(|out| sheet.write(answer.output, out))?;
    context.terminal.next(match topics.first() {
        Some(_) => "coulee topic describe TOPIC",
        None => "coulee topic create hello",
    });
    Ok(())
}

async fn describe(client: &Client, name: &str) -> Result<TopicDescription, Failure> {
    match client.describe_topic(name).await {
        Ok(described) => Ok(described),
        Err(error) => Err(of_topic(client, name, error).await),
    }
}

async fn delete(context: &Context, client: &Client, name: &str, yes: bool, dry_run: bool) -> Result<(), Stop> {
    // Who is asked sees what is at stake.
    let described = describe(client, name).await?;
    let records: u64 =
        described.partitions.iter().map(|partition| partition.log_end.saturating_sub(partition.log_start)).sum();
    let count = |count: u64, noun: &str| if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") };
    let partitions = count(described.partitions.len() as u64, "partition");
    let stake = format!("topic {name} with {partitions} and {}", count(records, "record"));
    if dry_run {
        // The broker has the last word on what may be deleted.
        if let Err(error) = client.check_delete_topic(name).await {
            return Err(of_topic(client, name, error).await.into());
        }
        context.terminal.say(&format!("would delete {stake}"));
        return Ok(());
    }
    if !yes {
        context.terminal.confirm(&format!("delete {stake}"))?;
    }
    if let Err(error) = client.delete_topic(name).await {
        return Err(of_topic(client, name, error).await.into());
    }
    context.terminal.say(&format!("deleted {stake}"));
    context.terminal.next("coulee topic list");
    Ok(())
}

/// Puts the topic into words that leave it out.
fn named(mut failure: Failure, name: &str) -> Failure {
    if failure.number == ErrorCode::TopicAlreadyExists.code() {
        failure.message = format!("topic {name:?} exists already");
        failure.hint = Some(format!("see what it is with: coulee topic describe {name}"));
    }
    failure
}

fn changed(
    context: &Context,
    name: &str,
    summary: TopicSummary,
    what: &str,
    answer: AnswerArguments,
) -> Result<(), Stop> {
    let count = summary.partitions;
    let partitions = if count == 1 { "partition" } else { "partitions" };
    if answer.output == Output::Table {
        context.terminal.say(&format!("topic {name} {what}, {count} {partitions}"));
        return Ok(());
    }
    let mut sheet = Sheet::new(&["name", "topic_id", "partitions"]);
    sheet.push([name.into(), hex(&summary.topic_id.0).into(), count.into()]);
    print(|out| sheet.write(answer.output, out))
}

fn write_description(name: &str, described: &TopicDescription, output: Output, out: &mut impl Write) -> io::Result<()> {
    let partitions = partition_sheet(described);
    if output == Output::Csv {
        return partitions.write(output, out);
    }
    let mut configs = Sheet::new(&["key", "value", "set"]);
    for config in &described.configs {
        configs.push([config.key.as_str().into(), config.value.as_str().into(), config.is_set.into()]);
    }
    if output == Output::Table {
        let durability = durability(described.durability);
        writeln!(out, "topic       {name}\nid          {}", hex(&described.topic_id.0))?;
        writeln!(out, "durability  {durability}\nreplicas    {}\n", described.replication_factor)?;
        partitions.write(output, out)?;
        writeln!(out)?;
        return configs.write(output, out);
    }
    let mut object = Map::new();
    object.insert("name".into(), name.into());
    object.insert("topic_id".into(), hex(&described.topic_id.0).into());
    object.insert("internal".into(), described.is_internal.into());
    object.insert("durability".into(), durability(described.durability).into());
    object.insert("replication_factor".into(), described.replication_factor.into());
    object.insert("partitions".into(), partitions.objects().into());
    object.insert("configs".into(), configs.objects().into());
    write_value(&Value::Object(object), output, out)
}

fn partition_sheet(described: &TopicDescription) -> Sheet {
    let names =
        ["partition", "shard", "leader_epoch", "log_start", "high_watermark", "log_end", "bytes", "segments", "error"];
    let mut sheet = Sheet::new(&names);
    for partition in &described.partitions {
        let error = match (partition.error, ErrorCode::from_code(partition.error)) {
            (0, _) => Value::Null,
            (_, Some(code)) => code.to_string().into(),
            (number, None) => format!("E{number}").into(),
        };
        sheet.push([
            json!(partition.index),
            json!(partition.shard),
            json!(partition.leader_epoch),
            json!(partition.log_start),
            json!(partition.high_watermark),
            json!(partition.log_end),
            json!(partition.bytes),
            json!(partition.segments),
            error,
        ]);
    }
    sheet
}

fn durability(durability: Option<Durability>) -> &'static str {
    match durability {
        Some(Durability::Fsync) => "fsync",
        Some(Durability::Written) => "written",
        None => "unknown",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
