//! The report as one page that needs nothing else: no script, no font, no picture from elsewhere; measures nothing.

use super::Suite;
use super::measured::{Measured, Part};
use super::plot;
use super::told::{COLUMNS, counts};
use super::verdict::{Ending, Verdict, number, verdicts};
use crate::machine;
use std::time::UNIX_EPOCH;

/// Colours for light and for dark; figures in columns.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1a1d21; --dim: #5d6672; --paper: #fbfbfa; --box: #ffffff; --rule: #d9dde2;
  --good: #13703a; --bad: #b3261e; --c0: #0b5fbf; --c1: #b25000; --c2: #3a7d44; --c3: #8236a8; --c4: #a0174c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa4b0; --paper: #14171a; --box: #1b1f24;
  --rule: #343b44; --good: #5fd38a; --bad: #ff8a80; --c0: #6db3ff; --c1: #ffab5c; --c2: #7fd08b; --c3: #cf9bea;
  --c4: #ff8ab0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 0; }
p { margin: .3rem 0; } .dim { color: var(--dim); } code { font-size: .9em; overflow-wrap: anywhere; }
.met { color: var(--good); font-weight: 600; } .missed { color: var(--bad); font-weight: 600; }
section { background: var(--box); border: 1px solid var(--rule); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .5rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--dim); font-weight: 500; font-size: .85em; } th:first-child, td:first-child { text-align: left; }
td.words, th.words { text-align: left; white-space: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1rem; margin-top: .8rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font: 10px system-ui, sans-serif; }
svg .title { fill: var(--ink); } .grid { stroke: var(--rule); stroke-width: .7; }
.curve { fill: none; stroke-width: 1.6; } .dashed { stroke-dasharray: 4 3; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); }
details summary { cursor: pointer; color: var(--dim); }
";

/// The whole page.
pub(super) fn page(suite: &Suite, ending: Ending) -> String {
    let rows: String = suite.rows.iter().map(|row| section(row, &suite.rows)).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>Coulee: target numbers</title><style>{STYLE}</style></head><body>\n{}{}\n{rows}</body></html>\n",
        head(suite, ending),
        overview(suite)
    )
}

fn head(suite: &Suite, ending: Ending) -> String {
    let (met, missed, failed) = counts(suite);
    let class = if ending == Ending::Met { "met" } else { "missed" };
    let began = suite.began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut lines = format!(
        "<h1>Coulee: target numbers</h1>\
         <p><span class=\"{class}\">{met} met, {missed} missed, {failed} failed</span> in {:.0} s{}</p>\
         <p class=\"dim\">{} · {} · <code>{}</code></p>\
         <p class=\"dim\">Medians over the runs of a row. Recycled rows found {:.1} GiB of zeroed files in the pool. \
         MB are 10⁶ bytes of values. Every latency of an open loop counts from the intended send time.</p>",
        suite.seconds,
        if suite.is_quick { ", --quick: one short run of each row" } else { "" },
        utc(began),
        escape(&suite.machine),
        escape(&suite.command),
        suite.pool_bytes as f64 / f64::from(1 << 30),
    );
    let failures = suite.rows.iter().filter_map(|row| Some((&row.spec.id, row.fault.as_ref()?)));
    for (id, fault) in failures {
        lines += &format!("<p class=\"missed\">{} failed: {}</p>", escape(id), escape(fault));
    }
    lines + &machine::caution().map_or_else(String::new, |caution| format!("<p class=\"missed\">{caution}</p>"))
}

/// Every target in one table.
fn overview(suite: &Suite) -> String {
    let mut lines = "<section><div class=\"wide\"><table><tr><th>row</th><th class=\"words\">target</th><th>found</th>\
                     <th></th></tr>"
        .to_owned();
    for row in &suite.rows {
        for verdict in verdicts(row, &suite.rows) {
            let (class, word) = class_of(&verdict);
            let found = verdict.found.map_or_else(|| "not measured".to_owned(), number);
            let id = escape(&row.spec.id);
            lines += &format!(
                "<tr><td><a href=\"#{id}\">{id}</a></td><td class=\"words\">{}</td><td>{found}</td>\
                 <td class=\"{class}\">{word}</td></tr>",
                escape(&verdict.wanted)
            );
        }
    }
    lines + "</table></div></section>"
}

const fn class_of(verdict: &Verdict) -> (&'static str, &'static str) {
    if verdict.is_met { ("met", "met") } else { ("missed", "missed") }
}

