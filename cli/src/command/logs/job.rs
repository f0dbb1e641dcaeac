//! Prints the output of one process: the flags of `logs`, and what follows from them.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use remoteprocess_api::RemoteProcess;
use remoteprocess_client::{Cluster, Dial, Follower, Ledger, Rule, Want};
use remoteprocess_proto::v1::{Cursor, ProcessKey, Stream};
use tokio::time::Instant;

use super::place::{self, Offset};
use crate::args::process_name;
use crate::command::follow::Signals;
use crate::command::next_attempt::{self, NextAttempt};
use crate::exit::{self, Record, Verdict};
use crate::failure::Failure;
use crate::output::{self, Control, Form, Label, Output, Prefix};
use crate::progress::Messages;

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LogsArgs {
    /// Names of the processes
    #[arg(value_name = "NAME", required_unless_present_any = ["uid", "selector", "all_namespaces"], value_parser = process_name)]
    pub names: Vec<String>,
    /// Print new output until the process ends
    #[arg(short, long)]
    pub follow: bool,
    /// Print the output of all processes with these labels (app=web,tier!=test); with -f also of new ones
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with_all = ["names", "uid"])]
    pub selector: Option<String>,
    /// Across all namespaces
    #[arg(short = 'A', long, conflicts_with_all = ["names", "uid"])]
    pub all_namespaces: bool,
    /// Print only the last N lines
    #[arg(long, value_name = "N", conflicts_with = "offset")]
    pub tail: Option<u64>,
    /// Print only output newer than this: 90s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = crate::args::duration, conflicts_with_all = ["offset", "since_time"])]
    pub since: Option<Duration>,
    /// Print only output after this time (RFC 3339)
    #[arg(long, value_name = "MOMENT", value_parser = place::moment, conflicts_with = "offset")]
    pub since_time: Option<Timestamp>,
    /// Print only one of the two streams
    #[arg(long, value_enum)]
    pub stream: Option<StreamName>,
    /// Start at byte N of one stream (stdout, unless --stream is set), or of both: stdout=N,stderr=M
    #[arg(long, value_name = "N")]
    pub offset: Option<Offset>,
    /// Print the time before each line
    #[arg(short = 't', long)]
    pub timestamps: bool,
    /// Print the name of the process before each line; default for several processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub prefix: Option<bool>,
    /// When to color the names; NO_COLOR turns colors off
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true
    )]
    pub color: Color,
    /// Format: one JSON object per line of output, gap and end
    #[arg(short, long, value_enum, value_name = "FORMAT", conflicts_with_all = ["timestamps", "raw", "prefix"])]
    pub output: Option<OutputFormat>,
    /// Attempt to print, instead of the latest
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub attempt: u32,
    /// UID of the process; a deleted one can be named only like this
    #[arg(long, value_parser = crate::args::uid)]
    pub uid: Option<String>,
    /// Maximum number of processes to follow at once
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_log_requests: u16,
    /// Do not print the output: hash it and compare it with the sealed record
    #[arg(long, conflicts_with_all = ["tail", "since", "since_time", "offset", "stream", "timestamps", "output", "raw",
          "prefix"])]
    pub verify: bool,
    /// Send control characters to the terminal unchanged
    #[arg(long)]
    pub raw: bool,
    /// Print no messages of rproc except errors
    #[arg(short, long)]
    pub quiet: bool,
}

const EXAMPLES: &str = "Examples:
  # The output so far
  rproc logs build

  # Follow to the end, and exit with the exit code of the program
  rproc logs -f build

  # The last ten lines of standard error, and new ones
  rproc logs -f --tail 10 --stream stderr build

  # All processes with a label, and new ones; each line with its name
  rproc logs -f -l app=web

  # Continue an earlier download
  rproc logs --offset \"$(stat -c %s out.bin)\" build >> out.bin

  # Verify that the archived output is what the program wrote
  rproc logs --verify build

The exit code is that of the program. It is 0 if the program still runs and -f
is not set. For several processes it is 0 if all that ended exited with 0, 125
if an exit code or a part of the output is not known, and otherwise 1. Ctrl-C
ends only rproc.";

/// One stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StreamName {
    /// Standard output
    Stdout,
    /// Standard error
    Stderr,
}

impl From<StreamName> for Stream {
    fn from(name: StreamName) -> Self {
        match name {
            StreamName::Stdout => Self::Stdout,
            StreamName::Stderr => Self::Stderr,
        }
    }
}

/// When there are colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Also elsewhere
    Always,
    /// Nowhere
    Never,
}

/// Formats other than the plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// One JSON object a line
    Json,
}

/// How printing ended.
pub(super) enum Over<T> {
    Done(T),
    /// By a signal, with our exit code.
    Left(u8),
}

