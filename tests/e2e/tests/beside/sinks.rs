//! Sinks: who may have one, and what the operator makes for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, Program, Sink, User, kubectl, until, with_temp_ns};
use serde_json::{Value, json};

/// A user who may do everything with sinks, and these verbs with these resources.
fn limited(namespace: &Namespace, name: &str, more: &[(&[&str], &str)]) -> Result<User> {
    let user = namespace.user(name, None)?;
    let rule = |(verbs, resource): &(&[&str], &str)| json!({"apiGroups": ["remoteprocess.dev"], "resources": [resource], "verbs": verbs});
    let all: (&[&str], _) = (&["*"], "processsinks");
    let rules: Vec<Value> = more.iter().chain([&all]).map(rule).collect();
    let group = "rbac.authorization.k8s.io";
    let version = format!("{group}/v1");
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": version, "kind": "Role", "metadata": {"name": name}, "rules": rules},
        {"apiVersion": version, "kind": "RoleBinding", "metadata": {"name": name},
         "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
         "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace.name}]},
    ]});
    let apply = namespace.kubectl(&["apply", "--filename=-"]);
    apply.input(objects.to_string()).succeed()?;
    until("their rights", Duration::from_secs(20), || {
        let may = ["auth", "can-i", "create", "processsinks.remoteprocess.dev"];
        Ok(user.kubectl(&may).finish()?.code == 0)
    })?;
    Ok(user)
}

fn denied(program: Program, why: &str) -> Result<()> {
    let finished = program.finish()?;
    ensure!(finished.code != 0, "it was allowed: {finished}");
    finished.expect_stderr(&[why])?;
    Ok(())
}

/// A sink that sends nothing.
fn object(sink: &Sink<'_>) -> Value {
    let destination = json!({"http": {"url": "https://events.example"}});
    sink.object(&destination, json!({"suspend": true, "output": {"as": "Lines"}}))
}

#[test]
fn a_user_who_may_not_read_output_gets_none_by_a_sink() {
    with_temp_ns("reader", |namespace| {
        let sink = Sink::prepare(namespace, "events")?;
        let object = object(&sink);
        let creator: (&[&str], _) = (&["create"], "remoteprocesses");
        let reader: (&[&str], _) = (&["get", "list", "watch"], "remoteprocesses");
        let blind = limited(namespace, "blind", &[])?;
        let log: (&[&str], _) = (&["get"], "remoteprocesses/log");
        let deaf = limited(namespace, "deaf", &[reader, creator])?;
        // A sink gives its author what is in the Secret that it names.
        let bound = limited(namespace, "bound", &[reader, log])?;
        let whole = limited(namespace, "whole", &[reader, creator, log])?;
        let create = |user: &User| {
            let create = ["create", "--dry-run=server", "--filename=-"];
            user.kubectl(&create).input(object.to_string())
        };
        let (running, reading) = (
            "permission to create remoteprocesses",
            "permission to list remoteprocesses",
        );
        for (user, why) in [(&blind, running), (&bound, running), (&deaf, reading)] {
            denied(create(user), why)?;
        }
        create(&whole).succeed()?;

        sink.apply(&object).succeed()?;
        let patch = |patch: Value| {
            let patch = patch.to_string();
            deaf.kubectl(&["patch", "processsink", "events", "--type=merge", "--patch", &patch])
        };
        let elsewhere = json!({"spec": {"destination": {"http": {"url": "https://elsewhere.example"}}}});
        denied(patch(elsewhere), reading)?;
        denied(patch(json!({"spec": {"suspend": null}})), reading)?;
        // As the garbage collector does, which may not read output either.
        patch(json!({"metadata": {"labels": {"team": "blue"}}})).succeed()?;
        deaf.kubectl(&["delete", "processsink", "events"]).succeed()?;

        let elsewhere = kubectl(["create", "--dry-run=server", "--namespace=kube-system", "--filename=-"]);
        denied(elsewhere.input(object.to_string()), "excludedNamespaces")
    });
}

/// As `a_stolen_operator_token_creates_only_bridges_of_our_form`.
#[test]
fn a_stolen_operator_token_gives_a_bridge_only_the_login_at_the_relay() {
    with_temp_ns("login", |namespace| {
        let sink = Sink::prepare(namespace, "events")?;
        sink.apply(&object(&sink)).succeed()?;
        sink.wait_for("Deployed", "True", "events-sink", 90)?;
        let get = ["get", "deployment", "events-sink", "--output=json"];
        let found = namespace.kubectl(&get).json()?;
        let metadata = &found["metadata"];
        let deployment = json!({
            "apiVersion": found["apiVersion"], "kind": found["kind"], "spec": found["spec"],
            "metadata": {"name": "stolen", "labels": metadata["labels"], "ownerReferences": metadata["ownerReferences"]},
        });
        let account = "--as=system:serviceaccount:remoteprocess-system:remoteprocess-operator";
        let create = |object: &Value| {
            let create = [account, "create", "--dry-run=server", "--filename=-"];
            namespace.kubectl(&create).input(object.to_string())
        };
        create(&deployment).succeed()?;
        let sources = "/spec/template/spec/volumes/0/projected/sources";
        let token = |audience: Value| json!([{"serviceAccountToken": {"audience": audience, "path": "token"}}]);
        for other in [
            token(json!("https://kubernetes.default.svc")),
            token(Value::Null),
            json!([{"secret": {"name": "other"}}]),
        ] {
            let mut object = deployment.clone();
            *object.pointer_mut(sources).context("a projected volume")? = other;
            denied(create(&object), "other volumes")?;
        }
        Ok(())
    });
}
