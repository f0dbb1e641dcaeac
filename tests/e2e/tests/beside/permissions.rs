//! Kubernetes RBAC decides, and a user without a right is told which rule is missing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, OPERATORS, RELEASE_NAMESPACE, User, kubectl, spec, with_temp_ns};
use serde_json::{Value, json};

fn sleeper(namespace: &Namespace) -> Result<()> {
    let script = "echo ready; while [ ! -f /tmp/go ]; do sleep 0.1; done; echo done";
    let mut run = namespace.editor.run("sleeper", script).start()?;
    run.wait_for_bytes(6)
}

fn refused(user: &User, arguments: &[&str], rule: &[&str]) -> Result<()> {
    let finished = user.rproc(arguments).finish()?;
    ensure!(finished.code != 0, "it was allowed: {finished}");
    finished.expect_stderr(rule)?;
    ensure!(finished.stdout.is_empty(), "{finished}");
    Ok(())
}

/// A holder of the operator's token may do what its account may: these attempts are its account's.
#[test]
fn a_stolen_operator_token_creates_only_pods_of_our_form() {
    with_temp_ns("stolen", |namespace| {
        let ours = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "stolen-1",
                "labels": {"remoteprocess.dev/uid": "u", "remoteprocess.dev/attempt": "1"},
                "ownerReferences": [{
                    "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess", "name": "stolen", "uid": "u",
                    "controller": true,
                }],
            },
            "spec": {
                "restartPolicy": "Never",
                "initContainers": [{"name": "rproc-agent", "image": "a", "restartPolicy": "Always"}],
                "containers": [{"name": "main", "image": "b"}, {"name": "injected", "image": "c"}],
            },
        });
        let account = "--as=system:serviceaccount:remoteprocess-system:remoteprocess-operator";
        let create = |place: &str, pod: &Value| {
            let place = format!("--namespace={place}");
            let arguments = [place.as_str(), account, "create", "--dry-run=server", "-f", "-"];
            kubectl(arguments).input(pod.to_string()).finish()
        };
        create(&namespace.name, &ours)?.expect_code(0)?;
        let denied = |place: &str, pod: &Value, why: &str| -> Result<()> {
            let finished = create(place, pod)?;
            ensure!(finished.code != 0, "it was allowed: {finished}");
            finished.expect_stderr(&[why])?;
            Ok(())
        };
        denied("kube-system", &ours, "excludedNamespaces")?;
        let changes = [
            ("/metadata/ownerReferences/0/controller", json!(false), "controls"),
            ("/metadata/labels", json!({}), "labeled"),
            ("/spec/initContainers/0/name", json!("other"), "rproc-agent"),
            ("/spec/restartPolicy", json!("Always"), "restart"),
        ];
        for (pointer, value, why) in changes {
            let mut pod = ours.clone();
            *pod.pointer_mut(pointer).context("a field")? = value;
            denied(&namespace.name, &pod, why)?;
        }
        for (field, value) in [
            ("hostNetwork", json!(true)),
            ("hostPID", json!(true)),
            ("nodeName", json!("n")),
        ] {
            let mut pod = ours.clone();
            pod["spec"][field] = value;
            denied(&namespace.name, &pod, "host's namespaces")?;
        }
        Ok(())
    });
}

/// Pods of processes run in namespaces that enforce this profile; see `exits`.
#[test]
fn the_operator_fits_the_restricted_profile_without_a_warning() {
    with_temp_ns("restricted", |namespace| {
        let label = "pod-security.kubernetes.io/warn=restricted";
        kubectl(["label", "namespace", &namespace.name, label]).succeed()?;
        let get = [
            "--namespace",
            RELEASE_NAMESPACE,
            "get",
            "deployment",
            OPERATORS,
            "--output=json",
        ];
        let found = kubectl(get).json()?;
        let create = |mut deployment: Value, change: &dyn Fn(&mut Value)| {
            change(&mut deployment["spec"]);
            let object = json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "warned"}, "spec": deployment["spec"],
            });
            let create = ["create", "--dry-run=server", "--filename=-"];
            namespace.kubectl(&create).input(object.to_string()).finish()
        };
        let deployment = found["items"][0].clone();
        let warned = create(deployment.clone(), &|spec| {
            spec["template"]["spec"]["hostNetwork"] = json!(true)
        })?;
        ensure!(
            warned.err().contains("would violate PodSecurity"),
            "the API server warns: {warned}"
        );
        let created = create(deployment, &|_| {})?;
        ensure!(created.code == 0 && created.err().is_empty(), "{created}");
        Ok(())
    });
}

