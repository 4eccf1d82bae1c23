//! ⑨ Acks of one partition: a queue sorted by offset, released when the acknowledged end passes; never a future a
//! record. It knows no disk and does not know why the end moves.

use super::RequestId;
use coulee_protocol::ids::Offset;
use std::collections::VecDeque;

/// A producer that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Whom to answer.
    pub request: RequestId,
    /// Offset of the batch's first record.
    pub base: Offset,
    /// Offset behind its last.
    pub end: Offset,
}

/// The producers that wait, in the order of their offsets.
#[derive(Debug, Default)]
pub struct AckQueue {
    waiting: VecDeque<Ack>,
}

impl AckQueue {
    /// Adds one whose batch was just appended.
    pub fn push(&mut self, ack: Ack) {
        assert!(self.waiting.back().is_none_or(|last| last.end <= ack.base), "acks are queued in the order of offsets");
        self.waiting.push_back(ack);
    }

    /// Those whose batch lies below `end`, in order.
    pub fn release(&mut self, end: Offset) -> impl Iterator<Item = Ack> + '_ {
        let count = self.waiting.partition_point(|ack| ack.end <= end);
        if cfg!(coulee_mutation = "ack_out_of_order") {
            self.waiting.make_contiguous()[..count].reverse();
        }
        self.waiting.drain(..count)
    }

    /// All of them, in order: their outcome is unknown.
    pub fn abandon(&mut self) -> impl Iterator<Item = Ack> + '_ {
        self.waiting.drain(..)
    }

    /// Producers that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_released_in_order_and_only_below_the_end() {
        let mut acks = AckQueue::default();
        let ack = |base: u64| Ack { request: RequestId(base), base: Offset(base), end: Offset(base + 10) };
        [0, 10, 20].into_iter().for_each(|base| acks.push(ack(base)));
        assert_eq!(acks.release(Offset(19)).map(|ack| ack.request.0).collect::<Vec<_>>(), [0]);
        assert_eq!(acks.release(Offset(19)).count(), 0);
        assert_eq!(acks.release(Offset(20)).map(|ack| ack.request.0).collect::<Vec<_>>(), [10]);
        assert_eq!(acks.abandon().count(), 1);
        assert!(acks.is_empty());
    }
}
