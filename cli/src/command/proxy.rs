//! `rproc proxy`: HTTP/JSON of the relay on this machine, without a certificate.

use std::sync::Arc;

use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::output::complain;
use crate::print::print;
use crate::proxy::gate::Gate;
use crate::proxy::page::Page;
use crate::proxy::relay::Upstream;
use crate::proxy::{self, Proxy};
use remoteprocess_client::Cluster;
use tokio::net::TcpListener;

/// Flags of `proxy`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ProxyArgs {
    /// Port on 127.0.0.1; 0 chooses a free one
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,
}

const EXAMPLES: &str = "Examples:
  # Print a link that works once, and serve until Ctrl-C
  rproc proxy --port 8001

  # Exchange the link for a cookie, then list processes
  curl -c cookies 'http://127.0.0.1:8001/login?token=...'
  curl -b cookies http://127.0.0.1:8001/v1/namespaces/default/processes

With \"Accept: application/json\", the link gives a bearer token instead. The
proxy has your permissions: give neither to others.";

/// Prints the link, and serves until a signal ends this program.
///
/// # Errors
/// There is no way to the relay, or the port is taken.
pub async fn run(global: &GlobalArgs, args: ProxyArgs) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let (proxy, listener, link) = prepare(cluster, args.port, None).await?;
    print(&format!("{link}\n"))?;
    complain("serving HTTP/JSON on this machine until Ctrl-C; the link works once, see rproc proxy --help");
    match proxy.serve(listener).await {}
}

/// A proxy that is connected to the relay, its listener, and its link.
///
/// # Errors
/// There is no way to the relay, or the port is taken.
pub(super) async fn prepare(
    cluster: Arc<Cluster>,
    port: u16,
    page: Option<Page>,
) -> Result<(Proxy, TcpListener, String), Failure> {
    let upstream = Arc::new(Upstream::new(cluster));
    upstream.connect().await?;
    let taken = |error| {
        Failure::new(format!(
            "cannot listen on 127.0.0.1:{port}: {error}. Choose another --port"
        ))
    };
    let listener = proxy::listen(port).await.map_err(taken)?;
    let gate = Gate::new(listener.local_addr()?.port())?;
    let link = gate.link().unwrap_or_default();
    Ok((Proxy::new(gate, upstream, page), listener, link))
}
