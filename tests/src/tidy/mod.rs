//! Owns the table of tidy rules, the style guide that runs; each rule sees files only, no rule knows another.
//!
//! A rule reads a [`Tree`] and answers with [`Finding`]s. The tree is either the workspace (what git tracks or would
//! track) or one of `tests/fixtures/tidy/<rule>/`, which exist to prove that each rule can be broken. A new rule is a
//! function, a line in [`RULES`], and a fixture: broken files called `*.fixture`, near misses beside them, and
//! `findings`, which lists the places that break the rule.

mod docs;
mod habits;
mod layout;
mod manifests;
mod names;
mod rust;
mod text;
mod tree;
mod walls;

use std::fmt;

pub use tree::{SourceFile, Tree};

/// A place that breaks a rule, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Path from the root of the tree.
    pub path: String,
    /// Counts from one.
    pub line: usize,
    /// What to do.
    pub advice: String,
}

impl Finding {
    fn new(path: &str, line: usize, advice: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.path, self.line, self.advice)
    }
}

/// One rule: its name is also the name of the fixture that breaks it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Lower case, words joined by hyphens.
    pub name: &'static str,
    /// All places of the tree that break the rule.
    pub check: fn(&Tree) -> Vec<Finding>,
}

impl Rule {
    /// The findings as `file:line: rule: what to do`, in order of place.
    #[must_use]
    pub fn report(&self, tree: &Tree) -> Vec<String> {
        let mut findings = (self.check)(tree);
        findings.sort();
        findings
            .iter()
            .map(|finding| format!("{}:{}: {}: {}", finding.path, finding.line, self.name, finding.advice))
            .collect()
    }
}

const fn rule(name: &'static str, check: fn(&Tree) -> Vec<Finding>) -> Rule {
    Rule { name, check }
}

/// Every rule, in the order in which they are reported.
pub const RULES: &[Rule] = &[
    rule("files-parse", layout::files_parse),
    rule("top-level", layout::top_level),
    rule("module-lines", layout::module_lines),
    rule("path-steps", layout::path_steps),
    rule("file-size", layout::file_size),
    rule("function-size", layout::function_size),
    rule("crate-edges", manifests::crate_edges),
    rule("crate-walls", manifests::crate_walls),
    rule("crate-lints", manifests::crate_lints),
    rule("locked-crates", manifests::locked_crates),
    rule("clippy-thresholds", manifests::clippy_thresholds),
    rule("dependency-reasons", manifests::dependency_reasons),
    rule("banned-names", names::banned_names),
    rule("design-words", names::design_words),
    rule("test-names", names::test_names),
    rule("lock-free", walls::lock_free),
    rule("unsafe-places", walls::unsafe_places),
    rule("safety-notes", walls::safety_notes),
    rule("waivers", habits::waivers),
    rule("unfinished", habits::unfinished),
    rule("unwraps", habits::unwraps),
    rule("sleeps", habits::sleeps),
    rule("machine-paths", text::machine_paths),
    rule("line-shape", text::line_shape),
    rule("markdown-title", text::markdown_title),
    rule("linked-docs", docs::linked_docs),
    rule("traps", docs::traps),
];
