//! Checks everything that the CEL rules of the API server cannot express, without a client. The result can be built.

pub(crate) mod quantity;

use remoteprocess_api::names;
use remoteprocess_api::spec::{DEFAULT_SPOOL_BYTES, MIN_SPOOL_BYTES};
use remoteprocess_api::{MaskSource, PodSpec, RemoteProcess, RemoteProcessSpec, StdinSource, identifier, signal};
use remoteprocess_proto::pod::{HANDOVER_PATH, STDIN_PATH};

/// Why a spec cannot be turned into a pod; each message names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The API server always sets it; only an object that was never stored lacks it.
    #[error("metadata.{0} is missing")]
    Metadata(&'static str),
    /// The program has no name.
    #[error("spec.command: the first entry is the program and must not be empty")]
    EmptyProgram,
    /// The kernel ends strings at a NUL byte.
    #[error("{0} contains a NUL byte, which no program can be given")]
    Nul(String),
    /// The mount would hide or reveal the agent's files, or the program's input.
    #[error(
        "spec.volumeMounts: {0} is reserved (/ and everything at or below /.rproc and /.rproc-stdin); choose another path"
    )]
    ReservedMount(String),
    /// It would not be clear what the program reads.
    #[error("spec.stdinFrom cannot be set together with spec.stdin or spec.tty; choose one input")]
    TwoInputs,
    /// No key, or two.
    #[error("spec.stdinFrom: set exactly one of configMapKeyRef and secretKeyRef")]
    OneInputKey,
    /// No object and no key can have such a name.
    #[error("spec.stdinFrom: no ConfigMap or Secret can have the name {0:?} and the key {1:?}")]
    NoInputKey(String, String),
    /// The volume's name belongs to us.
    #[error("{0}: volume names that begin with rproc- are reserved; choose another")]
    ReservedVolume(String),
    /// With such a token the program could pretend to be its agent.
    #[error("spec.pod.volumes: a token of the audience {audience} is reserved for the agent", audience = names::ENROLL_AUDIENCE)]
    ReservedAudience,
    /// A label or annotation with our prefix.
    #[error("spec.pod.{0}: the prefix remoteprocess.dev/ is reserved; choose another")]
    ReservedKey(&'static str),
    /// Only Linux is supported.
    #[error("spec.pod.nodeSelector: kubernetes.io/os must be linux")]
    NotLinux,
    /// The stop signal does not exist.
    #[error("spec.stop.signal: there is no signal {0}")]
    UnknownSignal(String),
    /// The warning signal does not exist.
    #[error("spec.deadlines.warnSignal: there is no signal {0}")]
    UnknownWarnSignal(String),
    /// Not a quantity, or too small.
    #[error("spec.output.spoolSize: {0} is not a quantity of at least 1Mi")]
    SpoolSize(String),
}

/// A spec that can be built, with its defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Validated<'a> {
    /// Name of the object.
    pub name: &'a str,
    /// Namespace of the object.
    pub namespace: &'a str,
    /// UID of the object.
    pub uid: &'a str,
    /// The program and all its arguments.
    pub argv: Vec<String>,
    /// Seconds between that signal and KILL.
    pub stop_grace_seconds: u32,
    /// Bytes of the spool.
    pub spool_bytes: u64,
    /// What is masked in the output.
    pub mask: &'a [MaskSource],
    /// The one key that is the program's input, if it is a key.
    pub stdin_from: Option<&'a StdinSource>,
    /// The parts of the spec that go to the pod unchanged.
    pub spec: &'a RemoteProcessSpec,
    /// The pod's part of the spec.
    pub pod: PodSpec,
}

/// Checks a process and fills in the defaults.
pub(crate) fn validate(process: &RemoteProcess) -> Result<Validated<'_>, Error> {
    let metadata = &process.metadata;
    let spec = &process.spec;
    let pod = spec.pod.clone().unwrap_or_default();
    check_strings(spec)?;
    check_mounts(spec)?;
    check_volumes(&pod)?;
    check_keys(&pod)?;
    check_signals(spec)?;
    Ok(Validated {
        name: metadata.name.as_deref().ok_or(Error::Metadata("name"))?,
        namespace: metadata.namespace.as_deref().ok_or(Error::Metadata("namespace"))?,
        uid: metadata.uid.as_deref().ok_or(Error::Metadata("uid"))?,
        argv: spec.argv(),
        stop_grace_seconds: spec.stop_grace_seconds(),
        spool_bytes: spool_bytes(spec)?,
        stdin_from: stdin_from(spec)?,
        mask: spec.output.as_ref().map_or(&[], |output| &output.mask),
        spec,
        pod,
    })
}

