//! Broken versions of the broker that tests have to notice: owns that none of them gets out; knows no other fact.

use coulee_tests::broker::program;
use std::collections::BTreeSet;
use std::path::Path;

/// Adds the names of the mutations in the sources below `folder`.
fn find(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let after = source.split(r#"coulee_mutation = ""#).skip(1);
            names.extend(after.filter_map(|after| Some(after.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn no_mutation_is_in_the_program() {
    let mut names = BTreeSet::new();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for package in ["protocol", "core", "io", "server", "client", "cli"] {
        find(&workspace.join(package).join("src"), &mut names);
    }
    assert!(names.contains("writes_wait_for_sync"), "{names:?}");
    // What is compiled out of this build is so of a release too, which has less in it.
    let release = program().parent().unwrap().with_file_name("release/coulee");
    for program in [program(), release].into_iter().filter(|program| program.exists()) {
        let bytes = std::fs::read(&program).unwrap();
        for name in names.iter().map(String::as_bytes) {
            let found = bytes.windows(name.len()).any(|window| window == name);
            assert!(!found, "{} has {}", program.display(), String::from_utf8_lossy(name));
        }
    }
}
