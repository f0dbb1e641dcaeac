//! Maps the end of a process to our own exit code.

use std::path::Path;

use jiff::Timestamp;
use remoteprocess_api::{Phase, RemoteProcessStatus, signal};
use remoteprocess_client::{Ledger, gap};
use remoteprocess_proto::v1::{Exit, Reason, Seal, SealReason, StreamSeal, exit::Outcome};
use serde::Serialize;

/// Our exit code if the program's is not known, or if rproc itself failed.
pub const UNKNOWN: u8 = 125;
/// Our exit code if the reader of our output is gone: the same as if SIGPIPE had ended us, as it ends `cat`.
pub const PIPE: u8 = 128 + 13;
/// Our exit code after a run deadline, whatever the program's code, as with timeout(1).
pub const DEADLINE: u8 = 124;
/// Our exit code if a program was asked to stop and ended with code 0: the same as if SIGTERM had ended it.
pub const STOPPED: u8 = 128 + 15;

/// Our exit code, and a message if it is not the program's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Our exit code.
    pub code: u8,
    /// Why the code is what it is; absent if it is the program's own.
    pub message: Option<String>,
}

impl Verdict {
    /// The message to print; if only errors are wanted, only that the end is not known.
    pub fn said(&self, is_quiet: bool) -> Option<&str> {
        self.message.as_deref().filter(|_| !is_quiet || self.code == UNKNOWN)
    }
}

/// Our exit code after `exit`, having received what `ledger` recorded.
pub fn verdict(name: &str, exit: &Exit, ledger: &Ledger) -> Verdict {
    let ended = ending(exit);
    let unknown = |message| Verdict {
        code: UNKNOWN,
        message: Some(message),
    };
    let Some(code) = code(exit) else {
        let what = if exit.reason() == Reason::Unspecified {
            "its exit code is not known"
        } else {
            "it has no exit code"
        };
        let message = format!("{name}: {what}{}. See: rproc describe {name}", because(exit));
        let code = match exit.reason() {
            // The program did not start in time.
            Reason::DeadlineExceeded => DEADLINE,
            _ => UNKNOWN,
        };
        return Verdict {
            code,
            message: Some(message),
        };
    };
    if let Some(lost) = gap::losses(ledger.losses()) {
        return unknown(format!("{name} {ended}, but {lost}. See: rproc describe {name}"));
    }
    if !exit.sealed {
        let why = match exit.seal.as_ref().map(Seal::reason).unwrap_or_default() {
            SealReason::Unspecified => because(exit),
            reason => format!(" ({reason})"),
        };
        return unknown(format!(
            "{name} {ended}, but its output may not be whole{why}. See: rproc describe {name}"
        ));
    }
    if let Some(wrong) = ledger.audit(exit) {
        return unknown(format!("{name} {ended}, but {wrong}. Please report this as a bug"));
    }
    Verdict {
        code: verdict_code(exit, code),
        message: explanation(name, exit),
    }
}

/// Whether the phase of the process is Succeeded: only with code 0, and without an earlier cause of the end.
pub fn is_success(exit: &Exit) -> bool {
    // A reason that only a newer operator knows is no success.
    let is_ordinary = matches!(
        Reason::try_from(exit.reason),
        Ok(Reason::Unspecified | Reason::Completed)
    );
    code(exit) == Some(0) && exit.stop.is_none() && is_ordinary
}

/// Our exit code after complete output. It is 0 only if the phase is Succeeded, so that `rproc run … && deploy` does
/// not deploy after a deadline or a stop.
fn verdict_code(exit: &Exit, code: u8) -> u8 {
    match (Reason::try_from(exit.reason), code) {
        (Ok(Reason::DeadlineExceeded), _) => DEADLINE,
        (_, 0) if is_success(exit) => 0,
        (Ok(Reason::Unspecified | Reason::Completed | Reason::Stopped), 0) => STOPPED,
        // An eviction or a preemption uses the stop path, too.
        (_, 0) if exit.stop.is_some() => STOPPED,
        (_, 0) => UNKNOWN,
        (_, code) => code,
    }
}

/// The program's code; 128 + n after signal n; `None` if it is not known.
pub fn code(exit: &Exit) -> Option<u8> {
    match exit.outcome() {
        Outcome::Unknown => None,
        Outcome::Code => u8::try_from(exit.value).ok(),
        Outcome::Signal => u8::try_from(exit.value)
            .ok()
            .and_then(|number| 128u8.checked_add(number)),
    }
}

