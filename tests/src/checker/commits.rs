//! Committed offsets as registers: which of all commits a reader may be told; knows no partition.

use coulee_protocol::ids::Offset;

/// A commit, with its place in the history.
#[derive(Clone, Copy, Debug)]
struct Commit {
    offset: Option<Offset>,
    begun: usize,
    /// When it was acknowledged; later than all where it was not.
    done: usize,
    failed: bool,
}

/// The committed offset of one group and partition.
#[derive(Debug)]
pub(super) struct Register {
    commits: Vec<Commit>,
}

impl Default for Register {
    fn default() -> Self {
        Self { commits: vec![Commit { offset: None, begun: 0, done: 0, failed: false }] }
    }
}

impl Register {
    /// A commit begins, as event number `at` of the history.
    pub(super) fn begin(&mut self, offset: Offset, at: usize) {
        self.commits.push(Commit { offset: Some(offset), begun: at, done: usize::MAX, failed: false });
    }

    /// The commit that began as event `begun` was acknowledged, or has surely failed.
    pub(super) fn end(&mut self, begun: usize, at: usize, failed: bool) {
        let Some(commit) = self.commits.iter_mut().rev().find(|commit| commit.begun == begun) else { return };
        commit.failed = failed;
        if !failed {
            commit.done = at;
        }
    }

    /// What a reader who asked as event `asked` may be told: every commit that no later one has surely overwritten.
    pub(super) fn allowed(&self, asked: usize) -> Vec<Option<Offset>> {
        let surely = self.commits.iter().filter(|commit| !commit.failed && commit.done < asked);
        let last_begun = surely.map(|commit| commit.begun).max().unwrap_or(0);
        let left = self.commits.iter().filter(|commit| !commit.failed && commit.done >= last_begun);
        left.map(|commit| commit.offset).collect()
    }
}
