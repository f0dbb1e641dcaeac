//! Everything that must be true before a change lands, with one summary at the end.

use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cargo::{cargo, claim_target};
use crate::cluster::{self, State, brokers};
use crate::generate::{GenerateArgs, generate};
use crate::images;
use crate::lock::Lock;
use crate::registry::Registry;
use crate::target::{Target, TargetArgs};
use crate::{check, deny, exec, faults, install, load, paths};

use report::Report;
use suite::{Program, Runner, Tally};

mod report;
mod suite;

/// End-to-end tests that run beside each other and leave the cluster as it is.
const BESIDE: &str = "beside";
/// End-to-end tests that restart the operator. They can run at the same time as each other, but not with other tests.
const RESTARTS: &str = "restarts";
/// End-to-end tests that end or measure parts of the cluster: one at a time, with nothing in parallel.
const ALONE: &str = "alone";

/// Time limit of a test program with `--long`.
const LONG_LIMIT: Duration = Duration::from_hours(1);

/// What to test.
#[derive(Args)]
pub(crate) struct TestArgs {
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

impl TestArgs {
    /// Whether the end-to-end tests run on the development cluster.
    fn needs_development_cluster(&self) -> bool {
        self.context.as_deref().is_none_or(|context| context == cluster::NODE)
    }

    /// Time limit of a test program.
    fn limit(&self) -> Duration {
        if self.long { LONG_LIMIT } else { suite::LIMIT }
    }
}

/// Runs all checks and tests; the error says how many failed.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let mut report = Report::default();
    let Some(programs) = compile(&mut report, args)? else {
        report.skip("all tests", "they do not compile");
        return report.finish();
    };
    let (on_cluster, programs): (Vec<Program>, Vec<Program>) = programs
        .into_iter()
        .partition(|program| [BESIDE, RESTARTS, ALONE].contains(&program.name.as_str()));
    let servers = brokers(&mut report);
    report.suite("unit and integration tests", || unit_tests(&programs, args, &servers));
    report.step("tests of the load", load::unit_tests);
    report.step("chart", chart);
    report.step("chart with a registry", chart_with_registry);
    report.step("chart with monitoring", chart_with_monitoring);
    report.step("simulated faults", || {
        faults::simulation(&with_size("simulation", args))
    });
    if args.skip_e2e {
        report.skip("end-to-end tests", "--skip-e2e");
    } else {
        end_to_end(&mut report, &on_cluster, args, &servers)?;
    }
    report.finish()
}

