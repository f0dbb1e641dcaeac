//! From nothing to a streamed process.

use anyhow::{Context, Result};

use crate::steps::step;
use crate::target::{Target, TargetArgs};
use crate::{exec, install, paths};

/// Runs the demonstration and says what to type next.
pub fn demo(args: &TargetArgs) -> Result<()> {
    let target = Target::resolve(args)?;
    let installation = install::install(&target)?;
    let rproc = installation.images.programs.path("rproc");
    let example = paths::repository().join("examples/hello.yaml");
    step("kubectl apply -f examples/hello.yaml", || {
        // A finished process is never run again, so the one of an earlier demonstration goes first.
        let mut delete = target.kubectl();
        exec::output(
            delete
                .args(["delete", "--ignore-not-found", "--wait", "-n", "default", "-f"])
                .arg(&example),
        )?;
        let mut apply = target.kubectl();
        exec::output(apply.args(["apply", "-n", "default", "-f"]).arg(&example)).map(drop)
    })?;
    step("rproc logs --follow hello", || {
        let mut logs = target.command(&rproc);
        exec::run(logs.args([
            "logs",
            "--follow",
            "hello",
            "-n",
            "default",
            "--context",
            &target.context,
        ]))
    })?;
    step("kubectl get remoteprocess hello", || {
        let mut wait = target.kubectl();
        wait.args([
            "wait",
            "--for=condition=Finished",
            "--timeout=30s",
            "-n",
            "default",
            "remoteprocess/hello",
        ]);
        exec::output(&mut wait).context("the finished status did not arrive")?;
        let mut get = target.kubectl();
        exec::run(get.args(["get", "remoteprocess", "hello", "-n", "default", "-o", "wide"]))
    })?;
    println!("\nNext:");
    if let Some(state) = &target.own {
        println!("  export KUBECONFIG={}", state.kubeconfig().display());
    }
    println!("  export PATH={}:$PATH", rproc.parent().unwrap_or(&rproc).display());
    println!("  rproc run --image busybox:1.36 -- sh -c 'echo hello from $(hostname); exit 7'");
    println!("  rproc ps; rproc describe hello");
    if target.own.is_some() {
        println!("  cargo xtask cluster down    # when you are done");
    }
    Ok(())
}
