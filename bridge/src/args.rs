//! Command line and environment, and the checked configuration made from them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use remoteprocess_api::names::ADMIN_PORT;
use remoteprocess_api::trigger::WEBHOOK_PORT;
use remoteprocess_runtime::{LogError, LogFormat};

use crate::engine;
use crate::source::{Secrets, Settings};

/// Takes the messages of one ProcessTrigger, creates a RemoteProcess for each, and sends the results back. The operator
/// runs it.
#[derive(Clone, Debug, Parser)]
#[command(name = "bridge", version)]
pub struct Args {
    /// Namespace of the trigger.
    #[arg(long, env = "RPROC_NAMESPACE")]
    namespace: String,
    /// Name of the trigger.
    #[arg(long, env = "RPROC_TRIGGER")]
    trigger: String,
    /// Address of the admin port: health and metrics.
    #[arg(long, env = "RPROC_ADMIN_LISTEN", default_value_t = any(ADMIN_PORT))]
    admin_listen: SocketAddr,
    /// Address of the webhook, if the source is HTTP.
    #[arg(long, env = "RPROC_WEBHOOK_LISTEN", default_value_t = any(WEBHOOK_PORT))]
    webhook_listen: SocketAddr,
    /// Directory with the Secrets in `credentials`, `ca` and `tls`. Default: where the operator mounts them.
    #[arg(long, env = "RPROC_SECRETS")]
    secrets: Option<PathBuf>,
    /// Format of the log: auto, json or text.
    #[arg(long, env = "RPROC_LOG_FORMAT", default_value = "auto")]
    log_format: String,
    /// Filter of the log, in the syntax of tracing-subscriber.
    #[arg(long, env = "RPROC_LOG_FILTER", default_value = "info,async_nats=warn")]
    log_filter: String,
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the engine.
    pub engine: engine::Config,
    /// Address of the admin port.
    pub admin_listen: SocketAddr,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Filter of the log.
    pub log_filter: String,
}

/// All addresses, of IPv4 as well.
fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

impl TryFrom<Args> for Config {
    type Error = LogError;

    fn try_from(args: Args) -> Result<Self, LogError> {
        let secrets = args.secrets.as_deref().map_or_else(Secrets::default, Secrets::under);
        Ok(Self {
            engine: engine::Config {
                namespace: args.namespace,
                trigger: args.trigger,
                settings: Settings {
                    secrets,
                    webhook: args.webhook_listen,
                },
            },
            admin_listen: args.admin_listen,
            log_format: args.log_format.parse()?,
            log_filter: args.log_filter,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_is_all_that_is_needed() {
        let args = Args::try_parse_from(["bridge", "--namespace", "shop", "--trigger", "orders"]).unwrap();
        let config = Config::try_from(args).unwrap();
        assert_eq!(
            (config.engine.namespace.as_str(), config.engine.trigger.as_str()),
            ("shop", "orders")
        );
        assert_eq!(config.engine.settings.secrets, Secrets::default());
        assert_eq!(config.admin_listen.port(), 8080);
        assert_eq!(config.engine.settings.webhook.port(), 8081);
        assert!(Args::try_parse_from(["bridge", "--namespace", "shop"]).is_err());
    }
}
