//! Owns the rules on where things lie and how long they may be; knows paths, first lines and line counts.

use std::collections::BTreeSet;

use super::rust::{self, Kind};
use super::{Finding, Tree};

/// Folders at the top of the tree. A new one needs a paragraph in docs/ARCHITECTURE.md and a line here.
const FOLDERS: [&str; 14] = [
    ".ci", "bench", "cli", "client", "core", "docs", "fuzz", "gateway", "io", "loadgen", "protocol", "server",
    "streams", "tests",
];
/// Files at the top of the tree.
const ROOT_FILES: [&str; 18] = [
    ".dockerignore",
    ".editorconfig",
    ".gitattributes",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "clippy.toml",
    "deny.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

/// Step, crate, module (without `.rs` or `/mod.rs`): the way of a record through the broker.
const STEPS: [(char, &str, &str); 9] = [
    ('①', "io", "io/src/net"),
    ('②', "protocol", "protocol/src/frame"),
    ('③', "protocol", "protocol/src/api"),
    ('④', "core", "core/src/shard"),
    ('⑤', "core", "core/src/partition"),
    ('⑥', "core", "core/src/log"),
    ('⑦', "core", "core/src/log/segment"),
    ('⑧', "core", "core/src/log/appender"),
    ('⑨', "core", "core/src/shard/acks"),
];

/// A file has fewer lines than this, tests not counted.
const FILE_LINES_END: usize = 800;
/// A function has fewer lines than this, from its signature to its closing brace.
const FUNCTION_LINES_END: usize = 70;
/// A first line shorter than this says nothing.
const MODULE_LINE_MIN: usize = 20;

/// What doesn't parse would pass every other rule unread.
pub(super) fn files_parse(tree: &Tree) -> Vec<Finding> {
    let broken = |file: &super::SourceFile| {
        file.parse_error
            .as_ref()
            .map(|(line, error)| Finding::new(&file.path, *line, format!("make it parse: {error}")))
    };
    tree.files().iter().filter_map(broken).collect()
}

/// The top of the tree is a closed list.
pub(super) fn top_level(tree: &Tree) -> Vec<Finding> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for file in tree.files() {
        let top = file.top();
        let is_known = if top == file.path { ROOT_FILES.contains(&top) } else { FOLDERS.contains(&top) };
        if !is_known && seen.insert(top) {
            let advice =
                format!("`{top}` is not on the list of the top level: move it, or extend the list in layout.rs");
            findings.push(Finding::new(&file.path, 1, advice));
        }
    }
    findings
}

/// The first line of a module says what it owns and what it refuses to know.
pub(super) fn module_lines(tree: &Tree) -> Vec<Finding> {
    let advice = "begin with one `//! ` line: what the module owns; what it refuses to know (with the `;`)";
    tree.files()
        .iter()
        .filter(|file| file.has_extension(&["rs"]))
        .filter(|file| {
            let first = file.text.lines().next().unwrap_or_default();
            !first.starts_with("//! ") || first.chars().count() < MODULE_LINE_MIN || !first.contains(';')
        })
        .map(|file| Finding::new(&file.path, 1, advice))
        .collect()
}

/// The way of a record can be read from first lines: each step stands in its module and nowhere else.
pub(super) fn path_steps(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (step, package, module) in STEPS {
        let is_module = |path: &str| path.ends_with(".rs") && rust::module_path(path) == module;
        let home = tree.files().iter().find(|file| is_module(&file.path));
        match home {
            Some(file) if !file.text.lines().next().unwrap_or_default().contains(step) => {
                findings.push(Finding::new(
                    &file.path,
                    1,
                    format!("name step {step} of the data path in the first line"),
                ));
            }
            None => {
                let manifest = format!("{package}/Cargo.toml");
                if tree.file(&manifest).is_some() {
                    findings.push(Finding::new(
                        &manifest,
                        1,
                        format!("step {step} of the data path lives in {module}.rs"),
                    ));
                }
            }
            Some(_) => {}
        }
        let strangers = tree.files().iter().filter(|file| file.has_extension(&["rs"]) && !is_module(&file.path));
        for stranger in strangers.filter(|file| file.text.lines().next().unwrap_or_default().contains(step)) {
            findings.push(Finding::new(
                &stranger.path,
                1,
                format!("step {step} of the data path belongs to {module}.rs"),
            ));
        }
    }
    findings
}

/// Files stay under 800 lines, lines of tests not counted.
pub(super) fn file_size(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, _) in tree.rust_files() {
        let count = file.lines().filter(|(line, _)| !file.is_for_tests(*line)).count();
        if count >= FILE_LINES_END {
            let advice = format!("{count} lines without tests: split where the nouns split, below {FILE_LINES_END}");
            findings.push(Finding::new(&file.path, 1, advice));
        }
    }
    findings
}

/// Functions stay under 70 lines, tests too.
pub(super) fn function_size(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        for function in rust.definitions().iter().filter(|definition| definition.kind == Kind::Function) {
            let count = function.end_line - function.line + 1;
            if count >= FUNCTION_LINES_END {
                let advice = format!("`{}` has {count} lines: keep it below {FUNCTION_LINES_END}", function.name);
                findings.push(Finding::new(&file.path, function.line, advice));
            }
        }
    }
    findings
}
