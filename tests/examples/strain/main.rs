//! Owns the figures of a broker that is idle, restarted, or used badly; decides nothing, it prints what it finds.
//!
//! `strain COMMAND BINARY DIR [N] [-- FLAGS OF SERVE]`, where BINARY is `coulee`, and DIR does not exist yet:
//! * `idle`: memory and CPU with 100 topics of 4 partitions, before and after each was written to.
//! * `connections N`: memory with N connections that have said Hello and nothing else.
//! * `silent N`: what becomes of N connections that say nothing.
//! * `restart GIB`: writes so much, kills the broker, and times starts with a cold and a warm page cache.
//! * `hoard N`: memory while N consumers ask for as much as they may and read nothing.
//! * `adverse ROUNDS`: p99 of an open-loop producer, alone and beside clients that behave badly.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use coulee_protocol::api::stats::Counter;

mod adverse;
mod broker;
mod wire;

use broker::Broker;
use wire::Wire;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let flags = arguments.iter().position(|argument| argument == "--").map(|at| arguments.split_off(at));
    let flags: Vec<String> = flags.into_iter().flatten().skip(1).collect();
    let [command, binary, dir, number @ ..] = arguments.as_slice() else {
        return Err("strain COMMAND BINARY DIR [N] [-- FLAGS OF SERVE]".into());
    };
    let (binary, dir) = (PathBuf::from(binary), PathBuf::from(dir));
    let number: usize = number.first().map_or(Ok(1), |number| number.parse())?;
    match command.as_str() {
        "idle" => idle(&binary, &dir, &flags),
        "connections" => connections(&binary, &dir, &flags, number),
        "silent" => silent(&binary, &dir, &flags, number),
        "restart" => restart(&binary, &dir, &flags, number),
        "hoard" => hoard(&binary, &dir, &flags, number),
        "adverse" => adverse::run(&binary, &dir, &flags, number),
        other => Err(format!("no such command: {other}").into()),
    }
}

/// Prints memory, descriptors and the CPU of 30 s.
fn look(what: &str, broker: &Broker) -> Outcome<()> {
    let (ticks, threads, began) = (broker.cpu_ticks()?, broker.threads_cpu()?, Instant::now());
    thread::sleep(Duration::from_secs(30));
    let percent = (broker.cpu_ticks()? - ticks) as f64 / began.elapsed().as_secs_f64();
    let memory = broker.memory()?;
    println!("{what}: {percent:.2} % of a core, {memory}, {} descriptors", broker.descriptors()?);
    for (task, (name, after)) in broker.threads_cpu()? {
        // Threads that have come since are the kernel's, for a moment.
        if let Some((_, before)) = threads.get(&task) {
            println!("  {name}: {:.3} %", (after - before) as f64 / began.elapsed().as_nanos() as f64 * 100.0);
        }
    }
    Ok(())
}

fn idle(binary: &Path, dir: &Path, flags: &[String]) -> Outcome<()> {
    let broker = Broker::start(binary, dir, flags)?;
    println!("fresh: {}", broker.memory()?);
    let mut wire = Wire::open(&broker.address, None)?;
    let began = Instant::now();
    for topic in 0..100 {
        wire.create_topic(&format!("topic-{topic}"), 4)?;
    }
    println!("100 topics of 4 partitions in {:?}", began.elapsed());
    look("never written", &broker)?;
    for (what, bytes, times) in [("one batch of 1 KiB in each", 1_000, 1), ("32 KiB more in each", 8 << 10, 4)] {
        let batch = wire::batch(bytes, 100)?;
        for place in wire.places()? {
            for _ in 0..times {
                wire.produce(place, &batch)?;
            }
        }
        look(what, &broker)?;
    }
    drop(wire);
    broker.kill()?;
    let broker = Broker::start(binary, dir, flags)?;
    println!("started again in {:?}", broker.started_in);
    look("after the start", &broker)
}

fn connections(binary: &Path, dir: &Path, flags: &[String], count: usize) -> Outcome<()> {
    let broker = Broker::start(binary, dir, flags)?;
    thread::sleep(Duration::from_secs(1));
    let before = broker.memory()?;
    let began = Instant::now();
    let held: Vec<Wire> = (0..count).map(|_| Wire::open(&broker.address, None)).collect::<Outcome<_>>()?;
    println!("{} connections in {:?}", held.len(), began.elapsed());
    let now = broker.memory()?;
    let each = (now.resident - before.resident) * 1_024 / count as u64;
    println!("before {before}, with them {now}: {each} bytes for each");
    look("connected, idle", &broker)?;
    drop(held);
    thread::sleep(Duration::from_secs(2));
    println!("after they left: {}, {} descriptors", broker.memory()?, broker.descriptors()?);
    Ok(())
}

