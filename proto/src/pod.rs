//! What operator, agent and entrypoint must agree on inside a pod.

/// Port of the agent's executor.
pub const AGENT_PORT: u16 = 20443;
/// Where the handover volume is mounted in both containers: the entrypoint's program and its socket.
pub const HANDOVER_PATH: &str = "/.rproc";
/// The entrypoint's program on the handover volume.
pub const ENTRYPOINT: &str = "/.rproc/entrypoint";
/// Where the agent's image is mounted in both containers, if it is a volume.
pub const IMAGE_PATH: &str = "/.rproc/image";
/// The entrypoint's program in that image.
pub const ENTRYPOINT_IN_IMAGE: &str = "/.rproc/image/entrypoint";
/// Where the key that is the program's input (`spec.stdinFrom`) is mounted in the user's container.
pub const STDIN_PATH: &str = "/.rproc-stdin";
/// File name of the input below [`STDIN_PATH`].
pub const STDIN_NAME: &str = "stdin";
/// The program's input: [`STDIN_NAME`] below [`STDIN_PATH`]. The entrypoint has the same constant.
pub const STDIN_FILE: &str = "/.rproc-stdin/stdin";
/// Where the spool is mounted in the agent's container.
pub const SPOOL_PATH: &str = "/spool";
/// Where the token is mounted in the agent's container.
pub const TOKEN_PATH: &str = "/var/run/rproc/token";
/// File name of the token below [`TOKEN_PATH`].
pub const TOKEN_NAME: &str = "token";
/// The projected ServiceAccount token of the agent: [`TOKEN_NAME`] below [`TOKEN_PATH`].
pub const TOKEN_FILE: &str = "/var/run/rproc/token/token";
/// Where the values to mask are mounted in the agent's container: files `0`, `1`, ….
pub const MASK_PATH: &str = "/var/run/rproc/mask";

/// Environment variables by which the operator configures the agent: its identity, and where things are. How the program
/// is launched comes with the grant, as [`LaunchSettings`](crate::v1::LaunchSettings).
pub mod env {
    macro_rules! variables {
        ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
            $($(#[$doc])* pub const $name: &str = $value;)*

            /// All of them.
            pub const ALL: &[&str] = &[$($value),*];
        };
    }

    variables! {
        /// Main listener of the relay, `host:port`.
        RELAY = "RPROC_RELAY",
        /// Enroll listener of the relay, `host:port`.
        RELAY_ENROLL = "RPROC_RELAY_ENROLL",
        /// CAs to trust at first, PEM.
        CA_BUNDLE = "RPROC_CA_BUNDLE",
        /// Trust domain of all certificates.
        TRUST_DOMAIN = "RPROC_TRUST_DOMAIN",
        /// Namespace of the RemoteProcess.
        PROCESS_NAMESPACE = "RPROC_PROCESS_NAMESPACE",
        /// Name of the RemoteProcess.
        PROCESS_NAME = "RPROC_PROCESS_NAME",
        /// Uid of the RemoteProcess.
        PROCESS_UID = "RPROC_PROCESS_UID",
        /// Number of the attempt.
        ATTEMPT = "RPROC_ATTEMPT",
        /// Uid of the pod.
        POD_UID = "RPROC_POD_UID",
        /// Address of the pod.
        POD_IP = "RPROC_POD_IP",
        /// Port of the executor.
        LISTEN_PORT = "RPROC_LISTEN_PORT",
        /// Bytes of unarchived output that fill the spool.
        SPOOL_SIZE = "RPROC_SPOOL_SIZE",
        /// How long to wait for the archive when the pod ends.
        DRAIN_SECONDS = "RPROC_DRAIN_SECONDS",
        /// Directory of the values to mask.
        MASK_DIR = "RPROC_MASK_DIR",
        /// File with the projected token.
        TOKEN_FILE = "RPROC_TOKEN_FILE",
        /// Directory of the handover volume.
        HANDOVER = "RPROC_HANDOVER",
        /// Directory of the spool volume.
        SPOOL = "RPROC_SPOOL",
    }
}
