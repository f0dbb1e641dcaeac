//! `rproc logs`: the output of a process.

use clap::ValueEnum;
use remoteprocess_proto::v1::{Cursor, ProcessKey, Stream};
use tokio::time::Instant;

use super::{Failure, open};
use crate::args::GlobalArgs;
use crate::connect::{Cluster, Relay, Rule};
use crate::exit;
use crate::follow::{Follower, Ledger, Narrator, Want};
use crate::output::Output;

/// Flags of `logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct LogsArgs {
    /// Name of the process
    #[arg(required_unless_present = "uid")]
    pub name: Option<String>,
    /// Wait for more until the process has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Begin at the last N lines
    #[arg(long, value_name = "N", conflicts_with = "offset")]
    pub tail: Option<u64>,
    /// Only one of the two streams
    #[arg(long, value_enum)]
    pub stream: Option<StreamName>,
    /// Begin at byte N of one stream (stdout unless --stream says otherwise)
    #[arg(long, value_name = "N")]
    pub offset: Option<u64>,
    /// Put the time before each line
    #[arg(long)]
    pub timestamps: bool,
    /// Number of the attempt, instead of the latest
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub attempt: u32,
    /// Uid of the process, also of one that was deleted
    #[arg(long)]
    pub uid: Option<String>,
    /// Let control characters through to a terminal
    #[arg(long)]
    pub raw: bool,
    /// Say nothing of our own but errors
    #[arg(short, long)]
    pub quiet: bool,
}

const EXAMPLES: &str = "Examples:
  # Everything so far
  rproc logs build

  # From the beginning to the end, then exit with the program's exit code
  rproc logs -f build

  # The last ten lines of standard error, and what follows
  rproc logs -f --tail 10 --stream stderr build

  # Go on where an earlier download ended
  rproc logs --offset \"$(stat -c %s out.bin)\" build >> out.bin

Of a process that has ended the exit code is the program's; of one that still
runs (without -f) it is 0. Ctrl-C ends rproc only.";

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

/// Writes the output, and answers the program's code.
///
/// # Errors
/// There is no such process, its output may not be read, or its end cannot be known.
pub async fn run(global: &GlobalArgs, args: LogsArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    let key = key(&cluster, &args).await?;
    let name = if key.name.is_empty() {
        key.uid.clone()
    } else {
        key.name.clone()
    };
    let output = Output::standard(args.raw, args.timestamps)?;
    let mut follower = Follower {
        dial: Relay::new(cluster),
        ledger: Ledger::new(want(&args, key)),
        output: &output,
        narrator: Narrator::new(&name, args.quiet),
        unknown_until: Instant::now(),
    };
    let Some(exit) = follower.run().await? else {
        return lost(&follower.ledger, &name);
    };
    let verdict = exit::judge(&name, &exit, &follower.ledger);
    if let Some(sentence) = verdict
        .sentence
        .filter(|_| !args.quiet || verdict.code == exit::UNKNOWN)
    {
        output.line(&sentence).await?;
        output.flush().await?;
    }
    Ok(verdict.code)
}

/// The process goes on; what was read of it so far may have holes.
fn lost(ledger: &Ledger, name: &str) -> Result<u8, Failure> {
    match ledger.losses().first() {
        Some(gap) => Err(Failure::new(format!("{name}: {}", exit::loss(gap)))),
        None => Ok(0),
    }
}

fn want(args: &LogsArgs, process: ProcessKey) -> Want {
    let stream = match (args.stream, args.offset) {
        (Some(name), _) => name.into(),
        (None, Some(_)) => Stream::Stdout,
        (None, None) => Stream::Unspecified,
    };
    let cursor = args.offset.map(|offset| {
        let mut cursor = Cursor::default();
        cursor.set(stream, offset);
        cursor
    });
    Want {
        process,
        attempt: args.attempt,
        stream,
        cursor,
        tail_lines: args.tail,
        follow: args.follow,
    }
}

/// The uid is pinned, so that a later process of the same name is not taken for this one.
async fn key(cluster: &Cluster, args: &LogsArgs) -> Result<ProcessKey, Failure> {
    let name = args.name.clone().unwrap_or_default();
    let mut key = ProcessKey {
        namespace: cluster.namespace.clone(),
        name,
        uid: args.uid.clone().unwrap_or_default(),
    };
    if !key.uid.is_empty() {
        return Ok(key);
    }
    match cluster.processes().get_opt(&key.name).await {
        Ok(Some(object)) => key.uid = object.metadata.uid.unwrap_or_default(),
        Ok(None) => {
            return Err(Failure::new(format!(
                "there is no process {} in namespace {}. The output of a deleted one is read by --uid",
                key.name, key.namespace
            )));
        }
        // Whoever may read the output and not the object gets it by name.
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        Err(error) => {
            return Err(cluster
                .error(&error, &Rule::process("get", "remoteprocess-view"), "read the process")
                .into());
        }
    }
    Ok(key)
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
        )
    }

    #[test]
    fn an_offset_is_of_one_stream() {
        assert_eq!(wanted(&["--offset", "7"]).cursor, Some(Cursor { stdout: 7, stderr: 0 }));
        assert_eq!(wanted(&["--offset", "7"]).stream, Stream::Stdout);
        let stderr = wanted(&["--offset", "7", "--stream", "stderr"]);
        assert_eq!(
            (stderr.stream, stderr.cursor),
            (Stream::Stderr, Some(Cursor { stdout: 0, stderr: 7 }))
        );
        assert_eq!((wanted(&[]).stream, wanted(&[]).cursor), (Stream::Unspecified, None));
    }
}
