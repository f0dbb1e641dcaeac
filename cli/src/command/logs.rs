//! `rproc logs`: the output of processes.

use std::io::IsTerminal;

use jiff::Timestamp;
use remoteprocess_client::Relay;
use tokio::time::Instant;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::output::{Control, Output};
use crate::progress::Messages;

mod job;
mod many;
mod place;
mod verify;

pub use job::LogsArgs;
use job::{Job, Over, control, earlier, find, form, label, next_attempt, restored, shown, want};
use place::Offset;

/// Prints the output, and returns the exit code.
pub async fn run(global: &GlobalArgs, args: LogsArgs) -> Result<u8, Failure> {
    check(&args).map_err(Failure::new)?;
    let cluster = global.open().await?;
    let is_single = args.selector.is_none() && !args.all_namespaces && args.names.len() <= 1;
    if !is_single {
        return many::run(&cluster, &args).await;
    }
    let (key, object) = find(&cluster, args.names.first(), args.uid.as_deref()).await?;
    if args.verify {
        return verify::run(Relay::new(cluster.clone()), &cluster, &args, key).await;
    }
    let name = shown(&key);
    let output = Output::standard(form(&args, false), control(&args))?;
    let is_at_terminal = object
        .as_deref()
        .is_some_and(|object| object.spec.tty.unwrap_or_default());
    let is_hidden = is_at_terminal && args.output.is_none() && control(&args) == Control::Shown;
    if is_hidden && !args.quiet && std::io::stdout().is_terminal() {
        let hint = format!("{name} runs at a terminal: control characters are shown. To do them: --raw");
        output.line(&hint).await?;
    }
    let earlier = object.as_deref().and_then(earlier);
    let earlier = earlier.filter(|_| args.attempt == 0 && !args.quiet);
    // The end may be far away, and what you read now is not the whole story.
    if let Some(message) = earlier.as_ref().filter(|_| args.follow) {
        output.line(message).await?;
    }
    let job = Job {
        output: output.open(label(&key)).await?,
        messages: Messages::new(&name, args.quiet, &output),
        unknown_until: Instant::now(),
        next_attempt: next_attempt(&cluster, &args, &key),
        is_quiet: args.quiet,
        want: want(&args, key, Timestamp::now()),
    };
    let verdict = match restored(&output, &args, job.run(Relay::new(cluster))).await? {
        Over::Done((_, verdict)) => verdict,
        Over::Left(code) => return Ok(code),
    };
    if let Some(message) = earlier.filter(|_| !args.follow) {
        output.line(&message).await?;
    }
    if let Some(message) = verdict.said(args.quiet) {
        output.line(message).await?;
    }
    output.flush().await?;
    Ok(verdict.code)
}

/// Checks what clap cannot express.
fn check(args: &LogsArgs) -> Result<(), String> {
    let is_many = args.names.len() > 1 || args.selector.is_some() || args.all_namespaces;
    if is_many && args.offset.is_some() {
        return Err("--offset is a place in the output of one process: name one".into());
    }
    if args.names.len() > 1 && args.uid.is_some() {
        return Err("--uid names one process: leave the other names out".into());
    }
    match (&args.offset, args.stream) {
        (Some(Offset::Both(_)), Some(_)) => {
            Err("--offset stdout=N,stderr=M is of both streams: leave --stream out, or write --offset N".into())
        }
        _ => Ok(()),
    }
}
