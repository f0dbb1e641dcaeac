use remoteprocess_api::{AttemptExit, DesiredState, ExitSource, Phase, RemoteProcessSpec, RemoteProcessStatus};
use remoteprocess_proto::v1::exit::{Outcome, Source};
use remoteprocess_proto::v1::{GapReason, Reason, Seal, SealReason, Stream, Usage};

use serde_json::json;

use super::*;

const NOW: &str = "2026-01-02T03:04:05Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

fn claim() -> Claim {
    Claim {
        uid: "uid-1".to_owned(),
        attempt: 1,
        pod_uid: "pod-1".to_owned(),
        launched: false,
    }
}

fn process() -> RemoteProcess {
    let mut process = RemoteProcess::new("hello", RemoteProcessSpec::default());
    process.metadata.namespace = Some("default".to_owned());
    process.metadata.uid = Some("uid-1".to_owned());
    process.metadata.resource_version = Some("7".to_owned());
    process.metadata.generation = Some(1);
    process.status = Some(RemoteProcessStatus {
        phase: Some(Phase::Starting),
        attempt: Some(1),
        attempts: vec![AttemptStatus {
            number: 1,
            pod_name: Some("hello-0123abcd".to_owned()),
            pod_uid: Some("pod-1".to_owned()),
            node: Some("node-1".to_owned()),
            ..AttemptStatus::default()
        }],
        ..RemoteProcessStatus::default()
    });
    process
}

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "pod-1"}, "spec": {"nodeName": "node-2", "containers": []}}))
        .unwrap()
}

fn attempt(process: &mut RemoteProcess) -> &mut AttemptStatus {
    &mut process.status.as_mut().unwrap().attempts[0]
}

fn decide(process: &RemoteProcess, claim: &Claim) -> Decision {
    decide_grant(process, claim, "operator-0", now(), None)
}

fn manifest() -> Manifest {
    Manifest {
        exit: Some(Exit {
            outcome: Outcome::Code.into(),
            value: 7,
            source: Source::Entrypoint.into(),
            reason: Reason::NonZeroExit.into(),
            message: "exit code 7".to_owned(),
            seal: Some(Seal {
                stdout: Some(StreamSeal {
                    bytes: 5,
                    sha256: vec![0xab; 32].into(),
                    ..StreamSeal::default()
                }),
                stderr: Some(StreamSeal {
                    bytes: 0,
                    sha256: vec![0xcd; 32].into(),
                    ..StreamSeal::default()
                }),
                reason: SealReason::Unspecified.into(),
            }),
            usage: Some(Usage {
                user_micros: 1_000_000,
                system_micros: 250_000,
                peak_memory_bytes: 4096,
                read_bytes: 512,
                written_bytes: 1024,
                container_peak_memory_bytes: Some(8192),
            }),
            started_unix_nanos: 1_767_323_040_000_000_000,
            finished_unix_nanos: 1_767_323_042_500_000_000,
            ..Exit::default()
        }),
        sealed: true,
        stdout_bytes: 5,
        ..Manifest::default()
    }
}

/// The status after this end.
fn end(process: &RemoteProcess, manifest: &Manifest) -> Option<RemoteProcessStatus> {
    build_end(process, 1, manifest, b"oh\x07!\n", now())
}

#[test]
fn the_grant_is_one_small_write() {
    let Decision::Write(next) = decide(&process(), &claim()) else {
        panic!()
    };
    insta::assert_yaml_snapshot!("grant", next);
}

#[test]
fn the_end_keeps_what_was_written_and_adds_everything_at_once() {
    let mut process = process();
    attempt(&mut process).granted_at = Some(now());
    attempt(&mut process).relay = Some("operator-0".to_owned());
    insta::assert_yaml_snapshot!("end", end(&process, &manifest()).unwrap());
}

#[test]
fn lost_output_is_a_condition() {
    let mut manifest = manifest();
    manifest.sealed = false;
    manifest.stdout_lost_bytes = 2;
    manifest.gaps.push(Gap {
        stream: Stream::Stdout.into(),
        from: 2,
        to: Some(4),
        reason: GapReason::SpoolFull.into(),
    });
    let next = end(&process(), &manifest).unwrap();
    insta::assert_yaml_snapshot!("lost", next.conditions);
}

