mod world;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use remoteprocess_api::condition::{find, is_true};
use remoteprocess_api::{ConditionType, DesiredState, StopStatus, names};
use rstest::rstest;
use serde_json::json;

use super::situation::{MAX_ATTEMPTS, RECORD_WAIT};
use super::*;

const NOW: &str = "2026-01-01T00:01:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A process whose status has begun attempt 1; `record` is added to its record, `spec` to its spec.
fn process(record: &str, spec: &str) -> RemoteProcess {
    let object = format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {{name: hello, namespace: team, uid: u, generation: 3}}\n\
         spec: {{image: busybox, command: [id]{spec}}}\n"
    );
    let mut process: RemoteProcess = serde_saphyr::from_str(&object).unwrap();
    let begun = decide(&Situation {
        process: &process,
        pod: Sight::Missing,
        node: NodeSight::default(),
        memory: &Memory::default(),
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
    });
    let mut status = if spec.contains("Stopped") {
        RemoteProcessStatus {
            attempt: Some(1),
            ..RemoteProcessStatus::default()
        }
    } else {
        begun.status
    };
    status.attempts = vec![serde_saphyr::from_str(&format!("{{number: 1{record}}}")).unwrap()];
    process.status = Some(status);
    process
}

fn pod(status: &str) -> Pod {
    serde_saphyr::from_str(&format!(
        "metadata: {{name: hello-1, namespace: team, uid: p}}\nspec: {{nodeName: node-1, containers: []}}\nstatus: {status}\n"
    ))
    .unwrap()
}

const GRANTED: &str = ", podUid: p, grantedAt: '2026-01-01T00:00:10Z'";
const STARTED: &str = ", podUid: p, grantedAt: '2026-01-01T00:00:10Z', startedAt: '2026-01-01T00:00:11Z'";

fn look(process: &RemoteProcess, pod: Option<&Pod>, memory: &Memory) -> Decision {
    let pod = pod.map_or(Sight::Missing, Sight::Ours);
    decide(&Situation {
        process,
        pod,
        node: NodeSight::default(),
        memory,
        now: now(),
    })
}

fn word_of(decision: &Decision) -> (Phase, Reason) {
    (decision.status.phase.unwrap(), decision.status.reason.unwrap())
}

#[test]
fn the_first_pass_names_the_attempt_and_then_creates_its_pod() {
    let mut process = process("", "");
    process.status = None;
    let decision = look(&process, None, &Memory::default());
    assert_eq!(decision.action, Action::CreatePod(1));
    assert_eq!(
        (decision.status.attempt, decision.status.observed_generation),
        (Some(1), Some(3))
    );
    assert_eq!(decision.status.attempts[0].pod_name, Some(pod_name_of(1)));
    for kind in [
        ConditionType::Scheduled,
        ConditionType::Started,
        ConditionType::Finished,
        ConditionType::Succeeded,
    ] {
        let condition = find(&decision.status.conditions, kind).unwrap();
        assert_ne!(condition.status, "True", "{kind}");
    }
}

/// A user who may write the status has removed the field, or the record.
#[test]
fn no_attempt_is_begun_twice() {
    let mut process = process("", "");
    process.status = Some(look(&process, None, &Memory::default()).status);
    let status = process.status.as_mut().unwrap();
    status.attempt = None;
    status.attempts[0].granted_at = Some(now());
    let decision = look(&process, None, &Memory::default());
    assert_eq!(decision.status.attempt, Some(1), "the field is put back");
    assert!(
        !matches!(decision.action, Action::CreatePod(_)),
        "{:?}",
        decision.action
    );

    let status = process.status.as_mut().unwrap();
    status.attempt = Some(1);
    status.attempts.clear();
    assert_eq!(look(&process, None, &Memory::default()).action, Action::CreatePod(2));
}

fn pod_name_of(attempt: u32) -> String {
    super::pod::pod_name("hello", "u", attempt)
}