/// The end with the reason of the final status. Only the operator knows why a pod was ended: where the status says
/// `Evicted`, the agent saw a stop by the kubelet.
pub fn confirmed(mut exit: Exit, status: &RemoteProcessStatus) -> Exit {
    let reason = status.reason.filter(|_| status.phase.is_some_and(Phase::is_final));
    let reason = reason.and_then(|reason| reason.to_string().parse::<Reason>().ok());
    if let Some(reason) =
        reason.filter(|reason| exit.stop.is_some() && ![Reason::Stopped, exit.reason()].contains(reason))
    {
        exit.reason = reason.into();
        exit.message = status.message.clone().unwrap_or_default();
    }
    exit
}

/// How it ended, as a sentence: `job exited with code 7`.
pub fn ended(name: &str, exit: &Exit) -> String {
    format!("{name} {}", ending(exit))
}

fn ending(exit: &Exit) -> String {
    match exit.outcome() {
        Outcome::Unknown => "ended".to_owned(),
        Outcome::Code => format!("exited with code {}", exit.value),
        Outcome::Signal => format!("was ended by {}", signal::name(exit.value)),
    }
}

/// Why it ended, as the rest of a sentence. Who asked for a stop is told as the status tells it: `stopped by USER (WHY)`.
fn because(exit: &Exit) -> String {
    let mut message = exit.message.as_str();
    if let Some(stop) = &exit.stop {
        let by = &stop.requested_by;
        match (exit.reason(), by.as_str(), stop.message.as_str()) {
            (Reason::Unspecified | Reason::Stopped, by, "") if !by.is_empty() => return format!(", stopped by {by}"),
            (Reason::Unspecified | Reason::Stopped, by, why) if !by.is_empty() => {
                return format!(", stopped by {by} ({why})");
            }
            (_, _, why) if message.is_empty() => message = why,
            _ => {}
        }
    }
    match (exit.reason().into(), message) {
        ("", "") => String::new(),
        ("", text) | (text, "") => format!(" ({text})"),
        (reason, message) => format!(" ({reason}: {message})"),
    }
}

/// An exit code alone does not reveal that a program does not exist, or that the kernel killed it because memory ran
/// out.
fn explanation(name: &str, exit: &Exit) -> Option<String> {
    let left = match exit.leftovers {
        0 => String::new(),
        1 => "; one process that it had left behind was killed (run --leftovers wait lets it end)".to_owned(),
        count => {
            format!("; {count} processes that it had left behind were killed (run --leftovers wait lets them end)")
        }
    };
    match exit.reason() {
        Reason::Unspecified | Reason::Completed | Reason::NonZeroExit if left.is_empty() => None,
        Reason::Unspecified | Reason::Completed | Reason::NonZeroExit | Reason::Signaled => {
            Some(format!("{name} {}{left}", ending(exit)))
        }
        _ => Some(format!("{name} {}{}{left}", ending(exit), because(exit))),
    }
}

/// Empties the result file, and creates it if it is absent. A pipe, a device, and the file that is our standard output
/// or error are not changed, because their content is not ours.
pub fn empty_record(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(file) if !file.is_file() || is_our_output(&file) => Ok(()),
        _ => std::fs::File::create(path).map(drop),
    }
}

fn is_our_output(file: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let streams = ["/dev/stdout", "/dev/stderr"]
        .iter()
        .filter_map(|path| std::fs::metadata(path).ok());
    streams
        .into_iter()
        .any(|stream| (stream.dev(), stream.ino()) == (file.dev(), file.ino()))
}

/// The content of `--result-file`: it distinguishes a program's 125 from ours.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Namespace of the process.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// `Code`, `Signal` or `Unknown`.
    pub outcome: &'static str,
    /// The program's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Name of the signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// As in `status.phase`: `Succeeded` or `Failed`; absent if the end is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// As in `status.reason`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    /// A message for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Whether the output is known to be complete.
    pub sealed: bool,
    /// When the program was launched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StreamRecord>,
    /// Standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<StreamRecord>,
    /// What rproc itself exits with.
    pub rproc_exit_code: u8,
}

/// One sealed stream.
#[derive(Debug, Serialize)]
pub struct StreamRecord {
    /// Its length.
    pub bytes: u64,
    /// Its hash in hexadecimal; empty if it is not known.
    pub sha256: String,
}

