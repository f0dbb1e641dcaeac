//! Tests by other projects, which are too slow or download too much for each run.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::steps::step;
use crate::{cluster, exec, paths};

/// Findings of kube-score that stay as they are, and why.
const ACCEPTED: [(&str, &str); 5] = [
    (
        "pod-networkpolicy",
        "no egress policy: the operator dials the pods of all processes",
    ),
    (
        "container-ephemeral-storage-request-and-limit",
        "the root filesystem is read-only, and the archive has a volume of its own",
    ),
    ("container-image-pull-policy", "tags are versions, which do not change"),
    (
        "deployment-strategy",
        "an archive on a volume allows one replica at a time",
    ),
    ("deployment-replicas", "the same; with S3, set replicas"),
];

/// Runs them; the error has the findings.
pub(crate) fn external() -> Result<()> {
    let (kube_score, helm) = (cluster::kube_score()?, cluster::helm()?);
    step("kube-score on the chart", || {
        let mut template = Command::new(helm);
        template
            .args(["template", "remoteprocess"])
            .arg(paths::repository().join("charts/remoteprocess-operator"))
            .args(["--namespace", "remoteprocess-system", "--skip-tests"])
            .args(["--set", "networkPolicy.enabled=true"]);
        let rendered = exec::output(&mut template)?;
        let mut judge = Command::new(kube_score);
        // A CPU limit would delay heartbeats of all processes.
        judge.args([
            "score",
            "--output-format=ci",
            "--exit-one-on-warning",
            "--ignore-container-cpu-limit",
        ]);
        for (test, _) in ACCEPTED {
            judge.arg(format!("--ignore-test={test}"));
        }
        let mut child = judge
            .arg("-")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start kube-score")?;
        child.stdin.take().context("no stdin")?.write_all(rendered.as_bytes())?;
        let judged = child.wait_with_output()?;
        if judged.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&judged.stdout);
        let findings: Vec<&str> = said.lines().filter(|line| !line.starts_with("[OK]")).collect();
        bail!("kube-score found:\n{}", findings.join("\n"))
    })
}
