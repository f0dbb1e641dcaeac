//! What users write, their tokens, and keys are where they were put, and nowhere else: not in a log, the audit log, an
//! Event, a metric, the status, or anything else that the API server stores.
//!
//! `cargo xtask faults attacks` looks for them in traces, too.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Namespace, RELEASE_NAMESPACE, is_development_cluster, kubectl, mounted_tokens, operator_pods, spec, until,
    with_temp_ns,
};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::LoginRequest;
use remoteprocess_proto::v1::enrollment_client::EnrollmentClient;
use remoteprocess_tls::{KeyRequest, Role};
use serde_json::{Value, json};

use crate::peers::block_on;
use crate::peers::relay::Relay;

mod etcd;

/// The process.
const NAME: &str = "host";
/// Port of the metrics.
const ADMIN_PORT: u16 = 8080;
/// Characters of a token that are looked for: the end of its signature.
const SIGNATURE: usize = 40;

/// Where a canary may be in etcd.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    /// Nowhere.
    None,
    /// In the spec of the process, and in the pod that is made from it.
    Spec,
    /// In the Secret of the user.
    Secret,
    /// In the Secret of the CA.
    CaSecret,
}

/// A text that no other test has.
struct Canary {
    what: &'static str,
    text: String,
    home: Home,
}

impl Canary {
    /// Whether a key of etcd is its home.
    fn belongs(&self, namespace: &str, key: &str) -> bool {
        match self.home {
            Home::None => false,
            Home::Spec => key == process_key(namespace) || key.starts_with(&format!("/registry/pods/{namespace}/")),
            Home::Secret => key == format!("/registry/secrets/{namespace}/canary"),
            Home::CaSecret => key == format!("/registry/secrets/{RELEASE_NAMESPACE}/remoteprocess-ca"),
        }
    }
}

fn process_key(namespace: &str) -> String {
    format!("/registry/remoteprocess.dev/remoteprocesses/{namespace}/{NAME}")
}

/// The canaries that the test writes.
struct Written {
    namespace: String,
    all: Vec<Canary>,
}

impl Written {
    fn new(namespace: &Namespace) -> Self {
        Self {
            namespace: namespace.name.clone(),
            all: Vec::new(),
        }
    }

    /// A new canary.
    fn make(&mut self, what: &'static str, home: Home) -> String {
        let text = format!("canary-{}-{}", self.all.len(), self.namespace);
        self.add(what, &text, home);
        text
    }

    fn add(&mut self, what: &'static str, text: &str, home: Home) {
        let text = text.to_owned();
        self.all.push(Canary { what, text, home });
    }

    fn add_token(&mut self, what: &'static str, token: &str) -> Result<()> {
        let token = token.trim();
        let signature = token.len().checked_sub(SIGNATURE).and_then(|at| token.get(at..));
        self.add(what, signature.context("a short token")?, Home::None);
        Ok(())
    }

    /// Adds the second line of a PEM key.
    fn add_key(&mut self, what: &'static str, pem: &str, home: Home) -> Result<()> {
        let (_, key) = pem.split_once(" PRIVATE KEY-----\n").context("no key")?;
        self.add(what, key.lines().next().context("no line")?, home);
        Ok(())
    }

    /// Fails if a canary is in a text that was not written by the user.
    fn expect_none(&self, place: &str, text: &str) -> Result<()> {
        for Canary { what, text: canary, .. } in &self.all {
            ensure!(!text.contains(canary.as_str()), "{what} is in {place}");
        }
        Ok(())
    }
}

