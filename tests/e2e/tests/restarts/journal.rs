//! A file on the node to which programs add lines: how often each one ran.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result};
use remoteprocess_e2e::Namespace;
use serde_json::{Value, json};

/// The file `ran`, at `/journal/ran` in a container.
pub(crate) struct Journal(PathBuf);

impl Journal {
    pub(crate) fn new(namespace: &Namespace) -> Self {
        Self(env::temp_dir().join(&namespace.name))
    }

    /// The fields of a spec that mount the journal.
    pub(crate) fn mount(&self) -> Value {
        let volume = json!({"name": "journal", "hostPath": {"path": self.0, "type": "DirectoryOrCreate"}});
        json!({"volumeMounts": [{"name": "journal", "mountPath": "/journal"}], "pod": {"volumes": [volume]}})
    }

    /// Makes the file `mended`, for which a program may look.
    pub(crate) fn mend(&self) -> Result<()> {
        fs::write(self.0.join("mended"), "").context("the journal")
    }

    /// How often each line was written.
    pub(crate) fn read(&self) -> Result<BTreeMap<String, usize>> {
        let mut runs = BTreeMap::new();
        for line in fs::read_to_string(self.0.join("ran")).context("the journal")?.lines() {
            *runs.entry(line.to_owned()).or_default() += 1;
        }
        Ok(runs)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // If a test failed early, nothing was written.
        let _ = fs::remove_dir_all(&self.0);
    }
}
