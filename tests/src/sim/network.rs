//! The simulated network: connections that deliver in order, late, and not all of it when they break; knows no broker.

use super::broker::{Reply, Request};
use super::latency::Latency;
use coulee_core::executor::Random;
use std::collections::{BTreeMap, VecDeque};

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u32);

/// Something on its way, and when it comes.
struct Travelling<T> {
    ready_us: u64,
    number: u64,
    what: T,
}

/// One connection. The bytes that a broken one has sent already still come.
struct Connection {
    client: usize,
    shard: u16,
    open: bool,
    to_broker: VecDeque<Travelling<Request>>,
    to_client: VecDeque<Travelling<Reply>>,
}

/// What has come.
#[derive(Debug)]
pub enum Arrival {
    /// A request, at a shard.
    Request(ConnectionId, u16, u64, Request),
    /// An answer, at a client.
    Reply(usize, u64, Reply),
}

/// All connections.
pub struct Network {
    connections: BTreeMap<ConnectionId, Connection>,
    next: u32,
    latency: Latency,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Network({} connections)", self.connections.len())
    }
}

impl Network {
    /// A network without connections.
    #[must_use]
    pub const fn new(latency: Latency) -> Self {
        Self { connections: BTreeMap::new(), next: 0, latency }
    }

    /// `client` connects to a shard.
    pub fn connect(&mut self, client: usize, shard: u16) -> ConnectionId {
        let id = ConnectionId(self.next);
        self.next += 1;
        let connection =
            Connection { client, shard, open: true, to_broker: VecDeque::new(), to_client: VecDeque::new() };
        self.connections.insert(id, connection);
        id
    }

    /// When something that is sent now, behind what was sent before, arrives.
    fn arrival<T>(queue: &VecDeque<Travelling<T>>, now_us: u64, latency: Latency, random: &mut Random) -> u64 {
        let before = queue.back().map_or(0, |last| last.ready_us);
        before.max(now_us + latency.of(false, random))
    }

    /// A client sends a request.
    pub fn send(&mut self, id: ConnectionId, number: u64, what: Request, now_us: u64, random: &mut Random) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let ready_us = Self::arrival(&connection.to_broker, now_us, self.latency, random);
        connection.to_broker.push_back(Travelling { ready_us, number, what });
    }

    /// The broker answers. Nobody hears it on a broken connection.
    pub fn answer(&mut self, id: ConnectionId, number: u64, what: Reply, now_us: u64, random: &mut Random) {
        let Some(connection) = self.connections.get_mut(&id).filter(|connection| connection.open) else { return };
        let ready_us = Self::arrival(&connection.to_client, now_us, self.latency, random);
        connection.to_client.push_back(Travelling { ready_us, number, what });
    }

    /// A connection breaks: of what was sent a beginning still comes, of what was answered nothing.
    pub fn break_off(&mut self, id: ConnectionId, random: &mut Random) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.open = false;
        connection.to_client.clear();
        let left = random.below(connection.to_broker.len() as u64 + 1) as usize;
        connection.to_broker.truncate(left);
    }

    /// The broker is gone, and all connections with it.
    pub fn break_all(&mut self) {
        self.connections.clear();
    }

    /// What can arrive now, and when the first of all does.
    #[must_use]
    pub fn ready(&self, now_us: u64) -> (usize, Option<u64>) {
        let (mut ready, mut first) = (0, None::<u64>);
        for connection in self.connections.values() {
            let requests = connection.to_broker.front().map(|next| next.ready_us);
            for ready_us in requests.into_iter().chain(connection.to_client.front().map(|next| next.ready_us)) {
                ready += usize::from(ready_us <= now_us);
                first = Some(first.map_or(ready_us, |first| first.min(ready_us)));
            }
        }
        (ready, first)
    }

    /// The `chosen`-th of what can arrive now.
    pub fn take(&mut self, chosen: usize, now_us: u64) -> Option<Arrival> {
        let mut left = chosen;
        for (id, connection) in &mut self.connections {
            if connection.to_broker.front().is_some_and(|next| next.ready_us <= now_us) {
                if left == 0 {
                    let Travelling { number, what, .. } = connection.to_broker.pop_front()?;
                    return Some(Arrival::Request(*id, connection.shard, number, what));
                }
                left -= 1;
            }
            if connection.to_client.front().is_some_and(|next| next.ready_us <= now_us) {
                if left == 0 {
                    let Travelling { number, what, .. } = connection.to_client.pop_front()?;
                    return Some(Arrival::Reply(connection.client, number, what));
                }
                left -= 1;
            }
        }
        None
    }
}
