//! The Rust code of the wire, from the `.proto` files, without a system `protoc`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use prost::Message;

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

/// Enums that are stored by the name of the `.proto` file, each with its values.
const STORED_NAMES: [(&str, &[&str]); 3] = [
    ("Stream", &["STREAM_UNSPECIFIED", "STREAM_STDOUT", "STREAM_STDERR"]),
    ("Exit.Outcome", &["OUTCOME_UNKNOWN", "OUTCOME_CODE", "OUTCOME_SIGNAL"]),
    ("Exit.Source", &["SOURCE_NONE", "SOURCE_ENTRYPOINT", "SOURCE_KUBELET"]),
];
/// Messages that the archive stores as JSON.
const STORED: [&str; 5] = ["Exit", "Seal", "StreamSeal", "Usage", "Gap"];
/// Fields that are stored in another form than their own. `Exit.sealed` is a field of the manifest.
const STORED_FIELDS: [(&str, &str); 9] = [
    ("Exit.outcome", "with = \"crate::stored::Name::<exit::Outcome>\""),
    ("Exit.source", "with = \"crate::stored::Name::<exit::Source>\""),
    ("Exit.reason", "with = \"crate::stored::Name::<Reason>\""),
    ("Exit.sealed", "skip"),
    ("Seal.reason", "with = \"crate::stored::Name::<SealReason>\""),
    ("StreamSeal.sha256", "with = \"crate::stored::hexadecimal\""),
    // It is compared before the manifest is written.
    ("StreamSeal.checksum", "skip"),
    ("Gap.stream", "with = \"crate::stored::Name::<Stream>\""),
    ("Gap.reason", "with = \"crate::stored::Name::<GapReason>\""),
];

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
    for (name, values) in STORED_NAMES {
        builder = builder.enum_attribute(
            format!(".remoteprocess.v1.{name}"),
            "#[derive(strum::EnumString, strum::IntoStaticStr)]",
        );
        for value in values {
            builder = builder.field_attribute(format!("{name}.{value}"), format!("#[strum(serialize = \"{value}\")]"));
        }
    }
    for name in STORED {
        builder = builder.message_attribute(
            format!(".remoteprocess.v1.{name}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(rename_all = \"camelCase\", default)]",
        );
    }
    for (field, form) in STORED_FIELDS {
        builder = builder.field_attribute(field, format!("#[serde({form})]"));
    }
    let encoded = descriptors.encode_to_vec();
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
    Ok(vec![
        Generated {
            path: "proto/src/gen/remoteprocess.v1.rs".to_owned(),
            contents: fs::read(made)?,
        },
        Generated {
            path: "proto/src/gen/remoteprocess.v1.bin".to_owned(),
            contents: encoded,
        },
    ])
}
