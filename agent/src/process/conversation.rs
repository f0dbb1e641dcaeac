//! The task that owns the machine: it receives requests, asks the machine, and acts.

mod exec;
mod greeting;
mod input;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use remoteprocess_entrypoint::input::WindowSize;
use remoteprocess_entrypoint::message::{FromEntrypoint, ToEntrypoint};
use remoteprocess_entrypoint::run_clock::Moment;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::capture::{Capture, Command};
use super::exec::{ExecRequest, Sessions};
use super::facts::{Fact, Facts, Stop};
use super::input::{Input, View};
use super::link::{self, Link, Newcomer};
use super::machine::{Action, Event, Machine, Phase};
use super::requests::{Ask, RequestError, Requests};
use super::settings::LaunchSettings;
use super::{Inbox, Process, Settings, StartError, Status, echo};
use crate::clock::{self, Timer};
use crate::spool::{Appender, Spool};

pub(super) use input::InputRequest;

/// How long to wait before a fact that the volume refused is written again.
const STORE_RETRY: Duration = Duration::from_millis(250);
/// How long the last echo may delay `Recorded`.
const ECHO_FLUSH: Duration = Duration::from_millis(500);
/// How many times a note (nothing waits for it) is tried.
const NOTE_TRIES: u32 = 4;

/// A request to the conversation, or news for it.
#[derive(Debug)]
pub enum Request {
    /// The relay allows the launch, with these settings.
    Granted(LaunchSettings),
    /// Stop the program; answered when the order is recorded and on its way.
    Stop(Stop, oneshot::Sender<()>),
    /// A request to the entrypoint, carried out once for each `id`.
    Ask {
        /// Chosen by the requester.
        id: String,
        /// What is to be done.
        ask: Ask,
        /// Receives the result.
        answer: oneshot::Sender<Result<(), RequestError>>,
    },
    /// How long the program may run from now on.
    RunDeadline(Option<Duration>, oneshot::Sender<Result<(), RequestError>>),
    /// From a writer to the program's input.
    Input(InputRequest),
    /// About a further command.
    Exec(ExecRequest),
    /// The pipes were read to their end.
    PipesEnded,
    /// The entrypoint on the connection with this number sent something.
    Heard(u64, link::Heard),
    /// The last of the echo has been sent.
    EchoFlushed,
}

/// The task that owns the machine.
pub(super) struct Conversation {
    spool: Arc<Spool>,
    machine: Machine,
    capture: Capture,
    link: Option<Link>,
    /// Distinguishes messages on the current connection from those on a replaced one.
    link_number: u64,
    held: Option<Instant>,
    lost: Option<Instant>,
    echo: Option<JoinHandle<()>>,
    outlet: watch::Sender<Option<mpsc::Sender<ToEntrypoint>>>,
    /// The line that ends a limited echo.
    echo_pointer: String,
    requested: Requests,
    input: Input,
    input_view: watch::Sender<View>,
    sessions: Sessions,
    /// Size of the terminal, as last requested.
    window: Option<WindowSize>,
    run_timer: Timer,
    status: watch::Sender<Status>,
    requests: mpsc::WeakUnboundedSender<Request>,
}

/// What came with the event that is being handled.
#[derive(Default)]
struct Baggage {
    newcomer: Option<Newcomer>,
    pipes: Vec<OwnedFd>,
}

impl Conversation {
    /// Listens, loads what is on the spool, and then runs until every sender of requests is gone.
    pub(super) fn start(spool: Arc<Spool>, appender: Appender, settings: Settings) -> Result<Process, StartError> {
        let facts = Facts::load(spool.directory())?;
        let launch = facts.launch;
        let input = Input::new(facts.lease.clone(), launch.is_some(), clock::now());
        let input_view = watch::Sender::new(input.view().clone());
        let (machine, first) = Machine::new(facts);
        let status = watch::Sender::new(status_of(&machine));
        let (process, inbox) = Process::connect(Arc::clone(&spool), status.subscribe(), input_view.subscribe());
        let requests = process.requests.downgrade();
        let (newcomers, arrivals) = mpsc::channel(1);
        let capture = Capture::spawn(appender, notify(requests.clone(), |()| Request::PipesEnded))?;
        link::listen(&settings.socket, newcomers)?;
        let mut conversation = Conversation {
            spool,
            machine,
            capture,
            link: None,
            link_number: 0,
            held: None,
            lost: None,
            echo: None,
            outlet: watch::Sender::new(None),
            echo_pointer: settings.echo_pointer,
            requested: Requests::default(),
            input_view,
            input,
            sessions: Sessions::default(),
            window: None,
            run_timer: Timer::new()?,
            status,
            requests,
        };
        if let Some(launch) = launch {
            conversation.apply(launch.settings);
        }
        tokio::spawn(conversation.run(inbox, arrivals, first));
        Ok(process)
    }

