//! The Rust code of the wire, from the `.proto` files, without a system `protoc`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{Generated, repository};

const FILES: [&str; 3] = [
    "remoteprocess/v1/process.proto",
    "remoteprocess/v1/executor.proto",
    "remoteprocess/v1/relay.proto",
];

pub fn make() -> Result<Vec<Generated>> {
    let includes = repository().join("proto");
    let descriptors = protox::compile(FILES, [&includes]).context("the .proto files have faults")?;
    let folder = tempfile::tempdir()?;
    tonic_prost_build::configure()
        .out_dir(folder.path())
        .bytes(".")
        .compile_fds(descriptors)?;
    let made = folder.path().join("remoteprocess.v1.rs");
    // `cargo fmt` formats it as well, since it is a module of the crate: it must find nothing to change.
    let mut rustfmt = Command::new("rustfmt");
    rustfmt
        .args(["--edition", "2024", "--config-path"])
        .arg(repository())
        .arg(&made);
    let formatted = rustfmt.output().context("cannot start rustfmt")?;
    ensure!(
        formatted.status.success(),
        "rustfmt: {}",
        String::from_utf8_lossy(&formatted.stderr)
    );
    let text = fs::read_to_string(made)?;
    Ok(vec![Generated {
        path: "proto/src/gen/remoteprocess.v1.rs",
        text,
    }])
}
