//! The operator with thousands of objects: its memory, its restart, and how fast pods follow, beside the Job controller.
//!
//! *Finished* objects have a final status, which the administrator writes. *Live* ones have a pod on the [`FakeNode`] whose
//! status says that its containers run, and an attempt that was granted and started; no program and no agent runs.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use remoteprocess_e2e::{
    Namespace, Pid, anonymous_memory, kubectl, operator_pods, operators, scale_operator, until, until_some,
};
use serde_json::json;

mod cleaner;
mod finished;
mod live;
mod node;
mod pods;
mod rate;
mod workers;

pub(crate) use cleaner::clean;

use crate::contender::{CONTENDERS, Contender};
use crate::cpu::{Snapshot, age};
use crate::proxy::Proxy;
use crate::report::{load, median, quantile, table};
use cleaner::Cleaner;
use node::FakeNode;
use pods::Arrivals;
use rate::{Run, at_full_speed, at_rate};
use workers::in_parallel;

/// Label of all that is created here; its value says for what.
const LABEL: &str = "bench";
/// How long to wait for a pod, or for many.
const DEADLINE: Duration = Duration::from_secs(300);

/// Sizes.
#[derive(Args)]
pub(crate) struct ScaleArgs {
    /// Processes with a final status
    #[arg(long, default_value_t = 10_000)]
    finished: usize,
    /// Processes with a pod that runs
    #[arg(long, default_value_t = 1000)]
    live: usize,
    /// Objects created in each second
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// Objects of one round at that rate, and of one at full speed
    #[arg(long, default_value_t = 300)]
    created: usize,
}

/// One restart of the operator, in seconds.
struct Restart {
    /// From the deletion of its pod to the pod of an object that was created meanwhile.
    whole: f64,
    /// The part of it since the new program was started.
    of_new: f64,
}

/// The operator at one moment.
struct State {
    what: String,
    /// Anonymous memory, bytes.
    memory: u64,
    restart: Option<Restart>,
}

/// The rounds of one contender.
#[derive(Default)]
struct Rounds {
    latencies: Vec<f64>,
    speeds: Vec<f64>,
    cpu: [Vec<f64>; PROGRAMS.len()],
}

/// The programs whose CPU time has a column.
const PROGRAMS: [&str; 4] = ["kube-apiserver", "etcd", "operator", "kube-controller-manager"];

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, args: &ScaleArgs) -> Result<String> {
    let (proxy, load) = (Proxy::start()?, load()?);
    let cleaner = Cleaner::start(namespace, operator_pods()?.len())?;
    let node = FakeNode::start(&proxy)?;
    let bench = Bench {
        namespace,
        proxy: &proxy,
    };
    let mut states = vec![bench.state("no objects", true)?];
    bench.fill(args)?;
    let all = format!("{} finished, {} live", args.finished, args.live);
    states.push(bench.state(&all, false)?);
    states.push(bench.state(&format!("{all}, restarted"), true)?);
    let mut turns: [Rounds; 2] = Default::default();
    for _ in 0..rounds {
        for (contender, turn) in contenders().zip(&mut turns) {
            bench.round(contender, args, turn)?;
        }
    }
    states.push(bench.state(&format!("{all}, after {rounds} rounds"), false)?);
    drop(node);
    cleaner.finish()?;
    Ok(describe(args, rounds, &load, &states, &turns))
}

/// Ours and the Job controller.
fn contenders() -> impl Iterator<Item = &'static Contender> {
    CONTENDERS.iter().filter(|contender| contender.kind != "pod")
}

/// Where it happens.
struct Bench<'a> {
    namespace: &'a Namespace,
    proxy: &'a Proxy,
}

