//! Answers that are put together from several: offsets, topics, counts, records of several shards; decides nothing.

use super::ShardServer;
use super::answers::{Come, fetch_response};
use super::dispatch::FETCH_BYTES_MAX;
use super::groups::{list_response, put_groups};
use crate::message::Message;
use crate::pending::{Fetching, Gather, Pending, SoFar};
use crate::slab::Key;
use coulee_core::shard::fetches::FetchedPart;
use coulee_core::shard::{Described, Listed, RequestId};
use coulee_protocol::api::list_offsets::v1::ResponsePartition as OffsetPartition;
use coulee_protocol::api::topics::v1::Partition as TopicPartition;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::ids::ShardId;

impl ShardServer {
    /// A part of an answer has come.
    pub(super) fn part_came(&mut self, whole: RequestId, at: usize, come: Come) {
        let Some(Pending { gather: Some(gather), .. }) = self.pending.find(Key(whole.0)) else { return };
        gather.left -= 1;
        match (&mut gather.so_far, come) {
            (SoFar::Offsets(response), Come::Listed(listed)) => put_offset(&mut response.partitions[at], listed),
            (SoFar::Topic(response), Come::Described(described)) => {
                put_description(&mut response.partitions[at], described);
            }
            (SoFar::Stats(shards), Come::Stats(stats)) => shards[at] = Some(stats),
            (SoFar::Groups(groups), Come::Groups(more)) => put_groups(groups, more),
            (SoFar::Fetch(fetching), Come::Fetched(parts)) => {
                put_parts(fetching, at, parts);
                let hurry = fetching.is_enough() && !fetching.hurried;
                fetching.hurried |= hurry;
                let others: Vec<(ShardId, RequestId)> =
                    fetching.asked.iter().map(|(shard, request, _)| (*shard, *request)).collect();
                if hurry {
                    self.hurry_others(&others);
                }
            }
            (so_far, come) => unreachable!("a part of {so_far:?} is answered with its like, not {come:?}"),
        }
        self.finish_if_complete(whole);
    }

    /// Has the other shards answer their part of a fetch with what they have.
    fn hurry_others(&mut self, asked: &[(ShardId, RequestId)]) {
        for (shard, request) in asked {
            if self.pending.find(Key(request.0)).is_none() {
                continue;
            }
            if *shard == self.id() {
                self.parts.core.command(coulee_core::shard::Command::Hurry(*request));
            } else {
                self.send_to(*shard, Message::Hurry(*request));
            }
        }
    }

    /// Sends an answer whose parts have all come.
    fn finish_if_complete(&mut self, whole: RequestId) {
        let complete = |pending: &mut Pending| pending.gather.as_ref().is_some_and(|gather| gather.left == 0);
        if !self.pending.find(Key(whole.0)).is_some_and(complete) {
            return;
        }
        let Some(mut pending) = self.pending.remove(Key(whole.0)) else { return };
        let Some(Gather { so_far, .. }) = pending.gather.take().map(|gather| *gather) else { return };
        match so_far {
            SoFar::Offsets(response) => self.answer_with(pending, &response, Vec::new()),
            SoFar::Topic(response) => self.answer_with(pending, &*response, Vec::new()),
            SoFar::Stats(shards) => {
                let shards = shards.into_iter().flatten().map(|shard| *shard).collect();
                match self.process_stats(shards) {
                    Ok(response) => self.answer_with(pending, &response, Vec::new()),
                    Err(error) => {
                        // Descriptors have run out: it may be better the next time.
                        let detail = format!("/proc cannot be read: {error}");
                        self.refuse_with(pending, ErrorCode::Overloaded, &detail);
                    }
                }
            }
            SoFar::Groups(Ok(groups)) => self.answer_with(pending, &list_response(groups), Vec::new()),
            SoFar::Groups(Err(code)) => self.refuse_with(pending, code, "not all groups are known"),
            SoFar::Fetch(fetching) => {
                let parts = bounded(fetching.parts.into_iter().flatten());
                self.counts.fetched(&parts, self.clock.monotonic_us().saturating_sub(pending.began_us));
                let (response, batches) = fetch_response(parts);
                self.answer_with(pending, &response, batches);
            }
        }
    }
}

fn put_offset(place: &mut OffsetPartition, listed: Listed) {
    match listed {
        Listed::At(offset, timestamp) => {
            place.offset = offset.0;
            place.timestamp = timestamp.map_or(-1, |timestamp| timestamp.0);
        }
        Listed::Nowhere => {}
        Listed::Absent(code) => place.error = code.code(),
        Listed::Failed(error) => {
            place.error = coulee_core::shard::fetches::FetchError::Read(error).code().code();
        }
    }
}

fn put_description(place: &mut TopicPartition, described: Result<Described, ErrorCode>) {
    match described {
        Ok(described) => {
            place.leader_epoch = described.epoch.0;
            place.log_start = described.log_start.0;
            place.high_watermark = described.high_watermark.0;
            place.log_end = described.log_end.0;
            place.bytes = described.bytes;
            place.segments = described.segments;
        }
        Err(code) => place.error = code.code(),
    }
}

fn put_parts(fetching: &mut Fetching, at: usize, parts: Vec<FetchedPart>) {
    let places = &fetching.asked[at].2;
    assert_eq!(places.len(), parts.len(), "a fetch is answered part by part");
    for (place, part) in places.iter().zip(parts) {
        fetching.parts[*place] = Some(part);
    }
}

/// The parts in their order, without the batches that a frame would not hold.
fn bounded(parts: impl Iterator<Item = FetchedPart>) -> Vec<FetchedPart> {
    let mut bytes = 0;
    let mut keep = |part: FetchedPart| {
        let own: usize = part.batches.iter().flatten().map(|block| block.len()).sum();
        let fits = bytes == 0 || bytes + own <= FETCH_BYTES_MAX;
        bytes += if fits { own } else { 0 };
        if fits { part } else { FetchedPart { batches: Ok(Vec::new()), ..part } }
    };
    parts.map(&mut keep).collect()
}
