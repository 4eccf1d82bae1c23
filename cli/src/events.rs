//! Events of simulated users: owns users, sessions and what they do; reads no clock and sends nothing.
//!
//! A few users do most of what happens: a session's user is drawn by Zipf's law (the n-th user comes up 1/n as often as
//! the first). Sessions run beside each other; each begins with a login, walks through pages, and ends with a logout.
//! The same seed and the same times make the same bytes.
//!
//! Event ids are UUIDs of version 7 that carry the event's number behind the time: they ascend strictly over a run, so
//! that a consumer can check order and count by the ids alone.

mod chance;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;
use uuid::Uuid;

use self::chance::Chance;

/// Users that there are.
const USERS: usize = 10_000;
/// Sessions beside each other, at most.
const SESSIONS_MAX: usize = 500;
/// As long as there are fewer, every other event begins one.
const SESSIONS_MIN: usize = 20;
/// A session ends after so many events with one in this many: 12 on average.
const EVENTS_A_SESSION: u64 = 12;

const PAGES: [&str; 12] = [
    "/",
    "/products",
    "/products/42",
    "/products/7",
    "/cart",
    "/checkout",
    "/search",
    "/account",
    "/orders",
    "/help",
    "/blog/launch",
    "/pricing",
];
const REFERRERS: [&str; 5] =
    ["", "https://www.google.com/", "https://news.ycombinator.com/", "https://t.co/x1", "https://duckduckgo.com/"];
const DEVICES: [&str; 6] = ["iPhone", "Android", "Windows PC", "Mac", "Linux PC", "iPad"];
const BUTTONS: [&str; 7] = ["add-to-cart", "buy-now", "menu", "next-page", "like", "share", "apply-filter"];
const FORMS: [(&str, &str, [&str; 3]); 3] = [
    ("newsletter", "email", ["ann@example.com", "bo@example.org", "cy@example.net"]),
    ("search", "query", ["shoes", "blue jacket", "gift under 20"]),
    ("feedback", "rating", ["3", "4", "5"]),
];

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Login,
    Logout,
    PageView,
    ButtonClick,
    FormSubmit,
}

/// One visit of one user.
#[derive(Clone, Debug)]
struct Session {
    user: usize,
    page: usize,
    is_logged_in: bool,
    /// Thinking time so far, in milliseconds. Events may be made faster than users think.
    duration_ms: u64,
}

/// An event, ready to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// The event's id, as it stands in the value.
    pub(crate) id: Uuid,
    /// The user's id.
    pub(crate) key: String,
    /// The event as JSON.
    pub(crate) value: String,
}

/// Makes events.
#[derive(Debug)]
pub(crate) struct Events {
    chance: Chance,
    /// For each user, how often it or one before it comes up, in shares of the last.
    shares: Vec<f64>,
    sessions: Vec<Session>,
    active: BTreeSet<usize>,
    number: u64,
    now_ms: u64,
}

impl Events {
    pub(crate) fn new(seed: u64) -> Self {
        let mut sum = 0.0;
        let shares = (1..=USERS).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        let shares = shares.collect();
        Self { chance: Chance::new(seed), shares, sessions: Vec::new(), active: BTreeSet::new(), number: 0, now_ms: 0 }
    }

    /// Makes the next event, which happens now. A time that goes back counts as the one before.
    pub(crate) fn next(&mut self, now_ms: u64, event: &mut Event) {
        self.now_ms = self.now_ms.max(now_ms);
        self.number += 1;
        let at = self.session();
        let act = self.act(at);
        event.key.clear();
        let user = self.sessions[at].user;
        write_to(&mut event.key, format_args!("user-{user:05}"));
        self.write(at, act, event);
        if act == Act::Logout {
            let ended = self.sessions.swap_remove(at);
            self.active.remove(&ended.user);
        }
    }

    /// The session that goes on, or begins.
    fn session(&mut self) -> usize {
        let count = self.sessions.len();
        let begins = self.chance.one_in(if count < SESSIONS_MIN { 2 } else { EVENTS_A_SESSION });
        if count == SESSIONS_MAX || (count > 0 && !begins) {
            return self.chance.below(self.sessions.len() as u64) as usize;
        }
        let total = self.shares[USERS - 1];
        let drawn = self.chance.fraction() * total;
        let user = self.shares.partition_point(|share| *share <= drawn).min(USERS - 1);
        if !self.active.insert(user) {
            // At home already: the visit goes on.
            let of_user = self.sessions.iter().position(|session| session.user == user);
            return of_user.expect("an active user has a session");
        }
        self.sessions.push(Session { user, page: 0, is_logged_in: false, duration_ms: 0 });
        self.sessions.len() - 1
    }

