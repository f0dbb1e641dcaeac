use std::time::Duration;

use remoteprocess_api::{AttemptOutput, RemoteProcess, RemoteProcessStatus};
use remoteprocess_client::observe::{self, Seen};
use remoteprocess_client::{Cluster, Dial, Follower, Ledger};
use remoteprocess_proto::STREAMS;
use remoteprocess_proto::v1::{Exit, Gap, ProcessKey, SealReason};
use tokio::time::Instant;

use super::job::{LogsArgs, shown, want};
use crate::exit;
use crate::failure::Failure;
use crate::output::{Control, Form, Hashes, Output};
use crate::progress::Messages;

/// How long to wait for the status, which follows the end of the stream.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// Reads all output of an attempt, reports on standard error whether it matches the seal, and returns 0 or 125.
pub(super) async fn run(dial: impl Dial, cluster: &Cluster, args: &LogsArgs, key: ProcessKey) -> Result<u8, Failure> {
    let shown = shown(&key);
    let output = Output::standard(Form::Hash, Control::Shown)?;
    let mut follower = Follower {
        dial,
        ledger: Ledger::new(want(args, key, jiff::Timestamp::now())),
        sink: output.clone(),
        progress: Messages::new(&shown, args.quiet, &output),
        unknown_until: Instant::now(),
    };
    let Some(exit) = follower.run().await? else {
        return Err(Failure::new(format!(
            "{shown} has not ended, so its output is not sealed yet. Wait for the end with -f"
        )));
    };
    let ledger = &follower.ledger;
    let (attempt, status) = recorded(cluster, ledger.process(), ledger.attempt()).await?;
    let finding = Finding {
        name: match attempt {
            Some(attempt) => format!("{shown}, attempt {attempt}"),
            None => shown,
        },
        bytes: STREAMS.map(|stream| ledger.reached(stream)),
        hashes: output.hashes().await?,
        losses: ledger.losses(),
        exit: &exit,
        status,
    };
    let verdict = finding.verdict();
    if verdict.code != 0 || !args.quiet {
        output.line(&verdict.message.unwrap_or_default()).await?;
    }
    output.flush().await?;
    Ok(verdict.code)
}

/// What the status says about the output.
enum Recorded {
    Output(AttemptOutput),
    /// Nothing.
    Nothing,
    /// The status is gone, may not be read, or has no record of this attempt.
    Unknown,
}

/// The sealed record in the status, and its attempt.
async fn recorded(
    cluster: &Cluster,
    key: &ProcessKey,
    attempt: Option<u32>,
) -> Result<(Option<u32>, Recorded), Failure> {
    if key.name.is_empty() {
        return Ok((attempt, Recorded::Unknown));
    }
    let api = kube::Api::<RemoteProcess>::namespaced(cluster.client.clone(), &key.namespace);
    let uid = Some(key.uid.as_str()).filter(|uid| !uid.is_empty());
    let deadline = Some(Instant::now() + STATUS_LIMIT);
    let found = observe::until(&api, &key.name, uid, deadline, |seen| match seen {
        Seen::Gone => Some((attempt, Recorded::Unknown)),
        Seen::There(object) => {
            let status = object.status.as_ref()?;
            recorded_of(status, attempt)
        }
    });
    match found.await {
        Ok(found) => Ok(found),
        Err(observe::Error::TimedOut(_)) => Ok((attempt, Recorded::Nothing)),
        Err(observe::Error::Api(kube::Error::Api(status))) if status.code == 403 => Ok((attempt, Recorded::Unknown)),
        Err(observe::Error::Api(error)) => Err(Failure::new(format!("cannot read the process: {error}"))),
    }
}

/// What the status says about `attempt`, or about the latest; `None` if it may still say something.
fn recorded_of(status: &RemoteProcessStatus, attempt: Option<u32>) -> Option<(Option<u32>, Recorded)> {
    let number = attempt.or_else(|| status.latest_attempt().map(|latest| latest.number))?;
    let recorded = match status.attempt(number) {
        None if !status.keeps(number) => Recorded::Unknown,
        record => Recorded::Output(record?.output.clone()?),
    };
    Some((Some(number), recorded))
}

