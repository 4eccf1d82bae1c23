//! Owns the rules on bare text: paths of one machine, lengths of lines, blanks, titles; understands no language.

use super::{Finding, SourceFile, Tree};

/// Folders of the machine that it was written on. Halved so that the rule doesn't find itself.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/tm", "p/")];
/// A line that has to name such a path says so.
const WAIVER: &str = "tidy: allow path";

/// Width of a line of code; rustfmt.toml has the same number.
const COLUMNS_MAX: usize = 120;

/// The tree builds anywhere.
pub(super) fn machine_paths(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        for (number, line) in file.lines().filter(|(_, line)| !line.contains(WAIVER)) {
            let path = MACHINE_PATHS.iter().find(|path| line.match_indices(**path).any(|(at, _)| is_root(&line[..at])));
            if let Some(path) = path {
                let advice = format!(
                    "`{path}` is a path of one machine: take it as an argument, or note `{WAIVER}` with the reason"
                );
                findings.push(Finding::new(&file.path, number, advice));
            }
        }
    }
    findings
}

/// Whether a path that starts after `before` is absolute: `target/…` and `$HOME/…` go on, a blank or a quote doesn't.
fn is_root(before: &str) -> bool {
    !before.ends_with(|last: char| last.is_alphanumeric() || "._-~}*)".contains(last))
}

/// Code fits its columns, has no tabs, and no line ends in blanks.
pub(super) fn line_shape(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| file.has_extension(&["rs", "md", "toml"])) {
        for (number, line) in file.lines() {
            findings.extend(shape(file, line).map(|advice| Finding::new(&file.path, number, advice)));
        }
    }
    findings
}

fn shape(file: &SourceFile, line: &str) -> Option<String> {
    let is_rust = file.has_extension(&["rs"]);
    let columns = line.chars().count();
    if line.ends_with(char::is_whitespace) {
        Some("remove the blanks at the end of the line".to_owned())
    } else if is_rust && line.contains('\t') {
        Some("indent with blanks, write `\\t` in strings".to_owned())
    } else if is_rust && columns > COLUMNS_MAX && !line.contains("http") {
        Some(format!("{columns} columns: at most {COLUMNS_MAX}"))
    } else {
        None
    }
}

/// A document has one title.
pub(super) fn markdown_title(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| file.has_extension(&["md"])) {
        let titles: Vec<usize> =
            prose(file).filter(|(_, line)| line.starts_with("# ")).map(|(number, _)| number).collect();
        match titles.as_slice() {
            [_] => {}
            [] => findings.push(Finding::new(&file.path, 1, "give the document one `# ` title")),
            [_, others @ ..] => {
                let extra =
                    others.iter().map(|number| Finding::new(&file.path, *number, "a document has one `# ` title"));
                findings.extend(extra);
            }
        }
    }
    findings
}

/// The lines of a document that are not in a fenced block.
pub(super) fn prose(file: &SourceFile) -> impl Iterator<Item = (usize, &str)> {
    let mut fence: Option<&str> = None;
    file.lines().filter(move |(_, line)| {
        let mark = ["```", "~~~"].into_iter().find(|mark| line.trim_start().starts_with(mark));
        match (fence, mark) {
            (None, Some(opening)) => fence = Some(opening),
            (Some(opening), Some(closing)) if opening == closing => fence = None,
            (None, None) => return true,
            _ => {}
        }
        false
    })
}
