//! The terminals of `rproc proxy` in front of a relay of the test: who may open one, bytes in both directions over
//! connections that break, and the bounds of both windows.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::exit::Outcome;
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::relay_server::{Relay, RelayServer};
use remoteprocess_proto::v1::{
    self, AttachOpen, AttachRequest, AttachResponse, Cursor, Data, Exit, GapReason, OutputFrame, Seal,
    Stream as WireStream, StreamSeal,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::ClientRequestBuilder;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{WebSocketStream, client_async};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use super::attach::soon;
use super::exec::Container;
use super::proxy::{Served, serve_world};
use super::world::world_of;

const HOUR: Duration = Duration::from_secs(3600);
const PROTOCOL: &str = "v1.terminal.remoteprocess.dev";
/// What either side may send before the other confirms.
const WINDOW: usize = 256 * 1024;

/// A process at a terminal that shows what is typed and ends with 7 at the end of its input.
#[derive(Clone, Default)]
struct Shell {
    /// Before the client came.
    replay: &'static str,
    /// The output that is lost between the replay and what is typed.
    lost: u64,
    typed: Arc<Mutex<Vec<u8>>>,
    has_ended: Arc<Mutex<bool>>,
    changed: Arc<Notify>,
    openings: Arc<Mutex<Vec<AttachOpen>>>,
    windows: Arc<Mutex<Vec<(u32, u32)>>>,
    /// Whether another client has the input.
    is_held: bool,
    let_go: watch::Sender<bool>,
}

impl Shell {
    fn take(&self, asked: Asked) -> AttachResponse {
        let mut typed = self.typed.lock().unwrap();
        match asked {
            Asked::Open(open) => self.openings.lock().unwrap().push(open),
            Asked::Input(piece) => {
                let known = typed.len() as u64;
                assert!(piece.offset <= known, "a hole");
                let skipped = usize::try_from(known - piece.offset).unwrap().min(piece.bytes.len());
                typed.extend_from_slice(&piece.bytes[skipped..]);
            }
            Asked::End(end) => *self.has_ended.lock().unwrap() = end.offset == typed.len() as u64,
            Asked::Resize(size) => self.windows.lock().unwrap().push((size.rows, size.columns)),
        }
        self.changed.notify_waiters();
        AttachResponse {
            accepted: typed.len() as u64,
            is_over: false,
        }
    }

    /// The output from this offset on; `None` while there is none.
    fn frame(&self, offset: usize) -> Option<Frame> {
        let typed_from = self.replay.len() + usize::try_from(self.lost).unwrap();
        let data = |bytes: &[u8]| {
            Frame::Data(Data {
                stream: WireStream::Stdout.into(),
                offset: offset as u64,
                bytes: Bytes::copy_from_slice(bytes),
                ..Data::default()
            })
        };
        if offset < self.replay.len() {
            return Some(data(&self.replay.as_bytes()[offset..]));
        }
        if offset < typed_from {
            return Some(Frame::Gap(v1::Gap {
                stream: WireStream::Stdout.into(),
                from: offset as u64,
                to: Some(typed_from as u64),
                reason: GapReason::SpoolFull.into(),
            }));
        }
        let typed = self.typed.lock().unwrap();
        let more = &typed[offset - typed_from..];
        if !more.is_empty() {
            return Some(data(&more[..more.len().min(3000)]));
        }
        self.has_ended.lock().unwrap().then(|| {
            let seal = |bytes| {
                Some(StreamSeal {
                    bytes,
                    ..StreamSeal::default()
                })
            };
            Frame::Exit(Exit {
                outcome: Outcome::Code.into(),
                value: 7,
                sealed: true,
                seal: Some(Seal {
                    stdout: seal(offset as u64),
                    stderr: seal(0),
                    ..Seal::default()
                }),
                ..Exit::default()
            })
        })
    }

    async fn next(&self, offset: usize) -> Frame {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if let Some(frame) = self.frame(offset) {
                return frame;
            }
            changed.await;
        }
    }
}

/// Where the output continues after a frame; `None` after the end.
fn behind(offset: usize, frame: &Frame) -> Option<usize> {
    match frame {
        Frame::Data(data) => Some(offset + data.bytes.len()),
        Frame::Gap(gap) => Some(usize::try_from(gap.to.unwrap()).unwrap()),
        _ => None,
    }
}

#[tonic::async_trait]
impl Relay for Shell {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<AttachResponse, Status>> + Send>>;

