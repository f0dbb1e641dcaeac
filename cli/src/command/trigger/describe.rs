//! `rproc trigger describe`: the details of a trigger.

use jiff::Timestamp;

use super::super::describe::events;
use super::super::selection::Failures;
use super::{found, triggers};
use crate::args::{GlobalArgs, trigger_name};
use crate::failure::Failure;
use crate::print::print;
use crate::render::trigger::describe;

/// Flags of `trigger describe`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  # Why does it take no messages?\n  rproc trigger describe orders")]
pub(super) struct DescribeArgs {
    /// Names of the triggers
    #[arg(value_parser = trigger_name, value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Prints the details of the triggers. If one fails, the others are printed nevertheless.
pub(super) async fn run(global: &GlobalArgs, args: DescribeArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let api = triggers(&cluster);
    let mut failures = Failures::default();
    let mut is_first = true;
    for name in &args.names {
        let Some(trigger) = failures.keep(found(&cluster, name, api.get_opt(name).await))? else {
            continue;
        };
        let events = events(&cluster, trigger.metadata.uid.as_deref().unwrap_or_default()).await;
        if !std::mem::take(&mut is_first) {
            print("\n")?;
        }
        print(&describe(&trigger, events.as_deref(), Timestamp::now()))?;
    }
    failures.conclude()
}
