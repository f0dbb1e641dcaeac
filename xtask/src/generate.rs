//! Generated files of the repository, by the crate `xtask/generate`.

use anyhow::Result;
use clap::Args;

use crate::cargo::cargo;
use crate::exec;

/// Flags of a generator.
#[derive(Args)]
pub(crate) struct GenerateArgs {
    /// Write nothing; fail when a file is not what would be written.
    #[arg(long)]
    pub check: bool,
}

/// Runs the generator `crds`, `proto` or `docs`.
pub(crate) fn generate(task: &str, args: &GenerateArgs) -> Result<()> {
    let mut cargo = cargo("run")?;
    // Not --package, which would compile the dependencies again with fewer features.
    cargo.args(["--locked", "--quiet", "--bin", "remoteprocess-generate", "--", task]);
    if args.check {
        cargo.arg("--check");
    }
    exec::run(&mut cargo)
}