/// The kubelet says it in Events alone.
#[rstest]
#[case(
    "configMap: {name: input, items: [{key: a.txt, path: stdin}]}",
    "the ConfigMap input must exist and have the key a.txt"
)]
#[case(
    "secret: {secretName: s, items: [{key: k, path: stdin}]}",
    "the Secret s must exist and have the key k"
)]
fn a_pod_that_is_prepared_names_the_key_of_its_input(#[case] source: &str, #[case] sentence: &str) {
    let mut pod =
        pod("{conditions: [{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T00:00:50Z'}]}");
    let waits = |pod: &Pod| {
        let decision = look(&process("", ""), Some(pod), &Memory::default());
        assert_eq!(word_of(&decision), (Phase::Pending, Reason::ContainerCreating));
        decision.status.message.unwrap()
    };
    assert!(!waits(&pod).contains("spec.stdinFrom"));
    let volume = serde_saphyr::from_str(&format!("{{name: rproc-stdin, {source}}}")).unwrap();
    pod.spec.as_mut().unwrap().volumes = Some(vec![volume]);
    let message = waits(&pod);
    assert!(
        message.contains(sentence) && message.contains("kubectl describe pod hello-1"),
        "{message}"
    );
}

#[rstest]
#[case::scheduler(
    "{conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: no cpu}]}",
    Reason::Unschedulable,
    "no cpu"
)]
#[case::pull(
    "{containerStatuses: [{name: main, image: x, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: ErrImagePull, message: not found}}}]}",
    Reason::ImagePull,
    "not found"
)]
#[case::secret(
    "{containerStatuses: [{name: main, image: x, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: CreateContainerConfigError, message: secret x not found}}}]}",
    Reason::CreateContainer,
    "secret x"
)]
#[case::agent(
    "{initContainerStatuses: [{name: rproc-agent, image: x, imageID: '', ready: false, restartCount: 0, state: {waiting: {reason: ImagePullBackOff, message: back-off}}}]}",
    Reason::ImagePull,
    "the agent's container: back-off"
)]
#[case::slow(
    "{conditions: [{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T00:00:50Z'}]}",
    Reason::ContainerCreating,
    "hello-1"
)]
fn says_why_it_waits(#[case] status: &str, #[case] reason: Reason, #[case] sentence: &str) {
    let mut pod = pod(status);
    if reason == Reason::Unschedulable {
        pod.spec.as_mut().unwrap().node_name = None;
    }
    let mut process = process("", "");
    let decision = look(&process, Some(&pod), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Pending, reason));
    assert!(
        decision.status.message.as_ref().unwrap().contains(sentence),
        "{:?}",
        decision.status.message
    );
    process.status = Some(decision.status.clone());
    let again = look(&process, Some(&pod), &Memory::default());
    assert_eq!(again.status, decision.status, "one write for one reason");
}

/// A pod with a container that is waiting, with this state of the kubelet (flow YAML).
fn waiting_pod(container: &str, state: &str) -> Pod {
    let list = match container {
        names::CONTAINER_MAIN => "containerStatuses",
        _ => "initContainerStatuses",
    };
    pod(&format!(
        "{{{list}: [{{name: {container}, image: x, imageID: '', ready: false, restartCount: 0, state: {state}}}]}}"
    ))
}

#[rstest]
#[case::name("InvalidImageName", "couldn't parse image name \"No Such\"", Reason::ImagePull)]
#[case::never(
    "ErrImageNeverPull",
    "image \"x\" is not present with pull policy of Never",
    Reason::ImagePull
)]
#[case::root(
    "CreateContainerConfigError",
    "container has runAsNonRoot and image will run as root",
    Reason::CreateContainer
)]
fn what_can_never_start_fails_at_once(#[case] word: &str, #[case] said: &str, #[case] reason: Reason) {
    let process = process(", podUid: p", "");
    let state = json!({"waiting": {"reason": word, "message": said}}).to_string();
    let decision = look(&process, Some(&waiting_pod("main", &state)), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Failed, reason));
    assert!(
        decision.status.message.as_ref().unwrap().contains(said),
        "{:?}",
        decision.status.message
    );
    assert!(
        matches!(decision.action, Action::DeletePod { .. }),
        "{:?}",
        decision.action
    );
    let scheduled = find(&decision.status.conditions, ConditionType::Scheduled).unwrap();
    assert_eq!(scheduled.status, "True");
    // The image of the agent belongs to the installation, which can be fixed.
    let agent = look(&process, Some(&waiting_pod("rproc-agent", &state)), &Memory::default());
    assert_eq!(agent.status.phase, Some(Phase::Pending));
}