/// Two calls, in containers that share a cache: the second one needs no login. Neither needs a certificate request: their
/// user has no permission for one.
#[test]
fn a_machine_logs_in_once_with_a_projected_token() {
    with_temp_ns("machine", |namespace| {
        namespace.user("machine", Some("edit"))?;
        // Leaves the Role in the namespace of the release, for the ConfigMap.
        kubectl(["delete", "clusterrolebinding", &format!("{}-connect", namespace.name)]).succeed()?;
        let mounts = json!([{"name": "login", "mountPath": "/login"}, {"name": "cache", "mountPath": "/cache"}]);
        let container = |name: &str, token: &str, arguments: &[&str]| {
            json!({
                "name": name, "image": "ghcr.io/remoteprocess/cli:0.1.0", "args": arguments,
                "env": [
                    {"name": "RPROC_SERVER", "value": format!("remoteprocess-relay.{RELEASE_NAMESPACE}.svc:8443")},
                    {"name": "RPROC_TOKEN_FILE", "value": token},
                    {"name": "XDG_CACHE_HOME", "value": "/cache"},
                ],
                "volumeMounts": mounts,
            })
        };
        // The operator takes no token with another signature: with this one, only the first login's certificate connects.
        let spoil = json!({
            "name": "spoil", "image": "busybox:1.36", "volumeMounts": mounts,
            "command": ["sh", "-c", "sed 's/[^.]*$/AAAA/' /login/token > /cache/token"],
        });
        // Quiet: a container's log also has the error stream, where a slow start is reported.
        let run = [
            "run",
            "job",
            "--quiet",
            "--image=busybox:1.36",
            "--",
            "echo",
            "from a machine",
        ];
        let projected = json!({"path": "token", "audience": "remoteprocess.dev/login", "expirationSeconds": 3600});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "machine"},
            "spec": {
                "serviceAccountName": "machine", "restartPolicy": "Never",
                "initContainers": [container("run", "/login/token", &run), spoil],
                "containers": [container("logs", "/cache/token", &["logs", "job"])],
                "volumes": [
                    {"name": "login", "projected": {"sources": [{"serviceAccountToken": projected}]}},
                    {"name": "cache", "emptyDir": {"medium": "Memory"}},
                ],
            },
        });
        namespace
            .kubectl(&["create", "--filename=-"])
            .input(pod.to_string())
            .succeed()?;
        let ended = [
            "wait",
            "pod/machine",
            "--for=jsonpath={.status.phase}=Succeeded",
            "--timeout=100s",
        ];
        let ended = namespace.kubectl(&ended).within(Duration::from_secs(110)).finish()?;
        let said = namespace.kubectl(&["logs", "machine", "--all-containers"]).finish()?;
        ensure!(
            ended.code == 0 && said.out() == "from a machine\n".repeat(2),
            "{ended}\n{said}"
        );
        Ok(())
    });
}

