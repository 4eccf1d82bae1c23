//! Owns the rules that tie documents to each other and to the tests that they name; never judges their prose.

use std::collections::BTreeSet;

use toml::Value;

use super::text::prose;
use super::{Finding, RULES, SourceFile, Tree};

const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";
const README: &str = "README.md";

/// Every page of docs/ can be reached from the two pages that a reader starts with.
pub(super) fn linked_docs(tree: &Tree) -> Vec<Finding> {
    let starts = || [ARCHITECTURE, README].into_iter().filter_map(|path| tree.file(path));
    let linked: BTreeSet<String> = starts().flat_map(links).collect();
    tree.files()
        .iter()
        .filter(|file| file.path.strip_prefix("docs/").is_some_and(|name| !name.contains('/') && name.ends_with(".md")))
        .filter(|file| !linked.contains(&file.path))
        .filter(|file| file.path != ARCHITECTURE || tree.file(README).is_some())
        .map(|file| Finding::new(&file.path, 1, format!("link the page from {ARCHITECTURE} or {README}")))
        .collect()
}

/// Targets of a page's links, from the root of the tree.
fn links(page: &SourceFile) -> Vec<String> {
    let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let targets = page.text.split("](").skip(1).filter_map(|rest| rest.split([')', '#', ' ']).next());
    let resolve = |target: &str| {
        let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
        for part in target.split('/') {
            match part {
                "." | "" => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.join("/")
    };
    targets.map(resolve).collect()
}

/// Each trap of the table names tests or lints that exist; a function that is no test proves nothing.
pub(super) fn traps(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.file(ARCHITECTURE) else { return Vec::new() };
    let tests: BTreeSet<String> = tree.rust_files().flat_map(|(_, rust)| rust.tests()).map(|(name, _)| name).collect();
    let mut findings = Vec::new();
    for (line, cell) in trap_cells(page) {
        for name in cell.split('`').skip(1).step_by(2) {
            let last = name.rsplit("::").next().unwrap_or(name);
            if !tests.contains(last) && !is_lint(tree, name) {
                let advice =
                    format!("`{name}` is no test, lint or tidy rule of this tree: write it, or correct the row");
                findings.push(Finding::new(&page.path, line, advice));
            }
        }
    }
    findings
}

/// Last cells of the tables under a heading that speaks of traps.
fn trap_cells(page: &SourceFile) -> Vec<(usize, &str)> {
    let mut depth = None;
    let mut cells = Vec::new();
    for (number, line) in prose(page) {
        let level = line.chars().take_while(|character| *character == '#').count();
        if level > 0 {
            let is_deeper = depth.is_some_and(|depth| level > depth);
            if !is_deeper {
                depth = line.to_lowercase().contains("traps").then_some(level);
            }
        } else if depth.is_some() && line.starts_with('|') {
            let cell = line.trim_end().trim_end_matches('|').rsplit('|').next();
            cells.extend(cell.map(|cell| (number, cell)));
        }
    }
    cells
}

/// A tidy rule, a lint of the workspace, or a path that a clippy.toml disallows.
fn is_lint(tree: &Tree, name: &str) -> bool {
    let lint = name.rsplit("::").next().unwrap_or(name);
    let tables =
        tree.file("Cargo.toml").and_then(|file| file.toml.as_ref()?.get("workspace")?.get("lints")?.as_table());
    let is_in_table = tables.into_iter().flatten().any(|(_, table)| table.get(lint).is_some());
    let is_disallowed = |file: &SourceFile| {
        let lists = file.toml.iter().flatten().filter_map(|(_, value)| value.as_array()).flatten();
        lists.filter_map(|entry| entry.get("path").and_then(Value::as_str)).any(|path| path == name)
    };
    is_in_table
        || RULES.iter().any(|rule| rule.name == name)
        || tree.files().iter().any(|file| file.path.ends_with("clippy.toml") && is_disallowed(file))
}