#[test]
fn of_two_missing_config_maps_the_second_is_named_once_the_first_is_there() {
    let mut process = process(", podUid: p", "");
    let mut memory = Memory::default();
    let mut said = |name: &str, second: i64| {
        let state =
            format!("{{waiting: {{reason: CreateContainerConfigError, message: 'configmap \"{name}\" not found'}}}}");
        let pod = waiting_pod("main", &state);
        let decision = decide(&Situation {
            process: &process,
            pod: Sight::Ours(&pod),
            node: NodeSight::default(),
            memory: &memory,
            now: now() + SignedDuration::from_secs(second),
        });
        let condition = find(&decision.status.conditions, ConditionType::Ready).unwrap();
        assert_eq!(Some(&condition.message), decision.status.message.as_ref());
        process.status = Some(decision.status.clone());
        memory = decision.memory;
        (decision.status.message.unwrap(), decision.requeue_after)
    };
    assert_eq!(said("a", 0), ("configmap \"a\" not found".into(), None));
    assert_eq!(
        said("b", 1),
        ("configmap \"b\" not found".into(), None),
        "named at once"
    );
    let (kept, again) = said("c", 2);
    assert_eq!(
        kept, "configmap \"b\" not found",
        "a sentence may change with every look"
    );
    assert_eq!(again, Some(Duration::from_secs(9)));
    assert_eq!(said("c", 11), ("configmap \"c\" not found".into(), None));
    assert_eq!(said("d", 20).1, Some(Duration::from_secs(11)), "ever more seldom");
}

#[test]
fn a_pull_that_fails_again_and_again_keeps_its_cause() {
    let mut process = process(", podUid: p", "");
    let mut said = |reason: &str, message: &str| {
        let state = json!({"waiting": {"reason": reason, "message": message}}).to_string();
        let decision = look(&process, Some(&waiting_pod("main", &state)), &Memory::default());
        process.status = Some(decision.status.clone());
        decision.status.message.unwrap()
    };
    assert_eq!(said("ErrImagePull", "x: not found"), "x: not found");
    assert_eq!(said("ImagePullBackOff", "Back-off pulling image \"x\""), "x: not found");
    assert_eq!(
        said(
            "ImagePullBackOff",
            "Back-off pulling image \"x\": ErrImagePull: x: unauthorized"
        ),
        "x: unauthorized"
    );
}

#[test]
fn a_foreign_init_container_is_named() {
    let process = process(", podUid: p", "");
    let said = |pod: &Pod| look(&process, Some(pod), &Memory::default()).status;
    let pulls = said(&waiting_pod(
        "inject",
        "{waiting: {reason: ErrImagePull, message: no such image}}",
    ));
    assert_eq!(pulls.reason, Some(Reason::ForeignContainer));
    let sentence = "the container inject, which is not ours: no such image";
    assert_eq!(pulls.message.as_deref(), Some(sentence));
    let runs = said(&waiting_pod("inject", "{running: {}}"));
    assert_eq!(
        runs.message.as_deref(),
        Some("the init container inject, which is not ours, has not ended")
    );
    let mut failed = waiting_pod(
        "inject",
        "{terminated: {exitCode: 3, reason: Error, message: 'no route'}}",
    );
    failed.status.as_mut().unwrap().phase = Some("Failed".into());
    let failed = said(&failed);
    assert_eq!(failed.reason, Some(Reason::ForeignContainer));
    let message = failed.message.unwrap();
    let sentence = "the init container inject, which is not ours, ended with code 3 (Error: no route)";
    assert!(message.contains(sentence), "{message}");
}

#[test]
fn an_agent_that_ends_again_and_again_says_why() {
    let process = process(", podUid: p", "");
    let mut pod = waiting_pod(
        "rproc-agent",
        "{waiting: {reason: CrashLoopBackOff, message: back-off 10s restarting failed container}}",
    );
    let status = &mut pod.status.as_mut().unwrap().init_container_statuses.as_mut().unwrap()[0];
    status.last_state = serde_json::from_value(json!({
        "terminated": {"exitCode": 1, "reason": "Error", "message": "first line\nno \u{1b}route to the relay\n"},
    }))
    .unwrap();
    let decision = look(&process, Some(&pod), &Memory::default());
    assert_eq!(
        decision.status.message.as_deref(),
        Some("the agent's container: it ends again and again, with code 1 (Error: first line; no route to the relay)")
    );
}

