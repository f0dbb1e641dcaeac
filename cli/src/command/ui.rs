//! `rproc ui`: processes and their output in a browser.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use remoteprocess_client::login;
use tempfile::NamedTempFile;
use tokio::process::Command;

use super::proxy::prepare;
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::output::complain;
use crate::print::print;
use crate::proxy::page::Page;

/// Programs that open a file in the user's browser, the first that there is.
const OPENERS: [&str; 2] = ["xdg-open", "open"];

/// Flags of `ui`.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER)]
pub struct UiArgs {
    /// Port on 127.0.0.1; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
    /// Print the link, and open no browser
    #[arg(long)]
    pub no_browser: bool,
}

const AFTER: &str = "The link works once. The page has your permissions, on this machine, until you
press Ctrl-C. To use it from another machine, forward the port with ssh -L and
the same number on both sides.";

const LEFT_OUT: &str = "this rproc was built without the page of rproc ui. Use rproc from a release, or run \
                        cargo xtask page (needs Node) in the repository and build rproc again";

/// Serves the page until a signal ends this program.
///
/// # Errors
/// This program has no page, there is no way to the relay, or the port is taken.
pub async fn run(global: &GlobalArgs, args: UiArgs) -> Result<u8, Failure> {
    if !Page::is_built() {
        return Err(Failure::new(LEFT_OUT));
    }
    let cluster = global.open().await?;
    // Only shown; the page works without it.
    let user = login::user(&cluster).await.ok().and_then(|user| user.username);
    let page = Page::new(cluster.clone(), user);
    let (proxy, listener, link) = prepare(cluster, args.port, Some(page)).await?;
    // It is removed when this program ends.
    let mut _file = None;
    if args.no_browser {
        print(&format!("{link}\n"))?;
    } else {
        print(&format!("Open this link, which works once:\n  {link}\n"))?;
        match open(&link) {
            Ok(file) => _file = Some(file),
            Err(error) => complain(&format!("no browser was opened: {error}")),
        }
    }
    complain("serving the page on this machine until Ctrl-C");
    match proxy.serve(listener).await {}
}

/// Opens the browser, by a file that only the user can read: other users can see the arguments of a program.
fn open(link: &str) -> std::io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix("rproc-ui-")
        .suffix(".html")
        .tempfile()?;
    write!(
        file,
        "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url={link}\">"
    )?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let none = || std::io::Error::other("there is neither xdg-open nor open");
    let opener = OPENERS.into_iter().find(is_there).ok_or_else(none)?;
    Command::new(Path::new(opener))
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(file)
}
