//! `rproc whoami`: who the cluster thinks we are, and the way to the relay.

use jiff::Timestamp;
use serde::Serialize;

use super::{DataFormat, Failure, open, print};
use crate::args::GlobalArgs;
use crate::connect::{Relay, Way};
use crate::login;
use crate::render::escape;

/// Flags of `whoami`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rproc whoami\n  rproc whoami -o json | jq -r .user")]
pub struct WhoamiArgs {
    /// Format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Me {
    user: String,
    groups: Vec<String>,
    api_server: String,
    namespace: String,
    relay: String,
    certificate_until: Timestamp,
}

/// Connects to the relay and says as whom.
///
/// # Errors
/// There is no way to the API server or the relay.
pub async fn run(global: &GlobalArgs, args: WhoamiArgs) -> Result<u8, Failure> {
    let cluster = open(global).await?;
    let user = login::user(&cluster).await?;
    let mut relay = Relay::new(cluster.clone());
    let trust = relay.trust().await?;
    let identity = relay.identity(&trust).await?;
    let (_, way) = relay.connect_by().await?;
    let me = Me {
        user: user.username.unwrap_or_default(),
        groups: user.groups.unwrap_or_default(),
        api_server: cluster.url.clone(),
        namespace: cluster.namespace.clone(),
        relay: match way {
            Way::Server(address) => format!("{address} (by --server)"),
            Way::Published(address) => format!("{address} (published by the operator)"),
            Way::Forwarded(pod) => format!("pod {}/{pod} (port-forward)", cluster.operator_namespace),
        },
        certificate_until: Timestamp::try_from(identity.not_after()).unwrap_or_default(),
    };
    if let Some(format) = args.output {
        format.print(&me)?;
        return Ok(0);
    }
    print(&format!(
        "User:         {}\nGroups:       {}\nAPI server:   {}\nNamespace:    {}\nRelay:        {}\nCertificate:  until {:.0}\n",
        escape(&me.user),
        escape(&me.groups.join(", ")),
        me.api_server,
        me.namespace,
        me.relay,
        me.certificate_until
    ))?;
    Ok(0)
}
