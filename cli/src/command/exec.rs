//! `rproc exec`: another command in the container of a running process.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use remoteprocess_api::RemoteProcess;
use remoteprocess_client::Relay;
use remoteprocess_client::exec::{Exec, Over};
use remoteprocess_client::stream::{self, due};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::{Cursor, ExecOpen, Exit, ProcessKey, Reason, Variable};
use tokio::sync::watch;
use tokio::time::Instant;

use super::follow::Signals;
use super::selection;
use crate::args::{GlobalArgs, process_name};
use crate::exit;
use crate::failure::Failure;
use crate::interact::{DEFAULT_WINDOW, DetachKeys, Error, Event, Interaction, check_stdin, terminal, window};
use crate::output::{Control, Form, Output};
use crate::progress::Messages;

/// Flags of `exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExecArgs {
    /// Name of the process
    #[arg(value_parser = process_name)]
    pub name: String,
    /// Pass standard input to the command; when it ends, the command reads end of file
    #[arg(short = 'i', long)]
    pub stdin: bool,
    /// Allocate a terminal for the command; with -i each key goes to the command, including Ctrl-C
    #[arg(short, long)]
    pub tty: bool,
    /// Print no messages of rproc except errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Attempt to run it in, instead of the running one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempt: Option<u32>,
    /// Environment variable to add to those of the process; without a value, the value in your environment is used. Can be repeated
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Working directory, instead of that of the process
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<OsString>,
    /// The command and its arguments, run as typed, without a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

const EXAMPLES: &str = "Examples:
  # List the processes in the container
  rproc exec build -- ps

  # Open a shell in the same container
  rproc exec -it build -- sh

  # Copy a file into the container
  rproc exec -i build -- sh -c 'cat > /tmp/config' < config

The exit code is that of the command; 128 + n if signal n ended it; 127 if the
program does not exist, 126 if it cannot be executed; 125 if rproc does not
know. If the connection breaks, the command keeps running and rproc resumes. If
the process or rproc ends, the command gets SIGHUP. The output of the command is
not part of the output of the process.";

/// Runs the command, and returns its exit code.
pub async fn run(global: &GlobalArgs, args: ExecArgs) -> Result<u8, Failure> {
    if args.stdin {
        check_stdin()?;
    }
    let mut environment = environment(&args.env, |name| std::env::var_os(name)).map_err(Failure::new)?;
    let term = std::env::var("TERM").ok();
    if let Some(term) = term.as_deref().and_then(terminal::term).filter(|_| args.tty)
        && environment.iter().all(|variable| variable.name != "TERM")
    {
        environment.push(Variable {
            name: "TERM".into(),
            value: term.into(),
        });
    }
    let signals = Signals::listen()?;
    let cluster = global.open().await?;
    let object = selection::get(&cluster, &args.name).await?;
    check(&object, &args)?;
    let is_raw = args.tty && args.stdin && std::io::stdin().is_terminal();
    if args.tty && args.stdin && !is_raw && !args.quiet {
        crate::output::complain("standard input is not a terminal; the command still gets one");
    }
    let words = args.command.iter().map(|word| word.as_bytes().to_vec().into());
    let open = ExecOpen {
        protocol: PROTOCOL,
        process: Some(ProcessKey {
            namespace: cluster.namespace.clone(),
            name: args.name.clone(),
            uid: object.metadata.uid.unwrap_or_default(),
        }),
        attempt: args.attempt.unwrap_or_default(),
        command: words.collect(),
        environment,
        directory: args.workdir.as_ref().map(|path| path.as_bytes().to_vec().into()),
        stdin: args.stdin,
        terminal: args.tty.then(|| window().unwrap_or(DEFAULT_WINDOW)),
        ..ExecOpen::default()
    };
    let control = match (is_raw, args.tty) {
        (true, _) => Control::Typed {
            live_from: Cursor::default(),
        },
        (false, true) => Control::Watched,
        (false, false) => Control::Shown,
    };
    let output = Output::standard(Form::Bytes { is_stamped: false }, control)?;
    let messages = Messages::new(&args.name, args.quiet, &output);
    let exec = Exec::new(Relay::new(cluster), open, output.clone(), messages);
    let ended = until_end(exec, (args.stdin, is_raw), signals).await?;
    answer(&args, &output, ended).await
}