/// What was read, and the records with which it is compared.
struct Finding<'a> {
    name: String,
    bytes: [u64; 2],
    hashes: Hashes,
    losses: &'a [Gap],
    exit: &'a Exit,
    status: Recorded,
}

impl Finding<'_> {
    fn verdict(&self) -> exit::Verdict {
        let mut wrong: Vec<String> = self.losses.iter().map(remoteprocess_client::gap::loss).collect();
        wrong.extend(self.against_seal());
        wrong.extend(self.against_status());
        let (code, first) = if wrong.is_empty() {
            let by = match self.status {
                Recorded::Unknown => "the archive's seal (the object's status has no record of it)",
                _ => "the seal and the status",
            };
            (0, format!("{}: verified by {by}", self.name))
        } else {
            (exit::UNKNOWN, format!("{}: not verified", self.name))
        };
        let read = STREAMS.into_iter().enumerate();
        let read = read.map(|(index, stream)| {
            let hash = hex::encode(self.hashes[index]);
            format!("  {}: {} bytes, sha256 {hash}", stream.name(), self.bytes[index])
        });
        let lines: Vec<String> = std::iter::once(first)
            .chain(wrong.iter().map(|wrong| format!("  {wrong}")))
            .chain(read.filter(|_| self.losses.is_empty()))
            .collect();
        exit::Verdict {
            code,
            message: Some(lines.join("\n")),
        }
    }

    fn against_seal(&self) -> Vec<String> {
        let Some(seal) = &self.exit.seal else {
            return vec!["nothing was sealed".into()];
        };
        let mut wrong = Vec::new();
        if !self.exit.sealed || seal.reason() != SealReason::Unspecified {
            let why = match seal.reason() {
                SealReason::Unspecified => "output is missing",
                reason => reason.into(),
            };
            wrong.push(format!("the seal is not whole ({why})"));
        }
        for (index, stream) in [&seal.stdout, &seal.stderr].into_iter().enumerate() {
            let (bytes, hash) = stream
                .as_ref()
                .map(|stream| (stream.bytes, hex::encode(&stream.sha256)))
                .unwrap_or_default();
            wrong.extend(self.compare(index, "the seal", bytes, Some(&hash)));
        }
        wrong
    }

    fn against_status(&self) -> Vec<String> {
        let output = match &self.status {
            Recorded::Output(output) => output,
            Recorded::Nothing => return vec!["the status has no record of the output".into()],
            Recorded::Unknown => return Vec::new(),
        };
        let streams = [&output.stdout, &output.stderr].into_iter().enumerate();
        streams
            .filter_map(|(index, stream)| self.compare(index, "the status", stream.bytes, stream.sha256.as_deref()))
            .collect()
    }

    /// If bytes are missing, their count and hash add no information.
    fn compare(&self, index: usize, whose: &str, bytes: u64, hash: Option<&str>) -> Option<String> {
        let stream = STREAMS[index].name();
        if self.losses.iter().any(|gap| gap.stream().name() == stream) {
            return None;
        }
        let read = hex::encode(self.hashes[index]);
        match hash.filter(|hash| !hash.is_empty()) {
            _ if bytes != self.bytes[index] => Some(format!(
                "{stream} has {} bytes, and {whose} says {bytes}",
                self.bytes[index]
            )),
            None => Some(format!("{whose} has no hash of {stream}")),
            Some(hash) if hash != read => Some(format!("{stream} has sha256 {read}, and {whose} says {hash}")),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_api::{AttemptStatus, StreamStatus};
    use remoteprocess_proto::v1::{GapReason, Seal, Stream, StreamSeal};

    fn exit() -> Exit {
        let seal = |bytes, hash: u8| {
            Some(StreamSeal {
                bytes,
                sha256: vec![hash; 32].into(),
                ..StreamSeal::default()
            })
        };
        Exit {
            sealed: true,
            seal: Some(Seal {
                stdout: seal(3, 1),
                stderr: seal(0, 2),
                ..Seal::default()
            }),
            ..Exit::default()
        }
    }

    fn status() -> AttemptOutput {
        let stream = |bytes, hash: u8| StreamStatus {
            bytes,
            sha256: Some(hex::encode([hash; 32])),
            ..StreamStatus::default()
        };
        AttemptOutput {
            stdout: stream(3, 1),
            stderr: stream(0, 2),
            sealed: true,
        }
    }

    fn verdict(exit: &Exit, status: Recorded, losses: &[Gap]) -> (u8, String) {
        let verdict = Finding {
            name: "job, attempt 1".into(),
            bytes: [3, 0],
            hashes: [[1; 32], [2; 32]],
            losses,
            exit,
            status,
        }
        .verdict();
        (verdict.code, verdict.message.unwrap())
    }

    #[test]
    fn what_agrees_is_verified() {
        let (code, text) = verdict(&exit(), Recorded::Output(status()), &[]);
        assert_eq!(code, 0);
        insta::assert_snapshot!(text, @r"
        job, attempt 1: verified by the seal and the status
          stdout: 3 bytes, sha256 0101010101010101010101010101010101010101010101010101010101010101
          stderr: 0 bytes, sha256 0202020202020202020202020202020202020202020202020202020202020202
        ");
        assert_eq!(verdict(&exit(), Recorded::Unknown, &[]).0, 0);
    }

    #[test]
    fn a_status_keeps_the_first_and_the_last_attempts() {
        let attempt = |number| AttemptStatus {
            number,
            output: (number != 31).then(status),
            ..AttemptStatus::default()
        };
        let status = RemoteProcessStatus {
            attempt: Some(31),
            attempts: vec![attempt(1), attempt(30), attempt(31)],
            ..RemoteProcessStatus::default()
        };
        let found = |attempt| recorded_of(&status, attempt);
        assert!(matches!(found(Some(1)), Some((Some(1), Recorded::Output(_)))));
        assert!(matches!(found(Some(15)), Some((Some(15), Recorded::Unknown))));
        assert!(found(None).is_none(), "the record of the latest is not there yet");
    }

    #[test]
    fn each_disagreement_is_named() {
        let seal = |change: fn(&mut Seal)| {
            let mut exit = exit();
            change(exit.seal.as_mut().unwrap());
            verdict(&exit, Recorded::Output(status()), &[])
        };
        let status = |change: fn(&mut AttemptOutput)| {
            let mut status = status();
            change(&mut status);
            verdict(&exit(), Recorded::Output(status), &[])
        };
        let unsealed = verdict(&Exit::default(), Recorded::Unknown, &[]);
        let silent = verdict(&exit(), Recorded::Nothing, &[]);
        for ((code, text), word) in [
            (seal(|seal| seal.stdout.as_mut().unwrap().bytes = 4), "the seal says 4"),
            (
                seal(|seal| seal.stderr.as_mut().unwrap().sha256 = vec![9; 32].into()),
                "stderr has sha256 0202",
            ),
            (
                seal(|seal| seal.stdout.as_mut().unwrap().sha256 = Vec::new().into()),
                "the seal has no hash of stdout",
            ),
            (seal(|seal| seal.set_reason(SealReason::PipeHeld)), "PipeHeld"),
            (status(|status| status.stdout.bytes = 2), "the status says 2"),
            (
                status(|status| status.stderr.sha256 = Some("aa".into())),
                "the status says aa",
            ),
            (unsealed, "nothing was sealed"),
            (silent, "no record"),
        ] {
            assert_eq!(code, 125, "{text}");
            assert!(text.contains("not verified") && text.contains(word), "{text}");
        }
    }

    #[test]
    fn missing_output_is_reported() {
        let gap = Gap {
            stream: Stream::Stdout.into(),
            from: 1,
            to: Some(2),
            reason: GapReason::SpoolFull.into(),
        };
        let mut exit = exit();
        exit.sealed = false;
        let (code, text) = verdict(&exit, Recorded::Output(status()), &[gap]);
        assert_eq!(code, 125);
        insta::assert_snapshot!(text, @r"
        job, attempt 1: not verified
          bytes 1 to 2 of stdout were dropped because the spool was full (spec.output.whenFull: DropOldest)
          the seal is not whole (output is missing)
        ");
    }
}
