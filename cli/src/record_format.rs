//! How a consumed record is printed: owns the escapes of `-f` and the JSON form; knows no consumer.

use std::io::{self, Write};
use std::str::FromStr;

use coulee_client::Received;
use serde_json::{Map, Value};

/// A piece of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    Timestamp,
}

/// A format, parsed once and applied to each record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordFormat(Vec<Piece>);

impl FromStr for RecordFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            let piece = match (character, characters.as_str().chars().next()) {
                ('%', Some('t')) => Piece::Topic,
                ('%', Some('p')) => Piece::Partition,
                ('%', Some('o')) => Piece::Offset,
                ('%', Some('k')) => Piece::Key,
                ('%', Some('v')) => Piece::Value,
                ('%', Some('h')) => Piece::Headers,
                ('%', Some('d')) => Piece::Timestamp,
                ('%', Some('%')) => Piece::Text(b"%".to_vec()),
                ('\\', Some('n')) => Piece::Text(b"\n".to_vec()),
                ('\\', Some('r')) => Piece::Text(b"\r".to_vec()),
                ('\\', Some('t')) => Piece::Text(b"\t".to_vec()),
                ('\\', Some('0')) => Piece::Text(b"\0".to_vec()),
                ('\\', Some('\\')) => Piece::Text(b"\\".to_vec()),
                ('%', Some(other)) => {
                    return Err(format!("unknown escape %{other}, expected one of %t %p %o %k %v %h %d %%"));
                }
                ('\\', Some(other)) => {
                    return Err(format!("unknown escape \\{other}, expected one of \\n \\r \\t \\0 \\\\"));
                }
                ('%' | '\\', None) => {
                    return Err(format!("a single {character} at the end, expected {character}{character}"));
                }
                (character, _) => {
                    plain.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            characters.next();
            match piece {
                Piece::Text(text) => plain.extend(text),
                piece => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(piece);
                }
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }
}

