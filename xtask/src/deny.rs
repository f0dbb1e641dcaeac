//! cargo-deny: the rules of `deny.toml` for third-party crates.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cargo::forget_package;
use crate::steps::step;
use crate::{exec, paths};

const VERSION: &str = "0.20.2";

/// Checks bans, licenses and sources. Advisories need a database on GitHub: the workflow `ci.yml` checks those.
pub(crate) fn deny() -> Result<()> {
    let mut deny = Command::new(ensure()?);
    deny.current_dir(paths::repository());
    deny.args([
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "bans",
        "licenses",
        "sources",
    ]);
    forget_package(&mut deny);
    exec::run(&mut deny)
}

/// The program, built if it is not in the cache yet.
fn ensure() -> Result<PathBuf> {
    let folder = paths::cache()?.join("tools").join(format!("cargo-deny-{VERSION}"));
    if !folder.exists() {
        step("build cargo-deny", || build(&folder))?;
    }
    Ok(folder.join("bin/cargo-deny"))
}

fn build(folder: &PathBuf) -> Result<()> {
    let partial = folder.with_file_name(format!("cargo-deny-{VERSION}.partial"));
    let mut install = Command::new("cargo");
    install.args([
        "install",
        "cargo-deny",
        "--locked",
        "--debug",
        "--version",
        VERSION,
        "--root",
    ]);
    install.arg(&partial).arg("--target-dir").arg(partial.join("target"));
    // The user's settings for our own builds do not apply to this one.
    install.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
    forget_package(&mut install);
    exec::logged(&mut install, "build-cargo-deny")?;
    fs::remove_dir_all(partial.join("target"))?;
    Ok(fs::rename(&partial, folder)?)
}
