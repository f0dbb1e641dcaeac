//! The agent's host: its spool, service and connection to the home are real; the entrypoint and the thread that polls
//! the pipes are played.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use remoteprocess_agent::clock::unix_nanos;
use remoteprocess_agent::home::{self, Ask, Homes};
use remoteprocess_agent::process::facts::{Closed, Done, Ending, Fact, Facts, Launch, Started};
use remoteprocess_agent::process::input::View;
use remoteprocess_agent::process::machine::Phase;
use remoteprocess_agent::process::settings::LaunchSettings;
use remoteprocess_agent::process::{Inbox, Process, Request, Status};
use remoteprocess_agent::service::ExecutorService;
use remoteprocess_agent::spool::{self, Appender, Policy, Spool, Stall, Stream, Taken, WhenFull, record};
use remoteprocess_entrypoint::message::{Exited, Outcome, Usage};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{StartRequest, StartResponse};
use remoteprocess_tls::{ClientAuth, Dialer, Limits, Role, serve};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::network::{self, Port};
use super::plan::AGENT;
use super::{UID, World, agent_role, identity};

/// How often the pipes are polled.
const POLL: Duration = Duration::from_millis(10);
/// Turns on one pipe before the other gets its turn.
const TURNS: usize = 4;
/// Time limit of one `Start`, as in the real agent.
const START_LIMIT: Duration = Duration::from_secs(15);

struct Relays {
    world: Arc<World>,
    dialer: Dialer,
}

impl Ask for Relays {
    async fn start(&self, launched: bool) -> Result<StartResponse, home::Error> {
        let request = StartRequest {
            protocol: PROTOCOL,
            process_uid: UID.to_owned(),
            attempt: 1,
            address: SocketAddr::new(turmoil::lookup(AGENT), network::PORT).to_string(),
            launched,
            ..StartRequest::default()
        };
        let to = self.world.any_relay();
        let ask = async {
            let channel = network::dial(&self.world, &self.dialer, (AGENT, &to), &Role::Operator, None).await?;
            let response = RelayClient::new(channel).start(request).await.map_err(Box::new)?;
            Ok(response.into_inner())
        };
        timeout(START_LIMIT, ask).await.unwrap_or(Err(home::Error::Timeout))
    }

    /// Certificates outlive the simulation.
    async fn renew(&self) {}
}

/// The spool, as the product opens it: what happens when it is full comes with the launch.
fn open(world: &World) -> Result<(Spool, Appender), spool::Error> {
    let policy = Policy {
        when_full: WhenFull::Block,
        ..world.plan.spool
    };
    Spool::open(world.spool.path(), policy, None)
}

