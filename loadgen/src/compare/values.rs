//! What peers are given to keep, and whether it comes back: values that differ from each other; knows no protocol.

use crate::fault::Fault;
use crate::templates::fill;

/// Different values that the numbers go into, as many as a broker's own batches have.
const TEMPLATES: u64 = 61;
/// Bytes at the front of a value that say which it is.
const NUMBER_BYTES: usize = 8;

/// Values of one size. Number `n` of a log is template `n mod 61` with `n` in its first bytes.
#[derive(Debug)]
pub(super) struct Values(Vec<Vec<u8>>);

impl Values {
    /// Values of `bytes` each, which hold at least a number.
    pub(super) fn new(bytes: usize) -> Self {
        assert!(bytes >= NUMBER_BYTES, "a value has room for its number");
        let template = |number| {
            let mut value = vec![0; bytes];
            fill(&mut value, number);
            value
        };
        Self((0..TEMPLATES).map(template).collect())
    }

    /// Bytes of each.
    pub(super) fn bytes(&self) -> usize {
        self.0[0].len()
    }

    fn template(&self, number: u64) -> &[u8] {
        &self.0[(number % TEMPLATES) as usize]
    }

    /// Adds value number `number`.
    pub(super) fn write(&self, number: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&self.template(number)[NUMBER_BYTES..]);
    }

    /// Whether `found`, read from log number `log`, is value number `number`.
    pub(super) fn check(&self, log: u64, number: u64, found: &[u8]) -> Result<(), Fault> {
        let mistaken = |what, expected, found| Err(Fault::Record { partition: log, what, expected, found });
        if found.len() != self.bytes() {
            return mistaken("the size of a record", self.bytes() as u64, found.len() as u64);
        }
        let (head, rest) = found.split_at(NUMBER_BYTES);
        let number_found = u64::from_le_bytes(head.try_into().expect("it was split there"));
        if number_found != number {
            return mistaken("the record that is read next", number, number_found);
        }
        let template = &self.template(number)[NUMBER_BYTES..];
        if rest != template {
            let (expected, found) = (u64::from(crc32fast::hash(template)), u64::from(crc32fast::hash(rest)));
            return mistaken("the checksum of a record", expected, found);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_changed_or_cut_record_is_noticed() {
        let values = Values::new(100);
        let mut value = Vec::new();
        values.write(62, &mut value);
        let check = |number, found: &[u8]| values.check(3, number, found).map_err(|fault| fault.to_string());
        assert_eq!(check(62, &value), Ok(()));
        assert_eq!(check(61, &value), Err("partition 3: the record that is read next is 62, expected 61".to_owned()));
        assert!(check(62, &value[..99]).is_err());
        value[99] ^= 1;
        assert!(check(62, &value).unwrap_err().contains("checksum"));
    }
}
