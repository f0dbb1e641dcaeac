//! `rproc attach`: connects to a running process, to watch it or to type into it.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;

use remoteprocess_api::{RemoteProcess, RemoteProcessSpec};
use remoteprocess_client::{Follower, Ledger, Relay};
use remoteprocess_proto::v1::{Cursor, ProcessKey};
use tokio::time::Instant;

use super::follow::{Followed, Leaving, OnInterrupt, Signals, conclude, say_how_to_leave, until_end};
use super::next_attempt::NextAttempt;
use super::selection;
use crate::args::{GlobalArgs, process_name};
use crate::exit::Verdict;
use crate::failure::Failure;
use crate::interact::{DEFAULT_DETACH_KEYS, DetachKeys, Interaction, Manner, check_stdin};
use crate::output::{Control, Form, Output};
use crate::progress::Messages;
use crate::replay::{reached, want};

/// Flags of `attach`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct AttachArgs {
    /// Name of the process
    #[arg(value_parser = process_name)]
    pub name: String,
    /// Pass standard input to the process; when it ends, the process reads end of file
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Connect this terminal to the process; with -i each key goes to the process, including Ctrl-C
    #[arg(short, long)]
    pub tty: bool,
    /// Take the input away from the current writer
    #[arg(long, requires = "stdin")]
    pub take_over: bool,
    /// Key sequence to detach from a process at a terminal; "" for none
    #[arg(long, value_name = "KEYS", default_value = DEFAULT_DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Print no messages of rproc except errors
    #[arg(short, long)]
    pub quiet: bool,
}

const EXAMPLES: &str = "Examples:
  # Return to the shell of a process that you started with rproc run -it
  rproc attach -it work

  # Only watch it; any number of users can
  rproc attach work

  # Write to a process that reads its standard input
  rproc attach -i collector < more

rproc first prints the last 256 KiB of the output, and a full-screen program
redraws its screen. One user at a time can write; --take-over makes it you.
When rproc ends, the process keeps running.";

/// Shows the output and passes the input on, until the process has ended or the user leaves.
pub async fn run(global: &GlobalArgs, args: AttachArgs) -> Result<u8, Failure> {
    let signals = Signals::listen()?;
    if args.stdin {
        check_stdin()?;
    }
    let cluster = global.open().await?;
    let object = selection::get(&cluster, &args.name).await?;
    let is_over = object.is_final();
    let writes = args.stdin && !is_over;
    if let Some(why) = refusal(&object.spec).filter(|_| writes) {
        return Err(Failure::new(format!(
            "{0} takes no input: {why}. Watch it: rproc attach {0}",
            args.name
        )));
    }
    let is_terminal = args.tty && object.spec.tty.unwrap_or_default();
    let key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: args.name.clone(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    };
    let mut relay = Relay::new(cluster.clone());
    let reached = reached(&mut relay, &key).await;
    let is_raw = is_terminal && writes && std::io::stdin().is_terminal();
    let output = Output::standard(Form::Bytes { is_stamped: false }, control(is_terminal, is_raw, reached))?;
    say_first(&args, &object, &output, is_raw).await?;
    let mut follower = Follower {
        ledger: Ledger::new(want(&key, reached)),
        dial: relay.clone(),
        sink: output.clone(),
        progress: Messages::new(&args.name, args.quiet, &output),
        unknown_until: Instant::now(),
    };
    let manner = Manner {
        tty: is_terminal,
        detach_keys: args.detach_keys.clone(),
        take_over: args.take_over,
        redraw: true,
    };
    // The input belongs to one running attempt. A reader without input sees the next attempt, too.
    let has_retries = object.spec.retries.is_some();
    let next_attempt = (!writes || !has_retries).then(|| NextAttempt {
        may_have_retries: has_retries,
        ..NextAttempt::new(&cluster, &key)
    });
    let leaving = Leaving {
        interaction: match writes {
            true => Interaction::start(relay, key, manner)?,
            false => Interaction::none(),
        },
        signals,
        on_interrupt: OnInterrupt::Leave,
    };
    let has_begun = leaving.interaction.has_begun();
    let followed = until_end(&mut follower, (next_attempt.as_ref(), args.quiet), leaving).await;
    // It had already ended, or it ended before any input could be passed on.
    let is_refused = args.stdin && !has_begun.load(Ordering::Relaxed);
    answer(&args, &output, &follower.ledger, followed, is_refused).await
}

