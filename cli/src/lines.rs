//! Lines of any input: owns their bound and their numbers; knows nothing of what they mean.

use std::io::{self, BufRead};

/// A line, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: u64,
    /// What it holds, or how many bytes that would be.
    pub(crate) content: Result<Vec<u8>, TooLong>,
}

/// The line is longer than any record can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) bytes: u64,
}

/// Reads lines one after the other. One line is held at a time, and no more of it than the bound.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    input: R,
    number: u64,
    bytes_max: usize,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R, bytes_max: usize) -> Self {
        Self { input, number: 0, bytes_max }
    }

    /// The next line; `None` at the end. Ends of lines are `\n` and `\r\n`; the last line need not have one.
    pub(crate) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut content = Vec::new();
        let mut bytes = 0_u64;
        loop {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                buffer => buffer?,
            };
            if buffer.is_empty() {
                return Ok((bytes > 0).then(|| self.line(content, bytes)));
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let found = &buffer[..end.unwrap_or(buffer.len())];
            // Two more than the bound, so that a `\r` at the end does not make a line too long.
            let room = (self.bytes_max + 2).saturating_sub(content.len());
            content.extend_from_slice(&found[..found.len().min(room)]);
            bytes += found.len() as u64;
            let used = found.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                return Ok(Some(self.line(content, bytes)));
            }
        }
    }

    /// Whether the next line may have to be waited for.
    pub(crate) fn is_drained(&self, buffered: impl Fn(&R) -> bool) -> bool {
        !buffered(&self.input)
    }

    fn line(&mut self, mut content: Vec<u8>, mut bytes: u64) -> Line {
        self.number += 1;
        if bytes == content.len() as u64 && content.last() == Some(&b'\r') {
            content.pop();
            bytes -= 1;
        }
        let is_whole = bytes <= self.bytes_max as u64;
        Line { number: self.number, content: if is_whole { Ok(content) } else { Err(TooLong { bytes }) } }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    fn lines(input: &[u8], bytes_max: usize) -> Vec<Result<Vec<u8>, u64>> {
        // A buffer of three bytes, so that every line is put together from pieces.
        let mut lines = Lines::new(BufReader::with_capacity(3, input), bytes_max);
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push(line.content.map_err(|error| error.bytes));
            assert_eq!(line.number, found.len() as u64);
        }
        found
    }

    #[test]
    fn every_line_comes_without_its_end() {
        let table: [(&[u8], &[&[u8]]); 7] = [
            (b"", &[]),
            (b"\n", &[b""]),
            (b"one\ntwo\n", &[b"one", b"two"]),
            (b"one\ntwo", &[b"one", b"two"]),
            (b"dos\r\nunix\n", &[b"dos", b"unix"]),
            (b"a\rb\n\n\xff\n", &[b"a\rb", b"", b"\xff"]),
            (b"last\r", &[b"last"]),
        ];
        for (input, expected) in table {
            let expected: Vec<Result<Vec<u8>, u64>> = expected.iter().map(|line| Ok(line.to_vec())).collect();
            assert_eq!(lines(input, 100), expected, "{input:?}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_counted_and_left_behind() {
        let found = lines(b"12345\n123456\r\n12345\r\n1234567890\nend", 5);
        assert_eq!(found, [Ok(b"12345".to_vec()), Err(6), Ok(b"12345".to_vec()), Err(10), Ok(b"end".to_vec())]);
    }
}