fn section(row: &Measured, rows: &[Measured]) -> String {
    let mut lines = format!("<section id=\"{}\"><h2>{}</h2>", escape(&row.spec.id), escape(&row.spec.title));
    lines += &row.spec.note.as_ref().map_or_else(String::new, |note| format!("<p class=\"dim\">{}</p>", escape(note)));
    if let Some(reason) = &row.skipped {
        lines += &format!("<p class=\"missed\">not measured: {}</p>", escape(reason));
    }
    if let Some(fault) = &row.fault {
        lines += &format!("<p class=\"missed\">failed: {}</p>", escape(fault));
    }
    lines += &row.caution().map_or_else(String::new, |caution| format!("<p class=\"missed\">{caution}</p>"));
    if !row.parts.is_empty() {
        lines += &table(row);
    }
    for verdict in verdicts(row, rows) {
        let (class, word) = class_of(&verdict);
        let found = verdict.found.map_or_else(|| "not measured".to_owned(), number);
        lines += &format!("<p><span class=\"{class}\">{word}</span> {}: {found}</p>", escape(&verdict.wanted));
    }
    let parameters: Vec<String> = row.parameters.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let counted: String = row.parts.iter().map(counted).collect();
    lines += &format!(
        "<details><summary>parameters and counts</summary><p><code>{}</code></p>{counted}</details>\
         <div class=\"plots\">",
        escape(&parameters.join(" "))
    );
    lines + &plots(row) + "</div></section>\n"
}

fn table(row: &Measured) -> String {
    let heads: String = COLUMNS.iter().map(|(head, ..)| format!("<th>{head}</th>")).collect();
    let line = |part: &Part| {
        let cell = |metric| part.value(metric).map_or_else(|| "–".to_owned(), number);
        let cells: String = COLUMNS.iter().map(|(_, metric, _)| format!("<td>{}</td>", cell(*metric))).collect();
        format!("<tr><td>{}</td>{cells}</tr>", escape(&part.name))
    };
    let lines: String = row.parts.iter().map(line).collect();
    format!("<div class=\"wide\"><table><tr><th>part</th>{heads}</tr>{lines}</table></div>")
}

/// What was counted in a part, all its runs together.
fn counted(part: &Part) -> String {
    let Some(first) = part.runs.first() else { return String::new() };
    let word = |name: &String| format!("{name} {}", number(part.count(name) as f64));
    let words: Vec<String> = first.counts.keys().map(word).collect();
    format!("<p>{}: <code>{}</code></p>", escape(&part.name), escape(&words.join(" · ")))
}

fn plots(row: &Measured) -> String {
    let mut curves = Vec::new();
    for part in &row.parts {
        curves.extend(part.latencies().map(|latencies| (escape(&part.name), false, latencies)));
    }
    let bare = row.parts.first().map(Part::bare_latencies).unwrap_or_default();
    curves.extend(bare.into_iter().map(|(name, latencies)| (escape(&name), true, latencies)));
    let mut svgs: Vec<String> = plot::latencies(&curves).into_iter().collect();
    let mut runs = Vec::new();
    for part in &row.parts {
        runs.extend(part.runs.iter().map(|run| (escape(&part.name), run.points.as_slice())));
    }
    svgs.extend(plot::throughput(&runs));
    svgs.concat()
}

/// Text as it may stand in a page.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Seconds since 1970 as a date and time in UTC (days to a date after Howard Hinnant's `civil_from_days`).
///
/// 1,700,000,000 is 19,675 days and 80,000 s: 2023-11-14 22:13 UTC.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3_600, rest % 3_600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::told::tests::suite;

    #[test]
    fn the_page_stands_by_itself_and_shows_every_row() {
        let suite = suite();
        let page = page(&suite, Ending::of(&suite.rows));
        assert!(page.starts_with("<!doctype html>") && page.ends_with("</body></html>\n"));
        for foreign in ["http:", "https:", "<script", "<link", "<img", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert!(page.contains("first &amp; &lt;best&gt;") && page.contains("1 met, 0 missed, 1 failed"));
        assert!(page.contains("b failed: partition 7: the offset of the next batch is 3, expected 2"));
        assert!(page.contains("prefers-color-scheme: dark"));
        assert_eq!(page.matches("<section").count(), 3);
    }

    #[test]
    fn a_time_is_told_in_utc() {
        assert_eq!(utc(1_700_000_000), "2023-11-14 22:13 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
    }
}
