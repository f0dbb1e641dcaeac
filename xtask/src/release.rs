//! A release: `dist/` with everything that users download, from this checkout and this version.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::archive::Image;
use crate::cargo::{claim_release_target, forget_package};
use crate::images::{self, NAMES, PACKAGES, REGISTRY};
use crate::install::NAMESPACE;
use crate::steps::{say, step};
use crate::{cluster, exec, page, paths};

mod krew;
mod notes;
mod oci;
mod trial;

/// The architectures, as Kubernetes names them, and the targets of the compiler.
pub(crate) const ARCHITECTURES: [(&str, &str); 2] = [
    ("amd64", "x86_64-unknown-linux-musl"),
    ("arm64", "aarch64-unknown-linux-musl"),
];
/// Compiles and links C code for every target: a pinned package, in an environment of its own.
const ZIG: &str = "ziglang==0.15.2";
const CARGO_ZIGBUILD: &str = "cargo-zigbuild==0.24.1";
/// Writes the SBOM.
const CYCLONEDX: &str = "0.5.9";

/// What to release.
#[derive(Args)]
pub(crate) struct ReleaseArgs {
    /// The version; it must be the one in Cargo.toml.
    #[arg(long)]
    version: String,
    /// Where users download the files of the release. Krew needs it.
    #[arg(
        long,
        default_value = "https://github.com/remoteprocess/remoteprocess/releases/download"
    )]
    url: String,
    /// Try what `dist/` has, and write nothing: checksums, the programs of both architectures, and an installation on
    /// the development cluster.
    #[arg(long = "try")]
    is_trial: bool,
}

/// Writes `dist/`.
pub(crate) fn release(args: &ReleaseArgs) -> Result<()> {
    let version = &args.version;
    let own = env!("CARGO_PKG_VERSION");
    ensure!(
        version == own,
        "--version is {version}, and Cargo.toml says {own}: change one of them"
    );
    if args.is_trial {
        return trial::run(version);
    }
    let root = paths::repository();
    let page = page::version()?;
    ensure!(
        page == own,
        "page/package.json says {page}, and Cargo.toml says {own}: change one of them"
    );
    // Notes first: a release without them is found out before an hour of compiling.
    let notes = notes::notes(&fs::read_to_string(root.join("CHANGELOG.md"))?, version)?;
    let dist = root.join("dist");
    if dist.exists() {
        fs::remove_dir_all(&dist)?;
    }
    fs::create_dir(&dist)?;
    fs::write(dist.join("RELEASE_NOTES.md"), notes)?;
    page::build()?;
    let programs = step("build the programs for amd64 and arm64", programs)?;
    step("pack rproc", || pack(&dist, version, &programs))?;
    step("write the image archives", || write_images(&dist, version, &programs))?;
    step("package the chart", || chart(&dist, version))?;
    step("write the SBOM", || sbom(&dist, version))?;
    krew::write(&dist, version, &args.url)?;
    sums(&dist)?;
    for file in files(&dist)? {
        say(format_args!("    {}", file.display()));
    }
    Ok(())
}

/// The folders with the programs, as [`ARCHITECTURES`] orders them.
fn programs() -> Result<Vec<PathBuf>> {
    let tools = tools()?;
    let target = claim_release_target()?;
    let mut folders = Vec::new();
    for (_, triple) in ARCHITECTURES {
        ensure!(
            images::has_target(triple)?,
            "the target {triple} is not installed, and rustup cannot add it: rustup target add {triple}"
        );
        let mut cargo = Command::new(tools.join("cargo-zigbuild"));
        cargo.current_dir(paths::repository());
        cargo.args(["zigbuild", "--release", "--locked", "--target", triple]);
        for package in PACKAGES {
            cargo.args(["--package", &format!("remoteprocess-{package}")]);
        }
        forget_package(&mut cargo);
        let path = env::join_paths(
            std::iter::once(tools.clone()).chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())),
        )?;
        cargo
            .env("PATH", path)
            .env("CARGO_TARGET_DIR", &target)
            .env_remove("CARGO_INCREMENTAL");
        exec::logged(&mut cargo, &format!("release-{triple}"))?;
        folders.push(target.join(triple).join("release"));
    }
    Ok(folders)
}

