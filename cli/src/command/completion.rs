//! `coulee completion`: owns nothing but the name of the program; the scripts come from the arguments.

use clap::CommandFactory;
use clap_complete::{Shell as Generator, generate};

use crate::arguments::{Arguments, Shell};
use crate::command::print;
use crate::failure::Stop;

/// Prints the script for a shell.
pub(crate) fn run(shell: Shell) -> Result<(), Stop> {
    let script = script(shell);
    print(|out| std::io::Write::write_all(out, &script))
}

/// The generator does not report errors of writing, so it writes into memory.
fn script(shell: Shell) -> Vec<u8> {
    let generator = match shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
        Shell::Powershell => Generator::PowerShell,
    };
    let mut script = Vec::new();
    generate(generator, &mut Arguments::command(), "coulee", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Powershell] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains("simulate") && script.contains("until-end"), "{shell:?}");
        }
    }
}
