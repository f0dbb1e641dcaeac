//! Generates files of the repository from other files: `cargo xtask crds|proto|docs` runs this.
//!
//! Arrows: may depend on every crate of the workspace, nothing depends on it. It is separate from `xtask`, so that the
//! tasks themselves compile in seconds on a fresh machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};

mod crds;
mod docs;
mod proto;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    task: Task,
    /// Write nothing; fail when a file is not what would be written.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Task {
    /// The CustomResourceDefinitions.
    Crds,
    /// The Rust code of the wire.
    Proto,
    /// docs/api.md.
    Docs,
}

/// A generated file.
struct Generated {
    /// Its path in the repository.
    path: String,
    contents: Vec<u8>,
}

fn main() -> Result<()> {
    let args = Cli::parse();
    let files = match args.task {
        Task::Crds => crds::make(),
        Task::Proto => proto::make(),
        Task::Docs => docs::make(),
    }?;
    if args.check {
        return check(args.task, &files);
    }
    for file in files {
        let path = repository().join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, &file.contents).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", file.path);
    }
    Ok(())
}

/// Fails if a file is not up to date, and names the command that updates it.
fn check(task: Task, files: &[Generated]) -> Result<()> {
    let is_stale = |file: &&Generated| {
        let found = fs::read(repository().join(&file.path));
        found.map_or(true, |found| found != file.contents)
    };
    let stale: Vec<&str> = files.iter().filter(is_stale).map(|file| file.path.as_str()).collect();
    if !stale.is_empty() {
        let name = task.to_possible_value().map(|value| value.get_name().to_owned());
        bail!(
            "not up to date: {}; run: cargo xtask {}",
            stale.join(", "),
            name.unwrap_or_default()
        );
    }
    Ok(())
}

/// The root of the checkout in which this command was started.
fn repository() -> PathBuf {
    // Cargo sets it when it runs us; the compiled-in value names the checkout that was built last.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest)
        .ancestors()
        .nth(2)
        .expect("xtask/generate/ lies in the repository")
        .to_path_buf()
}
