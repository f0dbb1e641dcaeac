mod fold;
mod rotated;

use std::{
    fmt,
    io::{self, IsTerminal, stderr},
    path::PathBuf,
    str::FromStr,
    sync::Mutex,
    thread,
    time::Instant,
};

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt::{layer, writer::BoxMakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use self::{
    fold::{AUDIT, Fold},
    rotated::Rotated,
};

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
    /// The thread that reports folded lines cannot be started, or the file of the audit log cannot be opened.
    #[error("cannot open the audit log, or start the thread of the logs")]
    Io(#[from] io::Error),
}

/// Where audit lines go instead of stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFile {
    /// The file. When it is full it becomes `PATH.1`, in place of the one before.
    pub path: PathBuf,
    /// Maximum size of both files together in bytes.
    pub size: u64,
}

/// Sends logs to stderr. `filter` is a tracing filter, for example `info,remoteprocess_operator=debug`. Lines with the
/// target `audit` are a stream of their own, to which `filter` does not apply; with `audit` they go to that file, always
/// as JSON. In both, repeated lines are folded, so that no peer can flood them.
pub fn init_logs(format: LogFormat, filter: &str, audit: Option<&AuditFile>) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter)?;
    let is_text = match format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Json => false,
        LogFormat::Text => true,
    };
    let (log_fold, audit_fold) = (Fold::default(), Fold::default());
    let log = filter
        .and(filter_fn(|metadata| metadata.target() != AUDIT))
        .and(log_fold.clone());
    let log = lines(BoxMakeWriter::new(stderr), is_text).with_filter(log);
    let (writer, is_text) = match audit {
        Some(file) => (BoxMakeWriter::new(Mutex::new(Rotated::open(file)?)), false),
        None => (BoxMakeWriter::new(stderr), is_text),
    };
    let audit = filter_fn(|metadata| metadata.target() == AUDIT).and(audit_fold.clone());
    let audit = lines(writer, is_text).with_filter(audit);
    Registry::default().with(vec![log.boxed(), audit.boxed()]).try_init()?;
    thread::Builder::new()
        .name("logs".to_owned())
        .spawn(move || tell(&log_fold, &audit_fold))?;
    Ok(())
}

/// Writes each event as one line.
fn lines(writer: BoxMakeWriter, is_text: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    // Otherwise a log line that cannot be written is reported by a macro that panics.
    let lines = layer().with_writer(writer).log_internal_errors(false);
    if is_text {
        lines.boxed()
    } else {
        lines.json().flatten_event(true).with_span_list(false).boxed()
    }
}

/// Logs at intervals how many lines were folded.
fn tell(log: &Fold, audit: &Fold) {
    loop {
        thread::sleep(fold::WINDOW);
        for folded in log.take(Instant::now()) {
            tracing::warn!(
                lines = folded.lines,
                like = folded.message,
                of = folded.peer,
                "left out repeated lines"
            );
        }
        for folded in audit.take(Instant::now()) {
            tracing::info!(
                target: AUDIT,
                action = "repeat",
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
        assert!(matches!(
            init_logs(LogFormat::Json, "a=b=c", None),
            Err(LogError::Filter(_))
        ));
    }
}
