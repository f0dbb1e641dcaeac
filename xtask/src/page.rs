//! The page of `rproc ui`: built into page/dist/, from where the next build of rproc takes it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

use crate::cluster::install_packages;
use crate::steps::{say, step};
use crate::{exec, paths};

/// The browser of the tests: Debian package, and the file that proves that it is installed.
const BROWSER: (&str, &str) = ("chromium", "/usr/bin/chromium");

/// What to do with the page after it is built.
#[derive(Args)]
pub(crate) struct PageArgs {
    /// Test it in headless Chromium, with axe.
    #[arg(long)]
    test: bool,
    /// Take the pictures in docs/images/.
    #[arg(long)]
    screenshots: bool,
}

/// Builds the page.
pub(crate) fn page(args: &PageArgs) -> Result<()> {
    build()?;
    if args.test || args.screenshots {
        install_packages(&[BROWSER])?;
    }
    if args.test {
        step("test the page", || npm("test", &[]))?;
    }
    if args.screenshots {
        step("pictures of the page", || npm("run", &["screenshots"]))?;
    }
    say("build rproc now: cargo build -p remoteprocess-cli, or cargo xtask images for the release");
    Ok(())
}

/// Builds the page into page/dist/.
pub(crate) fn build() -> Result<()> {
    if !exec::succeeds(Command::new("npm").arg("--version")) {
        bail!("npm is missing: install Node 20 or newer. Without the page, rproc has everything but `rproc ui`");
    }
    step("packages of the page", || {
        npm("ci", &["--ignore-scripts", "--no-audit", "--no-fund"])
    })?;
    step("build the page", || npm("run", &["build"]))
}

/// The version in its package.json, which is the one of the release.
pub(crate) fn version() -> Result<String> {
    let package: Value = serde_json::from_slice(&fs::read(folder().join("package.json"))?)?;
    Ok(package["version"].as_str().unwrap_or_default().to_owned())
}

/// The packages in the page, as CycloneDX: those that only build and test it are not in it.
pub(crate) fn sbom() -> Result<Vec<u8>> {
    let mut npm = Command::new("npm");
    npm.current_dir(folder())
        .args(["sbom", "--sbom-format=cyclonedx", "--sbom-type=application"])
        .args(["--omit=dev", "--package-lock-only"]);
    Ok(exec::output(&mut npm)?.into_bytes())
}

fn npm(task: &str, args: &[&str]) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.current_dir(folder()).arg(task).args(args);
    exec::logged(&mut npm, &format!("npm-{task}"))
}

fn folder() -> PathBuf {
    paths::repository().join("page")
}
