//! Paths: the checkout, and what is kept outside of it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout in which this command was started.
pub(crate) fn repository() -> PathBuf {
    // Cargo sets it when it runs us; the compiled-in value names the checkout that was built last.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest)
        .parent()
        .expect("xtask/ lies in the root of the repository")
        .to_path_buf()
}

/// The Helm chart.
pub(crate) fn chart() -> PathBuf {
    repository().join("charts/remoteprocess-operator")
}

/// `$XDG_CACHE_HOME/remoteprocess`, or `~/.cache/remoteprocess`: shared by all checkouts of this user.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("remoteprocess"))
}
