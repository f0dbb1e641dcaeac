//! From flags to the object.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;
use remoteprocess_api::spec::{DeadlinesSpec, RetriesSpec};
use remoteprocess_api::{OutputSpec, RemoteProcess, RemoteProcessSpec};

use super::RunArgs;

/// The object that the flags describe. `variable` looks up an environment variable of ours.
pub(super) fn build(args: &RunArgs, variable: impl Fn(&str) -> Option<String>) -> Result<RemoteProcess, String> {
    let env = args
        .env
        .iter()
        .map(|env| env_var(env, &variable))
        .collect::<Result<Vec<_>, _>>()?;
    let pairs = args.labels.iter().map(|label| match label.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!("--labels {label}: expected NAME=VALUE")),
    });
    let labels = pairs.collect::<Result<BTreeMap<_, _>, _>>()?;
    let spec = RemoteProcessSpec {
        image: args.image.clone(),
        image_pull_policy: args.image_pull_policy.clone(),
        command: args.command.iter().map(|word| literal(word)).collect(),
        env,
        working_dir: args.workdir.clone(),
        deadlines: deadlines(args)?,
        retries: args.retries.map(|limit| RetriesSpec {
            limit: Some(limit),
            ..RetriesSpec::default()
        }),
        resources: resources(args),
        stdin: args.stdin.then_some(true),
        tty: args.tty.then_some(true),
        output: args.merge.then(|| OutputSpec {
            merge: Some(true),
            ..OutputSpec::default()
        }),
        ..RemoteProcessSpec::default()
    };
    let metadata = ObjectMeta {
        name: args.name.clone(),
        generate_name: args.name.is_none().then(|| format!("{}-", base_name(&args.image))),
        labels: (!labels.is_empty()).then_some(labels),
        ..ObjectMeta::default()
    };
    Ok(RemoteProcess {
        metadata,
        spec,
        status: None,
    })
}

fn deadlines(args: &RunArgs) -> Result<Option<DeadlinesSpec>, String> {
    let Some(deadline) = args.deadline else {
        return Ok(None);
    };
    let seconds = u32::try_from(deadline.as_secs()).ok().filter(|seconds| *seconds > 0);
    let run_seconds = seconds.ok_or("--deadline: expected at least one second, and no more than a year")?;
    Ok(Some(DeadlinesSpec {
        run_seconds: Some(run_seconds),
        ..DeadlinesSpec::default()
    }))
}

fn env_var(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<EnvVar, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (
            text,
            variable(text).ok_or_else(|| format!("--env {text}: it is not set here; give NAME=VALUE"))?,
        ),
    };
    if name.is_empty() {
        return Err(format!("--env {text}: the name is missing"));
    }
    Ok(EnvVar {
        name: name.to_owned(),
        value: Some(literal(&value)),
        value_from: None,
    })
}

/// An amount as Kubernetes takes it ("Quantity" in its API reference): a number and a unit.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 15] = [
        "", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi",
    ];
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let is_number = digits
        .parse::<f64>()
        .is_ok_and(|number| number.is_finite() && number >= 0.0);
    if is_number && (UNITS.contains(&&text[digits.len()..]) || &text[digits.len()..] == "Ei") {
        return Ok(text.to_owned());
    }
    Err("expected a number with a unit, like 500m, 2, 64Mi or 1.5Gi".to_owned())
}

/// `text` so that Kubernetes' expansion of `$(NAME)` and `$$` gives back `text`: what is typed is what runs.
fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        out.push(character);
        if character == '$' && matches!(characters.peek(), Some('$' | '(')) {
            out.push('$');
        }
    }
    out
}

