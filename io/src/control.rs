//! What the process wants of its shards: to stop; told from any thread, once; knows not how a shard stops.

use crate::wake::Waker;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The side of a shard.
#[derive(Clone, Debug, Default)]
pub struct Control {
    is_stopping: Arc<AtomicBool>,
}

/// The side of the process; any thread may have a copy.
#[derive(Clone, Debug)]
pub struct Controls {
    control: Control,
    wakers: Arc<[Waker]>,
}

impl Control {
    /// Whether the shard is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// The other side, which wakes the shards through `wakers`.
    #[must_use]
    pub fn of_process(self, wakers: Vec<Waker>) -> Controls {
        Controls { control: self, wakers: wakers.into() }
    }
}

impl Controls {
    /// Has all shards stop; once is enough.
    pub fn stop(&self) {
        self.control.is_stopping.store(true, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::Sleeper;

    #[test]
    fn a_shard_that_sleeps_is_woken_to_stop() {
        let control = Control::default();
        let sleeper = Sleeper::with_own_eventfd().unwrap();
        let controls = control.clone().of_process(vec![sleeper.waker()]);
        let sleep = sleeper.announce(|| control.is_stopping()).unwrap();
        let thread = std::thread::spawn(move || controls.stop());
        sleep.block();
        thread.join().unwrap();
        assert!(control.is_stopping());
        assert!(sleeper.announce(|| control.is_stopping()).is_none());
    }
}
