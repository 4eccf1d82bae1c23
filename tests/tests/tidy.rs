//! Runs the style guide over the workspace and each rule over its fixture; refuses to know what any rule checks.

use std::fs;
use std::path::{Path, PathBuf};

use coulee_tests::tidy::{RULES, Rule, Tree};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

fn fixture(name: &str) -> PathBuf {
    workspace().join("tests/fixtures/tidy").join(name)
}

/// How the report on a rule's fixture differs from its file `findings`, which has `path:line` on each line, in order.
fn difference(rule: &Rule) -> Option<String> {
    let folder = fixture(rule.name);
    let listed = fs::read_to_string(folder.join("findings")).unwrap_or_else(|error| panic!("{}: {error}", rule.name));
    let expected: Vec<&str> = listed.lines().collect();
    let report = rule.report(&Tree::of_fixture(&folder));
    let place = |line: &String| line.split(": ").next().expect("split yields at least one part").to_owned();
    let found: Vec<String> = report.iter().map(place).collect();
    assert!(!expected.is_empty(), "{}: the fixture has to break its rule", rule.name);
    (found != expected).then(|| format!("{}: expected {expected:#?}, found {report:#?}", rule.name))
}

#[test]
fn the_tree_keeps_every_tidy_rule() {
    let tree = Tree::of_workspace(workspace());
    assert!(tree.file("Cargo.toml").is_some(), "git lists no files of {}", workspace().display());
    let report: Vec<String> = RULES.iter().flat_map(|rule| rule.report(&tree)).collect();
    assert!(report.is_empty(), "{} places to tidy:\n{}", report.len(), report.join("\n"));
}

#[test]
fn each_rule_is_broken_by_its_fixture() {
    let differences: Vec<String> = RULES.iter().filter_map(difference).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn the_clean_fixture_breaks_no_rule() {
    let tree = Tree::of_fixture(&fixture("clean"));
    assert!(!tree.files().is_empty(), "the clean fixture is empty");
    let report: Vec<String> = RULES.iter().flat_map(|rule| rule.report(&tree)).collect();
    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[test]
fn each_fixture_belongs_to_a_rule() {
    for entry in fs::read_dir(fixture("")).expect("the folder of fixtures") {
        let name = entry.expect("an entry of a readable folder").file_name().into_string().expect("a name in UTF-8");
        assert!(name == "clean" || RULES.iter().any(|rule| rule.name == name), "no rule is called {name}");
    }
}
