//! `coulee simulate users`: owns pace and sending; what users do is in `events`.

use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime};

use coulee_client::{Producer, Record};
use serde_json::Value;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval};

use crate::arguments::{Summary, UsersArguments};
use crate::command::ledger::{Ledger, PENDING_MAX, Sent, progress, settle};
use crate::command::{Context, interrupts, of_topic, print, stdout};
use crate::events::{Event, Events};
use crate::failure::{Failure, Stop};

/// Events a second where nobody says how many, nor when to end.
const RATE_DEFAULT: u64 = 1_000;
/// How often a paced run sends.
const TICK: Duration = Duration::from_millis(5);
/// The most that is sent at once, paced or not, before others get their turn.
const BURST: u64 = 1_024;

/// Makes events and sends them.
pub(crate) async fn run(context: &Context, arguments: UsersArguments) -> Result<(), Stop> {
    let seed = arguments.seed.unwrap_or_else(|| RandomState::new().hash_one(std::process::id()));
    if arguments.seed.is_none() {
        context.terminal.say(&format!("seed {seed}"));
    }
    let pace = Pace {
        rate: match (arguments.rate, arguments.count) {
            (None, None) => Some(RATE_DEFAULT),
            (rate, _) => rate,
        },
        count: arguments.count,
        began: Instant::now(),
    };
    let mut events = Events::new(seed);
    if arguments.dry_run {
        return show(&pace, &mut events).await;
    }
    let client = context.connect().await?;
    let producer = match client.producer(&arguments.topic).delivery_timeout(context.shared.timeout).build().await {
        Ok(producer) => producer,
        Err(error) => return Err(of_topic(&client, &arguments.topic, error).await.into()),
    };
    let ledger = RefCell::new(Ledger::new("event", "acknowledged"));
    let (sender, deliveries) = mpsc::channel(PENDING_MAX);
    let broken = Notify::new();
    let bar = progress(&context.terminal, arguments.count);
    let told = (arguments.output == Some(Summary::Jsonl)).then(stdout);
    let feeding = feed(&pace, &mut events, producer, sender, &broken);
    let (fed, settled) = tokio::join!(feeding, settle(&ledger, deliveries, &broken, &bar, told));
    bar.finish_and_clear();
    settled?;
    let (ledger, took) = (ledger.into_inner(), pace.began.elapsed());
    if arguments.output == Some(Summary::Json) {
        let mut object = ledger.object(took);
        object.insert("seed".into(), seed.into());
        let object = Value::Object(object);
        print(|out| writeln!(out, "{object}"))?;
    }
    // Without a count an interruption is the end that was meant.
    let is_cut = fed? && arguments.count.is_some();
    ledger.verdict(is_cut)?;
    context.terminal.say(&ledger.text(took));
    context.terminal.next(&format!("coulee consume {} --until-end -n 5", arguments.topic));
    Ok(())
}

/// How many, and how fast.
#[derive(Clone, Copy, Debug)]
struct Pace {
    rate: Option<u64>,
    count: Option<u64>,
    began: Instant,
}

impl Pace {
    /// How many events are due beyond those made, after `elapsed`; `None` when all are made.
    fn due(&self, made: u64, elapsed: Duration) -> Option<u64> {
        let left = self.count.map_or(u64::MAX, |count| count - made);
        let by_now = |rate: u64| (elapsed.as_nanos() * u128::from(rate) / 1_000_000_000) as u64 + 1;
        let due = self.rate.map_or(BURST, |rate| by_now(rate).saturating_sub(made));
        (left > 0).then_some(due.min(left).min(BURST))
    }
}

/// Sends until the count is reached, a signal comes, or an event is not delivered. Says whether a signal came.
async fn feed(
    pace: &Pace,
    events: &mut Events,
    producer: Producer,
    sender: mpsc::Sender<Sent>,
    broken: &Notify,
) -> Result<bool, Failure> {
    let interrupted = interrupts();
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut made, mut event) = (0, Event::default());
    let is_cut = loop {
        let Some(due) = pace.due(made, pace.began.elapsed()) else { break false };
        let is_behind = pace.rate.is_none() || due == BURST;
        tokio::select! {
            biased;
            () = interrupted.notified() => break true,
            () = broken.notified() => break false,
            _ = ticks.tick(), if !is_behind => {}
            () = tokio::task::yield_now(), if is_behind => {}
        }
        for _ in 0..due {
            made += 1;
            events.next(now_ms(), &mut event);
            let delivery = producer.send(Record::new(event.value.as_bytes()).key(event.key.as_bytes())).await?;
            let sent = Sent { number: made, event_id: Some(event.id), delivery };
            let is_taken = sender.send(sent).await.is_ok();
            assert!(is_taken, "deliveries are looked at until the last sender is gone");
        }
    };
    producer.close().await;
    Ok(is_cut)
}

/// Prints the events instead.
async fn show(pace: &Pace, events: &mut Events) -> Result<(), Stop> {
    let mut out = stdout();
    let mut ticks = interval(TICK);
    let (mut made, mut event) = (0, Event::default());
    while let Some(due) = pace.due(made, pace.began.elapsed()) {
        for _ in 0..due {
            made += 1;
            events.next(now_ms(), &mut event);
            writeln!(out, "{}", event.value)?;
        }
        out.flush()?;
        if pace.rate.is_some() {
            ticks.tick().await;
        }
    }
    Ok(())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_makes_as_many_as_are_due_and_ends_at_the_count() {
        let pace = Pace { rate: Some(100), count: Some(250), began: Instant::now() };
        assert_eq!(pace.due(0, Duration::ZERO), Some(1));
        assert_eq!(pace.due(1, Duration::from_millis(5)), Some(0));
        assert_eq!(pace.due(1, Duration::from_secs(1)), Some(100));
        assert_eq!(pace.due(240, Duration::from_secs(60)), Some(10));
        assert_eq!(pace.due(250, Duration::from_secs(60)), None);
        let unpaced = Pace { rate: None, count: Some(5_000), ..pace };
        assert_eq!((unpaced.due(0, Duration::ZERO), unpaced.due(4_999, Duration::ZERO)), (Some(BURST), Some(1)));
    }
}
