use std::{
    fmt,
    io::{IsTerminal, stderr},
    str::FromStr,
};

use tracing_subscriber::{
    EnvFilter,
    fmt::SubscriberBuilder,
    util::{SubscriberInitExt, TryInitError},
};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `Text` where stderr is a terminal, else `Json`.
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

/// Why there are no logs.
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
}

/// Sends logs to stderr. `filter` is a tracing filter, for example `info,remoteprocess_operator=debug`.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let builder = SubscriberBuilder::default()
        .with_writer(stderr)
        // Else a log that cannot be written is reported by a macro that panics.
        .log_internal_errors(false)
        .with_env_filter(EnvFilter::try_new(filter)?);
    let is_text = match format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Text => true,
    };
    if is_text {
        builder.finish().try_init()?;
    } else {
        builder.json().flatten_event(true).finish().try_init()?;
    }
    Ok(())
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
