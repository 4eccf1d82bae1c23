//! The text protocol of NATS: messages in, publishing out; knows no socket and nothing of JetStream.

/// The longest line: an INFO of a server with many routes.
const LINE_BYTES_MAX: usize = 64 << 10;
/// The longest payload; servers take 1 MiB unless told otherwise, and 64 MiB at most.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    Info(&'a [u8]),
    Message(Message<'a>),
    Ping,
    Pong,
    Ok,
    Error(&'a [u8]),
}

/// A message to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) sid: &'a [u8],
    pub(super) reply: Option<&'a [u8]>,
    /// Empty where there are none, else from the line of the version on.
    pub(super) headers: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The code in the first line of the headers, where there is one: `NATS/1.0 100 FlowControl Request`.
    pub(super) fn status(&self) -> Option<&'a [u8]> {
        self.headers.strip_prefix(b"NATS/1.0 ")?.get(..3)
    }

    /// A header's value.
    pub(super) fn header(&self, name: &str) -> Option<&'a [u8]> {
        let mut lines = self.headers.split(|byte| *byte == b'\n');
        let value = lines.find_map(|line| line.strip_prefix(name.as_bytes())?.strip_prefix(b":"))?;
        Some(value.trim_ascii())
    }
}

/// Bytes that are no NATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The first thing said in `bytes` and its length; `None` where it has not come whole.
pub(super) fn next(bytes: &[u8]) -> Result<Option<(Said<'_>, usize)>, Malformed> {
    let Some(end) = bytes.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') else {
        return if bytes.len() < LINE_BYTES_MAX { Ok(None) } else { Err(Malformed) };
    };
    let line = bytes[..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let (verb, rest) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
    let (after, rest) = (end + 1, rest.trim_ascii());
    let said = match verb {
        b"MSG" | b"HMSG" => return message(bytes, rest, verb == b"HMSG", after),
        b"PING" => Said::Ping,
        b"PONG" => Said::Pong,
        b"+OK" => Said::Ok,
        b"-ERR" => Said::Error(rest),
        b"INFO" => Said::Info(rest),
        _ => return Err(Malformed),
    };
    Ok(Some((said, after)))
}

/// `subject sid [reply] [bytes of headers] bytes`, then headers and payload from `at` on.
fn message<'a>(
    bytes: &'a [u8],
    line: &'a [u8],
    has_headers: bool,
    at: usize,
) -> Result<Option<(Said<'a>, usize)>, Malformed> {
    let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
    let mut word = || words.next().ok_or(Malformed);
    let (_subject, sid) = (word()?, word()?);
    let mut sizes = [word()?, b"", b""];
    let mut count = 1;
    for more in words {
        *sizes.get_mut(count).ok_or(Malformed)? = more;
        count += 1;
    }
    let sizes_wanted = if has_headers { 2 } else { 1 };
    let (reply, sizes) = match count - sizes_wanted.min(count) {
        0 if count == sizes_wanted => (None, &sizes[..count]),
        1 => (Some(sizes[0]), &sizes[1..count]),
        _ => return Err(Malformed),
    };
    let total = size(sizes[sizes.len() - 1])?;
    let headers = if has_headers { size(sizes[0])? } else { 0 };
    if headers > total {
        return Err(Malformed);
    }
    let Some(body) = bytes.get(at..at + total + 2) else { return Ok(None) };
    let body = body.strip_suffix(b"\r\n").ok_or(Malformed)?;
    let (headers, payload) = body.split_at(headers);
    Ok(Some((Said::Message(Message { sid, reply, headers, payload }), at + total + 2)))
}

fn size(text: &[u8]) -> Result<usize, Malformed> {
    let size = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Malformed)?;
    if size > PAYLOAD_BYTES_MAX { Err(Malformed) } else { Ok(size) }
}

/// Adds a message to `subject`, whose answer goes to `reply`, if any.
pub(super) fn publish(subject: &[u8], reply: Option<&[u8]>, payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"PUB ");
    out.extend_from_slice(subject);
    if let Some(word) = reply {
        out.push(b' ');
        out.extend_from_slice(word);
    }
    out.extend_from_slice(format!(" {}\r\n", payload.len()).as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &[u8] = b"INFO {\"version\":\"2.10\"}\r\nMSG a.b 7 3\r\na\r\n\r\nMSG a 7 r.1 0\r\n\r\n\
        HMSG a 9 fc 34 34\r\nNATS/1.0 100 FlowControl\r\nA: b\r\n\r\n\r\nHMSG a 9 12 14\r\nNATS/1.0\r\n\r\nhi\r\n\
        PING\r\nPONG\r\n+OK\r\n-ERR 'Stale Connection'\r\n";

    fn all(bytes: &[u8]) -> (Vec<Said<'_>>, usize) {
        let (mut found, mut taken) = (Vec::new(), 0);
        while let Some((said, length)) = next(&bytes[taken..]).unwrap() {
            found.push(said);
            taken += length;
        }
        (found, taken)
    }

    #[test]
    fn everything_that_a_server_says_is_read() {
        let (found, taken) = all(SAID);
        assert_eq!((found.len(), taken), (9, SAID.len()));
        assert_eq!(found[0], Said::Info(b"{\"version\":\"2.10\"}"));
        let plain = |sid, reply, payload| Said::Message(Message { sid, reply, headers: b"", payload });
        assert_eq!(found[1], plain(b"7", None, b"a\r\n"));
        assert_eq!(found[2], plain(b"7", Some(b"r.1"), b""));
        let Said::Message(control) = found[3] else { panic!("{:?}", found[3]) };
        assert_eq!((control.status(), control.reply), (Some(&b"100"[..]), Some(&b"fc"[..])));
        assert_eq!((control.header("A"), control.header("B")), (Some(&b"b"[..]), None));
        let Said::Message(headed) = found[4] else { panic!("{:?}", found[4]) };
        assert_eq!((headed.status(), headed.payload), (None, &b"hi"[..]));
        assert_eq!(found[5..], [Said::Ping, Said::Pong, Said::Ok, Said::Error(b"'Stale Connection'")]);
    }

    #[test]
    fn what_is_said_may_be_split_anywhere() {
        let (expected, _) = all(SAID);
        for split in 0..SAID.len() {
            let (mut found, taken) = all(&SAID[..split]);
            found.extend(all(&SAID[taken..]).0);
            assert_eq!(found, expected, "split at {split}");
        }
    }

    #[test]
    fn what_is_no_nats_is_refused() {
        let long = vec![b'P'; LINE_BYTES_MAX];
        let lines: [&[u8]; 9] = [
            b"HELLO\r\n",
            b"\r\n",
            b"PING\n",
            b"MSG a 1\r\n",
            b"MSG a 1 x\r\n",
            b"MSG a 1 1\r\nabc",
            b"MSG a 1 r s 2\r\n",
            b"HMSG a 1 9 3\r\n",
            &long,
        ];
        for bytes in lines {
            assert_eq!(next(bytes), Err(Malformed), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_message_says_where_its_answer_goes() {
        let mut out = Vec::new();
        publish(b"s", Some(b"r"), b"abc", &mut out);
        publish(b"fc", None, b"", &mut out);
        assert_eq!(out, b"PUB s r 3\r\nabc\r\nPUB fc 0\r\n\r\n");
    }
}
