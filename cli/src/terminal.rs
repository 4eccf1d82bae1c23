//! Where words go: owns standard error, colours and questions; data on standard output is none of its business.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::code::LocalCode;
use crate::failure::Failure;

/// How to speak to whoever sits there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// Whether standard error shows colours.
    pub(crate) is_coloured: bool,
    /// Whether somebody reads standard error as it comes, and wants to.
    pub(crate) is_watched: bool,
    is_quiet: bool,
}

impl Terminal {
    /// For the standard error of this process.
    pub(crate) fn new(is_quiet: bool, no_color: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let wants_none = no_color || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { is_coloured: is_terminal && !wants_none, is_watched: is_terminal && !is_quiet, is_quiet }
    }

    /// A line about what was done.
    pub(crate) fn say(&self, line: &str) {
        if !self.is_quiet {
            write_error(&format!("{line}\n"));
        }
    }

    /// A line about what is wrong: said even where nothing else is.
    pub(crate) fn warn(&self, line: &str) {
        let (yellow, plain) = if self.is_coloured { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        write_error(&format!("{yellow}warning{plain}: {line}\n"));
    }

    /// The command that is useful next: only for people.
    pub(crate) fn next(&self, command: &str) {
        if self.is_watched {
            write_error(&format!("next: {command}\n"));
        }
    }

    /// A failure.
    pub(crate) fn fail(&self, failure: &Failure) {
        write_error(&failure.text(self.is_coloured));
    }

    /// Asks; only a yes is one. Without a terminal there is nobody to ask.
    pub(crate) fn confirm(&self, question: &str) -> Result<(), Failure> {
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            let message = format!("{question}: not confirmed, since there is no terminal to ask on");
            return Err(Failure::local(LocalCode::NotConfirmed, message).hint("say yes beforehand with: -y"));
        }
        write_error(&format!("{question}? [y/N] "));
        let mut answer = String::new();
        let is_read = io::stdin().lock().read_line(&mut answer).is_ok();
        if is_read && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
            return Ok(());
        }
        Err(Failure::local(LocalCode::NotConfirmed, format!("{question}: not confirmed, nothing was changed")))
    }
}

/// If standard error is gone there is no place left to say so.
fn write_error(text: &str) {
    let mut stderr = io::stderr().lock();
    if stderr.write_all(text.as_bytes()).is_ok() {
        let _nobody_to_tell = stderr.flush().is_err();
    }
}
