//! The bare replay: a mapped, resident file is sent slice by slice and checksummed on arrival; knows no batch.

use super::Files;
use super::SERVER_CPU;
use crate::fault::Fault;
use crate::machine;
use memmap2::Mmap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

/// Bytes a second with slices of `slice_bytes`.
pub(crate) fn replay(files: &Files, slice_bytes: usize, cpu: usize) -> Result<f64, Fault> {
    let opened = files.buffered.open(false)?;
    // SAFETY: nobody else knows the file's name, which holds this process's id, and while this runs nothing writes it.
    let mapped = unsafe { Mmap::map(&opened) }.map_err(Fault::machine("a mapping"))?;
    // Resident, and checked: a page that is not there would be read from the device while it is measured.
    std::hint::black_box(crc32fast::hash(&mapped));
    let bytes = files.buffered.bytes();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Fault::machine("listen"))?;
    let address = listener.local_addr().map_err(Fault::machine("listen"))?;
    thread::scope(|scope| {
        let server = scope.spawn(move || {
            machine::pin(SERVER_CPU)?;
            let (mut stream, _) = listener.accept().map_err(Fault::machine("accept"))?;
            mapped.chunks(slice_bytes).try_for_each(|slice| stream.write_all(slice)).map_err(Fault::machine("send"))
        });
        let client = scope.spawn(move || {
            machine::pin(cpu)?;
            receive(address, bytes)
        });
        let rate = client.join().expect("a bare client does not panic");
        server.join().expect("a bare server does not panic")?;
        rate
    })
}

fn receive(address: std::net::SocketAddr, bytes: u64) -> Result<f64, Fault> {
    let mut stream = TcpStream::connect(address).map_err(Fault::machine("connect"))?;
    let mut buffer = vec![0; 1 << 20];
    let (start, mut left) = (Instant::now(), bytes);
    while left > 0 {
        let count = stream.read(&mut buffer).map_err(Fault::machine("receive"))?;
        if count == 0 {
            return Err(Fault::wire("a bare replay", "it ends too soon"));
        }
        std::hint::black_box(crc32fast::hash(&buffer[..count]));
        left -= count as u64;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}
