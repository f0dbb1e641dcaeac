//! Brings faults about, in a simulation and on the cluster.

use std::process::Command;

use anyhow::Result;

use crate::cargo::cargo;
use crate::images::Images;
use crate::target::{Target, TargetArgs};
use crate::{exec, install, test};

/// Runs the crate `tests/faults` with `arguments`; what needs a cluster gets one with the operator installed.
pub fn faults(target: &TargetArgs, arguments: &[String]) -> Result<()> {
    let is_offline = arguments
        .iter()
        .any(|argument| matches!(argument.as_str(), "simulation" | "help" | "--help" | "-h"));
    if is_offline {
        return exec::run(program()?.args(arguments));
    }
    let target = Target::resolve(target)?;
    let installation = install::install(&target)?;
    exec::run(on(&mut program()?, &target, &installation.images).args(arguments))
}

/// The program, by `cargo run`.
pub fn program() -> Result<Command> {
    let mut cargo = cargo("run")?;
    cargo.args(["--locked", "--quiet", "--package", "remoteprocess-faults", "--"]);
    Ok(cargo)
}

/// The same, told about a cluster.
pub fn on<'a>(program: &'a mut Command, target: &Target, images: &Images) -> &'a mut Command {
    test::describe(program, target, images);
    program
}
