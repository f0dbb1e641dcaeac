//! Entry points for the targets in `fuzz/`: what decides about the input of peers and users, without a server, a cluster
//! and a clock. The product does not use this module.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use remoteprocess_api::{RemoteProcess, RemoteProcessStatus};
use remoteprocess_proto::v1::output_frame::Frame;
use remoteprocess_proto::v1::{Cursor, LaunchSettings};
use remoteprocess_tls::User;

use crate::authority::csr::decision::{SigningDecision, decide_signing};
use crate::controller::validate::validate;
use crate::controller::{AgentSettings, Handover, Profile, build_pod};
use crate::phase::pod::is_owned;
use crate::phase::{self, Action, Memory, NodeSight, Sight, Situation};
use crate::relay::archive::{self, Segment, SegmentName};
use crate::relay::core::settings;
use crate::relay::enroll::{machine, proof};
use crate::relay::live;
use crate::relay::piece::{Framed, Piece, Placed};

/// What is signed for a request: its PKCS#10 part (DER), the user, and for how long. `None` if it is for another signer or
/// has its answer.
///
/// # Errors
/// The denial.
pub fn judge_request(request: &CertificateSigningRequest) -> Result<Option<(Vec<u8>, User, Duration)>, String> {
    match decide_signing(request) {
        SigningDecision::Leave => Ok(None),
        SigningDecision::Deny(sentence) => Err(sentence),
        SigningDecision::Sign(order) => Ok(Some((order.csr_der, order.user, order.lifetime))),
    }
}

/// Namespace, pod and pod uid of the agent whose token was reviewed, if `process` names that pod for the attempt.
///
/// # Errors
/// Why the agent gets no certificate.
pub fn judge_agent(
    review: TokenReviewStatus,
    pod: &Pod,
    process: &RemoteProcess,
    process_uid: &str,
    attempt: u32,
) -> Result<[String; 3], String> {
    let bound = proof::read_review(review)?;
    proof::check_pod(pod, &bound)?;
    proof::claimed_owner(pod).ok_or("no process controls it")?;
    let attempt = proof::Attempt {
        process_uid: process_uid.to_owned(),
        number: attempt,
    };
    proof::check_process(process, &bound, &attempt)?;
    Ok([bound.namespace, bound.pod_name, bound.pod_uid])
}

/// The machine whose token was reviewed.
///
/// # Errors
/// Why it is not logged in.
pub fn judge_machine(review: TokenReviewStatus) -> Result<User, String> {
    machine::read_review(review)
}

/// When a token expires, according to itself.
pub fn token_expiry(token: &str) -> Option<SystemTime> {
    machine::expiry(token)
}

/// As a writer of the archive encodes a segment; `None` if it cannot continue after `after`.
pub fn encode_segment(name: &SegmentName, pieces: &[Piece], after: Option<&Segment>, compress: bool) -> Option<Bytes> {
    Segment::encode(name, pieces, after, compress)
}

/// The part of a segment that a reader at `at` gets.
pub fn read_segment(segment: Segment, at: Cursor) -> Vec<Placed> {
    archive::beyond(segment.pieces, at)
}

/// What a follower gets of the frames of an agent, each with the message that brought it, after `begin`.
///
/// # Errors
/// Why the relay ends the stream.
pub fn carry(sent: Vec<(Frame, Bytes)>, begin: Cursor, part: usize) -> Result<Vec<Framed>, &'static str> {
    live::carry(sent, begin, part)
}

/// The pod of an attempt, in each of its forms.
///
/// # Errors
/// Why there is none.
pub fn build_pods(process: &RemoteProcess, attempt: u32) -> Result<Vec<Pod>, String> {
    let validated = validate(process).map_err(|error| error.to_string())?;
    let forms = [
        (Profile::Ordinary, Handover::Hook),
        (Profile::Restricted, Handover::ImageVolume),
    ];
    let build = |(profile, handover)| build_pod(&validated, attempt, &agent_settings(handover), profile);
    Ok(forms.into_iter().map(build).collect())
}

/// What the agent is told with its grant.
///
/// # Errors
/// Why there is no grant.
pub fn launch_settings(process: &RemoteProcess) -> Result<LaunchSettings, String> {
    settings::launch_settings(&process.spec)
}

/// One reconcile: the status that is written, and the attempt whose pod is created after that.
pub fn decide(process: &RemoteProcess, pod: Option<&Pod>, now: Timestamp) -> (RemoteProcessStatus, Option<u32>) {
    let memory = Memory::default();
    let situation = Situation {
        process,
        pod: match pod {
            Some(pod) if is_owned(pod, process) => Sight::Ours(pod),
            Some(pod) => Sight::Foreign(pod),
            None => Sight::Missing,
        },
        node: NodeSight::default(),
        memory: &memory,
        now,
    };
    let decision = match validate(process) {
        Err(sentence) if !process.is_final() => phase::decide_invalid(&situation, &sentence.to_string()),
        _ => phase::decide(&situation),
    };
    let created = match decision.action {
        Action::CreatePod(attempt) => Some(attempt),
        Action::None | Action::DeletePod { .. } | Action::DeleteProcess => None,
    };
    (decision.status, created)
}

fn agent_settings(handover: Handover) -> AgentSettings {
    AgentSettings {
        image: "agent".into(),
        image_pull_policy: None,
        image_pull_secrets: vec!["pull".into()],
        relay: "relay:8443".into(),
        relay_enroll: "relay:8444".into(),
        ca_bundle: String::new(),
        trust_domain: "remoteprocess.local".into(),
        drain_seconds: u32::MAX,
        listen_port: 20443,
        resources: ResourceRequirements::default(),
        handover,
        request_ephemeral_storage: true,
        traceparent: Some("00-trace".into()),
    }
}
