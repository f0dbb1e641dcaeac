//! A RemoteProcess of a hostile user, and the pod that belongs to it: what the controller decides and builds.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus, names};
use remoteprocess_operator::fuzz::{build_pods, decide, launch_settings};
use remoteprocess_proto::pod::{HANDOVER_PATH, STDIN_PATH};
use serde_json::{Value, json};

use crate::{Input, Seed, form};

/// A RemoteProcess, JSON.
const PROCESS: u8 = 0;
/// `[process, pod or null, seconds since 1970]`, JSON.
const OBSERVED: u8 = 1;

/// Longest message that the controller writes into a status, in bytes.
const MESSAGE: usize = 1024;

/// Judges one input.
pub fn run(input: &[u8]) -> bool {
    let mut input = Input(input);
    match input.byte() % 2 {
        PROCESS => serde_json::from_slice(input.rest()).is_ok_and(process),
        _ => serde_json::from_slice(input.rest()).is_ok_and(observed),
    }
}

/// A process is refused with a sentence, or its pod keeps the program from what is the agent's.
fn process(process: RemoteProcess) -> bool {
    for attempt in [1, u32::MAX] {
        let Ok(pods) = build_pods(&process, attempt) else {
            let (status, created) = decide(&process, None, Timestamp::UNIX_EPOCH);
            assert_eq!(created, None, "there is nothing to create");
            check_messages(&process, &status);
            return false;
        };
        let launch = launch_settings(&process).expect("what can be built can be launched");
        assert!(
            !launch.stdin_from_file || (!launch.stdin && launch.terminal.is_none()),
            "the agent refuses it"
        );
        for pod in &pods {
            check(&process, attempt, pod);
        }
    }
    true
}

fn check(process: &RemoteProcess, attempt: u32, pod: &Pod) {
    let text = serde_json::to_vec(pod).expect("a pod is JSON");
    assert_eq!(&serde_json::from_slice::<Pod>(&text).expect("JSON is a pod"), pod);
    check_identity(process, attempt, pod);
    let spec = pod.spec.as_ref().expect("a spec");
    assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
    assert!(spec.host_network.is_none() && spec.host_pid.is_none() && spec.share_process_namespace.is_none());
    assert!(spec.termination_grace_period_seconds.is_some_and(|seconds| seconds > 0));
    let ([main], Some([agent])) = (spec.containers.as_slice(), spec.init_containers.as_deref()) else {
        panic!("a pod has a program and an agent");
    };
    check_main(process, main);
    check_agent(agent);
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    let tokens = volumes.iter().filter(|volume| has_token_of_agent(volume));
    let holders: Vec<&str> = tokens.map(|volume| volume.name.as_str()).collect();
    assert_eq!(holders, [names::VOLUME_TOKEN]);
}

fn check_identity(process: &RemoteProcess, attempt: u32, pod: &Pod) {
    let metadata = &pod.metadata;
    assert_eq!(metadata.namespace, process.metadata.namespace);
    let labels = metadata.labels.clone().unwrap_or_default();
    let ours: BTreeMap<_, _> = labels
        .into_iter()
        .filter(|(key, _)| key.starts_with("remoteprocess.dev/"))
        .collect();
    assert_eq!(ours.get(names::LABEL_UID), process.metadata.uid.as_ref());
    assert_eq!(ours.get(names::LABEL_ATTEMPT), Some(&attempt.to_string()));
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let uids: Vec<_> = owners.iter().map(|owner| Some(&owner.uid)).collect();
    assert_eq!(uids, [process.metadata.uid.as_ref()]);
}

/// The program runs under the entrypoint, with its own arguments, and sees of our volumes only what it starts from and
/// reads.
fn check_main(process: &RemoteProcess, main: &Container) {
    assert_eq!(main.name, names::CONTAINER_MAIN);
    let command = main.command.as_deref().unwrap_or_default();
    assert!(command.len() == 1 && command[0].starts_with(HANDOVER_PATH));
    let (first, arguments) = main.args.as_deref().and_then(<[_]>::split_first).expect("arguments");
    assert_eq!((first.as_str(), arguments), ("--", process.spec.argv().as_slice()));
    assert!(arguments.iter().all(|argument| !argument.contains('\0')));
    for mount in main.volume_mounts.iter().flatten() {
        let is_ours = mount.name.starts_with(names::RESERVED_NAME_PREFIX);
        let is_for_program = [names::VOLUME_HANDOVER, names::VOLUME_IMAGE, names::VOLUME_STDIN].contains(&&*mount.name);
        assert!(
            !is_ours || (is_for_program && mount.read_only == Some(true)),
            "{mount:?}"
        );
        let is_at_ours = [HANDOVER_PATH, STDIN_PATH].contains(&&*mount.mount_path);
        assert!(is_ours || !is_at_ours, "{mount:?}");
    }
    let inputs = (main.volume_mounts.iter().flatten()).filter(|mount| mount.name == names::VOLUME_STDIN);
    assert_eq!(inputs.count(), usize::from(process.spec.stdin_from.is_some()));
}

