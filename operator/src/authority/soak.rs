//! Rotations while everyone is connected: no handshake fails, no stream is cut, and a retired CA is refused.
//!
//! Only the time that the authority is told passes quickly; keys, certificates and handshakes are real.

use std::{
    convert::Infallible,
    net::SocketAddr,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use remoteprocess_tls::{ClientAuth, Dialer, KeyRequest, Limits, serve};
use tokio::{net::TcpListener, sync::broadcast, time::timeout};
use tonic::{body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use super::{
    tests::{Store, handle_of, published, request_rotation},
    *,
};

const AGENTS: usize = 4;

/// No single answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `/stream` with each further tick, and everything else at once.
#[derive(Clone)]
struct Ticker(broadcast::Sender<u64>);

impl<B> Service<Request<B>> for Ticker {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let ticks = stream::unfold(self.0.subscribe(), async |mut ticks| {
            let tick = ticks.recv().await.ok()?;
            let frame = Frame::data(Bytes::copy_from_slice(&tick.to_be_bytes()));
            Some((Ok::<_, Infallible>(frame), ticks))
        });
        let body = match request.uri().path() {
            "/stream" => Body::new(StreamBody::new(ticks)),
            _ => Body::empty(),
        };
        std::future::ready(Ok(Response::new(body))).boxed()
    }
}

async fn listen(identity: Arc<Identity>, client_auth: ClientAuth, ticker: Ticker) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let limits = Limits::default();
    tokio::spawn(serve(
        listener,
        identity,
        client_auth,
        ticker,
        limits,
        CancellationToken::new(),
    ));
    address
}

async fn ask(dialer: &Dialer, address: SocketAddr, role: &Role, path: &str) -> Result<Response<Body>, String> {
    let asked = async {
        let mut channel: Channel = dialer
            .connect(&address.to_string(), role)
            .await
            .map_err(|error| format!("{error:?}"))?;
        let request = Request::get(format!("http://peer{path}")).body(Body::empty());
        let channel = channel.ready().await.map_err(|error| format!("{error:?}"))?;
        let answer = channel.call(request.expect("a request")).await;
        answer.map_err(|error| format!("{error:?}"))
    };
    timeout(PATIENCE, asked).await.expect("an answer in time")
}

/// A replica of the operator: its authority, and its listeners.
struct Replica {
    handle: Arc<AuthorityHandle>,
    main: SocketAddr,
    enroll: SocketAddr,
}

impl Replica {
    async fn start(store: &Store, ticker: &Ticker) -> Self {
        let handle = handle_of(store).await.expect("an authority");
        Self {
            main: listen(handle.identity(), ClientAuth::Required, ticker.clone()).await,
            enroll: listen(handle.identity(), ClientAuth::None, ticker.clone()).await,
            handle,
        }
    }
}

struct Agent {
    role: Role,
    identity: Arc<Identity>,
    address: SocketAddr,
    renewed: SystemTime,
}

impl Agent {
    async fn start(number: usize, replica: &Replica, ticker: &Ticker, now: SystemTime) -> Self {
        let (chain, key) = Self::sign(number, replica);
        let identity = Identity::new(
            &chain,
            &key,
            &replica.handle.bundle_pem(),
            replica.handle.trust_domain(),
        );
        let identity = identity.expect("an identity");
        Self {
            role: identity.role(),
            address: listen(identity.clone(), ClientAuth::OperatorOnly, ticker.clone()).await,
            identity,
            renewed: now,
        }
    }

    fn sign(number: usize, replica: &Replica) -> (String, String) {
        let request = KeyRequest::generate().expect("a request");
        let chain = replica
            .handle
            .sign_agent(&request.csr_der, "default", &format!("pod-{number}"));
        (chain.expect("signed"), request.key_pem)
    }

    /// As the agent does: it trusts what it has learned, and learns more.
    async fn renew(&mut self, number: usize, replica: &Replica, now: SystemTime) {
        let dialer = Dialer::anonymous(&self.identity.bundle_pem(), self.identity.trust_domain()).expect("a dialer");
        ask(&dialer, replica.enroll, &Role::Operator, "/")
            .await
            .expect("it reaches the enrollment port");
        let (chain, key) = Self::sign(number, replica);
        let replaced = self.identity.replace(&chain, &key, &replica.handle.bundle_pem());
        replaced.expect("a good certificate");
        self.renewed = now;
    }
}