#[rstest]
#[case::never_ran(
    "{exitCode: 128, reason: StartError, message: 'exec: argument list too long'}",
    "the program's container could not be started: exec: argument list too long"
)]
#[case::too_long(
    "{exitCode: 1, reason: Error, message: 'exec /.rproc/entrypoint: argument list too long'}",
    "the program's container ended with code 1 (Error: exec /.rproc/entrypoint: argument list too long)"
)]
fn what_the_runtime_says_of_an_environment_that_is_too_large_is_in_the_status(
    #[case] terminated: &str,
    #[case] sentence: &str,
) {
    let mut process = process(", podUid: p", "");
    let pod = ended(terminated, true);
    let decision = look(&process, Some(&pod), &Memory::default());
    let exit = decision.status.attempts[0].exit.as_ref().unwrap();
    assert_eq!(exit.message.as_deref(), Some(sentence));
    assert!(
        decision.status.message.as_ref().unwrap().contains(sentence),
        "{:?}",
        decision.status.message
    );
    process.status = Some(decision.status.clone());
    let attempts = &mut process.status.as_mut().unwrap().attempts;
    for number in 2..=u32::try_from(MAX_ATTEMPTS).unwrap() {
        attempts.push(AttemptStatus {
            number,
            ..attempts[0].clone()
        });
    }
    process.status.as_mut().unwrap().attempt = u32::try_from(MAX_ATTEMPTS).ok();
    let last = look(&process, None, &Memory::default());
    assert_eq!(word_of(&last), (Phase::Failed, Reason::StartFailed));
    assert!(
        last.status.message.as_ref().unwrap().contains(sentence),
        "{:?}",
        last.status.message
    );
}

#[test]
fn what_every_start_goes_through_costs_no_write() {
    let process = process("", "");
    let before = process.status.clone().unwrap();
    let fresh = "{conditions: [{type: PodScheduled, status: 'True', lastTransitionTime: '2026-01-01T00:00:59Z'}]}";
    let decision = look(&process, Some(&pod(fresh)), &Memory::default());
    assert_eq!(decision.status.reason, before.reason);
    assert_eq!(decision.status.attempts, before.attempts);
    assert_eq!(decision.requeue_after, Some(Duration::from_secs(2)));
}

#[test]
fn runs_when_the_launch_is_recorded() {
    let process = process(STARTED, "");
    let decision = look(&process, Some(&pod("{phase: Running}")), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Running, Reason::Running));
    assert_eq!(decision.status.attempts[0].node.as_deref(), Some("node-1"));
    assert!(is_true(&decision.status.conditions, ConditionType::Scheduled));
    let started = find(&decision.status.conditions, ConditionType::Started).unwrap();
    assert_eq!(
        started.last_transition_time,
        Time("2026-01-01T00:00:11Z".parse().unwrap())
    );
}

