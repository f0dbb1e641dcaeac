//! Tests by other projects, which are too slow or download too much for each run. Each finding is fixed, or frozen here with
//! its reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use tempfile::TempDir;

mod checkov;
mod schemas;

use crate::steps::step;
use crate::{cluster, exec, faults, fuzz, paths, prometheus};

/// Findings of kube-score that stay as they are, and why.
const KUBE_SCORE: [(&str, &str); 5] = [
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

/// What the chart can be made to render, all in all.
const VALUES: [&[&str]; 3] = [
    &["networkPolicy.enabled=true"],
    &[
        "networkPolicy.enabled=true",
        "replicas=2",
        "archive.store=S3",
        "archive.s3.bucket=archive",
        "watchNamespaces={team-a,team-b}",
        "audit.file.enabled=true",
    ],
    &["ca.source=CertManager", "admissionPolicy.enabled=false"],
];

/// Runs them; the error has the findings.
pub(crate) fn external() -> Result<()> {
    prometheus::check()?;
    let folder = TempDir::with_prefix("rproc-external-")?;
    let charts = VALUES
        .iter()
        .enumerate()
        .map(|(number, values)| render(&folder.path().join(format!("{number}.yaml")), values))
        .collect::<Result<Vec<_>>>()?;
    let kube_score = cluster::external_tool("kube-score")?;
    step("kube-score on the chart", || {
        judge_by_kube_score(&kube_score, &charts[0])
    })?;
    let kubeconform = cluster::external_tool("kubeconform")?;
    step("kubeconform on the chart", || {
        judge_by_kubeconform(&kubeconform, folder.path(), &charts)
    })?;
    let checkov = checkov::install()?;
    step("checkov on the chart", || checkov::judge(&checkov, &charts[0]))?;
    faults::foreign()?;
    fuzz::fuzz(&fuzz::FuzzArgs::default())
}

fn render(path: &Path, values: &[&str]) -> Result<PathBuf> {
    let mut template = Command::new(cluster::helm()?);
    template
        .args(["template", "remoteprocess"])
        .arg(paths::chart())
        .args(["--namespace", "remoteprocess-system", "--skip-tests", "--set"])
        .arg(values.join(","));
    fs::write(path, exec::output(&mut template)?)?;
    Ok(path.to_owned())
}

fn judge_by_kube_score(kube_score: &Path, chart: &Path) -> Result<()> {
    let mut judge = Command::new(kube_score);
    // A CPU limit would delay heartbeats of all processes.
    judge.args([
        "score",
        "--output-format=ci",
        "--exit-one-on-warning",
        "--ignore-container-cpu-limit",
    ]);
    for (test, _) in KUBE_SCORE {
        judge.arg(format!("--ignore-test={test}"));
    }
    let judged = judge.arg(chart).output()?;
    if judged.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&judged.stdout);
    let findings: Vec<&str> = said.lines().filter(|line| !line.starts_with("[OK]")).collect();
    bail!("kube-score found:\n{}", findings.join("\n"))
}

/// Each object has only fields that its kind has, with values of the right type.
fn judge_by_kubeconform(kubeconform: &Path, folder: &Path, charts: &[PathBuf]) -> Result<()> {
    let schemas = folder.join("schemas");
    schemas::write(&schemas)?;
    let mut judge = Command::new(kubeconform);
    judge.args(["-summary", "-schema-location"]);
    judge.arg(format!(
        "{}/{{{{ .Group }}}}_{{{{ .ResourceAPIVersion }}}}_{{{{ .ResourceKind }}}}.json",
        schemas.display()
    ));
    // Kinds of cert-manager.
    judge.args(["-skip", "Certificate,Issuer"]).args(charts);
    let judged = judge.output()?;
    if judged.status.success() {
        return Ok(());
    }
    bail!("kubeconform found:\n{}", String::from_utf8_lossy(&judged.stdout))
}
