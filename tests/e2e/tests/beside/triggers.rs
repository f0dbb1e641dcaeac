//! Triggers: a webhook, and who may have one.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, Program, Trigger, is_development_cluster, kubectl, spec, until, with_temp_ns};
use serde_json::{Value, json};

const TOKEN: &str = "a-token-of-thirty-two-characters";

/// `curl` to the Service of the trigger, from the node. Prints the body, and the code on a line of its own.
struct Webhook(String);

impl Webhook {
    fn of(namespace: &Namespace, name: &str) -> Result<Self> {
        let get = [
            "get",
            "service",
            name,
            "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}",
        ];
        Ok(Self(format!("http://{}", namespace.kubectl(&get).succeed()?)))
    }

    fn post(&self, query: &str, headers: &[&str], body: &str) -> Result<(u16, Value)> {
        let url = format!("{}/{query}", self.0);
        // A pod that has just gone answers nothing, and the node may send a request there for a moment.
        let most = if query.is_empty() { "5" } else { "100" };
        let limits = ["--connect-timeout", "2", "--max-time", most];
        let mut curl = Program::new("curl", ["-sS", "-w", "\n%{http_code}", &url]).args(limits);
        for header in headers {
            curl = curl.args(["-H", header]);
        }
        let said = curl.args(["--data-binary", body]).succeed()?;
        let (answer, code) = said.rsplit_once('\n').context("a code")?;
        Ok((code.parse()?, serde_json::from_str(answer).unwrap_or_default()))
    }
}

/// Deletes the pod of the bridge that works. Its stand-by answers within seconds, and knows the process of this id.
fn hand_over(namespace: &Namespace, webhook: &Webhook, headers: &[&str], name: &str) -> Result<()> {
    let holder = || {
        let get = [
            "get",
            "lease",
            "hook-trigger",
            "--output=jsonpath={.spec.holderIdentity}",
        ];
        namespace.kubectl(&get).succeed()
    };
    until("two pods", Duration::from_secs(60), || {
        let running = "--field-selector=status.phase=Running";
        let get = [
            "get",
            "pods",
            "--selector=remoteprocess.dev/trigger=hook",
            running,
            "--output=name",
        ];
        let pods = namespace.kubectl(&get).succeed()?;
        Ok(pods.lines().filter(|pod| pod.contains("hook-trigger-")).count() == 2)
    })?;
    let former = holder()?;
    let ready = [
        "get",
        "pod",
        &former,
        "--output=jsonpath={.status.containerStatuses[0].ready}",
    ];
    ensure!(
        namespace.kubectl(&ready).succeed()? == "true",
        "the pod that works is ready"
    );
    namespace
        .kubectl(&["delete", "pod", "--wait=false", &former])
        .succeed()?;
    let begin = Instant::now();
    until("the stand-by", Duration::from_secs(30), || {
        let is_other = !holder()?.is_empty() && holder()? != former;
        let asked = webhook.post("", headers, "first message");
        Ok(is_other && asked.is_ok_and(|(code, answer)| code == 202 && answer["name"] == name))
    })?;
    println!("the stand-by answers {:?} after the deletion", begin.elapsed());
    Ok(())
}

