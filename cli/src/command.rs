//! The verbs, one file each.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use jiff::{SignedDuration, Span};
use serde::Serialize;

use crate::args::{self, Cli, Command, GlobalArgs};
use crate::{exit, output};
use remoteprocess_client::relay::CallError;
use remoteprocess_client::{Cluster, SinkError, cluster};
use remoteprocess_client::{DialError, output as follow};

pub mod attach;
pub mod change;
pub mod completion;
pub mod delete;
pub mod describe;
pub mod exec;
pub mod extend;
pub mod get;
pub mod launch;
pub mod live;
pub mod login;
pub mod logs;
pub mod pause;
pub mod rerun;
pub mod run;
pub mod selection;
pub mod sequel;
pub mod signal;
pub mod stop;
pub mod version;
pub mod wait;
pub mod whoami;

/// The end of a verb that could not do what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Our exit code.
    pub code: u8,
    /// What to say; empty for nothing.
    pub text: String,
}

impl Failure {
    /// A failure of ours.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            code: exit::UNKNOWN,
            text: text.into(),
        }
    }

    /// An answer that is no: what was asked for is not so.
    #[must_use]
    pub fn no(text: impl Into<String>) -> Self {
        Self {
            code: 1,
            text: text.into(),
        }
    }

    /// The reader of our output has gone.
    fn closed() -> Self {
        Self {
            code: exit::PIPE,
            text: String::new(),
        }
    }
}

impl From<cluster::Error> for Failure {
    fn from(error: cluster::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::new(match &error {
            CallError::Relay(status) => remoteprocess_client::retry::cause(status),
            CallError::Dial(_) => error.to_string(),
        })
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<SinkError> for Failure {
    fn from(error: SinkError) -> Self {
        match error {
            SinkError::Closed => Self::closed(),
            SinkError::Write(_) => Self::new(error.to_string()),
        }
    }
}

impl From<follow::Error> for Failure {
    fn from(error: follow::Error) -> Self {
        match error {
            follow::Error::Output(error) => error.into(),
            error => Self::new(error.to_string()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::closed()
        } else {
            Self::new(error.to_string())
        }
    }
}

/// Does what was asked for, and answers the exit code.
pub async fn run(cli: Cli) -> u8 {
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => {
            // Where standard error is closed as well, the exit code has to say it all.
            output::complain(&failure.text);
            failure.code
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(global, *args).await,
        Command::Rerun(args) => rerun::run(global, args).await,
        Command::Attach(args) => attach::run(global, args).await,
        Command::Exec(args) => exec::run(global, args).await,
        Command::Logs(args) => logs::run(global, args).await,
        Command::Stop(args) => stop::run(global, args).await,
        Command::Pause(args) => pause::run(global, args, pause::Verb::Pause).await,
        Command::Resume(args) => pause::run(global, args, pause::Verb::Resume).await,
        Command::Extend(args) => extend::run(global, args).await,
        Command::Signal(args) => signal::run(global, args).await,
        Command::Get(args) => get::run(global, args).await,
        Command::Describe(args) => describe::run(global, args).await,
        Command::Wait(args) => wait::run(global, args).await,
        Command::Delete(args) => delete::run(global, args).await,
        Command::Login(args) => login::run(global, args).await,
        Command::Whoami(args) => whoami::run(global, args).await,
        Command::Version(args) => version::run(global, args).await,
        Command::Options => print(&args::options()).map(|()| 0),
        Command::Completion(args) => completion::run(args),
    }
}

async fn open(global: &GlobalArgs) -> Result<Arc<Cluster>, Failure> {
    Ok(Arc::new(Cluster::open(&global.cluster()).await?))
}

/// Writes to standard output; `| head` may close it.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Formats for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl DataFormat {
    fn print(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))? + "\n",
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::new(error.to_string()))?,
        };
        print(&text)
    }
}

/// A span of time on the command line: `90s`, `5m`, `1h30m`, `1d` (24 hours), or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let day = SignedDuration::from_hours(24);
    let span = text.parse::<Span>().map_err(|_| ());
    let span = span.and_then(|span| {
        let days = day.checked_mul(span.get_days()).ok_or(())?;
        // Months and years have no fixed length and are refused.
        let rest = SignedDuration::try_from(span.days(0)).map_err(|_| ())?;
        Duration::try_from(days.checked_add(rest).ok_or(())?).map_err(|_| ())
    });
    span.map_err(|()| "expected a time like 90s, 5m, 1h30m or 1d".to_owned())
}

/// As kubectl names an object in what it prints.
fn resource(name: &str) -> String {
    format!("remoteprocess.remoteprocess.dev/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("1d", 86_400),
            ("2d12h", 216_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "-5s", "-1d", "soon", "1mo", "1y", "999999999999d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