#[rstest]
#[case::zero(
    "{code: 0, source: Entrypoint, reason: Completed}",
    Phase::Succeeded,
    Reason::Completed,
    Some(0)
)]
#[case::unverified_zero("{code: 0, source: Kubelet}", Phase::Failed, Reason::Interrupted, Some(0))]
#[case::code(
    "{code: 7, source: Entrypoint, reason: NonZeroExit}",
    Phase::Failed,
    Reason::NonZeroExit,
    Some(7)
)]
#[case::not_found(
    "{code: 127, source: Entrypoint, reason: CommandNotFound}",
    Phase::Failed,
    Reason::CommandNotFound,
    Some(127)
)]
#[case::own_127(
    "{code: 127, source: Entrypoint, reason: NonZeroExit}",
    Phase::Failed,
    Reason::NonZeroExit,
    Some(127)
)]
#[case::signal(
    "{signal: SIGTERM, source: Entrypoint, reason: Signaled}",
    Phase::Failed,
    Reason::Signaled,
    None
)]
#[case::oom(
    "{signal: SIGKILL, source: Entrypoint, reason: OOMKilled, oomKills: 1}",
    Phase::Failed,
    Reason::OOMKilled,
    None
)]
#[case::kill(
    "{signal: SIGKILL, source: Entrypoint, reason: Signaled}",
    Phase::Failed,
    Reason::Signaled,
    None
)]
#[case::kill_after_the_oom_of_a_child(
    "{signal: SIGKILL, source: Entrypoint, reason: Signaled, oomKills: 1}",
    Phase::Failed,
    Reason::Signaled,
    None
)]
#[case::oom_of_a_child(
    "{code: 0, source: Entrypoint, oomKills: 1}",
    Phase::Succeeded,
    Reason::Completed,
    Some(0)
)]
#[case::stopped(
    "{code: 0, source: Entrypoint, stop: {requestedBy: alice}}",
    Phase::Failed,
    Reason::Stopped,
    Some(0)
)]
#[case::stopped_by_deletion(
    "{code: 143, source: Entrypoint, stop: {requestedBy: kubelet}}",
    Phase::Failed,
    Reason::Interrupted,
    Some(143)
)]
#[case::agent_lost(
    "{signal: SIGTERM, source: Entrypoint, reason: AgentLost, stop: {requestedBy: entrypoint}}",
    Phase::Failed,
    Reason::AgentLost,
    None
)]
fn judges_an_exit_record(#[case] exit: &str, #[case] phase: Phase, #[case] reason: Reason, #[case] code: Option<i32>) {
    let process = process(
        &format!("{STARTED}, finishedAt: '2026-01-01T00:00:42Z', exit: {exit}"),
        "",
    );
    let decision = look(&process, None, &Memory::default());
    assert_eq!(word_of(&decision), (phase, reason));
    assert_eq!(decision.status.exit_code, code);
    assert_eq!(decision.status.duration.as_deref(), Some("31s"));
    assert!(is_true(&decision.status.conditions, ConditionType::Finished));
    assert_eq!(
        is_true(&decision.status.conditions, ConditionType::Succeeded),
        phase == Phase::Succeeded
    );
    let mut over = process.clone();
    over.status = Some(decision.status.clone());
    assert_eq!(look(&over, None, &Memory::default()).status, decision.status, "final");
}

#[test]
fn the_last_lines_are_in_the_condition() {
    let mut process = process(&format!("{STARTED}, exit: {{code: 1, source: Entrypoint}}"), "");
    let output = remoteprocess_api::OutputStatus {
        tail: Some("boom".into()),
        ..Default::default()
    };
    process.status.as_mut().unwrap().output = Some(output);
    let decision = look(&process, None, &Memory::default());
    let succeeded = find(&decision.status.conditions, ConditionType::Succeeded).unwrap();
    assert!(succeeded.message.ends_with("\nboom"), "{}", succeeded.message);
}

/// A container that ended, and whether the agent beside it still runs.
fn ended(terminated: &str, agent_runs: bool) -> Pod {
    let agent = if agent_runs {
        "{running: {}}"
    } else {
        "{terminated: {exitCode: 0}}"
    };
    pod(&format!(
        "{{phase: Running, containerStatuses: [{{name: main, image: x, imageID: '', ready: false, restartCount: 0, state: {{terminated: {terminated}}}}}], \
         initContainerStatuses: [{{name: rproc-agent, image: x, imageID: '', ready: true, restartCount: 0, state: {agent}}}]}}"
    ))
}

#[rstest]
#[case::oom("{exitCode: 137, reason: OOMKilled}", Reason::OOMKilled)]
#[case::code("{exitCode: 3, reason: Error}", Reason::NonZeroExit)]
#[case::zero("{exitCode: 0, reason: Completed}", Reason::Interrupted)]
#[case::lost("{exitCode: 137, reason: ContainerStatusUnknown}", Reason::Interrupted)]
fn takes_the_kubelets_word_after_ten_seconds(#[case] terminated: &str, #[case] reason: Reason) {
    let process = process(STARTED, "");
    let pod = ended(terminated, false);
    let first = look(&process, Some(&pod), &Memory::default());
    assert_eq!(first.requeue_after, Some(RECORD_WAIT));
    assert!(first.status.phase.is_none_or(|phase| !phase.is_final()));
    let since = now() - SignedDuration::from_secs(10);
    let memory = Memory {
        ended_since: Some(since),
        gone_since: Some(since),
        ..Memory::default()
    };
    let decision = look(&process, Some(&pod), &memory);
    assert_eq!(word_of(&decision), (Phase::Failed, reason));
    let exit = decision.status.attempts[0].exit.as_ref().unwrap();
    assert_eq!(exit.source, ExitSource::Kubelet);
    assert!(exit.message.as_ref().unwrap().contains("kubelet"), "{exit:?}");
}

