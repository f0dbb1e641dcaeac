//! The CEL rules that the API server checks, each with the message that a user reads.

use kube::core::cel::Rule;

const RECREATE: &str = "cannot change after creation; delete the RemoteProcess and create it again";

/// The object's name fits into the names and labels of its pods.
pub fn name() -> Rule {
    Rule::new("self.metadata.name.size() <= 52 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message(
            "metadata.name must be a DNS label of at most 52 characters (a-z, 0-9 and -), because pod names and labels \
             are made from it",
        )
}

/// A required field that is fixed at creation.
pub fn fixed_required(field: &str) -> Rule {
    Rule::new(format!("self.{field} == oldSelf.{field}")).message(format!("spec.{field} {RECREATE}").as_str())
}

/// An optional field that is fixed at creation: neither added, nor changed, nor removed.
pub fn fixed(field: &str) -> Rule {
    Rule::new(format!(
        "has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    ))
    .message(format!("spec.{field} {RECREATE}").as_str())
}

/// An optional field of an optional object that is fixed at creation, even if its neighbors change.
pub fn fixed_within(object: &str, field: &str) -> Rule {
    let given = |of: &str| format!("(has({of}.{object}) && has({of}.{object}.{field}))");
    let (now, before) = (given("self"), given("oldSelf"));
    Rule::new(format!(
        "{now} == {before} && (!{now} || self.{object}.{field} == oldSelf.{object}.{field})"
    ))
    .message(format!("spec.{object}.{field} {RECREATE}").as_str())
}

/// A warning signal without a warning time would never be sent.
pub fn warn_signal_needs_its_time() -> Rule {
    Rule::new("!has(self.warnSignal) || has(self.warnBeforeSeconds)")
        .message("spec.deadlines.warnSignal: say by spec.deadlines.warnBeforeSeconds when it is to be sent")
}

/// A stopped process cannot be started again.
pub fn stopped_is_final() -> Rule {
    Rule::new("oldSelf.desiredState != 'Stopped' || self.desiredState == 'Stopped'")
        .message("spec.desiredState cannot leave Stopped: a stopped process does not run again; create a new one")
}

/// No mount at, below or above the handover volume and the input: the user's files would collide with ours.
pub fn mounts() -> Rule {
    Rule::new(
        "!has(self.volumeMounts) || self.volumeMounts.all(m, m.mountPath != '/' && m.mountPath != '/.rproc' && \
         !m.mountPath.startsWith('/.rproc/') && m.mountPath != '/.rproc-stdin' && \
         !m.mountPath.startsWith('/.rproc-stdin/') && !m.name.startsWith('rproc-'))",
    )
    .message(
        "spec.volumeMounts: the paths /, /.rproc and /.rproc-stdin and volume names that begin with rproc- are \
         reserved; choose another",
    )
}

/// What an input comes from is not ambiguous, and a terminal is no file.
pub fn one_standard_input() -> Rule {
    Rule::new("!has(self.stdinFrom) || (!(has(self.stdin) && self.stdin) && !(has(self.tty) && self.tty))")
        .message("spec.stdinFrom cannot be set together with spec.stdin or spec.tty; choose one input")
}

/// One source of an input and no more.
pub fn one_stdin_source() -> Rule {
    Rule::new("has(self.configMapKeyRef) != has(self.secretKeyRef)")
        .message("spec.stdinFrom: set exactly one of configMapKeyRef and secretKeyRef")
}

/// A rule for exit codes has no effect if process failures are not retried.
pub fn exit_codes_need_process_failure() -> Rule {
    Rule::new("!has(self.exitCodes) || !has(self.after) || 'ProcessFailure' in self.after")
        .message("spec.retries.exitCodes: only a ProcessFailure has an exit code; add it to spec.retries.after")
}

/// Without a terminal, its size would be ignored.
pub fn tty_size_needs_tty() -> Rule {
    Rule::new("!has(self.ttySize) || (has(self.tty) && self.tty)")
        .message("spec.ttySize is the size of a terminal: set spec.tty as well")
}

/// Either a list of included codes or one of excluded codes.
pub fn one_list_of_exit_codes() -> Rule {
    Rule::new("has(self.__in__) != has(self.notIn)")
        .message("spec.retries.exitCodes: give exactly one of `in` and `notIn`")
}

/// No volume under a reserved name.
pub fn volume_names() -> Rule {
    Rule::new("!has(self.volumes) || self.volumes.all(v, !v.name.startsWith('rproc-'))")
        .message("spec.pod.volumes: names that begin with rproc- are reserved; choose another")
}

/// No label of our prefix.
pub fn labels() -> Rule {
    Rule::new("!has(self.labels) || self.labels.all(k, !k.startsWith('remoteprocess.dev/'))")
        .message("spec.pod.labels: the prefix remoteprocess.dev/ is reserved; choose another")
}

/// No annotation of our prefix.
pub fn annotations() -> Rule {
    Rule::new("!has(self.annotations) || self.annotations.all(k, !k.startsWith('remoteprocess.dev/'))")
        .message("spec.pod.annotations: the prefix remoteprocess.dev/ is reserved; choose another")
}

/// The trigger's name fits into the names of its processes and objects.
pub fn trigger_name() -> Rule {
    Rule::new("self.metadata.name.size() <= 31 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message(
            "metadata.name must be a DNS label of at most 31 characters (a-z, 0-9 and -), because the names of its \
             processes are made from it",
        )
}

/// One source and no more.
pub fn one_source() -> Rule {
    Rule::new("[has(self.http), has(self.nats), has(self.rabbitmq), has(self.pubsub)].filter(given, given).size() == 1")
        .message("spec.source: set exactly one of http, nats, rabbitmq and pubsub")
}

/// The name of the header and the choice of the header belong together.
pub fn header_needs_its_name() -> Rule {
    Rule::new("(has(self.id) && self.id == 'Header') == has(self.idHeader)")
        .message("spec.message: set idHeader if id is Header, and only then")
}

/// An environment variable is a part of the process, whose size is limited.
pub fn payload_environment_is_small() -> Rule {
    Rule::new("!has(self.payload) || self.payload != 'Env' || !has(self.maxBytes) || self.maxBytes <= 32768")
        .message("spec.message.maxBytes: an environment variable has at most 32768 bytes; use File or Stdin")
}

/// The trigger decides for how long ids are remembered.
pub fn template_has_no_ttl() -> Rule {
    Rule::new("!has(self.spec.ttl)").message(
        "spec.template.spec.ttl: set spec.policy.rememberSeconds instead; a process that is gone too early \
                  would run again if its message is delivered again",
    )
}

/// Nobody attaches to the processes of a trigger.
pub fn template_has_no_input() -> Rule {
    Rule::new("!has(self.spec.stdin) && !has(self.spec.stdinFrom) && !has(self.spec.tty)")
        .message("spec.template.spec: stdin, stdinFrom and tty cannot be set; set spec.message.payload to Stdin")
}

/// No label of our prefix.
pub fn template_labels() -> Rule {
    Rule::new("!has(self.labels) || self.labels.all(k, !k.startsWith('remoteprocess.dev/'))")
        .message("spec.template.metadata.labels: the prefix remoteprocess.dev/ is reserved; choose another")
}

/// No annotation of our prefix.
pub fn template_annotations() -> Rule {
    Rule::new("!has(self.annotations) || self.annotations.all(k, !k.startsWith('remoteprocess.dev/'))")
        .message("spec.template.metadata.annotations: the prefix remoteprocess.dev/ is reserved; choose another")
}

/// The sink's name fits into the names of its pods.
pub fn sink_name() -> Rule {
    Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message(
            "metadata.name must be a DNS label of at most 40 characters (a-z, 0-9 and -), because the names of its pods \
             are made from it",
        )
}

/// One destination and no more.
pub fn one_destination() -> Rule {
    Rule::new("[has(self.http), has(self.nats), has(self.rabbitmq), has(self.pubsub)].filter(given, given).size() == 1")
        .message("spec.destination: set exactly one of http, nats, rabbitmq and pubsub")
}

/// A stream that is named twice would have no meaning.
pub fn each_stream_once() -> Rule {
    Rule::new("!has(self.streams) || self.streams.size() < 2 || self.streams[0] != self.streams[1]")
        .message("spec.output.streams: name each stream once")
}
