//! Signs the CertificateSigningRequests of people and machines, for the signer `remoteprocess.dev/client`.
//!
//! The requester is the user that the API server recorded in the request's spec, and the certificate says exactly that.
//! Names in the PKCS#10 request itself are never copied, and a request that claims another name is denied.

pub(crate) mod decision;

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use remoteprocess_api::{CsrReason, names};
use remoteprocess_tls::serial;
use tokio_util::sync::CancellationToken;

pub(crate) use self::decision::check_size;
use self::decision::{SigningDecision, decide_signing, quoted};
use super::{AuthorityHandle, Error, metrics::count_refusal};
use crate::audit::{Action, Audit};
use crate::backoff::{Backoff, WATCH_PAGE};

/// Requests handled at the same time.
const CONCURRENCY: usize = 16;

/// Number of tries for one request, and the pause between them.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(1);

/// Answers requests until `shutdown`. Every replica may run it: the first answer to a request wins.
pub async fn run(client: Client, handle: Arc<AuthorityHandle>, shutdown: CancellationToken) {
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let signer = format!("spec.signerName={}", names::CLIENT_SIGNER);
    let config = watcher::Config::default().fields(&signer).page_size(WATCH_PAGE);
    let requests = watcher(api.clone(), config).backoff(Backoff::WATCH).applied_objects();
    requests
        .take_until(shutdown.cancelled())
        .for_each_concurrent(CONCURRENCY, |request| async {
            match request {
                Ok(request) => answer_patiently(&api, &handle, request).await,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "certificate requests cannot be watched"
                    );
                }
            }
        })
        .await;
}