impl RecordFormat {
    /// Writes one record. A missing key or value is nothing, as an empty one is; headers are `key=value`, with commas.
    pub(crate) fn write(&self, topic: &str, record: &Received<'_>, out: &mut impl Write) -> io::Result<()> {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.write_all(text)?,
                Piece::Topic => out.write_all(topic.as_bytes())?,
                Piece::Partition => write!(out, "{}", record.partition)?,
                Piece::Offset => write!(out, "{}", record.offset)?,
                Piece::Key => out.write_all(record.key.unwrap_or_default())?,
                Piece::Value => out.write_all(record.value.unwrap_or_default())?,
                Piece::Timestamp => write!(out, "{}", record.timestamp_ms)?,
                Piece::Headers => {
                    for (index, (key, value)) in record.headers.enumerate() {
                        out.write_all(if index == 0 { b"" } else { b"," })?;
                        out.write_all(key)?;
                        out.write_all(b"=")?;
                        out.write_all(value.unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Writes one record as a JSON object on a line of its own. Bytes that are no UTF-8 stand in base64, under a name that
/// says so.
pub(crate) fn write_json(topic: &str, record: &Received<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut object = Map::new();
    object.insert("topic".into(), topic.into());
    object.insert("partition".into(), record.partition.into());
    object.insert("offset".into(), record.offset.into());
    object.insert("timestamp".into(), record.timestamp_ms.into());
    put_bytes(&mut object, "key", record.key);
    put_bytes(&mut object, "value", record.value);
    let header = |(key, value): (&[u8], Option<&[u8]>)| {
        let mut header = Map::new();
        put_bytes(&mut header, "key", Some(key));
        put_bytes(&mut header, "value", value);
        Value::Object(header)
    };
    let headers: Vec<Value> = record.headers.map(header).collect();
    if !headers.is_empty() {
        object.insert("headers".into(), headers.into());
    }
    serde_json::to_writer(&mut *out, &object)?;
    out.write_all(b"\n")
}

fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => object.insert(name.into(), Value::Null),
        Some((_, Ok(text))) => object.insert(name.into(), text.into()),
        Some((bytes, Err(_))) => object.insert(format!("{name}_base64"), base64(bytes).into()),
    };
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 with padding: `fo` is 01100110 01101111, in sixes 011001 100110 1111(00), and so `Zm8=`.
fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for sextet in 0..4 {
            let letter = BASE64[(bits >> (18 - 6 * sextet) & 63) as usize];
            text.push(if sextet <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use coulee_protocol::batch::{BatchHeader, HEADER_BYTES};
    use coulee_protocol::columns::builder::{BatchBuilder, NewRecord};
    use coulee_protocol::columns::{Columns, Scratch};
    use coulee_protocol::compression::Codec;
    use coulee_protocol::ids::Timestamp;

    use super::*;

    type Header<'a> = (&'a [u8], Option<&'a [u8]>);

    /// What `print` writes for a record at offset 42 of partition 3.
    fn printed(
        record: (Option<&[u8]>, Option<&[u8]>, &[Header<'_>]),
        print: impl Fn(&Received<'_>, &mut Vec<u8>) -> io::Result<()>,
    ) -> String {
        let (key, value, headers) = record;
        let mut builder = BatchBuilder::new(Codec::None, 1 << 20);
        builder.push(&NewRecord { timestamp: Timestamp(1_500), key, value, headers }).unwrap();
        let batch = builder.finish().unwrap();
        let mut scratch = Scratch::default();
        let header = BatchHeader::decode(&batch).unwrap();
        let columns = Columns::open(&batch[HEADER_BYTES..], &header, &mut scratch).unwrap();
        let record = columns.record(0).unwrap();
        let headers = record.headers;
        let received = Received { partition: 3, offset: 42, timestamp_ms: 1_500, key, value, headers };
        let mut out = Vec::new();
        print(&received, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn escapes_stand_for_the_parts_of_a_record() {
        let headers: &[Header<'_>] = &[(b"a", Some(b"1")), (b"a", None)];
        let table = [
            (r"%v\n", "v\n"),
            (r"%t/%p/%o", "orders/3/42"),
            (r"%k=%v at %d", "k=v at 1500"),
            ("%h", "a=1,a="),
            (r"100 %% \\ \t\r\0é", "100 % \\ \t\r\0é"),
            ("", ""),
            ("plain", "plain"),
        ];
        for (format, expected) in table {
            let parsed: RecordFormat = format.parse().unwrap();
            let found = printed((Some(b"k"), Some(b"v"), headers), |record, out| parsed.write("orders", record, out));
            assert_eq!(found, expected, "{format:?}");
        }
    }

    #[test]
    fn a_missing_key_or_value_prints_nothing() {
        let parsed: RecordFormat = "[%k|%v|%h]".parse().unwrap();
        assert_eq!(printed((None, None, &[]), |record, out| parsed.write("t", record, out)), "[||]");
    }

    #[test]
    fn unknown_escapes_name_those_that_there_are() {
        for format in ["%x", "%", r"\", r"\x41", "%V"] {
            assert!(format.parse::<RecordFormat>().is_err_and(|error| error.contains("expected")), "{format:?}");
        }
    }

    #[test]
    fn json_lines_keep_every_byte() {
        let json = |record| printed(record, |record, out| write_json("t", record, out));
        assert_eq!(
            json((None, Some(b"{\"a\": \"\n\"}"), &[])),
            "{\"topic\":\"t\",\"partition\":3,\"offset\":42,\"timestamp\":1500,\"key\":null,\
             \"value\":\"{\\\"a\\\": \\\"\\n\\\"}\"}\n"
        );
        let bytes = json((Some(&[0xff]), None, &[(b"h", Some(&[0xfe, 0xff]))]));
        assert!(bytes.contains(r#""key_base64":"/w==","value":null"#), "{bytes}");
        assert!(bytes.contains(r#""headers":[{"key":"h","value_base64":"/v8="}]"#), "{bytes}");
    }

    #[test]
    fn base64_is_that_of_the_standard() {
        let table =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in table {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