/// Each agent reaches each replica, and each replica reaches each agent. Answers the number of handshakes.
async fn everyone_connects(replicas: &[Replica], agents: &[Agent]) -> usize {
    let mut handshakes = 0;
    for replica in replicas {
        for agent in agents {
            let (own, operator) = (
                Dialer::new(agent.identity.clone()),
                Dialer::new(replica.handle.identity()),
            );
            ask(&own, replica.main, &Role::Operator, "/")
                .await
                .expect("the replica serves the agent");
            ask(&operator, agent.address, &agent.role, "/")
                .await
                .expect("the agent serves the replica");
            handshakes += 2;
        }
    }
    handshakes
}

/// Streams from each agent to a replica, and from a replica to each agent.
async fn open_streams(replicas: &[Replica; 2], agents: &[Agent]) -> Vec<Body> {
    let mut streams = Vec::new();
    for agent in agents {
        for (own, address, role) in [
            (replicas[0].handle.identity(), agent.address, &agent.role),
            (agent.identity.clone(), replicas[1].main, &Role::Operator),
        ] {
            let answer = ask(&Dialer::new(own), address, role, "/stream").await;
            streams.push(answer.expect("a stream").into_body());
        }
    }
    streams
}

async fn expect_tick(streams: &mut [Body], tick: u64) {
    for stream in streams {
        let frame = timeout(PATIENCE, stream.frame()).await.expect("in time");
        let frame = frame.expect("the stream lives").expect("and is whole");
        assert_eq!(
            frame.into_data().expect("data")[..],
            tick.to_be_bytes(),
            "nothing is missing"
        );
    }
}

/// The number of rotations that are done. The next one is requested as soon as the last one is over.
fn rotated(store: &Store, done: usize) -> usize {
    if published(store, "phase") != "Stable" {
        return done;
    }
    let is_answered = published(store, "answered") == format!("rotation {done}");
    let done = done + usize::from(is_answered);
    request_rotation(store, &format!("rotation {done}"));
    done
}

async fn is_refused(own: &(String, String), bundle: &str, address: SocketAddr, role: &Role) -> bool {
    let domain = "test.local".parse().expect("a domain");
    let dialer = Dialer::new(Identity::new(&own.0, &own.1, bundle, &domain).expect("an identity"));
    ask(&dialer, address, role, "/").await.is_err()
}

#[tokio::test]
async fn rotations_cut_nothing() {
    let is_long = std::env::var("RPROC_LONG").is_ok_and(|long| long == "1");
    let rotations = if is_long { 24 } else { 2 };
    let (store, ticker) = (Store::default(), Ticker(broadcast::Sender::new(16)));
    let replicas = [
        Replica::start(&store, &ticker).await,
        Replica::start(&store, &ticker).await,
    ];
    let (mut now, leaf, mut agents) = (SystemTime::now(), Schedule::default().leaf, Vec::new());
    for number in 0..AGENTS {
        agents.push(Agent::start(number, &replicas[number % 2], &ticker, now).await);
    }
    let first = replicas[0].handle.bundle_pem();
    let operator = issue(&replicas[0].handle.current.load().keyring, &Schedule::default()).expect("a leaf");
    let agent = Agent::sign(0, &replicas[0]);
    let mut streams = open_streams(&replicas, &agents).await;

    let (mut handshakes, mut done, mut tick) = (0, 0, 0_u64);
    while done < rotations {
        now += leaf / 6;
        tick += 1;
        let replica = &replicas[usize::try_from(tick % 2).expect("small")];
        replica.handle.refresh(now).await.expect("refreshed");
        done = rotated(&store, done);
        for (number, agent) in agents.iter_mut().enumerate() {
            if agent.renewed + leaf * 3 / 5 <= now {
                agent.renew(number, replica, now).await;
                handshakes += 1;
            }
        }
        handshakes += everyone_connects(&replicas, &agents).await;
        ticker.0.send(tick).expect("streams are open");
        expect_tick(&mut streams, tick).await;
        // A CA vouches for the two after it.
        if done < 2 {
            let away = Dialer::anonymous(&first, replicas[0].handle.trust_domain()).expect("a dialer");
            let asked = ask(&away, replica.enroll, &Role::Operator, "/").await;
            asked.expect("an agent that was away all the time comes back");
        }
    }
    assert!(handshakes >= rotations * 400, "{handshakes} handshakes");

    // The key of the first CA proves nothing any more.
    let trusting = format!("{first}{}", replicas[0].handle.bundle_pem());
    assert!(is_refused(&agent, &trusting, replicas[0].main, &Role::Operator).await);
    assert!(is_refused(&operator, &trusting, replicas[1].main, &Role::Operator).await);
    assert!(is_refused(&operator, &trusting, agents[0].address, &agents[0].role).await);
}
