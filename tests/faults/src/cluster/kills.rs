//! The operator and the agent are killed repeatedly while a program writes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use remoteprocess_e2e::{
    Pid, agents_of, delete_operator_pods, operator_is_ready, operators, signal, until_some, wait_for_operator,
};
use rustix::process::Signal;

use super::steady::{self, steady};
use super::{let_pass, relay, scenario};

/// The program must not notice: no write may fail or take longer than a busy machine takes to restart an agent. The
/// pipe alone holds two thirds of a second of this program's output.
const STALL: Duration = Duration::from_secs(3);

/// SIGKILL to the operator and to the agent, 5 times each in 45 s, or 50 times each in 10 minutes.
///
/// # Errors
/// When a byte is missing or duplicated, or the program noticed.
pub fn kills(long: bool) -> Result<()> {
    let (times, length) = if long { (50, 600) } else { (5, 45) };
    scenario("kills", |namespace| {
        let run = steady(namespace, &relay()?.to_string());
        let mut run = run.within(Duration::from_secs(length * 4 + 120)).start()?;
        run.wait_for_bytes(1000)?;
        let uid = namespace.pod(steady::NAME)?["metadata"]["uid"]
            .as_str()
            .context("a uid")?
            .to_owned();
        let begin = Instant::now();
        let step = Duration::from_secs(length) / (2 * times + 1);
        let mut last_agent = None;
        for kill in 0..times {
            let_pass((step * (2 * kill + 1)).saturating_sub(begin.elapsed()));
            last_agent = Some(kill_agent(&uid, last_agent)?);
            let_pass((step * (2 * kill + 2)).saturating_sub(begin.elapsed()));
            kill_operator()?;
        }
        let took = begin.elapsed();
        wait_for_operator()?;
        let noticed = steady::finish(namespace, run)?;
        ensure!(
            noticed.errors == 0 && noticed.longest < STALL,
            "the program noticed: {} errors, a write of {:?}",
            noticed.errors,
            noticed.longest
        );
        Ok(format!(
            "operator and agent killed {times} times each within {:.0} s; {} bytes, none missing or doubled; the program's \
             longest write took {:?}",
            took.as_secs_f64(),
            noticed.bytes,
            noticed.longest
        ))
    })
}

fn kill_agent(pod_uid: &str, but: Option<Pid>) -> Result<Pid> {
    let agent = until_some("the agent's process", Duration::from_secs(30), || {
        Ok(agents_of(pod_uid)?.into_iter().find(|pid| Some(*pid) != but))
    })?;
    signal(agent, Signal::KILL)?;
    Ok(agent)
}

/// Deletes the pod of the operator: the kubelet would wait longer before each restart of the same one.
fn kill_operator() -> Result<()> {
    if !operator_is_ready()? {
        // On a slow machine: a kill without a running operator would prove nothing.
        wait_for_operator()?;
    }
    for pid in operators()? {
        signal(pid, Signal::KILL)?;
    }
    delete_operator_pods()
}
