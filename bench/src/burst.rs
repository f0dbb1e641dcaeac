//! Many at once: until all have ended, and what that costs each component and the API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use remoteprocess_e2e::{Namespace, kubectl, until};

use crate::contender::{CONTENDERS, Contender};
use crate::cpu::Snapshot;
use crate::proxy::Proxy;
use crate::report::{load, median, table};

/// The components whose CPU time has a column.
const COMPONENTS: [&str; 5] = ["kube-apiserver", "etcd", "kubelet", "containerd", "operator"];

/// One burst of one contender.
struct Burst {
    seconds: f64,
    /// CPU seconds by component, as in [`COMPONENTS`].
    cpu: Vec<f64>,
    writes: Writes,
}

/// Writes that the API server has answered.
#[derive(Clone, Copy, Default)]
struct Writes {
    /// Of the status of the contender's own objects.
    status: u64,
    /// Those of them that met another write (409) or were given up (504).
    in_vain: u64,
    /// Events of all components.
    events: u64,
}

impl Writes {
    fn now(contender: &Contender) -> Result<Self> {
        let mut writes = Self::default();
        let metrics = kubectl(["get", "--raw=/metrics"]).succeed()?;
        let resource = format!("resource=\"{}\"", contender.resource());
        for line in metrics
            .lines()
            .filter(|line| line.starts_with("apiserver_request_total{"))
        {
            let count: u64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
            let has = |label: &str| line.contains(label);
            if ["GET", "LIST", "WATCH"]
                .iter()
                .any(|verb| has(&format!("verb=\"{verb}\"")))
            {
                continue;
            }
            if has(&resource) && has("subresource=\"status\"") {
                writes.status += count;
                writes.in_vain += if has("code=\"2") { 0 } else { count };
            } else if has("resource=\"events\"") {
                writes.events += count;
            }
        }
        Ok(writes)
    }

    fn since(self, before: Self) -> Self {
        Self {
            status: self.status - before.status,
            in_vain: self.in_vain - before.in_vain,
            events: self.events - before.events,
        }
    }
}

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize, size: usize) -> Result<String> {
    let (proxy, load) = (Proxy::start()?, load()?);
    let mut bursts: [Vec<Burst>; 3] = Default::default();
    for _ in 0..rounds {
        for (contender, bursts) in CONTENDERS.iter().zip(&mut bursts) {
            let burst = run(namespace, &proxy, contender, size)?;
            eprintln!("{}: {size} after {:.2} s", contender.name, burst.seconds);
            bursts.push(burst);
        }
    }
    Ok(describe(&bursts, size, &load))
}

fn run(namespace: &Namespace, proxy: &Proxy, contender: &Contender, size: usize) -> Result<Burst> {
    let (cpu, writes) = (Snapshot::take(&[]), Writes::now(contender)?);
    let begin = Instant::now();
    for number in 0..size {
        let object = contender.object(&format!("burst-{number}"));
        proxy.create(&contender.path(namespace), &object)?;
    }
    until("the end of all", Duration::from_secs(300), || {
        Ok(contender.ended(namespace, proxy)? == size)
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    // Events and the last writes follow.
    std::thread::sleep(Duration::from_secs(2));
    let by_name: BTreeMap<String, f64> = cpu.until_by_name(&Snapshot::take(&[]));
    let cpu = COMPONENTS.map(|name| by_name.get(name).copied().unwrap_or_default());
    let writes = Writes::now(contender)?.since(writes);
    contender.remove_all(namespace)?;
    Ok(Burst {
        seconds,
        cpu: cpu.to_vec(),
        writes,
    })
}

fn describe(bursts: &[Vec<Burst>; 3], size: usize, load: &str) -> String {
    let middle = |bursts: &[Burst], value: &dyn Fn(&Burst) -> f64| {
        let values: Vec<f64> = bursts.iter().map(value).collect();
        median(&values)
    };
    let bare = middle(&bursts[1], &|burst| burst.seconds);
    let rows = CONTENDERS.iter().zip(bursts).map(|(contender, bursts)| {
        let seconds = middle(bursts, &|burst| burst.seconds);
        let each = |count: u64| count as f64 / size as f64;
        let mut row = vec![
            contender.name.to_owned(),
            format!("{seconds:.1}"),
            format!("{:.2}×", seconds / bare),
        ];
        row.extend((0..COMPONENTS.len()).map(|index| format!("{:.1}", middle(bursts, &|burst| burst.cpu[index]))));
        row.push(format!("{:.1}", middle(bursts, &|burst| each(burst.writes.status))));
        row.push(format!("{:.2}", middle(bursts, &|burst| each(burst.writes.in_vain))));
        row.push(format!("{:.1}", middle(bursts, &|burst| each(burst.writes.events))));
        row
    });
    let mut header = vec!["", "until all have ended, s", "to bare pods"];
    header.extend(COMPONENTS);
    header.extend(["status writes of one", "of these 409 or 504", "Events of one"]);
    format!(
        "## {size} at once\n\nCPU seconds of each component are from /proc, writes from the metrics of the API server; `status writes` are those of the \
         contender's own objects. Medians of {} bursts of each in turn; load average {load} before.\n\n{}",
        bursts[0].len(),
        table(&header, &rows.collect::<Vec<_>>())
    )
}
