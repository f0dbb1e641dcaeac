use remoteprocess_api::{ProcessSink, ProcessTrigger};
use rstest::rstest;

use super::*;

const NATS: &str = "{nats: {servers: ['nats://nats:4222'], stream: ORDERS, credentialsSecretName: login, \
                    tls: {caSecretName: corp, clientCertificateSecretName: client}}}";
const HTTP: &str = "{http: {secretName: key}}";
const HTTPS: &str = "{http: {secretName: key, tlsSecretName: cert}}";

fn trigger(source: &str) -> ProcessTrigger {
    serde_saphyr::from_str(&format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: ProcessTrigger\n\
         metadata: {{name: orders, namespace: team, uid: 6e2c0f4a-0000-4000-8000-000000000001}}\n\
         spec:\n  serviceAccountName: orders\n  source: {source}\n  template: {{spec: {{image: busybox, command: [id]}}}}\n"
    ))
    .unwrap()
}

const OUTPUT: &str = "  output: {as: Lines}\n";

fn sink(output: &str) -> ProcessSink {
    serde_saphyr::from_str(&format!(
        "apiVersion: remoteprocess.dev/v1alpha1\nkind: ProcessSink\n\
         metadata: {{name: orders, namespace: team, uid: 6e2c0f4a-0000-4000-8000-000000000002}}\n\
         spec:\n  serviceAccountName: events\n\
         \x20 destination: {{http: {{url: 'https://events.example', credentialsSecretName: token}}}}\n{output}"
    ))
    .unwrap()
}

fn settings() -> BridgeSettings {
    BridgeSettings {
        image: "ghcr.io/remoteprocess/bridge:0.1.0".into(),
        image_pull_policy: Some("IfNotPresent".into()),
        image_pull_secrets: vec!["pull".into()],
        resources: serde_saphyr::from_str("{requests: {cpu: 10m, memory: 128Mi}, limits: {memory: 128Mi}}").unwrap(),
        relay: RelaySettings {
            server: "remoteprocess-relay.remoteprocess-system.svc:8443".into(),
            namespace: "remoteprocess-system".into(),
        },
    }
}

#[rstest]
#[case::nats("nats", NATS)]
#[case::webhook("webhook", HTTP)]
fn builds_this_deployment(#[case] name: &str, #[case] source: &str) {
    insta::assert_yaml_snapshot!(name, build_deployment(&trigger(source), &settings()));
}

#[test]
fn builds_this_deployment_of_a_sink() {
    insta::assert_yaml_snapshot!("sink", build_deployment(&sink(OUTPUT), &settings()));
    assert!(build_service(&sink(OUTPUT)).is_none());
}

#[test]
fn only_a_bridge_that_reads_output_can_log_in_at_the_relay() {
    let pod = |deployment: Deployment| deployment.spec.unwrap().template.spec.unwrap();
    let can_log_in = |deployment: Deployment| {
        let pod = pod(deployment);
        let has_token = pod.volumes.iter().flatten().any(|volume| volume.projected.is_some());
        let variables = pod.containers[0].env.iter().flatten();
        let knows_relay = variables.into_iter().any(|variable| variable.name == "RPROC_SERVER");
        assert_eq!(has_token, knows_relay);
        has_token
    };
    assert!(can_log_in(build_deployment(&sink(OUTPUT), &settings())));
    assert!(!can_log_in(build_deployment(&sink(""), &settings())));
    assert!(!can_log_in(build_deployment(&trigger(NATS), &settings())));
}

#[test]
fn a_stand_by_is_one_more_pod_and_on_another_node_if_there_is_one() {
    let of = |bridge: &str| {
        let mut trigger = trigger(HTTP);
        trigger.spec.bridge = serde_saphyr::from_str(bridge).unwrap();
        let spec = build_deployment(&trigger, &settings()).spec.unwrap();
        (spec.replicas, spec.template.spec.unwrap().affinity)
    };
    assert_eq!(of("{}"), (Some(1), None));
    assert_eq!(of("{replicas: 1}"), (Some(1), None));
    let (replicas, affinity) = of("{replicas: 2}");
    assert_eq!(replicas, Some(2));
    let spread = affinity.unwrap().pod_anti_affinity.unwrap();
    assert_eq!(spread.required_during_scheduling_ignored_during_execution, None);
    let preferred = spread.preferred_during_scheduling_ignored_during_execution.unwrap();
    let selector = preferred[0].pod_affinity_term.label_selector.clone().unwrap();
    assert_eq!(selector.match_labels, Some(build_selector(&trigger(HTTP))));
    // A Deployment that waits for the stand-by of a webhook is not stuck.
    let deadline = |bridge: &str, source: &str| {
        let mut trigger = trigger(source);
        trigger.spec.bridge = serde_saphyr::from_str(bridge).unwrap();
        build_deployment(&trigger, &settings())
            .spec
            .unwrap()
            .progress_deadline_seconds
    };
    assert_eq!(deadline("{replicas: 2}", HTTP), Some(i32::MAX));
    assert_eq!(deadline("{replicas: 2}", NATS), None);
    assert_eq!(deadline("{}", HTTP), None);
    // What passed no validation.
    assert_eq!(of("{replicas: 0}").0, Some(1));
    assert_eq!(of("{replicas: 4000000000}").0, Some(2));
}

#[test]
fn only_a_webhook_has_a_service() {
    assert!(build_service(&trigger(NATS)).is_none());
    insta::assert_yaml_snapshot!("service", build_service(&trigger(HTTP)));
    let port = |source| build_service(&trigger(source)).unwrap().spec.unwrap().ports.unwrap()[0].port;
    assert_eq!((port(HTTP), port(HTTPS)), (80, 443));
}

#[test]
fn what_does_not_concern_the_bridge_does_not_restart_it() {
    let before = build_deployment(&trigger(NATS), &settings());
    let mut changed = trigger(NATS);
    changed.spec.template.spec.image = "other".into();
    changed.spec.suspend = Some(true);
    assert_eq!(build_deployment(&changed, &settings()), before);
    let mut other = settings();
    other.image_pull_secrets.clear();
    let annotation = |deployment: &Deployment| deployment.annotations()[names::ANNOTATION_MADE_FROM].clone();
    assert_ne!(
        annotation(&build_deployment(&changed, &other)),
        annotation(&before),
        "a field that is left out shows in the annotation"
    );
}

#[test]
fn each_secret_has_a_volume_of_its_own() {
    for (source, names) in [
        (NATS, vec!["credentials", "ca", "tls"]),
        (HTTPS, vec!["credentials", "tls"]),
    ] {
        let pod = build_deployment(&trigger(source), &settings())
            .spec
            .unwrap()
            .template
            .spec
            .unwrap();
        let volumes: Vec<_> = pod.volumes.unwrap().into_iter().map(|volume| volume.name).collect();
        assert_eq!(volumes, names);
        let mounts = pod.containers[0].volume_mounts.as_ref().unwrap();
        assert!(mounts.iter().all(|mount| mount.read_only == Some(true)), "{mounts:?}");
    }
}