/// A trigger waits for its Secret. Then each request becomes a process, once for each id, also if the bridge is replaced.
#[test]
fn a_webhook_starts_one_process_for_each_id() {
    if !is_development_cluster("the address of a Service, from the node") {
        return;
    }
    with_temp_ns("webhook", |namespace| {
        let trigger = Trigger::prepare(namespace, "hook")?;
        let template = spec("cat \"$MESSAGE\"", json!({}));
        let more = json!({"bridge": {"replicas": 2}});
        let object = trigger.object(&json!({"http": {"secretName": "sender"}}), &template, more);
        trigger.apply(&object).succeed()?;
        trigger.wait_for("Deployed", "False", "sender", 30)?;
        let token = format!("--from-literal=token={TOKEN}");
        namespace
            .kubectl(&["create", "secret", "generic", "sender", &token])
            .succeed()?;
        trigger.wait_for("Deployed", "True", "hook-trigger", 90)?;
        trigger.wait_for("Ready", "True", "", 30)?;

        let webhook = Webhook::of(namespace, "hook-trigger")?;
        // The node learns the address of a new Service a moment later.
        until("the address of the Service", Duration::from_secs(60), || {
            let asked = webhook.post("", &["Webhook-Id: none"], "stranger");
            Ok(asked.is_ok_and(|(code, _)| code == 401))
        })?;
        for wrong in ["Authorization: Bearer another", "Webhook-Id: none"] {
            let (code, _) = webhook.post("", &[wrong], "stranger")?;
            ensure!(code == 401, "{wrong}: {code}");
        }
        let bearer = format!("Authorization: Bearer {TOKEN}");
        let (code, first) = webhook.post("", &[&bearer, "Webhook-Id: one"], "first message")?;
        ensure!(code == 202, "{code}: {first}");
        let name = first["name"].as_str().context("a name")?.to_owned();
        let (code, again) = webhook.post("", &[&bearer, "Webhook-Id: one"], "first message")?;
        ensure!(
            code == 202 && again["name"] == name,
            "{code}: {again} instead of {name}"
        );
        let (code, result) = webhook.post("?wait=90", &[&bearer, "Webhook-Id: two"], "second message")?;
        ensure!(code == 200, "{code}: {result}");
        let data = &result["data"];
        ensure!(data["outcome"] == "Succeeded" && data["exitCode"] == 0, "{result}");

        namespace.wait_finished(&name)?;
        let logs = namespace.editor.rproc(&["logs", &name]).finish()?;
        ensure!(logs.expect_code(0)?.out() == "first message", "{logs}");
        hand_over(namespace, &webhook, &[&bearer, "Webhook-Id: one"], &name)?;
        ensure!(trigger.processes()?.len() == 2, "{:?}", trigger.processes()?);

        // What the trigger owns ends with it, and its processes stay.
        namespace
            .editor
            .kubectl(&["delete", "processtrigger", "hook"])
            .succeed()?;
        until("the end of its objects", Duration::from_secs(60), || {
            let get = ["get", "deployments,services,leases", "--output=name"];
            Ok(namespace.kubectl(&get).succeed()?.is_empty())
        })?;
        namespace.object(&name).map(drop)
    });
}

#[test]
fn an_editor_without_the_right_to_create_processes_gets_none_by_a_trigger() {
    with_temp_ns("escalation", |namespace| {
        let limited = namespace.user("limited", None)?;
        let role = [
            "create",
            "role",
            "limited",
            "--verb=*",
            "--resource=processtriggers.remoteprocess.dev",
        ];
        namespace.kubectl(&role).succeed()?;
        let account = format!("--serviceaccount={}:limited", namespace.name);
        let bind = ["create", "rolebinding", "limited", "--role=limited", &account];
        namespace.kubectl(&bind).succeed()?;
        until("its rights", Duration::from_secs(20), || {
            let may = ["auth", "can-i", "create", "processtriggers.remoteprocess.dev"];
            Ok(limited.kubectl(&may).finish()?.code == 0)
        })?;

        let trigger = Trigger::prepare(namespace, "hook")?;
        let source = json!({"http": {"secretName": "absent"}});
        let object = trigger.object(&source, &spec("true", json!({})), json!({"suspend": true}));
        let denied = |program: Program| -> Result<()> {
            let finished = program.finish()?;
            ensure!(finished.code != 0, "it was allowed: {finished}");
            finished.expect_stderr(&["permission to create remoteprocesses"])?;
            Ok(())
        };
        let create = limited.kubectl(&["create", "--filename=-"]);
        denied(create.input(object.to_string()))?;
        trigger.apply(&object).succeed()?;
        let patch = |patch: Value| {
            let patch = patch.to_string();
            limited.kubectl(&["patch", "processtrigger", "hook", "--type=merge", "--patch", &patch])
        };
        denied(patch(json!({"spec": {"template": {"spec": {"image": "other"}}}})))?;
        denied(patch(json!({"spec": {"suspend": null}})))?;
        let command = json!({"metadata": {"annotations": {"remoteprocess.dev/test-message": "{}"}}});
        denied(patch(command))?;
        // As the garbage collector does, which may not create processes either.
        patch(json!({"metadata": {"labels": {"team": "blue"}}})).succeed()?;
        limited.kubectl(&["delete", "processtrigger", "hook"]).succeed()?;

        let elsewhere = kubectl(["create", "--dry-run=server", "--namespace=kube-system", "--filename=-"]);
        let refused = elsewhere.input(object.to_string()).finish()?;
        ensure!(refused.code != 0, "{refused}");
        refused.expect_stderr(&["excludedNamespaces"])?;
        Ok(())
    });
}

