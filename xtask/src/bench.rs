//! Runs the benchmarks against the installed operator.

use std::process::Command;

use anyhow::Result;

use crate::steps::step;
use crate::target::{Target, TargetArgs};
use crate::{exec, install, paths, test};

/// Installs the operator and runs the crate `bench/` with `extra` as its arguments.
pub fn bench(args: &TargetArgs, extra: &[String]) -> Result<()> {
    let target = Target::resolve(args)?;
    let images = install::install(&target)?;
    step("bench", || {
        let mut cargo = Command::new("cargo");
        cargo.current_dir(paths::repository()).args([
            "run",
            "--release",
            "--quiet",
            "--package",
            "remoteprocess-bench",
        ]);
        cargo.arg("--").args(extra);
        test::describe(&mut cargo, &target, &images);
        exec::run(&mut cargo)
    })
}
