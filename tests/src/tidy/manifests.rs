//! Owns the rules on Cargo.toml, Cargo.lock, clippy.toml and deny.toml; reads text only and never runs cargo.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::{Finding, SourceFile, Tree};

/// Which crates a crate may name. An edge more is a commit of its own, with its reason in docs/ARCHITECTURE.md.
const EDGES: [(&str, &[&str]); 12] = [
    ("protocol", &[]),
    ("core", &["protocol"]),
    ("io", &["protocol", "core"]),
    ("server", &["protocol", "core", "io"]),
    ("client", &["protocol"]),
    ("gateway", &["client", "streams"]),
    ("streams", &["client"]),
    ("cli", &["protocol", "server", "client", "gateway", "streams"]),
    ("loadgen", &["protocol", "client"]),
    ("bench", &["protocol", "core", "io"]),
    ("fuzz", &["tests"]),
    ("tests", &["protocol", "core", "io", "server", "client", "gateway", "streams", "cli", "loadgen", "bench"]),
];

/// Which side of a wall an external crate, with its family (`tokio-util`), has to stay on.
enum Side {
    Only(&'static [&'static str]),
    Never(&'static [&'static str]),
}

const WALLS: [(&str, Side); 9] = [
    ("glommio", Side::Only(&["io"])),
    ("socket2", Side::Only(&["io"])),
    ("io-uring", Side::Only(&["io", "loadgen", "tests"])),
    ("axum", Side::Only(&["gateway"])),
    ("tokio", Side::Never(&["protocol", "core", "io", "server"])),
    ("memmap2", Side::Never(&["protocol", "core"])),
    ("rand", Side::Never(&["protocol", "core"])),
    ("libc", Side::Never(&["protocol", "core"])),
    ("tracing", Side::Never(&["protocol", "core"])),
];
/// Crates that no other crate may name in code either, through a re-export.
const UNNAMED: [&str; 2] = ["glommio", "socket2"];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// It has a workspace of its own, as cargo-fuzz wants it.
const FUZZ: &str = "fuzz";

/// The Cargo.toml of a crate, one folder below the top.
struct Manifest<'tree> {
    folder: &'tree str,
    file: &'tree SourceFile,
    table: &'tree Table,
}

fn manifests(tree: &Tree) -> Vec<Manifest<'_>> {
    tree.files().iter().filter_map(Manifest::of).collect()
}

impl<'tree> Manifest<'tree> {
    fn of(file: &'tree SourceFile) -> Option<Self> {
        let folder = file.path.strip_suffix("/Cargo.toml").filter(|folder| !folder.contains('/'))?;
        Some(Self { folder, file, table: file.toml.as_ref()? })
    }

    fn package(&self) -> Option<&'tree str> {
        self.table.get("package")?.get("name")?.as_str()
    }

    /// Package and line of each dependency of any kind, for any target. Renamed ones go by their real name.
    fn dependencies(&self, root: Option<&Table>) -> BTreeSet<(String, usize)> {
        let targets = self.table.get("target").and_then(Value::as_table).into_iter().flat_map(|table| table.values());
        let mut found = BTreeSet::new();
        for table in targets.filter_map(Value::as_table).chain([self.table]) {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                for (key, spec) in table.get(kind).and_then(Value::as_table).into_iter().flatten() {
                    let is_inherited = spec.get("workspace").and_then(Value::as_bool) == Some(true);
                    let inherited = || root?.get("workspace")?.get("dependencies")?.get(key);
                    let spec = if is_inherited { inherited() } else { Some(spec) };
                    let renamed = spec.and_then(|spec| spec.get("package")).and_then(Value::as_str);
                    found.insert((renamed.unwrap_or(key).to_owned(), self.file.line_of_key(key)));
                }
            }
        }
        found
    }
}

fn root_manifest(tree: &Tree) -> Option<&Table> {
    tree.file("Cargo.toml")?.toml.as_ref()
}

