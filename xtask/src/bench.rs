//! Runs the benchmarks against the installed operator.

use std::process::Command;

use anyhow::Result;

use crate::cargo::cargo;
use crate::steps::step;
use crate::target::{Target, TargetArgs};
use crate::{exec, install};

/// Installs the operator and runs the crate `bench/` with `extra` as its arguments.
pub(crate) fn bench(args: &TargetArgs, extra: &[String]) -> Result<()> {
    let target = Target::resolve(args)?;
    let installation = install::install(&target)?;
    step("the program that is followed", || {
        let mut cargo = bench_cargo("rustc", "bench-writer")?;
        // It runs in containers without its libraries.
        exec::run(cargo.args(["--", "-C", "target-feature=+crt-static"]))
    })?;
    step("bench", || {
        let mut cargo = bench_cargo("run", "remoteprocess-bench")?;
        cargo.arg("--").args(extra);
        installation.images.describe(&mut cargo, &target);
        exec::run(&mut cargo)
    })
}

/// `cargo` with a program of the crate `bench/`.
fn bench_cargo(verb: &str, program: &str) -> Result<Command> {
    let mut cargo = cargo(verb)?;
    cargo.args([
        "--release",
        "--quiet",
        "--package",
        "remoteprocess-bench",
        "--bin",
        program,
    ]);
    Ok(cargo)
}
