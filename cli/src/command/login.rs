//! `rproc login`: a new client certificate.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use remoteprocess_client::{Trust, login};

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::print;

/// Flags of `login`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "rproc gets and renews its certificate automatically. Use this command to test it, or to give another \
                  program a certificate."
)]
pub struct LoginArgs {
    /// Write tls.crt, tls.key and ca.crt (PEM) into this directory, for curl or a gRPC client
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Gets a new certificate, regardless of the cached one.
///
/// # Errors
/// A missing right, a refusal, or no answer in time; a directory that cannot be written.
pub async fn run(global: &GlobalArgs, args: LoginArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let trust = Trust::read(&cluster).await?;
    let identity = match &args.output_dir {
        None => login::certificate(&cluster, &trust, false).await?,
        Some(folder) => {
            let certificate = login::request(&cluster, &trust).await?;
            let files = [
                ("tls.crt", &certificate.chain),
                ("tls.key", &certificate.key),
                ("ca.crt", &trust.bundle),
            ];
            write(folder, &files)
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", folder.display())))?;
            certificate.identity(&trust)?
        }
    };
    let user = login::user(&cluster).await?;
    let end = Timestamp::try_from(identity.not_after()).unwrap_or_default();
    print(&format!(
        "logged in as {} until {end:.0}\n",
        user.username.unwrap_or_default()
    ))?;
    if let Some(folder) = args.output_dir {
        print(&format!(
            "wrote tls.crt, tls.key and ca.crt to {}; the relay's name is {}\n",
            folder.display(),
            trust.relay_name()
        ))?;
    }
    Ok(0)
}

/// Writes files that only the user can read.
fn write(folder: &Path, files: &[(&str, &String)]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for (name, text) in files {
        let temporary = folder.join(format!(".{name}.tmp"));
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&temporary, folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_user_can_read_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certificate");
        for text in ["old", "new"] {
            write(&path, &[("tls.key", &text.to_owned())]).unwrap();
        }
        let key = path.join("tls.key");
        assert_eq!(fs::read_to_string(&key).unwrap(), "new");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
