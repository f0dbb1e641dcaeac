//! Names on which the parts agree. Each is defined here once.

/// API group of the object, and prefix of all our labels and annotations.
pub const GROUP: &str = "remoteprocess.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";

/// Longest name of an object, in bytes: pod names add a suffix and label values end at 63.
pub const MAX_NAME: usize = 52;

/// Namespace of the release unless the user says otherwise.
pub const DEFAULT_RELEASE_NAMESPACE: &str = "remoteprocess-system";
/// Trust domain of the SPIFFE identities unless the user says otherwise.
pub const DEFAULT_TRUST_DOMAIN: &str = "remoteprocess.local";

/// Field manager of the controller.
pub const CONTROLLER_MANAGER: &str = "remoteprocess-controller";
/// Field manager of the bridge of a trigger or a sink.
pub const BRIDGE_MANAGER: &str = "remoteprocess-bridge";
/// ClusterRole for the ServiceAccounts of triggers.
pub const TRIGGER_ROLE: &str = "remoteprocess-trigger";
/// ClusterRole for the ServiceAccounts of sinks.
pub const SINK_ROLE: &str = "remoteprocess-sink";
/// `app.kubernetes.io/component` of the bridges' pods.
pub const BRIDGE_COMPONENT: &str = "bridge";
/// Field manager of the relay.
pub const RELAY_MANAGER: &str = "remoteprocess-relay";

/// Label of a pod: name of its RemoteProcess.
pub const LABEL_NAME: &str = "remoteprocess.dev/name";
/// Label of a pod: uid of its RemoteProcess.
pub const LABEL_UID: &str = "remoteprocess.dev/uid";
/// Label of a pod: number of the attempt, from 1.
pub const LABEL_ATTEMPT: &str = "remoteprocess.dev/attempt";
/// Label of a process: name of its ProcessTrigger.
pub const LABEL_TRIGGER: &str = "remoteprocess.dev/trigger";
/// Label of a process: uid of its ProcessTrigger.
pub const LABEL_TRIGGER_UID: &str = "remoteprocess.dev/trigger-uid";
/// Annotation of a process of a trigger: the id of its message.
pub const ANNOTATION_MESSAGE_ID: &str = "remoteprocess.dev/message-id";
/// Annotation of a process of a trigger: where its result goes, as the bridge wrote it.
pub const ANNOTATION_REPLY_TO: &str = "remoteprocess.dev/reply-to";
/// Annotation of a process of a trigger: SHA-256 of the template and the message from which it was made.
pub const ANNOTATION_MADE_FROM: &str = "remoteprocess.dev/made-from";
/// Annotation of a process of a trigger: when its result was confirmed.
pub const ANNOTATION_RESULT_SENT: &str = "remoteprocess.dev/result-sent";
/// Annotation of a trigger: a message to send to its source once, as JSON; each new value is another message.
pub const ANNOTATION_TEST_MESSAGE: &str = "remoteprocess.dev/test-message";
/// Annotation of a trigger: a request to send its dead letters to its source again, as JSON; each new value is another
/// request.
pub const ANNOTATION_REPLAY: &str = "remoteprocess.dev/replay";
/// Annotation of a process of a trigger whose message was a dead letter: the uid of the process that had failed.
pub const ANNOTATION_REPLAY_OF: &str = "remoteprocess.dev/replay-of";
/// Label of the objects that the controller makes for a sink: name of the ProcessSink.
pub const LABEL_SINK: &str = "remoteprocess.dev/sink";
/// Label of the objects that the controller makes for a sink: uid of the ProcessSink.
pub const LABEL_SINK_UID: &str = "remoteprocess.dev/sink-uid";
/// Prefix of an annotation of a process that ends with the name of a ProcessSink: the cursor, that is how far its events
/// and its output are sent.
pub const ANNOTATION_CURSOR_PREFIX: &str = "sink.remoteprocess.dev/";
/// Annotation of a process: why its desired state is as it is, for status and Events.
pub const ANNOTATION_REASON: &str = "remoteprocess.dev/reason";
/// Annotation of a process: the user for whom the relay has set its desired state.
pub const ANNOTATION_REQUESTED_BY: &str = "remoteprocess.dev/requested-by";
/// Annotation of a process: the span of the user, as in the header `traceparent` (W3C Trace Context).
pub const ANNOTATION_TRACEPARENT: &str = "remoteprocess.dev/traceparent";
/// `app.kubernetes.io/name` of the operator's pods.
pub const APP_NAME: &str = "remoteprocess-operator";
/// `app.kubernetes.io/component` of the operator's pods.
pub const APP_COMPONENT: &str = "operator";
/// `app.kubernetes.io/managed-by` of the pods that the controller makes.
pub const MANAGED_BY: &str = "remoteprocess-operator";