/// An arrow of the floor plan points to what is imported; no other edge exists.
pub(super) fn crate_edges(tree: &Tree) -> Vec<Finding> {
    let manifests = manifests(tree);
    let folders: BTreeMap<&str, &str> =
        manifests.iter().filter_map(|manifest| Some((manifest.package()?, manifest.folder))).collect();
    let mut findings = Vec::new();
    for manifest in &manifests {
        let allowed = EDGES.iter().find(|(from, _)| *from == manifest.folder).map_or(&[][..], |(_, to)| *to);
        for (package, line) in manifest.dependencies(root_manifest(tree)) {
            let folder = folders.get(package.as_str()).copied().or_else(|| package.strip_prefix("coulee-"));
            if let Some(folder) = folder
                && !allowed.contains(&folder)
            {
                let advice =
                    format!("no edge {} → {folder} in the floor plan: move the code, not the wall", manifest.folder);
                findings.push(Finding::new(&manifest.file.path, line, advice));
            }
        }
    }
    findings
}

/// Runtimes, sockets, clocks and randomness stay on their side of the walls.
pub(super) fn crate_walls(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for manifest in manifests(tree) {
        for (package, line) in manifest.dependencies(root_manifest(tree)) {
            for (name, side) in &WALLS {
                let is_member =
                    package.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']));
                let is_allowed = match side {
                    Side::Only(folders) => folders.contains(&manifest.folder),
                    Side::Never(folders) => !folders.contains(&manifest.folder),
                };
                if is_member && !is_allowed {
                    let advice = format!("{} may not depend on {package}: its wall keeps {name} out", manifest.folder);
                    findings.push(Finding::new(&manifest.file.path, line, advice));
                }
            }
        }
    }
    for (file, rust) in tree.rust_files().filter(|(file, _)| file.top() != "io") {
        for path in rust.paths() {
            let named = UNNAMED.iter().find(|name| path.segments.len() > 1 && path.contains(name));
            findings.extend(named.map(|name| Finding::new(&file.path, path.line, format!("only io names {name}"))));
        }
    }
    findings
}

/// One lint table for all crates.
pub(super) fn crate_lints(tree: &Tree) -> Vec<Finding> {
    manifests(tree)
        .iter()
        .filter(|manifest| manifest.folder != FUZZ)
        .filter(|manifest| {
            let inherited = manifest.table.get("lints").and_then(|lints| lints.get("workspace"));
            inherited.and_then(Value::as_bool) != Some(true)
        })
        .map(|manifest| Finding::new(&manifest.file.path, 1, "add `[lints]` with `workspace = true`"))
        .collect()
}

/// One entry of `bans.deny` in deny.toml.
struct Ban<'tree> {
    name: &'tree str,
    reason: &'tree str,
    /// Packages that may depend on it directly all the same.
    wrappers: Vec<&'tree str>,
}

impl<'tree> Ban<'tree> {
    fn of(entry: &'tree Value) -> Option<Self> {
        let wrappers = entry.get("wrappers").and_then(Value::as_array).into_iter().flatten();
        Some(Self {
            name: entry.get("crate")?.as_str()?,
            reason: entry.get("reason").and_then(Value::as_str).unwrap_or("see deny.toml"),
            wrappers: wrappers.filter_map(Value::as_str).collect(),
        })
    }
}

fn bans(deny: &Table) -> Vec<Ban<'_>> {
    let entries = deny.get("bans").and_then(|bans| bans.get("deny")).and_then(Value::as_array);
    entries.into_iter().flatten().filter_map(Ban::of).collect()
}

/// deny.toml's bans and sources, kept without cargo-deny: what Cargo.lock holds comes from crates.io and is not banned.
pub(super) fn locked_crates(tree: &Tree) -> Vec<Finding> {
    let Some(lock) = tree.file("Cargo.lock") else { return Vec::new() };
    let Some(deny) = tree.file("deny.toml").and_then(|file| file.toml.as_ref()) else {
        return vec![Finding::new("Cargo.lock", 1, "deny.toml has to say which crates and sources are banned")];
    };
    let packages: Vec<&Value> = lock
        .toml
        .as_ref()
        .and_then(|table| table.get("package"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .collect();
    let mut findings = Vec::new();
    for package in &packages {
        let text = |key: &str| package.get(key).and_then(Value::as_str);
        let Some(name) = text("name") else { continue };
        let line = lock.lines().find(|(_, line)| *line == format!("name = \"{name}\"")).map_or(1, |(line, _)| line);
        if let Some(source) = text("source").filter(|source| *source != CRATES_IO) {
            findings.push(Finding::new(
                &lock.path,
                line,
                format!("{name} comes from {source}: take it from crates.io"),
            ));
        }
        for ban in bans(deny).iter().filter(|ban| ban.name == name) {
            let outside = dependents(&packages, name).into_iter().find(|dependent| !ban.wrappers.contains(dependent));
            if outside.is_some() || ban.wrappers.is_empty() {
                let advice = format!("drop {name} (needed by {}): {}", outside.unwrap_or("nothing"), ban.reason);
                findings.push(Finding::new(&lock.path, line, advice));
            }
        }
    }
    findings
}

/// Packages of the lock file that depend on `name` directly.
fn dependents<'lock>(packages: &[&'lock Value], name: &str) -> Vec<&'lock str> {
    let needs = |package: &Value| {
        let needed = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        needed.filter_map(Value::as_str).any(|needed| needed.split(' ').next() == Some(name))
    };
    let names = packages.iter().filter(|package| needs(package)).filter_map(|package| package.get("name"));
    names.filter_map(Value::as_str).collect()
}

