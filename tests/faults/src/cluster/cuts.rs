//! Many runs through a proxy that cuts, with `kubectl` beside them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{BUSYBOX, Namespace, Program, image_arguments, kubectl, seq, sha256};

use super::{relay, scenario};
use crate::proxy::{Harm, Proxy, Target};

/// Number of simultaneous runs.
const PARALLEL: usize = 20;
pub(super) const LAST: u32 = 2_000_000;

fn harm() -> Harm {
    Harm {
        cut_after: Some(1_000_000..=5_000_000),
        delay: Duration::from_millis(100),
        ..Harm::default()
    }
}

/// `seq 1 2000000` through a proxy that cuts every 1 to 5 MB and delays by 100 ms: 10 runs, or 300 with `kubectl exec`
/// and `kubectl logs -f` as controls.
///
/// # Errors
/// When one of the runs did not bring exactly what `seq` wrote.
pub fn cuts(long: bool, seed: u64) -> Result<()> {
    scenario("cuts", |namespace| {
        let expected = seq(1, LAST);
        let (count, sum) = (if long { 300 } else { 10 }, sha256(&expected));
        let proxy = Proxy::start(Target::Fixed(relay()?), harm(), seed)?;
        let server = proxy.address().to_string();
        let begin = Instant::now();
        let failed = in_parallel(count, |index| expect(namespace, &server, &format!("seq-{index}"), &sum));
        let mut said = format!(
            "{} of {count} runs of {} bytes arrived whole through {} cuts, in {:.0} s",
            count - failed.len(),
            expected.len(),
            proxy.cuts(),
            begin.elapsed().as_secs_f64()
        );
        ensure!(failed.is_empty(), "{said}; {failed:#?}");
        ensure!(proxy.cuts() as usize >= count, "{said}: that were no cuts at all");
        if long {
            said += &controls(namespace, &expected, seed)?;
        }
        Ok(said)
    })
}

fn run(namespace: &Namespace, server: &str, name: &str) -> Program {
    let [image, policy] = image_arguments(BUSYBOX);
    let last = LAST.to_string();
    let arguments = [
        "--server", server, "run", name, &image, &policy, "--", "seq", "1", &last,
    ];
    namespace.editor.rproc(&arguments).within(Duration::from_secs(600))
}

/// A run whose output has this sha256. It is deleted afterwards.
pub(super) fn expect(namespace: &Namespace, server: &str, name: &str, sum: &str) -> Result<()> {
    let finished = run(namespace, server, name).finish()?;
    ensure!(
        finished.code == 0,
        "{name} ended with {}: {}",
        finished.code,
        finished.err()
    );
    ensure!(
        sha256(&finished.stdout) == sum,
        "{name}: {} bytes",
        finished.stdout.len()
    );
    namespace
        .kubectl(&["delete", "remoteprocess", name, "--wait=false"])
        .succeed()?;
    Ok(())
}

/// Calls `body` for each index, several at a time, and returns the errors.
pub(super) fn in_parallel(count: usize, body: impl Fn(usize) -> Result<()> + Sync) -> Vec<String> {
    let left: Mutex<VecDeque<usize>> = Mutex::new((0..count).collect());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(index) = next else { return };
                    if let Err(error) = body(index) {
                        let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.push(format!("{error:#}"));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What `kubectl exec` and `kubectl logs -f` receive through the same proxy.
fn controls(namespace: &Namespace, expected: &[u8], seed: u64) -> Result<String> {
    let config = kubectl(["config", "view", "--raw", "--minify", "--flatten", "--output=json"]).json()?;
    let server = config["clusters"][0]["cluster"]["server"]
        .as_str()
        .context("a server")?;
    let target: SocketAddr = server.trim_start_matches("https://").trim_end_matches('/').parse()?;
    let proxy = Proxy::start(Target::Fixed(target), harm(), seed)?;
    let through = [
        format!("--server=https://{}", proxy.address()),
        format!("--tls-server-name={}", target.ip()),
        format!("--namespace={}", namespace.name),
    ];
    let last = LAST.to_string();
    let script = format!("seq 1 {last}; sleep 3600");
    let pod = [
        "run",
        "control",
        "--image",
        BUSYBOX,
        "--image-pull-policy=IfNotPresent",
        "--restart=Never",
    ];
    namespace.kubectl(&pod).args(["--", "sh", "-c", &script]).succeed()?;
    namespace
        .kubectl(&["wait", "pod/control", "--for=condition=Ready", "--timeout=120s"])
        .succeed()?;
    let mut said = String::new();
    for (what, arguments) in [
        ("kubectl exec", vec!["exec", "control", "--", "seq", "1", &last]),
        ("kubectl logs -f", vec!["logs", "--follow", "control"]),
    ] {
        let (mut whole, mut bytes) = (0, 0);
        for _ in 0..PARALLEL {
            let program = kubectl(&through).args(&arguments).within(Duration::from_secs(60));
            // One that continues without an end exceeds its deadline and counts as incomplete.
            if let Ok(finished) = program.finish() {
                bytes += finished.stdout.len();
                whole += usize::from(finished.stdout == expected);
            }
        }
        said += &format!(
            "; {what}: {whole} of {PARALLEL} whole, {} bytes each in the mean",
            bytes / PARALLEL
        );
    }
    Ok(said)
}
