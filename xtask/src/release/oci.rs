//! Image archives for several architectures: an OCI layout whose index names one image for each (image-spec 1.1).
//!
//! `ctr images import`, `skopeo copy oci-archive:…`, `crane push` and `docker load` (with containerd) read it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Builder;

use crate::archive::{Image, append};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an archive with one image for each architecture, under one name. The same files give the same bytes.
pub(super) fn write(archive: &Path, name: &str, images: &[(&str, Image)]) -> Result<()> {
    let mut blobs = Blobs::default();
    let mut manifests = Vec::new();
    for (architecture, image) in images {
        let layer = blobs.add(LAYER, image.layer()?);
        let config = image.config(architecture, &layer.digest);
        let config = blobs.add(CONFIG, serde_json::to_vec(&config)?);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config.json(), "layers": [layer.json()],
        });
        let mut manifest = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?).json();
        manifest["platform"] = json!({"architecture": architecture, "os": "linux"});
        manifests.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut index = blobs.add(INDEX, serde_json::to_vec(&index)?).json();
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    index["annotations"] = json!({
        "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
    });
    let layout = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index]});

    let partial = archive.with_extension("partial");
    let file = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let mut tar = Builder::new(file);
    append(&mut tar, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    append(&mut tar, "index.json", 0o644, &serde_json::to_vec(&layout)?)?;
    for (digest, bytes) in &blobs.0 {
        append(&mut tar, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
    }
    tar.into_inner()?.sync_all()?;
    Ok(fs::rename(&partial, archive)?)
}

/// The contents by their sha256.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

/// What names a blob.
struct Descriptor {
    kind: &'static str,
    digest: String,
    size: usize,
}

impl Blobs {
    fn add(&mut self, kind: &'static str, bytes: Vec<u8>) -> Descriptor {
        let digest = hex::encode(Sha256::digest(&bytes));
        let size = bytes.len();
        self.0.insert(digest.clone(), bytes);
        Descriptor { kind, digest, size }
    }
}

impl Descriptor {
    fn json(&self) -> Value {
        json!({"mediaType": self.kind, "digest": format!("sha256:{}", self.digest), "size": self.size})
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::archive::Entry;

    #[test]
    fn each_digest_leads_to_a_blob_of_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("x.tar");
        let image = |text: &str| Image {
            entries: vec![Entry::Text("program".to_owned(), 0o755, text.to_owned())],
            entrypoint: vec!["/program".to_owned()],
            ..Image::default()
        };
        let images = [("amd64", image("a")), ("arm64", image("b"))];
        write(&archive, "ghcr.io/team/x:1.0.0", &images).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), bytes);
        }
        let blob = |descriptor: &Value| -> Vec<u8> {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = files[&format!("blobs/sha256/{digest}")].clone();
            assert_eq!(hex::encode(Sha256::digest(&bytes)), digest);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let read = |descriptor: &Value| -> Value { serde_json::from_slice(&blob(descriptor)).unwrap() };
        let layout: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let named = &layout["manifests"][0];
        assert_eq!(named["annotations"]["io.containerd.image.name"], "ghcr.io/team/x:1.0.0");
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.0.0");
        let index = read(named);
        for (number, arch) in ["amd64", "arm64"].iter().enumerate() {
            let entry = &index["manifests"][number];
            assert_eq!(entry["platform"]["architecture"], *arch);
            let manifest = read(entry);
            let config = read(&manifest["config"]);
            assert_eq!(config["architecture"], *arch);
            let layer = &manifest["layers"][0];
            assert_eq!(
                config["rootfs"]["diff_ids"][0], layer["digest"],
                "the layer is not compressed"
            );
            blob(layer);
        }
        let first = fs::read(&archive).unwrap();
        write(&archive, "ghcr.io/team/x:1.0.0", &images).unwrap();
        assert_eq!(fs::read(&archive).unwrap(), first, "the same files give the same bytes");
    }
}
