//! Runs the benchmarks against the installed operator.

use anyhow::Result;

use crate::cargo::cargo;
use crate::steps::step;
use crate::target::{Target, TargetArgs};
use crate::{exec, install, test};

/// Installs the operator and runs the crate `bench/` with `extra` as its arguments.
pub fn bench(args: &TargetArgs, extra: &[String]) -> Result<()> {
    let target = Target::resolve(args)?;
    let installation = install::install(&target)?;
    step("the program that is followed", || {
        let mut cargo = cargo("rustc")?;
        cargo.args([
            "--release",
            "--quiet",
            "--package",
            "remoteprocess-bench",
            "--bin",
            "bench-writer",
        ]);
        // It runs in containers that have no libraries for it.
        exec::run(cargo.args(["--", "-C", "target-feature=+crt-static"]))
    })?;
    step("bench", || {
        let mut cargo = cargo("run")?;
        cargo.args([
            "--release",
            "--quiet",
            "--package",
            "remoteprocess-bench",
            "--bin",
            "remoteprocess-bench",
        ]);
        cargo.arg("--").args(extra);
        test::describe(&mut cargo, &target, &installation.images);
        exec::run(&mut cargo)
    })
}
