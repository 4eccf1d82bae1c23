//! Which partition a key belongs to: owns Kafka's murmur2 and the rule over it; knows no topic and no record.
//!
//! docs/PROTOCOL.md, "Key partitioner". Clients of the native and of the Kafka protocol agree on it for ever: a key
//! that moved to another partition would lose its order.

/// The hash's seed.
const SEED: u32 = 0x9747_b28c;
/// The hash's multiplier.
const MULTIPLIER: u32 = 0x5bd1_e995;

/// The partition of `key` in a topic of `partitions` partitions.
///
/// # Panics
/// If `partitions` is 0: every topic has one.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic without partitions");
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// Kafka's variant of murmur2, 32 bits.
#[must_use]
pub fn murmur2(key: &[u8]) -> u32 {
    // Kafka mixes in the length as a Java int: keys are far below 2^31.
    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed = (mixed ^ (mixed >> 24)).wrapping_mul(MULTIPLIER);
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed;
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0, |tail, byte| (tail << 8) | u32::from(*byte));
        hash = (hash ^ tail).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(MULTIPLIER);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_kafka_publishes() {
        // The cases of Kafka's own `UtilsTest.testMurmur2`, as Java ints.
        let published: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, hash) in published {
            assert_eq!(murmur2(key), hash as u32, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn partitions_are_those_of_the_document() {
        let documented: [(&[u8], u32, u32); 6] = [
            (b"", 0x106e_08d9, 1),
            (b"21", 0xc5f2_f8ec, 0),
            (b"abc", 0x1c94_221b, 7),
            (b"foobar", 0xd0e4_7bbe, 6),
            (b"a-little-bit-long-string", 0xc53b_1da0, 2),
            (b"a-little-bit-longer-string", 0xa768_c9c3, 9),
        ];
        for (key, hash, partition) in documented {
            assert_eq!((murmur2(key), partition_of_key(key, 10)), (hash, partition));
        }
    }

    #[test]
    fn every_key_has_a_partition_of_the_topic() {
        for partitions in [1, 2, 3, 10_000] {
            assert!((0..1_000_u32).all(|key| partition_of_key(&key.to_le_bytes(), partitions) < partitions));
        }
    }
}
