//! Decides about a request. Pure.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use remoteprocess_api::{names, sanitize::plain};
use remoteprocess_tls::User;
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::ParsedExtension, pem::parse_x509_pem,
    prelude::FromDer, x509::X509Name,
};

use super::has_condition;

/// Lifetime of a certificate whose request names none.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SigningDecision {
    /// Nothing: it was already answered, or is for another signer.
    Leave,
    /// Deny it with this message.
    Deny(String),
    /// Approve and sign it.
    Sign(Order),
}

/// What to sign.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// The request; only its key is used.
    pub csr_der: Vec<u8>,
    /// The requester, as the API server recorded it.
    pub user: User,
    /// The requested lifetime.
    pub lifetime: Duration,
}

pub(crate) fn decide_signing(request: &CertificateSigningRequest) -> SigningDecision {
    let is_answered = request
        .status
        .as_ref()
        .is_some_and(|status| status.certificate.is_some())
        || has_condition(request, &["Denied", "Failed"]);
    if is_answered || request.spec.signer_name != names::CLIENT_SIGNER {
        return SigningDecision::Leave;
    }
    match order(request) {
        Ok(order) => SigningDecision::Sign(order),
        Err(sentence) => SigningDecision::Deny(sentence),
    }
}

/// Bytes of a request.
const MAX_REQUEST: usize = 16 << 10;

/// Maximum size in bytes of what the API server records about a user; it must fit into the handshake of each
/// connection.
const MAX_USER: usize = 24 << 10;

/// Maximum number of characters of a request that are quoted in logs and conditions.
const MAX_QUOTED: usize = 64;

fn order(request: &CertificateSigningRequest) -> Result<Order, String> {
    let spec = &request.spec;
    if spec.request.0.len() > MAX_REQUEST {
        return Err(format!("the request has more than {MAX_REQUEST} bytes"));
    }
    let user = User {
        name: spec.username.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    };
    if user.name.is_empty() {
        return Err("the API server has not said who asks".to_owned());
    }
    check_size(&user)?;
    check_usages(spec.usages.as_deref().unwrap_or_default())?;
    let (_, pem) = parse_x509_pem(&spec.request.0).map_err(|_| "the request is not PEM".to_owned())?;
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| "the request does not decode as PKCS#10".to_owned())?;
    check_subject(&parsed.certification_request_info.subject, &user)?;
    check_extensions(&parsed)?;
    let asked = spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let lifetime = asked.map_or(DEFAULT_LIFETIME, Duration::from_secs);
    Ok(Order {
        csr_der: pem.contents,
        user,
        lifetime,
    })
}

/// An error unless a certificate of the user fits into a handshake.
pub(crate) fn check_size(user: &User) -> Result<(), String> {
    let extra = user
        .extra
        .iter()
        .flat_map(|(key, values)| std::iter::once(key).chain(values));
    let texts = [&user.name, &user.uid].into_iter().chain(&user.groups).chain(extra);
    let size: usize = texts.map(String::len).sum();
    if size <= MAX_USER {
        Ok(())
    } else {
        Err(format!(
            "name, groups and extra fields of the user have {size} bytes, and a certificate takes {MAX_USER}; \
             log in as a user of fewer groups"
        ))
    }
}

/// The start of an untrusted text, in quotes and without control characters.
pub(in super::super) fn quoted(text: &str) -> String {
    let start = plain(text, MAX_QUOTED);
    let mark = if start.len() < text.len() { "…" } else { "" };
    format!("{start:?}{mark}")
}

fn check_usages(usages: &[String]) -> Result<(), String> {
    let usages: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let is_right =
        usages.contains("client auth") && usages.iter().all(|u| ["client auth", "digital signature"].contains(u));
    if is_right {
        Ok(())
    } else {
        Err("spec.usages must be [client auth] or [digital signature, client auth]".to_owned())
    }
}

