//! `coulee completion`: owns what the scripts ask the broker for; commands and flags come from the arguments.
//!
//! The scripts of bash, zsh and fish ask `coulee __complete -- WORDS` first. It parses the words as the command line
//! they are, to see whether the last one is a topic's name, and prints the names; whatever is wrong, it says nothing.

use std::time::Duration;

use clap::{ArgMatches, CommandFactory};
use clap_complete::{Shell as Generator, generate};

use crate::arguments::{Arguments, Shell};
use crate::command::{Context, print, runtime};
use crate::failure::Stop;

/// Whoever presses a key waits no longer for a broker.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Prints the script for a shell.
pub(crate) fn run(shell: Shell) -> Result<(), Stop> {
    let script = script(shell);
    print(|out| std::io::Write::write_all(out, script.as_bytes()))
}

/// The generator does not report errors of writing, so it writes into memory.
fn script(shell: Shell) -> String {
    let (generator, topics) = match shell {
        Shell::Bash => (Generator::Bash, BASH_TOPICS),
        Shell::Zsh => (Generator::Zsh, ZSH_TOPICS),
        Shell::Fish => (Generator::Fish, FISH_TOPICS),
        Shell::Powershell => (Generator::PowerShell, ""),
    };
    let mut script = Vec::new();
    generate(generator, &mut Arguments::command(), "coulee", &mut script);
    let mut script = String::from_utf8(script).expect("the generator writes text");
    // The part that hands the function over to zsh is replaced.
    if let Some(end) = script.find("if [ \"$funcstack[1]\"").filter(|_| shell == Shell::Zsh) {
        script.truncate(end);
    }
    script + topics
}

const BASH_TOPICS: &str = r#"
_coulee_or_topics() {
    local names
    names=$("${COMP_WORDS[0]}" __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ -n ${names} ]]; then
        mapfile -t COMPREPLY <<< "${names}"
    else
        _coulee "$@"
    fi
}
complete -F _coulee_or_topics -o bashdefault -o default coulee
"#;

const ZSH_TOPICS: &str = r#"_coulee_or_topics() {
    local -a names
    names=(${(f)"$(${words[1]} __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#names} )); then
        compadd -a names
    else
        _coulee "$@"
    fi
}
compdef _coulee_or_topics coulee
if [ "$funcstack[1]" = "_coulee" ]; then
    _coulee_or_topics "$@"
fi
"#;

const FISH_TOPICS: &str = r#"
complete -c coulee -a '(coulee __complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
"#;

/// Prints the topics that the last of the words may become, one a line, where it stands for a topic.
pub(crate) fn topics(context: &Context, words: &[String]) -> Result<(), Stop> {
    let Some((topic, address)) = wanted(words) else { return Ok(()) };
    let mut context = context.clone();
    context.shared.address = address;
    context.shared.timeout = WAIT_MAX;
    let names = runtime()?.block_on(async {
        let asked = async { context.connect().await.ok()?.topics(false).await.ok() };
        tokio::time::timeout(WAIT_MAX, asked).await.ok().flatten().unwrap_or_default()
    });
    print(|out| {
        let matching = names.iter().filter(|found| found.name.starts_with(topic));
        matching.into_iter().try_for_each(|found| std::io::Write::write_fmt(out, format_args!("{}\n", found.name)))
    })
}

/// What there is of a topic's name at the end of the words, and the broker to ask, where a topic's name is to come.
fn wanted(words: &[String]) -> Option<(&str, String)> {
    // No name of a topic, so it can't be met elsewhere among the words.
    const HERE: &str = "/";
    let (last, before) = words.split_last()?;
    if last.starts_with('-') {
        return None;
    }
    let line = ["coulee"].into_iter().chain(before.iter().map(String::as_str)).chain([HERE]);
    let matches = Arguments::command().ignore_errors(true).try_get_matches_from(line).ok()?;
    let is_here = |matches: &ArgMatches, id: &str| {
        matches.try_get_one::<String>(id).ok().flatten().is_some_and(|value| value == HERE)
    };
    let is_topic = match matches.subcommand()? {
        ("produce" | "consume", produce) => is_here(produce, "topic"),
        ("simulate", simulate) => is_here(simulate.subcommand_matches("users")?, "topic"),
        ("topic", topic) => match topic.subcommand()? {
            ("describe" | "alter" | "delete", topic) => is_here(topic, "name"),
            _ => false,
        },
        _ => false,
    };
    let address = matches.get_one::<String>("address")?.clone();
    is_topic.then_some((last.as_str(), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Powershell] {
            let script = script(shell);
            assert!(script.contains("simulate") && script.contains("until-end"), "{shell:?}");
            assert_eq!(script.contains(" __complete -- "), shell != Shell::Powershell, "{shell:?}");
        }
        assert_eq!(script(Shell::Zsh).matches("funcstack").count(), 1, "zsh is handed one function");
    }

    #[test]
    fn a_topic_is_wanted_where_the_command_line_takes_one_and_nowhere_else() {
        let wanted = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            wanted(&words).map(|(topic, address)| (topic.to_owned(), address))
        };
        for line in [
            "topic describe or",
            "topic alter or",
            "topic delete -y or",
            "produce or",
            "produce --acks 0 or",
            "consume or",
            "consume --until-end -n 3 or",
            "--address h:1 consume or",
            "consume --address h:1 or",
            "simulate users or",
        ] {
            let (topic, address) = wanted(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(topic, "or", "{line}");
            assert_eq!(address == "h:1", line.contains("h:1"), "{line}: {address}");
        }
        for line in [
            "",
            "top",
            "topic",
            "topic de",
            "topic create or",
            "topic describe orders or",
            "consume --offset or",
            "consume --o",
            "consume -n",
            "serve or",
            "completion ba",
            "nonsense or",
        ] {
            assert_eq!(wanted(line), None, "{line}");
        }
        assert_eq!(wanted("consume "), Some((String::new(), wanted("consume x").unwrap().1)));
    }
}
