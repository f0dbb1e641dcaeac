//! From create to the first output, and from create to the finished status.

use std::time::{Duration, Instant};

use anyhow::Result;
use remoteprocess_e2e::{BUSYBOX, Namespace, User, until};
use serde_json::{Value, json};

use crate::report::{median, table};

/// One contender: how it is created, read and awaited.
struct Contender {
    name: &'static str,
    kind: &'static str,
    wait: &'static str,
}

const CONTENDERS: [Contender; 3] = [
    Contender {
        name: "RemoteProcess",
        kind: "remoteprocess",
        wait: "--for=condition=Finished",
    },
    Contender {
        name: "bare pod",
        kind: "pod",
        wait: "--for=jsonpath={.status.phase}=Succeeded",
    },
    Contender {
        name: "Job",
        kind: "job",
        wait: "--for=condition=Complete",
    },
];

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize) -> Result<String> {
    let admin = namespace.admin()?;
    let mut outputs: [Vec<f64>; 3] = Default::default();
    let mut ends: [Vec<f64>; 3] = Default::default();
    // The first round warms up: certificates, caches, images.
    for round in 0..=rounds {
        for (number, contender) in CONTENDERS.iter().enumerate() {
            let output = first_output(namespace, &admin, contender, &format!("out-{round}-{number}"))?;
            let end = finished(namespace, contender, &format!("end-{round}-{number}"))?;
            eprintln!("{}: first output {output:.3} s, finished {end:.3} s", contender.name);
            if round > 0 {
                outputs[number].push(output);
                ends[number].push(end);
            }
        }
    }
    Ok(describe(&outputs, &ends))
}

fn first_output(namespace: &Namespace, admin: &User, contender: &Contender, name: &str) -> Result<f64> {
    let begin = Instant::now();
    create(namespace, contender, name)?;
    if contender.kind == "remoteprocess" {
        let mut logs = admin.rproc(&["logs", "-f", name]).start()?;
        logs.wait_for_bytes(1)?;
    } else {
        // It answers with an error until the container runs.
        let target = format!("{}/{name}", contender.kind);
        until("output", Duration::from_secs(60), || {
            Ok(!admin.kubectl(&["logs", "-f", &target]).finish()?.stdout.is_empty())
        })?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    remove(namespace, contender, name)?;
    Ok(seconds)
}

fn finished(namespace: &Namespace, contender: &Contender, name: &str) -> Result<f64> {
    let begin = Instant::now();
    create(namespace, contender, name)?;
    namespace
        .kubectl(&["wait", contender.kind, name, contender.wait, "--timeout=60s"])
        .succeed()?;
    let seconds = begin.elapsed().as_secs_f64();
    remove(namespace, contender, name)?;
    Ok(seconds)
}

fn create(namespace: &Namespace, contender: &Contender, name: &str) -> Result<()> {
    let object = object(contender.kind, name).to_string();
    namespace
        .kubectl(&["create", "--validate=false", "--filename=-"])
        .input(object)
        .succeed()?;
    Ok(())
}

fn remove(namespace: &Namespace, contender: &Contender, name: &str) -> Result<()> {
    namespace
        .kubectl(&["delete", contender.kind, name, "--wait=true"])
        .succeed()?;
    Ok(())
}

fn object(kind: &str, name: &str) -> Value {
    let container = json!({"image": BUSYBOX, "imagePullPolicy": "IfNotPresent", "command": ["echo", "hello"]});
    let mut named = container.clone();
    named["name"] = json!("main");
    let pod = json!({"restartPolicy": "Never", "containers": [named]});
    let (version, kind, spec) = match kind {
        "remoteprocess" => ("remoteprocess.dev/v1alpha1", "RemoteProcess", container),
        "pod" => ("v1", "Pod", pod),
        _ => ("batch/v1", "Job", json!({"template": {"spec": pod}, "backoffLimit": 0})),
    };
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn describe(outputs: &[Vec<f64>; 3], ends: &[Vec<f64>; 3]) -> String {
    let (own_output, own_end) = (median(&outputs[0]), median(&ends[0]));
    let rows = CONTENDERS
        .iter()
        .zip(outputs.iter().zip(ends))
        .map(|(contender, (outputs, ends))| {
            vec![
                contender.name.to_owned(),
                format!("{:.2}", median(outputs)),
                format!("{:.2}×", median(outputs) / own_output),
                format!("{:.2}", median(ends)),
                format!("{:.2}×", median(ends) / own_end),
            ]
        });
    let header = [
        "",
        "create → first output, s",
        "to ours",
        "create → finished status, s",
        "to ours",
    ];
    format!(
        "## A program that prints one line\n\nBy kubectl create; output by `rproc logs -f` and by `kubectl logs -f`, asked \
         again until it answers; the status by `kubectl wait`. The seconds include the start of those programs.\n\n{}",
        table(&header, &rows.collect::<Vec<_>>())
    )
}
