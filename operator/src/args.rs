//! Command line and environment, and the checked configuration made from them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use remoteprocess_api::names;
use remoteprocess_proto::pod;
use remoteprocess_runtime::{AuditFile, LogError, LogFormat};
use remoteprocess_tls::TrustDomain;

use crate::authority::{Schedule, Source};
use crate::controller::bridge::{BridgeSettings, RelaySettings};
use crate::controller::quantity;
use crate::relay::archive::{Bucket, Retention, StoreConfig};
use crate::relay::faces::Switches;
use crate::trace::Otlp;

/// Runs RemoteProcesses: one pod per attempt, and a relay that carries and archives their output.
#[derive(Clone, Debug, Parser)]
#[command(name = "operator", version)]
pub struct Args {
    /// YAML file with settings; flags and environment variables take precedence.
    #[arg(long, env = "RPROC_CONFIG", value_parser = remoteprocess_settings::path_parser())]
    config: Option<PathBuf>,
    /// Namespace of the release, with the CA, the lease and the published addresses.
    #[arg(long, env = "RPROC_NAMESPACE", default_value = names::DEFAULT_RELEASE_NAMESPACE)]
    namespace: String,
    /// Unique name of this replica.
    #[arg(long, env = "POD_NAME")]
    replica: String,
    /// Trust domain of all identities.
    #[arg(long, env = "RPROC_TRUST_DOMAIN", default_value = names::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// host:port at which agents reach the main listener.
    #[arg(long, env = "RPROC_RELAY_ADDRESS")]
    relay_address: String,
    /// host:port at which agents reach the enrollment listener.
    #[arg(long, env = "RPROC_ENROLL_ADDRESS")]
    enroll_address: String,
    /// host:port with a DNS name for the addresses of all replicas, so that each finds the home of each process. Without
    /// it, this is the only replica.
    #[arg(long, env = "RPROC_PEERS")]
    peers: Option<String>,
    /// host:port at which clients outside the cluster reach the main listener. Clients read it from a ConfigMap.
    #[arg(long, env = "RPROC_SERVER")]
    server: Option<String>,
    /// Namespaces whose processes are run, separated by commas. Default: all.
    #[arg(long, env = "RPROC_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
    #[command(flatten)]
    ca: CaArgs,
    #[command(flatten)]
    archive: ArchiveArgs,
    #[command(flatten)]
    agent: AgentArgs,
    #[command(flatten)]
    bridge: BridgeArgs,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    faces: FaceArgs,
    #[command(flatten)]
    tracing: TracingArgs,
    /// Format of the log: auto, json or text.
    #[arg(long, env = "RPROC_LOG_FORMAT", default_value = "auto")]
    log_format: String,
    /// Filter of the log, in the syntax of tracing-subscriber.
    #[arg(long, env = "RPROC_LOG_FILTER", default_value = "info")]
    log_filter: String,
    #[command(flatten)]
    audit: AuditArgs,
}

/// Where the audit log goes.
#[derive(Clone, Debug, clap::Args)]
pub struct AuditArgs {
    /// File of the audit log. When it has half of the size, it becomes PATH.1. Default: stderr, with the log.
    #[arg(long, env = "RPROC_AUDIT_FILE")]
    audit_file: Option<PathBuf>,
    /// Maximum size of the file and its predecessor together, such as 64Mi.
    #[arg(long, env = "RPROC_AUDIT_FILE_SIZE", default_value = "64Mi")]
    audit_file_size: String,
}

/// Where CAs come from, and how long they and their certificates live. Durations are such as 8760h or 90m.
#[derive(Clone, Debug, clap::Args)]
pub struct CaArgs {
    /// Secret in the namespace of the release in which another program keeps the newest CA (tls.crt, and tls.key in
    /// PKCS#8). Default: the operator creates its CAs.
    #[arg(long, env = "RPROC_CA_SECRET")]
    ca_secret: Option<String>,
    /// Lifetime of a CA that the operator creates.
    #[arg(long, env = "RPROC_CA_DURATION", default_value = "8760h")]
    ca_duration: String,
    /// How long before its end the next CA is announced.
    #[arg(long, env = "RPROC_CA_RENEW_BEFORE", default_value = "720h")]
    ca_renew_before: String,
    /// Maximum lifetime of the certificates of agents and users.
    #[arg(long, env = "RPROC_CERTIFICATE_DURATION", default_value = "1h")]
    certificate_duration: String,
}