/// How long to try to tell the relay that the user leaves, even if the output is not read anymore.
const FAREWELL: Duration = Duration::from_secs(3);

/// Refuses what the object already excludes, without asking the relay.
fn check(object: &RemoteProcess, args: &ExecArgs) -> Result<(), Failure> {
    let name = &args.name;
    let status = object.status.clone().unwrap_or_default();
    let word =
        |reason: Option<remoteprocess_api::Reason>| reason.map_or(String::new(), |reason| format!(" ({reason})"));
    if object.is_final() {
        return Err(Failure::new(format!(
            "{name} has ended{}: nothing runs in it. Read its output with: rproc logs {name}",
            word(status.reason)
        )));
    }
    let latest = status.current_attempt().unwrap_or_default();
    if let Some(attempt) = args.attempt.filter(|attempt| *attempt != latest) {
        return Err(Failure::new(match attempt < latest {
            true => format!("attempt {attempt} of {name} has ended; attempt {latest} is the one that may run"),
            false => format!("there is no attempt {attempt} of {name}: the latest is {latest}"),
        }));
    }
    let has_started = status
        .attempt(latest)
        .is_some_and(|attempt| attempt.started_at.is_some());
    if !has_started {
        return Err(Failure::new(format!(
            "{name} has not started yet{}. Wait for it with: rproc wait {name} --for started",
            word(status.reason)
        )));
    }
    Ok(())
}

/// Runs until the command has ended or the user leaves; then the terminal is restored. The number is our exit code if the
/// user left. The inner error means that the end of the command will not be known.
pub async fn until_end<D: remoteprocess_client::Dial>(
    mut exec: Exec<D, Output, Messages>,
    (takes_input, is_raw): (bool, bool),
    mut signals: Signals,
) -> Result<Result<(Over, u8), Error>, Failure> {
    if is_raw && let Some(size) = window() {
        exec.resize(size);
    }
    let keys = is_raw.then(|| (DetachKeys::default(), exec.is_connected()));
    let (mut interaction, said) = match takes_input {
        true => Interaction::read(keys)?,
        false => (Interaction::none(), tokio::sync::mpsc::channel(1).1),
    };
    let (leaving, left) = watch::channel(false);
    let (mut code, mut leave_by, mut input_lost) = (0, None, None);
    let ended = {
        let mut running = std::pin::pin!(exec.run(said, left));
        loop {
            let number = tokio::select! {
                ended = &mut running => break ended,
                event = interaction.next() => match event {
                    Event::Detached | Event::Interrupted => 2,
                    // The command reads an end of file and may finish, but its exit code would be misleading.
                    Event::Lost(error) => {
                        input_lost = Some(error);
                        continue;
                    }
                },
                number = signals.next() => number,
                () = due(leave_by) => break Ok(Over::Left { is_told: false }),
            };
            // A second request does not wait for the relay's confirmation.
            if leaving.send_replace(true) {
                break Ok(Over::Left { is_told: false });
            }
            code = 128 + number;
            leave_by = Some(Instant::now() + FAREWELL);
        }
    };
    exec.sink().restore().await;
    interaction.leave().await;
    Ok(match (ended, input_lost) {
        (Ok(Over::Exit(_)), Some(error)) => Err(error),
        (ended, _) => ended.map(|over| (over, code)).map_err(Error::from),
    })
}

