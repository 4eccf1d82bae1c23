//! Kafka's primitive types: reads and writes integers, texts, byte strings and counts; knows no schema.

use super::SchemaError;

/// Reads from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], SchemaError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(SchemaError::Short { what })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], SchemaError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(SchemaError::Short { what })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// An `int16`.
    ///
    /// # Errors
    /// [`SchemaError::Short`].
    pub fn i16(&mut self, what: &'static str) -> Result<i16, SchemaError> {
        self.array(what).map(i16::from_be_bytes)
    }

    /// An `int32`.
    ///
    /// # Errors
    /// [`SchemaError::Short`].
    pub fn i32(&mut self, what: &'static str) -> Result<i32, SchemaError> {
        self.array(what).map(i32::from_be_bytes)
    }

    /// An `int64`.
    ///
    /// # Errors
    /// [`SchemaError::Short`].
    pub fn i64(&mut self, what: &'static str) -> Result<i64, SchemaError> {
        self.array(what).map(i64::from_be_bytes)
    }

    /// A nullable `string`: `int16` length, −1 for none.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn nullable_text(&mut self, what: &'static str) -> Result<Option<&'a str>, SchemaError> {
        let length = self.i16(what)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| SchemaError::Negative { what })?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map(Some).map_err(|_| SchemaError::NotUtf8 { what })
    }

    /// A `string`.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn text(&mut self, what: &'static str) -> Result<&'a str, SchemaError> {
        self.nullable_text(what)?.ok_or(SchemaError::Negative { what })
    }

    /// Nullable `bytes`: `int32` length, −1 for none.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn nullable_bytes(&mut self, what: &'static str) -> Result<Option<&'a [u8]>, SchemaError> {
        let length = self.i32(what)?;
        if length == -1 {
            return Ok(None);
        }
        let length = usize::try_from(length).map_err(|_| SchemaError::Negative { what })?;
        self.take(length, what).map(Some)
    }

    /// `bytes`.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], SchemaError> {
        self.nullable_bytes(what)?.ok_or(SchemaError::Negative { what })
    }

    /// The elements of an array, each read by `element`, which takes one byte at least: so no count is believed that
    /// the bytes could not hold.
    ///
    /// # Errors
    /// [`SchemaError`].
    pub fn array_of<T>(
        &mut self,
        what: &'static str,
        mut element: impl FnMut(&mut Self) -> Result<T, SchemaError>,
    ) -> Result<Vec<T>, SchemaError> {
        let count = self.i32(what)?;
        let count = usize::try_from(count).map_err(|_| SchemaError::Negative { what })?;
        if count > self.rest.len() {
            return Err(SchemaError::Short { what });
        }
        (0..count).map(|_| element(self)).collect()
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// [`SchemaError::Trailing`].
    pub const fn end(self) -> Result<(), SchemaError> {
        if self.rest.is_empty() { Ok(()) } else { Err(SchemaError::Trailing { bytes: self.rest.len() }) }
    }
}

/// Writes to the end of a vector.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Appends an `int16`.
    #[must_use]
    pub fn i16(mut self, value: i16) -> Self {
        self.bytes.extend(value.to_be_bytes());
        self
    }

    /// Appends an `int32`.
    #[must_use]
    pub fn i32(mut self, value: i32) -> Self {
        self.bytes.extend(value.to_be_bytes());
        self
    }

    /// Appends an `int64`.
    #[must_use]
    pub fn i64(mut self, value: i64) -> Self {
        self.bytes.extend(value.to_be_bytes());
        self
    }

    /// Appends a nullable `string`.
    ///
    /// # Panics
    /// Above 32,767 bytes: every text of ours has a limit far below.
    #[must_use]
    pub fn nullable_text(self, text: Option<&str>) -> Self {
        let length = text.map_or(-1, |text| i16::try_from(text.len()).expect("texts are bounded by limits"));
        let mut writer = self.i16(length);
        writer.bytes.extend(text.unwrap_or_default().as_bytes());
        writer
    }

    /// Appends a `string`.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.nullable_text(Some(text))
    }

    /// Appends nullable `bytes`.
    ///
    /// # Panics
    /// Above 2 GiB: byte strings are bounded by frames.
    #[must_use]
    pub fn nullable_bytes(self, bytes: Option<&[u8]>) -> Self {
        let length = bytes.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("byte strings are bounded by frames"));
        let mut writer = self.i32(length);
        writer.bytes.extend(bytes.unwrap_or_default());
        writer
    }

    /// Appends `bytes`.
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        self.nullable_bytes(Some(bytes))
    }

    /// Appends an array whose elements `element` appends.
    ///
    /// # Panics
    /// Above 2³¹ elements.
    #[must_use]
    pub fn array_of<T>(self, elements: impl ExactSizeIterator<Item = T>, element: impl FnMut(Self, T) -> Self) -> Self {
        let count = i32::try_from(elements.len()).expect("arrays are bounded by limits");
        elements.fold(self.i32(count), element)
    }

    /// What was written.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primitives_are_big_endian_and_lengths_come_first() {
        let written = Writer::default().i16(3).text("ab").nullable_text(None).bytes(b"x").nullable_bytes(None).i64(-2);
        let written = written.array_of([7, 8].into_iter(), Writer::i32).finish();
        let expected = [
            &[0, 3, 0, 2, b'a', b'b', 0xff, 0xff, 0, 0, 0, 1, b'x', 0xff, 0xff, 0xff, 0xff][..],
            &[0xff; 7],
            &[0xfe, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 8],
        ];
        assert_eq!(written, expected.concat());
        let mut reader = Reader::new(&written);
        assert_eq!((reader.i16("a"), reader.text("b"), reader.nullable_text("c")), (Ok(3), Ok("ab"), Ok(None)));
        assert_eq!((reader.bytes("d"), reader.nullable_bytes("e"), reader.i64("f")), (Ok(&b"x"[..]), Ok(None), Ok(-2)));
        assert_eq!(reader.array_of("g", |reader| reader.i32("h")), Ok(vec![7, 8]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn counts_and_lengths_are_held_against_the_bytes_that_are_left() {
        let huge = Writer::default().i32(i32::MAX).finish();
        let count = Reader::new(&huge).array_of("elements", |reader| reader.i32("element"));
        assert_eq!(count, Err(SchemaError::Short { what: "elements" }));
        assert_eq!(Reader::new(&huge).bytes("bytes"), Err(SchemaError::Short { what: "bytes" }));
        let below = Writer::default().i32(-2).finish();
        assert_eq!(Reader::new(&below).nullable_bytes("bytes"), Err(SchemaError::Negative { what: "bytes" }));
        assert_eq!(Reader::new(&[0xff, 0xff]).text("text"), Err(SchemaError::Negative { what: "text" }));
        assert_eq!(Reader::new(&[0, 1, 0xff]).text("text"), Err(SchemaError::NotUtf8 { what: "text" }));
        assert_eq!(Reader::new(&[0]).end(), Err(SchemaError::Trailing { bytes: 1 }));
    }
}