/// Runs `work`. If the terminal executes control sequences, it is restored afterwards, also after a signal.
pub(super) async fn restored<T>(
    output: &Output,
    args: &LogsArgs,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Over<T>, Failure> {
    if control(args) == Control::Shown {
        return work.await.map(Over::Done);
    }
    let mut signals = Signals::listen()?;
    let over = tokio::select! {
        done = work => done.map(Over::Done),
        number = signals.next() => Ok(Over::Left(128 + number)),
    };
    output.restore().await;
    over
}

/// The output of one process, from its position to its end.
pub(super) struct Job {
    pub(super) want: Want,
    pub(super) output: Output,
    pub(super) messages: Messages,
    pub(super) unknown_until: Instant,
    /// Set if every attempt is followed.
    pub(super) next_attempt: Option<NextAttempt>,
    pub(super) is_quiet: bool,
}

impl Job {
    /// Prints it. While the process runs, the code is 0, or 125 if bytes are lost.
    pub(super) async fn run(
        self,
        dial: impl Dial,
    ) -> Result<(Option<remoteprocess_proto::v1::Exit>, Verdict), Failure> {
        let name = shown(&self.want.process);
        let mut follower = Follower {
            dial,
            ledger: Ledger::new(self.want),
            sink: self.output.clone(),
            progress: self.messages,
            unknown_until: self.unknown_until,
        };
        let exit = next_attempt::follow(&mut follower, self.next_attempt.as_ref(), self.is_quiet).await?;
        let verdict = match &exit {
            Some(exit) => exit::verdict(&name, exit, &follower.ledger),
            None => open_ended(&name, &follower.ledger),
        };
        if let Some(exit) = &exit {
            let ProcessKey { namespace, name, uid } = follower.ledger.process();
            let record = Record::new(namespace, name, uid, Some(exit), &verdict);
            self.output.exit(record).await?;
        }
        self.output.close().await?;
        self.output.flush().await?;
        Ok((exit, verdict))
    }
}

/// `-f` continues with each further attempt, unless an attempt was given.
pub(super) fn next_attempt(cluster: &Arc<Cluster>, args: &LogsArgs, key: &ProcessKey) -> Option<NextAttempt> {
    let is_meant = args.follow && args.attempt == 0 && !key.name.is_empty();
    is_meant.then(|| NextAttempt::new(cluster, key))
}

/// The result for a process that still runs: bytes may be missing in what was read so far.
pub(super) fn open_ended(name: &str, ledger: &Ledger) -> Verdict {
    let lost = remoteprocess_client::gap::losses(ledger.losses());
    Verdict {
        code: if lost.is_some() { exit::UNKNOWN } else { 0 },
        message: lost.map(|lost| format!("{name}: {lost}")),
    }
}

pub(super) fn shown(key: &ProcessKey) -> String {
    if key.name.is_empty() {
        key.uid.clone()
    } else {
        key.name.clone()
    }
}

pub(super) fn label(key: &ProcessKey) -> Label {
    Label {
        namespace: key.namespace.clone(),
        process: shown(key),
    }
}

/// The bytes of a single process are printed unchanged, unless its name was requested.
pub(super) fn form(args: &LogsArgs, is_many: bool) -> Form {
    let is_stamped = args.timestamps;
    let prefix = args.prefix.unwrap_or(is_many).then(|| Prefix {
        with_namespace: args.all_namespaces,
        is_colored: match args.color {
            Color::Auto => output::shows_colors(),
            Color::Always => true,
            Color::Never => false,
        },
    });
    match args.output {
        Some(OutputFormat::Json) => Form::Json,
        None if is_many || prefix.is_some() => Form::Lines { is_stamped, prefix },
        None => Form::Bytes { is_stamped },
    }
}

/// How this terminal handles control sequences: no input goes to the process.
pub(super) const fn control(args: &LogsArgs) -> Control {
    match args.raw {
        true => Control::Watched,
        false => Control::Shown,
    }
}

pub(super) fn want(args: &LogsArgs, process: ProcessKey, now: Timestamp) -> Want {
    let (stream, cursor) = match (args.stream, args.offset) {
        (_, Some(Offset::Both(cursor))) => (Stream::Unspecified, Some(cursor)),
        (name, Some(Offset::One(offset))) => {
            let stream = name.map_or(Stream::Stdout, Stream::from);
            let mut cursor = Cursor::default();
            cursor.set(stream, offset);
            (stream, Some(cursor))
        }
        (name, None) => (name.map_or(Stream::Unspecified, Stream::from), None),
    };
    // As with kubectl, a duration of zero leaves nothing out.
    let span = args.since.filter(|span| !span.is_zero());
    let since = args.since_time.or_else(|| span.map(|span| place::before(now, span)));
    Want {
        process,
        attempt: args.attempt,
        stream,
        cursor,
        tail_lines: args.tail,
        since_unix_nanos: since.map(place::nanos),
        follow: args.follow,
    }
}

pub(super) async fn key(
    cluster: &Arc<Cluster>,
    name: Option<&String>,
    uid: Option<&str>,
) -> Result<ProcessKey, Failure> {
    Ok(find(cluster, name, uid).await?.0)
}

/// The requested process, and its object if it may be read. The uid is pinned, so that a later process of the same name
/// is not taken for this one.
pub(super) async fn find(
    cluster: &Arc<Cluster>,
    name: Option<&String>,
    uid: Option<&str>,
) -> Result<(ProcessKey, Option<Box<RemoteProcess>>), Failure> {
    let mut key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name: name.cloned().unwrap_or_default(),
        uid: uid.unwrap_or_default().to_owned(),
    };
    if !key.uid.is_empty() {
        return Ok((key, None));
    }
    match cluster.processes().get_opt(&key.name).await {
        Ok(Some(object)) => {
            key.uid = object.metadata.uid.clone().unwrap_or_default();
            return Ok((key, Some(Box::new(object))));
        }
        Ok(None) => {
            return Err(Failure::new(format!(
                "there is no process {} in namespace {}. The output of a deleted one is read by --uid",
                key.name, key.namespace
            )));
        }
        // A user who may read the output but not the object gets it by name.
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        Err(error) => {
            return Err(cluster
                .error(&error, &Rule::process("get", "remoteprocess-view"), "read the process")
                .into());
        }
    }
    Ok((key, None))
}