fn resources(args: &RunArgs) -> Option<ResourceRequirements> {
    let quantity = |name: &str, text: &Option<String>| text.clone().map(|text| (name.to_owned(), Quantity(text)));
    let requests: BTreeMap<_, _> = quantity("cpu", &args.cpu)
        .into_iter()
        .chain(quantity("memory", &args.memory))
        .collect();
    let limits: BTreeMap<_, _> = quantity("memory", &args.memory).into_iter().collect();
    (!requests.is_empty()).then(|| ResourceRequirements {
        requests: Some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        ..ResourceRequirements::default()
    })
}

/// The image's last path element as the beginning of a DNS label: `ghcr.io/a/My_App:1@sha256:…` gives `my-app`.
fn base_name(image: &str) -> String {
    let last = image
        .split('@')
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let name = last.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let label: String = name
        .chars()
        .map(|c| {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                c
            } else {
                '-'
            }
        })
        .collect();
    let label = label.trim_matches('-');
    // Five characters and a dash follow.
    let label = label[..label.len().min(40)].trim_end_matches('-');
    if label.is_empty() {
        "process".to_owned()
    } else {
        label.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(words: &[&str]) -> RunArgs {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            args: RunArgs,
        }
        Only::try_parse_from([&["run"], words].concat()).unwrap().args
    }

    #[test]
    fn flags_become_fields() {
        let args = args(&[
            "job",
            "--image",
            "busybox:1.36",
            "--image-pull-policy",
            "Never",
            "-e",
            "A=b=c",
            "-e",
            "HERE",
            "--cpu",
            "500m",
            "--memory",
            "64Mi",
            "--labels",
            "x=y,z=",
            "--merge",
            "--deadline",
            "1h30m",
            "--retries",
            "2",
            "--workdir",
            "/tmp",
            "--",
            "sh",
            "-c",
            "true",
        ]);
        let object = build(&args, |name| (name == "HERE").then(|| "there".to_owned())).unwrap();
        insta::assert_snapshot!(serde_saphyr::to_string(&object).unwrap());
    }

    /// As `expansion.Expand` of Kubernetes, where no variable is known.
    fn expand(text: &str) -> String {
        let mut out = String::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            out.push(character);
            if character == '$' && characters.peek() == Some(&'$') {
                characters.next();
            }
        }
        out
    }

    #[test]
    fn a_dollar_is_a_dollar() {
        for text in [
            "$",
            "$$",
            "$$$",
            "$$$$x",
            "$(date)",
            "$$(date)",
            "$HOME ${A} a$b$",
            "kill -9 $$; echo $$",
        ] {
            let literal = literal(text);
            assert_eq!(expand(&literal), text);
            assert!(!literal.replace("$$", "").contains("$("), "{literal} would be expanded");
        }
        assert_eq!(literal("$HOME ${A}"), "$HOME ${A}");
    }

    #[test]
    fn amounts_have_units() {
        for text in ["2", "500m", "64Mi", "1.5Gi", "1Ei", "0"] {
            assert_eq!(quantity(text).as_deref(), Ok(text));
        }
        for text in ["", "Mi", "2xi", "-1", "inf", "NaN", "1 Gi"] {
            assert!(quantity(text).is_err(), "{text}");
        }
    }

    #[test]
    fn without_a_name_one_is_made_from_the_image() {
        let object = build(&args(&["--image", "ghcr.io/a/My_App:1.0@sha256:00", "--", "x"]), |_| {
            None
        })
        .unwrap();
        assert_eq!(object.metadata.generate_name.as_deref(), Some("my-app-"));
        assert_eq!(base_name("localhost:5000/__"), "process");
        assert_eq!(base_name(&"x".repeat(100)).len(), 40);
    }

    #[test]
    fn wrong_pairs_are_named() {
        for (words, name) in [
            (["-e", "NOWHERE"], "NOWHERE"),
            (["-e", "=x"], "=x"),
            (["-l", "only"], "only"),
        ] {
            let args = args(&[&words[..], &["--image", "i", "--", "x"]].concat());
            assert!(build(&args, |_| None).unwrap_err().contains(name));
        }
    }
}
