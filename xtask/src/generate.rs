//! Files that are made from other files of the repository.

use std::fs;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::paths;

mod crds;
mod docs;
mod proto;

/// How a generator is called.
#[derive(Args)]
pub struct GenerateArgs {
    /// Write nothing; fail when a file is not what would be written.
    #[arg(long)]
    check: bool,
}

/// A file that is made.
pub struct Generated {
    /// Where it lies in the repository.
    path: &'static str,
    text: String,
}

/// One generator: the task's name, and what it makes.
#[derive(Clone, Copy)]
pub struct Generator {
    task: &'static str,
    make: fn() -> Result<Vec<Generated>>,
}

/// `cargo xtask crds`
pub const CRDS: Generator = Generator {
    task: "crds",
    make: crds::make,
};
/// `cargo xtask proto`
pub const PROTO: Generator = Generator {
    task: "proto",
    make: proto::make,
};
/// `cargo xtask docs`
pub const DOCS: Generator = Generator {
    task: "docs",
    make: docs::make,
};

impl Generator {
    /// Writes the files, or compares them in memory.
    pub fn run(self, args: &GenerateArgs) -> Result<()> {
        if args.check {
            return self.check();
        }
        for file in (self.make)()? {
            let path = paths::repository().join(file.path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&path, file.text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", file.path);
        }
        Ok(())
    }

    /// Fails when a file is not what would be written, and names the command that mends it.
    pub fn check(self) -> Result<()> {
        let is_stale = |file: &Generated| {
            let found = fs::read_to_string(paths::repository().join(file.path));
            found.map_or(true, |found| found != file.text)
        };
        let stale: Vec<&str> = (self.make)()?
            .iter()
            .filter(|file| is_stale(file))
            .map(|file| file.path)
            .collect();
        if !stale.is_empty() {
            bail!("not up to date: {}; run: cargo xtask {}", stale.join(", "), self.task);
        }
        Ok(())
    }
}
