mod fold;

use std::{
    fmt,
    io::{self, IsTerminal, stderr},
    str::FromStr,
    thread,
    time::Instant,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::FilterExt,
    fmt::layer,
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use self::fold::Fold;

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `Text` if stderr is a terminal, otherwise `Json`.
    #[default]
    Auto,
    /// One JSON object on each line.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(LogError::Format(text.to_owned())),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Text => "text",
        })
    }
}

/// Why the logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A format that does not exist.
    #[error("the log format {0:?} is none of auto, json, text")]
    Format(String),
    /// A filter that does not parse.
    #[error("the log filter does not parse")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Logs were set up before.
    #[error("logs are set up already")]
    Again(#[from] TryInitError),
    /// The thread that reports folded lines cannot be started.
    #[error("no thread for the logs")]
    Thread(#[from] io::Error),
}

/// Sends logs to stderr. Repeated lines are folded, so that no peer can flood the log. `filter` is a tracing filter,
/// for example `info,remoteprocess_operator=debug`.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let (filter, fold) = (EnvFilter::try_new(filter)?, Fold::default());
    // Otherwise a log line that cannot be written is reported by a macro that panics.
    let lines = layer().with_writer(stderr).log_internal_errors(false);
    let is_text = match format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Text => true,
    };
    let lines = if is_text {
        lines.boxed()
    } else {
        lines.json().flatten_event(true).boxed()
    };
    let lines = lines.with_filter(filter.and(fold.clone()));
    Registry::default().with(lines).try_init()?;
    thread::Builder::new()
        .name("logs".to_owned())
        .spawn(move || tell(&fold))?;
    Ok(())
}

/// Logs at intervals how many lines were folded.
fn tell(fold: &Fold) {
    loop {
        thread::sleep(fold::WINDOW);
        for folded in fold.take(Instant::now()) {
            tracing::warn!(
                lines = folded.lines,
                like = folded.message,
                of = folded.peer,
                "left out repeated lines"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_survive_their_text() {
        for format in [LogFormat::Auto, LogFormat::Json, LogFormat::Text] {
            assert_eq!(format.to_string().parse::<LogFormat>().expect("a format"), format);
        }
        assert!("JSON".parse::<LogFormat>().is_err());
    }

    #[test]
    fn a_broken_filter_is_refused() {
        assert!(matches!(init_logs(LogFormat::Json, "a=b=c"), Err(LogError::Filter(_))));
    }
}
