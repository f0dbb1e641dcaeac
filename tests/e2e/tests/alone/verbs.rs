//! The rights of the operator's account are those that it uses. Read from the audit log of the development cluster, which has
//! every call of the account since the cluster was made.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{RELEASE_NAMESPACE, is_development_cluster, kubectl, with_temp_ns};
use serde_json::Value;

/// Granted, but never a call of the account, or not in each run of the tests.
const NOT_IN_THE_LOG: [(&str, &str); 14] = [
    (
        "approve certificates.k8s.io/signers",
        "the API server checks it for an approval",
    ),
    (
        "sign certificates.k8s.io/signers",
        "the API server checks it for a signature",
    ),
    (
        "update remoteprocess.dev/remoteprocesses/finalizers",
        "the API server checks it for owner references",
    ),
    ("get /nodes", "only when the node of a pod is lost"),
    ("get /namespaces", "only for output of a process that is gone"),
    (
        "create coordination.k8s.io/leases",
        "only the first operator of a cluster",
    ),
    ("create /secrets", "only the first operator of a cluster"),
    ("create /configmaps", "only the first operator of a cluster"),
    ("get /configmaps", "only after a conflict"),
    ("patch events.k8s.io/events", "only for an Event that repeats for long"),
    (
        "patch remoteprocess.dev/remoteprocesses",
        "only for a stop whose agent is away",
    ),
    (
        "create apps/deployments",
        "the API server checks it for an apply that creates",
    ),
    ("create /services", "the API server checks it for an apply that creates"),
    ("delete /services", "only when a webhook becomes another source"),
];
/// Fewer calls are no whole run of the tests.
const WHOLE_RUN: usize = 5000;

/// `verb group/resource`, with the subresource if there is one.
fn right(verb: &str, group: &str, resource: &str) -> String {
    format!("{verb} {group}/{resource}")
}

/// The rights that a role (JSON) grants.
fn granted(role: &Value) -> Result<BTreeSet<String>> {
    let words = |rule: &Value, field: &str| -> Vec<String> {
        let words = rule[field].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().context("a role without rules")? {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                rights.extend(words(rule, "verbs").iter().map(|verb| right(verb, &group, &resource)));
            }
        }
    }
    Ok(rights)
}

/// The right for the call in a line of the log, also if the call was refused.
fn used(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let object = &event["objectRef"];
    let resource = object["resource"].as_str()?;
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{resource}/{part}"),
        None => resource.to_owned(),
    };
    let group = object["apiGroup"].as_str().unwrap_or_default();
    Some(right(event["verb"].as_str()?, group, &resource))
}

fn log() -> Result<String> {
    let folder =
        PathBuf::from(std::env::var("RPROC_CLUSTER_STATE").context("RPROC_CLUSTER_STATE is not set")?).join("logs");
    let mut text = String::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("audit"))
        {
            text.push_str(&fs::read_to_string(path)?);
        }
    }
    Ok(text)
}

#[test]
fn each_granted_verb_is_used_and_each_used_verb_is_granted() {
    if !is_development_cluster("the audit log of the API server") {
        return;
    }
    with_temp_ns("verbs", |_| {
        let role = |kind: &str| {
            let get = [
                "--namespace",
                RELEASE_NAMESPACE,
                "get",
                kind,
                "remoteprocess-operator",
                "--output=json",
            ];
            granted(&kubectl(get).json()?)
        };
        let granted: BTreeSet<String> = role("clusterrole")?.union(&role("role")?).cloned().collect();
        ensure!(
            !granted.iter().any(|right| right.contains('*')),
            "a wildcard: {granted:?}"
        );

        let log = log()?;
        let calls: Vec<String> = log.lines().filter_map(used).collect();
        let used: BTreeSet<String> = calls.iter().cloned().collect();
        let missing: Vec<&String> = used.difference(&granted).collect();
        ensure!(missing.is_empty(), "used but not in the roles: {missing:?}");
        if calls.len() < WHOLE_RUN {
            println!(
                "LEFT OUT: whether each verb is used; the log has {} calls, no whole run",
                calls.len()
            );
            return Ok(());
        }
        let unused: Vec<&String> = granted.difference(&used).collect();
        let unknown: Vec<_> = unused
            .into_iter()
            .filter(|right| NOT_IN_THE_LOG.iter().all(|(known, _)| known != right))
            .collect();
        ensure!(unknown.is_empty(), "granted but never used: {unknown:?}");
        Ok(())
    });
}
