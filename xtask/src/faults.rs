//! Injects faults, in a simulation and on the cluster.

use std::process::Command;

use anyhow::Result;

use crate::cargo::cargo;
use crate::cluster::ApiServer;
use crate::images::Images;
use crate::target::{Target, TargetArgs};
use crate::{cluster, exec, install, paths};

/// Runs the crate `tests/faults` with `arguments`; scenarios that need a cluster get one with the operator installed.
pub(crate) fn faults(target: &TargetArgs, arguments: &[String]) -> Result<()> {
    let is_given = |words: &[&str]| arguments.iter().any(|argument| words.contains(&argument.as_str()));
    if is_given(&["simulation", "help", "--help", "-h"]) {
        return simulation(arguments);
    }
    if is_given(&["reconcile"]) {
        return reconcile(arguments);
    }
    if is_given(&["attacks"]) {
        return attacks(arguments);
    }
    let flags = arguments.iter().filter(|argument| argument.starts_with('-'));
    if arguments
        .iter()
        .all(|argument| argument.starts_with('-') || argument == "all")
    {
        reconcile(&[vec!["reconcile".to_owned()], flags.cloned().collect()].concat())?;
    }
    let target = Target::resolve(target)?;
    let installation = install::install(&target)?;
    exec::run(on(&mut program()?, &target, &installation.images).args(arguments))
}

/// Runs `faults reconcile` on an API server of its own.
pub(crate) fn reconcile(arguments: &[String]) -> Result<()> {
    let server = ApiServer::start()?;
    exec::run(program()?.args(arguments).env("KUBECONFIG", server.kubeconfig()))
}

/// Runs `faults attacks` on an API server of its own, with an operator that it builds. The full size is optimized.
pub(crate) fn attacks(arguments: &[String]) -> Result<()> {
    let profile = profile(arguments);
    let mut build = cargo("build")?;
    build.args(["--locked", "--quiet", "--bin=operator", "--bin=remoteprocess-faults"]);
    exec::run(build.args(profile))?;
    let server = ApiServer::start()?;
    let mut program = cargo_run(profile)?;
    exec::run(program.args(arguments).env("KUBECONFIG", server.kubeconfig()))
}

/// Runs `faults foreign` on an API server of its own, with an operator and the foreign programs, which it builds.
pub(crate) fn foreign() -> Result<()> {
    let mut build = cargo("build")?;
    exec::run(build.args(["--locked", "--quiet", "--bin=operator", "--bin=remoteprocess-faults"]))?;
    let (h2spec, grpcurl) = (cluster::external_tool("h2spec")?, cluster::external_tool("grpcurl")?);
    let server = ApiServer::start()?;
    let mut program = program()?;
    program
        .arg("foreign")
        .arg("--h2spec")
        .arg(h2spec)
        .arg("--grpcurl")
        .arg(grpcurl);
    program.arg("--proto").arg(paths::repository().join("proto"));
    exec::run(program.env("KUBECONFIG", server.kubeconfig()))
}

/// Runs `faults simulation`, which needs no cluster. The full size is optimized: it simulates days.
pub(crate) fn simulation(arguments: &[String]) -> Result<()> {
    exec::run(cargo_run(profile(arguments))?.args(arguments))
}

/// The flags that choose Cargo's profile: what measures is optimized.
fn profile(arguments: &[String]) -> &'static [&'static str] {
    match arguments
        .iter()
        .any(|argument| argument == "--long" || argument == "--each")
    {
        true => &["--release"],
        false => &[],
    }
}

/// The program, through `cargo run`.
pub(crate) fn program() -> Result<Command> {
    cargo_run(&[])
}

fn cargo_run(profile: &[&str]) -> Result<Command> {
    let mut cargo = cargo("run")?;
    // Not --package, which would compile the dependencies again with fewer features.
    cargo.args(["--locked", "--quiet", "--bin", "remoteprocess-faults"]);
    cargo.args(profile).arg("--");
    Ok(cargo)
}

/// The same, with the environment that describes a cluster.
pub(crate) fn on<'a>(program: &'a mut Command, target: &Target, images: &Images) -> &'a mut Command {
    images.describe(program, target);
    program
}
