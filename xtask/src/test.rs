//! Everything that must be true before a change lands, with one summary at the end.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{self, cargo};
use crate::cluster::{self, State};
use crate::generate::{CRDS, DOCS, PROTO};
use crate::images::{self, Images};
use crate::lock::Lock;
use crate::steps::seconds;
use crate::target::{Target, TargetArgs};
use crate::{check, exec, faults, paths};

/// After this many seconds the end-to-end tests are ended: they hang.
const E2E_LIMIT: &str = "2400";
const CHART: &str = "charts/remoteprocess-operator";

/// What to test.
#[derive(Args)]
pub struct TestArgs {
    /// Leave out everything that needs a cluster.
    #[arg(long)]
    skip_e2e: bool,
    /// Run the full sizes of what has a smaller size in CI.
    #[arg(long)]
    long: bool,
    /// Run the end-to-end tests on the cluster of this context of your kubeconfig, without those that end its parts.
    /// Without it: on the development cluster, which is brought up.
    #[arg(long)]
    context: Option<String>,
}

/// Runs all checks and tests; the error says how many failed.
pub fn test(args: &TestArgs) -> Result<()> {
    let mut report = Report::default();
    static_checks(&mut report);
    report.cargo_test("unit and integration tests", |cargo| {
        cargo.args(["--workspace", "--exclude", "remoteprocess-e2e"]);
        pass_long(cargo, args);
    });
    report.step("chart", chart);
    report.step("simulated faults", || {
        exec::run(faults::program()?.arg("simulation").args(long(args)))
    });
    if args.skip_e2e {
        report.skip("end-to-end tests", "--skip-e2e");
    } else {
        end_to_end(&mut report, args)?;
    }
    report.finish()
}

/// Runs the checks that need neither a cluster nor a test: `cargo xtask check`.
pub fn check() -> Result<()> {
    let mut report = Report::default();
    static_checks(&mut report);
    report.finish()
}