fn check_strings(spec: &RemoteProcessSpec) -> Result<(), Error> {
    if spec.command.first().is_none_or(String::is_empty) {
        return Err(Error::EmptyProgram);
    }
    let command = spec
        .command
        .iter()
        .enumerate()
        .map(|(index, text)| (format!("spec.command[{index}]"), text));
    let args = spec
        .args
        .iter()
        .enumerate()
        .map(|(index, text)| (format!("spec.args[{index}]"), text));
    let env = spec
        .env
        .iter()
        .filter_map(|entry| Some((format!("spec.env[{}]", entry.name), entry.value.as_ref()?)));
    let directory = spec.working_dir.iter().map(|text| ("spec.workingDir".to_owned(), text));
    match command
        .chain(args)
        .chain(env)
        .chain(directory)
        .find(|(_, text)| text.contains('\0'))
    {
        Some((field, _)) => Err(Error::Nul(field)),
        None => Ok(()),
    }
}

fn check_mounts(spec: &RemoteProcessSpec) -> Result<(), Error> {
    for mount in &spec.volume_mounts {
        if mount.name.starts_with(names::RESERVED_NAME_PREFIX) {
            return Err(Error::ReservedVolume(format!("spec.volumeMounts: {}", mount.name)));
        }
        if is_reserved_path(&mount.mount_path) {
            return Err(Error::ReservedMount(mount.mount_path.clone()));
        }
    }
    Ok(())
}

/// Whether a mount there would cover the handover volume or the program's input, or lie inside it. The
/// path is read as the kernel reads it: `//`, `.` and `..` resolved.
fn is_reserved_path(path: &str) -> bool {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    let ours = [HANDOVER_PATH, STDIN_PATH].map(|path| path.trim_start_matches('/'));
    parts.first().is_none_or(|first| ours.contains(first))
}

fn stdin_from(spec: &RemoteProcessSpec) -> Result<Option<&StdinSource>, Error> {
    let Some(source) = &spec.stdin_from else {
        return Ok(None);
    };
    if spec.stdin.unwrap_or_default() || spec.tty.unwrap_or_default() {
        return Err(Error::TwoInputs);
    }
    let (name, key) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(of), None) => (&of.name, &of.key),
        (None, Some(of)) => (&of.name, &of.key),
        (None, None) | (Some(_), Some(_)) => return Err(Error::OneInputKey),
    };
    // The API server takes any text in a volume, and the pod would wait forever.
    if !identifier::is_name(name) || !identifier::is_key(key) {
        return Err(Error::NoInputKey(name.clone(), key.clone()));
    }
    Ok(Some(source))
}

fn check_volumes(pod: &PodSpec) -> Result<(), Error> {
    for volume in &pod.volumes {
        if volume.name.starts_with(names::RESERVED_NAME_PREFIX) {
            return Err(Error::ReservedVolume(format!("spec.pod.volumes: {}", volume.name)));
        }
        let sources = volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten());
        let mut audiences = sources.filter_map(|source| source.service_account_token.as_ref()?.audience.as_deref());
        if audiences.any(|audience| audience == names::ENROLL_AUDIENCE) {
            return Err(Error::ReservedAudience);
        }
    }
    Ok(())
}

fn check_keys(pod: &PodSpec) -> Result<(), Error> {
    let reserved = |key: &String| key.split_once('/').is_some_and(|(prefix, _)| prefix == names::GROUP);
    if pod.labels.keys().any(reserved) {
        return Err(Error::ReservedKey("labels"));
    }
    if pod.annotations.keys().any(reserved) {
        return Err(Error::ReservedKey("annotations"));
    }
    match pod.node_selector.get("kubernetes.io/os") {
        Some(os) if os != "linux" => Err(Error::NotLinux),
        _ => Ok(()),
    }
}

/// The relay sends their numbers with the grant.
fn check_signals(spec: &RemoteProcessSpec) -> Result<(), Error> {
    let is_known = |name: &str| signal::parse(name).is_some();
    let warning = spec.deadlines.as_ref().and_then(|it| it.warn_signal.as_deref());
    match (spec.stop_signal(), warning) {
        (stop, _) if !is_known(stop) => Err(Error::UnknownSignal(stop.to_owned())),
        (_, Some(warning)) if !is_known(warning) => Err(Error::UnknownWarnSignal(warning.to_owned())),
        _ => Ok(()),
    }
}

