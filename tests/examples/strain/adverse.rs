//! The p99 of acks of a client that behaves, alone and beside five kinds that do not; knows no rule of the broker.
//!
//! The client is an open loop: a 1 KiB batch each 2 ms by the clock, whether answers come or not, and the latency
//! counts from the intended time. Quiet and adverse windows alternate, so that what else the machine does is in both.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::broker::Broker;
use crate::wire::{self, Place, Wire};

const INTERVAL: Duration = Duration::from_millis(2);
const WINDOW: Duration = Duration::from_secs(8);

pub(crate) fn run(binary: &Path, dir: &Path, flags: &[String], rounds: usize) -> Outcome<()> {
    let broker = Broker::start(binary, dir, flags)?;
    let mut wire = Wire::open(&broker.address, None)?;
    wire.create_topic("adverse", 4)?;
    let places = wire.places()?;
    for place in &places {
        for _ in 0..16 {
            wire.produce(*place, &wire::batch(1_000 << 10, 1_000)?)?;
        }
    }
    let (mut quiet, mut adverse) = (Vec::new(), Vec::new());
    let mut peak = 0;
    for round in 0..rounds {
        let alone = measure(&broker.address, places[round % 4], WINDOW)?;
        let stop = Arc::new(AtomicBool::new(false));
        let bad = misbehave(&broker.address, &places, &stop);
        // The 5,000 are connecting by now: that is part of what is measured.
        let beside = measure(&broker.address, places[round % 4], WINDOW)?;
        peak = peak.max(broker.memory()?.resident);
        stop.store(true, Ordering::Relaxed);
        for thread in bad {
            println!("  {}", thread.join().map_err(|_| "a bad client panicked")??);
        }
        println!("round {round}: alone {}, beside them {}; {}", show(&alone), show(&beside), broker.memory()?);
        quiet.extend(alone);
        adverse.extend(beside);
    }
    println!("all rounds: alone {}, beside them {}; peak {peak} KiB", show(&quiet), show(&adverse));
    Ok(())
}

fn show(latencies: &[Duration]) -> String {
    let mut sorted = latencies.to_vec();
    sorted.sort();
    let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize];
    format!("p50 {:.2?} p99 {:.2?} max {:.2?} ({})", at(0.5), at(0.99), at(1.0), sorted.len())
}

/// Sends by the clock on one thread, receives on another.
fn measure(address: &str, place: Place, window: Duration) -> Outcome<Vec<Duration>> {
    let mut wire = Wire::open(address, Some(place.shard))?;
    let mut reader = wire.socket.try_clone()?;
    let count = window.as_micros() / INTERVAL.as_micros();
    let began = Instant::now();
    let receiver: JoinHandle<Outcome<Vec<Duration>>> = thread::spawn(move || {
        let mut latencies = Vec::new();
        for _ in 0..count {
            let (header, _) = wire::read_frame(&mut reader)?;
            if header.error != 0 {
                return Err(format!("the client that behaves got error {}", header.error).into());
            }
            latencies.push(began.elapsed().saturating_sub(INTERVAL * header.correlation));
        }
        Ok(latencies)
    });
    let batch = wire::batch(1_000, 100)?;
    for number in 0..u32::try_from(count)? {
        let due = INTERVAL * number;
        thread::sleep(due.saturating_sub(began.elapsed()));
        wire.socket.write_all(&wire::produce_frame(place, number, &batch))?;
    }
    receiver.join().map_err(|_| "the receiver panicked")?
}

type Bad = JoinHandle<Outcome<String>>;
/// Behaves badly until it is told to stop, and says what came of it.
type Kind = fn(&str, &[Place], &AtomicBool) -> Outcome<String>;

fn misbehave(address: &str, places: &[Place], stop: &Arc<AtomicBool>) -> Vec<Bad> {
    let kinds: [Kind; 5] = [trickle, never_read, vanish, say_nothing, say_hello_only];
    let start = |kind: Kind| {
        let (address, places, stop) = (address.to_owned(), places.to_vec(), Arc::clone(stop));
        thread::spawn(move || kind(&address, &places, &stop))
    };
    kinds.into_iter().map(start).collect()
}

fn is_over(stop: &AtomicBool) -> bool {
    stop.load(Ordering::Relaxed)
}

/// Sends a 1 MiB batch, 4 KiB each 100 ms: 40 KiB/s.
fn trickle(address: &str, places: &[Place], stop: &AtomicBool) -> Outcome<String> {
    let bytes = wire::produce_frame(places[0], 1, &wire::batch(1_000 << 10, 1_000)?);
    let mut wire = Wire::open(address, Some(places[0].shard))?;
    let began = Instant::now();
    for piece in bytes.chunks(4 << 10) {
        if wire.socket.write_all(piece).is_err() {
            return Ok(format!("the trickling producer was closed after {:.1?}", began.elapsed()));
        }
        if is_over(stop) {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(format!("the trickling producer was not closed in {:.1?}", began.elapsed()))
}

/// Asks for everything again and again, and reads nothing.
fn never_read(address: &str, places: &[Place], stop: &AtomicBool) -> Outcome<String> {
    let mut wire = Wire::open(address, Some(places[1].shard))?;
    wire.socket.set_write_timeout(Some(Duration::from_millis(200)))?;
    let (mut asked, mut refused) = (0, false);
    while !is_over(stop) {
        let frame = wire::fetch_frame(places[1], asked, 0, 15 << 20);
        if refused || asked >= 1_000 {
            thread::sleep(Duration::from_millis(100));
        } else if wire.socket.write_all(&frame).is_err() {
            refused = true;
        } else {
            asked += 1;
        }
    }
    Ok(format!("the consumer that never reads asked {asked} times"))
}

/// Connects, begins a large frame, goes.
fn vanish(address: &str, places: &[Place], stop: &AtomicBool) -> Outcome<String> {
    let bytes = wire::produce_frame(places[2], 1, &wire::batch(1_000 << 10, 1_000)?);
    let mut times = 0;
    while !is_over(stop) {
        let mut wire = Wire::open(address, Some(places[2].shard))?;
        wire.socket.write_all(&bytes[..bytes.len() / 2])?;
        drop(wire);
        times += 1;
        thread::sleep(Duration::from_millis(100));
    }
    Ok(format!("a client vanished mid-frame {times} times"))
}

fn say_nothing(address: &str, _: &[Place], stop: &AtomicBool) -> Outcome<String> {
    let began = Instant::now();
    let held: Vec<TcpStream> = (0..5_000).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>()?;
    let connected = began.elapsed();
    while !is_over(stop) {
        thread::sleep(Duration::from_millis(50));
    }
    Ok(format!("{} that say nothing connected in {connected:.1?}", held.len()))
}

fn say_hello_only(address: &str, places: &[Place], stop: &AtomicBool) -> Outcome<String> {
    let wire = Wire::open(address, Some(places[3].shard))?;
    while !is_over(stop) {
        thread::sleep(Duration::from_millis(50));
    }
    let is_open = matches!(wire.socket.set_nonblocking(true), Ok(()))
        && wire.socket.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    Ok(format!("the one that only said Hello is {}", if is_open { "still connected" } else { "closed" }))
}
