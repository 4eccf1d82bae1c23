//! Plots as SVG: latency over percentiles, throughput over time; owns axes and curves; knows no row and no target.

use crate::tally::{Latencies, POINT_NS};
use std::fmt::Write;

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
/// What axes and their words take.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 50.0;
/// A letter of a legend, on the average.
const LETTER: f64 = 5.2;
/// Curves that have a colour of their own, `c0` and so on in the page's style.
const COLOURS: usize = 5;

/// A curve. Curves of one name that follow each other share a colour.
#[derive(Clone, Debug)]
struct Curve {
    name: String,
    colour: usize,
    is_dashed: bool,
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn class(&self) -> String {
        format!("curve c{}{}", self.colour % COLOURS, if self.is_dashed { " dashed" } else { "" })
    }
}

/// An axis: from, to, and where words stand.
struct Axis {
    from: f64,
    to: f64,
    marks: Vec<(f64, String)>,
}

impl Axis {
    fn share(&self, value: f64) -> f64 {
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Decades that hold all of the values, which are logarithms.
    fn decades(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = bounds(values);
        let (from, to) = (least.floor(), most.ceil().max(least.floor() + 1.0));
        let marks = (from as i32..=to as i32).map(|power| (f64::from(power), micros(10_f64.powi(power)))).collect();
        Self { from, to, marks }
    }

    /// From 0 to a round number above all values.
    fn linear(values: impl Iterator<Item = f64>, unit: impl Fn(f64) -> String) -> Self {
        let (_, most) = bounds(values);
        let most = if most > 0.0 { most } else { 1.0 };
        let power = 10_f64.powf(most.log10().floor());
        let step = [0.2, 0.5, 1.0, 2.0].map(|step| step * power).into_iter().find(|step| most / step <= 6.0);
        let step = step.unwrap_or(power * 2.0);
        let count = (most / step).ceil();
        let marks = (0..=count as u32).map(|at| (f64::from(at) * step, unit(f64::from(at) * step))).collect();
        Self { from: 0.0, to: count * step, marks }
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)))
}

/// A time in microseconds, with the unit that suits it.
fn micros(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{} s", us / 1e6),
        us if us >= 1e3 => format!("{} ms", us / 1e3),
        us => format!("{us} µs"),
    }
}

/// A count, shortened.
fn short(value: f64) -> String {
    let (value, unit) = match value {
        value if value >= 1e6 => (value / 1e6, " M"),
        value if value >= 1e3 => (value / 1e3, " k"),
        value => (value, ""),
    };
    format!("{}{unit}", (value * 100.0).round() / 100.0)
}

/// Latency over percentiles, from the median to the last in 100,000, both axes logarithmic.
pub(super) fn latencies(curves: &[(String, bool, Latencies)]) -> Option<String> {
    let nines = |percent: f64| -(1.0 - percent / 100.0).log10();
    let curves: Vec<Curve> = curves
        .iter()
        .filter(|(_, _, latencies)| latencies.len() > 0)
        .enumerate()
        .map(|(colour, (name, is_dashed, latencies))| {
            // A percentile that fewer than one value lies above says nothing.
            let most = (latencies.len() as f64).log10().min(5.0).max(nines(50.0));
            let steps = (0..=100).map(|step| nines(0.0) + most * f64::from(step) / 100.0);
            let point = |nines: f64| {
                let us = latencies.percentile_us(100.0 * (1.0 - 10_f64.powf(-nines)));
                (nines, us.max(0.001).log10())
            };
            Curve { name: name.clone(), colour, is_dashed: *is_dashed, points: steps.map(point).collect() }
        })
        .collect();
    let values = curves.iter().flat_map(|curve| &curve.points).map(|(_, y)| *y);
    let y = Axis::decades(values);
    let marks = [50.0, 90.0, 99.0, 99.9, 99.99, 99.999];
    let marks = marks.map(|percent| (nines(percent), format!("{percent} %")));
    let x = Axis { from: 0.0, to: 5.0, marks: marks.into() };
    draw("latency over percentiles", &curves, &x, &y)
}

/// Records a second over time, a curve for each run; those of one part, which follow each other, in one colour.
pub(super) fn throughput(runs: &[(String, &[u64])]) -> Option<String> {
    let point_s = POINT_NS as f64 / 1e9;
    let (mut curves, mut colour) = (Vec::<Curve>::new(), 0);
    for (name, points) in runs {
        // The last point may be cut short.
        let whole = &points[..points.len().saturating_sub(1)];
        if whole.len() < 2 {
            continue;
        }
        colour += usize::from(curves.last().is_some_and(|last| last.name != *name));
        let point = |(at, records): (usize, &u64)| ((at as f64 + 0.5) * point_s, *records as f64 / point_s);
        let points = whole.iter().enumerate().map(point).collect();
        curves.push(Curve { name: name.clone(), colour, is_dashed: false, points });
    }
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let x = Axis::linear(all().map(|(x, _)| *x), |seconds| format!("{} s", short(seconds)));
    let y = Axis::linear(all().map(|(_, y)| *y), |rate| format!("{}/s", short(rate)));
    draw("throughput over time", &curves, &x, &y)
}

