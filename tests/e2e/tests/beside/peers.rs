//! Which peers are admitted: every method refuses every peer that it is not for.

use anyhow::{Context, Result, bail, ensure};
use remoteprocess_e2e::{Namespace, is_development_cluster, with_temp_ns};
use remoteprocess_proto::v1::enrollment_client::EnrollmentClient;
use remoteprocess_proto::v1::executor_client::ExecutorClient;
use remoteprocess_proto::v1::relay_client::RelayClient;
use remoteprocess_proto::v1::{
    EnrollRequest, ExecutorGetStateRequest, GetStateRequest, ListRequest, ProcessKey, SignalRequest, StartRequest,
    StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::{Authority, Dialer, KeyRequest, Role, User};
use tonic::transport::Channel;
use tonic::{Code, Status};

mod crowd;
pub(crate) mod relay;

use relay::{Relay, Target, trust_domain};

/// The answer of each method of `Relay`, except `Start`, to this peer.
async fn call_all(channel: &Channel, namespace: &str, name: &str) -> Vec<(&'static str, Result<(), Status>)> {
    let key = || {
        Some(ProcessKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: String::new(),
        })
    };
    let mut relay = RelayClient::new(channel.clone());
    let state = relay
        .get_state(GetStateRequest {
            protocol: 1,
            process: key(),
        })
        .await
        .map(drop);
    let list = relay
        .list(ListRequest {
            protocol: 1,
            namespace: namespace.to_owned(),
        })
        .await
        .map(drop);
    let watch = WatchOutputRequest {
        protocol: 1,
        process: key(),
        ..Default::default()
    };
    let watch = match relay.watch_output(watch).await {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    let signal = SignalRequest {
        protocol: 1,
        process: key(),
        number: 18,
        request_id: "e2e".to_owned(),
        ..Default::default()
    };
    let signal = relay.signal(signal).await.map(drop);
    let stop = relay
        .stop(StopRequest {
            protocol: 1,
            process: key(),
            ..Default::default()
        })
        .await
        .map(drop);
    vec![
        ("GetState", state),
        ("List", list),
        ("WatchOutput", watch),
        ("Signal", signal),
        ("Stop", stop),
    ]
}

async fn start(channel: &Channel, request: StartRequest) -> Result<bool, Status> {
    Ok(RelayClient::new(channel.clone())
        .start(request)
        .await?
        .into_inner()
        .granted)
}

/// Fails unless the peer gets no answer from any method of the main listener: not even a connection, or refusals.
async fn refused_everywhere(relay: &Relay, dialer: Dialer, namespace: &Namespace, target: &Target) -> Result<()> {
    // With TLS 1.3 the client's handshake ends before the server has checked the client.
    let Ok(channel) = relay.main(&dialer).await else {
        return Ok(());
    };
    for (method, answer) in call_all(&channel, &namespace.name, &target.name).await {
        ensure!(answer.is_err(), "{method} answered");
    }
    ensure!(start(&channel, target.start_request()).await.is_err(), "Start answered");
    Ok(())
}

/// Fails unless the start was refused: by an error, or by the answer.
fn not_granted(answer: Result<bool, Status>) -> Result<()> {
    match answer {
        Ok(true) => bail!("it was granted"),
        Ok(false) | Err(_) => Ok(()),
    }
}

fn denied<T>(method: &str, answer: Result<T, Status>) -> Result<()> {
    match answer {
        Ok(_) => bail!("{method} answered"),
        Err(status) if status.code() == Code::PermissionDenied => Ok(()),
        Err(status) => bail!("{method}: {status}"),
    }
}

pub(crate) fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(future)
}

#[test]
fn strangers_are_refused_on_every_method() {
    with_temp_ns("strangers", |namespace| {
        let relay = Relay::reach()?;
        let target = Target::start(namespace, "target")?;
        let stranger = Authority::generate(&trust_domain()?)?;
        let user = User {
            name: "admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..User::default()
        };
        block_on(async {
            refused_everywhere(&relay, relay.anonymous()?, namespace, &target).await?;
            let other_ca = relay.signed_by(&stranger, &Role::User, Some(&user))?;
            refused_everywhere(&relay, other_ca, namespace, &target).await?;
            let other_agent = relay.signed_by(&stranger, &target.agent(namespace), None)?;
            refused_everywhere(&relay, other_agent, namespace, &target).await
        })
    });
}

