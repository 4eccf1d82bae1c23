//! Owns the rules on names: banned ones, those that contradict docs, tests that claim nothing; blind to what code does.

use super::rust::{Definition, Kind};
use super::{Finding, SourceFile, Tree};

/// Beginnings of names that say nothing.
const EMPTY_VERBS: [&str; 2] = ["get_", "do_"];
/// Words of types that gather what has no home.
const EMPTY_NOUNS: [&str; 2] = ["manager", "helper"];
/// Modules, files and folders for what has no home.
const DRAWERS: [&str; 8] = ["common", "helper", "helpers", "manager", "misc", "util", "utils", "handle_stuff"];

/// Words that never stand for the thing in broker code, where, and the word of DESIGN's table.
const NEVER: [(&str, &[Kind], &str); 6] = [
    ("chunk", &[Kind::Type], "record, record batch or segment"),
    ("stream", &[Kind::Type], "topic, partition or record batch"),
    ("subscriber", &[Kind::Type, Kind::Value, Kind::Function, Kind::Variant], "consumer group or member"),
    ("backlog", &[Kind::Type, Kind::Value, Kind::Function], "lag"),
    ("flushed", &[Kind::Value, Kind::Function], "written end or durable end"),
    ("term", &[Kind::Type, Kind::Value, Kind::Function], "leader epoch"),
];
/// Where the words of the table are the words of the code. Kafka's codec keeps Kafka's.
const WORDED: [&str; 2] = ["core/src/", "protocol/src/"];
const KAFKA: &str = "protocol/src/kafka";

/// A claim has at least this many words.
const TEST_NAME_WORDS: usize = 3;

/// `DiskManager` and `disk_manager` are both `disk`, `manager`.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for character in name.chars() {
        if character == '_' || (character.is_uppercase() && is_open && !name.contains('_')) {
            is_open = false;
        }
        if character == '_' {
            continue;
        }
        if !is_open {
            words.push(String::new());
        }
        is_open = true;
        words.last_mut().expect("one was pushed").extend(character.to_lowercase());
    }
    words
}

/// No `get_`, `do_`, `Manager`, `Helper`, `utils`, `common`.
pub(super) fn banned_names(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> = tree.files().iter().filter_map(drawer).collect();
    for (file, rust) in tree.rust_files() {
        for definition in rust.definitions().iter().filter(|definition| !definition.is_dictated) {
            findings.extend(empty_name(definition).map(|advice| Finding::new(&file.path, definition.line, advice)));
        }
    }
    findings
}

fn drawer(file: &SourceFile) -> Option<Finding> {
    let part = file.path.split('/').map(|part| part.split('.').next().unwrap_or(part));
    let name = part.into_iter().find(|name| DRAWERS.contains(name))?;
    Some(Finding::new(&file.path, 1, format!("`{name}` is a drawer: name the file after what it owns")))
}

fn empty_name(definition: &Definition) -> Option<String> {
    let name = definition.name.as_str();
    if let Some(verb) = EMPTY_VERBS.iter().find(|verb| name.starts_with(*verb)) {
        return Some(format!("`{name}`: drop `{verb}`, say what it yields or does"));
    }
    let is_drawer = DRAWERS.contains(&name.to_lowercase().as_str());
    let is_home = matches!(definition.kind, Kind::Type | Kind::Module);
    if is_home && (is_drawer || words(name).iter().any(|word| EMPTY_NOUNS.contains(&word.as_str()))) {
        return Some(format!("`{name}`: name it after what it owns"));
    }
    (name == "handle_stuff").then(|| format!("`{name}`: say what it does"))
}

/// One word for one thing, in the docs, in core and in protocol.
pub(super) fn design_words(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let worded = |file: &SourceFile| WORDED.iter().any(|p| file.path.starts_with(p)) && !file.path.starts_with(KAFKA);
    for (file, rust) in tree.rust_files().filter(|(file, _)| worded(file)) {
        for definition in rust.definitions().iter().filter(|definition| !definition.is_dictated) {
            let name = definition.name.as_str();
            let words = words(name);
            for (never, kinds, instead) in NEVER {
                if kinds.contains(&definition.kind) && words.iter().any(|word| word == never) {
                    let advice = format!("`{name}`: the word is {instead}, never `{never}`");
                    findings.push(Finding::new(&file.path, definition.line, advice));
                }
            }
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            if words.ends_with(&["stable", "offset"]) && words.first() != Some(&"last") {
                let advice = format!("`{name}`: the word is durable end, or last stable offset");
                findings.push(Finding::new(&file.path, definition.line, advice));
            }
        }
    }
    findings
}

/// A test's name is a claim.
pub(super) fn test_names(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, rust) in tree.rust_files() {
        for (name, line) in rust.tests() {
            if words(&name).len() < TEST_NAME_WORDS {
                let advice =
                    format!("`{name}` claims nothing: name the test after what it proves, like `truncates_torn_tail`");
                findings.push(Finding::new(&file.path, line, advice));
            }
        }
    }
    findings
}