/// The agent is not the user's: only its resources are.
fn check_agent(agent: &Container) {
    assert_eq!(
        (agent.name.as_str(), agent.image.as_deref()),
        (names::CONTAINER_AGENT, Some("agent"))
    );
    assert_eq!(agent.command.as_deref(), Some(&["/agent".to_owned()][..]));
    let context = agent.security_context.as_ref().expect("a security context");
    assert_eq!((context.privileged, context.run_as_non_root), (Some(false), Some(true)));
    for variable in agent.env.iter().flatten() {
        let value = variable.value.as_deref().unwrap_or_default();
        assert!(!value.replace("$$", "").contains("$("), "{variable:?} is expanded");
    }
}

fn has_token_of_agent(volume: &Volume) -> bool {
    let sources = volume
        .projected
        .iter()
        .flat_map(|projected| projected.sources.iter().flatten());
    let mut tokens = sources.filter_map(|source| source.service_account_token.as_ref());
    tokens.any(|token| token.audience.as_deref() == Some(names::ENROLL_AUDIENCE))
}

/// Whatever is observed: a final phase never changes, and a pod is created only for an attempt that the status names and
/// that has not been granted.
fn observed((process, pod, second): (RemoteProcess, Option<Pod>, i64)) -> bool {
    let now = Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
    let (status, created) = decide(&process, pod.as_ref(), now);
    let before = process.status.as_ref().and_then(|status| status.phase);
    if process.is_final() {
        assert_eq!(status.phase, before);
    }
    // Only the operator writes the status, and it numbers the attempts that it records.
    let is_numbered = process.status.as_ref().is_none_or(is_numbered);
    if let (Some(number), true) = (created, is_numbered) {
        let record = status.attempt(number).expect("the status names it");
        assert!(record.granted_at.is_none() && record.exit.is_none());
        assert!(!process.is_final());
    }
    check_messages(&process, &status);
    let written = RemoteProcess {
        status: Some(status),
        ..process
    };
    let (next, _) = decide(&written, pod.as_ref(), now);
    if written.is_final() {
        assert_eq!(next.phase, written.status.and_then(|status| status.phase));
    }
    true
}

/// Whether the status names its current attempt, and no attempt twice.
fn is_numbered(status: &RemoteProcessStatus) -> bool {
    let numbers: BTreeSet<u32> = status.attempts.iter().map(|attempt| attempt.number).collect();
    let is_current = status
        .attempt
        .map_or(numbers.is_empty(), |current| numbers.last() == Some(&current));
    is_current && numbers.len() == status.attempts.len()
}