/// Starts the process, with canaries in all that a user can write into it.
fn start(namespace: &Namespace, written: &mut Written) -> Result<()> {
    let secret = [
        format!(
            "--from-literal=env={}",
            written.make("a variable of a Secret", Home::Secret)
        ),
        format!(
            "--from-literal=file={}",
            written.make("a file of a Secret", Home::Secret)
        ),
    ];
    let create = ["create", "secret", "generic", "canary", &secret[0], &secret[1]];
    namespace.kubectl(&create).succeed()?;
    let script = "read -r line; printf %s \"$line\" > /tmp/line; cat /secret/file > /tmp/file; \
                  while [ ! -f /tmp/go ]; do sleep 0.1; done; exit 3";
    let mut object = spec(
        script,
        json!({
            "stdin": true,
            "env": [
                {"name": "WRITTEN", "value": written.make("a variable", Home::Spec)},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "canary", "key": "env"}}},
            ],
            "pod": {"volumes": [{"name": "canary", "secret": {"secretName": "canary"}}]},
            "volumeMounts": [{"name": "canary", "mountPath": "/secret"}],
        }),
    );
    let command = object["command"].as_array_mut().context("a command")?;
    command.push(json!(written.make("an argument", Home::Spec)));
    namespace.apply(NAME, object).succeed()?;
    namespace.wait_running(NAME)?;
    Ok(())
}

/// Sends canaries as input, and with commands.
fn use_it(namespace: &Namespace, written: &mut Written) -> Result<()> {
    let input = format!("{}\n", written.make("standard input", Home::None));
    let attached = namespace.editor.rproc(&["attach", "-i", NAME]).input(input).start()?;
    let exec = |words: &[&str]| namespace.editor.rproc(&[&["exec"], words].concat());
    until("the input", Duration::from_secs(30), || {
        Ok(exec(&[NAME, "--", "test", "-s", "/tmp/line"]).finish()?.code == 0)
    })?;
    let argument = written.make("an argument of another command", Home::None);
    let variable = format!("MORE={}", written.make("a variable of another command", Home::None));
    let content = written.make("the content of a file", Home::None);
    exec(&[
        "-i",
        NAME,
        "-e",
        &variable,
        "--",
        "sh",
        "-c",
        "cat > /tmp/copied; exit 9",
        &argument,
    ])
    .input(content)
    .finish()?
    .expect_code(9)?;
    let viewer = namespace.user("viewer", Some("view"))?;
    let refused = viewer.rproc(&["exec", NAME, "--", &argument]).finish()?;
    refused.expect_code(125)?;
    exec(&[NAME, "--", "touch", "/tmp/go"]).finish()?.expect_code(0)?;
    attached.finish()?.expect_code(3)?;
    namespace.wait_finished(NAME)?;
    Ok(())
}

/// Logs in as a machine, with a good token and with a spoiled one.
fn log_in(namespace: &Namespace, written: &mut Written) -> Result<()> {
    let mint = ["create", "token", "editor", "--audience=remoteprocess.dev/login"];
    let token = namespace.kubectl(&mint).succeed()?;
    written.add_token("the token of a login", &token)?;
    let spoiled = format!("{}{}", token.trim(), written.make("a spoiled token", Home::None));
    let relay = Relay::reach()?;
    block_on(async {
        let channel = relay.anonymous()?.connect(&relay.enroll, &Role::Operator).await?;
        // A connection takes one call at a time.
        let mut client = EnrollmentClient::new(channel);
        for (token, is_good) in [(token.trim(), true), (spoiled.as_str(), false)] {
            let request = LoginRequest {
                protocol: PROTOCOL,
                token: token.to_owned(),
                csr: KeyRequest::generate()?.csr_der.into(),
            };
            let answer = client.login(request).await;
            ensure!(answer.is_ok() == is_good, "{answer:?}");
        }
        Ok(())
    })
}

/// Adds the tokens of the pod, which must run.
fn add_tokens(namespace: &Namespace, written: &mut Written) -> Result<()> {
    let tokens = mounted_tokens(&namespace.pod_uid(NAME)?)?;
    ensure!(!tokens.is_empty(), "the agent has no token");
    tokens
        .iter()
        .try_for_each(|token| written.add_token("a token of the pod", token))
}

/// Adds what the user and the operator keep secret. The user must have called the relay.
fn add_secrets(namespace: &Namespace, written: &mut Written) -> Result<()> {
    let config = fs::read(namespace.editor.home().join("kubeconfig"))?;
    let config: Value = serde_json::from_slice(&config)?;
    let token = config["users"][0]["user"]["token"].as_str().context("a token")?;
    written.add_token("the token of a user", token)?;
    let key = find_key(&namespace.editor.home().join("cache"))?.context("rproc has stored no key")?;
    written.add_key("the key of a user", &key, Home::None)?;
    let template = "--output=go-template={{index .data \"tls.key\" | base64decode}}";
    let get = [
        "get",
        "secret",
        "remoteprocess-ca",
        template,
        "--namespace",
        RELEASE_NAMESPACE,
    ];
    written.add_key("the key of the CA", &kubectl(get).succeed()?, Home::CaSecret)
}