impl Bench<'_> {
    /// All objects. The operator is away while those are written that it must not start.
    fn fill(&self, args: &ScaleArgs) -> Result<()> {
        let replicas = operator_pods()?.len();
        scale_operator(0)?;
        let begin = Instant::now();
        in_parallel(args.finished, |number| {
            finished::create(self.proxy, &self.namespace.name, number)
        })?;
        eprintln!(
            "{} finished after {:.1} s",
            args.finished,
            begin.elapsed().as_secs_f64()
        );
        scale_operator(replicas)?;
        let begin = Instant::now();
        let arrivals = Arrivals::watch(self.proxy, &self.namespace.name, "live")?;
        let ours = &CONTENDERS[0];
        in_parallel(args.live, |number| self.create(ours, &format!("live-{number}"), "live"))?;
        arrivals.wait_for(args.live, DEADLINE)?;
        live::report_running(self.proxy, &self.namespace.name, "live", args.live)?;
        live::report_started(self.proxy, &self.namespace.name, "live", args.live)?;
        eprintln!("{} live after {:.1} s", args.live, begin.elapsed().as_secs_f64());
        Ok(())
    }

    /// Creates an object whose pod belongs onto the fake node.
    fn create(&self, contender: &Contender, name: &str, purpose: &str) -> Result<()> {
        let mut object = contender.object(name);
        let labels = json!({LABEL: purpose});
        object["metadata"]["labels"] = labels.clone();
        let pod = match contender.kind {
            "remoteprocess" => {
                object["spec"]["pod"]["labels"] = labels;
                &mut object["spec"]["pod"]
            }
            _ => {
                object["spec"]["template"]["metadata"]["labels"] = labels;
                &mut object["spec"]["template"]["spec"]
            }
        };
        node::aim(pod);
        self.proxy.create(&contender.path(self.namespace), &object)
    }

    /// The operator's memory as soon as it is steady, and a restart.
    fn state(&self, what: &str, restarts: bool) -> Result<State> {
        let restart = restarts.then(|| self.restart()).transpose()?;
        let state = State {
            what: what.to_owned(),
            memory: steady_memory()?,
            restart,
        };
        eprintln!("{what}: {:.1} MiB anonymous", mebibytes(state.memory));
        Ok(state)
    }

    /// Deletes the operator's pods as `kubectl delete` does, and creates an object once their programs have ended.
    fn restart(&self) -> Result<Restart> {
        let arrivals = Arrivals::watch(self.proxy, &self.namespace.name, "restart")?;
        let (pods, programs) = (operator_pods()?, operators()?);
        let begin = Instant::now();
        let delete = [
            "delete",
            "pods",
            "--wait=false",
            "--namespace",
            remoteprocess_e2e::RELEASE_NAMESPACE,
        ];
        kubectl(delete).args(&pods).succeed()?;
        let runs = |id: &Pid| Path::new("/proc").join(id.as_raw_nonzero().to_string()).exists();
        until("the end of the operator", DEADLINE, || Ok(!programs.iter().any(runs)))?;
        let name = "restart";
        self.create(&CONTENDERS[0], name, name)?;
        let seen = arrivals
            .wait_for(1, DEADLINE)?
            .remove(name)
            .context("a pod of another object")?;
        let since_seen = seen.elapsed();
        let new = until_some("the new operator", DEADLINE, || Ok(operators()?.pop()))?;
        let age = age(new).context("the new operator has ended")?;
        drop(arrivals);
        self.remove(name)?;
        let restart = Restart {
            whole: (seen - begin).as_secs_f64(),
            of_new: age - since_seen.as_secs_f64(),
        };
        eprintln!(
            "restart: pod after {:.2} s, {:.2} s of the new program",
            restart.whole, restart.of_new
        );
        Ok(restart)
    }

    /// One round at the rate and one at full speed.
    fn round(&self, contender: &Contender, args: &ScaleArgs, rounds: &mut Rounds) -> Result<()> {
        let create = |name: &str| self.create(contender, name, "round");
        let arrivals = || Arrivals::watch(self.proxy, &self.namespace.name, "round");
        let run: Run = at_rate(args.created, args.rate, arrivals()?, create)?;
        self.remove("round")?;
        rounds.latencies.extend(&run.latencies);
        let mut programs = PROGRAMS.map(|_| 0.0);
        let before = Snapshot::of(&PROGRAMS);
        let run: Run = at_full_speed(args.created, arrivals()?, create)?;
        let used = before.until_by_name(&Snapshot::of(&PROGRAMS));
        for (program, seconds) in PROGRAMS.iter().zip(&mut programs) {
            *seconds = used.get(*program).copied().unwrap_or_default();
        }
        self.remove("round")?;
        let speed = args.created as f64 / run.seconds;
        eprintln!("{}: {speed:.1} pods per second", contender.name);
        rounds.speeds.push(speed);
        for (seconds, all) in programs.iter().zip(&mut rounds.cpu) {
            all.push(seconds * 100.0 / args.created as f64);
        }
        Ok(())
    }

    /// Removes what was created for this purpose; returns when nothing is left of it.
    fn remove(&self, purpose: &str) -> Result<()> {
        let selector = format!("{LABEL}={purpose}");
        cleaner::remove(self.proxy, &self.namespace.name, &selector)?;
        // The garbage collector and the operator hear of it later.
        sleep(Duration::from_secs(3));
        Ok(())
    }
}

