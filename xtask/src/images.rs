//! Builds the programs and the container images of RemoteProcess.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::archive::{Entry, Image};
use crate::cargo::{claim_target, forget_package};
use crate::registry::{Built, Registry};
use crate::steps::{say, step};
use crate::target::{Target, in_path};
use crate::{exec, paths};

/// Maximum size of the entrypoint in bytes: it is copied into every pod.
const ENTRYPOINT_LIMIT: u64 = 1024 * 1024;
/// Maximum size of the agent in bytes.
const AGENT_LIMIT: u64 = 8 * 1024 * 1024;
/// The images, as in the Dockerfile.
pub(crate) const NAMES: [&str; 4] = ["operator", "agent", "cli", "bridge"];
/// The programs in each of them, as in the Dockerfile.
pub(crate) const CONTENTS: [&[&str]; 4] = [&["operator"], &["agent", "entrypoint"], &["rproc"], &["bridge"]];
/// Prefix of all image names.
pub(crate) const REGISTRY: &str = "ghcr.io/remoteprocess";
/// The packages with the programs.
pub(crate) const PACKAGES: [&str; 5] = ["operator", "agent", "entrypoint", "cli", "bridge"];
/// `nonroot` of the Dockerfile.
pub(crate) const USER: &str = "65532:65532";

/// The built images.
pub(crate) struct Images {
    /// `<version>-<hash of the programs>`: the tag changes if and only if the programs change.
    pub tag: String,
    /// The programs in the images; they run on this machine as well.
    pub programs: Programs,
    archives: Vec<PathBuf>,
    names: Vec<String>,
}

impl Images {
    /// Sets the environment variables that describe the cluster and the builds to our programs.
    pub(crate) fn describe(&self, command: &mut Command, target: &Target) {
        let (kubectl, helm) = target.programs();
        command
            .env("RPROC_BIN", self.programs.path("rproc"))
            .env("KUBECTL", kubectl)
            .env("HELM", helm);
        command
            .env("RPROC_IMAGE_TAG", &self.tag)
            .env("RPROC_CONTEXT", &target.context);
        if let Some(state) = &target.own {
            command.env("KUBECONFIG", state.kubeconfig());
            command
                .env("RPROC_CLUSTER_OWN", "1")
                .env("RPROC_CLUSTER_STATE", &state.root);
        }
    }
}

/// Static release builds.
pub(crate) struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// `operator`, `agent`, `entrypoint`, `rproc` or `bridge`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Builds programs and images, and pushes them to the cluster's registry or loads them into the cluster, unless they
/// are already there.
pub(crate) fn build_and_load(target: &Target) -> Result<Images> {
    let images = build()?;
    if let Some(registry) = &target.registry {
        step("push the images", || push(registry, &images))?;
        return Ok(images);
    }
    step("load the images", || {
        if target.own.is_none() || !is_loaded(&images)? {
            target.load(&images.archives, &images.names)?;
        }
        for name in &images.names {
            say(format_args!("    {name}"));
        }
        Ok(())
    })?;
    Ok(images)
}

/// Builds programs and image archives.
pub(crate) fn build() -> Result<Images> {
    let programs = step("build the static programs", programs)?;
    check_sizes(&programs)?;
    step("write the image archives", || write(programs))
}

/// Builds the programs.
pub(crate) fn programs() -> Result<Programs> {
    let arch = std::env::consts::ARCH;
    let triple = format!("{arch}-unknown-linux-musl");
    // The folder in the cache, even if the user has set another for their own builds: each clone finds it there.
    let target_folder = claim_target()?;
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::repository())
        .args(["build", "--release", "--locked"]);
    for package in PACKAGES {
        cargo.args(["--package", &format!("remoteprocess-{package}")]);
    }
    forget_package(&mut cargo);
    cargo
        .env("CARGO_TARGET_DIR", &target_folder)
        .env_remove("CARGO_INCREMENTAL");
    let triple = if has_target(&triple)? && in_path("musl-gcc").is_some() {
        triple
    } else {
        say(format_args!(
            "    no {triple} toolchain (rustup target, musl-tools): linking glibc statically instead"
        ));
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        format!("{arch}-unknown-linux-gnu")
    };
    exec::logged(cargo.args(["--target", &triple]), "build-programs")?;
    Ok(Programs {
        folder: target_folder.join(triple).join("release"),
    })
}