/// A file with a key in a folder or below.
fn find_key(folder: &Path) -> Result<Option<String>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find_key(&path)? {
                return Ok(Some(found));
            }
        } else if let Ok(text) = fs::read_to_string(&path)
            && text.contains(" PRIVATE KEY-----\n")
        {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Looks into the logs of the pod and of the operator, with the audit log, and into the metrics.
fn search_programs(namespace: &Namespace, pod: &str, written: &Written) -> Result<()> {
    for container in ["rproc-agent", "main"] {
        let log = namespace.kubectl(&["logs", pod, "--container", container]).succeed()?;
        written.expect_none(&format!("the log of {container}"), &log)?;
    }
    let mut is_audited = false;
    for operator in operator_pods()? {
        let log = kubectl(["logs", &operator, "--namespace", RELEASE_NAMESPACE]).succeed()?;
        let mut lines = log.lines().filter(|line| line.contains(&written.namespace));
        is_audited |= lines.any(|line| line.contains("\"target\":\"audit\""));
        written.expect_none("the log of the operator", &log)?;
        let path = format!("/api/v1/namespaces/{RELEASE_NAMESPACE}/pods/{operator}:{ADMIN_PORT}/proxy/metrics");
        let metrics = kubectl(["get", "--raw", &path]).succeed()?;
        ensure!(metrics.contains("remoteprocess_rpc_requests_total"), "{metrics}");
        written.expect_none("the metrics", &metrics)?;
    }
    ensure!(is_audited, "the audit log has no line of this test");
    Ok(())
}

/// Looks into everything that the API server has stored.
fn search_etcd(written: &Written) -> Result<usize> {
    let mut stored = Vec::new();
    block_on(async {
        stored = etcd::dump().await?;
        Ok(())
    })?;
    for canary in written.all.iter().filter(|canary| canary.home != Home::None) {
        let is_home = |entry: &etcd::Stored| {
            canary.belongs(&written.namespace, &entry.key)
                && String::from_utf8_lossy(&entry.value).contains(&canary.text)
        };
        ensure!(stored.iter().any(is_home), "{} is not where it was put", canary.what);
    }
    for entry in &stored {
        let text = String::from_utf8_lossy(&entry.value);
        for canary in &written.all {
            let is_elsewhere = text.contains(&canary.text) && !canary.belongs(&written.namespace, &entry.key);
            ensure!(!is_elsewhere, "{} is in {} of etcd", canary.what, entry.key);
        }
    }
    Ok(stored.len())
}

/// Looks into what the operator and the kubelet have written into the objects of the user.
fn search_objects(namespace: &Namespace, written: &Written) -> Result<()> {
    let mut object = namespace.object(NAME)?;
    ensure!(object["status"]["exitCode"] == 3, "{:#}", object["status"]);
    // What the user wrote, once more by `kubectl apply`.
    object["spec"].take();
    object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].take();
    written.expect_none("the object", &object.to_string())?;
    let pod = namespace.pod(NAME)?;
    written.expect_none("the metadata of the pod", &pod["metadata"].to_string())?;
    written.expect_none("the status of the pod", &pod["status"].to_string())
}

#[test]
fn what_users_write_and_keys_are_nowhere_else() {
    if !is_development_cluster("a dump of etcd, and the tokens of a node") {
        return;
    }
    with_temp_ns("canaries", |namespace| {
        let mut written = Written::new(namespace);
        start(namespace, &mut written)?;
        add_tokens(namespace, &mut written)?;
        use_it(namespace, &mut written)?;
        log_in(namespace, &mut written)?;
        add_secrets(namespace, &mut written)?;
        search_programs(namespace, &namespace.pod_name(NAME)?, &written)?;
        search_objects(namespace, &written)?;
        let keys = search_etcd(&written)?;
        println!("{} canaries, {keys} keys of etcd", written.all.len());
        Ok(())
    });
}
