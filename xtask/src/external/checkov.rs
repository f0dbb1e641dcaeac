//! checkov, from PyPI, in an environment of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use sha2::{Digest, Sha256};

use crate::steps::step;
use crate::{exec, paths};

/// Findings that stay as they are, and why.
const ACCEPTED: [(&str, &str); 5] = [
    (
        "CKV_K8S_156",
        "the operator approves requests, for the signer remoteprocess.dev/client alone",
    ),
    ("CKV_K8S_11", "a CPU limit would delay heartbeats of all processes"),
    (
        "CKV_K8S_43",
        "images.operator.digest sets a digest; a chart names its own version",
    ),
    ("CKV_K8S_38", "the operator calls the API server"),
    ("CKV_K8S_15", "tags are versions, which do not change"),
];

/// The Python of an environment with checkov, which is made if it is not there yet.
pub(super) fn install() -> Result<PathBuf> {
    let requirements = paths::repository().join("dev/checkov/requirements.txt");
    let hash = hex::encode(Sha256::digest(fs::read(&requirements)?));
    let folder = paths::cache()?.join("tools").join(format!("checkov-{}", &hash[..12]));
    if !folder.exists() {
        step("install checkov", || {
            // A virtual environment cannot be moved: the mark is written last.
            let partial = folder.with_extension("partial");
            exec::run(
                Command::new("python3")
                    .args(["-m", "venv", "--clear"])
                    .arg(environment(&folder)),
            )?;
            let mut pip = Command::new(environment(&folder).join("bin/python"));
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.args(["--no-deps", "--require-hashes", "--requirement"])
                .arg(&requirements);
            exec::logged(&mut pip, "install-checkov")?;
            fs::create_dir_all(&partial)?;
            Ok(fs::rename(&partial, &folder)?)
        })?;
    }
    Ok(environment(&folder).join("bin/python"))
}

fn environment(folder: &Path) -> PathBuf {
    folder.with_extension("venv")
}

/// Judges a rendered chart.
pub(super) fn judge(python: &Path, chart: &Path) -> Result<()> {
    let mut judge = Command::new(python);
    judge.args([
        "-m",
        "checkov.main",
        "--framework",
        "kubernetes",
        "--quiet",
        "--compact",
    ]);
    judge.args(["--skip-download", "--file"]).arg(chart);
    let accepted: Vec<&str> = ACCEPTED.iter().map(|(check, _)| *check).collect();
    let judged = judge.arg("--skip-check").arg(accepted.join(",")).output()?;
    if judged.status.success() {
        return Ok(());
    }
    bail!(
        "checkov found:\n{}{}",
        String::from_utf8_lossy(&judged.stdout),
        String::from_utf8_lossy(&judged.stderr)
    )
}
