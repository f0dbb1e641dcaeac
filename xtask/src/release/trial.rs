//! Tries what `dist/` has: the checksums, each program of each architecture, and the installation on the development
//! cluster from `install.yaml` and the image archives.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::{ARCHITECTURES, this_architecture};
use crate::cluster::{State, install_packages};
use crate::images::{CONTENTS, NAMES};
use crate::install::NAMESPACE;
use crate::lock::Lock;
use crate::steps::step;
use crate::target::Target;
use crate::{exec, paths};

/// Runs programs of arm64 here: Debian package, and its program.
const EMULATOR: (&str, &str) = ("qemu-user-static", "/usr/bin/qemu-aarch64-static");
/// Says something, and exits with a code of its own.
const SCRIPT: &str = "echo hello from a release; exit 7";

/// Tries the release of this version in `dist/`.
pub(super) fn run(version: &str) -> Result<()> {
    let dist = paths::repository().join("dist");
    ensure!(
        dist.join("SHA256SUMS").exists(),
        "dist/ has no complete release: run `cargo xtask release --version {version}` without --try first"
    );
    step("compare the checksums", || {
        let mut check = Command::new("sha256sum");
        check.current_dir(&dist).args(["--check", "--quiet", "SHA256SUMS"]);
        exec::output(&mut check).map(drop)
    })?;
    for (architecture, _) in ARCHITECTURES {
        let emulator = emulator(architecture)?;
        step(&format!("run the programs for {architecture}"), || {
            programs(&dist, version, architecture, emulator)
        })?;
    }
    installation(&dist, version)
}

/// What runs programs of this architecture here, installed if it is missing; `None` if they run by themselves.
fn emulator(architecture: &str) -> Result<Option<&'static str>> {
    if architecture == this_architecture() {
        return Ok(None);
    }
    ensure!(
        architecture == "arm64",
        "programs of {architecture} cannot be run on {}",
        env::consts::ARCH
    );
    install_packages(&[EMULATOR])?;
    Ok(Some(EMULATOR.1))
}

/// Each program of the archives says its version.
fn programs(dist: &Path, version: &str, architecture: &str, emulator: Option<&str>) -> Result<()> {
    let start = |program: &Path| match emulator {
        None => Command::new(program),
        Some(emulator) => {
            let mut command = Command::new(emulator);
            command.arg(program);
            command
        }
    };
    let rproc = rproc(dist, version, architecture)?;
    let mut found = vec![rproc.path().join("rproc")];
    let mut folders = vec![rproc];
    for (name, programs) in NAMES.iter().zip(CONTENTS) {
        let folder = image(&dist.join(format!("{name}-{version}.oci.tar")), architecture)?;
        found.extend(programs.iter().map(|program| folder.path().join(program)));
        folders.push(folder);
    }
    for program in found {
        if program.ends_with("entrypoint") {
            // It has no other work than to be PID 1, and refuses what it does not know.
            let refused = start(&program).arg("--version").output()?;
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            ensure!(said.contains("usage is entrypoint"), "{}: {said}", program.display());
            continue;
        }
        let said = exec::output(start(&program).arg("--version"))?;
        ensure!(
            said.trim_end().ends_with(version),
            "{} for {architecture} says {said:?}, and not {version}",
            program.display()
        );
    }
    Ok(())
}

/// The unpacked archive with `rproc`.
fn rproc(dist: &Path, version: &str, architecture: &str) -> Result<TempDir> {
    unpacked(&dist.join(format!("rproc-{version}-linux-{architecture}.tar.gz")))
}

/// The files of an archive, which may be compressed.
fn unpacked(archive: &Path) -> Result<TempDir> {
    let folder = TempDir::with_prefix("rproc-release-")?;
    let mut tar = Command::new("tar");
    tar.arg("-xf").arg(archive).arg("-C").arg(folder.path());
    exec::output(&mut tar)?;
    Ok(folder)
}

/// The files of the image for one architecture in an OCI archive.
fn image(archive: &Path, architecture: &str) -> Result<TempDir> {
    let layout = unpacked(archive)?;
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"].as_str().context("a descriptor has a digest")?;
        Ok(layout.path().join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: &Path| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(path).with_context(|| {
            format!("{} of {}", path.display(), archive.display())
        })?)?)
    };
    let index = read(&layout.path().join("index.json"))?;
    let images = read(&blob(&index["manifests"][0])?)?;
    let of_it = |image: &&Value| image["platform"]["architecture"] == architecture;
    let mut images = images["manifests"].as_array().into_iter().flatten();
    let found = images.find(of_it);
    let manifest =
        read(&blob(found.with_context(|| {
            format!("{} has no image for {architecture}", archive.display())
        })?)?)?;
    // `oci::write` makes one layer.
    unpacked(&blob(&manifest["layers"][0])?)
}

/// Installs it on the development cluster, runs a process, and takes everything away again.
fn installation(dist: &Path, version: &str) -> Result<()> {
    let state = State::of_this_user()?;
    let tests = Lock::take(&state.tests_lock(), "the tests of another checkout")?;
    let target = Target::development(state, Some(&tests))?;
    let here =
        exec::output(
            target
                .kubectl()
                .args(["get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name"]),
        )?;
    if !here.is_empty() {
        bail!(
            "the development cluster has an operator already, in namespace {NAMESPACE}: `cargo xtask cluster down` \
             takes the cluster away"
        );
    }
    step("load the image archives", || {
        let archives: Vec<PathBuf> = NAMES
            .iter()
            .map(|name| dist.join(format!("{name}-{version}.oci.tar")))
            .collect();
        target.load(&archives, &[])
    })?;
    let tried = step("install from install.yaml, and run a process", || {
        process(dist, version, &target)
    });
    let manifests = dist.join("install.yaml");
    let taken_away = step("take it away again", || {
        let mut processes = target.kubectl();
        // Their finalizer needs the operator.
        processes.args([
            "delete",
            "remoteprocesses",
            "--all",
            "--all-namespaces",
            "--ignore-not-found",
        ]);
        let gone = exec::output(&mut processes);
        let mut delete = target.kubectl();
        delete
            .args(["delete", "--ignore-not-found", "--timeout=120s", "--filename"])
            .arg(&manifests);
        exec::output(&mut delete)?;
        gone.map(drop)
    });
    // What is wrong with the release is told first.
    tried.and(taken_away)
}

fn process(dist: &Path, version: &str, target: &Target) -> Result<()> {
    let mut apply = target.kubectl();
    apply
        .args(["apply", "--server-side", "--filename"])
        .arg(dist.join("install.yaml"));
    exec::output(&mut apply)?;
    let mut ready = target.kubectl();
    ready.args([
        "rollout",
        "status",
        "deployment",
        "--timeout=120s",
        "--namespace",
        NAMESPACE,
    ]);
    exec::output(&mut ready)?;
    let folder = rproc(dist, version, this_architecture())?;
    let mut run = target.command(&folder.path().join("rproc"));
    run.args([
        "run",
        "--rm",
        "--quiet",
        "--namespace",
        "default",
        "--context",
        &target.context,
    ]);
    let ran = run
        .args(["--image", "busybox:1.36", "--", "sh", "-c", SCRIPT])
        .output()?;
    let (code, said) = (ran.status.code(), String::from_utf8_lossy(&ran.stdout));
    ensure!(
        code == Some(7) && said == "hello from a release\n",
        "rproc run ended with {code:?} and {said:?} instead of 7: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}
