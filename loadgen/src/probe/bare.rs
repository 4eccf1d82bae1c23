//! What both bare servers share: frames told apart, acks, the file they write; knows neither epoll nor ring.
//!
//! They take the very frames that a broker takes and answer with acks of the same size, so that one generator measures
//! both. They look at nothing but lengths and checksums: no log, no index, no request.

use crate::fault::Fault;
use coulee_protocol::api::ApiKey;
use coulee_protocol::error::ErrorCode;
use coulee_protocol::frame::{FRAME_HEADER_BYTES, FrameHeader};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::fs::{File, OpenOptions};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The file that is written over and over, where nobody wants another size.
pub(crate) const FILE_BYTES: u64 = 1 << 30;
/// Bytes of an ack's body: that of a produce response.
const ACK_BODY_BYTES: usize = 28;

/// Frames of one connection: where the next begins, and the checksum of the one at hand.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    head: [u8; FRAME_HEADER_BYTES],
    head_filled: usize,
    /// Bytes of the frame that are to come.
    left: usize,
    hasher: crc32fast::Hasher,
}

impl Scanner {
    /// Takes the next bytes of the stream; the correlations of the frames that end in them.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut ended: impl FnMut(u32)) {
        while !bytes.is_empty() {
            if self.left == 0 {
                let count = bytes.len().min(FRAME_HEADER_BYTES - self.head_filled);
                self.head[self.head_filled..self.head_filled + count].copy_from_slice(&bytes[..count]);
                self.head_filled += count;
                bytes = &bytes[count..];
                if self.head_filled < FRAME_HEADER_BYTES {
                    return;
                }
                let [a, b, c, d, ..] = self.head;
                self.left = (u32::from_le_bytes([a, b, c, d]) as usize).saturating_sub(FRAME_HEADER_BYTES);
                self.hasher.update(&self.head);
            }
            let count = bytes.len().min(self.left);
            self.hasher.update(&bytes[..count]);
            self.left -= count;
            bytes = &bytes[count..];
            if self.left == 0 {
                std::hint::black_box(std::mem::take(&mut self.hasher).finalize());
                self.head_filled = 0;
                ended(u32::from_le_bytes([self.head[12], self.head[13], self.head[14], self.head[15]]));
            }
        }
    }
}

/// The answering side of one connection.
#[derive(Debug)]
pub(super) struct Acker {
    pub(super) stream: TcpStream,
    /// The other side has not closed.
    pub(super) is_open: bool,
    out: Vec<u8>,
    /// The offset that the next ack names.
    next: u64,
    records: u64,
}

impl Acker {
    pub(super) const fn new(stream: TcpStream, records: u64) -> Self {
        Self { stream, is_open: true, out: Vec::new(), next: 0, records }
    }

    /// Adds the ack of one request.
    pub(super) fn ack(&mut self, correlation: u32) {
        let request = FrameHeader::request(ApiKey::Produce.code(), 1, correlation, 0, 0);
        let header = FrameHeader::response(&request, ErrorCode::None, ACK_BODY_BYTES, 0);
        let mut body = [0; ACK_BODY_BYTES];
        body[..8].copy_from_slice(&self.next.to_le_bytes());
        self.next += self.records;
        self.out.extend_from_slice(&header.encode());
        self.out.extend_from_slice(&body);
    }

    /// Gives the socket what waits. Whether all of it went.
    pub(super) fn flush(&mut self) -> Result<bool, Fault> {
        let mut sent = 0;
        while sent < self.out.len() {
            // Not the socket but the call does not wait: the ring's reads want a socket that does.
            match send(&self.stream, &self.out[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(Fault::Machine { what: "a bare ack", error: error.into() }),
            }
        }
        self.out.drain(..sent);
        Ok(self.out.is_empty())
    }
}

/// Answers frames, each with its connection's place, and gives the sockets that are open what waits for them.
pub(super) fn acknowledge<P>(
    peers: &mut [P],
    acker: impl Fn(&mut P) -> &mut Acker,
    frames: Vec<(usize, u32)>,
) -> Result<(), Fault> {
    for (at, correlation) in frames {
        acker(&mut peers[at]).ack(correlation);
    }
    for acker in peers.iter_mut().map(acker).filter(|acker| acker.is_open) {
        acker.flush()?;
    }
    Ok(())
}

/// A file whose blocks have all been written before. It goes with this value.
#[derive(Debug)]
pub(crate) struct Recycled {
    path: PathBuf,
    bytes: u64,
}

impl Recycled {
    pub(super) fn new(dir: &Path, name: &str, bytes: u64) -> Result<Self, Fault> {
        let path = dir.join(format!("coulee-loadgen-{}-{name}", std::process::id()));
        let file = File::create(&path).map_err(Fault::machine("a file to write over"))?;
        let zeros = vec![0; 1 << 20];
        for at in (0..bytes).step_by(zeros.len()) {
            file.write_all_at(&zeros, at).map_err(Fault::machine("a file to write over"))?;
        }
        file.sync_all().map_err(Fault::machine("a file to write over"))?;
        Ok(Self { path, bytes })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Opens it, past the page cache where `direct`.
    pub(super) fn open(&self, direct: bool) -> Result<File, Fault> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&self.path);
        opened.map_err(Fault::machine("a file to write over"))
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        // It may be gone already.
        std::fs::remove_file(&self.path).ok();
    }
}

/// CPU time of the calling thread, in microseconds.
pub(super) fn thread_cpu_us() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart_however_they_are_torn() {
        let frame = |correlation, bytes| {
            let header = FrameHeader::request(2, 1, correlation, 0, bytes).encode();
            [&header[..], &vec![7; bytes]].concat()
        };
        let stream = [frame(3, 500), frame(4, 0), frame(9, 1)].concat();
        for piece in 1..=stream.len() {
            let (mut scanner, mut found) = (Scanner::default(), Vec::new());
            stream.chunks(piece).for_each(|bytes| scanner.scan(bytes, |correlation| found.push(correlation)));
            assert_eq!(found, [3, 4, 9], "in pieces of {piece}");
        }
    }
}