/// Why nobody can write to the process, if that is so.
fn refusal(spec: &RemoteProcessSpec) -> Option<&'static str> {
    match (spec.stdin.unwrap_or_default(), &spec.stdin_from) {
        (_, Some(_)) => Some("its standard input is a key of a ConfigMap or Secret (spec.stdinFrom)"),
        (false, None) => Some("spec.stdin is not set (rproc run -i sets it)"),
        (true, None) => None,
    }
}

/// How this terminal handles control sequences.
fn control(is_terminal: bool, is_raw: bool, reached: Option<Cursor>) -> Control {
    match (is_terminal, is_raw) {
        (false, _) => Control::Shown,
        (true, false) => Control::Watched,
        (true, true) => Control::Typed {
            live_from: reached.unwrap_or_default(),
        },
    }
}

/// Prints what the user should know before the output.
async fn say_first(
    args: &AttachArgs,
    object: &RemoteProcess,
    output: &Output,
    is_raw: bool,
) -> Result<(), crate::output::Error> {
    let name = &args.name;
    if args.tty && !object.spec.tty.unwrap_or_default() && !args.quiet {
        output
            .line(&format!("{name} runs at no terminal: -t is left out"))
            .await?;
    }
    if is_hidden(args, object, std::io::stdout().is_terminal()) {
        let hint =
            format!("{name} runs at a terminal: control characters are shown. Its screen: rproc attach -t {name}");
        output.line(&hint).await?;
    }
    say_how_to_leave(output, name, &args.detach_keys, is_raw && !args.quiet).await
}

/// Whether the output would be a screen but is shown as text, although the user requested neither.
fn is_hidden(args: &AttachArgs, object: &RemoteProcess, is_terminal: bool) -> bool {
    is_terminal && !args.tty && !args.quiet && object.spec.tty.unwrap_or_default()
}

/// Reports the result and returns the exit code. If the input was refused from the start, the code is 125.
async fn answer(
    args: &AttachArgs,
    output: &Output,
    ledger: &Ledger,
    followed: Result<Followed, Verdict>,
    is_refused: bool,
) -> Result<u8, Failure> {
    let (ended, is_input_lost) = match followed {
        Ok(followed) => followed,
        Err(left) => {
            output.answer_last(&left.message.unwrap_or_default()).await;
            return Ok(left.code);
        }
    };
    let (_, verdict) = conclude(ledger, &args.name, (ended, is_input_lost || is_refused))?;
    if let Some(message) = verdict.said(args.quiet) {
        output.line(message).await?;
    }
    output.flush().await?;
    Ok(verdict.code)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn who_cannot_write_learns_where_the_input_comes_from() {
        let why = |spec: serde_json::Value| {
            let mut spec = spec;
            (spec["image"], spec["command"]) = ("i".into(), serde_json::json!(["c"]));
            refusal(&serde_json::from_value(spec).unwrap())
        };
        assert_eq!(why(serde_json::json!({"stdin": true})), None);
        assert!(why(serde_json::json!({})).unwrap().contains("spec.stdin is not set"));
        let from = serde_json::json!({"stdinFrom": {"secretKeyRef": {"name": "s", "key": "k"}}});
        assert!(why(from).unwrap().contains("spec.stdinFrom"));
    }

    #[test]
    fn watching_a_screen_as_text_says_that_t_exists() {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            args: AttachArgs,
        }
        let object = |tty: bool| -> RemoteProcess {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
                "spec": {"image": "i", "command": ["c"], "tty": tty},
            }))
            .unwrap()
        };
        let args = |words: &[&str]| Only::try_parse_from([&["attach", "job"], words].concat()).unwrap().args;
        assert!(is_hidden(&args(&[]), &object(true), true));
        assert!(is_hidden(&args(&["-i"]), &object(true), true));
        for (words, tty, is_terminal) in [
            (vec!["-t"], true, true),
            (vec!["-q"], true, true),
            (vec![], false, true),
            (vec![], true, false),
        ] {
            assert!(!is_hidden(&args(&words), &object(tty), is_terminal));
        }
    }
}