    async fn run(mut self, mut inbox: Inbox, mut arrivals: mpsc::Receiver<Newcomer>, first: Vec<Action>) {
        self.act(first, Baggage::default()).await;
        loop {
            let (held, lost, tick) = (self.held, self.lost, self.machine.next_tick());
            tokio::select! {
                biased;
                request = inbox.recv() => match request {
                    Some(request) => self.take(request).await,
                    None => return,
                },
                Some(newcomer) = arrivals.recv() => self.greet(newcomer).await,
                () = at(held) => {
                    self.held = None;
                    self.handle(Event::Held).await;
                }
                () = at(lost) => {
                    self.lost = None;
                    self.handle(Event::Lost).await;
                }
                () = at_moment(&self.run_timer, tick) => self.handle(Event::Tick(clock::now())).await,
            }
            self.status.send_replace(status_of(&self.machine));
        }
    }

    async fn take(&mut self, request: Request) {
        match request {
            Request::Granted(settings) => self.handle(Event::Granted(settings)).await,
            Request::PipesEnded => self.handle(Event::PipesEnded).await,
            Request::Stop(stop, done) => {
                self.handle(Event::Stop(stop)).await;
                // The requester may be gone.
                let _ = done.send(());
            }
            Request::Ask { id, ask, answer } => {
                let (link, phase) = (self.link.as_ref(), self.machine.phase());
                self.requested.request(id, ask, answer, link, phase);
            }
            Request::RunDeadline(run_deadline, answer) => {
                let result = self.set_run_deadline(run_deadline).await;
                let _ = answer.send(result);
            }
            Request::Input(request) => self.take_input(request).await,
            Request::Exec(request) => self.take_exec(request),
            Request::Heard(number, heard) if number == self.link_number => self.hear(heard).await,
            Request::Heard(..) => {}
            Request::EchoFlushed => self.send(ToEntrypoint::Recorded),
        }
    }

    async fn hear(&mut self, heard: link::Heard) {
        match heard {
            None => {
                self.hang_up();
                self.handle(Event::Disconnected).await;
            }
            Some((
                FromEntrypoint::Launched {
                    pid,
                    at_unix_nanos,
                    is_paused,
                    input,
                },
                pipes,
            )) => {
                let event = Event::Launched {
                    pid,
                    at_unix_nanos: at_unix_nanos.try_into().unwrap_or(i64::MAX),
                    has_pipes: !pipes.is_empty(),
                    is_paused,
                    now: clock::now(),
                };
                self.handle_with(event, Baggage { newcomer: None, pipes }).await;
                match input {
                    Some(state) => self.input_is(state),
                    None => self.input_is_over(),
                }
            }
            Some((FromEntrypoint::Input(state), _)) => self.input_is(state),
            Some((FromEntrypoint::Session { session, news }, pipes)) => self.hear_session(&session, news, pipes),
            Some((FromEntrypoint::Exited(exited), _)) => {
                self.handle(Event::Exited(exited)).await;
                self.input_is_over();
            }
            Some((FromEntrypoint::Done { request, error }, _)) => {
                if let Some(Ask::Pause(is_paused)) = self.requested.done(&request, error) {
                    self.handle(Event::Paused(is_paused, clock::now())).await;
                }
                self.requested.confirm(request);
            }
            Some((FromEntrypoint::Hello { .. }, _)) => {
                tracing::warn!("the entrypoint said hello twice");
                self.hang_up();
                self.handle(Event::Disconnected).await;
            }
        }
    }

    async fn set_run_deadline(&mut self, run_deadline: Option<Duration>) -> Result<(), RequestError> {
        match self.machine.phase() {
            Phase::Running | Phase::Paused => {
                self.handle(Event::RunDeadline(run_deadline)).await;
                Ok(())
            }
            Phase::Stopping => Err(RequestError::Stopping),
            Phase::Waiting | Phase::Starting | Phase::Exited => Err(RequestError::NotRunning),
        }
    }

    async fn handle(&mut self, event: Event) {
        self.handle_with(event, Baggage::default()).await;
    }

    async fn handle_with(&mut self, event: Event, baggage: Baggage) {
        tracing::debug!(?event, "event");
        let actions = self.machine.on(event);
        self.act(actions, baggage).await;
    }

