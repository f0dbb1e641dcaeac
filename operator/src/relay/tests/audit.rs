//! What the audit log says about each action and each refusal, and what it does not.

use std::sync::Arc;
use std::time::Duration;

use object_store::memory::InMemory;
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::attach_request::Request as Asked;
use remoteprocess_proto::v1::exec_request::Request as ExecAsked;
use remoteprocess_proto::v1::{
    AttachOpen, AttachRequest, ExecOpen, ExecRequest, Input, ListRequest, Phase, ProcessKey, Reason, SignalRequest,
    StopRequest,
};
use remoteprocess_tls::Role;
use tokio::time::timeout;
use tonic::Code;

use super::replica::{Replica, UID};
use crate::audit::lines::{Line, Lines};
use crate::relay::archive::Archive;
use crate::relay::live::fake_agent::{FakeAgent, Program};
use crate::relay::live::{Desired, LiveAttempt, ProgramSpec, ProgramStatus, StopOrder};

/// Much longer than any step takes; only a hang lasts this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// Stands wherever a user writes something that may be secret.
const CANARY: &str = "canary-7c1f";

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("in time")
}

fn process() -> Option<ProcessKey> {
    Some(ProcessKey {
        namespace: "default".to_owned(),
        name: "hello".to_owned(),
        ..ProcessKey::default()
    })
}

/// A home with a running program.
async fn home() -> (Replica, FakeAgent, Arc<Program>, Arc<LiveAttempt>) {
    let replica = Replica::start(&Archive::new(Arc::new(InMemory::new()))).await;
    let program = Program::new(&[(false, 1000); 4]);
    program.written.send_replace(1);
    program.says(Phase::Running, Reason::Running);
    let agent = FakeAgent::serve(&program).await;
    let live = replica.open(&agent);
    (replica, agent, program, live)
}

