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

/// Enums whose values have a name that is shown and stored: CamelCase, and empty for the unspecified value.
const NAMED: [(&str, &str); 4] = [
    ("Phase", "PHASE_UNSPECIFIED"),
    ("Reason", "REASON_UNSPECIFIED"),
    ("GapReason", "GAP_REASON_UNSPECIFIED"),
    ("SealReason", "SEAL_REASON_UNSPECIFIED"),
];
/// The one name that is not the CamelCase form of the value.
const OOM_KILLED: (&str, &str) = ("Reason.REASON_OOM_KILLED", "#[strum(serialize = \"OOMKilled\")]");

pub(crate) fn make() -> Result<Vec<Generated>> {
    let includes = repository().join("proto");
    let descriptors = protox::compile(FILES, [&includes]).context("the .proto files have faults")?;
    let folder = tempfile::tempdir()?;
    let mut builder = tonic_prost_build::configure()
        .out_dir(folder.path())
        .bytes(".")
        .field_attribute(OOM_KILLED.0, OOM_KILLED.1);
    for (name, unspecified) in NAMED {
        builder = builder
            .type_attribute(
                format!(".remoteprocess.v1.{name}"),
                "#[derive(strum::Display, strum::EnumString, strum::IntoStaticStr, strum::VariantArray)]",
            )
            .field_attribute(format!("{name}.{unspecified}"), "#[strum(serialize = \"\")]");
    }
    builder.compile_fds(descriptors)?;
    let made = folder.path().join("remoteprocess.v1.rs");
    // `cargo fmt` formats it as well, since it is a module of the crate, and must find nothing to change.
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