/// Whether programs can be built for the target; installs it if rustup can.
pub(crate) fn has_target(triple: &str) -> Result<bool> {
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
        ("bridge", 0),
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
    let contents: Vec<_> = NAMES.iter().zip(CONTENTS).collect();
    let mut hash = Sha256::new();
    for program in contents.iter().flat_map(|(_, programs)| *programs) {
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
        let image = Image {
            names: vec![full(&images.tag), full(version)],
            ..image(programs, &images.programs.folder)
        };
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        images.archives.push(archive);
        images.names.push(full(&images.tag));
    }
    Ok(images)
}

/// An image with these programs of a folder. It runs the first one.
pub(crate) fn image(programs: &[&str], folder: &Path) -> Image {
    let entry = |program: &&str| Entry::Copy((*program).to_owned(), 0o755, folder.join(program));
    Image {
        entries: programs.iter().map(entry).collect(),
        entrypoint: vec![format!("/{}", programs[0])],
        user: USER.to_owned(),
        ..Image::default()
    }
}

fn push(registry: &Registry, images: &Images) -> Result<()> {
    let built = images.names.iter().zip(&images.archives).zip(NAMES);
    let built: Vec<Built> = built
        .map(|((source, archive), image)| Built { image, archive, source })
        .collect();
    registry.push(&built, &images.tag, &env::var_os("PATH").unwrap_or_default())
}

/// The chart's values for the images with this tag, from this registry or with the names with which they are loaded.
pub(crate) fn values(tag: &str, registry: Option<&Registry>) -> Vec<String> {
    let mut values: Vec<String> = NAMES.iter().map(|image| format!("images.{image}.tag={tag}")).collect();
    if let Some(registry) = registry {
        // The repositories are full names.
        values.push("imageRegistry=".to_owned());
        values.extend(NAMES.map(|image| format!("images.{image}.repository={}", registry.repository(image))));
    }
    values
}

/// Whether the programs were built before: then Cargo finds their dependencies compiled.
pub(crate) fn have_been_built() -> Result<bool> {
    let target = paths::cache()?.join("target");
    let triples = ["musl", "gnu"].map(|libc| format!("{}-unknown-linux-{libc}", std::env::consts::ARCH));
    Ok(triples
        .iter()
        .any(|triple| target.join(triple).join("release/operator").exists()))
}

fn is_loaded(images: &Images) -> Result<bool> {
    let found = crate::cluster::image_names()?;
    Ok(images.names.iter().all(|name| found.contains(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockerfile_chart_release_and_readme_name_the_same_images() {
        let read = |path: &str| fs::read_to_string(paths::repository().join(path)).unwrap();
        let dockerfile = read("Dockerfile");
        let stages: Vec<&str> = dockerfile.split("\nFROM scratch AS ").skip(1).collect();
        assert_eq!(stages.len(), NAMES.len());
        for ((stage, name), programs) in stages.iter().zip(NAMES).zip(CONTENTS) {
            let copies = programs
                .iter()
                .map(|program| format!("COPY --from=build /out/{program} /{program}\n"));
            let copies: String = copies.collect();
            let wanted = format!("{name}\n{copies}USER {USER}\nENTRYPOINT [\"/{}\"]\n", programs[0]);
            assert_eq!(stage.trim_end(), wanted.trim_end());
        }
        let built: Vec<&str> = dockerfile.split("--package remoteprocess-").skip(1).collect();
        let built: Vec<&str> = built.iter().filter_map(|rest| rest.split_whitespace().next()).collect();
        assert_eq!(built, PACKAGES);
        let programs = CONTENTS.concat().join(" ");
        assert!(dockerfile.contains(&format!("cp {programs} /out/")), "{programs}");
        let all = format!("for image in {};", NAMES.join(" "));
        for file in [".github/workflows/release.yml", "README.md"] {
            assert!(read(file).contains(&all), "{file}: {all}");
        }
        let chart = read("charts/remoteprocess-operator/values.yaml");
        for name in NAMES {
            assert!(
                chart.contains(&format!("  {name}: {{repository: remoteprocess/{name},")),
                "{name}"
            );
        }
    }

    #[test]
    fn images_of_a_registry_are_named_in_full() {
        assert_eq!(values("1-a", None)[1], "images.agent.tag=1-a");
        let values = values("1-a", Some(&Registry::parse("ghcr.io/team").unwrap()));
        assert!(values.contains(&"imageRegistry=".to_owned()), "{values:?}");
        assert!(
            values.contains(&"images.cli.repository=ghcr.io/team/cli".to_owned()),
            "{values:?}"
        );
    }
}
