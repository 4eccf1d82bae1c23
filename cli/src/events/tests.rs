//! Tests of simulated events: owns what a valid event is; knows no broker.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::*;

const NOON: u64 = 1_793_000_000_000;

fn made(seed: u64, count: u64) -> Vec<Event> {
    let mut events = Events::new(seed);
    let make = |index| {
        let mut event = Event::default();
        events.next(NOON + index / 10, &mut event);
        event
    };
    (0..count).map(make).collect()
}

/// The fields of each type's payload, as users of such platforms know them.
fn fields(kind: &str) -> &'static [&'static str] {
    match kind {
        "login" => &["userId", "ip", "device"],
        "logout" => &["userId", "duration", "ip"],
        "page_view" => &["userId", "page", "referrer", "device"],
        "button_click" => &["userId", "buttonId", "page"],
        "form_submit" => &["userId", "formId", "fields"],
        other => panic!("unknown type {other}"),
    }
}

#[test]
fn every_event_is_valid_and_all_five_types_come_up() {
    let mut kinds = BTreeSet::new();
    for event in made(1, 20_000) {
        let value: Value = serde_json::from_str(&event.value).unwrap_or_else(|error| panic!("{error}: {event:?}"));
        let names: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(names, ["eventId", "type", "timestamp", "payload"]);
        let kind = value["type"].as_str().unwrap();
        let payload = value["payload"].as_object().unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), fields(kind));
        assert_eq!(payload["userId"], event.key.as_str());
        for (name, value) in payload {
            let is_right = match name.as_str() {
                "duration" => value.is_u64(),
                "fields" => value.as_object().unwrap().values().all(Value::is_string),
                _ => value.is_string(),
            };
            assert!(is_right, "{name}: {value}");
        }
        assert_eq!(Uuid::parse_str(value["eventId"].as_str().unwrap()).unwrap().get_version_num(), 7);
        let time: Timestamp = value["timestamp"].as_str().unwrap().parse().unwrap();
        assert!((NOON..NOON + 2_000).contains(&(time.as_millisecond() as u64)));
        kinds.insert(kind.to_owned());
    }
    assert_eq!(kinds.len(), 5);
}

#[test]
fn the_same_seed_makes_the_same_bytes_and_another_one_does_not() {
    assert_eq!(made(7, 5_000), made(7, 5_000));
    assert_ne!(made(7, 50), made(8, 50));
}

#[test]
fn a_few_users_do_most_of_what_happens() {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for event in made(3, 50_000) {
        *counts.entry(event.key).or_default() += 1;
    }
    let mut counts: Vec<u64> = counts.into_values().collect();
    counts.sort_unstable_by(|one, other| other.cmp(one));
    let top: u64 = counts.iter().take(100).sum();
    assert!(counts.len() > 500, "{} users", counts.len());
    assert!(top * 3 > 50_000, "the first hundred of {} users made {top} of 50,000 events", counts.len());
}

#[test]
fn event_ids_ascend_even_when_the_clock_goes_back() {
    let mut events = Events::new(5);
    let mut last = String::new();
    for now in [NOON, NOON, NOON + 5, NOON - 100, NOON + 5, NOON + 6].repeat(200) {
        let mut event = Event::default();
        events.next(now, &mut event);
        let value: Value = serde_json::from_str(&event.value).unwrap();
        let id = value["eventId"].as_str().unwrap().to_owned();
        assert!(last < id, "{last} before {id}");
        last = id;
    }
}

#[test]
fn a_users_session_begins_with_a_login_and_ends_with_a_logout() {
    let mut logged_in = BTreeSet::new();
    for event in made(11, 20_000) {
        let value: Value = serde_json::from_str(&event.value).unwrap();
        let is_consistent = match value["type"].as_str().unwrap() {
            "login" => logged_in.insert(event.key),
            "logout" => logged_in.remove(&event.key),
            _ => logged_in.contains(&event.key),
        };
        assert!(is_consistent, "{value}");
    }
    assert!(logged_in.len() <= SESSIONS_MAX);
}
