use rstest::rstest;

use super::super::validate::validate;
use super::*;

/// A process as a person would write it, through the real validation.
fn process(spec: &str) -> RemoteProcess {
    let object = format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
         metadata: {{name: hello, namespace: team, uid: 6e2c0f4a-0000-4000-8000-000000000001}}\nspec:\n{spec}"
    );
    serde_saphyr::from_str(&object).unwrap()
}

fn settings() -> AgentSettings {
    AgentSettings {
        image: "ghcr.io/remoteprocess/agent:0.1.0".into(),
        image_pull_policy: Some("IfNotPresent".into()),
        image_pull_secrets: vec![],
        relay: "remoteprocess-relay.remoteprocess-system.svc:8443".into(),
        relay_enroll: "remoteprocess-relay.remoteprocess-system.svc:8444".into(),
        ca_bundle: "-----BEGIN CERTIFICATE-----\n".into(),
        trust_domain: "remoteprocess.local".into(),
        drain_seconds: 30,
        listen_port: 20443,
        resources: serde_saphyr::from_str("{requests: {cpu: 10m, memory: 64Mi}, limits: {memory: 64Mi}}").unwrap(),
        handover: Handover::default(),
        request_ephemeral_storage: true,
        traceparent: None,
    }
}

const MINIMAL: &str = "  image: busybox:1.36\n  command: [sh, -c, 'echo $HOME']\n";

const EVERYTHING: &str = r"
  image: registry.example/tool:2
  imagePullPolicy: Always
  command: [/bin/tool, --flag]
  args: [--, -x]
  env: [{name: A, value: '1'}, {name: A, value: '2'}]
  envFrom: [{secretRef: {name: credentials}}]
  workingDir: /data
  resources: {requests: {cpu: 100m}, limits: {memory: 1Gi}}
  volumeMounts: [{name: data, mountPath: /data}]
  securityContext: {runAsUser: 1000, capabilities: {add: [NET_BIND_SERVICE]}}
  stop: {signal: SIGINT, gracePeriodSeconds: 120}
  leftovers: Wait
  deadlines: {startSeconds: 60, runSeconds: 3600, warnSignal: SIGUSR1, warnBeforeSeconds: 300, countPaused: false}
  output: {spoolSize: 1Gi, whenFull: DropOldest, echo: None, merge: true}
  agent: {resources: {limits: {memory: 128Mi}}}
  pod:
    serviceAccountName: runner
    automountServiceAccountToken: true
    imagePullSecrets: [{name: pull}]
    nodeSelector: {disk: ssd}
    tolerations: [{key: batch, operator: Exists}]
    affinity: {nodeAffinity: {}}
    priorityClassName: low
    runtimeClassName: gvisor
    schedulingGates: [{name: example.com/queue}]
    securityContext: {fsGroup: 2000, seccompProfile: {type: Unconfined}}
    volumes: [{name: data, emptyDir: {}}]
    labels: {app.kubernetes.io/name: tool, team: blue}
    annotations: {note: hi}
";

const GUARANTEED: &str =
    "  image: busybox\n  command: [true]\n  resources: {requests: {cpu: '1'}, limits: {cpu: '1', memory: 1Gi}}\n";

const STDIN_FROM: &str =
    "  image: busybox\n  command: [sort]\n  stdinFrom: {configMapKeyRef: {name: input, key: words.txt}}\n";

#[rstest]
#[case::minimal("minimal", MINIMAL, Profile::Ordinary)]
#[case::everything("everything", EVERYTHING, Profile::Ordinary)]
#[case::guaranteed("guaranteed", GUARANTEED, Profile::Ordinary)]
#[case::restricted("restricted", MINIMAL, Profile::Restricted)]
#[case::stdin_from("stdin_from", STDIN_FROM, Profile::Restricted)]
fn builds_this_pod(#[case] name: &str, #[case] spec: &str, #[case] profile: Profile) {
    let spec = spec.replace("[true]", "['true']");
    let process = process(&spec);
    let pod = build_pod(&validate(&process).unwrap(), 1, &settings(), profile);
    insta::assert_yaml_snapshot!(name, pod);
}

#[test]
fn a_program_gets_its_place_in_the_trace_unless_it_has_one() {
    let settings = AgentSettings {
        traceparent: Some("00-ours".into()),
        ..settings()
    };
    let values = |spec: &str| -> Vec<String> {
        let process = process(spec);
        let pod = build_pod(&validate(&process).unwrap(), 1, &settings, Profile::Ordinary);
        let env = pod.spec.unwrap().containers.remove(0).env.unwrap_or_default();
        let set = env.into_iter().filter(|variable| variable.name == "TRACEPARENT");
        set.filter_map(|variable| variable.value).collect()
    };
    assert_eq!(values(MINIMAL), ["00-ours"]);
    let own = format!("{MINIMAL}  env: [{{name: TRACEPARENT, value: 00-own}}]\n");
    assert_eq!(values(&own), ["00-own"]);
}