/// The watch reports each change once, so a failure is retried here.
async fn answer_patiently(
    api: &Api<CertificateSigningRequest>,
    handle: &AuthorityHandle,
    request: CertificateSigningRequest,
) {
    for _ in 0..TRIES {
        match answer(api, handle, request.clone()).await {
            Ok(()) => return,
            // Another replica was first, or the request is gone: the watch reports what became of it.
            Err(Error::Kube(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => return,
            Err(error) => {
                let name = request.name_any();
                tracing::warn!(
                    request = name,
                    error = &error as &dyn std::error::Error,
                    "cannot answer a request"
                );
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Handles one request: approves and signs it, denies it, or leaves it alone. Writes carry the resourceVersion, so the
/// answer applies to exactly the request that was checked.
async fn answer(
    api: &Api<CertificateSigningRequest>,
    handle: &AuthorityHandle,
    request: CertificateSigningRequest,
) -> Result<(), Error> {
    let name = request.name_any();
    let order = match decide_signing(&request) {
        SigningDecision::Leave => return Ok(()),
        SigningDecision::Deny(sentence) => return deny(api, request, &sentence).await,
        SigningDecision::Sign(order) => order,
    };
    let chain = match handle.sign_user(&order.csr_der, &order.user, order.lifetime) {
        Ok(chain) => chain,
        Err(error @ remoteprocess_tls::Error::Request(_)) => return deny(api, request, &error.to_string()).await,
        Err(error) => return Err(error.into()),
    };
    let mut approved = if is_approved(&request) {
        request
    } else {
        let message = "The subject is who the API server says asked.";
        approve_or_deny(
            api,
            request,
            condition("Approved", CsrReason::RemoteProcessUser, message),
        )
        .await?
    };
    let serial = serial(&chain).unwrap_or_default();
    approved.status.get_or_insert_default().certificate = Some(ByteString(chain.into_bytes()));
    api.replace_status(&name, &PostParams::default(), &approved).await?;
    let audit = Audit {
        name: &name,
        serial: &serial,
        ..Audit::by(&order.user)
    };
    audit.write(Action::Login);
    Ok(())
}

/// An approved request cannot be denied anymore; it is marked as failed.
async fn deny(
    api: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
    sentence: &str,
) -> Result<(), Error> {
    let name = request.name_any();
    tracing::info!(
        request = name,
        user = request.spec.username.as_deref().map(quoted),
        reason = sentence,
        "denied a certificate"
    );
    count_refusal("csr", "Denied");
    let audit = Audit {
        user: request.spec.username.as_deref().unwrap_or_default(),
        groups: request.spec.groups.as_deref().unwrap_or_default(),
        name: &name,
        ..Audit::default()
    };
    audit.refuse("CertificateSigningRequest", None, "Denied");
    if is_approved(&request) {
        push(
            &mut request,
            condition("Failed", CsrReason::RemoteProcessRefused, sentence),
        );
        api.replace_status(&name, &PostParams::default(), &request).await?;
    } else {
        approve_or_deny(
            api,
            request,
            condition("Denied", CsrReason::RemoteProcessRefused, sentence),
        )
        .await?;
    }
    Ok(())
}

async fn approve_or_deny(
    api: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
    condition: CertificateSigningRequestCondition,
) -> Result<CertificateSigningRequest, Error> {
    push(&mut request, condition);
    Ok(api
        .replace_subresource("approval", &request.name_any(), &PostParams::default(), &request)
        .await?)
}

fn push(request: &mut CertificateSigningRequest, condition: CertificateSigningRequestCondition) {
    request
        .status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default()
        .push(condition);
}

fn condition(kind: &str, reason: CsrReason, message: &str) -> CertificateSigningRequestCondition {
    let now = Some(Time(jiff::Timestamp::now()));
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_string()),
        message: Some(message.to_owned()),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

fn is_approved(request: &CertificateSigningRequest) -> bool {
    has_condition(request, &["Approved"])
}

fn has_condition(request: &CertificateSigningRequest, kinds: &[&str]) -> bool {
    let conditions = request
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    conditions
        .iter()
        .any(|condition| kinds.contains(&condition.type_.as_str()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use remoteprocess_tls::{Identity, KeyRequest, Role};
    use serde_json::Value;

    use super::*;
    use crate::{authority, fake_api};

    fn request(key: &KeyRequest) -> CertificateSigningRequest {
        let mut request = decision::tests::request();
        request.spec.request = ByteString(key.csr_pem.clone().into_bytes());
        request
    }

    /// Handles one request with an API server that accepts every write; returns the writes, by the last part of their
    /// path.
    async fn writes_for(request: CertificateSigningRequest) -> Vec<(String, Value)> {
        let writes = Arc::new(Mutex::new(Vec::new()));
        let record = writes.clone();
        let client = fake_api::client(move |call| {
            let subresource = call.path.rsplit('/').next().expect("a path").to_owned();
            record
                .lock()
                .expect("no panic before")
                .push((subresource, call.body.clone()));
            (200, call.body)
        });
        let handle = authority::tests::handle().await;
        answer(&Api::all(client), &handle, request).await.expect("answered");
        let bundle = handle.bundle_pem();
        let mut writes = std::mem::take(&mut *writes.lock().expect("no panic before"));
        writes.push(("bundle".into(), bundle.into()));
        writes
    }

    #[tokio::test]
    async fn the_certificate_names_the_requester() {
        let key = KeyRequest::generate().expect("a request");
        let writes = writes_for(request(&key)).await;
        let [(first, approval), (second, status), (_, bundle)] = &writes[..] else {
            panic!("{writes:?}")
        };
        assert_eq!((first.as_str(), second.as_str()), ("approval", "status"));
        assert_eq!(approval["status"]["conditions"][0]["type"], "Approved");
        assert_eq!(
            approval["metadata"]["resourceVersion"], "7",
            "only what was judged is answered"
        );
        let signed: CertificateSigningRequest = serde_json::from_value(status.clone()).expect("a request");
        let chain = signed.status.and_then(|s| s.certificate).expect("a certificate").0;
        let chain = str::from_utf8(&chain).expect("PEM");
        let domain = "test.local".parse().expect("a domain");
        let identity = Identity::new(chain, &key.key_pem, bundle.as_str().expect("PEM"), &domain).expect("ours");
        assert_eq!(identity.role(), Role::User);
        let life = identity
            .not_after()
            .duration_since(std::time::SystemTime::now())
            .expect("in the future");
        assert!(life <= Duration::from_secs(3600), "{life:?}");
    }

    #[tokio::test]
    async fn a_false_claim_is_denied() {
        let key = KeyRequest::generate().expect("a request");
        let mut request = request(&key);
        request.spec.usages = Some(vec!["server auth".into()]);
        let writes = writes_for(request.clone()).await;
        assert_eq!(writes[0].0, "approval");
        assert_eq!(writes[0].1["status"]["conditions"][0]["type"], "Denied");
        assert_eq!(writes.len(), 2, "nothing is signed");

        push(
            &mut request,
            CertificateSigningRequestCondition {
                reason: Some("ByHand".to_owned()),
                ..condition("Approved", CsrReason::RemoteProcessUser, "kubectl certificate approve")
            },
        );
        let writes = writes_for(request).await;
        assert_eq!(writes[0].0, "status");
        assert_eq!(writes[0].1["status"]["conditions"][1]["type"], "Failed");
        assert_eq!(writes.len(), 2, "nothing is signed, even if another approved it");
    }
}