/// Settings of the agents.
#[derive(Clone, Debug, clap::Args)]
pub struct AgentArgs {
    /// Image with the agent and the entrypoint.
    #[arg(long, env = "RPROC_AGENT_IMAGE")]
    agent_image: String,
    /// Pull policy of that image: Always, IfNotPresent or Never.
    #[arg(long, env = "RPROC_AGENT_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    agent_image_pull_policy: Option<String>,
    /// Pull secrets of that image, separated by commas, in the namespace of each process.
    #[arg(long, env = "RPROC_AGENT_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    agent_image_pull_secrets: Vec<String>,
    /// Port of the agent in each pod.
    #[arg(long, env = "RPROC_AGENT_PORT", default_value_t = pod::AGENT_PORT)]
    agent_port: u16,
    /// Seconds that an agent has to deliver its output after the end of the program.
    #[arg(long, env = "RPROC_DRAIN_SECONDS", default_value_t = 300)]
    drain_seconds: u32,
    /// CPU request of the agent's container.
    #[arg(long, env = "RPROC_AGENT_CPU_REQUEST", default_value = "10m")]
    agent_cpu_request: String,
    /// Memory request and limit of the agent's container.
    #[arg(long, env = "RPROC_AGENT_MEMORY", default_value = "64Mi")]
    agent_memory: String,
    /// Whether the agent's container requests its spool's size as ephemeral storage.
    #[arg(long, env = "RPROC_AGENT_REQUEST_STORAGE", default_value_t = false)]
    agent_request_storage: bool,
}

/// Settings of the bridges of triggers and sinks.
#[derive(Clone, Debug, clap::Args)]
pub struct BridgeArgs {
    /// Image with the bridge. Without it, there are no triggers and no sinks.
    #[arg(long, env = "RPROC_BRIDGE_IMAGE")]
    bridge_image: Option<String>,
    /// Pull policy of that image: Always, IfNotPresent or Never.
    #[arg(long, env = "RPROC_BRIDGE_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    bridge_image_pull_policy: Option<String>,
    /// Pull secrets of that image, separated by commas, in the namespace of each trigger and sink.
    #[arg(long, env = "RPROC_BRIDGE_IMAGE_PULL_SECRETS", value_delimiter = ',')]
    bridge_image_pull_secrets: Vec<String>,
    /// CPU request of the bridge's container.
    #[arg(long, env = "RPROC_BRIDGE_CPU_REQUEST", default_value = "10m")]
    bridge_cpu_request: String,
    /// Memory request and limit of the bridge's container.
    #[arg(long, env = "RPROC_BRIDGE_MEMORY", default_value = "128Mi")]
    bridge_memory: String,
}

/// Where the output of all processes is stored, and for how long. Credentials of a service come from the environment,
/// with the names that its own programs use.
#[derive(Clone, Debug, clap::Args)]
pub struct ArchiveArgs {
    /// Type of the store: Volume, S3 or GCS.
    #[arg(long, env = "RPROC_ARCHIVE_STORE", default_value = "Volume", value_parser = ["Volume", "S3", "GCS"])]
    archive_store: String,
    /// Directory of the archive; for Volume.
    #[arg(long, env = "RPROC_ARCHIVE_DIR", default_value = "/archive")]
    archive_dir: PathBuf,
    /// Bucket of the archive; for S3 and GCS.
    #[arg(long, env = "RPROC_ARCHIVE_BUCKET")]
    archive_bucket: Option<String>,
    /// Path of the archive in the bucket.
    #[arg(long, env = "RPROC_ARCHIVE_PREFIX", default_value = "")]
    archive_prefix: String,
    /// URL of the service, if it is not the provider's own.
    #[arg(long, env = "RPROC_ARCHIVE_ENDPOINT")]
    archive_endpoint: Option<String>,
    /// Region of the bucket; for S3.
    #[arg(long, env = "RPROC_ARCHIVE_REGION", default_value = "us-east-1")]
    archive_region: String,
    /// Put the bucket into the path instead of the host name; for S3.
    #[arg(long, env = "RPROC_ARCHIVE_PATH_STYLE", default_value_t = false)]
    archive_path_style: bool,
    /// Certificates (PEM) to trust in addition to the public ones for connections to the service.
    #[arg(long, env = "RPROC_ARCHIVE_CA")]
    archive_ca: Option<String>,
    /// Days for which the output of a finished attempt is kept; 0: forever.
    #[arg(long, env = "RPROC_ARCHIVE_RETENTION_DAYS", default_value_t = 0)]
    archive_retention_days: u32,
    /// Size of the archive (such as 100Gi) above which the oldest finished attempts are removed. Default: no limit.
    #[arg(long, env = "RPROC_ARCHIVE_RETENTION_MAX_SIZE")]
    archive_retention_max_size: Option<String>,
}

