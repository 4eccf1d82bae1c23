//! What becomes of the records of one batch: owns the outcome that they share; knows no batch and no connection.
//!
//! One allocation a batch, none a record: a [`Delivery`] is a reference to its batch's fate and a place in it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use crate::client::lock;
use crate::error::DeliveryError;

/// Where a record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The partition.
    pub partition: u32,
    /// Its offset; `None` with acks 0, where nobody says.
    pub offset: Option<u64>,
    /// The timestamp that it was sent with, in milliseconds. A topic with LogAppendTime has stored the time of arrival.
    pub timestamp_ms: i64,
}

/// The outcome that the records of a batch share: the offset of the first of them, if it is known.
pub(crate) type Outcome = Result<Option<u64>, DeliveryError>;

/// The fate of one batch.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    wakers: Vec<Waker>,
}

impl Fate {
    /// Decides it, once.
    pub(crate) fn decide(&self, outcome: Outcome) {
        let wakers = {
            let mut state = lock(&self.state);
            assert!(state.outcome.is_none(), "a batch has one fate");
            state.outcome = Some(outcome);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Resolves once it is known what became of a record. It need not be awaited: the record is sent anyway.
#[derive(Debug)]
#[must_use = "a record whose delivery is not looked at may be lost unnoticed"]
pub struct Delivery {
    fate: Arc<Fate>,
    index: u32,
    partition: u32,
    timestamp_ms: i64,
    /// Where its waker is.
    waker: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(fate: Arc<Fate>, index: u32, partition: u32, timestamp_ms: i64) -> Self {
        Self { fate, index, partition, timestamp_ms, waker: None }
    }

    /// The partition that the record goes to.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }
}

impl Future for Delivery {
    type Output = Result<Delivered, DeliveryError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let mut state = lock(&this.fate.state);
        match &state.outcome {
            Some(Ok(base)) => {
                let offset = base.map(|base| base + u64::from(this.index));
                let (partition, timestamp_ms) = (this.partition, this.timestamp_ms);
                Poll::Ready(Ok(Delivered { partition, offset, timestamp_ms }))
            }
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            None => {
                match this.waker.and_then(|at| state.wakers.get_mut(at)) {
                    Some(waker) => waker.clone_from(context.waker()),
                    None => {
                        this.waker = Some(state.wakers.len());
                        state.wakers.push(context.waker().clone());
                    }
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_records_of_a_batch_share_its_fate_and_have_offsets_of_their_own() {
        let fate = Arc::new(Fate::default());
        let deliveries: Vec<_> = (0..3).map(|index| Delivery::new(fate.clone(), index, 7, 5)).collect();
        let waiting = tokio::spawn(async move {
            let mut offsets = Vec::new();
            for delivery in deliveries {
                offsets.push(delivery.await.unwrap().offset);
            }
            offsets
        });
        tokio::task::yield_now().await;
        fate.decide(Ok(Some(40)));
        assert_eq!(waiting.await.unwrap(), [Some(40), Some(41), Some(42)]);
        let late = Delivery::new(fate, 9, 7, 5).await;
        assert_eq!(late, Ok(Delivered { partition: 7, offset: Some(49), timestamp_ms: 5 }));
    }

    #[tokio::test]
    async fn a_delivery_that_is_polled_twice_keeps_one_waker() {
        let fate = Arc::new(Fate::default());
        let mut delivery = Delivery::new(fate.clone(), 0, 0, 0);
        for _ in 0..3 {
            let polled = tokio::time::timeout(std::time::Duration::ZERO, &mut delivery).await;
            assert!(polled.is_err());
        }
        assert_eq!(lock(&fate.state).wakers.len(), 1);
        fate.decide(Err(DeliveryError::Undelivered));
        assert_eq!(delivery.await, Err(DeliveryError::Undelivered));
    }
}