/// Where every node mounts images, there is no hook, and the entrypoint is started from the agent's image.
#[test]
fn an_image_volume_takes_the_place_of_the_hook() {
    let process = process(MINIMAL);
    let settings = AgentSettings {
        handover: Handover::ImageVolume,
        ..settings()
    };
    let pod = build_pod(&validate(&process).unwrap(), 1, &settings, Profile::Ordinary);
    let by_hook = build_pod(&validate(&process).unwrap(), 1, &self::settings(), Profile::Ordinary);
    let (spec, by_hook) = (pod.spec.unwrap(), by_hook.spec.unwrap());
    let agent = |spec: &PodSpec| spec.init_containers.as_ref().unwrap()[0].clone();
    assert!(agent(&spec).lifecycle.is_none() && agent(&by_hook).lifecycle.is_some());
    assert_eq!(
        spec.containers[0].command,
        Some(vec!["/.rproc/image/entrypoint".into()])
    );
    let volume = spec
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name == names::VOLUME_IMAGE);
    let image = volume.unwrap().image.clone().unwrap();
    assert_eq!(image.reference, agent(&spec).image);
    assert_eq!(image.pull_policy.as_deref(), Some("IfNotPresent"));
    // In both containers: the runtime can make the folder only where the handover volume can be written to.
    for container in [&agent(&spec), &spec.containers[0]] {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mount = mounts.find(|mount| mount.name == names::VOLUME_IMAGE).unwrap();
        assert_eq!(
            (mount.mount_path.as_str(), mount.read_only),
            ("/.rproc/image", Some(true))
        );
    }
    assert!(by_hook.volumes.iter().flatten().all(|volume| volume.image.is_none()));
}

fn built(spec: &str, profile: Profile) -> PodSpec {
    build_pod(&validate(&process(spec)).unwrap(), 1, &settings(), profile)
        .spec
        .unwrap()
}

#[test]
fn a_name_belongs_to_one_attempt_of_one_object() {
    let names = [("a", "u", 1), ("a", "u", 2), ("a", "v", 1), ("au", "", 1)].map(|(n, u, a)| pod_name(n, u, a));
    assert_eq!(
        names.iter().collect::<std::collections::BTreeSet<_>>().len(),
        4,
        "{names:?}"
    );
    assert_eq!(pod_name("a", "u", 1), names[0]);
    assert!(pod_name(&"x".repeat(names::MAX_NAME), "u", u32::MAX).len() <= 63);
}

#[test]
fn the_agents_room_on_disk_is_above_the_spool() {
    let spec = built(MINIMAL, Profile::Ordinary);
    let spool = spec
        .volumes
        .unwrap()
        .into_iter()
        .find(|volume| volume.name == names::VOLUME_SPOOL)
        .unwrap();
    let limit: u64 = spool.empty_dir.unwrap().size_limit.unwrap().0.parse().unwrap();
    assert_eq!(limit, (256 << 20) * 5 / 4 + (16 << 20));
}

#[test]
fn the_class_guaranteed_stays() {
    let spec = built(&GUARANTEED.replace("[true]", "['true']"), Profile::Ordinary);
    let agent = &spec.init_containers.unwrap()[0];
    let resources = agent.resources.clone().unwrap();
    let (requests, limits) = (resources.requests.unwrap(), resources.limits.unwrap());
    for name in ["cpu", "memory"] {
        assert_eq!(requests[name], limits[name], "{name}");
    }
}

#[rstest]
#[case("securityContext: {privileged: true}", None)]
#[case("securityContext: {capabilities: {add: [SYS_ADMIN]}}", None)]
#[case("securityContext: {allowPrivilegeEscalation: true}", Some(true))]
#[case("securityContext: {runAsUser: 0}", Some(false))]
fn escalation_is_forbidden_where_that_is_possible(#[case] context: &str, #[case] expected: Option<bool>) {
    let spec = built(&format!("{MINIMAL}  {context}\n"), Profile::Ordinary);
    assert_eq!(
        spec.containers[0]
            .security_context
            .as_ref()
            .unwrap()
            .allow_privilege_escalation,
        expected
    );
}

#[test]
fn a_bundle_is_not_expanded() {
    // Kubernetes reads `$$` as `$`, and `$$$(A)` as `$` and a variable.
    let settings = AgentSettings {
        ca_bundle: "$(RPROC_RELAY)$$(RPROC_RELAY)".into(),
        ..settings()
    };
    let process = process(MINIMAL);
    let pod = build_pod(&validate(&process).unwrap(), 1, &settings, Profile::Ordinary);
    let env = pod.spec.unwrap().init_containers.unwrap()[0].env.clone().unwrap();
    let bundle = env.into_iter().find(|entry| entry.name == "RPROC_CA_BUNDLE").unwrap();
    assert_eq!(bundle.value.as_deref(), Some("$$(RPROC_RELAY)$$$$(RPROC_RELAY)"));
}

