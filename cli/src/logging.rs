//! The broker's log on standard error: owns the writer thread and its bounded queue; decides nothing of what is logged.
//!
//! A shard never waits for a slow terminal or a full pipe: what finds no room in the queue is counted and left out, and
//! the log says how much that was.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use coulee_server::config::{LogFormat, LogLevel};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Log lines that wait to be written.
const LINES_MAX: usize = 8_192;

/// The queue's end that log lines go into.
#[derive(Clone, Debug)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    left_out: Arc<AtomicU64>,
}

/// One line in the making; goes into the queue when it is dropped.
#[derive(Debug)]
struct Line<'a> {
    lines: &'a Lines,
    text: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.lines.queue.try_send(std::mem::take(&mut self.text)).is_err() {
            self.lines.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { lines: self, text: Vec::new() }
    }
}

/// Starts the log of this process.
///
/// # Errors
/// If the system has no thread for it.
pub(crate) fn start(level: LogLevel, format: LogFormat, is_coloured: bool) -> io::Result<()> {
    let (queue, lines) = sync_channel(LINES_MAX);
    let left_out = Arc::new(AtomicU64::new(0));
    writer(lines, left_out.clone(), io::stderr())?;
    let writer = Lines { queue, left_out };
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(writer);
    match format {
        LogFormat::Pretty => builder.with_ansi(is_coloured).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
    }
    Ok(())
}

/// The thread that writes: it ends when the last sender is gone, or when nobody can be told any more.
fn writer(
    lines: Receiver<Vec<u8>>,
    left_out: Arc<AtomicU64>,
    mut out: impl Write + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        for line in lines {
            let missing = left_out.swap(0, Ordering::Relaxed);
            if missing > 0 && writeln!(out, "{{\"level\":\"WARN\",\"log_lines_left_out\":{missing}}}").is_err() {
                break;
            }
            if out.write_all(&line).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_beyond_the_queue_are_counted_and_never_waited_for() {
        let (queue, receiver) = sync_channel(2);
        let lines = Lines { queue, left_out: Arc::default() };
        for number in 0..5 {
            writeln!(lines.make_writer(), "line {number}").unwrap();
        }
        let (out, left_out) = (Shared::default(), lines.left_out.clone());
        drop(lines);
        writer(receiver, left_out, out.clone()).unwrap().join().unwrap();
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "{\"level\":\"WARN\",\"log_lines_left_out\":3}\nline 0\nline 1\n");
    }
}
