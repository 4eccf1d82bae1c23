//! Topics and statistics, through the SDK: owns what is said beside the measured traffic; measures nothing.

use crate::arguments::Durability;
use crate::broker::{Broker, usage_of};
use crate::fault::Fault;
use coulee_client::{Client, Counter, NewTopic, Stats};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tokio::runtime::{Builder, Runtime};

/// A partition of the topic that is worked on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) uid: u64,
    pub(crate) shard: u16,
}

/// A connection for control calls.
#[derive(Debug)]
pub(crate) struct Control {
    runtime: Runtime,
    client: Client,
    /// The broker's process, where it was started here.
    process: Option<u32>,
}

/// What the broker says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pub(crate) cpu_us: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) shards: usize,
    counters: BTreeMap<Counter, u64>,
}

impl Usage {
    fn of(stats: &Stats) -> Self {
        let mut counters = BTreeMap::new();
        for (counter, value) in stats.shards.iter().flat_map(|shard| &shard.counters) {
            *counters.entry(*counter).or_default() += value;
        }
        Self { cpu_us: stats.process_cpu_us, rss_bytes: stats.rss_bytes, shards: stats.shards.len(), counters }
    }

    /// A counter or gauge as it is; 0 where the broker does not count it.
    pub(crate) fn count(&self, counter: Counter) -> u64 {
        self.counters.get(&counter).copied().unwrap_or(0)
    }

    /// How much a counter has grown since `before`; `None` where the broker does not count it.
    pub(crate) fn grown(&self, before: &Self, counter: Counter) -> Option<u64> {
        let now = self.counters.get(&counter)?;
        Some(now.saturating_sub(before.counters.get(&counter).copied().unwrap_or(0)))
    }
}

impl Control {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self, Fault> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Fault::machine("a runtime"))?;
        let client = runtime
            .block_on(Client::connect(address.to_string()))
            .map_err(|error| Fault::Control { what: "connect", detail: error.to_string() })?;
        Ok(Self { runtime, client, process: None })
    }

    /// A connection to a broker that was started here: CPU time and memory are what the system says of its process.
    pub(crate) fn of(broker: &Broker) -> Result<Self, Fault> {
        Ok(Self { process: Some(broker.id()), ..Self::connect(broker.address)? })
    }

    /// Makes a topic; its partitions in ascending order of index.
    pub(crate) fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        durability: Durability,
    ) -> Result<Vec<Place>, Fault> {
        let topic = NewTopic::new(name).partitions(partitions).config("durability", durability.name());
        self.runtime.block_on(self.client.create_topic(topic)).map_err(Fault::control("create topic"))?;
        let topic = self.runtime.block_on(self.client.topic(name)).map_err(Fault::control("metadata"))?;
        let place = |partition: &coulee_client::Partition| Place { uid: partition.uid.0, shard: partition.shard.0 };
        Ok(topic.partitions.iter().map(place).collect())
    }

    pub(crate) fn delete_topic(&self, name: &str) -> Result<(), Fault> {
        let deleted = self.runtime.block_on(self.client.delete_topic(name));
        deleted.map(|_| ()).map_err(Fault::control("delete topic"))
    }

    /// Records that a consumer of the topic could see.
    pub(crate) fn visible_records(&self, name: &str) -> Result<u64, Fault> {
        let topic =
            self.runtime.block_on(self.client.describe_topic(name)).map_err(Fault::control("describe topic"))?;
        Ok(topic.partitions.iter().map(|partition| partition.high_watermark - partition.log_start).sum())
    }

    pub(crate) fn usage(&self) -> Result<Usage, Fault> {
        let stats = self.runtime.block_on(self.client.stats()).map_err(Fault::control("statistics"))?;
        let mut usage = Usage::of(&stats);
        if let Some(process) = self.process {
            (usage.cpu_us, usage.rss_bytes) = usage_of(process)?;
        }
        Ok(usage)
    }
}