/// The subject may be empty. A name in it must be true: a person who expects another name should be told.
fn check_subject(subject: &X509Name<'_>, user: &User) -> Result<(), String> {
    for attribute in subject.iter_attributes() {
        let value = attribute
            .as_str()
            .map_err(|_| "the request's subject is not text".to_owned())?;
        let is_true = if *attribute.attr_type() == x509_parser::oid_registry::OID_X509_COMMON_NAME {
            value == user.name
        } else if *attribute.attr_type() == x509_parser::oid_registry::OID_X509_ORGANIZATION_NAME {
            user.groups.iter().any(|group| group == value)
        } else {
            false
        };
        if !is_true {
            return Err(format!(
                "the request's subject claims {}, but the API server says that {} asks; leave the subject empty",
                quoted(value),
                quoted(&user.name)
            ));
        }
    }
    Ok(())
}

fn check_extensions(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    for extension in request.requested_extensions().into_iter().flatten() {
        let is_right = match extension {
            ParsedExtension::KeyUsage(usage) => usage.flags == 1,
            ParsedExtension::ExtendedKeyUsage(usage) => {
                usage.client_auth
                    && !(usage.any || usage.server_auth || usage.code_signing || usage.email_protection)
                    && !(usage.time_stamping || usage.ocsp_signing)
                    && usage.other.is_empty()
            }
            _ => false,
        };
        if !is_right {
            return Err("the request asks for extensions beyond client authentication; leave them out".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use k8s_openapi::{ByteString, api::certificates::v1::CertificateSigningRequestStatus};
    use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
    use rstest::rstest;
    use serde_json::json;

    use remoteprocess_api::CsrReason;

    use super::*;
    use crate::hostile;

    /// A request by alice as the API server records it, without the PKCS#10 part.
    pub(in super::super) fn request() -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": {"name": "rproc-1", "resourceVersion": "7"},
            "spec": {
                "request": "",
                "signerName": "remoteprocess.dev/client",
                "usages": ["digital signature", "client auth"],
                "username": "alice",
                "groups": ["dev", "system:authenticated"],
                "uid": "u-1",
                "extra": {"scopes": ["read"]},
                "expirationSeconds": 600,
            },
        }))
        .expect("a request")
    }

    fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let csr = params
            .serialize_request(&KeyPair::generate().expect("a key"))
            .expect("a request");
        let mut request = request();
        request.spec.request = ByteString(csr.pem().expect("PEM").into_bytes());
        request
    }

    fn named(kind: DnType, value: &str) -> CertificateSigningRequest {
        with(|params| params.distinguished_name.push(kind, value))
    }

    fn is_signed(request: &CertificateSigningRequest) -> bool {
        matches!(decide_signing(request), SigningDecision::Sign(_))
    }

    #[test]
    fn the_stamp_is_what_is_signed() {
        let SigningDecision::Sign(order) = decide_signing(&with(|_| {})) else {
            panic!("refused")
        };
        let user = User {
            name: "alice".into(),
            groups: vec!["dev".into(), "system:authenticated".into()],
            uid: "u-1".into(),
            extra: [("scopes".to_owned(), vec!["read".to_owned()])].into(),
        };
        assert_eq!((order.user, order.lifetime), (user, Duration::from_secs(600)));
    }

    #[test]
    fn true_claims_are_accepted() {
        assert!(is_signed(&named(DnType::CommonName, "alice")));
        assert!(is_signed(&named(DnType::OrganizationName, "dev")));
        assert!(is_signed(&with(|params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })));
    }

    #[rstest]
    #[case::another_name(named(DnType::CommonName, "bob"))]
    #[case::a_group_of_others(named(DnType::OrganizationName, "system:masters"))]
    #[case::something_else(named(DnType::OrganizationalUnitName, "dev"))]
    #[case::a_server(with(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]))]
    #[case::more_than_a_client(with(|p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    }))]
    #[case::a_ca_key(with(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]))]
    #[case::a_host_name(with(|p| {
        p.subject_alt_names.push(rcgen::SanType::DnsName("operator.test.local".try_into().expect("a name")));
    }))]
    #[case::nobody({ let mut r = with(|_| {}); r.spec.username = None; r })]
    #[case::not_pem({ let mut r = with(|_| {}); r.spec.request = ByteString(b"x".to_vec()); r })]
    #[case::no_usage({ let mut r = with(|_| {}); r.spec.usages = None; r })]
    #[case::only_signing({ let mut r = with(|_| {}); r.spec.usages = Some(vec!["digital signature".into()]); r })]
    #[case::another_usage({
        let mut r = with(|_| {});
        r.spec.usages = Some(vec!["client auth".into(), "server auth".into()]);
        r
    })]
    fn false_claims_are_denied(#[case] request: CertificateSigningRequest) {
        assert!(
            matches!(decide_signing(&request), SigningDecision::Deny(_)),
            "{:?}",
            decide_signing(&request)
        );
    }

    #[test]
    fn a_denial_names_the_requester_and_the_claim() {
        let SigningDecision::Deny(sentence) = decide_signing(&named(DnType::CommonName, "bob")) else {
            panic!("not denied")
        };
        assert!(
            sentence.contains("\"bob\"") && sentence.contains("\"alice\""),
            "{sentence}"
        );
    }

    #[test]
    fn a_denial_is_short_whatever_was_claimed() {
        let mut request = named(DnType::CommonName, &"b".repeat(8 << 10));
        request.spec.username = Some("a".repeat(16 << 10));
        for request in [request, {
            let mut long = with(|_| {});
            long.spec.request = ByteString(vec![b'x'; 1 << 20]);
            long
        }] {
            let SigningDecision::Deny(sentence) = decide_signing(&request) else {
                panic!("not denied")
            };
            assert!(sentence.len() < 400, "{} bytes", sentence.len());
        }
    }

    #[test]
    fn a_user_fits_into_a_handshake() {
        let mut request = with(|_| {});
        request.spec.groups = Some((0..600).map(|number| format!("{number:040}")).collect());
        assert!(is_signed(&request));
        request.spec.groups = Some((0..1000).map(|number| format!("{number:040}")).collect());
        assert!(matches!(decide_signing(&request), SigningDecision::Deny(_)));
    }

    #[test]
    fn answered_and_foreign_requests_are_not_touched() {
        let mut other = with(|_| {});
        other.spec.signer_name = "kubernetes.io/kube-apiserver-client".into();
        assert_eq!(decide_signing(&other), SigningDecision::Leave);
        let mut signed = with(|_| {});
        let certificate = Some(ByteString(b"PEM".to_vec()));
        signed.status = Some(CertificateSigningRequestStatus {
            certificate,
            ..Default::default()
        });
        assert_eq!(decide_signing(&signed), SigningDecision::Leave);
        let mut denied = with(|_| {});
        super::super::push(
            &mut denied,
            super::super::condition("Denied", CsrReason::RemoteProcessRefused, "by hand"),
        );
        assert_eq!(decide_signing(&denied), SigningDecision::Leave);
    }

    #[test]
    fn a_damaged_request_is_denied_or_signed_for_its_requester() {
        let whole = with(|_| {});
        let pem = whole.spec.request.0.clone();
        let mut runner = proptest::test_runner::TestRunner::default();
        let tried = runner.run(&hostile::damage(), |damage| {
            let mut request = whole.clone();
            request.spec.request = ByteString(hostile::damaged(pem.clone(), damage));
            match decide_signing(&request) {
                SigningDecision::Sign(order) => assert_eq!(order.user.name, "alice"),
                SigningDecision::Deny(message) => assert!(message.len() < 1000, "{message}"),
                SigningDecision::Leave => panic!("it is for this signer"),
            }
            Ok(())
        });
        tried.expect("each is decided");
    }
}
