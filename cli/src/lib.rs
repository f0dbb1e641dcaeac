//! The command line of RemoteProcess.
//!
//! Arrows: client, api, proto, tls, settings.
//! Invariant: standard output is the program's, byte for byte; standard error is the program's and our own lines, which
//! begin with `rproc:`. The exit code is the program's, or 125, with a message, if it is not known.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::FromArgMatches;

pub mod args;
pub mod command;
pub mod complete;
pub mod config;
pub mod exit;
pub mod failure;
pub mod hint;
pub mod interact;
pub mod output;
pub mod print;
pub mod progress;
pub mod proxy;
pub mod render;
pub mod replay;

/// Parses the arguments, runs the command, and returns the exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    if let Some(candidates) = complete::answer(&arguments) {
        // A shell that has gone needs no candidates.
        let _ = write!(std::io::stdout(), "{candidates}");
        return ExitCode::SUCCESS;
    }
    // As with kubectl. Variables of the environment are no arguments.
    if arguments.len() < 2 {
        let help = command::parser(arguments.first().map(OsString::as_os_str)).render_help();
        let _ = write!(std::io::stdout(), "{help}");
        return ExitCode::SUCCESS;
    }
    let parser = match config::parser(&arguments) {
        Ok(parser) => parser,
        Err(error) => return wrong_usage(&arguments, &error.to_string()),
    };
    let cli = match parser
        .try_get_matches_from(&arguments)
        .and_then(|found| command::Cli::from_arg_matches(&found))
    {
        Ok(cli) => cli,
        Err(usage) if usage.use_stderr() => {
            let text = usage.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let hint = hint::hint(&arguments, &usage).map(|hint| format!("hint: {hint}"));
            let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            let text = lines.into_iter().chain(hint.as_deref()).collect::<Vec<_>>().join("\n");
            return wrong_usage(&arguments, &text);
        }
        // Help was requested.
        Err(help) => {
            // If the help cannot be written, there is nothing left to do.
            let text = help.render();
            let _ = write!(std::io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("cannot start: {error}"));
            return ExitCode::from(exit::UNKNOWN);
        }
    };
    let code = runtime.block_on(command::run(cli));
    // A writer may be blocked in a pipe that is not read, and a forwarded stream may not have ended: wait for neither.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// Reports that rproc was called in a wrong way, or has wrong settings.
fn wrong_usage(arguments: &[OsString], text: &str) -> ExitCode {
    output::complain(text);
    command::launch::record_usage(arguments, text);
    ExitCode::from(exit::UNKNOWN)
}

/// The runtime of all commands. One thread does everything except writing output: moving frames from thread to thread
/// costs more than it gains.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