impl Record {
    /// The record of a process that ended, or whose end is not known.
    pub fn new(namespace: &str, name: &str, uid: &str, exit: Option<&Exit>, verdict: &Verdict) -> Self {
        let mut record = Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            outcome: "Unknown",
            message: verdict.message.clone().unwrap_or_default(),
            rproc_exit_code: verdict.code,
            ..Self::default()
        };
        let Some(exit) = exit else { return record };
        match exit.outcome() {
            Outcome::Unknown => {}
            Outcome::Code => (record.outcome, record.exit_code) = ("Code", Some(exit.value)),
            Outcome::Signal => (record.outcome, record.signal) = ("Signal", Some(signal::name(exit.value))),
        }
        record.phase = match exit.outcome() {
            Outcome::Unknown => None,
            _ if is_success(exit) => Some(Phase::Succeeded),
            _ => Some(Phase::Failed),
        };
        record.reason = exit.reason().into();
        if record.message.is_empty() {
            record.message.clone_from(&exit.message);
        }
        record.sealed = exit.sealed;
        record.started_at = time(exit.started_unix_nanos);
        record.finished_at = time(exit.finished_unix_nanos);
        let stream = |seal: &StreamSeal| StreamRecord {
            bytes: seal.bytes,
            sha256: hex::encode(&seal.sha256),
        };
        record.stdout = exit.seal.as_ref().and_then(|seal| seal.stdout.as_ref()).map(stream);
        record.stderr = exit.seal.as_ref().and_then(|seal| seal.stderr.as_ref()).map(stream);
        record
    }

    /// Writes it atomically, unless the path is a device, a pipe or in a folder where no new file can be created.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        use std::io::Write;
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        let is_replaceable = std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && !is_our_output(&file));
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        match tempfile::NamedTempFile::new_in(folder).ok().filter(|_| is_replaceable) {
            Some(mut file) => {
                file.write_all(&text)?;
                file.persist(path)?;
                Ok(())
            }
            // It was emptied before, or its content is not ours.
            None => std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)?
                .write_all(&text),
        }
    }
}

