//! What came of the requests: counts and latencies; knows no socket.

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 120_000_000_000;
/// One point of throughput over time, in nanoseconds.
pub(crate) const POINT_NS: u64 = 100_000_000;
/// Points that are kept: an hour.
const POINTS_MAX: usize = 36_000;

/// Latencies in nanoseconds, three digits each.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("three digits from 1 ns to 2 minutes"))
    }

    pub(crate) fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// In microseconds: the least value that so many percent of all are not above.
    pub(crate) fn percentile_us(&self, percent: f64) -> f64 {
        self.0.value_at_percentile(percent) as f64 / 1e3
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    /// The histogram itself, in nanoseconds.
    pub(crate) const fn histogram(&self) -> &Histogram<u64> {
        &self.0
    }
}

/// The stretch of time that is measured: what comes before it warms up, what comes after it drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) start_ns: u64,
    /// Exclusive.
    pub(crate) end_ns: u64,
}

impl Window {
    pub(crate) const fn holds(&self, at_ns: u64) -> bool {
        self.start_ns <= at_ns && at_ns < self.end_ns
    }
}

/// Records and requests of one direction.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    window: Window,
    /// All of them, measured or not.
    pub(crate) records: u64,
    pub(crate) requests: u64,
    /// Those inside the window.
    pub(crate) records_measured: u64,
    /// The last one inside the window.
    pub(crate) last_ns: u64,
    pub(crate) latencies: Latencies,
    /// The work was at its end before the window was.
    pub(crate) is_exhausted: bool,
    /// Records in each [`POINT_NS`] of the whole run.
    pub(crate) points: Vec<u64>,
}

impl Tally {
    pub(crate) fn new(window: Window) -> Self {
        Self {
            window,
            records: 0,
            requests: 0,
            records_measured: 0,
            last_ns: window.start_ns,
            latencies: Latencies::new(),
            is_exhausted: false,
            points: Vec::new(),
        }
    }

    /// One request of `records`, meant to be sent at `intended_ns`, is done at `now_ns`.
    pub(crate) fn done(&mut self, records: u64, intended_ns: u64, now_ns: u64) {
        self.records += records;
        self.requests += 1;
        if self.window.holds(now_ns) {
            self.records_measured += records;
            self.last_ns = now_ns;
            self.latencies.record(now_ns.saturating_sub(intended_ns));
        }
        let point = ((now_ns / POINT_NS) as usize).min(POINTS_MAX - 1);
        if self.points.len() <= point {
            self.points.resize(point + 1, 0);
        }
        self.points[point] += records;
    }

    /// Takes in what another thread has counted in the same window.
    pub(crate) fn add(&mut self, other: &Self) {
        assert_eq!(self.window, other.window, "threads measure the same stretch of time");
        self.records += other.records;
        self.requests += other.requests;
        self.records_measured += other.records_measured;
        self.last_ns = self.last_ns.max(other.last_ns);
        self.latencies.add(&other.latencies);
        self.is_exhausted |= other.is_exhausted;
        self.points.resize(self.points.len().max(other.points.len()), 0);
        self.points.iter_mut().zip(&other.points).for_each(|(sum, more)| *sum += more);
    }

    /// Seconds that were measured: the window, or up to the last record where the work ended sooner.
    pub(crate) fn seconds(&self) -> f64 {
        let ends_itself = self.is_exhausted || self.window.end_ns == u64::MAX;
        let end_ns = if ends_itself { self.last_ns } else { self.window.end_ns };
        end_ns.saturating_sub(self.window.start_ns) as f64 / 1e9
    }

    pub(crate) fn records_per_second(&self) -> f64 {
        if self.records_measured == 0 { 0.0 } else { self.records_measured as f64 / self.seconds() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values_within_three_digits() {
        let mut latencies = Latencies::new();
        (1..=1_000).for_each(|thousand| latencies.record(thousand * 1_000));
        let close = |found: f64, expected: f64| (found - expected).abs() <= expected / 500.0;
        for (percent, expected_us) in [(50.0, 500.0), (90.0, 900.0), (99.0, 990.0), (99.9, 999.0)] {
            let found = latencies.percentile_us(percent);
            assert!(close(found, expected_us), "{percent}: {found}");
        }
        assert!(close(latencies.max_us(), 1_000.0));
    }

    #[test]
    fn only_what_ends_inside_the_window_is_measured() {
        let mut tally = Tally::new(Window { start_ns: 1_000_000_000, end_ns: 3_000_000_000 });
        for at_ns in [999_999_999, 1_000_000_000, 2_999_999_999, 3_000_000_000] {
            tally.done(10, at_ns - 500, at_ns);
        }
        assert_eq!((tally.records, tally.requests, tally.records_measured), (40, 4, 20));
        assert_eq!(tally.latencies.len(), 2);
        assert!((tally.records_per_second() - 10.0).abs() < 1e-9);
        assert_eq!((tally.points[9], tally.points[10], tally.points[29], tally.points[30]), (10, 10, 10, 10));
    }

    #[test]
    fn work_that_ends_by_itself_is_measured_up_to_its_last_record() {
        let mut tally = Tally::new(Window { start_ns: 0, end_ns: u64::MAX });
        tally.done(100, 0, 250_000_000);
        tally.done(100, 0, 500_000_000);
        assert!((tally.records_per_second() - 400.0).abs() < 1e-9);
    }

    #[test]
    fn threads_add_up_to_one_tally() {
        let window = Window { start_ns: 0, end_ns: 1_000_000_000 };
        let (mut one, mut two) = (Tally::new(window), Tally::new(window));
        one.done(1, 0, 100);
        two.done(2, 0, 900_000_000);
        one.add(&two);
        assert_eq!((one.records, one.requests, one.latencies.len(), one.points.len()), (3, 2, 2, 10));
    }
}