/// Reports the result and returns the exit code.
async fn answer(args: &ExecArgs, output: &Output, ended: Result<(Over, u8), Error>) -> Result<u8, Failure> {
    let name = &args.name;
    let (code, message) = match ended {
        Ok((Over::Exit(exit), _)) => verdict(name, &exit, args.quiet),
        Ok((Over::Left { is_told }, code)) => {
            let message = match is_told {
                true => format!("left; the command in {name} gets SIGHUP"),
                false => format!("left without a connection: the command in {name} gets SIGHUP within five minutes"),
            };
            output.answer_last(&message).await;
            return Ok(code);
        }
        Err(Error::Stream(stream::Error::Output(error))) => return Err(error.into()),
        Err(error) => (exit::UNKNOWN, Some(format!("lost the command in {name}: {error}"))),
    };
    if let Some(message) = message {
        output.line(&message).await?;
    }
    output.flush().await?;
    Ok(code)
}

/// Our exit code, and the message that explains it.
fn verdict(name: &str, exit: &Exit, is_quiet: bool) -> (u8, Option<String>) {
    let Some(code) = exit::code(exit) else {
        let why = &exit.message;
        return (
            exit::UNKNOWN,
            Some(format!("the exit code of the command in {name} is not known: {why}")),
        );
    };
    let message = match exit.reason() {
        Reason::CommandNotFound | Reason::CommandNotExecutable => Some(exit.message.clone()),
        Reason::Signaled if !is_quiet => Some(exit::ended("the command", exit)),
        _ => None,
    };
    (code, message)
}

/// The variables of `--env`; one without a value takes that of our environment.
fn environment(given: &[OsString], here: impl Fn(&OsString) -> Option<OsString>) -> Result<Vec<Variable>, String> {
    let variable = |given: &OsString| {
        let mut parts = given.as_bytes().splitn(2, |byte| *byte == b'=');
        let name = OsString::from_vec(parts.next().unwrap_or_default().to_vec());
        if name.is_empty() {
            return Err(format!("--env {given:?}: there is no name before the ="));
        }
        let value = match parts.next() {
            Some(value) => value.to_vec(),
            None => here(&name)
                .ok_or_else(|| format!("--env {given:?}: it has no value, and is not set here"))?
                .into_vec(),
        };
        Ok(Variable {
            name: name.into_vec().into(),
            value: value.into(),
        })
    };
    given.iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use remoteprocess_proto::v1::exit::Outcome;

    use super::*;

    #[test]
    fn variables_have_values_or_take_those_from_here() {
        let here = |name: &OsString| (name == "HOME").then(|| "/root".into());
        let read = |given: &str| environment(&[given.into()], here).map(|mut found| found.remove(0));
        let variable = |name: &'static str, value: &'static str| Variable {
            name: name.into(),
            value: value.into(),
        };
        assert_eq!(read("A=b=c"), Ok(variable("A", "b=c")));
        assert_eq!(read("HOME"), Ok(variable("HOME", "/root")));
        assert!(read("NOWHERE").unwrap_err().contains("not set here"));
        assert!(read("=x").unwrap_err().contains("no name"));
    }

    #[test]
    fn the_code_is_that_of_the_command_or_125_if_unknown() {
        let exit = |outcome: Outcome, value, reason: Reason| Exit {
            outcome: outcome.into(),
            value,
            reason: reason.into(),
            message: "why".into(),
            ..Exit::default()
        };
        assert_eq!(
            verdict("job", &exit(Outcome::Code, 7, Reason::NonZeroExit), false),
            (7, None)
        );
        let missing = exit(Outcome::Code, 127, Reason::CommandNotFound);
        assert_eq!(verdict("job", &missing, true), (127, Some("why".into())));
        let killed = exit(Outcome::Signal, 9, Reason::Signaled);
        assert_eq!(
            verdict("job", &killed, false),
            (137, Some("the command was ended by SIGKILL".into()))
        );
        assert_eq!(verdict("job", &killed, true), (137, None));
        let (code, message) = verdict("job", &exit(Outcome::Unknown, 0, Reason::SessionLost), true);
        assert_eq!((code, message.unwrap().ends_with("not known: why")), (125, true));
    }
}
