//! What commands print on standard output, other than the output of a process.

use std::io::{self, Write};

use clap::ValueEnum;
use kube::Resource;
use remoteprocess_api::RemoteProcess;
use serde::Serialize;

use crate::failure::Failure;

/// Writes to standard output; `| head` may close it.
///
/// # Errors
/// It cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Formats for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl DataFormat {
    /// Prints a value.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn print(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))? + "\n",
            Self::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::new(error.to_string()))?,
        };
        print(&text)
    }
}

/// The name of a process, as kubectl prints it.
pub fn resource(name: &str) -> String {
    resource_of::<RemoteProcess>(name)
}

/// The name of an object of this kind, as kubectl prints it.
pub fn resource_of<K: Resource<DynamicType = ()>>(name: &str) -> String {
    format!("{}.{}/{name}", K::kind(&()).to_lowercase(), K::group(&()))
}