/// The lines about an action, once there are some.
async fn of(lines: &Lines, action: &str) -> Vec<Line> {
    soon(async {
        loop {
            let found: Vec<_> = lines
                .audit()
                .into_iter()
                .filter(|line| line["action"] == action)
                .collect();
            if !found.is_empty() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

async fn attach(replica: &Replica, open: AttachOpen, offset: u64) {
    let say = |asked| AttachRequest { request: Some(asked) };
    let open = AttachOpen {
        protocol: PROTOCOL,
        process: process(),
        session: CANARY.to_owned(),
        ..open
    };
    let bytes = CANARY.as_bytes().to_vec().into();
    let requests = [say(Asked::Open(open)), say(Asked::Input(Input { offset, bytes }))];
    let answers = soon(replica.client().await.attach(futures::stream::iter(requests))).await;
    soon(answers.unwrap().into_inner().message()).await.unwrap();
}

async fn exec(replica: &Replica) -> Result<(), tonic::Status> {
    let say = |asked| ExecRequest { request: Some(asked) };
    let open = ExecOpen {
        protocol: PROTOCOL,
        process: process(),
        session: CANARY.to_owned(),
        command: vec![CANARY.into(), CANARY.into()],
        ..ExecOpen::default()
    };
    let bytes = CANARY.as_bytes().to_vec().into();
    let requests = [
        say(ExecAsked::Open(open)),
        say(ExecAsked::Input(Input { offset: 0, bytes })),
    ];
    let answers = soon(replica.client().await.exec(futures::stream::iter(requests))).await?;
    soon(answers.into_inner().message()).await.map(drop)
}

#[tokio::test]
async fn each_action_of_a_user_is_one_line_with_all_fields_and_no_content() {
    let lines = Lines::collect();
    let (replica, _agent, _program, _live) = home().await;
    let mut client = replica.client().await;
    let signal = SignalRequest {
        protocol: PROTOCOL,
        process: process(),
        request_id: CANARY.to_owned(),
        number: 10,
        ..SignalRequest::default()
    };
    soon(client.signal(signal)).await.unwrap();
    let stop = StopRequest {
        protocol: PROTOCOL,
        process: process(),
        message: CANARY.to_owned(),
        ..StopRequest::default()
    };
    soon(client.stop(stop)).await.unwrap();
    exec(&replica).await.unwrap();
    attach(&replica, AttachOpen::default(), 0).await;
    let open = AttachOpen {
        take_over: true,
        ..AttachOpen::default()
    };
    attach(&replica, open, CANARY.len() as u64).await;
    let audit = lines.audit();
    let acts: Vec<_> = audit
        .iter()
        .map(|line| (line["action"].as_str(), line.get("detail").map_or("", String::as_str)))
        .collect();
    assert_eq!(
        acts,
        [
            ("signal", "SIGUSR1"),
            ("stop", ""),
            ("exec", "opens"),
            ("attach", "opens"),
            ("attach", "takes over")
        ]
    );
    for line in &audit {
        let field = |name| line.get(name).map_or("", String::as_str);
        assert_eq!(
            [field("user"), field("groups"), field("uid")],
            ["alice", "dev,ops", UID],
            "{line:?}"
        );
        assert_eq!(
            [field("namespace"), field("name"), field("attempt")],
            ["default", "hello", "1"],
            "{line:?}"
        );
        assert_eq!(field("source"), "127.0.0.1", "{line:?}");
        assert!(field("serial").len() >= 16, "{line:?}");
    }
    assert!(!lines.text().contains(CANARY), "{}", lines.text());
}

#[tokio::test]
async fn what_the_object_requests_is_recorded_with_its_field_manager() {
    let lines = Lines::collect();
    let (_replica, _agent, program, live) = home().await;
    let manager = "kubectl-patch through spec.desiredState";
    let want = |is_paused: bool| Desired {
        program: Some(ProgramSpec {
            generation: 2 + i64::from(!is_paused),
            is_paused,
            requested_by: manager.to_owned(),
            status: ProgramStatus {
                is_started: true,
                is_paused: !is_paused,
                ..ProgramStatus::default()
            },
            ..ProgramSpec::default()
        }),
        ..Desired::default()
    };
    live.update_desired(want(true));
    let paused = of(&lines, "pause").await;
    program.says(Phase::Paused, Reason::Paused);
    live.update_desired(want(false));
    let resumed = of(&lines, "resume").await;
    live.update_desired(Desired {
        stop: Some(StopOrder {
            requested_by: manager.to_owned(),
            message: CANARY.to_owned(),
        }),
        ..Desired::default()
    });
    let stopped = of(&lines, "stop").await;
    for found in [paused, resumed, stopped] {
        assert_eq!(found.len(), 1, "{found:?}");
        let field = |name| found[0].get(name).map_or("", String::as_str);
        assert_eq!(
            [field("requested_by"), field("uid"), field("attempt")],
            [manager, UID, "1"]
        );
    }
    assert!(!lines.text().contains(CANARY), "{}", lines.text());
}

#[tokio::test]
async fn each_refusal_is_one_line_with_its_reason() {
    let lines = Lines::collect();
    let (replica, _agent, _program, _live) = home().await;
    replica.deny("exec");
    let denied = exec(&replica).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let list = ListRequest {
        protocol: PROTOCOL,
        namespace: CANARY.repeat(3000),
    };
    let large = soon(replica.client().await.list(list.clone())).await.unwrap_err();
    assert!(matches!(large.code(), Code::OutOfRange | Code::Cancelled), "{large}");
    let other = soon(replica.client_as(&Role::Operator).await.list(list))
        .await
        .unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    let refusals = of(&lines, "refuse").await;
    let told = |line: &Line| [line["method"].clone(), line["reason"].clone(), line["role"].clone()];
    let told: Vec<_> = refusals.iter().map(told).collect();
    assert_eq!(
        told,
        [
            ["Exec", "NoRight", "a user"],
            ["List", "TooLarge", "a user"],
            ["List", "NoRole", "the operator"],
        ]
    );
    for line in refusals.iter().take(2) {
        assert_eq!(
            [&line["user"], &line["groups"], &line["source"]],
            ["alice", "dev,ops", "127.0.0.1"]
        );
    }
    assert!(refusals.iter().all(|line| line["serial"].len() >= 16));
    assert!(!lines.text().contains(CANARY), "{}", lines.text());
}
