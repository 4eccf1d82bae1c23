//! Frames out of received bytes: owns what has come and is no whole frame yet; knows no socket and no request.

use bytes::{Bytes, BytesMut};
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use coulee_protocol::limits::FRAME_BYTES_MAX;

use crate::limits::READ_BYTES;

/// A whole frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Its header.
    pub(crate) header: FrameHeader,
    /// Its body.
    pub(crate) body: Bytes,
    /// The record batches behind it.
    pub(crate) batches: Bytes,
}

/// Collects bytes and cuts frames off, which share the memory that they were received in.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    received: BytesMut,
}

impl FrameReader {
    /// Where the next bytes go. There is room in it for the rest of the frame at hand, and never for more than a frame
    /// may have.
    pub(crate) fn room(&mut self) -> &mut BytesMut {
        let missing = match self.header() {
            Ok(Some(header)) => (header.len as usize).saturating_sub(self.received.len()),
            Ok(None) | Err(_) => 0,
        };
        self.received.reserve(missing.max(READ_BYTES));
        &mut self.received
    }

    /// The next frame, or `None` until the rest of it has come.
    ///
    /// # Errors
    /// The header is no header of a response: nothing behind it can be trusted.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.header()? else { return Ok(None) };
        if self.received.len() < header.len as usize {
            return Ok(None);
        }
        let mut body = self.received.split_to(header.len as usize).freeze().split_off(FRAME_HEADER_BYTES);
        let batches = body.split_off(header.body_len as usize);
        Ok(Some(Frame { header, body, batches }))
    }

    fn header(&self) -> Result<Option<FrameHeader>, FrameError> {
        let Some(bytes) = self.received.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        FrameHeader::decode(bytes, FRAME_BYTES_MAX).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coulee_protocol::error::ErrorCode;

    fn frame(correlation: u32, body: &[u8], batches: &[u8]) -> Vec<u8> {
        let request = FrameHeader::request(2, 1, correlation, 0, 0);
        let header = FrameHeader::response(&request, ErrorCode::None, body.len(), batches.len());
        [&header.encode()[..], body, batches].concat()
    }

    #[test]
    fn torn_frames_come_out_whole_wherever_they_are_torn() {
        let bytes = [frame(1, b"body", b"batch"), frame(2, b"", b""), frame(3, b"x", b"")].concat();
        for size in 1..=bytes.len() {
            let mut reader = FrameReader::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                reader.room().extend_from_slice(piece);
                while let Some(frame) = reader.next_frame().unwrap() {
                    found.push((frame.header.correlation, frame.body, frame.batches));
                }
            }
            let bytes = Bytes::from_static;
            let expected =
                [(1, bytes(b"body"), bytes(b"batch")), (2, Bytes::new(), Bytes::new()), (3, bytes(b"x"), Bytes::new())];
            assert_eq!(found, expected, "pieces of {size}");
            assert!(reader.received.is_empty());
        }
    }

    #[test]
    fn an_oversize_frame_is_refused_before_room_is_made_for_it() {
        let mut reader = FrameReader::default();
        let mut header = frame(1, b"", b"");
        header[0..4].copy_from_slice(&(FRAME_BYTES_MAX as u32 + 1).to_le_bytes());
        reader.room().extend_from_slice(&header);
        assert!(matches!(reader.next_frame(), Err(FrameError::TooLarge { .. })));
        assert!(reader.room().capacity() <= 2 * READ_BYTES);
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for (at, value) in [(0, 23_u32), (0, 0), (4, 1), (4, u32::MAX)] {
            let mut reader = FrameReader::default();
            let mut header = frame(1, b"", b"");
            header[at..at + 4].copy_from_slice(&value.to_le_bytes());
            reader.room().extend_from_slice(&header);
            assert!(reader.next_frame().is_err(), "{value} at {at}");
        }
    }

    #[test]
    fn the_largest_frame_passes_and_room_is_made_for_no_more() {
        let mut reader = FrameReader::default();
        let batches = vec![7; FRAME_BYTES_MAX - FRAME_HEADER_BYTES];
        let bytes = frame(1, b"", &batches);
        reader.room().extend_from_slice(&bytes[..100]);
        assert!(reader.next_frame().unwrap().is_none());
        assert!(reader.room().capacity() <= FRAME_BYTES_MAX + READ_BYTES);
        reader.room().extend_from_slice(&bytes[100..]);
        assert_eq!(reader.next_frame().unwrap().unwrap().batches, batches);
    }
}