/// The anonymous memory of the operator that uses most, once two looks with a pause between them agree.
fn steady_memory() -> Result<u64> {
    const PAUSE: Duration = Duration::from_secs(5);
    let mut last = 0;
    until_some("steady memory", DEADLINE, || {
        sleep(PAUSE);
        let sizes = operators()?.into_iter().map(anonymous_memory);
        let now = sizes.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or_default();
        let is_steady = now > 0 && now.abs_diff(last) < now / 50;
        last = now;
        Ok(is_steady.then_some(now))
    })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn describe(args: &ScaleArgs, rounds: usize, load: &str, states: &[State], turns: &[Rounds; 2]) -> String {
    let seconds = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
    let memory = states.iter().map(|state| {
        let restart = state.restart.as_ref();
        vec![
            state.what.clone(),
            format!("{:.1}", mebibytes(state.memory)),
            seconds(restart.map(|restart| restart.whole)),
            seconds(restart.map(|restart| restart.of_new)),
        ]
    });
    let pods = contenders().zip(turns).map(|(contender, turn)| {
        let latency = |part| format!("{:.0}", quantile(&turn.latencies, part) * 1e3);
        let mut row = vec![contender.name.to_owned(), latency(0.5), latency(0.99), latency(1.0)];
        row.push(format!("{:.1}", median(&turn.speeds)));
        row.extend(turn.cpu.iter().map(|seconds| format!("{:.2}", median(seconds))));
        row
    });
    let latency = format!("create → pod at {}/s: p50, ms", args.rate);
    let mut header = vec![
        "",
        latency.as_str(),
        "p99, ms",
        "longest, ms",
        "pods per second at full speed",
    ];
    let cpu = PROGRAMS.map(|program| format!("{program}, CPU s per 100 pods"));
    header.extend(cpu.iter().map(String::as_str));
    format!(
        "## {} finished and {} live processes\n\nA finished process has a final status; a live one is Running and has a pod on a fake node, \
         without an agent. Anonymous memory of the operator's process. The restart begins with the deletion of the operator's pod and ends with the pod of \
         a process that was created meanwhile. Load average {load} before.\n\n{}\nWith all of these, {rounds} rounds in turn of {} objects at \
         {}/s and as many at full speed, whose pods go to the fake node too; from the request to the event of a watch.\n\n{}",
        args.finished,
        args.live,
        table(
            &[
                "",
                "memory, MiB",
                "restart → pod, s",
                "of these since the new program began"
            ],
            &memory.collect::<Vec<_>>()
        ),
        args.created,
        args.rate,
        table(&header, &pods.collect::<Vec<_>>())
    )
}
