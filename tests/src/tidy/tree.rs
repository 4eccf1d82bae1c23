//! Owns the files that the rules read, each read and parsed once; knows nothing of any rule.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use super::rust::{self, Rust};

/// Fixtures of all tests: bytes and broken code, not part of the tree that has to be tidy.
const FIXTURES: &str = "tests/fixtures/";
/// Keeps cargo, rustfmt and the walk over the real tree from taking a fixture for code.
const FIXTURE_SUFFIX: &str = ".fixture";

/// A file of text. Files that are not UTF-8 never get here.
pub struct SourceFile {
    /// Path from the root of the tree, with `/`.
    pub path: String,
    /// The whole text.
    pub text: String,
    pub(super) rust: Option<Rust>,
    /// What keeps a `.rs` or `.toml` file from being understood, and the line.
    pub(super) parse_error: Option<(usize, String)>,
    pub(super) toml: Option<toml::Table>,
    /// Reached through `#[cfg(test)] mod name;` only.
    only_for_tests: bool,
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SourceFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SourceFile {
    fn parse(path: String, text: String) -> Self {
        let mut file = Self { path, text, rust: None, parse_error: None, toml: None, only_for_tests: false };
        if file.path.ends_with(".rs") {
            match Rust::parse(&file.text) {
                Ok(rust) => file.rust = Some(rust),
                Err(error) => file.parse_error = Some(error),
            }
        } else if file.path.ends_with(".toml") || file.path == "Cargo.lock" {
            match file.text.parse::<toml::Table>() {
                Ok(table) => file.toml = Some(table),
                Err(error) => {
                    let start = error.span().map_or(0, |span| span.start.min(file.text.len()));
                    let line = file.text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
                    file.parse_error = Some((line, error.message().to_owned()));
                }
            }
        }
        file
    }

    /// The folder at the top of the tree, or the file itself if it lies there.
    pub(super) fn top(&self) -> &str {
        self.path.split('/').next().expect("split yields at least one part")
    }

    pub(super) fn has_extension(&self, extensions: &[&str]) -> bool {
        Path::new(&self.path)
            .extension()
            .and_then(|found| found.to_str())
            .is_some_and(|found| extensions.contains(&found))
    }

    /// Lines with their numbers, which count from one.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.split_terminator('\n').enumerate().map(|(index, line)| (index + 1, line))
    }

    /// The first line that begins with `key` and goes on with something that is no part of a name, else line 1.
    pub(super) fn line_of_key(&self, key: &str) -> usize {
        let begins = |line: &str| {
            line.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with([' ', '=', '.']))
                || line.trim_end().ends_with(&format!("dependencies.{key}]"))
        };
        self.lines().find(|(_, line)| begins(line)).map_or(1, |(number, _)| number)
    }

    /// Whether a line is compiled for tests only. Folders of tests, benches and examples are a matter of the path.
    pub(super) fn is_for_tests(&self, line: usize) -> bool {
        self.only_for_tests || self.rust.as_ref().is_some_and(|rust| rust.is_for_tests(line))
    }
}

/// All files that a rule may look at, in order of their paths.
#[derive(Debug)]
pub struct Tree {
    files: Vec<SourceFile>,
}

impl Tree {
    /// The workspace as git sees it: tracked files, and new ones that are not ignored.
    ///
    /// # Panics
    /// When git can't list the files: the tidy test has no other list.
    #[must_use]
    pub fn of_workspace(root: &Path) -> Self {
        let listed = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .expect("git lists the files of the workspace");
        assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let names = String::from_utf8(listed.stdout).expect("paths of the workspace are UTF-8");
        let paths: BTreeSet<&str> =
            names.split('\0').filter(|name| !name.is_empty() && !name.starts_with(FIXTURES)).collect();
        Self::new(paths.into_iter().filter_map(|path| Some((path.to_owned(), read_text(&root.join(path))?))).collect())
    }

    /// A folder of `*.fixture` files as the tree that it stands for.
    ///
    /// # Panics
    /// When the folder can't be read.
    #[must_use]
    pub fn of_fixture(folder: &Path) -> Self {
        let mut texts = Vec::new();
        collect_fixtures(folder, "", &mut texts);
        texts.sort();
        Self::new(texts)
    }

    fn new(texts: Vec<(String, String)>) -> Self {
        let mut files: Vec<SourceFile> = texts.into_iter().map(|(path, text)| SourceFile::parse(path, text)).collect();
        let test_modules: Vec<String> = files.iter().flat_map(test_modules_of).collect();
        for file in &mut files {
            let module = rust::module_path(&file.path);
            file.only_for_tests = test_modules.iter().any(|test_module| {
                module.strip_prefix(test_module.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
        }
        Self { files }
    }

    /// All files, in order of their paths.
    #[must_use]
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// The file with this path, if the tree has it.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Files of Rust that parse.
    pub(super) fn rust_files(&self) -> impl Iterator<Item = (&SourceFile, &Rust)> {
        self.files.iter().filter_map(|file| Some((file, file.rust.as_ref()?)))
    }
}

/// `core/src/log` for `#[cfg(test)] mod faults;` becomes `core/src/log/faults`.
fn test_modules_of(file: &SourceFile) -> Vec<String> {
    let Some(rust) = &file.rust else { return Vec::new() };
    let module = rust::module_path(&file.path);
    rust.test_modules().iter().map(|name| format!("{module}/{name}")).collect()
}

/// `None` for what is not text, and for what git still lists but is gone.
fn read_text(path: &Path) -> Option<String> {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).ok(),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn collect_fixtures(folder: &Path, prefix: &str, texts: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.expect("an entry of a readable folder");
        let name = entry.file_name().into_string().expect("names of fixtures are UTF-8");
        if entry.path().is_dir() {
            collect_fixtures(&entry.path(), &format!("{prefix}{name}/"), texts);
        } else if let Some(name) = name.strip_suffix(FIXTURE_SUFFIX) {
            let text = read_text(&entry.path()).expect("fixtures are text");
            texts.push((format!("{prefix}{name}"), text));
        }
    }
}
