//! cargo-fuzz: runs the targets in `fuzz/` under libFuzzer and the address sanitizer, with the stable compiler.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use tempfile::TempDir;

use crate::cargo::{claim_fuzz_target, forget_package};
use crate::steps::{say, step};
use crate::{exec, paths, tool};

const VERSION: &str = "0.13.2";

/// Limits of one run: bytes of an input, MiB of memory, seconds for one input. Leaks are not looked for: the sanitizer
/// needs ptrace for that, and nothing here is freed by hand.
const LIMITS: [&str; 4] = ["-max_len=65536", "-rss_limit_mb=2048", "-timeout=10", "-detect_leaks=0"];

/// What to fuzz.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// The targets; all of them if none is named.
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Give the target this one input, for example one that failed.
    #[arg(long)]
    input: Option<PathBuf>,
}

impl Default for FuzzArgs {
    fn default() -> Self {
        Self {
            targets: Vec::new(),
            seconds: 20,
            input: None,
        }
    }
}

/// Builds the targets and runs them; the error names each input that failed and the command that repeats it.
pub(crate) fn fuzz(args: &FuzzArgs) -> Result<()> {
    let targets = chosen(args)?;
    let programs = step("build the fuzz targets", build)?;
    if let Some(input) = &args.input {
        let input = input
            .canonicalize()
            .with_context(|| format!("no file {}", input.display()))?;
        return targets
            .iter()
            .try_for_each(|target| exec::run(program(&programs, target).arg(&input)));
    }
    let mut failures = Vec::new();
    for target in &targets {
        let run = || run(target, &programs, args.seconds);
        match step(&format!("fuzz {target} for {} s", args.seconds), run) {
            Ok(found) => say(format!("    {found}")),
            Err(error) => failures.push(format!("{target}: {error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("{} targets failed:\n{}", failures.len(), failures.join("\n\n"));
    }
    Ok(())
}

/// The names of the targets to run.
fn chosen(args: &FuzzArgs) -> Result<Vec<String>> {
    let all = names(&paths::repository().join("fuzz/corpus"))?;
    for target in &args.targets {
        ensure!(
            all.contains(target),
            "there is no target {target}; the targets are {}",
            Vec::from_iter(all).join(", ")
        );
    }
    ensure!(
        args.input.is_none() || args.targets.len() == 1,
        "name the target of the input: cargo xtask fuzz TARGET --input FILE"
    );
    Ok(match args.targets.is_empty() {
        true => all.into_iter().collect(),
        false => args.targets.clone(),
    })
}

/// Returns the folder of the programs. They are optimized and check for overflow.
fn build() -> Result<PathBuf> {
    let host = exec::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let (host, target) = (host.trim(), claim_fuzz_target()?);
    let mut build = Command::new(tool::ensure("cargo-fuzz", VERSION)?);
    build.current_dir(paths::repository());
    build.args([
        "build",
        "--fuzz-dir",
        "fuzz",
        "--features",
        "libfuzzer",
        "--codegen-units",
        "16",
    ]);
    build.args(["--target", host, "--target-dir"]).arg(&target);
    // The sanitizer is an unstable option of a stable compiler.
    build.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS");
    // A finding should say in which line.
    build
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only");
    forget_package(&mut build);
    exec::logged(&mut build, "build-fuzz")?;
    Ok(target.join(host).join("release"))
}

/// A target within its limits.
fn program(programs: &Path, target: &str) -> Command {
    let mut program = Command::new(programs.join(target));
    program.args(LIMITS);
    program.env("ASAN_OPTIONS", "detect_odr_violation=0:detect_leaks=0");
    program
}

/// Runs one target on a copy of its corpus. Returns what it did.
fn run(target: &str, programs: &Path, seconds: u32) -> Result<String> {
    let corpus = TempDir::with_prefix("rproc-fuzz-")?;
    let kept = paths::repository().join("fuzz/corpus").join(target);
    for name in names(&kept)? {
        fs::copy(kept.join(&name), corpus.path().join(&name))?;
    }
    // Inputs that fail outlive the run.
    let failed = paths::cache()?.join("fuzz").join(target);
    fs::create_dir_all(&failed)?;
    let before = names(&failed)?;
    let log = format!("fuzz-{target}");
    let mut program = program(programs, target);
    program
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", failed.display()))
        .arg("-print_final_stats=1")
        .arg(corpus.path());
    match exec::logged(&mut program, &log) {
        Ok(()) => {
            let log = fs::read(paths::cache()?.join("logs").join(format!("{log}.log")))?;
            Ok(summary(&String::from_utf8_lossy(&log)))
        }
        Err(error) => {
            let new = names(&failed)?;
            let commands: Vec<String> = new
                .difference(&before)
                .map(|name| format!("cargo xtask fuzz {target} --input {}", failed.join(name).display()))
                .collect();
            bail!("{error:#}\nto repeat it:\n{}", commands.join("\n"))
        }
    }
}

/// The names in a folder.
fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Number of inputs and covered edges, from the output of libFuzzer.
fn summary(log: &str) -> String {
    let word = |name: &str| {
        let found = log.lines().rev().find_map(|line| line.split_once(name));
        found
            .and_then(|(_, rest)| rest.split_whitespace().next())
            .unwrap_or("?")
    };
    let (inputs, peak) = (word("stat::number_of_executed_units:"), word("stat::peak_rss_mb:"));
    format!("{inputs} inputs, {} edges covered, {peak} MiB at most", word(" cov: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_in_the_last_lines_of_libfuzzer() {
        let log = "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                   #900\tDONE   cov: 345 ft: 400 corp: 9/1Kb lim: 4 exec/s: 45 rss: 61Mb\n\
                   Done 900 runs in 21 second(s)\nstat::number_of_executed_units: 900\nstat::peak_rss_mb:            61\n";
        assert_eq!(summary(log), "900 inputs, 345 edges covered, 61 MiB at most");
        assert_eq!(summary(""), "? inputs, ? edges covered, ? MiB at most");
    }

    #[test]
    fn each_target_is_a_folder_of_the_corpus() {
        let all = chosen(&FuzzArgs::default()).unwrap();
        assert!(all.contains(&"archive".to_owned()) && all.len() >= 6, "{all:?}");
        let wrong = FuzzArgs {
            targets: vec!["archiv".into()],
            ..FuzzArgs::default()
        };
        assert!(chosen(&wrong).unwrap_err().to_string().contains("archive, messages"));
        let homeless = FuzzArgs {
            input: Some("x".into()),
            ..FuzzArgs::default()
        };
        assert!(chosen(&homeless).is_err());
    }
}