/// One life of the agent.
pub(super) async fn run(world: Arc<World>) -> turmoil::Result {
    let directory = world.spool.path().to_owned();
    if record::load::<Done>(&directory)?.is_some() {
        world.has_left.store(true, Ordering::Relaxed);
        return Ok(());
    }
    let (spool, appender) = open(&world)?;
    let facts = Facts::load(&directory)?;
    let phase = match (&facts.launch, &facts.closed) {
        (None, _) => Phase::Starting,
        (Some(_), None) => Phase::Running,
        (Some(_), Some(_)) => Phase::Exited,
    };
    let status = watch::Sender::new(Status {
        phase,
        is_connected: true,
        facts,
    });
    let spool = Arc::new(spool);
    if let Some(launch) = status.borrow().facts.launch {
        spool.set_when_full(launch.settings.when_full);
    }
    let input = watch::Sender::new(View::default());
    let (process, inbox) = Process::connect(Arc::clone(&spool), status.subscribe(), input.subscribe());
    let homes = Homes::default();
    let (done, mut is_done) = watch::channel(false);
    let service = ExecutorService::new(process.clone(), homes.clone(), done);
    let identity = identity(&agent_role());
    let relays = Relays {
        world: world.clone(),
        dialer: Dialer::new(identity.clone()),
    };
    let limits = Limits {
        drain: Duration::from_secs(1),
        ..Limits::default()
    };
    let closing = CancellationToken::new();
    let serving = serve(
        Port::bind().await?,
        identity,
        ClientAuth::Required,
        service.into_server(),
        limits,
        closing.clone(),
    );
    let leaving = async {
        // An error would mean that the service is gone.
        if is_done.wait_for(|is_done| *is_done).await.is_ok() {
            closing.cancel();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = serving => {}
        () = home::keep(relays, process, homes) => {}
        () = leaving => {}
        played = play(&world, &spool, appender, &status, inbox) => return Ok(played?),
    }
    world.has_left.store(true, Ordering::Relaxed);
    Ok(())
}

/// Plays the entrypoint and the capture thread.
async fn play(
    world: &World,
    spool: &Spool,
    mut appender: Appender,
    status: &watch::Sender<Status>,
    mut inbox: Inbox,
) -> Result<(), spool::Error> {
    let note = |fact: Fact, phase: Phase| -> Result<(), spool::Error> {
        fact.store(spool.directory())?;
        status.send_modify(|status| {
            status.phase = phase;
            match fact {
                Fact::Launch(launch) => status.facts.launch = Some(launch),
                Fact::Started(started) => status.facts.started = Some(started),
                Fact::Ending(ending) => status.facts.ending = Some(ending),
                Fact::Closed(closed) => status.facts.closed = Some(closed),
                Fact::Welcomed(_) | Fact::Stop(_) | Fact::Clock(_) | Fact::Warned(_) | Fact::Lease(_) => {}
            }
        });
        Ok(())
    };
    if status.borrow().facts.launch.is_none() {
        let Some(settings) = granted(&mut inbox).await else {
            return Ok(());
        };
        spool.set_when_full(settings.when_full);
        let at_unix_nanos = unix_nanos();
        let launch = Launch {
            at_unix_nanos,
            settings,
        };
        note(Fact::Launch(launch), Phase::Starting)?;
        world.program().launch(turmoil::sim_elapsed().unwrap_or_default());
        note(Fact::Started(Started { pid: 7, at_unix_nanos }), Phase::Running)?;
    }
    if status.borrow().facts.closed.is_none() {
        capture(world, &mut appender).await?;
        let ending = Ending::Reported(exited(world.plan.exit_code));
        note(Fact::Ending(ending), Phase::Exited)?;
        note(Fact::Closed(Closed::Whole), Phase::Exited)?;
    }
    appender.close();
    std::future::pending().await
}

/// Waits for the grant. Other requests are dropped, which refuses them.
async fn granted(inbox: &mut Inbox) -> Option<LaunchSettings> {
    loop {
        if let Request::Granted(settings) = inbox.recv().await? {
            return Some(settings);
        }
    }
}

/// Moves the pipes' bytes into the spool until both have ended.
async fn capture(world: &World, appender: &mut Appender) -> Result<(), spool::Error> {
    let mut has_ended = [false; 2];
    loop {
        if world.program().has_ended() {
            appender.set_ending();
        }
        for stream in Stream::ALL {
            let ended = &mut has_ended[stream as usize];
            for _ in 0..TURNS {
                if *ended || !appender.has_room() {
                    break;
                }
                match appender.take(stream, world.program().pipe(stream))? {
                    Taken::Bytes(_) => {}
                    Taken::Nothing => break,
                    Taken::End => *ended = true,
                }
            }
        }
        if has_ended == [true; 2] {
            return Ok(());
        }
        let is_held_back = !appender.has_room();
        // The next poll comes earlier than the time at which it asks to be called again.
        let _ = appender.set_stalled(is_held_back.then_some(Stall::SpoolFull));
        sleep(POLL).await;
    }
}

fn exited(code: i32) -> Exited {
    Exited {
        outcome: Outcome::Code(code),
        at_unix_nanos: unix_nanos().try_into().unwrap_or_default(),
        usage: Usage {
            user_micros: 1,
            system_micros: 1,
            max_rss_bytes: 1,
            ..Usage::default()
        },
        leftovers: 0,
        oom_kills: 0,
        is_oom: false,
        stop: None,
    }
}
