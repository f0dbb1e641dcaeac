//! Builds the programs and the container images of RemoteProcess.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::archive::{Entry, Image};
use crate::cargo::{claim_target, forget_package};
use crate::steps::step;
use crate::target::{Target, in_path};
use crate::{exec, paths};

/// Largest entrypoint, in bytes: it is copied into every pod.
const ENTRYPOINT_LIMIT: u64 = 1024 * 1024;
/// Largest agent, in bytes.
const AGENT_LIMIT: u64 = 8 * 1024 * 1024;
/// What all images are called before their own name.
const REGISTRY: &str = "ghcr.io/remoteprocess";
/// `nonroot` of the Dockerfile.
const USER: &str = "65532:65532";

/// The built images.
pub struct Images {
    /// `<version>-<hash of the programs>`: the same programs have the same tag, others another.
    pub tag: String,
    /// The programs as they are in the images; they run on this machine as well.
    pub programs: Programs,
    archives: Vec<PathBuf>,
    names: Vec<String>,
}

/// Static release builds.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// `operator`, `agent`, `entrypoint` or `rproc`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Builds programs and images and loads them into the cluster, if they are not there yet.
pub fn build_and_load(target: &Target) -> Result<Images> {
    let images = build()?;
    step("load the images", || {
        if target.own.is_none() || !is_loaded(&images)? {
            target.load(&images.archives, &images.names)?;
        }
        for name in &images.names {
            println!("    {name}");
        }
        Ok(())
    })?;
    Ok(images)
}

/// Builds programs and image archives.
pub fn build() -> Result<Images> {
    let programs = step("build the static programs", programs)?;
    check_sizes(&programs)?;
    step("write the image archives", || write(programs))
}

fn programs() -> Result<Programs> {
    let arch = std::env::consts::ARCH;
    let triple = format!("{arch}-unknown-linux-musl");
    // The folder in the cache whatever the user has chosen for his own builds: it lies there for each clone.
    let target_folder = claim_target()?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::repository())
        .args(["build", "--release", "--locked", "--quiet"]);
    for package in ["operator", "agent", "entrypoint", "cli"] {
        cargo.args(["--package", &format!("remoteprocess-{package}")]);
    }
    forget_package(&mut cargo);
    cargo
        .env("CARGO_TARGET_DIR", &target_folder)
        .env_remove("CARGO_INCREMENTAL");
    let triple = if has_target(&triple)? && in_path("musl-gcc").is_some() {
        triple
    } else {
        println!("    no {triple} toolchain (rustup target, musl-tools): linking glibc statically instead");
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        format!("{arch}-unknown-linux-gnu")
    };
    exec::run(cargo.args(["--target", &triple]))?;
    Ok(Programs {
        folder: target_folder.join(triple).join("release"),
    })
}

/// Whether programs can be built for the target; installs it where rustup can.
fn has_target(triple: &str) -> Result<bool> {
    let folder = exec::output(Command::new("rustc").args(["--print", "target-libdir", "--target", triple]))?;
    if Path::new(folder.trim()).exists() {
        return Ok(true);
    }
    Ok(exec::succeeds(Command::new("rustup").args(["target", "add", triple])))
}

fn check_sizes(programs: &Programs) -> Result<()> {
    let mut too_large = Vec::new();
    for (name, limit) in [
        ("entrypoint", ENTRYPOINT_LIMIT),
        ("agent", AGENT_LIMIT),
        ("operator", 0),
        ("rproc", 0),
    ] {
        let size = fs::metadata(programs.path(name))
            .with_context(|| format!("{name} was not built"))?
            .len();
        let of = if limit == 0 {
            String::new()
        } else {
            format!(", limit {}", kib(limit))
        };
        println!("    {name:10} {}{of}", kib(size));
        if limit != 0 && size >= limit {
            too_large.push(name);
        }
    }
    if !too_large.is_empty() {
        bail!("too large: {}", too_large.join(", "));
    }
    Ok(())
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

fn write(programs: Programs) -> Result<Images> {
    // As in the Dockerfile: image, programs in it.
    let contents = [
        ("operator", vec!["operator"]),
        ("agent", vec!["agent", "entrypoint"]),
        ("cli", vec!["rproc"]),
    ];
    let mut hash = Sha256::new();
    for program in contents.iter().flat_map(|(_, programs)| programs) {
        hash.update(fs::read(programs.path(program))?);
    }
    let version = env!("CARGO_PKG_VERSION");
    let tag = format!("{version}-{}", &hex::encode(hash.finalize())[..12]);
    let folder = paths::cache()?.join("images");
    fs::create_dir_all(&folder)?;
    let mut images = Images {
        tag,
        programs,
        archives: Vec::new(),
        names: Vec::new(),
    };
    for (name, programs) in contents {
        let full = |tag: &str| format!("{REGISTRY}/{name}:{tag}");
        let entries = programs
            .iter()
            .map(|program| Entry::Copy((*program).to_owned(), 0o755, images.programs.path(program)))
            .collect();
        let image = Image {
            names: vec![full(&images.tag), full(version)],
            entries,
            entrypoint: vec![format!("/{}", programs[0])],
            user: USER.to_owned(),
            ..Image::default()
        };
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        images.archives.push(archive);
        images.names.push(full(&images.tag));
    }
    Ok(images)
}

fn is_loaded(images: &Images) -> Result<bool> {
    let found = crate::cluster::image_names()?;
    Ok(images.names.iter().all(|name| found.contains(name)))
}
