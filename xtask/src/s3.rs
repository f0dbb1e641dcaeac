//! The S3 server of the tests, as one command.

use std::process::Command;

use anyhow::Result;

use crate::{exec, paths};

/// Runs `dev/s3/serve.py` in the foreground.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let script = paths::repository().join("dev/s3/serve.py");
    exec::run(Command::new("python3").arg(script).args(args))
}