fn time(unix_nanos: i64) -> Option<Timestamp> {
    (unix_nanos != 0)
        .then(|| Timestamp::from_nanosecond(unix_nanos.into()).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use remoteprocess_client::Want;
    use remoteprocess_proto::v1::exit::Stop;
    use remoteprocess_proto::v1::{Gap, GapReason};
    use remoteprocess_proto::v1::{Seal, Stream};

    fn exit(outcome: Outcome, value: i32) -> Exit {
        Exit {
            outcome: outcome.into(),
            value,
            sealed: true,
            ..Exit::default()
        }
    }

    fn verdict(exit: &Exit) -> Verdict {
        super::verdict("job", exit, &Ledger::new(Want::default()))
    }

    #[test]
    fn the_programs_code_is_ours() {
        for code in [0, 1, 7, 125, 126, 127, 255] {
            assert_eq!(verdict(&exit(Outcome::Code, code)).code, u8::try_from(code).unwrap());
        }
        assert_eq!(verdict(&exit(Outcome::Signal, 9)).code, 137);
        assert_eq!(verdict(&exit(Outcome::Signal, 15)).code, 143);
        assert_eq!(verdict(&exit(Outcome::Code, 0)).message, None);
    }

    #[test]
    fn what_is_not_known_is_125() {
        let unknown = verdict(&Exit {
            reason: Reason::NodeLost.into(),
            message: "node a is gone".into(),
            ..exit(Outcome::Unknown, 0)
        });
        assert_eq!(unknown.code, UNKNOWN);
        insta::assert_snapshot!(unknown.message.unwrap(), @"job: it has no exit code (NodeLost: node a is gone). See: rproc describe job");
        let unsealed = Exit {
            sealed: false,
            seal: Some(Seal {
                reason: SealReason::PipeHeld.into(),
                ..Seal::default()
            }),
            ..exit(Outcome::Code, 0)
        };
        insta::assert_snapshot!(verdict(&unsealed).message.unwrap(), @"job exited with code 0, but its output may not be whole (PipeHeld). See: rproc describe job");
        assert_eq!(verdict(&unsealed).code, UNKNOWN);
    }

    #[test]
    fn lost_output_is_125() {
        let mut ledger = Ledger::new(Want::default());
        let gap = Gap {
            stream: Stream::Stdout.into(),
            from: 0,
            to: Some(9),
            reason: GapReason::SpoolFull.into(),
        };
        ledger.lose(gap).unwrap();
        let verdict = super::verdict("job", &exit(Outcome::Code, 0), &ledger);
        assert_eq!(verdict.code, UNKNOWN);
        insta::assert_snapshot!(verdict.message.unwrap(), @"job exited with code 0, but bytes 0 to 9 of stdout were dropped because the spool was full (spec.output.whenFull: DropOldest). See: rproc describe job");
    }

    #[test]
    fn an_ending_that_the_code_does_not_show_is_explained() {
        let killed = Exit {
            reason: Reason::OomKilled.into(),
            message: "out of memory".into(),
            ..exit(Outcome::Signal, 9)
        };
        assert_eq!(
            verdict(&killed).message.unwrap(),
            "job was ended by SIGKILL (OOMKilled: out of memory)"
        );
    }

    #[test]
    fn the_requester_of_a_stop_is_reported() {
        let stopped = Exit {
            reason: Reason::Stopped.into(),
            stop: Some(Stop {
                requested_by: "kubectl-patch through spec.desiredState".into(),
                message: "for maintenance".into(),
            }),
            ..exit(Outcome::Code, 0)
        };
        let verdict = verdict(&stopped);
        assert_eq!(verdict.code, STOPPED);
        insta::assert_snapshot!(verdict.message.unwrap(), @"job exited with code 0, stopped by kubectl-patch through spec.desiredState (for maintenance)");
        let late = Exit {
            reason: Reason::DeadlineExceeded.into(),
            stop: Some(Stop {
                requested_by: "deadline".into(),
                message: "it has run for 5 s".into(),
            }),
            ..exit(Outcome::Code, 0)
        };
        insta::assert_snapshot!(self::verdict(&late).message.unwrap(), @"job exited with code 0 (DeadlineExceeded: it has run for 5 s)");
    }

    #[test]
    fn an_eviction_is_not_recorded_as_a_stop() {
        let seen = Exit {
            reason: Reason::Stopped.into(),
            stop: Some(Stop {
                requested_by: "kubelet".into(),
                message: "the pod was ended".into(),
            }),
            ..exit(Outcome::Code, 0)
        };
        let status = |phase: &str, reason: &str| -> RemoteProcessStatus {
            let status = serde_json::json!({"phase": phase, "reason": reason, "message": "the node was low on memory"});
            serde_json::from_value(status).unwrap()
        };
        let end = confirmed(seen.clone(), &status("Failed", "Evicted"));
        let record = Record::new("n", "job", "u", Some(&end), &verdict(&end));
        assert_eq!((record.reason, record.phase), ("Evicted", Some(Phase::Failed)));
        assert_eq!(verdict(&end).code, STOPPED, "the code stays");
        insta::assert_snapshot!(verdict(&end).message.unwrap(), @"job exited with code 0 (Evicted: the node was low on memory)");
        for (phase, reason) in [("Running", "Running"), ("Failed", "Stopped")] {
            assert_eq!(
                confirmed(seen.clone(), &status(phase, reason)),
                seen,
                "{phase} {reason}"
            );
        }
        let late = Exit {
            reason: Reason::DeadlineExceeded.into(),
            ..seen
        };
        assert_eq!(confirmed(late.clone(), &status("Failed", "DeadlineExceeded")), late);
        let own = exit(Outcome::Code, 7);
        assert_eq!(confirmed(own.clone(), &status("Failed", "NonZeroExit")), own);
    }

    #[test]
    fn a_failed_deadline_never_exits_0() {
        let of = |reason: i32, value| {
            let exit = Exit {
                reason,
                ..exit(Outcome::Code, value)
            };
            (verdict(&exit).code, is_success(&exit))
        };
        assert_eq!(of(Reason::Unspecified.into(), 0), (0, true));
        assert_eq!(of(Reason::Completed.into(), 0), (0, true));
        assert_eq!(of(Reason::NonZeroExit.into(), 7), (7, false));
        assert_eq!(
            (
                of(Reason::DeadlineExceeded.into(), 0),
                of(Reason::DeadlineExceeded.into(), 7)
            ),
            ((DEADLINE, false), (DEADLINE, false))
        );
        assert_eq!(
            (of(Reason::Stopped.into(), 0), of(Reason::Stopped.into(), 3)),
            ((STOPPED, false), (3, false))
        );
        let no_success = [
            Reason::OomKilled,
            Reason::AgentLost,
            Reason::Evicted,
            Reason::Preempted,
            Reason::Interrupted,
        ];
        let of_a_newer_operator = 9999;
        for reason in no_success.map(i32::from).into_iter().chain([of_a_newer_operator]) {
            assert_eq!(of(reason, 0), (UNKNOWN, false), "{reason}");
        }
    }

    #[test]
    fn processes_that_a_daemonizing_program_left_behind_are_reported() {
        let left = Exit {
            leftovers: 2,
            ..exit(Outcome::Code, 0)
        };
        assert_eq!(verdict(&left).code, 0);
        insta::assert_snapshot!(verdict(&left).message.unwrap(), @"job exited with code 0; 2 processes that it had left behind were killed (run --leftovers wait lets them end)");
    }

    #[test]
    fn a_start_that_is_late_is_a_deadline_too() {
        let late = Exit {
            reason: Reason::DeadlineExceeded.into(),
            message: "the image could not be pulled".into(),
            ..exit(Outcome::Unknown, 0)
        };
        assert_eq!(verdict(&late).code, DEADLINE);
    }

    #[test]
    fn the_record_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("result.json");
        let end = exit(Outcome::Code, 7);
        Record::new("ns", "job", "uid", Some(&end), &verdict(&end))
            .write(&path)
            .unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(
            (&read["exitCode"], &read["outcome"], &read["rprocExitCode"]),
            (&7.into(), &"Code".into(), &7.into())
        );
    }
}