    async fn act(&mut self, actions: Vec<Action>, mut baggage: Baggage) {
        for action in actions {
            match action {
                Action::Apply(settings) => self.apply(settings),
                Action::Persist(fact) => self.persist(fact, u32::MAX).await,
                Action::Note(fact) => self.persist(fact, NOTE_TRIES).await,
                Action::Send(order) => self.send(order),
                Action::Accept => self.accept(baggage.newcomer.take()),
                Action::Refuse(why) => {
                    tracing::warn!(why, "hanging up on a connection");
                    // Without a newcomer the current connection is the one that misbehaves.
                    if baggage.newcomer.take().is_none() {
                        self.hang_up();
                    }
                }
                Action::Attach => {
                    let mut pipes = std::mem::take(&mut baggage.pipes).into_iter();
                    if let Some(stdout) = pipes.next() {
                        let stderr = pipes.next();
                        self.capture.order(Command::Attach { stdout, stderr });
                    }
                }
                Action::DrainPipes => self.capture.order(Command::DrainPipes),
                Action::CloseStreams => self.capture.order(Command::Close),
                Action::FlushAndRecord => self.flush_and_record(),
                Action::ArmHeld(after) => self.held = Some(Instant::now() + after),
                Action::ArmLost(after) => self.lost = Some(Instant::now() + after),
            }
        }
    }

    /// Before the launch, or when an agent comes back after it.
    fn apply(&mut self, settings: LaunchSettings) {
        self.spool.set_when_full(settings.when_full);
        let echo = echo::run(
            Arc::clone(&self.spool),
            self.spool.progress().written,
            settings.echo,
            std::mem::take(&mut self.echo_pointer),
            self.outlet.subscribe(),
        );
        self.echo = Some(tokio::spawn(echo));
        if let Some(why) = settings.refuses_writers() {
            self.input.refuse(why);
            self.show_input();
        }
    }

    async fn persist(&self, fact: Fact, tries: u32) {
        for _ in 0..tries {
            let (spool, stored) = (Arc::clone(&self.spool), fact.clone());
            let storing = tokio::task::spawn_blocking(move || stored.store(spool.directory()));
            match storing.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::warn!(%error, ?fact, "a fact cannot be stored"),
                Err(error) => tracing::error!(%error, "storing a fact"),
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    fn send(&mut self, mut order: ToEntrypoint) {
        if let ToEntrypoint::Launch(launch) = &mut order {
            launch.terminal = launch.terminal.map(|size| self.window.unwrap_or(size));
        }
        if let Some(link) = &self.link
            && !link.send(order)
        {
            tracing::warn!("the entrypoint takes no orders");
        }
    }

    fn accept(&mut self, newcomer: Option<Newcomer>) {
        let Some(newcomer) = newcomer else {
            return;
        };
        self.hang_up();
        self.link_number += 1;
        let number = self.link_number;
        let link = newcomer.accept(notify(self.requests.clone(), move |heard| {
            Request::Heard(number, heard)
        }));
        self.outlet.send_replace(Some(link.echo.clone()));
        self.link = Some(link);
        self.lost = None;
    }

    fn hang_up(&mut self) {
        self.outlet.send_replace(None);
        self.link = None;
        self.requested.forget_pending();
        self.lose_sessions();
        self.input_is_unknown();
    }

    fn flush_and_record(&mut self) {
        let echo = self.echo.take();
        let flushed = notify(self.requests.clone(), |()| Request::EchoFlushed);
        tokio::spawn(async move {
            if let Some(echo) = echo {
                // If the log does not take the rest in time, the rest is left out.
                let _ = tokio::time::timeout(ECHO_FLUSH, echo).await;
            }
            flushed(());
        });
    }
}

/// A callback with which others send to the conversation, and which does not keep it alive.
fn notify<T>(
    requests: mpsc::WeakUnboundedSender<Request>,
    request: impl Fn(T) -> Request + Send + 'static,
) -> impl Fn(T) + Send + 'static {
    move |value| {
        if let Some(requests) = requests.upgrade() {
            // Fails only when the conversation has ended meanwhile.
            let _ = requests.send(request(value));
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

async fn at_moment(timer: &Timer, moment: Option<Moment>) {
    match moment {
        Some(moment) => timer.until(moment).await,
        None => std::future::pending().await,
    }
}

fn status_of(machine: &Machine) -> Status {
    Status {
        phase: machine.phase(),
        is_connected: machine.is_connected(),
        facts: machine.facts().clone(),
    }
}