    async fn attach(&self, request: Request<Streaming<AttachRequest>>) -> Result<Response<Self::AttachStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.unwrap().request.unwrap();
        let Asked::Open(open) = &first else {
            return Err(Status::invalid_argument("open"));
        };
        if self.is_held && !open.take_over {
            self.openings.lock().unwrap().push(open.clone());
            return Err(Status::resource_exhausted("bob is writing into the process"));
        }
        let (answers, told) = mpsc::channel(64);
        let shell = self.clone();
        tokio::spawn(async move {
            let _ = answers.send(Ok(shell.take(first))).await;
            while let Ok(Some(request)) = requests.message().await {
                let _ = answers.send(Ok(shell.take(request.request.unwrap()))).await;
            }
            shell.let_go.send_replace(true);
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(
            told,
        ))))
    }

    type WatchOutputStream = Pin<Box<dyn Stream<Item = Result<OutputFrame, Status>> + Send>>;

    async fn watch_output(
        &self,
        request: Request<v1::WatchOutputRequest>,
    ) -> Result<Response<Self::WatchOutputStream>, Status> {
        let from = request.into_inner().cursor.unwrap_or_default().stdout;
        let shell = self.clone();
        let frames = futures::stream::unfold(Some(usize::try_from(from).unwrap()), move |next| {
            let shell = shell.clone();
            async move {
                let offset = next?;
                let frame = shell.next(offset).await;
                let next = behind(offset, &frame);
                Some((Ok(OutputFrame { frame: Some(frame) }), next))
            }
        });
        Ok(Response::new(frames.boxed()))
    }

    async fn get_state(&self, _: Request<v1::GetStateRequest>) -> Result<Response<v1::GetStateResponse>, Status> {
        let output = Some(Cursor {
            stdout: self.replay.len() as u64,
            stderr: 0,
        });
        Ok(Response::new(v1::GetStateResponse {
            process: Some(v1::ProcessState {
                output,
                ..v1::ProcessState::default()
            }),
            ..v1::GetStateResponse::default()
        }))
    }

    type ExecStream = Pin<Box<dyn Stream<Item = Result<v1::ExecResponse, Status>> + Send>>;

    async fn exec(&self, _: Request<Streaming<v1::ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::permission_denied("alice may not create remoteprocesses/exec"))
    }

    async fn start(&self, _: Request<v1::StartRequest>) -> Result<Response<v1::StartResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list(&self, _: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn signal(&self, _: Request<v1::SignalRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stop(&self, _: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn proxy(relay: impl Relay) -> Served {
    serve_world(world_of(Routes::new(RelayServer::new(relay)), HOUR).await).await
}

/// A client of a terminal, as the page is one.
struct Client {
    socket: WebSocketStream<TcpStream>,
    /// Output so far.
    shown: Vec<u8>,
    /// Input that was sent, and that was passed on.
    sent: usize,
    taken: usize,
    confirms: bool,
    close: Option<CloseCode>,
}

impl Client {
    /// A client that has not said what it wants.
    async fn connect(served: &Served, kind: &str) -> Self {
        let port = served.port;
        let uri = format!("ws://127.0.0.1:{port}/terminal/default/job/{kind}");
        let request = ClientRequestBuilder::new(uri.parse().unwrap())
            .with_header("Authorization", format!("Bearer {}", served.token))
            .with_sub_protocol(PROTOCOL);
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (socket, _) = soon(client_async(request, stream)).await.unwrap();
        Self {
            socket,
            shown: Vec::new(),
            sent: 0,
            taken: 0,
            confirms: true,
            close: None,
        }
    }

    async fn open(served: &Served, kind: &str, open: Value) -> Self {
        let mut client = Self::connect(served, kind).await;
        let mut first = json!({"type": "open", "size": {"rows": 30, "columns": 90}});
        first.as_object_mut().unwrap().extend(open.as_object().unwrap().clone());
        client.say(first).await;
        client
    }

    async fn say(&mut self, said: Value) {
        soon(self.socket.send(Message::text(said.to_string()))).await.unwrap();
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.sent += bytes.len();
        soon(self.socket.send(Message::binary(bytes.to_vec()))).await.unwrap();
    }

    /// The next message that is not output; output is kept and confirmed. `None` at the end.
    async fn step(&mut self) -> Option<Value> {
        soon(self.next()).await
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    self.shown.extend_from_slice(&bytes);
                    if self.confirms {
                        self.say(json!({"type": "taken", "bytes": self.shown.len()})).await;
                    }
                    return Some(json!({"type": "output"}));
                }
                Some(Ok(Message::Text(text))) => {
                    let told: Value = serde_json::from_str(&text).unwrap();
                    if told["type"] == "taken" {
                        let taken = usize::try_from(told["bytes"].as_u64().unwrap()).unwrap();
                        assert!((self.taken..=self.sent).contains(&taken));
                        self.taken = taken;
                    }
                    return Some(told);
                }
                Some(Ok(Message::Close(frame))) => self.close = frame.map(|frame| frame.code),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// The next message of this type.
    async fn until(&mut self, kind: &str) -> Value {
        loop {
            let told = self.step().await.expect("the terminal has ended");
            if told["type"] == kind {
                return told;
            }
        }
    }

    async fn until_shown(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.shown).contains(text) {
            self.step().await.expect("the terminal has ended");
        }
    }

    /// Writes all of this as the window allows, with its end.
    async fn write_all(&mut self, input: &[u8]) -> Vec<Value> {
        let mut told = Vec::new();
        for part in input.chunks(9973) {
            while self.sent + part.len() - self.taken > WINDOW {
                told.push(self.step().await.expect("the terminal has ended"));
            }
            self.write(part).await;
        }
        self.say(json!({"type": "end"})).await;
        told
    }
}

/// Text without control characters, which a terminal would handle.
fn pattern(length: usize) -> Vec<u8> {
    (b' '..=b'~').cycle().step_by(31).take(length).collect()
}

/// The status of the answer to this request, which has no other headers.
async fn status(port: u16, line: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer.to_vec()).unwrap();
    answer.strip_prefix("HTTP/1.1 ").unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_terminal_is_refused_without_the_session_from_another_site_or_without_the_protocol() {
    let shell = Shell::default();
    let served = proxy(shell.clone()).await;
    let (port, token) = (served.port, &served.token);
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let offer = format!("Sec-WebSocket-Protocol: {PROTOCOL}\r\n");
    let bearer = format!("Authorization: Bearer {token}\r\n");
    let cookie = format!("Cookie: rproc-{port}={token}\r\n");
    let own = format!("Origin: http://127.0.0.1:{port}\r\n");
    let line = "GET /terminal/default/job/attach";
    for (expected, line, headers) in [
        (
            403,
            line,
            format!("{upgrade}{offer}{bearer}Origin: http://evil.example\r\n"),
        ),
        (
            403,
            line,
            format!("{upgrade}{offer}{cookie}Origin: http://127.0.0.1:1\r\n"),
        ),
        (
            403,
            line,
            format!("{upgrade}{offer}{cookie}{own}Sec-Fetch-Site: cross-site\r\n"),
        ),
        (403, line, format!("{upgrade}{offer}{cookie}")),
        (401, line, format!("{upgrade}{offer}{own}")),
        (401, line, format!("{upgrade}{offer}Authorization: Bearer x\r\n")),
        (400, line, format!("{upgrade}{bearer}")),
        (400, line, format!("{offer}{bearer}")),
        (
            404,
            "GET /terminal/default/job/other",
            format!("{upgrade}{offer}{bearer}"),
        ),
        (
            400,
            "POST /terminal/default/job/attach",
            format!("{upgrade}{offer}{bearer}Content-Length: 0\r\n"),
        ),
    ] {
        assert_eq!(status(port, line, &headers).await, expected, "{line} {headers}");
    }
    assert!(shell.openings.lock().unwrap().is_empty() && served.world.signed() == 0);
    for headers in [
        format!("{upgrade}{offer}{bearer}"),
        format!("{upgrade}{offer}{cookie}{own}"),
    ] {
        assert_eq!(status(port, line, &headers).await, 101, "{headers}");
    }
}

#[tokio::test]
async fn attach_shows_a_replay_without_its_queries_and_passes_on_what_is_typed() {
    let shell = Shell {
        replay: "$ old\x1b[c\x1b[?1049h",
        ..Shell::default()
    };
    let served = proxy(shell.clone()).await;
    let mut client = Client::open(&served, "attach", json!({"uid": "uid-1"})).await;
    client.until("live").await;
    client.until_shown("\x1b[?1049h").await;
    client.write(b"live\x1b[6n").await;
    client.say(json!({"type": "resize", "rows": 31, "columns": 91})).await;
    client.until_shown("live\x1b[6n").await;
    soon(async {
        while shell.windows.lock().unwrap().last() != Some(&(31, 91)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    client.say(json!({"type": "end"})).await;
    let exit = client.until("exit").await;
    assert_eq!(
        (&exit["code"], exit["message"].as_str()),
        (&json!(7), Some("job exited with code 7"))
    );
    assert_eq!(client.step().await, None);
    assert_eq!(client.close, Some(CloseCode::Normal));
    let shown = String::from_utf8(client.shown).unwrap();
    assert_eq!(shown, "$ old\x1b[?1049hlive\x1b[6n\x1b[?1049l");
    assert_eq!(client.taken, client.sent);
    let openings = shell.openings.lock().unwrap();
    let process = openings[0].process.clone().unwrap();
    assert_eq!(
        (&*process.namespace, &*process.name, &*process.uid),
        ("default", "job", "uid-1")
    );
    // The program draws its screen again.
    assert_eq!(shell.windows.lock().unwrap()[0], (29, 90));
}

#[tokio::test]
async fn input_that_another_client_has_can_be_taken_over() {
    let shell = Shell {
        replay: "of bob",
        lost: 5,
        is_held: true,
        ..Shell::default()
    };
    let served = proxy(shell.clone()).await;
    let mut client = Client::open(&served, "attach", json!({})).await;
    let held = client.until("input").await;
    assert_eq!(
        held,
        json!({"type": "input", "state": "held", "message": "bob is writing into the process"})
    );
    // What is typed now is for nobody, and the output continues.
    client.write(b"lost").await;
    while client.taken < 4 {
        client.step().await.unwrap();
    }
    client.until_shown("of bob").await;
    client.socket.close(None).await.unwrap();
    let mut client = Client::open(&served, "attach", json!({"takeOver": true})).await;
    let gap = client.until("gap").await;
    assert!(
        gap["message"].as_str().unwrap().starts_with("bytes 6 to 11 of stdout"),
        "{gap}"
    );
    client.write(b"mine").await;
    client.until_shown("mine").await;
    assert_eq!(*shell.typed.lock().unwrap(), b"mine");
    client.socket.close(None).await.unwrap();
    soon(shell.let_go.subscribe().wait_for(|has| *has)).await.unwrap();
    let mut watcher = Client::open(&served, "attach", json!({"watch": true})).await;
    watcher.until_shown("mine").await;
    let openings: Vec<bool> = shell
        .openings
        .lock()
        .unwrap()
        .iter()
        .map(|open| open.take_over)
        .collect();
    assert_eq!(openings, [false, true]);
}

#[tokio::test]
async fn a_refusal_has_its_code_and_its_reason() {
    let served = proxy(Shell::default()).await;
    let mut client = Client::open(&served, "exec", json!({"command": ["sh"]})).await;
    let error = client.until("error").await;
    let message = "alice may not create remoteprocesses/exec";
    assert_eq!(
        error,
        json!({"type": "error", "code": "PermissionDenied", "message": message})
    );
    assert_eq!(client.step().await, None);
}

/// Passes connections on to the relay, and cuts each one after some bytes, each a little later than the one before.
async fn cutting(target: String) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cuts = Arc::<Mutex<usize>>::default();
    let count = cuts.clone();
    tokio::spawn(async move {
        let mut limit = 60_000;
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&target).await.unwrap();
            let count = count.clone();
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = async {
                    let mut part = (&mut from_client).take(limit);
                    tokio::io::copy(&mut part, &mut to_server).await
                };
                let down = tokio::io::copy(&mut from_server, &mut to_client);
                tokio::select! {
                    _ = up => *count.lock().unwrap() += 1,
                    _ = down => {}
                }
            });
            limit = limit * 3 / 2;
        }
    });
    (address, cuts)
}

