//! `rproc run`: creates a process from flags or from a file, and follows it.

use super::follow::Signals;
use super::launch::{self, DryRun, Plan};
use crate::args::{GlobalArgs, given};
use crate::failure::Failure;

mod file;
mod flags;
mod object;

pub use flags::{LeftoversFlag, RunArgs, SpecificationArgs};

/// Creates the process, follows it, and returns its code.
pub async fn run(global: &GlobalArgs, args: RunArgs) -> Result<u8, Failure> {
    let name = args.name.clone().unwrap_or_default();
    launch::recorded(global, &args.view, &name, start(global, &args)).await
}

async fn start(global: &GlobalArgs, args: &RunArgs) -> Result<u8, Failure> {
    launch::check(&args.view, args.dry_run)?;
    let mut object = match &args.file {
        Some(path) => file::read(path, args)?,
        None => object::build(args, |name| std::env::var_os(name))?,
    };
    let mut global = global.clone();
    match (given(global.namespace.as_deref()), &object.metadata.namespace) {
        (Some(asked), Some(written)) if asked != *written => {
            let message = format!("the file says namespace {written}, and -n says {asked}");
            return Err(Failure::new(message));
        }
        (None, Some(written)) => global.namespace = Some(written.clone()),
        (asked, _) => object.metadata.namespace = asked,
    }
    launch::at_terminal(&mut object, &args.view);
    if args.dry_run == DryRun::Client {
        return launch::show(&args.view, args.dry_run, &object);
    }
    // From here on Ctrl-C stops the process.
    let signals = Signals::listen()?;
    let cluster = global.open().await?;
    let plan = Plan {
        object,
        dry_run: args.dry_run,
        replace: args.replace,
        is_named: args.name.is_some() || args.file.is_some(),
    };
    launch::launch(cluster, &args.view, plan, signals).await
}
