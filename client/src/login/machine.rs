//! Login of a machine: the token of a ServiceAccount with our own audience, projected into the pod of a CI job, becomes a
//! client certificate. It needs no permission on CertificateSigningRequests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::LoginRequest;
use remoteprocess_proto::v1::enrollment_client::EnrollmentClient;
use remoteprocess_tls::{Dialer, KeyRequest, Role};
use serde_json::Value;
use tonic::Code;

use crate::dial::DialError;
use crate::retry::innermost;
use crate::trust::Trust;

/// Names the file with the token.
const VARIABLE: &str = "RPROC_TOKEN_FILE";
/// How long one login may take.
const LIMIT: Duration = Duration::from_secs(10);

/// The token, if there is to be one. It is read each time: the kubelet renews it.
pub(super) fn token() -> Result<Option<String>, DialError> {
    let path = std::env::var_os(VARIABLE).filter(|path| !path.is_empty());
    path.map(|path| read(&PathBuf::from(path))).transpose()
}

fn read(path: &Path) -> Result<String, DialError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        DialError::Refused(format!(
            "{VARIABLE} names {}, which cannot be read: {error}. Project a ServiceAccount token of the audience {} there",
            path.display(),
            remoteprocess_api::names::LOGIN_AUDIENCE
        ))
    })?;
    Ok(text.trim().to_owned())
}

/// For whom and for what a certificate by this token is: everything that it says but its own times and name. So a token
/// that the kubelet has renewed gets the certificate of the one before.
pub(super) fn subject(token: &str) -> Value {
    let payload = token
        .split('.')
        .nth(1)
        .and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok());
    match payload.and_then(|payload| serde_json::from_slice(&payload).ok()) {
        Some(Value::Object(mut claims)) => {
            for own in ["exp", "iat", "nbf", "jti"] {
                claims.remove(own);
            }
            Value::Object(claims)
        }
        _ => token.into(),
    }
}

/// The chain of a certificate for the ServiceAccount of the token.
pub(super) async fn sign(trust: &Trust, token: &str, key: &KeyRequest) -> Result<String, DialError> {
    let address = trust.login.as_deref().ok_or_else(|| {
        DialError::Refused(format!(
            "this operator does not know the login of machines. Upgrade it, or unset {VARIABLE}"
        ))
    })?;
    let late = |_| DialError::Unreachable(format!("no login at {address} within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, log_in(trust, address, token, key))
        .await
        .map_err(late)?
}

async fn log_in(trust: &Trust, address: &str, token: &str, key: &KeyRequest) -> Result<String, DialError> {
    let broken =
        |error: remoteprocess_tls::Error| DialError::Unreachable(format!("log in at {address}: {}", innermost(&error)));
    let dialer = Dialer::anonymous(&trust.bundle, &trust.domain).map_err(broken)?;
    let channel = dialer.connect(address, &Role::Operator).await.map_err(broken)?;
    let request = LoginRequest {
        protocol: PROTOCOL,
        token: token.to_owned(),
        csr: key.csr_der.clone().into(),
    };
    let answer = EnrollmentClient::new(channel).login(request).await.map_err(|status| {
        let text = format!(
            "the operator gives the token of {VARIABLE} no certificate: {}",
            status.message()
        );
        match status.code() {
            Code::Unavailable | Code::ResourceExhausted | Code::Unknown => DialError::Unreachable(text),
            _ => DialError::Refused(text),
        }
    })?;
    Ok(answer.into_inner().certificate_chain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_that_is_not_there_is_named() {
        let error = read(Path::new("/nowhere/token")).unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/token") && error.contains("remoteprocess.dev/login"),
            "{error}"
        );
    }

    /// A token with this payload.
    fn token(payload: &str) -> String {
        format!("header.{}.signature", BASE64_URL_SAFE_NO_PAD.encode(payload))
    }

    #[test]
    fn renewed_tokens_share_a_certificate_and_others_do_not() {
        let of = |payload: &str| subject(&token(payload));
        let first = of(r#"{"exp": 1, "iat": 0, "nbf": 0, "jti": "a", "sub": "system:serviceaccount:ci:nightly"}"#);
        let renewed = of(r#"{"exp": 9, "iat": 5, "nbf": 5, "jti": "b", "sub": "system:serviceaccount:ci:nightly"}"#);
        assert_eq!(first, renewed);
        for other in [
            r#"{"sub": "system:serviceaccount:ci:other"}"#,
            r#"{"sub": "system:serviceaccount:ci:nightly", "kubernetes.io": {"pod": {"uid": "u"}}}"#,
            "[1]",
        ] {
            assert_ne!(first, of(other), "{other}");
        }
        assert_ne!(subject("opaque-1"), subject("opaque-2"));
    }
}
