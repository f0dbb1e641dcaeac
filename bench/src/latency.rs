//! From the write(2) of a line to its arrival at the client, with a line every 10 to 20 ms.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{Namespace, User};
use rustix::time::{ClockId, clock_gettime};

use crate::report::{quantile, table};
use crate::route::Route;
use crate::subject::{END, GATE};

/// Lines before the gate, not measured.
const WARM: usize = 10;
/// Lines after the gate, not measured: about 1.5 s, in which the command that opens the gate ends. It is a `kubectl exec`,
/// and it holds a processor for up to 150 ms.
const SETTLE: usize = 100;
const PAUSE_MICROS: u64 = 15_000;

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, lines: usize) -> Result<String> {
    let admin = namespace.admin()?;
    let mut samples: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        for (route, samples) in Route::ALL.into_iter().zip(&mut samples) {
            let turn = take_turn(namespace, &admin, route, round, lines)?;
            eprintln!(
                "{}: p50 {:.2} ms, p99 {:.2} ms",
                route.name(),
                quantile(&turn, 0.5),
                quantile(&turn, 0.99)
            );
            samples.extend(turn);
        }
    }
    Ok(describe(&samples, rounds, lines))
}

/// Milliseconds of each line.
fn take_turn(namespace: &Namespace, admin: &User, route: Route, round: usize, lines: usize) -> Result<Vec<f64>> {
    let name = format!("latency-{round}-{}", route as usize);
    let (warm, bytes) = (WARM * 100, (SETTLE + lines) * 100);
    let writer = [
        format!("--warm={warm}"),
        format!("--bytes={bytes}"),
        format!("--pause={PAUSE_MICROS}"),
        format!("--gate={GATE}"),
        format!("--hold={END}"),
    ];
    let subject = route.subject(namespace, &name, &writer)?;
    let mut command = route.client(admin, &name, &writer)?.into_command();
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
    let arrivals = (|| {
        let mut reader = BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        for _ in 0..WARM {
            reader.read_line(&mut line)?;
        }
        ensure!(line.len() == warm, "the client has ended");
        subject.open_gate()?;
        for _ in 0..SETTLE {
            line.clear();
            reader.read_line(&mut line)?;
        }
        arrivals(reader, lines)
    })();
    child.kill()?;
    child.wait()?;
    subject.remove()?;
    arrivals
}

fn arrivals(mut reader: impl BufRead, lines: usize) -> Result<Vec<f64>> {
    let mut found = Vec::with_capacity(lines);
    let mut line = String::new();
    while found.len() < lines {
        line.clear();
        ensure!(
            reader.read_line(&mut line)? > 0,
            "the client ended after {} lines",
            found.len()
        );
        let now = clock_gettime(ClockId::Monotonic);
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let stamp: u64 = line.split(' ').next().unwrap_or_default().parse()?;
        found.push((now - stamp) as f64 / 1e6);
    }
    Ok(found)
}

fn describe(samples: &[Vec<f64>; 4], rounds: usize, lines: usize) -> String {
    let of_logs = |part: f64| quantile(&samples[2], part);
    let rows = samples.iter().zip(Route::ALL).map(|(samples, route)| {
        let mut row = vec![format!("`{}`", route.name())];
        for part in [0.5, 0.99] {
            let own = quantile(samples, part);
            row.extend([format!("{own:.2}"), format!("1/{:.1}", of_logs(part) / own)]);
        }
        row.push(format!("{:.2}", quantile(samples, 1.0)));
        row
    });
    let header = [
        "follower",
        "p50, ms",
        "to kubectl logs",
        "p99, ms",
        "to kubectl logs",
        "longest, ms",
    ];
    format!(
        "## Latency of a line\n\nFrom its write(2) to its arrival at the reader of the client's output; a line every 10 \
         to 20 ms, {rounds} × {lines} lines each.\n\n{}",
        table(&header, &rows.collect::<Vec<_>>())
    )
}