/// Sends all of this through a terminal of this kind, and returns the exit code. It must come back as output, once.
async fn passes_once(relay: impl Relay, kind: &str, is_cut: bool, input: &[u8]) -> Value {
    let mut world = world_of(Routes::new(RelayServer::new(relay)), HOUR).await;
    let mut cuts = Arc::default();
    if is_cut {
        let (address, counted) = cutting(world.cluster.server.clone().unwrap()).await;
        world.cluster.server = Some(address);
        cuts = counted;
    }
    let served = serve_world(world).await;
    let mut client = Client::open(&served, kind, json!({"command": ["cat", "-"]})).await;
    let mut told = client.write_all(input).await;
    while let Some(next) = client.step().await {
        told.push(next);
    }
    let exit = told.last().unwrap();
    assert_eq!(exit["type"], "exit", "{exit}");
    assert!(client.shown == input);
    assert_eq!(client.taken, input.len());
    let count = |kind: &str| told.iter().filter(|told| told["type"] == kind).count();
    assert_eq!(*cuts.lock().unwrap() > 2, is_cut);
    assert_eq!(count("cut") > 0, is_cut);
    assert_eq!(count("live"), count("cut") + 1, "each break is reported, and its end");
    exit["code"].clone()
}

#[tokio::test]
async fn a_megabyte_goes_through_a_terminal_once_over_connections_that_break() {
    let input = pattern(1 << 20);
    for is_cut in [false, true] {
        let container = Container::default();
        let code = passes_once(container.clone(), "exec", is_cut, &input).await;
        assert_eq!(code, 9);
        assert!(*container.input.lock().unwrap() == input);
        let opening = container.openings.lock().unwrap()[0].clone();
        assert_eq!(opening.command, ["cat", "-"]);
        let size = opening.terminal.unwrap();
        assert_eq!((size.rows, size.columns), (30, 90));
        let shell = Shell::default();
        let code = passes_once(shell.clone(), "attach", is_cut, &input).await;
        assert_eq!(code, 7);
        assert!(*shell.typed.lock().unwrap() == input);
    }
}

