//! cargo-deny: the rules of `deny.toml` for third-party crates.

use std::process::Command;

use anyhow::Result;

use crate::cargo::forget_package;
use crate::{exec, paths, tool};

const VERSION: &str = "0.20.2";

/// Checks bans, licenses and sources. Advisories need a database on GitHub: the workflow `ci.yml` checks those.
pub(crate) fn deny() -> Result<()> {
    let mut deny = Command::new(tool::ensure("cargo-deny", VERSION)?);
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
