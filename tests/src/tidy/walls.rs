//! Owns the rules on locks, clocks, files, threads and `unsafe` in code; crates as such are for the manifests' rules.

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::{Finding, SourceFile, Tree};

/// Crates whose state has one owner each.
const LOCK_FREE: [&str; 2] = ["core/src/", "server/src/"];
/// Path, and what to do instead.
const SHARED: [(&str, &str); 11] = [
    ("Arc", "one shard owns its state: use `Rc`, or send a command"),
    ("Mutex", "one shard owns its state: send a command"),
    ("RwLock", "one shard owns its state: send a command"),
    ("sync::atomic", "one shard owns its state: use `Cell`"),
    ("std::fs", "reach files through the `Disk` port, or through io"),
    ("std::net", "reach sockets through io"),
    ("std::thread", "threads are io's"),
    ("Instant::now", "time is an argument; only io reads a clock"),
    ("SystemTime::now", "time is an argument; only io reads a clock"),
    ("HashMap", "hash order is not deterministic: use `BTreeMap` or an index vector"),
    ("HashSet", "hash order is not deterministic: use `BTreeSet`"),
];
/// Addresses are values, not sockets.
const ADDRESSES: [&str; 7] =
    ["AddrParseError", "IpAddr", "Ipv4Addr", "Ipv6Addr", "SocketAddr", "SocketAddrV4", "SocketAddrV6"];
const ATOMICS: [&str; 12] = ["Bool", "I16", "I32", "I64", "I8", "Isize", "Ptr", "U16", "U32", "U64", "U8", "Usize"];

/// Where `unsafe` may stand.
const UNSAFE_PLACES: [&str; 4] = ["io/", "loadgen/src/probe/", "loadgen/src/probe.rs", "tests/"];
/// Crates that bind themselves in their first lines.
const SAFE_CRATES: [&str; 2] = ["protocol/src/lib.rs", "core/src/lib.rs"];

/// No locks, no atomics, no `Arc`, no clock, no hash order where one shard owns each piece of state.
pub(super) fn lock_free(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files().filter(|(file, _)| LOCK_FREE.iter().any(|place| file.path.starts_with(place)))
    {
        for path in rust.paths().iter().filter(|path| !file.is_for_tests(path.line)) {
            let is_address = path.segments.last().is_some_and(|last| ADDRESSES.contains(&last.as_str()));
            let shared = SHARED.iter().find(|(name, _)| path.contains(name) && !(*name == "std::net" && is_address));
            let is_atomic =
                |segment: &String| segment.strip_prefix("Atomic").is_some_and(|kind| ATOMICS.contains(&kind));
            let advice = match shared {
                Some((_, instead)) => instead,
                None if path.segments.iter().any(is_atomic) => "one shard owns its state: use `Cell`",
                None => continue,
            };
            findings.push(Finding::new(&file.path, path.line, format!("`{}`: {advice}", path.segments.join("::"))));
        }
    }
    findings
}

/// `unsafe` lives in io, in the load generator's probe and in tests.
pub(super) fn unsafe_places(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        if !UNSAFE_PLACES.iter().any(|place| file.path.starts_with(place)) {
            let uses = rust.paths().into_iter().filter(|path| path.segments.iter().any(|segment| segment == "unsafe"));
            findings.extend(uses.map(|path| Finding::new(&file.path, path.line, "no `unsafe` here: it lives in io")));
        }
        let mut inner = rust.attributes().into_iter().filter(|attribute| attribute.is_inner);
        let mut forbids = || inner.any(|attribute| words(&attribute.tokens) == ["forbid", "unsafe_code"]);
        if SAFE_CRATES.contains(&file.path.as_str()) && !forbids() {
            findings.push(Finding::new(&file.path, 1, "add `#![forbid(unsafe_code)]`"));
        }
    }
    findings
}

/// All words of an attribute, groups opened.
fn words(trees: &[TokenTree]) -> Vec<String> {
    let mut found = Vec::new();
    for tree in trees {
        match tree {
            TokenTree::Ident(name) => found.push(name.to_string()),
            TokenTree::Group(group) => {
                let inner: TokenStream = group.stream();
                found.extend(words(&inner.into_iter().collect::<Vec<TokenTree>>()));
            }
            _ => {}
        }
    }
    found
}

/// Each `unsafe` block and `unsafe impl` names the fact that makes it sound.
pub(super) fn safety_notes(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        let mut notes =
            SafetyNotes { lines: file.text.lines().collect(), file, openings: Vec::new(), findings: Vec::new() };
        notes.visit_file(&rust.syntax);
        findings.append(&mut notes.findings);
    }
    findings
}

struct SafetyNotes<'tree> {
    lines: Vec<&'tree str>,
    file: &'tree SourceFile,
    /// First lines of the items and statements around the place visited, outermost first.
    openings: Vec<usize>,
    findings: Vec<Finding>,
}

impl SafetyNotes<'_> {
    /// A note stands right above the line, attributes and other comments between them allowed.
    fn is_noted(&self, line: usize) -> bool {
        let above = self.lines[..line - 1].iter().rev().map(|line| line.trim_start());
        let mut near = above.take_while(|line| line.starts_with("//") || line.starts_with("#["));
        self.lines[line - 1].contains("// SAFETY:") || near.any(|line| line.starts_with("// SAFETY:"))
    }

    fn check(&mut self, line: usize) {
        let opening = self.openings.last().copied().unwrap_or(line);
        if !self.is_noted(line) && !self.is_noted(opening) {
            let advice = "put a `// SAFETY:` note right above: which fact makes it sound, and where it is kept";
            self.findings.push(Finding::new(&self.file.path, line, advice));
        }
    }
}

impl<'ast> Visit<'ast> for SafetyNotes<'_> {
    fn visit_stmt(&mut self, node: &'ast syn::Stmt) {
        self.openings.push(node.span().start().line);
        visit::visit_stmt(self, node);
        self.openings.pop();
    }

    fn visit_item(&mut self, node: &'ast syn::Item) {
        self.openings.push(node.span().start().line);
        visit::visit_item(self, node);
        self.openings.pop();
    }

    fn visit_expr_unsafe(&mut self, node: &'ast syn::ExprUnsafe) {
        self.check(node.unsafe_token.span.start().line);
        visit::visit_expr_unsafe(self, node);
    }

    fn visit_item_impl(&mut self, node: &'ast syn::ItemImpl) {
        if let Some(token) = &node.unsafety {
            self.check(token.span.start().line);
        }
        visit::visit_item_impl(self, node);
    }
}