/// What the controller writes is short, however long the user's texts are.
fn check_messages(process: &RemoteProcess, status: &RemoteProcessStatus) {
    if process.status.is_some() {
        return;
    }
    assert!(status.message.iter().all(|message| message.len() <= MESSAGE));
    for condition in &status.conditions {
        // That of `Succeeded` ends with the last lines of the output.
        assert!(condition.message.len() <= 8 * MESSAGE, "{}", condition.type_);
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Seed> {
    let json = |value: &Value| value.to_string().into_bytes();
    let process = |spec: Value| {
        json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "hello", "namespace": "default", "uid": "u-1", "generation": 1},
            "spec": spec,
        })
    };
    let minimal = process(json!({"image": "busybox", "command": ["true"]}));
    let mut example: Value =
        serde_saphyr::from_str(include_str!("../../examples/full.yaml")).expect("the example is YAML");
    example["metadata"] = minimal["metadata"].clone();
    let everything = process(everything());
    let with = |status: Value| {
        let mut process = minimal.clone();
        process["status"] = status;
        process
    };
    let begun = with(json!({"phase": "Pending", "attempt": 1, "attempts": [{"number": 1, "podName": "hello-1"}]}));
    let granted = with(json!({
        "phase": "Running", "attempt": 1,
        "attempts": [{"number": 1, "podName": "hello-1", "podUid": "p-1", "grantedAt": "2026-01-01T00:00:00Z"}],
    }));
    let over = with(json!({"phase": "Failed", "reason": "Interrupted", "attempt": 1}));
    let made = |mut spec: Value| {
        (spec["image"], spec["command"]) = (json!("a"), json!(["a"]));
        form(PROCESS, &[&json(&process(spec))])
    };
    let observed = |process: &Value, pod: Value| form(OBSERVED, &[&json(&json!([process, pod, 1_767_225_600]))]);
    vec![
        ("process-minimal", form(PROCESS, &[&json(&minimal)])),
        ("process-example", form(PROCESS, &[&json(&example)])),
        ("process-everything", form(PROCESS, &[&json(&everything)])),
        (
            "process-stdin-from",
            made(json!({"stdinFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}})),
        ),
        (
            "odd-process-inputs",
            made(json!({"tty": true, "stdinFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})),
        ),
        (
            "odd-process-token",
            made(json!({
                "pod": {"volumes": [{"name": "x", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "t", "audience": names::ENROLL_AUDIENCE}}]}}]},
            })),
        ),
        ("observed-new", observed(&minimal, Value::Null)),
        ("observed-begun", observed(&begun, Value::Null)),
        ("observed-pod", observed(&begun, pod("Pending"))),
        ("observed-running", observed(&granted, pod("Running"))),
        ("observed-vanished", observed(&granted, Value::Null)),
        ("observed-over", observed(&over, pod("Failed"))),
    ]
}

/// A spec with most fields.
fn everything() -> Value {
    json!({
        "image": "registry.example/tool:2", "imagePullPolicy": "Always", "command": ["/bin/tool", "$(A)"],
        "args": ["--", "-x"], "env": [{"name": "A", "value": "$(B)"}], "envFrom": [{"secretRef": {"name": "c"}}],
        "workingDir": "/data", "stdin": true, "tty": true, "ttySize": {"rows": 24, "columns": 80},
        "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {"runAsUser": 1000, "capabilities": {"add": ["SYS_ADMIN"]}},
        "desiredState": "Paused", "stop": {"signal": "SIGINT", "gracePeriodSeconds": 120}, "leftovers": "Wait",
        "retries": {"limit": 1, "after": ["ProcessFailure"], "backoff": {"initialSeconds": 1, "maxSeconds": 2}},
        "deadlines": {"startSeconds": 60, "runSeconds": 3600, "warnSignal": "SIGUSR1", "warnBeforeSeconds": 300},
        "ttl": {"secondsAfterSuccess": 60}, "readyWhen": "Started",
        "output": {"spoolSize": "1.5Gi", "whenFull": "DropOldest", "echo": "None", "merge": true,
                   "mask": [{"secretKeyRef": {"name": "s", "key": "k"}}], "tailInStatus": "Never"},
        "agent": {"resources": {"limits": {"memory": "128Mi"}}},
        "pod": {"serviceAccountName": "runner", "automountServiceAccountToken": true, "nodeSelector": {"disk": "ssd"},
                "tolerations": [{"key": "batch", "operator": "Exists"}], "schedulingGates": [{"name": "a/b"}],
                "securityContext": {"fsGroup": 2000}, "volumes": [{"name": "data", "emptyDir": {}}],
                "labels": {"team": "blue"}, "annotations": {"note": "hi"}},
    })
}

/// The pod of the first attempt.
fn pod(phase: &str) -> Value {
    json!({
        "metadata": {
            "name": "hello-1", "namespace": "default", "uid": "p-1",
            "ownerReferences": [{
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "hello", "uid": "u-1",
                "controller": true,
            }],
        },
        "spec": {"containers": [{"name": "main"}], "nodeName": "n", "terminationGracePeriodSeconds": 35},
        "status": {
            "phase": phase, "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "image": "busybox", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 3, "reason": "Error", "message": "no\n"}},
            }],
            "initContainerStatuses": [{
                "name": "rproc-agent", "image": "agent", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {}},
            }],
        },
    })
}