/// Addresses and ports of the operator.
#[derive(Clone, Debug, clap::Args)]
pub struct PortArgs {
    /// Address of all listeners; the unspecified IPv6 address also accepts IPv4.
    #[arg(long, env = "RPROC_LISTEN_ADDRESS", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen_address: IpAddr,
    /// Port of the main listener: mutual TLS.
    #[arg(long, env = "RPROC_RELAY_PORT", default_value_t = names::RELAY_PORT)]
    relay_port: u16,
    /// Port of the enrollment listener: TLS with a server certificate only.
    #[arg(long, env = "RPROC_ENROLL_PORT", default_value_t = names::ENROLL_PORT)]
    enroll_port: u16,
    /// Port of health and metrics: plain HTTP.
    #[arg(long, env = "RPROC_ADMIN_PORT", default_value_t = names::ADMIN_PORT)]
    admin_port: u16,
}

/// What users can use at the main listener. Agents and other replicas always have gRPC.
#[derive(Clone, Debug, clap::Args)]
pub struct FaceArgs {
    /// Serve gRPC to users. rproc needs it.
    #[arg(long, env = "RPROC_FACES_GRPC", default_value_t = true, action = clap::ArgAction::Set)]
    faces_grpc: bool,
    /// Serve HTTP/JSON to users.
    #[arg(long, env = "RPROC_FACES_HTTP", default_value_t = true, action = clap::ArgAction::Set)]
    faces_http: bool,
}

/// Where traces go.
#[derive(Clone, Debug, clap::Args)]
pub struct TracingArgs {
    /// URL of a receiver of OpenTelemetry traces by OTLP over gRPC, such as `http://collector.monitoring:4317`. Without it, there
    /// are no traces. Headers come from OTEL_EXPORTER_OTLP_HEADERS.
    #[arg(long, env = "RPROC_TRACING_OTLP_ENDPOINT")]
    tracing_otlp_endpoint: Option<String>,
    /// Certificates to trust in addition to the public ones when the operator connects to the receiver, PEM.
    #[arg(long, env = "RPROC_TRACING_OTLP_CA")]
    tracing_otlp_ca: Option<String>,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace of the release.
    pub namespace: String,
    /// Name of this replica.
    pub replica: String,
    /// Trust domain of all identities.
    pub trust_domain: TrustDomain,
    /// `host:port` of all replicas, if there are several.
    pub peers: Option<String>,
    /// Published `host:port`, if there is one.
    pub server: Option<String>,
    /// Watched namespaces; none: all.
    pub watch_namespaces: Vec<String>,
    /// Where CAs come from.
    pub ca_source: Source,
    /// How long CAs and certificates live.
    pub ca_schedule: Schedule,
    /// Where the archive is.
    pub archive: StoreConfig,
    /// How long output stays in the archive.
    pub retention: Retention,
    /// Settings of the agents; the bundle in them is empty.
    pub agent: crate::controller::AgentSettings,
    /// Settings of the bridges, if there are triggers and sinks.
    pub bridge: Option<BridgeSettings>,
    /// What users can use at the main listener.
    pub faces: Switches,
    /// The main listener.
    pub relay_listen: SocketAddr,
    /// The enrollment listener.
    pub enroll_listen: SocketAddr,
    /// Health and metrics.
    pub admin_listen: SocketAddr,
    /// The receiver of traces.
    pub tracing: Option<Otlp>,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Filter of log lines.
    pub log_filter: String,
    /// The file of the audit log.
    pub audit: Option<AuditFile>,
}

