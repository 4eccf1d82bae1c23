//! `coulee doctor`: owns how checks are shown; makes none itself.

use serde_json::Value;

use crate::arguments::DoctorArguments;
use crate::broker::{self, Check, Outcome};
use crate::code::LocalCode;
use crate::command::{Context, config, print};
use crate::failure::{Failure, Stop};
use crate::sheet::Sheet;

/// Runs the checks for a broker with the configuration of the arguments.
pub(crate) fn run(context: &Context, arguments: &DoctorArguments) -> Result<(), Stop> {
    let config = config::load(&arguments.layers)?;
    let checks = broker::checks(&config);
    let sheet = sheet(&checks);
    print(|out| sheet.write(arguments.answer.output, out))?;
    verdict(&checks)?;
    context.terminal.next(&format!("coulee serve --data-dir {}", config.data_dir.display()));
    Ok(())
}

fn sheet(checks: &[Check]) -> Sheet {
    let mut sheet = Sheet::new(&["check", "outcome", "advice"]);
    for check in checks {
        let outcome = match check.outcome {
            Outcome::Good => "good",
            Outcome::Warning => "warning",
            Outcome::Failed => "failed",
        };
        sheet.push([check.name, outcome, check.advice.as_str()].map(Value::from));
    }
    sheet
}

fn verdict(checks: &[Check]) -> Result<(), Failure> {
    let failed: Vec<&str> =
        checks.iter().filter(|check| check.outcome == Outcome::Failed).map(|check| check.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("no broker can run here: {}", failed.join(", "));
    Err(Failure::local(LocalCode::CheckFailed, message).hint("the advice beside each failed check says what to change"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_check_is_a_failure_and_a_warning_is_none() {
        let check = |name, outcome| Check { name, outcome, advice: String::new() };
        let sound = [check("io_uring", Outcome::Good), check("memlock", Outcome::Warning)];
        assert_eq!(verdict(&sound), Ok(()));
        let failure = verdict(&[check("io_uring", Outcome::Failed), check("memlock", Outcome::Good)]).unwrap_err();
        assert_eq!((failure.number, failure.message.as_str()), (2_012, "no broker can run here: io_uring"));
    }
}