/// A crate's clippy.toml replaces the root's, so each repeats the thresholds.
pub(super) fn clippy_thresholds(tree: &Tree) -> Vec<Finding> {
    let Some(root) = tree.file("clippy.toml").and_then(|file| file.toml.as_ref()) else { return Vec::new() };
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| file.path.ends_with("/clippy.toml")) {
        let Some(table) = &file.toml else { continue };
        let is_scalar = |value: &Value| !value.is_array() && !value.is_table();
        let keys: BTreeSet<&String> =
            root.iter().chain(table).filter(|(_, value)| is_scalar(value)).map(|(key, _)| key).collect();
        for key in keys.into_iter().filter(|key| root.get(*key) != table.get(*key)) {
            let advice = match root.get(key) {
                Some(value) => format!("repeat the root's `{key} = {value}`"),
                None => format!("`{key}` is not in the root's clippy.toml: set it there, or nowhere"),
            };
            findings.push(Finding::new(&file.path, file.line_of_key(key), advice));
        }
    }
    findings
}

/// A dependency from outside has its reason beside its line or right above it, where its version is set.
pub(super) fn dependency_reasons(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.files().iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml")) {
        let lines: Vec<&str> = file.text.lines().collect();
        let is_section = |line: &str| line.starts_with('[');
        let mut is_in_dependencies = false;
        let mut depth = 0;
        for (index, line) in lines.iter().enumerate() {
            let code = without_comment(line);
            if depth == 0 && is_section(line) {
                let name = code.trim().trim_matches(['[', ']']);
                is_in_dependencies = name.rsplit('.').next().is_some_and(|last| last.ends_with("dependencies"));
                let rest = || lines[index + 1..].iter().take_while(|line| !is_section(line));
                let is_ours = || rest().any(|line| is_internal(line));
                if let Some((_, key)) = name.split_once("dependencies.")
                    && !is_ours()
                    && !has_reason(&lines, index, key)
                {
                    findings.push(Finding::new(&file.path, index + 1, reason_wanted(key)));
                }
                continue;
            }
            let key = code.split(['=', '.']).next().unwrap_or_default().trim();
            let is_entry = is_in_dependencies && depth == 0 && code.contains('=');
            if is_entry && !is_internal(code) && !has_reason(&lines, index, key) {
                findings.push(Finding::new(&file.path, index + 1, reason_wanted(key)));
            }
            depth += code.matches(['[', '{']).count();
            depth = depth.saturating_sub(code.matches([']', '}']).count());
        }
    }
    findings
}

fn reason_wanted(key: &str) -> String {
    format!("say beside the line or right above it why {key} is worth its reading")
}

/// Ours, or inherited from the root's manifest, which holds the reason.
fn is_internal(line: &str) -> bool {
    line.contains("workspace = true") || line.contains("path = \"")
}

fn without_comment(line: &str) -> &str {
    let is_comment = |(at, _): &(usize, &str)| line[..*at].matches('"').count().is_multiple_of(2);
    line.match_indices('#').find(is_comment).map_or(line, |(at, _)| &line[..at])
}

/// A comment beside the line, right above it, or above its paragraph if it names the crate.
fn has_reason(lines: &[&str], index: usize, key: &str) -> bool {
    let is_comment = |line: &str| line.trim_start().starts_with('#');
    let above = lines[..index].iter().rev().take_while(|line| !line.trim().is_empty() && !line.starts_with('['));
    without_comment(lines[index]).len() < lines[index].len()
        || (index > 0 && is_comment(lines[index - 1]))
        || above.filter(|line| is_comment(line)).any(|line| line.contains(key))
}
