//! Record batches made beforehand, and what they look like when they come back; knows no socket.
//!
//! Batch number `n` of a partition is template `n mod count`, so that a lost, doubled or reordered batch has a checksum
//! that is not expected at its place. Building costs nothing while a run is measured: only the frame around is new.

use coulee_protocol::batch::{BatchHeader, HEADER_BYTES, HeaderError};
use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
use coulee_protocol::compression::Codec;
use coulee_protocol::ids::Timestamp;
use coulee_protocol::limits::BATCH_BYTES_MAX;

/// Templates together are no larger than this where two are not: what is sent should come from a cache, as the bytes of
/// a real producer would that has just written them.
const TEMPLATE_BYTES: usize = 1 << 20;
/// Templates, at most: prime, so that no power of two in a broker falls into step with them.
const TEMPLATES_MAX: usize = 61;

/// One batch as a producer sends it.
#[derive(Debug)]
struct Template {
    bytes: Vec<u8>,
    payload_crc: u32,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Templates {
    templates: Vec<Template>,
    records: u32,
}

impl Templates {
    /// Batches of `records` values of `value_bytes` each, different ones.
    pub(crate) fn new(records: u32, value_bytes: usize) -> Result<Self, HeaderError> {
        let batch_bytes = HEADER_BYTES + records as usize * (value_bytes + 4);
        let count = (TEMPLATE_BYTES / batch_bytes).clamp(2, TEMPLATES_MAX);
        let mut builder = BatchBuilder::new(Codec::None, BATCH_BYTES_MAX);
        let mut value = vec![0; value_bytes];
        let mut templates = Vec::new();
        for template in 0..count as u64 {
            for record in 0..u64::from(records) {
                fill(&mut value, template << 32 | record);
                let new = NewRecord { timestamp: Timestamp(0), key: None, value: Some(&value), headers: &[] };
                builder.push(&new).expect("a batch is bounded by the arguments");
            }
            let bytes = builder.finish().expect("there is a record and nothing is compressed");
            let payload_crc = BatchHeader::decode(&bytes)?.payload_crc;
            templates.push(Template { bytes, payload_crc });
        }
        Ok(Self { templates, records })
    }

    /// Records in each.
    pub(crate) const fn records(&self) -> u32 {
        self.records
    }

    /// Bytes of each.
    pub(crate) fn batch_bytes(&self) -> usize {
        self.templates[0].bytes.len()
    }

    /// Batch number `number` of a partition.
    pub(crate) fn batch(&self, number: u64) -> &[u8] {
        &self.of(number).bytes
    }

    /// The checksum that batch number `number` has.
    pub(crate) fn payload_crc(&self, number: u64) -> u32 {
        self.of(number).payload_crc
    }

    fn of(&self, number: u64) -> &Template {
        &self.templates[(number % self.templates.len() as u64) as usize]
    }
}

/// A value that says which it is, then bytes that no codec shortens (xorshift64).
pub(crate) fn fill(value: &mut [u8], number: u64) {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in value.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    if let Some(first) = value.first_chunk_mut::<8>() {
        *first = number.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::batch::check_entry;

    #[test]
    fn every_template_is_a_batch_that_a_broker_takes() {
        for (records, value_bytes) in [(1, 100), (1_000, 100), (1_000, 1_024)] {
            let templates = Templates::new(records, value_bytes).unwrap();
            for number in 0..70 {
                let batch = templates.batch(number);
                let header = check_entry(batch, BATCH_BYTES_MAX).unwrap();
                assert_eq!((header.record_count, batch.len()), (records, templates.batch_bytes()));
                assert_eq!(crc32fast::hash(&batch[HEADER_BYTES..]), templates.payload_crc(number));
            }
        }
    }

    #[test]
    fn neighbours_differ_so_that_a_lost_batch_shows() {
        for (records, value_bytes) in [(1, 16), (1_000, 1_024)] {
            let templates = Templates::new(records, value_bytes).unwrap();
            let crcs: Vec<u32> = (0..2).map(|number| templates.payload_crc(number)).collect();
            assert_ne!(crcs[0], crcs[1]);
        }
    }
}