/// What the operator makes for a webhook, as the API server has it.
fn objects_of_a_webhook(namespace: &Namespace) -> Result<[Value; 2]> {
    let trigger = Trigger::prepare(namespace, "hook")?;
    let source = json!({"http": {"secretName": "absent"}});
    trigger
        .apply(&trigger.object(&source, &spec("true", json!({})), json!({})))
        .succeed()?;
    trigger.wait_for("Deployed", "False", "absent", 30)?;
    let mut objects = [Value::Null, Value::Null];
    for (object, kind) in objects.iter_mut().zip(["deployment", "service"]) {
        let found = namespace
            .kubectl(&["get", kind, "hook-trigger", "--output=json"])
            .json()?;
        let metadata = &found["metadata"];
        *object = json!({
            "apiVersion": found["apiVersion"], "kind": found["kind"], "spec": found["spec"],
            "metadata": {"name": "stolen", "labels": metadata["labels"], "ownerReferences": metadata["ownerReferences"]},
        });
    }
    let spec = objects[1]["spec"].as_object_mut().context("a spec")?;
    spec.retain(|name, _| !name.starts_with("clusterIP"));
    Ok(objects)
}

/// Not even a Deployment that is another's becomes ours.
fn leaves_others_alone(namespace: &Namespace, account: &str, ours: &Value) -> Result<()> {
    namespace
        .kubectl(&[
            "create",
            "deployment",
            "foreign",
            "--image=busybox:1.36",
            "--replicas=0",
        ])
        .succeed()?;
    let mut metadata = ours.clone();
    metadata.as_object_mut().context("metadata")?.remove("name");
    let takeover = json!({"metadata": metadata}).to_string();
    let patch = [
        "patch",
        "deployment",
        "foreign",
        account,
        "--type=merge",
        "--patch",
        &takeover,
    ];
    let finished = namespace.kubectl(&patch).finish()?;
    ensure!(finished.code != 0, "it was allowed: {finished}");
    finished.expect_stderr(&["controls"])?;
    Ok(())
}

/// As `a_stolen_operator_token_creates_only_pods_of_our_form`.
#[test]
fn a_stolen_operator_token_creates_only_bridges_of_our_form() {
    with_temp_ns("bridges", |namespace| {
        let [deployment, service] = objects_of_a_webhook(namespace)?;
        let account = "--as=system:serviceaccount:remoteprocess-system:remoteprocess-operator";
        let create = |place: &str, object: &Value| {
            let place = format!("--namespace={place}");
            let arguments = [place.as_str(), account, "create", "--dry-run=server", "--filename=-"];
            kubectl(arguments).input(object.to_string()).finish()
        };
        create(&namespace.name, &deployment)?.expect_code(0)?;
        create(&namespace.name, &service)?.expect_code(0)?;
        let denied = |place: &str, object: &Value, why: &str| -> Result<()> {
            let finished = create(place, object)?;
            ensure!(finished.code != 0, "it was allowed: {finished}");
            finished.expect_stderr(&[why])?;
            Ok(())
        };
        denied("kube-system", &deployment, "excludedNamespaces")?;
        let pod = "/spec/template/spec";
        let changes = [
            (
                &deployment,
                "/metadata/ownerReferences/0/kind",
                json!("Deployment"),
                "controls",
            ),
            (&deployment, "/metadata/labels", json!({}), "labeled"),
            (
                &deployment,
                &format!("{pod}/containers/0/image"),
                json!("other"),
                "the image of its chart",
            ),
            (&deployment, "/spec/replicas", json!(3), "at most two pods"),
            (&deployment, &format!("{pod}/hostNetwork"), json!(true), "the host"),
            (
                &deployment,
                &format!("{pod}/volumes"),
                json!([{"name": "credentials", "hostPath": {"path": "/"}}]),
                "other volumes",
            ),
            (&service, "/metadata/ownerReferences", json!([]), "controls"),
            (&service, "/spec/type", json!("NodePort"), "ClusterIP"),
            (&service, "/spec/selector", json!({"app": "other"}), "ClusterIP"),
        ];
        for (object, pointer, value, why) in changes {
            let mut object = object.clone();
            let (parent, field) = pointer.rsplit_once('/').context("a pointer")?;
            let parent = object.pointer_mut(parent).context("a field")?;
            parent[field] = value;
            denied(&namespace.name, &object, why)?;
        }
        leaves_others_alone(namespace, account, &deployment["metadata"])
    });
}