#[test]
fn a_second_pod_another_attempt_and_a_finished_one_are_refused() {
    let refused = |process: &RemoteProcess, claim: &Claim| matches!(decide(process, claim), Decision::Refused(_));
    assert!(refused(
        &process(),
        &Claim {
            pod_uid: "pod-2".to_owned(),
            ..claim()
        }
    ));
    assert!(refused(&process(), &Claim { attempt: 2, ..claim() }));
    let mut ended = process();
    attempt(&mut ended).exit = Some(AttemptExit::default());
    assert!(refused(&ended, &claim()));
    let mut stopped = process();
    stopped.spec.desired_state = DesiredState::Stopped;
    assert!(refused(&stopped, &claim()));
    let mut superseded = process();
    superseded.status.as_mut().unwrap().attempt = Some(2);
    assert!(refused(&superseded, &claim()));
    assert!(
        refused(
            &process(),
            &Claim {
                launched: true,
                ..claim()
            }
        ),
        "launched without a grant"
    );
}

#[test]
fn a_repeat_is_granted_without_a_write_and_a_launched_agent_may_always_come_home() {
    let mut process = process();
    attempt(&mut process).granted_at = Some(now());
    assert_eq!(decide(&process, &claim()), Decision::Granted);
    process.status.as_mut().unwrap().phase = Some(Phase::Failed);
    assert_eq!(
        decide(
            &process,
            &Claim {
                launched: true,
                ..claim()
            }
        ),
        Decision::Granted
    );
}

#[test]
fn a_pod_that_is_not_recorded_yet_is_asked_for() {
    let mut process = process();
    attempt(&mut process).pod_uid = None;
    assert_eq!(
        decide(&process, &claim()),
        Decision::CheckPod("hello-0123abcd".to_owned())
    );
    assert!(matches!(
        decide_grant(&process, &claim(), "operator-0", now(), Some(&pod())),
        Decision::Write(next) if next.attempts[0].node.as_deref() == Some("node-2")
    ));
}

#[test]
fn the_kubelets_word_is_never_written_by_the_relay_nor_overwritten() {
    let mut process = process();
    attempt(&mut process).exit = Some(AttemptExit {
        code: Some(137),
        source: ExitSource::Kubelet,
        ..AttemptExit::default()
    });
    let next = end(&process, &manifest()).unwrap();
    assert_eq!(next.attempts[0].exit, attempt(&mut process).exit);
    assert!(next.attempts[0].output.as_ref().unwrap().sealed);
}

#[test]
fn nothing_is_written_twice() {
    let mut process = process();
    attempt(&mut process).started_at = Some(now());
    let started = Fact::Started {
        at_unix_nanos: 5,
        run_deadline: Some(Duration::from_secs(60)),
    };
    assert_eq!(build_fact(&process, 1, &started), None);
    attempt(&mut process).output = Some(AttemptOutput::default());
    assert_eq!(end(&process, &manifest()), None);
}

#[test]
fn what_is_learned_of_a_program_is_written_while_it_runs() {
    let record = |next: Option<RemoteProcessStatus>| next.map(|next| json!(next.attempts[0]));
    let mut process = process();
    attempt(&mut process).granted_at = Some(now());
    let started = Fact::Started {
        at_unix_nanos: 1_767_323_040_000_000_000,
        run_deadline: Some(Duration::from_secs(60)),
    };
    let written = record(build_fact(&process, 1, &started)).unwrap();
    assert_eq!(
        (&written["runSeconds"], &written["startedAt"]),
        (&json!(60), &json!("2026-01-02T03:04:00Z"))
    );
    attempt(&mut process).started_at = Some(now());
    let paused = |at: Option<Timestamp>| Fact::Paused(at);
    assert_eq!(build_fact(&process, 1, &paused(None)), None);
    assert_eq!(
        record(build_fact(&process, 1, &paused(Some(now())))).unwrap()["pausedAt"],
        NOW
    );
    attempt(&mut process).paused_at = Some(now());
    let later = Timestamp::now();
    assert_eq!(build_fact(&process, 1, &paused(Some(later))), None, "since when stays");
    assert_eq!(
        record(build_fact(
            &process,
            1,
            &Fact::RunDeadline(Some(Duration::from_secs(90)))
        ))
        .unwrap()["runSeconds"],
        90
    );
    assert!(
        record(build_fact(&process, 1, &paused(None)))
            .unwrap()
            .get("pausedAt")
            .is_none()
    );
    let end = record(end(&process, &manifest())).unwrap();
    assert!(end.get("pausedAt").is_none(), "what has ended is not paused: {end}");
    attempt(&mut process).exit = Some(AttemptExit::default());
    assert_eq!(build_fact(&process, 1, &paused(None)), None);
}

#[test]
fn nothing_is_started_while_it_is_paused() {
    let mut process = process();
    process.spec.desired_state = DesiredState::Paused;
    assert_eq!(decide(&process, &claim()), Decision::Refused("the process is paused"));
    attempt(&mut process).granted_at = Some(now());
    let launched = Claim {
        launched: true,
        ..claim()
    };
    assert_eq!(decide(&process, &launched), Decision::Granted, "what runs has a home");
}