/// Reports that the output of earlier attempts is not shown, if there is any.
pub(super) fn earlier(object: &RemoteProcess) -> Option<String> {
    let status = object.status.as_ref()?;
    let latest = status.current_attempt()?;
    let ran = status
        .attempts
        .iter()
        .filter(|attempt| attempt.number < latest && attempt.granted_at.is_some());
    let last = ran.map(|attempt| attempt.number).max()?;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    Some(format!(
        "this is attempt {latest} of {name}. Earlier ones: rproc logs --attempt {last} {name}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn wanted(words: &[&str]) -> Want {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            args: LogsArgs,
        }
        want(
            &Only::try_parse_from([&["logs", "job"], words].concat()).unwrap().args,
            ProcessKey::default(),
            "2026-01-01T00:00:10Z".parse().unwrap(),
        )
    }

    #[test]
    fn earlier_attempts_are_not_silently_left_out() {
        let object = |attempts: serde_json::Value| -> RemoteProcess {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "metadata": {"name": "job"},
                "spec": {"image": "i", "command": ["x"]}, "status": {"attempt": 3, "attempts": attempts},
            }))
            .unwrap()
        };
        let ran = |number: u32| serde_json::json!({"number": number, "grantedAt": "2026-01-01T00:00:00Z"});
        let waited = |number: u32| serde_json::json!({"number": number});
        let said = earlier(&object([ran(1), ran(2), ran(3)].into_iter().collect())).unwrap();
        insta::assert_snapshot!(said, @"this is attempt 3 of job. Earlier ones: rproc logs --attempt 2 job");
        assert_eq!(
            earlier(&object([waited(1), waited(2), ran(3)].into_iter().collect())),
            None
        );
    }

    #[test]
    fn an_offset_is_of_one_stream_or_of_both() {
        let place = |words: &[&str]| (wanted(words).stream, wanted(words).cursor);
        let stdout = Cursor { stdout: 7, stderr: 0 };
        let stderr = Cursor { stdout: 0, stderr: 7 };
        assert_eq!(place(&["--offset", "7"]), (Stream::Stdout, Some(stdout)));
        assert_eq!(
            place(&["--offset", "7", "--stream", "stderr"]),
            (Stream::Stderr, Some(stderr))
        );
        let both = Cursor { stdout: 7, stderr: 9 };
        assert_eq!(
            place(&["--offset", "stdout=7,stderr=9"]),
            (Stream::Unspecified, Some(both))
        );
        assert_eq!(place(&[]), (Stream::Unspecified, None));
    }

    #[test]
    fn a_time_is_a_moment_or_a_span_before_now() {
        let since = |words: &[&str]| wanted(words).since_unix_nanos;
        assert_eq!(since(&["--since", "10s"]), Some(1_767_225_600_000_000_000));
        assert_eq!(
            since(&["--since-time", "2026-01-01T01:00:00.5+01:00"]),
            Some(1_767_225_600_500_000_000)
        );
        assert_eq!((since(&["--since", "0"]), since(&[])), (None, None));
    }
}
