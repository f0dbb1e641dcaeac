//! Pushes images to a registry, with one of the usual tools that is installed on this machine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::exec;
use crate::steps::say;

/// A registry with the path below which the images are: `europe-docker.pkg.dev/my-project/rproc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registry(String);

/// A built image: its archive, and its full name in it.
pub(crate) struct Built<'a> {
    /// `operator`, `agent` or `cli`.
    pub image: &'a str,
    /// The archive in the format of `docker save`.
    pub archive: &'a Path,
    /// Its name in the archive, with the tag.
    pub source: &'a str,
}

/// Tools that push; those that need no daemon come first.
const TOOLS: [Tool; 5] = [
    Tool {
        name: "crane",
        commands: |archive, _, target| vec![words(&["push", archive, target])],
    },
    Tool {
        name: "skopeo",
        commands: |archive, _, target| {
            vec![words(&[
                "copy",
                &format!("docker-archive:{archive}"),
                &format!("docker://{target}"),
            ])]
        },
    },
    Tool {
        name: "docker",
        commands: load_tag_push,
    },
    Tool {
        name: "podman",
        commands: load_tag_push,
    },
    Tool {
        name: "buildah",
        commands: |archive, source, target| {
            vec![
                words(&["pull", &format!("docker-archive:{archive}")]),
                words(&["push", source, &format!("docker://{target}")]),
            ]
        },
    },
];

struct Tool {
    name: &'static str,
    /// Arguments of each call, from an archive, the image's name in it and its name in the registry.
    commands: fn(&str, &str, &str) -> Vec<Vec<String>>,
}

fn load_tag_push(archive: &str, source: &str, target: &str) -> Vec<Vec<String>> {
    vec![
        words(&["load", "--input", archive]),
        words(&["tag", source, target]),
        words(&["push", target]),
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

impl Registry {
    /// Reads `HOST[:PORT][/PATH]`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let name = text.trim_end_matches('/');
        if let Some((scheme, rest)) = name.split_once("://") {
            return Err(format!("leave out {scheme}://, as in image names: {rest}"));
        }
        let is_part = |part: &str, more: &str| {
            let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || more.contains(c);
            !part.is_empty() && part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(is_good)
        };
        let mut parts = name.split('/');
        let host = parts.next().unwrap_or_default();
        if !is_part(host, ".-:") || !parts.all(|part| is_part(part, "._-")) {
            return Err("a registry is HOST[:PORT][/PATH] in small letters, such as ghcr.io/my-team/rproc".to_owned());
        }
        Ok(Self(name.to_owned()))
    }

    /// Full name of an image without its tag.
    pub(crate) fn repository(&self, image: &str) -> String {
        format!("{}/{image}", self.0)
    }

    /// Pushes the images with the first tool in `path` that succeeds; the error contains the message of each.
    pub(crate) fn push(&self, images: &[Built], tag: &str, path: &OsStr) -> Result<()> {
        let mut refusals = Vec::new();
        for (tool, program) in TOOLS.iter().filter_map(|tool| Some((tool, find(tool.name, path)?))) {
            match self.push_with(tool, &program, images, tag) {
                Ok(()) => return Ok(()),
                Err(error) => refusals.push(format!("{error:#}")),
            }
        }
        if refusals.is_empty() {
            let names: Vec<&str> = TOOLS.iter().map(|tool| tool.name).collect();
            bail!("none of {} is in PATH: install one of them", names.join(", "));
        }
        bail!(
            "cannot push to {}. Log in to the registry first, and create its repositories where it asks for that (Amazon \
             ECR).\n{}",
            self.0,
            refusals.join("\n")
        );
    }

    fn push_with(&self, tool: &Tool, program: &Path, images: &[Built], tag: &str) -> Result<()> {
        for image in images {
            let target = format!("{}:{tag}", self.repository(image.image));
            for arguments in (tool.commands)(&image.archive.display().to_string(), image.source, &target) {
                exec::output(Command::new(program).args(arguments))?;
            }
            say(format_args!("    {target} (by {})", tool.name));
        }
        Ok(())
    }
}

fn find(program: &str, path: &OsStr) -> Option<PathBuf> {
    let files = std::env::split_paths(path).map(|folder| folder.join(program));
    files.into_iter().find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn fake(folder: &Path, name: &str, script: &str) {
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn built() -> [Built<'static>; 1] {
        [Built {
            image: "agent",
            archive: Path::new("/images/agent.tar"),
            source: "ghcr.io/remoteprocess/agent:1-a",
        }]
    }

    #[test]
    fn a_registry_is_a_host_and_a_path() {
        for good in [
            "ghcr.io/my-team/rproc",
            "localhost:5000",
            "123.dkr.ecr.eu-central-1.amazonaws.com/rproc/",
        ] {
            assert!(Registry::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "https://ghcr.io/x",
            "ghcr.io/My",
            "ghcr.io/x:1",
            "ghcr.io//x",
            "--insecure",
            "a b",
        ] {
            assert!(Registry::parse(bad).is_err(), "{bad}");
        }
        let agent = Registry::parse("ghcr.io/team/").unwrap().repository("agent");
        assert_eq!(agent, "ghcr.io/team/agent");
    }

    #[test]
    fn images_are_pushed_by_a_tool_that_can() {
        let folder = tempfile::tempdir().unwrap();
        let calls = folder.path().join("calls");
        fake(folder.path(), "docker", "echo no daemon >&2; exit 1");
        fake(folder.path(), "podman", &format!("echo \"$@\" >> {}", calls.display()));
        let registry = Registry::parse("ghcr.io/team").unwrap();
        registry.push(&built(), "1-a", folder.path().as_os_str()).unwrap();
        let expected = "load --input /images/agent.tar\ntag ghcr.io/remoteprocess/agent:1-a ghcr.io/team/agent:1-a\n\
                        push ghcr.io/team/agent:1-a\n";
        assert_eq!(fs::read_to_string(calls).unwrap(), expected);
    }

    #[test]
    fn a_push_that_fails_reports_the_error_of_each_tool() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::parse("ghcr.io/team").unwrap();
        let push = || {
            registry
                .push(&built(), "1-a", folder.path().as_os_str())
                .unwrap_err()
                .to_string()
        };
        assert!(push().contains("none of crane, skopeo, docker, podman, buildah is in PATH"));
        fake(folder.path(), "skopeo", "echo unauthorized >&2; exit 1");
        fake(folder.path(), "docker", "echo no daemon >&2; exit 1");
        let error = push();
        assert!(error.contains("unauthorized") && error.contains("no daemon"), "{error}");
    }
}
