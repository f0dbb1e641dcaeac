//! Builds the object from flags.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EnvVar, ResourceRequirements, SecurityContext, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::ObjectMeta;
use kube::core::DynamicObject;
use remoteprocess_api::spec::{DeadlinesSpec, RetriesSpec, TtlSpec};
use remoteprocess_api::{Leftovers, OutputSpec, PodSpec, RemoteProcess, RemoteProcessSpec};

use super::flags::{LeftoversFlag, Mounted, Owner, RunArgs, SpecificationArgs};
use crate::failure::Failure;

/// Maximum size of a file with environment variables: an object has no room for more.
const MAX_ENV_FILE: u64 = 1 << 20;

/// The object that the flags describe. `variable` looks up an environment variable of ours.
pub(super) fn build(args: &RunArgs, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<DynamicObject, Failure> {
    let object = described(args, variable).map_err(Failure::new)?;
    let value = serde_json::to_value(object).and_then(serde_json::from_value);
    value.map_err(|error| Failure::new(error.to_string()))
}

fn described(args: &RunArgs, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<RemoteProcess, String> {
    let image = args.image.clone().unwrap_or_default();
    let said = &args.specification;
    let (volumes, volume_mounts) = mounted(&said.volume);
    let spec = RemoteProcessSpec {
        image: image.clone(),
        image_pull_policy: said.image_pull_policy.clone(),
        command: args.command.iter().map(|word| literal(word)).collect(),
        env: environment(said, variable)?,
        env_from: said.env_from.clone(),
        working_dir: said.workdir.clone(),
        deadlines: deadlines(said)?,
        ttl: said.ttl.map(ttl).transpose()?,
        leftovers: said.leftovers.map(|how| match how {
            LeftoversFlag::Kill => Leftovers::Kill,
            LeftoversFlag::Wait => Leftovers::Wait,
        }),
        retries: said.retries.map(|limit| RetriesSpec {
            limit: Some(limit),
            ..RetriesSpec::default()
        }),
        resources: resources(said),
        volume_mounts,
        security_context: said.user.map(|Owner { user, group }| SecurityContext {
            run_as_user: Some(user),
            run_as_group: group,
            ..SecurityContext::default()
        }),
        stdin: args.view.stdin.then_some(true),
        stdin_from: said.stdin_from.clone(),
        tty: args.view.tty.then_some(true),
        output: said.merge.then(|| OutputSpec {
            merge: Some(true),
            ..OutputSpec::default()
        }),
        pod: pod(said, volumes),
        ..RemoteProcessSpec::default()
    };
    let (labels, annotations) = (
        pairs("--labels", &said.labels)?,
        pairs("--annotation", &said.annotation)?,
    );
    let metadata = ObjectMeta {
        name: args.name.clone(),
        generate_name: args.name.is_none().then(|| format!("{}-", base_name(&image))),
        labels: (!labels.is_empty()).then_some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    };
    Ok(RemoteProcess {
        metadata,
        spec,
        status: None,
    })
}

fn pairs(flag: &str, given: &[String]) -> Result<BTreeMap<String, String>, String> {
    let pairs = given.iter().map(|pair| match pair.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{flag} {pair}: expected NAME=VALUE")),
    });
    pairs.collect()
}

fn deadlines(said: &SpecificationArgs) -> Result<Option<DeadlinesSpec>, String> {
    if said.deadline.is_none() && said.start_deadline.is_none() {
        return Ok(None);
    }
    let seconds = |flag: &str, given: Option<Duration>| {
        let seconds = given.map(|given| u32::try_from(given.as_secs()).ok().filter(|seconds| *seconds > 0));
        match seconds {
            Some(None) => Err(format!("{flag}: expected at least one second, and no more than a year")),
            known => Ok(known.flatten()),
        }
    };
    Ok(Some(DeadlinesSpec {
        run_seconds: seconds("--deadline", said.deadline)?,
        start_seconds: seconds("--start-deadline", said.start_deadline)?,
        ..DeadlinesSpec::default()
    }))
}

fn ttl(given: Duration) -> Result<TtlSpec, String> {
    let seconds = u32::try_from(given.as_secs()).map_err(|_| "--ttl: expected no more than a year".to_owned())?;
    Ok(TtlSpec {
        seconds_after_success: Some(seconds),
        seconds_after_failure: Some(seconds),
    })
}

fn pod(said: &SpecificationArgs, volumes: Vec<Volume>) -> Option<PodSpec> {
    let account = said.service_account.clone();
    (account.is_some() || !volumes.is_empty()).then(|| PodSpec {
        automount_service_account_token: account.is_some().then_some(true),
        service_account_name: account,
        volumes,
        ..PodSpec::default()
    })
}

/// The variables of all files, then those of the flags. Of two with the same name the later one wins, as in a pod.
fn environment(said: &SpecificationArgs, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<Vec<EnvVar>, String> {
    let mut env = Vec::new();
    for path in &said.env_file {
        let text = read(path).map_err(|why| format!("--env-file {}: {why}", path.display()))?;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let found = env_var(OsStr::new(line), &variable);
            env.push(found.map_err(|why| format!("--env-file {}: line {number}: {why}", path.display()))?);
        }
    }
    for given in &said.env {
        env.push(env_var(given, &variable).map_err(|why| format!("--env {}: {why}", given.display()))?);
    }
    Ok(env)
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    let read = file.take(MAX_ENV_FILE + 1).read_to_string(&mut text);
    match read.map_err(|error| error.to_string())? as u64 {
        ..=MAX_ENV_FILE => Ok(text),
        _ => Err(format!("it is larger than {MAX_ENV_FILE} bytes")),
    }
}

fn env_var(given: &OsStr, variable: impl Fn(&OsStr) -> Option<OsString>) -> Result<EnvVar, String> {
    const BINARY: &str = "is not UTF-8, and an object of Kubernetes holds nothing else";
    let text = given.to_str().ok_or_else(|| format!("it {BINARY}"))?;
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => {
            let value = variable(given).ok_or("it is not set here; give NAME=VALUE")?;
            let value = value
                .into_string()
                .map_err(|_| format!("the value that it has here {BINARY}"))?;
            (text, value)
        }
    };
    if name.is_empty() {
        return Err("the name is missing".to_owned());
    }
    Ok(EnvVar {
        name: name.to_owned(),
        value: Some(literal(&value)),
        value_from: None,
    })
}

