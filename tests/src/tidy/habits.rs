//! Owns the rules on what is left behind: waived lints, ignored tests, marks, unwraps, sleeps; knows no crate by name.

use proc_macro2::{TokenStream, TokenTree};

use super::rust::Attribute;
use super::{Finding, SourceFile, Tree};

/// Written in two halves so that the rule doesn't find itself.
const MARKS: [&str; 3] = [concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// Macros for what isn't there yet, or should be gone.
const PLACEHOLDERS: [&str; 3] = ["dbg", "todo", "unimplemented"];
const SLEEPS: [&str; 2] = ["thread::sleep", "time::sleep"];
/// Documents may name the marks that code may not hold.
const MARKED_FILES: [&str; 7] = ["lock", "proto", "py", "rs", "sh", "toml", "yml"];

/// A waived lint carries its reason, and no test is ignored.
pub(super) fn waivers(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        for attribute in rust.attributes() {
            let advice = if is_unreasoned(&attribute.tokens) {
                "give the waived lint its `reason = \"…\"`"
            } else if is_ignored(&attribute) {
                "no ignored tests: fix it, or assert the wrong behaviour and say so"
            } else {
                continue;
            };
            findings.push(Finding::new(&file.path, attribute.line, advice));
        }
    }
    findings
}

/// `allow(…)` or `expect(…)` without a reason, inside `cfg_attr(…)` too.
fn is_unreasoned(trees: &[TokenTree]) -> bool {
    let has_word = |stream: TokenStream, wanted: &str| {
        stream.into_iter().any(|tree| matches!(tree, TokenTree::Ident(name) if name == wanted))
    };
    match trees {
        [TokenTree::Ident(name), TokenTree::Group(lints), ..] if name == "allow" || name == "expect" => {
            !has_word(lints.stream(), "reason")
        }
        [TokenTree::Ident(name), TokenTree::Group(inner), ..] if name == "cfg_attr" => {
            let inner: Vec<TokenTree> = inner.stream().into_iter().collect();
            (0..inner.len()).any(|start| is_unreasoned(&inner[start..]))
        }
        _ => false,
    }
}

/// `ignore`, `ignore = "…"`, `cfg_attr(…, ignore)`.
fn is_ignored(attribute: &Attribute) -> bool {
    match attribute.tokens.as_slice() {
        [TokenTree::Ident(name), TokenTree::Group(inner)] if name == "cfg_attr" => {
            let inner: Vec<TokenTree> = inner.stream().into_iter().collect();
            inner.windows(2).any(|pair| pair[0].to_string() == "," && pair[1].to_string() == "ignore")
        }
        [first, ..] => first.to_string() == "ignore",
        [] => false,
    }
}

/// Nothing is left for later inside code: no placeholder macros, no marks.
pub(super) fn unfinished(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files() {
        if let Some(rust) = &file.rust {
            for (name, line) in rust.macro_calls().into_iter().filter(|(name, _)| PLACEHOLDERS.contains(&name.as_str()))
            {
                findings.push(Finding::new(&file.path, line, format!("finish it, or leave it out: `{name}!`")));
            }
        }
        if file.has_extension(&MARKED_FILES) || !file.path.contains('.') {
            for (number, line) in file.lines() {
                let mut words = line.split(|character: char| !character.is_alphanumeric() && character != '_');
                let mark = words.find(|word| MARKS.contains(word));
                findings
                    .extend(mark.map(|mark| Finding::new(&file.path, number, format!("settle what `{mark}` marks"))));
            }
        }
    }
    findings
}

/// Outside tests a value that can't be missing says why: `expect("why this cannot happen")`.
pub(super) fn unwraps(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files().filter(|(file, _)| !is_beside_the_product(file)) {
        for path in rust.paths() {
            let is_unwrap = path.is_after_dot && path.segments == ["unwrap"];
            if is_unwrap && !file.is_for_tests(path.line) {
                let advice = "handle it, or `expect(\"why this cannot happen\")`";
                findings.push(Finding::new(&file.path, path.line, advice));
            }
        }
    }
    findings
}

/// Tests, benches, examples and fuzz targets.
fn is_beside_the_product(file: &SourceFile) -> bool {
    let is_beside = |folder: &str| ["tests", "benches", "examples", "fuzz"].contains(&folder);
    file.path.split('/').any(is_beside)
}

/// A test waits for an event, never for a time.
pub(super) fn sleeps(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        let folders: Vec<&str> = file.path.split('/').collect();
        let is_test_file = folders.contains(&"tests") && !folders.contains(&"examples");
        for path in rust.paths() {
            let is_sleep = SLEEPS.iter().any(|sleep| path.contains(sleep));
            if is_sleep && (is_test_file || file.is_for_tests(path.line)) {
                findings.push(Finding::new(&file.path, path.line, "wait for what should happen, not for a time"));
            }
        }
    }
    findings
}
