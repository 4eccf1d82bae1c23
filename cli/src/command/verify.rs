//! `coulee verify`: owns which of the two checks is made and how a stopped broker's is shown; checks nothing itself.

mod live;
mod proof;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::arguments::{Output, VerifyArguments};
use crate::broker::{self, Finding, Verified, VerifiedPartition};
use crate::code::LocalCode;
use crate::command::{Context, print, runtime};
use crate::failure::{Failure, Stop};
use crate::sheet::{Sheet, write_value};
use crate::terminal::Terminal;

/// Checks the directory of a stopped broker, or a running broker.
pub(crate) fn run(context: &Context, arguments: &VerifyArguments) -> Result<(), Stop> {
    match &arguments.data_dir {
        Some(data_dir) => stopped(context, data_dir, arguments.answer.output),
        None => runtime()?.block_on(live::run(context, arguments)),
    }
}

fn stopped(context: &Context, data_dir: &str, output: Output) -> Result<(), Stop> {
    let began = Instant::now();
    let bar = progress(&context.terminal);
    let verified = broker::verify(Path::new(data_dir), &mut |progress| {
        bar.set_length(progress.bytes);
        bar.set_position(progress.bytes_done.min(progress.bytes));
        bar.set_message(format!("{} of {} partitions", progress.partitions_done, progress.partitions));
    });
    bar.finish_and_clear();
    let (verified, took) = (verified?, began.elapsed());
    match output {
        Output::Json | Output::Yaml => print(|out| write_value(&object(data_dir, &verified, took), output, out))?,
        Output::Jsonl | Output::Csv => print(|out| sheet(&verified).write(output, out))?,
        Output::Table => print(|out| {
            if findings(&verified).next().is_some() {
                sheet(&verified).write(output, out)?;
            }
            writeln!(out, "{}", text(&verified, took))
        })?,
    }
    verdict(data_dir, &verified)?;
    context.terminal.next(&format!("coulee serve --data-dir {data_dir}"));
    Ok(())
}

/// How far it is, where somebody looks.
fn progress(terminal: &Terminal) -> ProgressBar {
    let target = if terminal.is_watched { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let template = "{bar:30} {bytes}/{total_bytes}, {msg}, {bytes_per_sec}, {eta} to go";
    let style = ProgressStyle::default_bar().template(template).expect("the template is a constant that a test draws");
    ProgressBar::with_draw_target(Some(0), target).with_style(style)
}

/// Findings with the partition that they are of.
fn findings(verified: &Verified) -> impl Iterator<Item = (Option<&VerifiedPartition>, &Finding)> {
    let of_partition = |partition| {
        let partition: &VerifiedPartition = partition;
        partition.findings.iter().map(move |finding| (Some(partition), finding))
    };
    let of_dir = verified.findings.iter().map(|finding| (None, finding));
    of_dir.chain(verified.partitions.iter().flat_map(of_partition))
}

fn sheet(verified: &Verified) -> Sheet {
    let columns = ["severity", "topic", "partition", "file", "position", "lost_from", "lost_to", "what", "advice"];
    let mut sheet = Sheet::new(&columns);
    for (partition, finding) in findings(verified) {
        let topic = partition.and_then(|partition| partition.topic.as_ref());
        sheet.push([
            finding.severity.into(),
            topic.map_or(Value::Null, |(name, _)| name.as_str().into()),
            topic.map_or(Value::Null, |(_, number)| (*number).into()),
            finding.file.as_str().into(),
            finding.position.into(),
            finding.lost.map(|lost| lost.0).into(),
            finding.lost.map(|lost| lost.1).into(),
            finding.what.as_str().into(),
            finding.advice.into(),
        ]);
    }
    sheet
}

/// What all partitions make together.
fn total(verified: &Verified, of: impl Fn(&VerifiedPartition) -> u64) -> u64 {
    verified.partitions.iter().map(of).sum()
}

fn text(verified: &Verified, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let gigabytes = verified.bytes_read as f64 / 1e9;
    let verdict = if verified.is_damaged { "DAMAGED" } else { "sound" };
    let untold: u64 = total(verified, |partition| partition.untold);
    let more = if untold > 0 { format!(", and {untold} findings more") } else { String::new() };
    format!(
        "{verdict}: {} partitions, {} segments, {} batches, {} records, {} bytes of batches{more}; \
         read {gigabytes:.2} GB in {seconds:.1} s ({:.2} GB/s)",
        verified.partitions.len(),
        total(verified, |partition| partition.segments),
        total(verified, |partition| partition.batches),
        total(verified, |partition| partition.records),
        total(verified, |partition| partition.bytes),
        gigabytes / seconds.max(1e-9),
    )
}

fn finding_object(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity,
        "file": finding.file,
        "position": finding.position,
        "lost": finding.lost.map(|(from, to)| json!({"from": from, "to": to})),
        "what": finding.what,
        "advice": finding.advice,
    })
}

