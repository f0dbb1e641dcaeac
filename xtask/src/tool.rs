//! Programs from crates.io that tasks need, built once for all checkouts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::cargo::forget_package;
use crate::steps::step;
use crate::{exec, paths};

/// The program of the crate `name`, built if it is not in the cache yet.
pub(crate) fn ensure(name: &str, version: &str) -> Result<PathBuf> {
    let folder = paths::cache()?.join("tools").join(format!("{name}-{version}"));
    if !folder.exists() {
        step(&format!("build {name}"), || build(name, version, &folder))?;
    }
    Ok(folder.join("bin").join(name))
}

fn build(name: &str, version: &str, folder: &Path) -> Result<()> {
    let partial = folder.with_file_name(format!("{name}-{version}.partial"));
    let mut install = Command::new("cargo");
    install.args(["install", name, "--locked", "--debug", "--version", version, "--root"]);
    install.arg(&partial).arg("--target-dir").arg(partial.join("target"));
    // The user's settings for our own builds do not apply to this one.
    install.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    forget_package(&mut install);
    exec::logged(&mut install, &format!("build-{name}"))?;
    fs::remove_dir_all(partial.join("target"))?;
    Ok(fs::rename(&partial, folder)?)
}
