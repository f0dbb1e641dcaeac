//! Login of a machine: the token of a ServiceAccount with our own audience, projected into the pod of a CI job, becomes a
//! client certificate. It needs no permission on CertificateSigningRequests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use remoteprocess_proto::PROTOCOL;
use remoteprocess_proto::v1::LoginRequest;
use remoteprocess_proto::v1::enrolment_client::EnrolmentClient;
use remoteprocess_tls::{Dialer, Identity, KeyRequest, Role};
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

/// A certificate for the ServiceAccount of the token.
pub(super) async fn certificate(trust: &Trust, token: &str) -> Result<Arc<Identity>, DialError> {
    let address = trust.login.as_deref().ok_or_else(|| {
        DialError::Refused(format!(
            "this operator does not know the login of machines. Upgrade it, or unset {VARIABLE}"
        ))
    })?;
    let late = |_| DialError::Unreachable(format!("no login at {address} within {} s", LIMIT.as_secs()));
    tokio::time::timeout(LIMIT, log_in(trust, address, token))
        .await
        .map_err(late)?
}

async fn log_in(trust: &Trust, address: &str, token: &str) -> Result<Arc<Identity>, DialError> {
    let broken =
        |error: remoteprocess_tls::Error| DialError::Unreachable(format!("log in at {address}: {}", innermost(&error)));
    let key = KeyRequest::generate().map_err(broken)?;
    let dialer = Dialer::anonymous(&trust.bundle, &trust.domain).map_err(broken)?;
    let channel = dialer.connect(address, &Role::Operator).await.map_err(broken)?;
    let request = LoginRequest {
        protocol: PROTOCOL,
        token: token.to_owned(),
        csr: key.csr_der.into(),
    };
    let answer = EnrolmentClient::new(channel).login(request).await.map_err(|status| {
        let text = format!(
            "the operator gives the token of {VARIABLE} no certificate: {}",
            status.message()
        );
        match status.code() {
            Code::Unavailable | Code::ResourceExhausted | Code::Unknown => DialError::Unreachable(text),
            _ => DialError::Refused(text),
        }
    })?;
    let chain = answer.into_inner().certificate_chain;
    Identity::new(&chain, &key.key_pem, &trust.bundle, &trust.domain).map_err(broken)
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
}