#[test]
fn a_granted_program_is_not_reported_to_have_run() {
    let process = process(GRANTED, "");
    let decision = look(
        &process,
        Some(&ended("{exitCode: 3, reason: Error}", false)),
        &gone_for_long(),
    );
    let exit = decision.status.attempts[0].exit.as_ref().unwrap();
    assert_eq!(
        exit.message.as_deref(),
        Some(
            "whether the program was started was not reported; by the kubelet's record its container ended with code 3 (Error)"
        )
    );
}

#[test]
fn an_agent_that_still_hands_over_output_is_waited_for() {
    let process = process(STARTED, "");
    let since = Some(now() - SignedDuration::from_secs(20));
    let memory = Memory {
        ended_since: since,
        ..Memory::default()
    };
    let decision = look(&process, Some(&ended("{exitCode: 0}", true)), &memory);
    assert!(decision.status.phase.is_none_or(|phase| !phase.is_final()));
    assert!(decision.requeue_after.is_some());
}

#[test]
fn an_agent_that_knows_of_no_end_is_not_waited_for() {
    let process = process(
        &format!("{STARTED}, finishedAt: '2026-01-01T00:00:42Z', output: {{sealed: true}}"),
        "",
    );
    let decision = look(
        &process,
        Some(&ended("{exitCode: 137, reason: OOMKilled}", true)),
        &Memory::default(),
    );
    assert_eq!(word_of(&decision), (Phase::Failed, Reason::OOMKilled));
    let finished: Timestamp = "2026-01-01T00:00:42Z".parse().unwrap();
    assert_eq!(
        decision.status.attempts[0].finished_at,
        Some(finished),
        "the relay's time is not overwritten"
    );
}

/// What is remembered of a pod that has ended and gone, and from which nothing more will be heard.
fn gone_for_long() -> Memory {
    let gone = Some(now() - SignedDuration::from_secs(11));
    Memory {
        gone_since: gone,
        ended_since: gone,
        ..Memory::default()
    }
}

#[test]
fn a_granted_attempt_without_a_pod_is_interrupted_and_never_run_again() {
    let process = process(GRANTED, "");
    let first = look(&process, None, &Memory::default());
    assert_eq!((&first.action, first.requeue_after), (&Action::None, Some(RECORD_WAIT)));
    let decision = look(&process, None, &gone_for_long());
    assert_eq!(word_of(&decision), (Phase::Failed, Reason::Interrupted));
    assert_eq!(decision.action, Action::None);
}

#[test]
fn the_cause_of_a_lost_pod_is_kept() {
    let mut process = process(STARTED, "");
    let mut leaving = pod(
        "{phase: Running, conditions: [{type: DisruptionTarget, status: 'True', reason: EvictionByEvictionAPI, message: drained}]}",
    );
    leaving.metadata.deletion_timestamp = Some(Time(now()));
    let decision = look(&process, Some(&leaving), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Stopping, Reason::Evicted));
    let attempts = process.status.take().unwrap().attempts;
    process.status = Some(RemoteProcessStatus {
        attempts,
        ..decision.status
    });
    let last = look(&process, None, &gone_for_long());
    assert_eq!(word_of(&last), (Phase::Failed, Reason::Evicted));
}

#[test]
fn an_attempt_without_a_grant_is_replaced_with_back_off_and_a_cap() {
    let mut process = process(", podUid: p", "");
    for number in 1..=u32::try_from(MAX_ATTEMPTS).unwrap() {
        let lost = look(&process, None, &Memory::default());
        assert_eq!(
            lost.action,
            Action::None,
            "the end of the old attempt is written before the next begins"
        );
        assert_eq!(lost.requeue_after, Some(Duration::from_secs(1 << (number - 1))));
        process.status = Some(lost.status);
        let later = now() + SignedDuration::from_secs(20);
        let next = decide(&Situation {
            process: &process,
            pod: Sight::Missing,
            node: NodeSight::default(),
            memory: &Memory::default(),
            now: later,
        });
        if number as usize == MAX_ATTEMPTS {
            assert_eq!(word_of(&next), (Phase::Failed, Reason::StartFailed));
            return;
        }
        assert_eq!(next.action, Action::CreatePod(number + 1));
        process.status = Some(next.status);
        process.status.as_mut().unwrap().attempts.last_mut().unwrap().pod_uid = Some("p".into());
    }
}

