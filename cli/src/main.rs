//! The command line: parses, calls server or client, prints; holds no logic of its own.
#![forbid(unsafe_code)]

mod arguments;
mod broker;
mod code;
mod command;
mod events;
mod failure;
mod key_field;
mod lines;
mod logging;
mod machine;
mod offset;
mod record_format;
mod sheet;
mod terminal;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::arguments::Arguments;
use crate::code::LocalCode;
use crate::failure::{Failure, Stop};
use crate::terminal::Terminal;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return unparsed(&error),
    };
    let terminal = Terminal::new(arguments.shared.quiet, arguments.shared.no_color);
    match command::run(arguments, terminal) {
        // Whoever read as much as they wanted is served.
        Ok(()) | Err(Stop::PipeClosed) => ExitCode::SUCCESS,
        Err(Stop::Failed(failure)) => {
            terminal.fail(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Help and versions are data; the rest is a failure as any other.
fn unparsed(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return if error.print().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let no_color = std::env::args_os().any(|argument| argument == "--no-color");
    let terminal = Terminal::new(false, no_color);
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        terminal.say(error.render().to_string().trim_end());
        return ExitCode::from(failure::Exit::Usage as u8);
    }
    let failure = usage(error);
    terminal.fail(&failure);
    ExitCode::from(failure.exit as u8)
}

/// What clap says, in our form: its first line is the message, its tips are hints.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let message = lines.next().unwrap_or("the command line can't be read");
    let mut failure = Failure::local(LocalCode::Usage, message.trim_start_matches("error: "));
    let mut hints = Vec::new();
    for line in lines {
        match line.strip_prefix("tip: ") {
            Some(tip) => hints.push(tip.to_owned()),
            None if line.starts_with("For more information") => hints.push("see every flag with: --help".to_owned()),
            None => failure = failure.note(line),
        }
    }
    failure.hint(hints.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(line: &str) -> String {
        let error = Arguments::try_parse_from(line.split(' ')).expect_err("the line is wrong");
        usage(&error).text(false)
    }

    #[test]
    fn usage_errors_have_the_form_of_all_errors() {
        let expected = "error[E2000]: unexpected argument '--ofset' found\n  \
                        Usage: coulee consume --offset <start|end|N|@TIME> <TOPIC>\n  \
                        hint: a similar argument exists: '--offset'\n        see every flag with: --help\n  \
                        docs: docs/errors.md#e2000\n";
        assert_eq!(printed("coulee consume t --ofset 5"), expected);
        let expected = "error[E2000]: invalid value 'x' for '--offset <start|end|N|@TIME>': \
                        expected start, end, an offset or @time\n  \
                        hint: see every flag with: --help\n  docs: docs/errors.md#e2000\n";
        assert_eq!(printed("coulee consume t --offset x"), expected);
    }
}
