//! An agent that hangs.

use std::time::{Duration, Instant};

use anyhow::ensure;
use remoteprocess_e2e::{agent_of, is_development_cluster, signal, until, with_temp_ns};
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn a_stopped_agent_does_not_hold_the_end_back() {
    if !is_development_cluster("stopping the agent by SIGSTOP") {
        return;
    }
    with_temp_ns("agent-stopped", |namespace| {
        let script = "echo ready; while [ ! -f /tmp/go ]; do sleep 0.05; done; echo last words; exit 8";
        let mut run = namespace.editor.run("program", script).start()?;
        run.wait_for_bytes(6)?;
        let agent = agent_of(&namespace.pod_uid("program")?, None)?;
        signal(agent, Signal::STOP)?;
        namespace.in_container("program", "touch /tmp/go")?;
        let begin = Instant::now();
        until("a terminated container", Duration::from_secs(20), || {
            let pod = namespace.pod("program")?;
            Ok(!main_container(&pod)["state"]["terminated"].is_null())
        })?;
        let took = begin.elapsed();
        signal(agent, Signal::CONT)?;
        ensure!(took < Duration::from_secs(3), "the API showed the end after {took:?}");
        ensure!(main_container(&namespace.pod("program")?)["state"]["terminated"]["exitCode"] == 8);
        let finished = run.finish()?;
        ensure!(finished.expect_code(8)?.out() == "ready\nlast words\n", "{finished}");
        Ok(())
    });
}

fn main_container(pod: &Value) -> &Value {
    let containers = pod["status"]["containerStatuses"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    containers
        .iter()
        .find(|container| container["name"] == "main")
        .unwrap_or(&Value::Null)
}