fn silent(binary: &Path, dir: &Path, flags: &[String], count: usize) -> Outcome<()> {
    let broker = Broker::start(binary, dir, flags)?;
    let mut held: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(&broker.address)).collect::<Result<_, _>>()?;
    println!("{count} connected: {}, {} descriptors", broker.memory()?, broker.descriptors()?);
    let began = Instant::now();
    let mut ends = Vec::new();
    for socket in &mut held {
        let mut rest = Vec::new();
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        // A reset counts as an end too.
        let ended = socket.read_to_end(&mut rest).is_ok();
        ends.push((began.elapsed(), rest.len(), ended));
    }
    println!("first ended after {:?}, last after {:?}", ends[0], ends[count - 1]);
    println!("closed: {}, {} descriptors", broker.memory()?, broker.descriptors()?);
    Ok(())
}

fn restart(binary: &Path, dir: &Path, flags: &[String], gib: usize) -> Outcome<()> {
    let partitions = 8;
    let written = if dir.exists() { 0 } else { fill(binary, dir, flags, gib, partitions)? };
    println!("written: {written} bytes");
    for round in 0..5 {
        for cold in [false, true] {
            if cold {
                fs::write("/proc/sys/vm/drop_caches", "3")?;
            }
            let broker = Broker::start(binary, dir, flags)?;
            let mut wire = Wire::open(&broker.address, None)?;
            let log_bytes = wire.counter(Counter::LogBytes)?;
            let place = wire.places()?[round % partitions];
            // Something to recover, and proof that it serves.
            wire.produce(place, &wire::batch(64 << 10, 100)?)?;
            let cache = if cold { "cold" } else { "warm" };
            println!("{cache}: ready in {:?}, {log_bytes} bytes of log, {}", broker.started_in, broker.memory()?);
            broker.kill()?;
        }
    }
    Ok(())
}

/// Writes `gib` GiB into the partitions in turn, and kills the broker after the last ack.
fn fill(binary: &Path, dir: &Path, flags: &[String], gib: usize, partitions: usize) -> Outcome<u64> {
    let broker = Broker::start(binary, dir, flags)?;
    let mut wire = Wire::open(&broker.address, None)?;
    wire.create_topic("filled", partitions as u32)?;
    let places = wire.places()?;
    let batch = wire::batch(1_000 << 10, 1_000)?;
    let (count, began) = ((gib << 30) / batch.len(), Instant::now());
    let threads: Vec<_> = (0..2)
        .map(|half| {
            let (address, places, batch) = (broker.address.clone(), places.clone(), batch.clone());
            thread::spawn(move || write_half(&address, &places, &batch, half, count / 2))
        })
        .collect();
    for writer in threads {
        writer.join().map_err(|_| "a writer panicked")??;
    }
    let bytes = (count * batch.len()) as u64;
    println!("{bytes} bytes in {:?}, {}", began.elapsed(), broker.memory()?);
    broker.kill()?;
    Ok(bytes)
}

fn write_half(address: &str, places: &[wire::Place], batch: &[u8], half: usize, count: usize) -> Outcome<()> {
    let mut wires = Vec::new();
    for _ in 0..4 {
        wires.push(Wire::open(address, None)?);
    }
    for at in (0..count).step_by(wires.len()) {
        for (number, wire) in wires.iter_mut().enumerate() {
            let place = places[(at + number + half) % places.len()];
            wire.socket.write_all(&wire::produce_frame(place, 1, batch))?;
        }
        for wire in &mut wires {
            let (header, _) = wire::read_frame(&mut wire.socket)?;
            if header.error != 0 {
                return Err(format!("error {}", header.error).into());
            }
        }
    }
    Ok(())
}

fn hoard(binary: &Path, dir: &Path, flags: &[String], count: usize) -> Outcome<()> {
    let broker = Broker::start(binary, dir, flags)?;
    let mut wire = Wire::open(&broker.address, None)?;
    wire.create_topic("hoarded", 1)?;
    let place = wire.places()?[0];
    let batch = wire::batch(1_000 << 10, 1_000)?;
    for _ in 0..100 {
        wire.produce(place, &batch)?;
    }
    println!("100 MB written: {}", broker.memory()?);
    let mut held = Vec::new();
    for _ in 0..count {
        let mut consumer = Wire::open(&broker.address, None)?;
        for number in 0..200 {
            consumer.socket.write_all(&wire::fetch_frame(place, number, 0, 15 << 20))?;
        }
        held.push(consumer);
    }
    for _ in 0..6 {
        thread::sleep(Duration::from_secs(2));
        println!("{count} consumers that do not read: {}", broker.memory()?);
    }
    drop(held);
    thread::sleep(Duration::from_secs(2));
    println!("after they left: {}", broker.memory()?);
    Ok(())
}