/// Runs the static checks and builds the tests. At the same time it builds the programs of the cluster and the static
/// programs, because a build leaves processors idle while it downloads or waits for its largest crate.
fn compile(report: &mut Report, args: &TestArgs) -> Result<Option<Vec<Program>>> {
    claim_target()?;
    thread::scope(|scope| {
        let rest = (!args.skip_e2e).then(|| {
            scope.spawn(|| {
                if args.needs_development_cluster() {
                    cluster::build()?;
                }
                brokers::nats()?;
                images::programs()
            })
        });
        static_checks(report);
        // All at once: parts of the workspace, built alone, would be compiled again with fewer features of their dependencies.
        let tests = report.step("build the tests", || suite::build(&["--workspace"]));
        if let Some(rest) = rest {
            report.step("build the programs of the cluster", || {
                rest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
        }
        Ok(tests)
    })
}

/// The brokers of the bridge's tests: environment variable, and the path of the program. They are built and installed here if
/// they are not there yet. Without one, its tests say that they are left out.
fn brokers(report: &mut Report) -> Vec<(&'static str, PathBuf)> {
    let nats = report.step("NATS for tests", brokers::nats);
    let rabbitmq = report.step("RabbitMQ for tests", brokers::rabbitmq);
    let programs = [("RPROC_NATS_SERVER", nats), ("RPROC_RABBITMQ_SERVER", rabbitmq)];
    let found = programs
        .into_iter()
        .filter_map(|(variable, path)| Some((variable, path?)));
    found.collect()
}

/// Runs the checks that need neither a cluster nor a test: `cargo xtask check`.
pub(crate) fn check() -> Result<()> {
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
    report.step("documentation", documentation);
    report.step("house rules", check::check);
    report.step("dependencies", deny::deny);
    for (name, task) in [
        ("generated CRD", "crds"),
        ("generated wire", "proto"),
        ("generated documents", "docs"),
    ] {
        report.step(name, || generate(task, &GenerateArgs { check: true }));
    }
}

/// Checks that links in the documentation resolve.
fn documentation() -> Result<()> {
    let mut doc = cargo("doc")?;
    doc.args([
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
        "--quiet",
    ]);
    exec::run(doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"))
}

/// Values that the chart takes.
const GOOD: [&str; 13] = [
    "archive.size=1.5Ti,archive.retention.maxSize=200000000,agent.memory=64Mi",
    "log.filter=info\\,remoteprocess_operator=debug\\,[request{id=1}]=trace",
    "replicas=1,archive.retention.maxSize=1Ki",
    "replicas=2,archive.accessMode=ReadWriteMany",
    "replicas=2,archive.store=S3,archive.s3.bucket=logs,archive.s3.credentialsSecret=s,archive.retention.days=7",
    "replicas=2,archive.store=GCS,archive.gcs.bucket=logs,archive.gcs.credentialsSecret=s",
    "ca.source=CertManager,ca.duration=2160h,ca.renewBefore=360h",
    "ca.source=CertManager,ca.certManager.issuerRef.name=corp,ca.certManager.issuerRef.kind=ClusterIssuer",
    "ca.source=Secret,ca.secretName=corp-ca,ca.certificateDuration=1h30m",
    "tracing.otlp.endpoint=https://collector.example:4317,tracing.otlp.headersSecret=s,tracing.otlp.caCertificates=x",
    "monitoring.dashboard.enabled=true,monitoring.dashboard.annotations.folder=Platform",
    "triggers.enabled=false,networkPolicy.enabled=true,watchNamespaces={a}",
    "triggers.imagePullSecrets={a,b},networkPolicy.enabled=true,watchNamespaces={a},admissionPolicy.enabled=false",
];

/// Values that the chart refuses.
const BAD: [&str; 28] = [
    "server=relay.example.org:99999",
    "images.operator.tag=not a tag",
    "images.agent.repository=registry/agent@sha256:0",
    "replicas=2",
    "archive.store=S3",
    "archive.store=GCS",
    "archive.size=20",
    "archive.size=0Gi",
    "archive.size=20Ki",
    "archive.emptyDirSizeLimit=2",
    "archive.retention.maxSize=100",
    "agent.memory=64",
    "triggers.memory=64",
    "triggers.imagePullPolicy=Sometimes",
    "log.filter=debgu",
    "log.filter=info\\,=debug",
    "log.filter=remoteprocess_operator=loud",
    "service.ports.main=8443,service.ports.enroll=8443",
    "ca.source=Secret",
    "ca.secretName=corp-ca",
    "ca.source=Secret,ca.secretName=remoteprocess-ca",
    "ca.duration=365d",
    "ca.certManager.issuerRef.name=corp",
    // The API of the Prometheus Operator is not there.
    "monitoring.serviceMonitor.enabled=true",
    "monitoring.prometheusRule.enabled=true",
    "monitoring.serviceMonitor.interval=30",
    "tracing.otlp.endpoint=collector:4317",
    "tracing.otlp.headersSecret=s",
];

fn chart() -> Result<()> {
    let helm = cluster::helm()?;
    let chart = paths::chart();
    exec::output(Command::new(&helm).args(["lint", "--strict"]).arg(&chart))?;
    let template = |values: &str| {
        let mut helm = Command::new(&helm);
        helm.args(["template", "release"]).arg(&chart).args(["--set", values]);
        helm
    };
    for values in GOOD {
        exec::output(&mut template(values))?;
    }
    for values in BAD {
        if exec::succeeds(&mut template(values)) {
            bail!("the chart takes {values}");
        }
    }
    Ok(())
}

/// Checks the objects for the Prometheus Operator, for a cluster that has its API.
fn chart_with_monitoring() -> Result<()> {
    let mut template = Command::new(cluster::helm()?);
    template
        .args(["template", "release"])
        .arg(paths::chart())
        .args(["--api-versions", "monitoring.coreos.com/v1"])
        .args([
            "--set",
            "monitoring.serviceMonitor.enabled=true,monitoring.serviceMonitor.interval=1m",
        ])
        .args(["--set", "monitoring.prometheusRule.enabled=true"]);
    let rendered = exec::output(&mut template)?;
    for part in [
        "kind: ServiceMonitor",
        "interval: 1m",
        "kind: PrometheusRule",
        "alert: RemoteProcessNoLeader",
    ] {
        if !rendered.contains(part) {
            bail!("the rendered chart has no {part:?}");
        }
    }
    Ok(())
}

/// Checks that the chart accepts the values of `cargo xtask install --registry`.
fn chart_with_registry() -> Result<()> {
    let registry = Registry::parse("ghcr.io/team").map_err(anyhow::Error::msg)?;
    let mut template = Command::new(cluster::helm()?);
    template
        .args(["template", "release"])
        .arg(paths::chart())
        .args(["--set", &images::values("1-a", Some(&registry)).join(",")]);
    let rendered = exec::output(&mut template)?;
    for image in images::NAMES {
        if !rendered.contains(&format!("ghcr.io/team/{image}:1-a")) {
            bail!("--registry does not reach the chart: the {image} comes from elsewhere");
        }
    }
    Ok(())
}

fn end_to_end(report: &mut Report, programs: &[Program], args: &TestArgs, servers: &[(&str, PathBuf)]) -> Result<()> {
    let state = State::of_this_user()?;
    let lock = Lock::take(&state.tests_lock(), "the tests of another checkout")?;
    let target = report.step("cluster up", || match args.context.as_deref() {
        Some(context) if !args.needs_development_cluster() => {
            let target = Target::resolve(&TargetArgs::of(context))?;
            target.expect_images()?;
            Ok(target)
        }
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
    if report.step("operator", || install::upgrade(&target, &images)).is_none() {
        report.skip("end-to-end tests", "the operator is not installed");
        return Ok(());
    }
    let prepare = |command: &mut Command| {
        pass_long(command, args);
        images.describe(command, &target);
        command.envs(servers.iter().map(|(variable, path)| (variable, path)));
    };
    end_to_end_suites(report, programs, args.limit(), &prepare);
    if target.own.is_some() {
        report.step("reconcile under faults", || {
            faults::reconcile(&with_size("reconcile", args))
        });
        report.step("attacks on an operator", || {
            faults::attacks(&with_size("attacks", args))
        });
        report.step("faults on the cluster", || {
            let mut program = faults::program()?;
            program.args(with_size("cluster", args));
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

/// Most of these tests wait most of the time: two programs run at a time, each with a test for each processor.
fn unit_tests(programs: &[Program], args: &TestArgs, servers: &[(&str, PathBuf)]) -> Result<Tally> {
    let runner = Runner {
        programs: 2,
        tests: processors(),
        limit: args.limit(),
        prepare: &|command| {
            pass_long(command, args);
            command.envs(servers.iter().map(|(variable, path)| (variable, path)));
        },
    };
    let mut tally = runner.run(programs);
    tally.extend(suite::documentation(&["--workspace"])?);
    Ok(tally)
}

/// First the tests that run in parallel, then those that restart the operator, then those that must run alone.
fn end_to_end_suites(
    report: &mut Report,
    programs: &[Program],
    limit: Duration,
    prepare: &(dyn Fn(&mut Command) + Sync),
) {
    let mut run = |step, name, tests| {
        let programs: Vec<Program> = programs
            .iter()
            .filter(|program| program.name == name)
            .cloned()
            .collect();
        let runner = Runner {
            programs: 1,
            tests,
            limit,
            prepare,
        };
        report.suite(step, || Ok(runner.run(&programs)));
    };
    run("end-to-end tests", BESIDE, 3 * processors());
    run("with operator restarts", RESTARTS, 3);
    run("alone on the cluster", ALONE, 1);
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The arguments of a scenario of `cargo xtask faults`.
fn with_size(scenario: &str, args: &TestArgs) -> Vec<String> {
    let size = args.long.then_some("--long");
    [Some(scenario), size]
        .into_iter()
        .flatten()
        .map(str::to_owned)
        .collect()
}

fn pass_long(cargo: &mut Command, args: &TestArgs) {
    if args.long {
        cargo.env("RPROC_LONG", "1");
    }
}
