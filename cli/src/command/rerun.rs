//! `rproc rerun`: runs a process again.

use kube::ResourceExt;
use kube::api::ObjectMeta;
use kube::core::{DynamicObject, TypeMeta};
use remoteprocess_api::{RemoteProcess, names};
use serde_json::json;

use super::follow::Signals;
use super::launch::{self, DryRun, Plan, ViewArgs};
use super::selection;
use crate::args::{GlobalArgs, process_name};
use crate::failure::Failure;

/// Flags of `rerun`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct RerunArgs {
    /// Name of the process to run again
    #[arg(value_parser = process_name)]
    pub name: String,
    /// Name of the new process; default: generated from the old name
    #[arg(long, value_name = "NAME", value_parser = process_name, conflicts_with = "replace")]
    pub new_name: Option<String>,
    /// Delete the old process and reuse its name
    #[arg(long)]
    pub replace: bool,
    /// How it is followed.
    #[command(flatten)]
    pub view: ViewArgs,
}

const EXAMPLES: &str = "Examples:
  # Run it again under a new name
  rproc rerun build

  # Replace the old process
  rproc rerun build --replace

A process runs once: rerun creates a new one with the same spec, labels and
annotations.";

/// Prefix of annotations that tools write for themselves.
const OF_TOOLS: &str = "kubectl.kubernetes.io/";

/// Creates a process with the spec of another, follows it, and returns its code.
pub async fn run(global: &GlobalArgs, args: RerunArgs) -> Result<u8, Failure> {
    launch::recorded(global, &args.view, "", start(global, &args)).await
}

async fn start(global: &GlobalArgs, args: &RerunArgs) -> Result<u8, Failure> {
    launch::check(&args.view, DryRun::None)?;
    let signals = Signals::listen()?;
    let cluster = global.open().await?;
    let old = selection::get(&cluster, &args.name).await?;
    if args.replace && !old.is_final() {
        return Err(Failure::new(format!(
            "{0} has not ended, and --replace would end it. To end it: rproc stop {0}",
            args.name
        )));
    }
    let mut object = again(&old, args)?;
    launch::at_terminal(&mut object, &args.view);
    let plan = Plan {
        object,
        dry_run: DryRun::None,
        replace: args.replace,
        is_named: args.replace || args.new_name.is_some(),
    };
    launch::launch(cluster, &args.view, plan, signals).await
}

/// The object for the new run.
fn again(old: &RemoteProcess, args: &RerunArgs) -> Result<DynamicObject, Failure> {
    let mut spec = serde_json::to_value(&old.spec).map_err(|error| Failure::new(error.to_string()))?;
    if let Some(spec) = spec.as_object_mut() {
        // The desired state of the old one: Stopped would keep the new one from starting.
        spec.remove("desiredState");
        let given = [("stdin", args.view.stdin), ("tty", args.view.tty)];
        spec.extend(
            given
                .into_iter()
                .filter(|(_, is_given)| *is_given)
                .map(|(field, _)| (field.to_owned(), json!(true))),
        );
    }
    let is_ours = |name: &str| name.starts_with(names::GROUP) || name.starts_with(OF_TOOLS);
    let annotations = old
        .annotations()
        .clone()
        .into_iter()
        .filter(|(name, _)| !is_ours(name))
        .collect();
    let name = match args.replace {
        true => Some(args.name.clone()),
        false => args.new_name.clone(),
    };
    let metadata = ObjectMeta {
        generate_name: name.is_none().then(|| prefix(&args.name)),
        name,
        labels: Some(old.labels().clone()).filter(|labels| !labels.is_empty()),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    Ok(DynamicObject {
        types: Some(TypeMeta::resource::<RemoteProcess>()),
        metadata,
        data: json!({"spec": spec}),
    })
}

/// `build-` for `build`. The API server adds five characters, and the length of a process's name is limited.
fn prefix(name: &str) -> String {
    let room = names::MAX_NAME - 6;
    let name = &name[..name.len().min(room)];
    format!("{}-", name.trim_end_matches(['-', '.']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        args: RerunArgs,
    }

    #[test]
    fn the_same_specification_runs_again_and_nothing_of_the_old_run() {
        let old: RemoteProcess = serde_json::from_value(json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {"name": "build", "uid": "u", "resourceVersion": "7", "labels": {"app": "x"}, "annotations": {
                "remoteprocess.dev/reason": "enough", "kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
            "spec": {"image": "i", "command": ["x", "$$(A)"], "desiredState": "Stopped", "deadlines": {"runSeconds": 5}},
            "status": {"phase": "Failed"},
        }))
        .unwrap();
        let of = |words: &[&str]| {
            let args = Only::try_parse_from([&["rerun", "build"], words].concat())
                .unwrap()
                .args;
            serde_json::to_value(again(&old, &args).unwrap()).unwrap()
        };
        assert_eq!(
            of(&[]),
            json!({
                "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
                "metadata": {"generateName": "build-", "labels": {"app": "x"}, "annotations": {"a": "b"}},
                "spec": {"image": "i", "command": ["x", "$$(A)"], "deadlines": {"runSeconds": 5}},
            })
        );
        assert_eq!(of(&["--replace"])["metadata"]["name"], "build");
        assert_eq!(of(&["--new-name", "other", "-i"])["spec"]["stdin"], true);
        assert_eq!(prefix(&format!("{}-x", "a".repeat(45))), format!("{}-", "a".repeat(45)));
    }
}