/// An error in the command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// See the inner error.
    #[error("--trust-domain")]
    TrustDomain(#[source] remoteprocess_tls::Error),
    /// See the inner error.
    #[error("--log-format")]
    LogFormat(#[from] LogError),
    /// Not `host:port`.
    #[error("--{0} must be host:port (IPv6 in brackets), not {1:?}")]
    Address(&'static str, String),
    /// A service without a bucket.
    #[error("--archive-bucket is needed with --archive-store={0}")]
    Bucket(String),
    /// Neither http nor https.
    #[error("--archive-endpoint must be an http:// or https:// URL, not {0:?}")]
    Endpoint(String),
    /// Neither http nor https.
    #[error("--tracing-otlp-endpoint must be an http:// or https:// URL, not {0:?}")]
    OtlpEndpoint(String),
    /// Not a duration.
    #[error("--{flag} must be a duration of at least {least} s such as 8760h or 90m, not {text:?}")]
    Duration {
        /// The flag.
        flag: &'static str,
        /// What it says.
        text: String,
        /// The shortest one, in seconds.
        least: u64,
    },
    /// No face.
    #[error("--faces-grpc and --faces-http are both false: users could do nothing")]
    Faces,
    /// A CA that would be replaced before its certificates have been.
    #[error("--ca-duration must be at least three times --certificate-duration, so that CAs can follow each other")]
    CaDuration,
    /// Not a quantity of bytes.
    #[error("--archive-retention-max-size must be a number of bytes such as 100Gi, not {0:?}")]
    Size(String),
    /// Not a quantity of bytes, or too little.
    #[error("--audit-file-size must be at least 1Mi, such as 64Mi, not {0:?}")]
    AuditSize(String),
}

/// Minimum size of the audit log in bytes.
const SMALLEST_AUDIT: u64 = 1 << 20;

impl TryFrom<Args> for Config {
    type Error = Error;

    fn try_from(args: Args) -> Result<Self, Error> {
        check_address("relay-address", &args.relay_address)?;
        check_address("enroll-address", &args.enroll_address)?;
        let peers = args.peers.filter(|peers| !peers.is_empty());
        if let Some(peers) = &peers {
            check_address("peers", peers)?;
        }
        let server = args.server.filter(|server| !server.is_empty());
        if let Some(server) = &server {
            check_address("server", server)?;
        }
        let trust_domain: TrustDomain = args.trust_domain.parse().map_err(Error::TrustDomain)?;
        let listen = |port| SocketAddr::new(args.ports.listen_address, port);
        let relay = (args.relay_address, args.enroll_address);
        let faces = Switches {
            grpc: args.faces.faces_grpc,
            http: args.faces.faces_http,
        };
        if !faces.grpc && !faces.http {
            return Err(Error::Faces);
        }
        Ok(Self {
            bridge: bridge_settings(args.bridge, &relay.0, &args.namespace),
            namespace: args.namespace,
            replica: args.replica,
            peers,
            server,
            watch_namespaces: filled(args.watch_namespaces),
            ca_schedule: schedule(&args.ca)?,
            ca_source: match args.ca.ca_secret.filter(|name| !name.is_empty()) {
                Some(name) => Source::Secret(name),
                None => Source::Own,
            },
            retention: retention(&args.archive)?,
            archive: store(args.archive)?,
            agent: agent_settings(args.agent, relay, &trust_domain),
            trust_domain,
            faces,
            relay_listen: listen(args.ports.relay_port),
            enroll_listen: listen(args.ports.enroll_port),
            admin_listen: listen(args.ports.admin_port),
            tracing: otlp(args.tracing)?,
            log_format: args.log_format.parse()?,
            log_filter: args.log_filter,
            audit: audit_file(args.audit)?,
        })
    }
}

fn audit_file(args: AuditArgs) -> Result<Option<AuditFile>, Error> {
    let size = quantity::bytes(&args.audit_file_size);
    let size = size.filter(|size| *size >= SMALLEST_AUDIT);
    let size = size.ok_or(Error::AuditSize(args.audit_file_size))?;
    let path = args.audit_file.filter(|path| !path.as_os_str().is_empty());
    Ok(path.map(|path| AuditFile { path, size }))
}

fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

fn otlp(args: TracingArgs) -> Result<Option<Otlp>, Error> {
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    let Some(endpoint) = set(args.tracing_otlp_endpoint) else {
        return Ok(None);
    };
    if !is_url(&endpoint) {
        return Err(Error::OtlpEndpoint(endpoint));
    }
    Ok(Some(Otlp {
        endpoint,
        ca: set(args.tracing_otlp_ca),
    }))
}

fn store(args: ArchiveArgs) -> Result<StoreConfig, Error> {
    let set = |text: Option<String>| text.filter(|text| !text.is_empty());
    if args.archive_store == "Volume" {
        return Ok(StoreConfig::Volume(args.archive_dir));
    }
    let endpoint = set(args.archive_endpoint);
    if let Some(wrong) = endpoint.as_ref().filter(|url| !is_url(url)) {
        return Err(Error::Endpoint(wrong.clone()));
    }
    let bucket = Bucket {
        name: set(args.archive_bucket).ok_or_else(|| Error::Bucket(args.archive_store.clone()))?,
        prefix: args.archive_prefix.trim_matches('/').to_owned(),
        endpoint,
        ca: set(args.archive_ca),
    };
    Ok(match args.archive_store.as_str() {
        "GCS" => StoreConfig::Gcs(bucket),
        _ => StoreConfig::S3 {
            bucket,
            region: args.archive_region,
            path_style: args.archive_path_style,
        },
    })
}

fn schedule(args: &CaArgs) -> Result<Schedule, Error> {
    let schedule = Schedule {
        lifetime: duration("ca-duration", &args.ca_duration)?,
        renew_before: duration("ca-renew-before", &args.ca_renew_before)?,
        leaf: duration("certificate-duration", &args.certificate_duration)?,
    };
    if schedule.lifetime < schedule.leaf * 3 {
        return Err(Error::CaDuration);
    }
    Ok(schedule)
}

/// Certificates tell whole seconds, and everyone needs a moment to renew.
const SHORTEST: Duration = Duration::from_secs(4);

fn duration(flag: &'static str, text: &str) -> Result<Duration, Error> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let duration = parsed.and_then(|duration| Duration::try_from(duration).ok());
    duration
        .filter(|duration| *duration >= SHORTEST)
        .ok_or_else(|| Error::Duration {
            flag,
            text: text.to_owned(),
            least: SHORTEST.as_secs(),
        })
}

fn retention(args: &ArchiveArgs) -> Result<Retention, Error> {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let size = args.archive_retention_max_size.as_ref().filter(|size| !size.is_empty());
    let bytes = size.map(|size| quantity::bytes(size).ok_or_else(|| Error::Size(size.clone())));
    Ok(Retention {
        max_age: (args.archive_retention_days > 0).then(|| DAY * args.archive_retention_days),
        max_bytes: bytes.transpose()?,
    })
}

fn agent_settings(
    args: AgentArgs,
    (relay, relay_enroll): (String, String),
    trust_domain: &TrustDomain,
) -> crate::controller::AgentSettings {
    crate::controller::AgentSettings {
        image: args.agent_image,
        image_pull_policy: args.agent_image_pull_policy,
        image_pull_secrets: filled(args.agent_image_pull_secrets),
        relay,
        relay_enroll,
        ca_bundle: String::new(),
        trust_domain: trust_domain.as_str().to_owned(),
        drain_seconds: args.drain_seconds,
        listen_port: args.agent_port,
        resources: resources(args.agent_cpu_request, args.agent_memory),
        handover: crate::controller::Handover::default(),
        request_ephemeral_storage: args.agent_request_storage,
        traceparent: None,
    }
}

fn bridge_settings(args: BridgeArgs, relay: &str, namespace: &str) -> Option<BridgeSettings> {
    Some(BridgeSettings {
        image: args.bridge_image.filter(|image| !image.is_empty())?,
        image_pull_policy: args.bridge_image_pull_policy,
        image_pull_secrets: filled(args.bridge_image_pull_secrets),
        resources: resources(args.bridge_cpu_request, args.bridge_memory),
        relay: RelaySettings {
            server: relay.to_owned(),
            namespace: namespace.to_owned(),
        },
    })
}

/// Without the empty names that an empty value of the chart leaves.
fn filled(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

/// A request of CPU, and a request and a limit of memory.
fn resources(cpu: String, memory: String) -> ResourceRequirements {
    let (cpu, memory) = (
        ("cpu".to_owned(), Quantity(cpu)),
        ("memory".to_owned(), Quantity(memory)),
    );
    ResourceRequirements {
        limits: Some(BTreeMap::from([memory.clone()])),
        requests: Some(BTreeMap::from([cpu, memory])),
        ..ResourceRequirements::default()
    }
}

fn check_address(flag: &'static str, address: &str) -> Result<(), Error> {
    let fits = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    if fits {
        Ok(())
    } else {
        Err(Error::Address(flag, address.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(more: &[&str]) -> Result<Config, Error> {
        let least = [
            "operator",
            "--replica=operator-0",
            "--relay-address=relay.svc:8443",
            "--enroll-address=relay.svc:8444",
            "--agent-image=agent:test",
        ];
        Config::try_from(Args::parse_from(least.iter().chain(more)))
    }

    #[test]
    fn the_definition_holds() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn each_setting_of_the_file_is_documented() {
        use clap::CommandFactory;
        let table = remoteprocess_settings::table(&Args::command(), &remoteprocess_settings::is_setting);
        let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
        remoteprocess_settings::check_docs(docs.as_ref(), "operator", &table);
    }

    #[test]
    fn empty_values_of_the_chart_mean_nothing_set() {
        let config = parse(&["--server=", "--watch-namespaces="]).unwrap();
        assert_eq!((config.server, config.watch_namespaces), (None, Vec::new()));
    }

    #[test]
    fn there_are_triggers_if_the_bridge_has_an_image() {
        assert_eq!(parse(&["--bridge-image="]).unwrap().bridge, None);
        let settings = [
            "--bridge-image=bridge:1",
            "--bridge-memory=64Mi",
            "--bridge-image-pull-secrets=",
        ];
        let bridge = parse(&settings).unwrap().bridge.unwrap();
        assert_eq!(
            (bridge.image.as_str(), bridge.image_pull_secrets),
            ("bridge:1", Vec::new())
        );
        let limits = bridge.resources.limits.unwrap();
        assert_eq!(limits["memory"], Quantity("64Mi".into()));
    }

    #[test]
    fn a_store_is_made_of_its_settings() {
        let s3 = ["--archive-store=S3", "--archive-bucket=logs", "--archive-prefix=/a/b/"];
        let config = parse(&s3).unwrap();
        let StoreConfig::S3 { bucket, path_style, .. } = config.archive else {
            panic!("{:?}", config.archive);
        };
        assert_eq!(
            (bucket.name.as_str(), bucket.prefix.as_str(), path_style),
            ("logs", "a/b", false)
        );
        for (wrong, named) in [
            (&["--archive-store=GCS"][..], "--archive-bucket"),
            (
                &["--archive-store=S3", "--archive-bucket=b", "--archive-endpoint=host"],
                "--archive-endpoint",
            ),
            (&["--archive-retention-max-size=lots"], "--archive-retention-max-size"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn cas_live_as_long_as_they_are_told() {
        let config = parse(&[]).unwrap();
        assert_eq!(
            (config.ca_source, config.ca_schedule),
            (Source::Own, Schedule::default())
        );
        let set = [
            "--ca-secret=mine",
            "--ca-duration=30m",
            "--certificate-duration=1m",
            "--ca-renew-before=600s",
        ];
        let config = parse(&set).unwrap();
        assert_eq!(config.ca_source, Source::Secret("mine".into()));
        assert_eq!(config.ca_schedule.overlap(), Duration::from_secs(120));
        for (wrong, named) in [
            ("--ca-duration=lots", "--ca-duration"),
            ("--certificate-duration=0s", "--certificate-duration"),
            ("--ca-duration=2h", "three times"),
        ] {
            let error = parse(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn retention_is_off_unless_it_is_set() {
        assert_eq!(parse(&[]).unwrap().retention, Retention::default());
        let set = ["--archive-retention-days=7", "--archive-retention-max-size=1Gi"];
        let retention = parse(&set).unwrap().retention;
        assert_eq!(retention.max_age.map(|age| age.as_secs()), Some(7 * 86_400));
        assert_eq!(retention.max_bytes, Some(1 << 30));
    }

    #[test]
    fn one_face_may_be_off() {
        assert_eq!(parse(&[]).unwrap().faces, Switches::default());
        let faces = parse(&["--faces-grpc=false"]).unwrap().faces;
        assert_eq!((faces.grpc, faces.http), (false, true));
        let none = parse(&["--faces-grpc=false", "--faces-http=false"]).unwrap_err();
        assert!(none.to_string().contains("--faces-http"), "{none}");
    }

    #[test]
    fn traces_need_a_url() {
        assert_eq!(parse(&["--tracing-otlp-endpoint="]).unwrap().tracing, None);
        let otlp = parse(&["--tracing-otlp-endpoint=http://collector:4317"])
            .unwrap()
            .tracing;
        assert_eq!(otlp.unwrap().endpoint, "http://collector:4317");
        let error = parse(&["--tracing-otlp-endpoint=collector:4317"]).unwrap_err();
        assert!(error.to_string().contains("--tracing-otlp-endpoint"), "{error}");
    }

    #[test]
    fn a_wrong_address_is_named() {
        let error = parse(&["--server=no-port"]).unwrap_err();
        assert!(error.to_string().contains("--server"), "{error}");
        assert!(parse(&["--server=[fd00::1]:8443"]).is_ok());
    }
}
