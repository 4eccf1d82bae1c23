//! Random bytes from the kernel, for ids and keys; knows nothing of what they name.

/// Fills `bytes` by getrandom(2). Waits for the kernel's generator only in the first moments of a machine's life.
///
/// # Panics
/// When the kernel has no getrandom: Linux has had it since 3.17.
pub fn fill(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is memory of ours of exactly that length.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => filled += count,
            Err(_) => {
                let error = std::io::Error::last_os_error();
                assert_eq!(error.raw_os_error(), Some(libc::EINTR), "getrandom: {error}");
            }
        }
    }
}

/// 64 random bits.
#[must_use]
pub fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// 128 random bits, as cluster and topic ids want them.
#[must_use]
pub fn random_bytes_16() -> [u8; 16] {
    let mut bytes = [0; 16];
    fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn random_ids_do_not_repeat() {
        let ids: BTreeSet<[u8; 16]> = (0..1_000).map(|_| random_bytes_16()).collect();
        assert_eq!(ids.len(), 1_000);
        let keys: BTreeSet<u64> = (0..1_000).map(|_| random_u64()).collect();
        assert_eq!(keys.len(), 1_000);
    }

    #[test]
    fn fills_more_than_one_call_gives() {
        // A call may be cut short after 256 bytes; each kilobyte of a megabyte must have been reached.
        let mut bytes = vec![0; 1 << 20];
        fill(&mut bytes);
        assert!(bytes.chunks(1_024).all(|part| part.iter().any(|byte| *byte != 0)));
        fill(&mut []);
    }
}