#[tokio::test]
async fn output_waits_for_a_client_that_shows_nothing() {
    let replay: &'static str = "x".repeat(WINDOW).leak();
    let served = proxy(Shell {
        replay,
        ..Shell::default()
    })
    .await;
    let mut client = Client::open(&served, "attach", json!({})).await;
    client.confirms = false;
    while client.shown.len() < WINDOW {
        client.step().await.unwrap();
    }
    // Input is passed on meanwhile.
    client.write(b"behind").await;
    while client.taken < 6 {
        client.step().await.unwrap();
    }
    let early = timeout(Duration::from_millis(100), client.step()).await;
    assert!(early.is_err() && client.shown.len() == WINDOW, "{early:?}");
    client.say(json!({"type": "taken", "bytes": 10})).await;
    client.until("output").await;
    assert!(client.shown.ends_with(b"xbehind"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_command() {
    let container = Container::default();
    let served = proxy(container.clone()).await;
    let mut client = Client::open(&served, "exec", json!({"command": ["cat"]})).await;
    client.write(b"x").await;
    client.until_shown("x").await;
    drop(client);
    soon(container.let_go.subscribe().wait_for(|has| *has)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_detaches_and_the_process_continues() {
    let shell = Shell::default();
    let served = proxy(shell.clone()).await;
    let mut client = Client::open(&served, "attach", json!({})).await;
    client.write(b"before ").await;
    client.until_shown("before ").await;
    drop(client);
    soon(shell.let_go.subscribe().wait_for(|has| *has)).await.unwrap();
    assert!(!*shell.has_ended.lock().unwrap());
    let mut client = Client::open(&served, "attach", json!({})).await;
    client.write(b"after").await;
    client.until_shown("before after").await;
}

#[tokio::test]
async fn a_client_for_whom_no_terminal_is_left_is_told_so() {
    let served = proxy(Shell::default()).await;
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(Client::connect(&served, "attach").await);
    }
    let mut late = Client::connect(&served, "attach").await;
    let error = late.until("error").await;
    assert_eq!(error["code"], "ResourceExhausted");
    assert_eq!(late.step().await, None);
    let mut left = clients.pop().unwrap();
    left.socket.close(None).await.unwrap();
    while left.step().await.is_some() {}
    soon(async {
        loop {
            let mut next = Client::open(&served, "attach", json!({})).await;
            if next.step().await.unwrap()["type"] == "live" {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_that_does_not_keep_to_the_protocol_is_closed() {
    let served = proxy(Shell::default()).await;
    let large = Message::binary(vec![0; 64 * 1024 + 1]);
    for (said, code) in [
        (large, CloseCode::Size),
        (Message::text("{\"type\":\"open\"}"), CloseCode::Policy),
        (Message::text("{\"type\":\"taken\",\"bytes\":1}"), CloseCode::Policy),
        (
            Message::text(format!("{{\"type\":\"taken\",\"bytes\":{}}}", u64::MAX)),
            CloseCode::Policy,
        ),
        (
            Message::text("{\"type\":\"resize\",\"rows\":0,\"columns\":9}"),
            CloseCode::Policy,
        ),
        (Message::text("nonsense"), CloseCode::Policy),
    ] {
        let mut client = Client::open(&served, "attach", json!({})).await;
        client.until("live").await;
        client.socket.send(said.clone()).await.unwrap();
        while client.step().await.is_some() {}
        assert_eq!(client.close, Some(code), "{:?}", said.into_text());
    }
    let mut client = Client::open(&served, "attach", json!({"size": {"rows": 24, "columns": 5000}})).await;
    while client.step().await.is_some() {}
    assert_eq!(client.close, Some(CloseCode::Policy));
}
