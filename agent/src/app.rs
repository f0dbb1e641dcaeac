//! Wires the parts of the agent together, and shuts them down.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use remoteprocess_entrypoint::message::StopCause;
use remoteprocess_tls::{ClientAuth, Limits, serve};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::args::Config;
use crate::enroll::Enrollment;
use crate::home::{self, Homes};
use crate::mask::Mask;
use crate::process::facts::{Done, Ending};
use crate::process::machine::Phase;
use crate::process::{Process, Settings};
use crate::service::ExecutorService;
use crate::spool::{Spool, record};

/// How long to wait for a relay that does not come when the pod ends.
const UNREACHABLE: Duration = Duration::from_secs(10);
/// How long the entrypoint may take to leave once everything is recorded.
const FAREWELL: Duration = Duration::from_secs(5);
/// Time for the answer to the final commit to get out.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Runs the agent until everything is archived, or until `shutdown` and the drain that follows it.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    if record::load::<Done>(&config.spool)?.is_some() {
        // Some foreign container keeps the pod alive, and the kubelet has started this one again.
        tracing::info!("everything is archived; nothing left to do");
        shutdown.cancelled().await;
        return Ok(());
    }
    let config = Arc::new(config);
    // Before anything can be launched.
    let mask = config.mask_dir.as_deref().map(Mask::load).transpose()?;
    let listener = bind(&config).await?;
    let address = SocketAddr::new(config.pod_ip, listener.local_addr()?.port()).to_string();
    let (spool, appender) = Spool::open(&config.spool, config.policy, mask).context("open the spool")?;
    let process = Process::start(Arc::new(spool), appender, settings(&config)).context("start")?;
    let homes = Homes::default();
    let (done, is_done) = watch::channel(false);
    let service = ExecutorService::new(process.clone(), homes.clone(), done);
    let closing = CancellationToken::new();
    let serving = tokio::spawn(be_served(
        Arc::clone(&config),
        listener,
        address,
        service,
        (process.clone(), homes.clone()),
        closing.clone(),
    ));
    tokio::select! {
        () = becomes_true(is_done.clone()) => {}
        () = shutdown.cancelled() => drain(&process, &homes, is_done.clone(), config.drain).await,
    }
    leave(&process, *is_done.borrow(), &closing, serving).await;
    Ok(())
}

async fn bind(config: &Config) -> anyhow::Result<TcpListener> {
    let any: IpAddr = match config.pod_ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(any, config.listen_port);
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))
}

fn settings(config: &Config) -> Settings {
    Settings {
        socket: config.handover.join("socket"),
        echo_pointer: format!(
            "\nrproc: this log ends here; the whole output: rproc logs -n {} {}\n",
            config.process_namespace, config.process_name
        ),
    }
}

/// Enrolls, then serves and keeps a home. The port is already bound: early connections wait in the kernel's queue.
async fn be_served(
    config: Arc<Config>,
    listener: TcpListener,
    address: String,
    service: ExecutorService,
    (process, homes): (Process, Homes),
    closing: CancellationToken,
) {
    let began = SystemTime::now();
    let enrollment = Arc::new(Enrollment::new(Arc::clone(&config)));
    let identity = tokio::select! {
        identity = enrollment.first() => identity,
        () = closing.cancelled() => return,
    };
    let limits = Limits {
        drain: LAST_ANSWERS,
        unproven: 32,
        unproven_per_source: 8,
        connections: 64,
        connections_per_identity: 64,
        ..Limits::default()
    };
    let serving = serve(
        listener,
        Arc::clone(&identity),
        ClientAuth::OperatorOnly,
        service.into_server(),
        limits,
        closing,
    );
    let relay = home::Relay {
        config,
        address,
        enrollment: Arc::clone(&enrollment),
        identity: Arc::clone(&identity),
        began,
        entrypoint_connected: OnceLock::new(),
    };
    let keeping = home::keep(relay, process, homes);
    tokio::select! {
        () = serving => {}
        () = enrollment.keep_fresh(&identity) => {}
        () = keeping => {}
    }
}

/// Runs when the program or the pod ends: waits for the final commit, but not longer than the kubelet will. It also
/// waits for an absent relay, unless the pod is being deleted.
async fn drain(process: &Process, homes: &Homes, is_done: watch::Receiver<bool>, limit: Duration) {
    let (is_idle, is_deleted) = {
        let status = process.status();
        let facts = &status.borrow().facts;
        let is_told = match &facts.ending {
            Some(Ending::Reported(exited)) => exited.stop == Some(StopCause::Terminated),
            _ => false,
        };
        (facts.launch.is_none() && facts.ending.is_none(), is_told)
    };
    if is_idle {
        tracing::info!("ending; nothing was launched");
        return;
    }
    tracing::info!(?limit, "ending; waiting for the archive");
    tokio::select! {
        () = becomes_true(is_done) => {}
        () = tokio::time::sleep(limit) => tracing::warn!("the archive is not complete in time"),
        () = unreachable(homes), if is_deleted => tracing::warn!("no relay came"),
    }
}

async fn becomes_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|is_true| *is_true).await.is_err() {
        // The service is gone; it cannot become true anymore.
        std::future::pending().await
    }
}

/// Returns when there has been no home for a while.
async fn unreachable(homes: &Homes) {
    let mut home = homes.watch();
    loop {
        // The sender lives in `homes`.
        let _ = home.wait_for(|home| !home.is_present).await;
        let come = home.wait_for(|home| home.is_present);
        if tokio::time::timeout(UNREACHABLE, come).await.is_err() {
            return;
        }
    }
}

async fn leave(process: &Process, is_done: bool, closing: &CancellationToken, serving: JoinHandle<()>) {
    if is_done {
        let mut status = process.status();
        let gone = status.wait_for(|status| !status.is_connected);
        if tokio::time::timeout(FAREWELL, gone).await.is_err() {
            tracing::warn!("leaving, though the entrypoint has not");
        }
    } else if process.status().borrow().phase != Phase::Waiting {
        let progress = process.spool().progress();
        tracing::error!(written = ?progress.written, archived = ?progress.archived, "leaving before all is archived");
    }
    closing.cancel();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the service ended badly");
    }
    tracing::info!("leaving");
}