    fn act(&mut self, at: usize) -> Act {
        let session = &mut self.sessions[at];
        if !session.is_logged_in {
            session.is_logged_in = true;
            return Act::Login;
        }
        // Half a second to half a minute, short ones more often.
        let (one, other) = (self.chance.below(15_000), self.chance.below(15_000));
        session.duration_ms += 500 + one * other / 7_500;
        if self.chance.one_in(EVENTS_A_SESSION) {
            return Act::Logout;
        }
        match self.chance.below(100) {
            0..60 => {
                session.page = self.chance.below(PAGES.len() as u64) as usize;
                Act::PageView
            }
            60..92 => Act::ButtonClick,
            _ => Act::FormSubmit,
        }
    }

    fn write(&mut self, at: usize, act: Act, event: &mut Event) {
        event.id = self.event_id();
        let Session { user, page, duration_ms, .. } = self.sessions[at];
        let time = i64::try_from(self.now_ms).ok().and_then(|now| Timestamp::from_millisecond(now).ok());
        let time = time.unwrap_or(Timestamp::UNIX_EPOCH);
        let (id, kind, key) = (event.id, kind(act), &event.key);
        let value = &mut event.value;
        value.clear();
        write_to(value, format_args!("{{\"eventId\":\"{id}\",\"type\":\"{kind}\",\"timestamp\":\"{time:.3}\","));
        write_to(value, format_args!("\"payload\":{{\"userId\":\"{key}\","));
        // The address and the device are the user's, for ever.
        let ip = format_args!("10.{}.{}.{}", user >> 8 & 255, user & 255, user % 250 + 1).to_string();
        let device = DEVICES[user * 7 % DEVICES.len()];
        let chance = &mut self.chance;
        let page_name = PAGES[page];
        match act {
            Act::Login => write_to(value, format_args!("\"ip\":\"{ip}\",\"device\":\"{device}\"")),
            Act::Logout => write_to(value, format_args!("\"duration\":{},\"ip\":\"{ip}\"", duration_ms / 1_000)),
            Act::PageView => {
                let referrer = REFERRERS[chance.below(REFERRERS.len() as u64) as usize];
                write_to(
                    value,
                    format_args!("\"page\":\"{page_name}\",\"referrer\":\"{referrer}\",\"device\":\"{device}\""),
                );
            }
            Act::ButtonClick => {
                let button = BUTTONS[chance.below(BUTTONS.len() as u64) as usize];
                write_to(value, format_args!("\"buttonId\":\"{button}\",\"page\":\"{page_name}\""));
            }
            Act::FormSubmit => {
                let (form, field, entries) = FORMS[chance.below(FORMS.len() as u64) as usize];
                let entry = entries[chance.below(entries.len() as u64) as usize];
                write_to(value, format_args!("\"formId\":\"{form}\",\"fields\":{{\"{field}\":\"{entry}\"}}"));
            }
        }
        value.push_str("}}");
    }

    /// 48 bits of time, 42 of the event's number, 32 of chance, in the places of RFC 9562.
    fn event_id(&mut self) -> Uuid {
        let time = u128::from(self.now_ms) & ((1 << 48) - 1);
        let number = u128::from(self.number) & ((1 << 42) - 1);
        let chance = u128::from(self.chance.next() >> 32);
        let (high, low) = (number >> 30, number & ((1 << 30) - 1));
        Uuid::from_u128(time << 80 | 7 << 76 | high << 64 | 2 << 62 | low << 32 | chance)
    }
}

fn kind(act: Act) -> &'static str {
    match act {
        Act::Login => "login",
        Act::Logout => "logout",
        Act::PageView => "page_view",
        Act::ButtonClick => "button_click",
        Act::FormSubmit => "form_submit",
    }
}

fn write_to(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("a String takes every text");
}

#[cfg(test)]
mod tests;