fn static_checks(report: &mut Report) {
    report.step("formatting", || exec::run(cargo("fmt")?.args(["--all", "--check"])));
    report.step("lints", || {
        exec::run(cargo("clippy")?.args([
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    });
    report.step("house rules", check::check);
    for (name, generator) in [
        ("generated CRD", CRDS),
        ("generated wire", PROTO),
        ("generated documents", DOCS),
    ] {
        report.step(name, || generator.check());
    }
}

fn chart() -> Result<()> {
    let helm = cluster::helm()?;
    let chart = paths::repository().join(CHART);
    exec::output(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))?;
    let template = |values: &str| {
        let mut helm = Command::new(&helm);
        helm.args(["template", "release"]).arg(&chart).args(["--set", values]);
        helm
    };
    const GOOD: [&str; 4] = [
        "replicas=1",
        "replicas=2,archive.accessMode=ReadWriteMany",
        "replicas=2,archive.store=S3,archive.s3.bucket=logs,archive.s3.credentialsSecret=s,archive.retention.days=7",
        "replicas=2,archive.store=GCS,archive.gcs.bucket=logs,archive.gcs.credentialsSecret=s",
    ];
    for values in GOOD {
        exec::output(&mut template(values))?;
    }
    for values in ["replicas=2", "archive.store=S3", "archive.store=GCS"] {
        if exec::succeeds(&mut template(values)) {
            bail!("the chart takes {values}");
        }
    }
    Ok(())
}

fn end_to_end(report: &mut Report, args: &TestArgs) -> Result<()> {
    let state = State::of_this_user()?;
    let lock = Lock::take(&state.tests_lock(), "the tests of another checkout")?;
    let target = report.step("cluster up", || match args.context.as_deref() {
        Some(context) if context != cluster::NODE => Target::resolve(&TargetArgs::of(context)),
        _ => Target::development(state, Some(&lock)),
    });
    let Some(target) = target else {
        report.skip("end-to-end tests", "there is no cluster");
        return Ok(());
    };
    let Some(images) = report.step("images", || images::build_and_load(&target)) else {
        report.skip("end-to-end tests", "there are no images");
        return Ok(());
    };
    report.cargo_test("end-to-end tests", |cargo| {
        cargo.args(["--package", "remoteprocess-e2e"]);
        pass_long(cargo, args);
        describe(cargo, &target, &images);
    });
    if target.own.is_some() {
        report.step("reconcile under faults", || {
            let arguments = [Some("reconcile"), long(args)].into_iter().flatten();
            faults::reconcile(&arguments.map(str::to_owned).collect::<Vec<_>>())
        });
        report.step("faults on the cluster", || {
            let mut program = faults::program()?;
            program.arg("cluster").args(long(args));
            exec::run(faults::on(&mut program, &target, &images))
        });
    } else {
        report.skip(
            "faults on the cluster",
            "they end its parts: only on the development cluster",
        );
    }
    Ok(())
}

fn long(args: &TestArgs) -> Option<&'static str> {
    args.long.then_some("--long")
}

/// Tells a program of ours, by its environment, which cluster and which builds it is about.
pub fn describe(command: &mut Command, target: &Target, images: &Images) {
    let (kubectl, helm) = target.programs();
    command
        .env("RPROC_BIN", images.programs.path("rproc"))
        .env("KUBECTL", kubectl)
        .env("HELM", helm);
    command
        .env("RPROC_IMAGE_TAG", &images.tag)
        .env("RPROC_CONTEXT", &target.context);
    if let Some(state) = &target.own {
        command.env("KUBECONFIG", state.kubeconfig());
        command
            .env("RPROC_CLUSTER_OWN", "1")
            .env("RPROC_CLUSTER_STATE", &state.root);
    }
}

fn pass_long(cargo: &mut Command, args: &TestArgs) {
    if args.long {
        cargo.env("RPROC_LONG", "1");
    }
}

#[derive(Default)]
struct Report {
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    took: Duration,
    passed: usize,
    failed: usize,
    skipped: Option<&'static str>,
}

impl Report {
    /// Runs a step that counts as one test; its error is printed at once.
    fn step<T>(&mut self, name: &'static str, body: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n==> {name}");
        let begin = Instant::now();
        let result = body();
        if let Err(error) = &result {
            println!("FAILED: {name}: {error:#}");
        }
        let failed = usize::from(result.is_err());
        self.rows.push(Row {
            name,
            took: begin.elapsed(),
            passed: 1 - failed,
            failed,
            skipped: None,
        });
        result.ok()
    }

    /// Runs `cargo test` and counts what it reports.
    fn cargo_test(&mut self, name: &'static str, arguments: impl FnOnce(&mut Command)) {
        println!("\n==> {name}");
        let begin = Instant::now();
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", E2E_LIMIT]);
        command.args(["cargo", "test", "--locked", "--no-fail-fast"]);
        arguments(&mut command);
        let counted = cargo::prepare(&mut command).and_then(|()| count_tests(&mut command));
        let (passed, failed) = counted.unwrap_or_else(|error| {
            println!("FAILED: {name}: {error:#}");
            (0, 1)
        });
        self.rows.push(Row {
            name,
            took: begin.elapsed(),
            passed,
            failed,
            skipped: None,
        });
    }

    fn skip(&mut self, name: &'static str, reason: &'static str) {
        println!("\n!!! SKIPPED: {name} ({reason})");
        self.rows.push(Row {
            name,
            took: Duration::ZERO,
            passed: 0,
            failed: 0,
            skipped: Some(reason),
        });
    }

    fn finish(self) -> Result<()> {
        println!("\n{:28} {:>9} {:>7} {:>7}", "step", "time", "passed", "failed");
        for row in &self.rows {
            let time = seconds(row.took);
            match row.skipped {
                Some(reason) => println!("{:28} {:>9} SKIPPED: {reason}", row.name, "-"),
                None => println!("{:28} {time:>9} {:>7} {:>7}", row.name, row.passed, row.failed),
            }
        }
        let passed: usize = self.rows.iter().map(|row| row.passed).sum();
        let failed: usize = self.rows.iter().map(|row| row.failed).sum();
        let took = self.rows.iter().map(|row| row.took).sum();
        for row in self.rows.iter().filter(|row| row.skipped.is_some()) {
            println!("!!! NOT TESTED: {}", row.name);
        }
        println!("took {}", seconds(took));
        println!("{passed} passed, {failed} failed");
        if failed > 0 {
            bail!("{failed} failed");
        }
        Ok(())
    }
}

/// Runs `cargo test`, passes its output on and returns how many tests passed and failed.
fn count_tests(command: &mut Command) -> Result<(usize, usize)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("stdout was not kept")?;
    let (mut passed, mut failed) = (0, 0);
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        println!("{line}");
        if let Some((good, bad)) = counts(&line) {
            passed += good;
            failed += bad;
        }
    }
    let status = child.wait()?;
    if !status.success() && failed == 0 {
        println!("FAILED: cargo test ended with {status} (124: after {E2E_LIMIT} seconds)");
        failed = 1;
    }
    Ok((passed, failed))
}

/// `test result: ok. 3 passed; 0 failed; …`
fn counts(line: &str) -> Option<(usize, usize)> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = rest.split("; ");
    let mut count = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some((count("passed")?, count("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_cargo_reports() {
        let line = "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(counts(line), Some((3, 1)));
        assert_eq!(counts("test result: something else"), None);
        assert_eq!(counts("running 3 tests"), None);
    }
}
