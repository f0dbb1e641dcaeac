//! Writes container images without a container engine: one layer, in the format of `docker save`,
//! which `ctr images import`, `kind load image-archive`, `minikube image load` and `docker load` all read.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An image of a single layer.
#[derive(Default)]
pub(crate) struct Image {
    /// Full names, such as `docker.io/library/busybox:1.36`.
    pub names: Vec<String>,
    /// The files of the layer, parents before children.
    pub entries: Vec<Entry>,
    /// The program that starts when the pod names none.
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program itself if there is no entrypoint; a pod's args replace them.
    pub cmd: Vec<String>,
    /// `uid:gid`; empty is root.
    pub user: String,
}

/// One file of an image. Paths have no leading slash.
pub(crate) enum Entry {
    /// A folder with its mode.
    Folder(String, u32),
    /// A file with its mode, copied from this machine.
    Copy(String, u32, PathBuf),
    /// A file with these contents.
    Text(String, u32, String),
    /// A symbolic link and what it points to.
    Link(String, String),
}

impl Image {
    /// Writes the image; the same files give the same bytes. Returns the first 12 hex digits of the layer's sha256.
    pub(crate) fn write(&self, archive: &Path) -> Result<String> {
        let layer = self.layer()?;
        let digest = hex::encode(Sha256::digest(&layer));
        let config = serde_json::to_vec(&self.config(architecture(), &digest))?;
        let config_name = format!("{}.json", hex::encode(Sha256::digest(&config)));
        let manifest = json!([{"Config": config_name, "RepoTags": self.names, "Layers": ["layer.tar"]}]);

        let partial = archive.with_extension("partial");
        let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
        let mut tar = Builder::new(file);
        append(&mut tar, "layer.tar", 0o644, &layer)?;
        append(&mut tar, &config_name, 0o644, &config)?;
        append(&mut tar, "manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
        tar.into_inner()?.sync_all()?;
        fs::rename(&partial, archive)?;
        Ok(digest[..12].to_owned())
    }

    /// The configuration of the image for an architecture, with the sha256 of its layer.
    pub(crate) fn config(&self, architecture: &str, layer: &str) -> Value {
        json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.cmd, "User": self.user},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        })
    }

    /// The layer as a tar archive.
    pub(crate) fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for entry in &self.entries {
            match entry {
                Entry::Folder(path, mode) => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
                }
                Entry::Copy(path, mode, source) => {
                    let mut bytes = Vec::new();
                    let opened = File::open(source).and_then(|mut file| file.read_to_end(&mut bytes));
                    opened.with_context(|| format!("cannot read {}", source.display()))?;
                    append(&mut tar, path, *mode, &bytes)?;
                }
                Entry::Text(path, mode, text) => append(&mut tar, path, *mode, text.as_bytes())?,
                Entry::Link(path, target) => {
                    tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

/// The name of this machine's processor architecture in container images.
pub(crate) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    }
}

pub(crate) fn append<W: std::io::Write>(tar: &mut Builder<W>, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
        .with_context(|| format!("cannot add {path} to the archive"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header
}