/// The volumes with the names `volume-1`, `volume-2` and so on, and their mounts.
fn mounted(given: &[Mounted]) -> (Vec<Volume>, Vec<VolumeMount>) {
    let named = (1..)
        .zip(given.iter().cloned())
        .map(|(number, Mounted { mut volume, mut mount })| {
            volume.name = format!("volume-{number}");
            mount.name.clone_from(&volume.name);
            (volume, mount)
        });
    named.unzip()
}

/// Escapes `text` so that Kubernetes' expansion of `$(NAME)` and `$$` restores it: the command runs as typed.
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

fn resources(said: &SpecificationArgs) -> Option<ResourceRequirements> {
    let quantity = |name: &str, text: &Option<String>| text.clone().map(|text| (name.to_owned(), Quantity(text)));
    let pair = |cpu, memory| -> BTreeMap<_, _> {
        let pair = quantity("cpu", cpu).into_iter().chain(quantity("memory", memory));
        pair.collect()
    };
    let (requests, limits) = (pair(&said.cpu, &said.memory), pair(&said.cpu_limit, &said.memory));
    let is_said = !requests.is_empty() || !limits.is_empty();
    is_said.then(|| ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
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
    // A dash and five characters follow.
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
    use crate::command::run::flags::{env_source, quantity, stdin_source, user, volume};
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
            "-w",
            "/tmp",
            "--env-from",
            "secret/token",
            "--env-from",
            "configmap/settings",
            "--volume",
            "pvc/data:/data:ro",
            "--volume",
            "empty:/scratch",
            "--stdin-from",
            "configmap/input:a.txt",
            "--user",
            "1000:100",
            "--service-account",
            "builder",
            "--annotation",
            "note=a=b",
            "--cpu-limit",
            "2",
            "--ttl",
            "1d",
            "--start-deadline",
            "5m",
            "--leftovers",
            "wait",
            "--",
            "sh",
            "-c",
            "true",
        ]);
        let object = described(&args, |name| (name == "HERE").then(|| "there".into())).unwrap();
        insta::assert_snapshot!(serde_saphyr::to_string(&object).unwrap());
    }

    #[test]
    fn an_input_has_one_source() {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            _args: RunArgs,
        }
        let line = ["run", "--image", "i", "--stdin-from", "secret/a:k", "--", "x"];
        assert!(Only::try_parse_from(line).is_ok());
        for flag in ["-i", "-t", "-it"] {
            let refused = Only::try_parse_from(line[..1].iter().chain([&flag]).chain(&line[1..]));
            let why = refused.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(why.contains("--stdin-from"), "{flag}: {why}");
        }
    }

    /// As `expansion.Expand` of Kubernetes, without any known variable.
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
        let words = ["--image", "ghcr.io/a/My_App:1.0@sha256:00", "--", "x"];
        let object = described(&args(&words), |_| None).unwrap();
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
            assert!(described(&args, |_| None).unwrap_err().contains(name));
        }
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_called_that() {
        use std::os::unix::ffi::OsStringExt;
        let args = args(&["-e", "V", "--image", "i", "--", "x"]);
        let why = described(&args, |_| Some(OsString::from_vec(vec![0xff]))).unwrap_err();
        assert!(
            why.contains("--env V: the value that it has here is not UTF-8"),
            "{why}"
        );
    }

    #[test]
    fn a_file_of_variables_is_read_as_docker_reads_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# first\n\nA=b c\n  HERE\nE=\n").unwrap();
        let path = file.path().to_str().unwrap();
        let args = args(&["--env-file", path, "-e", "A=z", "--image", "i", "--", "x"]);
        let object = described(&args, |name| (name == "HERE").then(|| "$(there)".into())).unwrap();
        let env: Vec<_> = object
            .spec
            .env
            .iter()
            .map(|env| (&*env.name, env.value.as_deref().unwrap()))
            .collect();
        assert_eq!(env, [("A", "b c"), ("HERE", "$$(there)"), ("E", ""), ("A", "z")]);
        std::fs::write(file.path(), "A=b\n=x\n").unwrap();
        assert!(
            described(&args, |_| None)
                .unwrap_err()
                .contains("line 2: the name is missing")
        );
    }

    #[test]
    fn sources_are_named_by_kind_and_name() {
        for wrong in ["", "secret", "secret/", "secret/A", "pod/x", "secret/a?b", "x"] {
            assert!(env_source(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "secret/a",
            "secret/a:b",
            "pvc/:/x",
            "hostpath/a:/x",
            "empty/a:/x",
            "/etc:/etc",
            "a:/x",
        ] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "secret/a",
            "secret/a:",
            "secret/:k",
            "secret/A:k",
            "pvc/a:k",
            "a:k",
            "secret/a:k/x",
            "secret/a:k:x",
        ] {
            assert!(stdin_source(wrong).is_err(), "{wrong}");
        }
        let secret = stdin_source("secret/a:.K_1").unwrap().secret_key_ref.unwrap();
        assert_eq!((secret.name.as_str(), secret.key.as_str()), ("a", ".K_1"));
        for wrong in ["", "root", "0:", "-1", "1:2:3"] {
            assert!(user(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            user("1000:0"),
            Ok(Owner {
                user: 1000,
                group: Some(0)
            })
        );
        let read_only = volume("pvc/data:/mnt:ro").unwrap();
        assert_eq!(
            (read_only.mount.mount_path.as_str(), read_only.mount.read_only),
            ("/mnt", Some(true))
        );
    }
}