#[test]
fn values_to_be_masked_are_in_the_agents_container_alone() {
    let mask =
        "  output: {mask: [{secretKeyRef: {name: db, key: password}}, {secretKeyRef: {name: api, key: token}}]}\n";
    let spec = built(&format!("{MINIMAL}{mask}"), Profile::Ordinary);
    let volumes = spec.volumes.unwrap();
    let volume = volumes.iter().find(|volume| volume.name == names::VOLUME_MASK).unwrap();
    let sources = volume.projected.as_ref().unwrap().sources.as_ref().unwrap();
    let items: Vec<_> = sources
        .iter()
        .map(|source| {
            let secret = source.secret.as_ref().unwrap();
            let item = &secret.items.as_ref().unwrap()[0];
            (secret.name.as_str(), item.key.as_str(), item.path.as_str())
        })
        .collect();
    assert_eq!(items, [("db", "password", "0"), ("api", "token", "1")]);
    let mounts = |containers: &[k8s_openapi::api::core::v1::Container]| {
        let mounts = containers[0].volume_mounts.iter().flatten();
        mounts.filter(|mount| mount.name == names::VOLUME_MASK).count()
    };
    let agent = spec.init_containers.unwrap();
    assert_eq!((mounts(&agent), mounts(&spec.containers)), (1, 0));
    let env = agent[0].env.clone().unwrap();
    let told = env.into_iter().find(|entry| entry.name == "RPROC_MASK_DIR").unwrap();
    assert_eq!(told.value.as_deref(), Some(remoteprocess_proto::pod::MASK_PATH));
}

/// The agent never sees it: it may be the value of a Secret. The pod waits for the key: it is not optional.
#[rstest]
fn the_input_is_one_read_only_file_in_the_users_container_alone(
    #[values(Handover::Hook, Handover::ImageVolume)] handover: Handover,
) {
    let process = process(&format!(
        "{MINIMAL}  stdinFrom: {{secretKeyRef: {{name: s, key: k}}}}\n"
    ));
    let settings = AgentSettings { handover, ..settings() };
    let pod = build_pod(&validate(&process).unwrap(), 1, &settings, Profile::Ordinary);
    let spec = pod.spec.unwrap();
    let volumes = spec.volumes.unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume.name == names::VOLUME_STDIN)
        .unwrap();
    let secret = volume.secret.as_ref().unwrap();
    assert_eq!(
        (secret.secret_name.as_deref(), secret.optional),
        (Some("s"), Some(false))
    );
    let items: Vec<_> = secret
        .items
        .iter()
        .flatten()
        .map(|item| (&*item.key, &*item.path))
        .collect();
    assert_eq!(items, [("k", "stdin")]);
    assert!(volume.config_map.is_none());
    let mounts = |container: &k8s_openapi::api::core::v1::Container| -> Vec<_> {
        let mounts = container.volume_mounts.iter().flatten();
        let ours = mounts.filter(|mount| mount.name == names::VOLUME_STDIN);
        ours.map(|mount| (mount.mount_path.clone(), mount.read_only)).collect()
    };
    assert_eq!(mounts(&spec.containers[0]), [("/.rproc-stdin".to_owned(), Some(true))]);
    assert!(mounts(&spec.init_containers.unwrap()[0]).is_empty());
}

/// The agent's own test compares the same list with its flags. `RPROC_CONFIG`, the file of the agent's settings, is not in
/// it, and that of a user is the program's alone.
#[test]
fn the_agent_gets_every_variable_and_no_other() {
    let masked = "  output: {mask: [{secretKeyRef: {name: db, key: a}}]}\n";
    let of = |spec: &str| {
        let agents = built(spec, Profile::Ordinary).init_containers.unwrap();
        agents.into_iter().flat_map(|agent| agent.env.unwrap_or_default())
    };
    let own = "  env: [{name: RPROC_CONFIG, value: /own}]\n";
    let all = of(EVERYTHING).chain(of(&format!("{MINIMAL}{masked}")));
    let all = all.chain(of(&format!("{MINIMAL}{own}")));
    let told: std::collections::BTreeSet<String> = all.map(|variable| variable.name).collect();
    let known = remoteprocess_proto::pod::env::ALL.iter().map(ToString::to_string);
    assert_eq!(told, known.collect());
}

#[test]
fn a_large_namespace_adds_nothing_to_the_environment_unless_asked_for() {
    let links = |pod: &str| {
        let process = process(&format!("{MINIMAL}{pod}"));
        let pod = build_pod(&validate(&process).unwrap(), 1, &settings(), Profile::Ordinary);
        pod.spec.unwrap().enable_service_links
    };
    assert_eq!(links(""), Some(false));
    assert_eq!(links("  pod: {enableServiceLinks: true}\n"), Some(true));
}
