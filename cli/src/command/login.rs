//! `rproc login`: a new client certificate.

use jiff::Timestamp;
use remoteprocess_client::{Trust, login};

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::print;

/// Flags of `login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "rproc gets and renews its certificate automatically. Use this command to test it.")]
pub struct LoginArgs {}

/// Gets a new certificate, regardless of the cached one.
///
/// # Errors
/// A missing right, a refusal, or no answer in time.
pub async fn run(global: &GlobalArgs, LoginArgs {}: LoginArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let trust = Trust::read(&cluster).await?;
    let identity = login::certificate(&cluster, &trust, false).await?;
    let user = login::user(&cluster).await?;
    let end = Timestamp::try_from(identity.not_after()).unwrap_or_default();
    print(&format!(
        "logged in as {} until {end:.0}\n",
        user.username.unwrap_or_default()
    ))?;
    Ok(0)
}
