//! The archive's volume takes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::steady::{self, steady};
use super::{let_pass, relay, scenario, state};

/// A folder that only root can enter until this is dropped.
struct Closed {
    path: PathBuf,
    before: Permissions,
}

impl Closed {
    fn close(path: PathBuf) -> Result<Self> {
        let before = fs::metadata(&path)?.permissions();
        fs::set_permissions(&path, Permissions::from_mode(0o000))?;
        Ok(Self { path, before })
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        if let Err(error) = fs::set_permissions(&self.path, self.before.clone()) {
            println!("{} stays closed: {error}", self.path.display());
        }
    }
}

/// The archive's volume is closed for 15 s, or for 2 minutes: the stream continues, and everything is archived
/// afterwards.
///
/// # Errors
/// When one of these does not hold.
pub fn store(long: bool) -> Result<()> {
    let outage = Duration::from_secs(if long { 120 } else { 15 });
    scenario("store", |namespace| {
        let run = steady(namespace, &relay()?.to_string());
        let mut run = run.within(outage * 10).start()?;
        run.wait_for_bytes(1000)?;
        let closed = Closed::close(volume()?)?;
        let at_first = run.received();
        let_pass(outage);
        let meanwhile = run.received() - at_first;
        drop(closed);
        let noticed = steady::finish(namespace, run)?;
        ensure!(
            meanwhile / steady::RATE >= outage.as_secs() as usize / 2,
            "only {meanwhile} bytes came meanwhile"
        );
        ensure!(noticed.errors == 0, "the program saw {} errors", noticed.errors);
        Ok(format!(
            "{meanwhile} bytes were delivered while the volume took nothing, all sealed afterwards"
        ))
    })
}

fn volume() -> Result<PathBuf> {
    let folder = state()?.join("volumes");
    fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with("_remoteprocess-operator-archive"))
        .context("the volume of the archive")
}
