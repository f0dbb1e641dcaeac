//! Files on the node to which programs add lines: how often each one ran, and how many at once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, bail};
use remoteprocess_e2e::Namespace;
use serde_json::{Value, json};

/// The folder `/journal` of containers.
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

    /// Most programs at once, by what they have added to the file `at-once`: `+` when they begin, and `-` when they end.
    pub(crate) fn most_at_once(&self) -> Result<usize> {
        let (mut now, mut most) = (0_usize, 0);
        for line in fs::read_to_string(self.0.join("at-once"))
            .context("the journal")?
            .lines()
        {
            match line {
                "+" => now += 1,
                "-" => now = now.checked_sub(1).context("an end without a begin")?,
                _ => bail!("{line:?} in the journal"),
            }
            most = most.max(now);
        }
        Ok(most)
    }

    /// How often each line was written to the file `ran`.
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
