//! Does what README.md says, word by word, with a real broker; knows nothing of what the words are about.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use coulee_tests::broker::{Broker, Folder, address, program};

/// A fenced block of a page.
#[derive(Debug)]
struct Block {
    place: String,
    /// What stands behind the fence.
    kind: String,
    text: String,
    /// The comment on the line before.
    marker: Option<String>,
}

impl Block {
    fn is_to_run(&self) -> bool {
        let language = self.kind.split(' ').next().unwrap_or_default();
        ["sh", "bash", "rust"].contains(&language) && !self.is_excused()
    }

    fn is_excused(&self) -> bool {
        let reason = self.marker.as_ref().and_then(|marker| marker.strip_prefix("not run: "));
        reason.is_some_and(|reason| reason.len() >= 20)
    }

    fn is_background(&self) -> bool {
        self.marker.as_deref() == Some("run in the background")
    }
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(workspace().join(page)).expect("a page can be read");
    let (mut blocks, mut open, mut before) = (Vec::new(), None::<Block>, "");
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(kind)) => {
                let marker = before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                let place = format!("{page}:{}", index + 1);
                let marker = marker.map(str::to_owned);
                open = Some(Block { place, kind: kind.to_owned(), text: String::new(), marker });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
        before = line;
    }
    assert!(open.is_none(), "{page}: a block is not closed");
    blocks
}

/// Bash with the program in its path, in a folder of its own. Variables stand for what a page leaves at its default.
fn shell(folder: &Folder, script: &str) -> Command {
    let mut command = Command::new("bash");
    let programs = program().parent().expect("a program lies in a directory").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder.path()).env_clear();
    command.env("PATH", format!("{}:{path}", programs.display())).env("COULEE_NATIVE__LISTEN", "127.0.0.1:0");
    command.env("COULEE_POOL__BYTES", "2MiB").env("COULEE_MEMORY__SHARD", "64MiB");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Starts what a page has run beside the rest, and gives the broker's address.
fn serve(folder: &Folder, block: &Block) -> (Running, String) {
    let mut command = shell(folder, &format!("exec {}", block.text));
    let mut running = Running(command.stderr(Stdio::null()).spawn().expect("bash is there"));
    let stdout = running.0.stdout.take().expect("it is piped");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("the ready line is text");
    (running, address(&line))
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn every_snippet_of_the_pages_is_run_or_says_why_not() {
    let mut pages = vec!["README.md".to_owned()];
    for entry in fs::read_dir(workspace().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        pages.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    for block in pages.iter().flat_map(|page| blocks(page)).filter(Block::is_to_run) {
        let is_run = ["README.md:", "docs/GROUPS.md:"].iter().any(|page| block.place.starts_with(page));
        assert!(is_run, "{}: nobody runs this; write <!-- not run: REASON --> before it, or run it here", block.place);
    }
}

#[test]
fn the_shell_of_the_readme_does_what_it_says() {
    let folder = Folder::new();
    let (mut broker, mut ran, mut last) = (None, 0, String::new());
    for block in blocks("README.md") {
        if block.kind == "text" {
            assert_eq!(last, block.text, "{}", block.place);
        }
        if block.kind != "sh" || block.is_excused() {
            continue;
        }
        if block.is_background() {
            broker = Some(serve(&folder, &block));
            continue;
        }
        let (_, address) = broker.as_ref().expect("a broker is started before it is used");
        let ran_with = shell(&folder, &block.text).env("COULEE_ADDRESS", address).output().unwrap();
        let Output { status, stdout, stderr } = ran_with;
        assert!(status.success(), "{}: {status}\n{}{}", block.place, text(stdout), text(stderr));
        (last, ran) = (text(stdout), ran + 1);
        assert!(!last.is_empty(), "{}: what is shown to a reader prints something", block.place);
    }
    assert!(broker.is_some() && ran >= 2, "{ran} blocks were run");
}

#[test]
fn the_page_about_groups_does_what_it_says() {
    let (folder, broker) = (Folder::new(), Broker::start());
    let (mut ran, mut last) = (0, String::new());
    for block in blocks("docs/GROUPS.md").into_iter().filter(|block| !block.kind.starts_with("rust")) {
        if block.kind == "text" {
            assert_eq!(last, block.text, "{}", block.place);
            continue;
        }
        let ran_with = shell(&folder, &block.text).env("COULEE_ADDRESS", broker.address()).output().unwrap();
        let Output { status, stdout, stderr } = ran_with;
        assert!(status.success(), "{}: {status}\n{}{}", block.place, text(stdout), text(stderr));
        (last, ran) = (text(stdout), ran + 1);
    }
    assert_eq!(ran, 6, "blocks of the page");
}

#[test]
fn the_rust_of_the_readme_is_that_of_the_examples_and_runs() {
    let broker = Broker::start();
    let mut printed = Vec::new();
    let both = blocks("README.md").into_iter().chain(blocks("docs/GROUPS.md"));
    for block in both.filter(|block| block.kind.starts_with("rust") && block.is_to_run()) {
        let path = PathBuf::from(block.kind.strip_prefix("rust ").expect("the block names its file"));
        let source = fs::read_to_string(workspace().join(&path)).unwrap();
        // What a file says of itself is not for the page.
        let shown = source.split_once("\n\n").map(|(_, rest)| rest);
        assert_eq!(shown, Some(block.text.as_str()), "{}: this is not {}", block.place, path.display());
        let own = std::env::current_exe().unwrap();
        let example = own.ancestors().nth(2).unwrap().join("examples").join(path.file_stem().unwrap());
        assert!(
            example.exists(),
            "run `cargo build -p coulee-client --examples --profile test` to make {}",
            example.display()
        );
        let Output { status, stdout, stderr } = Command::new(&example).arg(broker.address()).output().unwrap();
        assert!(status.success(), "{}: {}", path.display(), text(stderr));
        printed.push(text(stdout));
    }
    let consumed: String = (0..10).map(|number| format!("{number} hello {number}\n")).collect();
    assert_eq!((printed.len(), &printed[2]), (3, &consumed), "a group reads the same");
    assert_eq!((printed[0].lines().count(), printed[1].as_str()), (10, consumed.as_str()));
    drop(broker.stop());
}

/// Runs the demo with fewer events. Gives its exit code and what it printed.
fn demo(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = Folder::new();
    let mut command = Command::new("python3");
    command.arg(workspace().join(".ci/demo.py")).env("COULEE", program()).env("TMPDIR", folder.path());
    command.env("DEMO_EVENTS", "20000").envs(variables.iter().copied());
    let output = command.output().expect("python3 is there");
    (output.status.code(), text(output.stdout) + &text(output.stderr))
}

#[test]
fn the_demo_proves_what_it_says() {
    let (code, printed) = demo(&[]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("acknowledged events are there, once and in order\n"), "{printed}");
}

#[test]
fn the_demo_fails_and_names_what_is_missing_when_a_segment_is_deleted() {
    let (code, printed) = demo(&[("DEMO_DELETE_SEGMENT", "1")]);
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains(" acknowledged events are missing\n  partition "), "{printed}");
}
