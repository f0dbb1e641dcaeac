//! The page of `rproc ui`: built into page/dist/, from where the next build of rproc takes it.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

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

fn npm(task: &str, args: &[&str]) -> Result<()> {
    let mut npm = Command::new("npm");
    npm.current_dir(paths::repository().join("page")).arg(task).args(args);
    exec::logged(&mut npm, &format!("npm-{task}"))
}
