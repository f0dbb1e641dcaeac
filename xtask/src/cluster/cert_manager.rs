//! cert-manager in the development cluster: `cluster up --cert-manager`. Its programs are built from the pinned module, and
//! its chart and CRDs are those of the module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{State, Tools, tools};
use crate::archive::{Entry, Image};
use crate::exec;
use crate::steps::step;

const NAME: &str = "cert-manager";
const VERSION: &str = "v1.11.5";
const MODULE: &str = "github.com/cert-manager/cert-manager";
/// A program, and where the chart takes the repository of its image from.
const PROGRAMS: [(&str, &str); 3] = [
    ("controller", "image"),
    ("webhook", "webhook.image"),
    ("cainjector", "cainjector.image"),
];

/// Builds and installs it; nothing happens if it is installed.
pub(super) fn install(state: &State, tools: &Tools) -> Result<()> {
    let programs = tools::ensure_cert_manager()?;
    if is_installed(state, tools) {
        return Ok(());
    }
    step("install cert-manager", || {
        load(state, tools, &programs)?;
        let chart = chart()?;
        let mut helm = Command::new(tools.path("helm"));
        helm.env("KUBECONFIG", state.kubeconfig())
            .args(["upgrade", "--install", NAME])
            .arg(chart.path())
            .args(["--namespace", NAME, "--create-namespace", "--wait", "--timeout=120s"])
            // Its image needs one more program; `--wait` waits for the webhook.
            .args([
                "--set",
                "installCRDs=true,startupapicheck.enabled=false,prometheus.enabled=false",
            ]);
        for (program, value) in PROGRAMS {
            helm.arg("--set")
                .arg(format!("{value}.repository={}", repository(program)));
        }
        exec::output(&mut helm).map(drop)
    })
}

fn is_installed(state: &State, tools: &Tools) -> bool {
    let mut helm = Command::new(tools.path("helm"));
    helm.env("KUBECONFIG", state.kubeconfig())
        .args(["status", NAME, "--namespace", NAME, "--output=json"]);
    exec::output(&mut helm).is_ok_and(|status| status.contains("\"status\":\"deployed\""))
}

fn repository(program: &str) -> String {
    format!("remoteprocess.dev/dev/cert-manager-{program}")
}

fn load(state: &State, tools: &Tools, programs: &Path) -> Result<()> {
    for (program, _) in PROGRAMS {
        let image = Image {
            names: vec![format!("{}:{VERSION}", repository(program))],
            entries: vec![Entry::Copy(program.to_owned(), 0o755, programs.join(program))],
            entrypoint: vec![format!("/{program}")],
            user: "1000:1000".to_owned(),
            ..Image::default()
        };
        let archive = state.root.join("images").join(format!("{NAME}-{program}.tar"));
        image.write(&archive)?;
        super::load(state, tools, &archive)?;
    }
    Ok(())
}

/// The chart of the module, as its release tool completes it: with a version, and with the CRDs as templates.
fn chart() -> Result<TempDir> {
    let module = module()?;
    let source = module.join("deploy/charts").join(NAME);
    let chart = TempDir::with_prefix("cert-manager-chart-")?;
    let templates = chart.path().join("templates");
    fs::create_dir(&templates)?;
    for entry in fs::read_dir(source.join("templates"))? {
        let path = entry?.path();
        copy(&path, &templates)?;
    }
    copy(&source.join("values.yaml"), chart.path())?;
    let template = fs::read_to_string(source.join("Chart.template.yaml"))?;
    fs::write(chart.path().join("Chart.yaml"), template.replace("v0.1.0", VERSION))?;
    for entry in fs::read_dir(module.join("deploy/crds"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            copy(&path, &templates)?;
        }
    }
    Ok(chart)
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    let name = file.file_name().context("a file has a name")?;
    // Not fs::copy: files in the module cache are read-only.
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    fs::write(folder.join(name), bytes)?;
    Ok(())
}

/// Where the module's files are.
fn module() -> Result<PathBuf> {
    let mut go = Command::new("go");
    go.current_dir(tools::cert_manager_source())
        .env("GOWORK", "off")
        .args(["list", "-m", "-f", "{{.Dir}}", MODULE]);
    Ok(PathBuf::from(exec::output(&mut go)?.trim()))
}
