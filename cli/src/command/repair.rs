//! `coulee repair`: owns when it is done and how it is told; mends nothing itself.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::arguments::{Output, RepairArguments};
use crate::broker::{self, Repaired};
use crate::code::LocalCode;
use crate::command::{Context, print, verify};
use crate::failure::{Failure, Stop};
use crate::sheet::{Sheet, write_value};

/// Says what a repair would do; with `-y` does it.
pub(crate) fn run(context: &Context, arguments: &RepairArguments) -> Result<(), Stop> {
    let data_dir = Path::new(&arguments.data_dir);
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let repaired = broker::repair(data_dir, arguments.yes.then_some(now_ms))?;
    match arguments.answer.output {
        Output::Json | Output::Yaml => {
            let object = json!({
                "done": arguments.yes,
                "steps": repaired.steps,
                "kept": repaired.kept,
                "sound": !repaired.verified.is_damaged,
            });
            print(|out| write_value(&object, arguments.answer.output, out))?;
        }
        output => {
            let mut sheet = Sheet::new(&["step"]);
            repaired.steps.iter().for_each(|step| sheet.push([step.as_str().into()]));
            if !repaired.steps.is_empty() {
                print(|out| sheet.write(output, out))?;
            }
        }
    }
    context.terminal.say(&told(&repaired, arguments.yes));
    verdict(&repaired, arguments)?;
    let is_due = !arguments.yes && !repaired.steps.is_empty();
    let next = if is_due { format!("repair --data-dir {} -y", arguments.data_dir) } else { "serve".to_owned() };
    context.terminal.next(&format!("coulee {next}"));
    Ok(())
}

fn told(repaired: &Repaired, is_done: bool) -> String {
    match (&repaired.kept, repaired.steps.len()) {
        (_, 0) => "there is nothing to repair".to_owned(),
        (Some(kept), count) => format!("{count} steps were taken; what was there before is kept in {kept}"),
        (None, _) if is_done => "nothing was done".to_owned(),
        (None, count) => format!("{count} steps to take first; nothing was changed: do it with -y"),
    }
}

/// What is damaged after everything that can be done, is an error; so is what nothing can be done about.
fn verdict(repaired: &Repaired, arguments: &RepairArguments) -> Result<(), Failure> {
    if !repaired.verified.is_damaged || (!arguments.yes && !repaired.steps.is_empty()) {
        return Ok(());
    }
    let mut failure = Failure::local(LocalCode::DataDamaged, "there is damage that a repair can do nothing about");
    for note in verify::damage_notes(&repaired.verified) {
        failure = failure.note(note);
    }
    Err(failure.hint("the advice says what can be done: coulee verify --data-dir DIR"))
}
