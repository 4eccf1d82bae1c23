//! RESP, the protocol of Redis: commands out, items in; knows no socket and no command.
//!
//! An array is an item that says how many follow, so that a long reply is read as it comes.

/// The longest line, which is no bulk string.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest bulk string, as in Redis itself.
const BULK_BYTES_MAX: usize = 512 << 20;

/// One item of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Integer(i64),
    /// `None` is the null.
    Bulk(Option<&'a [u8]>),
    /// So many items follow; a null array has none.
    Array(usize),
}

/// Bytes that are no RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Items from the front of bytes that have come so far.
#[derive(Debug)]
pub(super) struct Items<'a> {
    bytes: &'a [u8],
    taken: usize,
}

impl<'a> Items<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, taken: 0 }
    }

    /// Bytes of the items that were taken.
    pub(super) const fn taken(&self) -> usize {
        self.taken
    }

    /// The next item; `None` where it has not come whole.
    pub(super) fn next(&mut self) -> Result<Option<Item<'a>>, Malformed> {
        let rest = &self.bytes[self.taken..];
        let Some((line, after)) = line(rest)? else { return Ok(None) };
        let (kind, text) = line.split_first().ok_or(Malformed)?;
        let (item, end) = match kind {
            b'+' => (Item::Simple(text), after),
            b'-' => (Item::Error(text), after),
            b':' => (Item::Integer(integer(text)?), after),
            b'*' => (Item::Array(length(text)?.unwrap_or(0)), after),
            b'$' => match length(text)? {
                None => (Item::Bulk(None), after),
                Some(len) if len > BULK_BYTES_MAX => return Err(Malformed),
                Some(len) => {
                    let Some(bulk) = rest.get(after..after + len + 2) else { return Ok(None) };
                    let Some(bulk) = bulk.strip_suffix(b"\r\n") else { return Err(Malformed) };
                    (Item::Bulk(Some(bulk)), after + len + 2)
                }
            },
            _ => return Err(Malformed),
        };
        self.taken += end;
        Ok(Some(item))
    }
}

/// A line without its end, and where the next one begins.
fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let Some(end) = bytes.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(None) } else { Err(Malformed) };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    Ok(Some((line, end + 1)))
}

fn integer(text: &[u8]) -> Result<i64, Malformed> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Malformed)
}

/// A length; `None` is the -1 that stands for a null.
fn length(text: &[u8]) -> Result<Option<usize>, Malformed> {
    match integer(text)? {
        -1 => Ok(None),
        len => usize::try_from(len).map(Some).map_err(|_| Malformed),
    }
}

/// Adds a command of these words.
pub(super) fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLIES: &[u8] = b"+OK\r\n-ERR no\r\n:-7\r\n*2\r\n$3\r\na\r\n\r\n$0\r\n\r\n$-1\r\n*-1\r\n";

    fn all(bytes: &[u8]) -> (Vec<Item<'_>>, usize) {
        let (mut items, mut found) = (Items::new(bytes), Vec::new());
        while let Some(item) = items.next().unwrap() {
            found.push(item);
        }
        (found, items.taken())
    }

    #[test]
    fn every_kind_of_item_is_read() {
        let expected = [
            Item::Simple(b"OK"),
            Item::Error(b"ERR no"),
            Item::Integer(-7),
            Item::Array(2),
            Item::Bulk(Some(b"a\r\n")),
            Item::Bulk(Some(b"")),
            Item::Bulk(None),
            Item::Array(0),
        ];
        assert_eq!(all(REPLIES), (expected.to_vec(), REPLIES.len()));
    }

    #[test]
    fn a_reply_may_be_split_anywhere() {
        let (expected, _) = all(REPLIES);
        for split in 0..REPLIES.len() {
            let (mut found, taken) = all(&REPLIES[..split]);
            assert!(taken <= split);
            found.extend(all(&REPLIES[taken..]).0);
            assert_eq!(found, expected, "split at {split}");
        }
    }

    #[test]
    fn what_is_no_resp_is_refused() {
        let long = vec![b'+'; LINE_BYTES_MAX];
        for bytes in [&b"?\r\n"[..], b"\r\n", b"+OK\n", b":x\r\n", b"$-2\r\n", b"$1\r\nabc", b"*x\r\n", &long] {
            assert_eq!(Items::new(bytes).next(), Err(Malformed), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        command(&[b"XLEN", b"s"], &mut out);
        assert_eq!(out, b"*2\r\n$4\r\nXLEN\r\n$1\r\ns\r\n");
    }
}
