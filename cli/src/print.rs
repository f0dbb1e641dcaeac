//! What commands print on standard output, other than the output of a process.

use std::io::{self, Write};

use clap::ValueEnum;
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

/// The name of an object, as kubectl prints it.
pub fn resource(name: &str) -> String {
    format!("remoteprocess.remoteprocess.dev/{name}")
}

/// The name of a trigger, as kubectl prints it.
pub fn trigger(name: &str) -> String {
    format!("processtrigger.remoteprocess.dev/{name}")
}