/// Prefix of volume and container names that is reserved for us.
pub const RESERVED_NAME_PREFIX: &str = "rproc-";
/// Name of the user's container.
pub const CONTAINER_MAIN: &str = "main";
/// Name of the agent's container.
pub const CONTAINER_AGENT: &str = "rproc-agent";
/// emptyDir with the entrypoint's binary and the socket.
pub const VOLUME_HANDOVER: &str = "rproc-handover";
/// emptyDir of the agent's spool.
pub const VOLUME_SPOOL: &str = "rproc-spool";
/// Projected ServiceAccount token of the agent.
pub const VOLUME_TOKEN: &str = "rproc-token";
/// Projected volume of the values to mask in the output; only if there are any.
pub const VOLUME_MASK: &str = "rproc-mask";
/// Volume with the agent's image, if the cluster mounts images.
pub const VOLUME_IMAGE: &str = "rproc-image";
/// Volume with the key that is the program's standard input; only if the spec names one.
pub const VOLUME_STDIN: &str = "rproc-stdin";
/// Audience of the agent's token: no API server accepts it.
pub const ENROLL_AUDIENCE: &str = "remoteprocess.dev/enroll";
/// Audience of the tokens by which machines log in: no API server accepts it.
pub const LOGIN_AUDIENCE: &str = "remoteprocess.dev/login";

/// Port of the relay's main listener.
pub const RELAY_PORT: u16 = 8443;
/// Port of the relay's enrollment listener.
pub const ENROLL_PORT: u16 = 8444;
/// Port of the operator's health and metrics endpoint.
pub const ADMIN_PORT: u16 = 8080;

/// Service in the release namespace with both ports of the relay.
pub const RELAY_SERVICE: &str = "remoteprocess-relay";
/// ConfigMap in the release namespace that tells clients which CA to trust and where to connect.
pub const CONNECT_CONFIG_MAP: &str = "remoteprocess-connect";
/// Key of [`CONNECT_CONFIG_MAP`]: certificates of the CAs, PEM.
pub const CONNECT_CA: &str = "ca.crt";
/// Key of [`CONNECT_CONFIG_MAP`]: trust domain.
pub const CONNECT_TRUST_DOMAIN: &str = "trustDomain";
/// Key of [`CONNECT_CONFIG_MAP`]: published `host:port` of the relay, empty if there is none.
pub const CONNECT_SERVER: &str = "server";
/// Key of [`CONNECT_CONFIG_MAP`]: `host:port` in the cluster at which machines log in.
pub const CONNECT_LOGIN: &str = "login";
/// ClusterRole that lets a person connect.
pub const CONNECT_ROLE: &str = "remoteprocess-connect";
/// Role in the release namespace for administrators of the installation.
pub const ADMIN_ROLE: &str = "remoteprocess-admin";
/// Secret in the release namespace with the CA (`tls.crt`, `tls.key`), the next one, and those before it.
pub const CA_SECRET: &str = "remoteprocess-ca";
/// ConfigMap in the release namespace about the CA, for administrators.
pub const CA_CONFIG_MAP: &str = "remoteprocess-ca";
/// Annotation of [`CA_CONFIG_MAP`]: each new value requests a rotation.
pub const ANNOTATION_ROTATE: &str = "remoteprocess.dev/rotate-ca";
/// Key of [`CA_CONFIG_MAP`]: [`CA_OWN`], or the Secret from which CAs come.
pub const CA_SOURCE: &str = "source";
/// The operator makes its CAs.
pub const CA_OWN: &str = "Own";
/// Key of [`CA_CONFIG_MAP`]: [`CA_STABLE`], [`CA_ANNOUNCED`] or [`CA_RETIRING`].
pub const CA_PHASE: &str = "phase";
/// There is one CA.
pub const CA_STABLE: &str = "Stable";
/// The next CA is announced and does not sign yet.
pub const CA_ANNOUNCED: &str = "Announced";
/// A former CA is still trusted.
pub const CA_RETIRING: &str = "Retiring";
/// Key of [`CA_CONFIG_MAP`]: end of the CA that signs.
pub const CA_EXPIRES: &str = "expires";
/// Key of [`CA_CONFIG_MAP`]: when the announced CA begins to sign.
pub const CA_NEXT_SIGNS: &str = "nextSignsFrom";
/// Key of [`CA_CONFIG_MAP`]: end of the announced CA.
pub const CA_NEXT_EXPIRES: &str = "nextExpires";
/// Key of [`CA_CONFIG_MAP`]: until when former CAs are trusted.
pub const CA_FORMER_UNTIL: &str = "formerTrustedUntil";
/// Key of [`CA_CONFIG_MAP`]: what an administrator should do something about.
pub const CA_WARNING: &str = "warning";
/// Key of [`CA_CONFIG_MAP`]: the last value of [`ANNOTATION_ROTATE`] that has led to a rotation.
pub const CA_ANSWERED: &str = "answered";
/// Name of the Deployment, the Service and the Lease of a bridge. `word`: `trigger` or `sink`.
pub fn bridge_object(name: &str, word: &str) -> String {
    format!("{name}-{word}")
}

/// Lease that names the leading controller.
pub const LEASE: &str = "remoteprocess-controller";
/// Signer of the CertificateSigningRequests by which people get their certificates.
pub const CLIENT_SIGNER: &str = "remoteprocess.dev/client";