/// Every replica keeps every object in memory.
#[test]
fn a_process_that_is_too_large_is_refused_as_a_whole() {
    with_temp_ns("large", |namespace| {
        let env = |bytes: usize| {
            let variable = |number| json!({"name": format!("V{number}"), "value": "x".repeat(bytes / 500)});
            spec(
                "true",
                json!({"env": (0..500).map(variable).collect::<Vec<_>>(), "desiredState": "Paused"}),
            )
        };
        // `kubectl apply` stores the spec twice, in an annotation of at most 256 KiB.
        namespace.apply("fits", env(90_000)).succeed()?;
        let refused = namespace.apply("large", env(200_000)).finish()?;
        ensure!(refused.code != 0, "it was taken: {refused}");
        refused.expect_stderr(&["a RemoteProcess can have 262144"])?;
        let stop = json!({"spec": {"desiredState": "Stopped"}}).to_string();
        let patch = ["patch", "rproc", "fits", "--type=merge", "--patch", &stop];
        namespace.editor.kubectl(&patch).succeed()?;
        Ok(())
    });
}

#[test]
fn a_viewer_reads_and_does_nothing_else() {
    with_temp_ns("viewer", |namespace| {
        sleeper(namespace)?;
        let viewer = namespace.user("viewer", Some("view"))?;
        let logs = viewer.rproc(&["logs", "sleeper"]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "ready\n", "{logs}");
        let ps = viewer.rproc(&["ps"]).finish()?;
        ensure!(ps.expect_code(0)?.out().contains("sleeper"), "{ps}");
        let mut follow = viewer.rproc(&["logs", "-f", "sleeper"]).start()?;
        follow.wait_for_bytes(6)?;

        refused(&viewer, &["stop", "sleeper"], &["remoteprocesses/signal", "create"])?;
        refused(
            &viewer,
            &["signal", "sleeper", "SIGTERM"],
            &["remoteprocesses/signal", "create"],
        )?;
        let run = ["run", "mine", "--image=busybox:1.36", "--", "true"];
        refused(&viewer, &run, &["remoteprocesses", "create"])?;

        namespace.in_container("sleeper", "touch /tmp/go")?;
        let followed = follow.finish()?;
        ensure!(followed.expect_code(0)?.out() == "ready\ndone\n", "{followed}");
        Ok(())
    });
}

#[test]
fn a_user_without_rights_is_told_the_missing_rule() {
    with_temp_ns("nobody", |namespace| {
        sleeper(namespace)?;
        let nobody = namespace.user("nobody", None)?;
        refused(
            &nobody,
            &["logs", "sleeper"],
            &["remoteprocesses/log", "get", "apiGroups"],
        )?;
        refused(
            &nobody,
            &["stop", "sleeper"],
            &["missing rule", "resources: [remoteprocesses]", "get"],
        )?;
        refused(&nobody, &["ps"], &["remoteprocesses", "list"])?;
        Ok(())
    });
}

#[test]
fn an_editor_of_another_namespace_has_no_rights_here() {
    with_temp_ns("here", |here| {
        sleeper(here)?;
        with_temp_ns("there", |there| {
            let flag = format!("--namespace={}", here.name);
            refused(&there.editor, &["logs", "sleeper", &flag], &["remoteprocesses/log"])?;
            refused(&there.editor, &["stop", "sleeper", &flag], &["missing rule"])?;
            Ok(())
        });
        Ok(())
    });
}

#[test]
fn whoami_says_who() {
    with_temp_ns("whoami", |namespace| {
        let answer = namespace.editor.rproc(&["whoami"]).finish()?;
        let user = format!("system:serviceaccount:{}:editor", namespace.name);
        ensure!(answer.expect_code(0)?.out().contains(&user), "{answer}");
        Ok(())
    });
}

#[test]
fn rights_that_are_taken_away_are_gone_within_the_minute() {
    with_temp_ns("revoked", |namespace| {
        sleeper(namespace)?;
        let viewer = namespace.user("viewer", Some("view"))?;
        viewer.rproc(&["logs", "sleeper"]).finish()?.expect_code(0)?;
        namespace.kubectl(&["delete", "rolebinding", "viewer"]).succeed()?;
        remoteprocess_e2e::until("the refusal", std::time::Duration::from_secs(75), || {
            Ok(viewer.rproc(&["logs", "sleeper"]).finish()?.code != 0)
        })
    });
}
