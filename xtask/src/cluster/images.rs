//! Images of the cluster: those that it needs itself, and those that tests and examples run. All are built from
//! programs of this machine, so that no registry is needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::config::{COREDNS_IMAGE, LOCAL_PATH_IMAGE, PAUSE_IMAGE};
use super::{State, Tools};
use crate::archive::{Entry, Image};
use crate::exec;

/// This file: a change of it is a change of the cluster.
#[cfg(test)]
pub(super) const RECIPE: &str = include_str!("images.rs");

const BUSYBOX: &str = "/bin/busybox";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";

/// The programs in the glibc image in addition to its shell.
const GLIBC_PROGRAMS: &[&str] = &[
    "bash",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "echo",
    "env",
    "false",
    "grep",
    "head",
    "hostname",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mv",
    "nohup",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "sed",
    "seq",
    "setsid",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stdbuf",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "uname",
    "wc",
    "whoami",
    "yes",
];

/// Writes all images and imports them.
pub(super) fn import(state: &State, tools: &Tools) -> Result<()> {
    let folder = state.root.join("images");
    std::fs::create_dir_all(&folder)?;
    let images = [
        ("pause", pause()),
        ("coredns", single(tools, COREDNS_IMAGE, "coredns")),
        ("local-path", single(tools, LOCAL_PATH_IMAGE, "local-path-provisioner")),
        ("busybox", busybox()?),
        ("debian-glibc", debian_glibc()?),
        ("scratch-static", scratch_static()),
    ];
    for (name, image) in images {
        let archive = folder.join(format!("{name}.tar"));
        image.write(&archive)?;
        super::load(state, tools, &archive)?;
    }
    Ok(())
}

fn folder(path: &str) -> Entry {
    Entry::Folder(path.to_owned(), 0o755)
}

/// The sandbox's process only has to stay alive.
fn pause() -> Image {
    Image {
        names: vec![PAUSE_IMAGE.to_owned()],
        entries: vec![Entry::Copy("busybox".to_owned(), 0o755, BUSYBOX.into())],
        entrypoint: ["/busybox", "sleep", "2147483647"].map(str::to_owned).to_vec(),
        user: "65535:65535".to_owned(),
        ..Image::default()
    }
}

/// An image of a single static program of the cluster.
fn single(tools: &Tools, name: &str, program: &str) -> Image {
    Image {
        names: vec![name.to_owned()],
        entries: vec![Entry::Copy(program.to_owned(), 0o755, tools.path(program).into())],
        entrypoint: vec![format!("/{program}")],
        ..Image::default()
    }
}

/// `busybox:1.36` for examples and tests, from Debian's static busybox.
fn busybox() -> Result<Image> {
    let mut entries = vec![
        folder("bin"),
        folder("etc"),
        folder("root"),
        folder("usr"),
        folder("var"),
    ];
    entries.push(Entry::Folder("tmp".to_owned(), 0o1777));
    entries.push(Entry::Link("usr/bin".to_owned(), "../bin".to_owned()));
    entries.push(Entry::Link("sbin".to_owned(), "bin".to_owned()));
    entries.push(Entry::Text("etc/passwd".to_owned(), 0o644, PASSWD.to_owned()));
    entries.push(Entry::Text("etc/group".to_owned(), 0o644, GROUP.to_owned()));
    entries.push(Entry::Copy("bin/busybox".to_owned(), 0o755, BUSYBOX.into()));
    let applets = exec::output(Command::new(BUSYBOX).arg("--list"))?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        entries.push(Entry::Link(format!("bin/{applet}"), "busybox".to_owned()));
    }
    Ok(Image {
        names: vec!["docker.io/library/busybox:1.36".to_owned()],
        entries,
        cmd: vec!["sh".to_owned()],
        ..Image::default()
    })
}

/// `scratch-static:test`: one static program, no shell, no folder. `/busybox sh -c …` is a shell all the same.
fn scratch_static() -> Image {
    Image {
        names: vec!["docker.io/library/scratch-static:test".to_owned()],
        entries: vec![Entry::Copy("busybox".to_owned(), 0o755, BUSYBOX.into())],
        cmd: vec!["/busybox".to_owned()],
        ..Image::default()
    }
}

/// `debian-glibc:test`: bash and coreutils of this machine with their shared libraries.
fn debian_glibc() -> Result<Image> {
    let programs: Vec<PathBuf> = GLIBC_PROGRAMS.iter().filter_map(|name| find(name)).collect();
    let mut libraries = BTreeSet::new();
    for program in &programs {
        libraries.extend(libraries_of(program)?);
    }
    let mut entries = vec![folder("etc"), folder("usr"), folder("usr/bin")];
    entries.push(Entry::Folder("tmp".to_owned(), 0o1777));
    entries.push(Entry::Link("bin".to_owned(), "usr/bin".to_owned()));
    entries.push(Entry::Text("etc/passwd".to_owned(), 0o644, PASSWD.to_owned()));
    entries.push(Entry::Text("etc/group".to_owned(), 0o644, GROUP.to_owned()));
    let mut folders = BTreeSet::new();
    for library in &libraries {
        let parents: Vec<&Path> = library
            .ancestors()
            .skip(1)
            .filter(|p| p.components().count() > 1)
            .collect();
        folders.extend(parents.into_iter().map(Path::to_path_buf));
    }
    folders.remove(Path::new("/usr"));
    entries.extend(folders.iter().map(|path| folder(&relative(path))));
    entries.extend(
        libraries
            .iter()
            .map(|path| Entry::Copy(relative(path), 0o755, path.clone())),
    );
    for program in &programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        entries.push(Entry::Copy(format!("usr/bin/{name}"), 0o755, program.clone()));
    }
    entries.push(Entry::Link("usr/bin/sh".to_owned(), "bash".to_owned()));
    Ok(Image {
        names: vec!["docker.io/library/debian-glibc:test".to_owned()],
        entries,
        cmd: vec!["bash".to_owned()],
        ..Image::default()
    })
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
}

/// Absolute paths in what ldd(1) prints: `libc.so.6 => /lib/…/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let text = exec::output(Command::new("ldd").arg(program)).context("the glibc test image needs ldd")?;
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn relative(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}
