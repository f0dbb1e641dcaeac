//! Runs Cargo from within `cargo run`, with a target folder that all checkouts share.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::Result;

use crate::lock::Lock;
use crate::paths;

/// Held until this process ends: what one checkout has compiled must not change during its tests.
static CLAIM: OnceLock<Lock> = OnceLock::new();

/// `cargo <task>` in the root of the repository. Unless the user has set a target folder, it compiles into the cache,
/// where a fresh clone finds the dependencies.
pub(crate) fn cargo(task: &str) -> Result<Command> {
    let mut cargo = Command::new("cargo");
    cargo.arg(task);
    prepare(&mut cargo)?;
    Ok(cargo)
}

/// Makes a command that starts Cargo behave as [`cargo`].
pub(crate) fn prepare(command: &mut Command) -> Result<()> {
    command.current_dir(paths::repository());
    if env::var_os("CARGO_TARGET_DIR").is_none() {
        // Each checkout compiles the workspace anew there: what incremental builds store is written and rarely read.
        command
            .env("CARGO_TARGET_DIR", claim_target()?)
            .env("CARGO_INCREMENTAL", "0");
    }
    forget_package(command);
    Ok(())
}

/// Removes the variables that `cargo run` set about our own package: ring's build script reads them, so that ring and
/// everything that depends on it would be recompiled whenever they appear and disappear.
pub(crate) fn forget_package(command: &mut Command) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// The target folder in the cache, for this process alone. Threads that start Cargo need a first call before them.
pub(crate) fn claim_target() -> Result<PathBuf> {
    claim("target")
}

/// The target folder of releases: another linker would make each build of the other folder start anew.
pub(crate) fn claim_release_target() -> Result<PathBuf> {
    claim("release-target")
}

/// The target folder of fuzz targets: they are instrumented.
pub(crate) fn claim_fuzz_target() -> Result<PathBuf> {
    claim("fuzz-target")
}

fn claim(folder: &str) -> Result<PathBuf> {
    let target = paths::cache()?.join(folder);
    if CLAIM.get().is_none() {
        let lock = Lock::take(&target.with_file_name("build.lock"), "the build of another checkout")?;
        let _ = CLAIM.set(lock);
    }
    forget_other_checkout(&target)?;
    Ok(target)
}

/// Cargo compares times of files and treats crates of all checkouts as the same: it would not notice that an older file
/// of this checkout differs from what was compiled last. So the crates of the workspace are compiled again, the others
/// are not.
fn forget_other_checkout(target: &Path) -> Result<()> {
    let marker = target.join("checkout");
    let own = paths::repository().display().to_string();
    if fs::read_to_string(&marker).is_ok_and(|last| last == own) {
        return Ok(());
    }
    fs::create_dir_all(target)?;
    for folder in fingerprints(target) {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("remoteprocess-") || name.starts_with("xtask-") {
            fs::remove_dir_all(&folder)?;
        }
    }
    Ok(fs::write(marker, own)?)
}

/// Cargo's records of each compiled crate: `<profile>/.fingerprint/*` and `<triple>/<profile>/.fingerprint/*`.
fn fingerprints(target: &Path) -> Vec<PathBuf> {
    let children = |folder: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let profiles = children(target).into_iter().flat_map(|folder| {
        let mut folders = children(&folder);
        folders.push(folder);
        folders
    });
    profiles
        .flat_map(|profile| children(&profile.join(".fingerprint")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiles_the_workspace_again_for_another_checkout() {
        let target = tempfile::tempdir().unwrap();
        for path in [
            "debug/.fingerprint/remoteprocess-api-1",
            "x/release/.fingerprint/remoteprocess-api-2",
        ] {
            fs::create_dir_all(target.path().join(path)).unwrap();
        }
        fs::create_dir_all(target.path().join("debug/.fingerprint/ring-1")).unwrap();
        forget_other_checkout(target.path()).unwrap();
        assert_eq!(
            fingerprints(target.path()),
            [target.path().join("debug/.fingerprint/ring-1")]
        );

        fs::create_dir_all(target.path().join("debug/.fingerprint/remoteprocess-api-1")).unwrap();
        forget_other_checkout(target.path()).unwrap();
        assert_eq!(
            fingerprints(target.path()).len(),
            2,
            "the same checkout finds its own crates"
        );
    }
}