fn spool_bytes(spec: &RemoteProcessSpec) -> Result<u64, Error> {
    let Some(size) = spec.output.as_ref().and_then(|output| output.spool_size.as_ref()) else {
        return Ok(DEFAULT_SPOOL_BYTES);
    };
    let bytes = quantity::bytes(&size.0).filter(|bytes| *bytes >= MIN_SPOOL_BYTES);
    bytes.ok_or_else(|| Error::SpoolSize(size.0.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn process(spec: &str) -> RemoteProcess {
        let object = format!(
            "apiVersion: remoteprocess.dev/v1alpha1\nkind: RemoteProcess\n\
             metadata: {{name: hello, namespace: default, uid: 0f0e-1}}\nspec:\n  image: busybox\n{spec}"
        );
        serde_saphyr::from_str(&object).unwrap()
    }

    #[test]
    fn fills_in_the_defaults() {
        let process = process("  command: [echo, hi]\n  args: [there]\n");
        let validated = validate(&process).unwrap();
        assert_eq!(validated.argv, ["echo", "hi", "there"]);
        assert_eq!(validated.stop_grace_seconds, 30);
        assert_eq!(validated.spool_bytes, 256 << 20);
    }

    #[rstest]
    #[case::empty("  command: ['']\n", "spec.command")]
    #[case::nul("  command: [\"a\\0b\"]\n", "spec.command[0]")]
    #[case::nul_in_env("  command: [a]\n  env: [{name: X, value: \"\\0\"}]\n", "spec.env[X]")]
    #[case::mount(
        "  command: [a]\n  volumeMounts: [{name: x, mountPath: /tmp/../.rproc/}]\n",
        "/.rproc"
    )]
    #[case::mount_at_the_input(
        "  command: [a]\n  volumeMounts: [{name: x, mountPath: /.rproc-stdin/x}]\n",
        "/.rproc-stdin"
    )]
    #[case::two_inputs(
        "  command: [a]\n  stdin: true\n  stdinFrom: {secretKeyRef: {name: x, key: k}}\n",
        "spec.stdinFrom cannot be set together"
    )]
    #[case::input_and_terminal(
        "  command: [a]\n  tty: true\n  stdinFrom: {secretKeyRef: {name: x, key: k}}\n",
        "spec.stdinFrom cannot be set together"
    )]
    #[case::no_key("  command: [a]\n  stdinFrom: {}\n", "spec.stdinFrom: set exactly one")]
    #[case::two_keys(
        "  command: [a]\n  stdinFrom: {configMapKeyRef: {name: x, key: k}, secretKeyRef: {name: x, key: k}}\n",
        "spec.stdinFrom: set exactly one"
    )]
    #[case::name_of_no_object("  command: [a]\n  stdinFrom: {secretKeyRef: {name: a/b, key: k}}\n", "\"a/b\"")]
    #[case::key_of_no_object("  command: [a]\n  stdinFrom: {configMapKeyRef: {name: a, key: ../k}}\n", "\"../k\"")]
    #[case::above("  command: [a]\n  volumeMounts: [{name: x, mountPath: //.}]\n", "//.")]
    #[case::our_volume(
        "  command: [a]\n  volumeMounts: [{name: rproc-token, mountPath: /x}]\n",
        "rproc-token"
    )]
    #[case::volume("  command: [a]\n  pod: {volumes: [{name: rproc-x, emptyDir: {}}]}\n", "rproc-x")]
    #[case::audience(
        "  command: [a]\n  pod: {volumes: [{name: x, projected: {sources: [{serviceAccountToken: {path: t, audience: remoteprocess.dev/enroll}}]}}]}\n",
        "audience"
    )]
    #[case::label("  command: [a]\n  pod: {labels: {remoteprocess.dev/uid: x}}\n", "labels")]
    #[case::os("  command: [a]\n  pod: {nodeSelector: {kubernetes.io/os: windows}}\n", "linux")]
    #[case::spool("  command: [a]\n  output: {spoolSize: 1k}\n", "spoolSize")]
    #[case::signal("  command: [a]\n  stop: {signal: SIGNOPE}\n", "SIGNOPE")]
    #[case::warning(
        "  command: [a]\n  deadlines: {warnSignal: SIGNOPE, warnBeforeSeconds: 1}\n",
        "spec.deadlines.warnSignal"
    )]
    fn refuses_with_the_name_of_the_field(#[case] spec: &str, #[case] names: &str) {
        let sentence = validate(&process(spec)).unwrap_err().to_string();
        assert!(sentence.contains(names), "{sentence}");
    }

    #[rstest]
    #[case("/.rprocket", false)]
    #[case("/data/.rproc", false)]
    #[case("/.rproc/socket", true)]
    #[case("/.rproc-stdin", true)]
    #[case("//.rproc-stdin/./stdin", true)]
    #[case("/.rproc-stdin2", false)]
    #[case("/a/..", true)]
    fn reads_paths_as_the_kernel_does(#[case] path: &str, #[case] reserved: bool) {
        assert_eq!(is_reserved_path(path), reserved, "{path}");
    }
}
