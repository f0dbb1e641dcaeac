//! Login of machines: a ServiceAccount token of our own audience becomes a user certificate that ends with the token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use remoteprocess_api::names;
use remoteprocess_proto::{check_protocol, v1::LoginRequest};
use remoteprocess_tls::User;
use serde::Deserialize;

use super::{EnrollmentService, Refusal, proof};
use crate::authority::csr::check_size;

impl EnrollmentService {
    /// The user, and the chain.
    pub(super) async fn log_in(&self, request: &LoginRequest) -> Result<(User, String), Refusal> {
        check_protocol(request.protocol)?;
        let review = self.review(&request.token, names::LOGIN_AUDIENCE).await?;
        let user = read_review(review).map_err(Refusal::Token)?;
        let left = expiry(&request.token)
            .and_then(|expiry| expiry.duration_since(SystemTime::now()).ok())
            .ok_or_else(|| Refusal::Token("it does not say when it expires".to_owned()))?;
        let chain = self
            .authority
            .sign_user(&request.csr, &user, left)
            .map_err(Refusal::Csr)?;
        Ok((user, chain))
    }
}

/// The ServiceAccount, as the API server describes it. The error is for the log.
pub(crate) fn read_review(status: TokenReviewStatus) -> Result<User, String> {
    let account = proof::check_review(&status, names::LOGIN_AUDIENCE)?;
    proof::namespace(&account).ok_or_else(|| format!("{account:?} is no ServiceAccount"))?;
    let user = status.user.unwrap_or_default();
    let user = User {
        name: account,
        groups: user.groups.unwrap_or_default(),
        uid: user.uid.unwrap_or_default(),
        extra: user.extra.unwrap_or_default(),
    };
    check_size(&user)?;
    Ok(user)
}

/// When a token expires, which the API server has verified; it does not say this in its review.
pub(crate) fn expiry(token: &str) -> Option<SystemTime> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
    }
    let payload = token.split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp))
}

#[cfg(test)]
pub(super) mod tests {
    use remoteprocess_proto::PROTOCOL;
    use remoteprocess_tls::{Identity, KeyRequest, Role};
    use serde_json::{Value, json};
    use tonic::{Code, Request};

    use super::super::{Enrollment, proof, tests::service};
    use super::*;

    /// What the API server says about a token of [`token`].
    pub(in super::super) fn review(token: &str) -> Value {
        match expiry(token) {
            Some(_) => json!({
                "authenticated": true,
                "audiences": ["remoteprocess.dev/login"],
                "user": {
                    "username": "system:serviceaccount:ci:nightly", "uid": "sa-uid",
                    "groups": ["system:serviceaccounts", "system:authenticated"],
                    "extra": {"authentication.kubernetes.io/pod-name": ["job-1"]},
                },
            }),
            None => json!({"authenticated": false, "error": "invalid bearer token"}),
        }
    }

    /// A token that expires in so many seconds.
    pub(in super::super) fn token(seconds: u64) -> String {
        let end = SystemTime::now() + Duration::from_secs(seconds);
        let end = end.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let payload = BASE64_URL_SAFE_NO_PAD.encode(json!({"exp": end, "sub": "x"}).to_string());
        format!("header.{payload}.signature")
    }

    #[tokio::test]
    async fn a_machine_gets_a_certificate_that_ends_with_its_token() {
        let service = service(proof::tests::pod()).await;
        let key = KeyRequest::generate().expect("a request");
        for (seconds, longest) in [(600, 600), (86_400, 3600)] {
            let request = LoginRequest {
                protocol: PROTOCOL,
                token: token(seconds),
                csr: key.csr_der.clone().into(),
            };
            let chain = service
                .login(Request::new(request))
                .await
                .expect("logged in")
                .into_inner();
            let (bundle, domain) = (service.authority.bundle_pem(), service.authority.trust_domain());
            let identity = Identity::new(&chain.certificate_chain, &key.key_pem, &bundle, domain).expect("ours");
            assert_eq!(identity.role(), Role::User);
            let life = identity
                .not_after()
                .duration_since(SystemTime::now())
                .expect("in the future");
            assert!(
                life <= Duration::from_secs(longest) && life > Duration::from_secs(longest - 60),
                "{life:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_is_no_token_of_our_audience_logs_nobody_in() {
        let service = service(proof::tests::pod()).await;
        let key = KeyRequest::generate().expect("a request");
        let request = LoginRequest {
            protocol: PROTOCOL,
            token: "good".into(),
            csr: key.csr_der.into(),
        };
        let status = service
            .login(Request::new(request))
            .await
            .expect_err("the token of an agent");
        assert_eq!(status.code(), Code::Unauthenticated);
        let read = |review: Value| read_review(serde_json::from_value(review).expect("a review"));
        let good = review(&token(60));
        assert_eq!(
            read(good.clone()).expect("a user").name,
            "system:serviceaccount:ci:nightly"
        );
        for (pointer, value) in [
            ("/authenticated", json!(false)),
            ("/audiences", json!(["remoteprocess.dev/enroll"])),
            ("/audiences", Value::Null),
            ("/user/username", json!("alice")),
            ("/user/groups", json!(vec!["g".repeat(1000); 30])),
        ] {
            let mut odd = good.clone();
            *odd.pointer_mut(pointer).expect("a field") = value;
            assert!(read(odd).is_err(), "{pointer}");
        }
        for text in ["", "a.b.c", "a.e30.c"] {
            assert_eq!(expiry(text), None, "{text}");
        }
    }
}