/// A folder with zig and cargo-zigbuild, which are installed by pip.
fn tools() -> Result<PathBuf> {
    let folder = paths::cache()?.join("release-tools");
    let marker = folder.join("packages");
    let packages = format!("{ZIG}\n{CARGO_ZIGBUILD}\n");
    if fs::read_to_string(&marker).is_ok_and(|found| found == packages) {
        return Ok(folder.join("bin"));
    }
    exec::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    exec::output(
        Command::new(folder.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"])
            .args([ZIG, CARGO_ZIGBUILD]),
    )?;
    fs::write(marker, packages)?;
    Ok(folder.join("bin"))
}

/// `rproc` for each architecture, with its man pages and license, as Krew wants it.
fn pack(dist: &Path, version: &str, programs: &[PathBuf]) -> Result<()> {
    let pages = tempfile::tempdir()?;
    // Of this machine's architecture.
    let runs = ARCHITECTURES
        .iter()
        .zip(programs)
        .find(|((arch, _), _)| *arch == this_architecture());
    let (_, folder) = runs.context("no program for this machine")?;
    exec::output(Command::new(folder.join("rproc")).arg("man").arg(pages.path()))?;
    for ((arch, _), folder) in ARCHITECTURES.iter().zip(programs) {
        let archive = dist.join(format!("rproc-{version}-linux-{arch}.tar.gz"));
        let staging = tempfile::tempdir()?;
        fs::copy(folder.join("rproc"), staging.path().join("rproc"))?;
        fs::copy(paths::repository().join("LICENSE"), staging.path().join("LICENSE"))?;
        exec::output(
            Command::new("cp")
                .arg("-r")
                .arg(pages.path())
                .arg(staging.path().join("man")),
        )?;
        // The same files give the same bytes.
        exec::output(
            Command::new("tar")
                .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
                .args(["--mode=u=rwX,go=rX", "--use-compress-program=gzip -n", "-cf"])
                .arg(&archive)
                .arg("-C")
                .arg(staging.path())
                .args(["LICENSE", "man", "rproc"]),
        )?;
    }
    Ok(())
}

fn this_architecture() -> &'static str {
    match env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// One OCI archive for each image, with both architectures.
fn write_images(dist: &Path, version: &str, programs: &[PathBuf]) -> Result<()> {
    for (name, contents) in NAMES.iter().zip(images::CONTENTS) {
        let full = format!("{REGISTRY}/{name}:{version}");
        let images: Vec<(&str, Image)> = ARCHITECTURES
            .iter()
            .zip(programs)
            .map(|((arch, _), folder)| (*arch, images::image(contents, folder)))
            .collect();
        oci::write(&dist.join(format!("{name}-{version}.oci.tar")), &full, &images)?;
    }
    Ok(())
}

/// The packaged chart, everything that it installs with its default values, and the CustomResourceDefinition.
fn chart(dist: &Path, version: &str) -> Result<()> {
    let helm = cluster::helm()?;
    let chart = paths::chart();
    let versions = ["--version", version, "--app-version", version];
    exec::output(
        Command::new(&helm)
            .arg("package")
            .arg(&chart)
            .args(versions)
            .arg("--destination")
            .arg(dist),
    )?;
    let package = dist.join(format!("remoteprocess-operator-{version}.tgz"));
    let mut template = Command::new(&helm);
    template.args(["template", "remoteprocess"]).arg(&package);
    template.args(["--namespace", NAMESPACE, "--skip-tests"]);
    let objects = exec::output(&mut template)?;
    fs::write(dist.join("install.yaml"), install(&objects))?;
    let mut crds = String::new();
    for file in files(&paths::repository().join("crds"))? {
        crds += &format!("---\n{}", fs::read_to_string(file)?);
    }
    fs::write(dist.join("crds.yaml"), crds)?;
    Ok(())
}

/// The objects of the chart, after their namespace, which Helm creates itself.
fn install(objects: &str) -> String {
    format!(
        "# Everything, with the default values: kubectl apply --server-side -f install.yaml\n\
         apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {NAMESPACE}\n{objects}"
    )
}

/// What is linked into each program, and what is in the page that `rproc` has inside, as CycloneDX.
fn sbom(dist: &Path, version: &str) -> Result<()> {
    let root = paths::cache()?.join("release-tools/cargo");
    let tool = root.join("bin/cargo-cyclonedx");
    let found = exec::output(Command::new(&tool).args(["cyclonedx", "--version"]));
    if !found.is_ok_and(|found| found.contains(CYCLONEDX)) {
        let mut install = Command::new("cargo");
        install.args(["install", "--locked", "--quiet", "--root"]).arg(&root);
        install.arg(format!("cargo-cyclonedx@{CYCLONEDX}"));
        forget_package(&mut install);
        exec::logged(&mut install, "cargo-cyclonedx")?;
    }
    let repository = paths::repository();
    let name = format!("sbom-{version}");
    let mut make = Command::new(&tool);
    make.current_dir(&repository).args([
        "cyclonedx",
        "--format",
        "json",
        "--spec-version",
        "1.5",
        "--override-filename",
        &name,
    ]);
    forget_package(&mut make);
    let made = exec::output(&mut make);
    let mut found = Vec::new();
    // The tool writes a file into the folder of each crate.
    for folder in fs::read_dir(&repository)?.flatten() {
        let file = folder.path().join(format!("{name}.json"));
        if file.is_file() {
            found.push(file);
        }
    }
    for folder in ["xtask/generate", "tests/e2e", "tests/faults", "tests/ports"] {
        let _ = fs::remove_file(repository.join(folder).join(format!("{name}.json")));
    }
    for file in found {
        let package = file
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if PACKAGES.contains(&package.as_str()) {
            check_sbom(&file)?;
            fs::copy(&file, dist.join(format!("{package}-{version}.cdx.json")))?;
        }
        fs::remove_file(&file)?;
    }
    made?;
    for package in PACKAGES {
        let file = dist.join(format!("{package}-{version}.cdx.json"));
        ensure!(file.exists(), "cargo-cyclonedx wrote nothing for {package}");
    }
    let file = dist.join(format!("page-{version}.cdx.json"));
    fs::write(&file, page::sbom()?)?;
    check_sbom(&file)
}

fn check_sbom(file: &Path) -> Result<()> {
    let sbom: Value = serde_json::from_slice(&fs::read(file)?)?;
    let components = sbom["components"].as_array().map_or(0, Vec::len);
    if sbom["bomFormat"] != "CycloneDX" || components == 0 {
        bail!("{} is no CycloneDX document with components", file.display());
    }
    Ok(())
}

/// `SHA256SUMS`, as `sha256sum --check` reads it.
fn sums(dist: &Path) -> Result<()> {
    let mut text = String::new();
    for file in files(dist)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        text += &format!("{}  {name}\n", digest(&file)?);
    }
    Ok(fs::write(dist.join("SHA256SUMS"), text)?)
}

/// The sha256 of a file, in hexadecimal.
fn digest(file: &Path) -> Result<String> {
    let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(hex::encode(Sha256::digest(contents)))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}