fn draw(title: &str, curves: &[Curve], x: &Axis, y: &Axis) -> Option<String> {
    if curves.is_empty() {
        return None;
    }
    let place = |point: &(f64, f64)| {
        let across = LEFT + x.share(point.0) * (WIDTH - LEFT - RIGHT);
        (across, HEIGHT - BOTTOM - y.share(point.1) * (HEIGHT - TOP - BOTTOM))
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
         <text class=\"title\" x=\"{LEFT}\" y=\"10\">{title}</text>"
    );
    for (value, word) in &y.marks {
        let (_, at) = place(&(x.from, *value));
        let (end, word_end, word_at) = (WIDTH - RIGHT, LEFT - 6.0, at + 3.5);
        add(&mut svg, format_args!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"));
        add(&mut svg, format_args!("<text x=\"{word_end}\" y=\"{word_at:.1}\" text-anchor=\"end\">{word}</text>"));
    }
    for (value, word) in &x.marks {
        let (at, _) = place(&(*value, y.from));
        let (low, word_at) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 13.0);
        add(&mut svg, format_args!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{low}\"/>"));
        add(&mut svg, format_args!("<text x=\"{at:.1}\" y=\"{word_at}\" text-anchor=\"middle\">{word}</text>"));
    }
    for curve in curves {
        let points: Vec<String> =
            curve.points.iter().map(place).map(|(across, down)| format!("{across:.1},{down:.1}")).collect();
        add(&mut svg, format_args!("<polyline class=\"{}\" points=\"{}\"/>", curve.class(), points.join(" ")));
    }
    legend(&mut svg, curves);
    Some(svg + "</svg>")
}

/// The names of the curves, each once, in as many lines as they need.
fn legend(svg: &mut String, curves: &[Curve]) {
    let (mut across, mut down, mut last) = (LEFT, HEIGHT - BOTTOM + 27.0, None);
    for curve in curves.iter().filter(|curve| last.replace(&curve.name) != Some(&curve.name)) {
        let width = 30.0 + LETTER * curve.name.chars().count() as f64;
        if across > LEFT && across + width > WIDTH {
            (across, down) = (LEFT, down + 13.0);
        }
        let (class, name, end, word_start, word_at) =
            (curve.class(), &curve.name, across + 14.0, across + 18.0, down + 3.0);
        add(
            svg,
            format_args!(
                "<line class=\"{class}\" x1=\"{across:.1}\" x2=\"{end:.1}\" y1=\"{down}\" y2=\"{down}\"/>\
                 <text x=\"{word_start:.1}\" y=\"{word_at}\">{name}</text>"
            ),
        );
        across += width;
    }
}

fn add(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("text can always be added to");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_curve_for_each_that_has_values() {
        let mut latencies = Latencies::new();
        (1..=1_000).for_each(|thousand| latencies.record(thousand * 1_000));
        let curves = [("acks".to_owned(), false, latencies), ("bare".to_owned(), true, Latencies::new())];
        let svg = super::latencies(&curves).unwrap();
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(svg.contains("99.9 %") && svg.contains("1 ms"), "{svg}");
        assert_eq!(super::latencies(&[]), None);
    }

    #[test]
    fn axes_reach_beyond_the_greatest_value_in_round_steps() {
        let axis = Axis::linear([0.0, 730.0].into_iter(), short);
        assert_eq!((axis.from, axis.to, axis.marks.len()), (0.0, 800.0, 5));
        let axis = Axis::decades([1.7, 3.2].into_iter());
        let words: Vec<&str> = axis.marks.iter().map(|(_, word)| word.as_str()).collect();
        assert_eq!(words, ["10 µs", "100 µs", "1 ms", "10 ms"]);
    }

    #[test]
    fn throughput_counts_tenths_of_a_second_as_rates() {
        let runs: [(String, &[u64]); 3] =
            ["write", "write", "read"].map(|name| (name.to_owned(), &[100, 200, 300, 50][..]));
        let svg = throughput(&runs).unwrap();
        assert!(svg.contains("3 k/s"), "{svg}");
        let counts = ["<polyline class=\"curve c0", "<polyline class=\"curve c1", ">write</text>", ">read</text>"];
        assert_eq!(counts.map(|found| svg.matches(found).count()), [2, 1, 1, 1], "{svg}");
        assert_eq!(throughput(&[("run 1".to_owned(), &[])]), None);
    }
}