#[test]
fn an_agent_may_start_its_own_attempt_and_nothing_else() {
    with_temp_ns("agents", |namespace| {
        let relay = Relay::reach()?;
        let (own, other) = (Target::start(namespace, "own")?, Target::start(namespace, "other")?);
        block_on(async {
            let channel = relay.main(&relay.identity(&own.agent(namespace), None)?).await?;
            for (method, answer) in call_all(&channel, &namespace.name, "own").await {
                denied(method, answer)?;
            }
            not_granted(start(&channel, other.start_request()).await)?;
            let fresh = StartRequest {
                launched: false,
                ..other.start_request()
            };
            not_granted(start(&channel, fresh).await)?;
            let next = StartRequest {
                attempt: 2,
                launched: false,
                ..own.start_request()
            };
            not_granted(start(&channel, next).await)?;
            ensure!(start(&channel, own.start_request()).await?, "its own attempt goes on");
            let elsewhere = Role::Agent {
                namespace: "default".to_owned(),
                pod_uid: own.pod_uid.clone(),
            };
            let elsewhere = relay.main(&relay.identity(&elsewhere, None)?).await?;
            not_granted(start(&elsewhere, own.start_request()).await)
        })
    });
}

#[test]
fn a_user_is_no_agent() {
    with_temp_ns("users", |namespace| {
        let relay = Relay::reach()?;
        let target = Target::start(namespace, "target")?;
        let name = format!("system:serviceaccount:{}:editor", namespace.name);
        let user = User {
            name,
            groups: vec!["system:authenticated".to_owned()],
            ..User::default()
        };
        block_on(async {
            let channel = relay.main(&relay.identity(&Role::User, Some(&user))?).await?;
            denied("Start", start(&channel, target.start_request()).await)?;
            for (method, answer) in call_all(&channel, &namespace.name, "target").await {
                ensure!(answer.is_ok() || method == "List", "{method}: {answer:?}");
            }
            Ok(())
        })
    });
}

#[test]
fn an_agent_listens_to_the_operator_alone() {
    if !is_development_cluster("dialing an agent") {
        return;
    }
    with_temp_ns("executor", |namespace| {
        let relay = Relay::reach()?;
        let target = Target::start(namespace, "target")?;
        let user = User {
            name: "admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            ..User::default()
        };
        let role = target.agent(namespace);
        block_on(async {
            let peers = [
                relay.anonymous()?,
                relay.identity(&Role::User, Some(&user))?,
                relay.identity(&role, None)?,
                relay.signed_by(&Authority::generate(&trust_domain()?)?, &Role::Operator, None)?,
            ];
            for (number, peer) in peers.into_iter().enumerate() {
                let Ok(channel) = peer.connect(&target.address, &role).await else {
                    continue;
                };
                let answer = ExecutorClient::new(channel)
                    .get_state(ExecutorGetStateRequest { protocol: 1 })
                    .await;
                ensure!(answer.is_err(), "peer {number} got an answer");
            }
            let operator = relay
                .identity(&Role::Operator, None)?
                .connect(&target.address, &role)
                .await?;
            ExecutorClient::new(operator)
                .get_state(ExecutorGetStateRequest { protocol: 1 })
                .await?;
            Ok(())
        })
    });
}

#[test]
fn the_enroll_listener_serves_enrollment_to_valid_callers_alone() {
    with_temp_ns("enroll", |namespace| {
        let relay = Relay::reach()?;
        let target = Target::start(namespace, "target")?;
        let pod = namespace.pod("target")?["metadata"]["name"]
            .as_str()
            .context("a pod has a name")?
            .to_owned();
        let mint = |arguments: &[&str]| {
            namespace
                .kubectl(&["create", "token", "default"])
                .args(arguments)
                .succeed()
        };
        let ours = "--audience=remoteprocess.dev/enroll";
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod];
        let of_the_api = mint(&bound)?;
        let unbound = mint(&[ours])?;
        let taken = mint(&[ours, bound[0], bound[1], bound[2]])?;
        block_on(async {
            let dialer = relay.anonymous()?;
            let channel = dialer.connect(&relay.enroll, &Role::Operator).await?;
            for (method, answer) in call_all(&channel, &namespace.name, "target").await {
                ensure!(
                    answer.is_err_and(|status| status.code() == Code::Unimplemented),
                    "{method} is served here"
                );
            }
            let answer = start(&channel, target.start_request()).await;
            ensure!(
                answer.is_err_and(|status| status.code() == Code::Unimplemented),
                "Start is served here"
            );
            let large = "x".repeat(1 << 20);
            let tokens = [
                ("no token", ""),
                ("garbage", "garbage"),
                ("a large one", &large),
                ("the API server's audience", of_the_api.trim()),
                ("no pod", unbound.trim()),
                ("a live key", taken.trim()),
            ];
            for (what, token) in tokens {
                let answer = enroll(&relay, &dialer, &target, token).await?;
                ensure!(answer.is_err(), "{what} was accepted");
            }
            Ok(())
        })
    });
}

async fn enroll(relay: &Relay, dialer: &Dialer, target: &Target, token: &str) -> Result<Result<(), Status>> {
    let request = EnrollRequest {
        protocol: 1,
        token: token.to_owned(),
        csr: KeyRequest::generate()?.csr_der.into(),
        process_uid: target.uid.clone(),
        attempt: 1,
    };
    let channel = dialer.connect(&relay.enroll, &Role::Operator).await?;
    Ok(EnrollmentClient::new(channel).enroll(request).await.map(drop))
}
