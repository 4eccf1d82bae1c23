//! What is true of the whole broker while it runs, a copy on each shard; knows no state that changes.

use crate::config::Entry;
use coulee_protocol::ids::ClusterId;
use std::net::SocketAddr;
use std::time::Duration;

/// The broker's version, for people.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What every shard knows.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// The cluster.
    pub(crate) cluster_id: ClusterId,
    /// Where native clients connect.
    pub(crate) native: SocketAddr,
    /// The effective configuration.
    pub(crate) entries: Vec<Entry>,
    /// Connections that one shard may have.
    pub(crate) connections_max: usize,
    /// How long stopping may take.
    pub(crate) shutdown_grace_ms: u64,
}

impl Facts {
    /// The grace period in the unit of deadlines.
    #[must_use]
    pub(crate) fn grace_ms(grace: Duration) -> u64 {
        u64::try_from(grace.as_millis()).unwrap_or(u64::MAX / 2)
    }
}
