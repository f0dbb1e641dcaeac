//! From nothing to a process with visible output.

use std::thread;

use anyhow::{Context, Result};

use crate::steps::{say, step};
use crate::target::{Target, TargetArgs};
use crate::{cluster, exec, images, install, paths};

/// Runs the demonstration and prints what to type next.
pub(crate) fn demo(args: &TargetArgs) -> Result<()> {
    say(announcement(&missing(Target::is_named(args)?)?, processors()));
    let target = Target::resolve(args)?;
    let installation = install::install(&target)?;
    let rproc = installation.images.programs.path("rproc");
    let example = paths::repository().join("examples/hello.yaml");
    step("kubectl apply -f examples/hello.yaml", || {
        // A finished process never runs again, so the one of an earlier demonstration is deleted first.
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
    say("\nNext:");
    if let Some(state) = &target.own {
        say(format_args!("  export KUBECONFIG={}", state.kubeconfig().display()));
    }
    install::say_where_rproc_is(&installation.images);
    say("  rproc run --image busybox:1.36 -- sh -c 'echo hello from $(hostname); exit 7'");
    say("  rproc ps; rproc describe hello");
    if target.own.is_some() {
        say("  cargo xtask cluster down    # when you are done");
    }
    Ok(())
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What must be built first, and the minutes that each part takes on two processors.
fn missing(is_own_cluster: bool) -> Result<Vec<(&'static str, u32)>> {
    let mut missing = if is_own_cluster {
        Vec::new()
    } else {
        cluster::missing()?
    };
    if !images::have_been_built()? {
        missing.push(("RemoteProcess", 8));
    }
    Ok(missing)
}

/// How long it will take and why.
fn announcement(missing: &[(&str, u32)], processors: usize) -> String {
    if missing.is_empty() {
        return "This takes a few seconds, or some minutes where programs have changed and are built again.".to_owned();
    }
    let minutes: u32 = missing.iter().map(|(_, minutes)| minutes).sum();
    let mut text = format!(
        "This takes about {minutes} minutes on 2 processors (you have {processors}), because everything is built from \
         source:\n"
    );
    for (name, minutes) in missing {
        text += &format!("{minutes:5} min  {name}\n");
    }
    text + "It is built once: `cargo xtask demo` takes seconds when you run it again."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_says_how_long_it_takes_and_why() {
        let text = announcement(&[("Kubernetes", 6), ("RemoteProcess", 8)], 4);
        assert!(
            text.starts_with("This takes about 14 minutes on 2 processors (you have 4), because"),
            "{text}"
        );
        assert!(text.contains("    6 min  Kubernetes\n"), "{text}");
        assert!(announcement(&[], 4).starts_with("This takes a few seconds"));
    }
}