#[test]
fn a_pod_that_never_ran_is_not_created_twice_for_one_attempt() {
    let process = process("", "");
    let memory = Memory {
        created: Some((1, "p".into())),
        ..Memory::default()
    };
    let decision = look(&process, None, &memory);
    assert_eq!(decision.action, Action::None);
    assert_eq!(
        decision.status.attempts[0].exit.as_ref().unwrap().reason,
        Some(Reason::Interrupted)
    );
}

#[test]
fn a_pod_that_was_deleted_is_not_blamed_for_its_containers() {
    let process = process("", "");
    let mut pod = ended("{exitCode: 137, reason: ContainerStatusUnknown}", false);
    pod.metadata.deletion_timestamp = Some(Time(now()));
    let decision = look(&process, Some(&pod), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Pending, Reason::Interrupted));
    let exit = decision.status.attempts[0].exit.as_ref().unwrap();
    assert_eq!(
        exit.message.as_deref(),
        Some("the pod was deleted before the program was started")
    );
}

#[test]
fn stopped_before_the_start_is_final_and_then_the_pod_goes() {
    let process = process(", podUid: p", ", desiredState: Stopped");
    let decision = look(&process, Some(&pod("{phase: Running}")), &Memory::default());
    assert_eq!(word_of(&decision), (Phase::Failed, Reason::Stopped));
    assert_eq!(
        decision.action,
        Action::DeletePod {
            name: "hello-1".into(),
            uid: "p".into(),
            holder: None,
        }
    );
    let stop: &StopStatus = decision.status.attempts[0]
        .exit
        .as_ref()
        .unwrap()
        .stop
        .as_ref()
        .unwrap();
    assert_eq!(stop.requested_by, "spec.desiredState");
}

#[test]
fn a_stop_that_is_not_carried_out_deletes_the_pod() {
    let process = process(STARTED, ", desiredState: Stopped");
    let pod = pod("{phase: Running}");
    let first = look(&process, Some(&pod), &Memory::default());
    assert_eq!(
        (word_of(&first), &first.action),
        ((Phase::Stopping, Reason::Stopping), &Action::None)
    );
    let memory = Memory {
        stopping_since: Some(now() - SignedDuration::from_secs(61)),
        ..Memory::default()
    };
    let late = look(&process, Some(&pod), &memory);
    assert!(matches!(late.action, Action::DeletePod { .. }));
}

#[test]
fn a_foreign_pod_is_not_touched() {
    let process = process("", "");
    let pod = pod("{}");
    let situation = Situation {
        process: &process,
        pod: Sight::Foreign(&pod),
        node: NodeSight::default(),
        memory: &Memory::default(),
        now: now(),
    };
    let decision = decide(&situation);
    assert_eq!(word_of(&decision), (Phase::Pending, Reason::NameConflict));
    assert_eq!(decision.action, Action::None);
}

#[test]
fn a_refused_pod_is_reported_once_and_an_invalid_one_is_final() {
    let mut process = process("", "");
    let memory = Memory::default();
    let refusal = |is_final| Refusal {
        reason: Reason::Quota,
        message: "exceeded quota".into(),
        is_final,
    };
    let refused = |process: &RemoteProcess, is_final, seconds| {
        let situation = Situation {
            process,
            pod: Sight::Missing,
            node: NodeSight::default(),
            memory: &memory,
            now: now(),
        };
        decide_refused(&situation, &refusal(is_final), Duration::from_secs(seconds))
    };
    let decision = refused(&process, false, 2);
    assert_eq!(
        (word_of(&decision), decision.requeue_after),
        ((Phase::Pending, Reason::Quota), Some(Duration::from_secs(2)))
    );
    process.status = Some(decision.status.clone());
    let again = refused(&process, false, 4);
    assert_eq!(again.status, decision.status);
    let last = refused(&process, true, 4);
    assert_eq!(word_of(&last), (Phase::Failed, Reason::Quota));
}

#[test]
fn sentences_of_others_are_cut() {
    let long = "ü".repeat(4000);
    let cut = draft::shortened(&long);
    assert!(cut.len() <= 1024 && cut.ends_with("..."));
}