fn object(data_dir: &str, verified: &Verified, took: Duration) -> Value {
    let partition = |partition: &VerifiedPartition| {
        json!({
            "uid": partition.uid,
            "topic": partition.topic.as_ref().map(|(name, _)| name),
            "partition": partition.topic.as_ref().map(|(_, number)| number),
            "log_start": partition.log_start,
            "log_end": partition.log_end,
            "segments": partition.segments,
            "batches": partition.batches,
            "records": partition.records,
            "bytes": partition.bytes,
            "lost": partition.lost,
            "findings": partition.findings.iter().map(finding_object).collect::<Value>(),
            "findings_untold": partition.untold,
        })
    };
    json!({
        "data_dir": data_dir,
        "verdict": if verified.is_damaged { "damaged" } else { "sound" },
        "segments": total(verified, |partition| partition.segments),
        "batches": total(verified, |partition| partition.batches),
        "records": total(verified, |partition| partition.records),
        "bytes": total(verified, |partition| partition.bytes),
        "lost": total(verified, |partition| partition.lost),
        "pool_files": verified.pool_files,
        "bytes_read": verified.bytes_read,
        "seconds": took.as_secs_f64(),
        "findings": verified.findings.iter().map(finding_object).collect::<Value>(),
        "partitions": verified.partitions.iter().map(partition).collect::<Value>(),
    })
}

fn verdict(data_dir: &str, verified: &Verified) -> Result<(), Failure> {
    if !verified.is_damaged {
        return Ok(());
    }
    let damaged = verified.partitions.iter().filter(|partition| partition.lost > 0).count();
    let lost = total(verified, |partition| partition.lost);
    let message = match damaged {
        0 => "the data directory is damaged".to_owned(),
        _ => format!("{damaged} partitions are damaged: {lost} offsets that were durable cannot be read"),
    };
    let mut failure = Failure::local(LocalCode::DataDamaged, message);
    for note in damage_notes(verified) {
        failure = failure.note(note);
    }
    Err(failure.hint(format!("keep a copy of it, then see what can be done with: coulee repair --data-dir {data_dir}")))
}

/// A line for the first damage of the directory and of each partition.
pub(super) fn damage_notes(verified: &Verified) -> impl Iterator<Item = String> {
    first_damage(verified).map(|(partition, finding)| {
        let place = finding.position.map_or_else(String::new, |position| format!(" at byte {position}"));
        let lost = finding.lost.map_or_else(String::new, |(from, to)| format!(", offsets {from} to {to} (exclusive)"));
        let topic = partition.and_then(|partition| partition.topic.as_ref());
        let of = topic.map_or_else(String::new, |(name, number)| format!("topic {name} partition {number}: "));
        format!("{of}{}{place}{lost}: {}", finding.file, finding.what)
    })
}

/// The first damage of the directory and of each partition.
fn first_damage(verified: &Verified) -> impl Iterator<Item = (Option<&VerifiedPartition>, &Finding)> {
    let first = |findings: &'_ [Finding]| findings.iter().position(|finding| finding.severity == "damage");
    let of_dir = first(&verified.findings).map(|at| (None, &verified.findings[at]));
    let of_partition = move |partition| {
        let partition: &VerifiedPartition = partition;
        first(&partition.findings).map(|at| (Some(partition), &partition.findings[at]))
    };
    of_dir.into_iter().chain(verified.partitions.iter().filter_map(of_partition))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged() -> Verified {
        let finding = |severity, position| Finding {
            severity,
            file: "p/2/00000000000000000000.log".into(),
            position: Some(position),
            lost: Some((3, 5)),
            what: "payload crc does not fit".into(),
            advice: "put the file back from a copy",
        };
        let partition = VerifiedPartition {
            uid: 2,
            topic: Some(("orders".into(), 0)),
            log_start: 0,
            log_end: 9,
            segments: 1,
            batches: 7,
            records: 7,
            bytes: 700,
            lost: 2,
            findings: vec![finding("warning", 1), finding("damage", 4_416), finding("damage", 8_192)],
            untold: 0,
        };
        let (findings, partitions) = (Vec::new(), vec![partition]);
        Verified { is_damaged: true, findings, partitions, pool_files: 0, bytes_read: 65_536 }
    }

    #[test]
    fn the_first_damage_of_each_partition_is_named_with_file_byte_and_offsets() {
        let failure = verdict("d", &damaged()).unwrap_err();
        assert_eq!((failure.number, failure.exit as u8), (2_017, 8));
        assert_eq!(failure.message, "1 partitions are damaged: 2 offsets that were durable cannot be read");
        let place = "p/2/00000000000000000000.log at byte 4416, offsets 3 to 5 (exclusive)";
        assert_eq!(failure.notes, [format!("topic orders partition 0: {place}: payload crc does not fit")]);
        assert_eq!(verdict("d", &Verified { is_damaged: false, ..damaged() }), Ok(()));
    }

    #[test]
    fn an_answer_holds_totals_and_every_finding() {
        let object = object("d", &damaged(), Duration::from_secs(1));
        assert_eq!(
            (&object["verdict"], &object["lost"], &object["records"]),
            (&json!("damaged"), &json!(2), &json!(7))
        );
        assert_eq!(object["partitions"][0]["findings"][1]["lost"], json!({"from": 3, "to": 5}));
        assert_eq!(sheet(&damaged()).objects().len(), 3);
        assert!(text(&damaged(), Duration::from_secs(1)).starts_with("DAMAGED: 1 partitions, 1 segments, 7 batches"));
        progress(&Terminal::new(true, true)).set_position(5);
    }
}
