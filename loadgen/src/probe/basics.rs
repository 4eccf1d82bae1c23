//! Single operations of the machine: a round trip, a copy, a checksum, a durable write; puts nothing together.

use super::SERVER_CPU;
use super::bare::{FILE_BYTES, Recycled};
use crate::fault::Fault;
use crate::machine;
use crate::tally::Latencies;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `client` on `cpu` against `server` on core 0, over one loopback connection.
fn pair<T: Send>(
    cpu: usize,
    server: impl FnOnce(TcpStream) -> std::io::Result<()> + Send,
    client: impl FnOnce(TcpStream) -> std::io::Result<T> + Send,
) -> Result<T, Fault> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Fault::machine("listen"))?;
    let address = listener.local_addr().map_err(Fault::machine("listen"))?;
    thread::scope(|scope| {
        let serving = scope.spawn(move || {
            machine::pin(SERVER_CPU)?;
            let (stream, _) = listener.accept().map_err(Fault::machine("accept"))?;
            stream.set_nodelay(true).map_err(Fault::machine("nodelay"))?;
            server(stream).map_err(Fault::machine("a bare server"))
        });
        let asking = scope.spawn(move || {
            machine::pin(cpu)?;
            let stream = TcpStream::connect(address).map_err(Fault::machine("connect"))?;
            stream.set_nodelay(true).map_err(Fault::machine("nodelay"))?;
            client(stream).map_err(Fault::machine("a bare client"))
        });
        let result = asking.join().expect("a bare client does not panic");
        serving.join().expect("a bare server does not panic")?;
        result
    })
}

/// 100 bytes there and back.
pub(crate) fn round_trip(cpu: usize, rounds: u32) -> Result<Latencies, Fault> {
    let server = move |mut stream: TcpStream| {
        let mut bytes = [0; 100];
        (0..rounds).try_for_each(|_| {
            stream.read_exact(&mut bytes)?;
            stream.write_all(&bytes)
        })
    };
    let client = move |mut stream: TcpStream| {
        let (mut bytes, mut latencies) = ([7; 100], Latencies::new());
        for _ in 0..rounds {
            let start = Instant::now();
            stream.write_all(&bytes)?;
            stream.read_exact(&mut bytes)?;
            latencies.record(start.elapsed().as_nanos() as u64);
        }
        Ok(latencies)
    };
    pair(cpu, server, client)
}

/// Bytes a second from one core to the other, sent in pieces of 256 KiB.
pub(crate) fn bandwidth(cpu: usize, bytes: u64) -> Result<f64, Fault> {
    let server = move |mut stream: TcpStream| {
        let (mut buffer, mut left) = (vec![0; 1 << 20], bytes);
        while left > 0 {
            left = left.saturating_sub(stream.read(&mut buffer)? as u64);
        }
        stream.write_all(&[1])
    };
    let client = move |mut stream: TcpStream| {
        let (piece, start) = (vec![7; 256 << 10], Instant::now());
        (0..bytes / piece.len() as u64).try_for_each(|_| stream.write_all(&piece))?;
        stream.read_exact(&mut [0])?;
        Ok(bytes as f64 / start.elapsed().as_secs_f64())
    };
    pair(cpu, server, client)
}

/// Bytes a second of one way to go over `bytes` bytes, for at least a fifth of a second.
fn rate_of(bytes: usize, mut work: impl FnMut()) -> f64 {
    work();
    let (start, mut rounds) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(200) {
        work();
        rounds += 1;
    }
    (rounds * bytes) as f64 / start.elapsed().as_secs_f64()
}

/// Bytes a second copied, `bytes` at a time.
pub(crate) fn memcpy(bytes: usize) -> f64 {
    let (from, mut to) = (vec![7_u8; bytes], vec![0_u8; bytes]);
    rate_of(bytes, || {
        to.copy_from_slice(&from);
        std::hint::black_box(&mut to);
    })
}

/// Bytes a second under CRC-32, 64 KiB at a time.
pub(crate) fn crc() -> f64 {
    let bytes = vec![7_u8; 64 << 10];
    rate_of(bytes.len(), || {
        std::hint::black_box(crc32fast::hash(std::hint::black_box(&bytes)));
    })
}

/// Writes of `bytes`, each followed by fdatasync, one after the other into blocks that were written before.
pub(crate) fn durable_writes(dir: &Path, bytes: usize, rounds: u64) -> Result<Latencies, Fault> {
    let file = Recycled::new(dir, "sync", FILE_BYTES)?;
    let opened = file.open(false)?;
    let (block, mut latencies) = (vec![7; bytes], Latencies::new());
    for round in 0..rounds {
        let start = Instant::now();
        opened.write_all_at(&block, round * bytes as u64).map_err(Fault::machine("a write"))?;
        opened.sync_data().map_err(Fault::machine("a sync"))?;
        latencies.record(start.elapsed().as_nanos() as u64);
    }
    Ok(latencies)
}
