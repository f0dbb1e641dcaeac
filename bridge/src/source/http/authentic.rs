//! Who may send: signatures as in Standard Webhooks, and bearer tokens. Pure but for reading the Secret.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use ring::hmac::{self, HMAC_SHA256, Key};
use ring::rand::SystemRandom;

use crate::source::{Secrets, SourceError};

/// Largest difference between the clocks of sender and bridge, in seconds: an older signature may be a stolen one.
pub(super) const TOLERANCE_SECONDS: i64 = 300;
/// Most signatures in a header: a sender that changes its key sends two.
const MAX_SIGNATURES: usize = 8;
/// Shortest key and token, in bytes: shorter ones can be guessed.
const MIN_SECRET: usize = 16;
/// Prefix of a signing key in base64.
const BASE64_KEY: &str = "whsec_";

/// Checks requests. The time of a comparison does not depend on the values.
pub(super) struct Authenticator {
    signing_key: Option<Key>,
    token: Option<Token>,
}

/// A token, as its tag under a key that only this process knows: tags have one length.
struct Token {
    key: Key,
    tag: hmac::Tag,
}

/// A request that need not be looked at further, or only after its body is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It has the token.
    Token,
    /// It has an id, a fresh timestamp and signatures, which the body must match.
    Signature {
        id: String,
        timestamp: String,
        signatures: Vec<Vec<u8>>,
    },
}

impl Authenticator {
    /// From the Secret that the trigger names.
    pub(super) async fn read(secrets: &Secrets) -> Result<Self, SourceError> {
        let signing_key = secrets.credential("signingKey").await?;
        Self::new(signing_key, secrets.credential("token").await?)
    }

    pub(super) fn new(signing_key: Option<String>, token: Option<String>) -> Result<Self, SourceError> {
        let invalid = |sentence: String| SourceError::new(BridgeReason::InvalidSecret, sentence);
        if signing_key.is_none() && token.is_none() {
            return Err(invalid(
                "the Secret of the webhook has neither signingKey nor token".to_owned(),
            ));
        }
        let signing_key = signing_key.map(|key| key_bytes(&key).map_err(invalid)).transpose()?;
        let secrets = [
            ("signingKey", signing_key.as_deref()),
            ("token", token.as_deref().map(str::as_bytes)),
        ];
        for (name, secret) in secrets {
            if secret.is_some_and(|secret| secret.len() < MIN_SECRET) {
                return Err(invalid(format!(
                    "{name} in the Secret of the webhook is shorter than {MIN_SECRET} bytes"
                )));
            }
        }
        let token = token.map(|token| Token::new(&token)).transpose().map_err(invalid)?;
        Ok(Self {
            signing_key: signing_key.map(|key| Key::new(HMAC_SHA256, &key)),
            token,
        })
    }

    /// What the headers of a request claim; an error says why they cannot be believed.
    pub(super) fn claim(&self, headers: &HeaderMap, now: Timestamp) -> Result<Claim, &'static str> {
        if let (Some(token), Some(value)) = (&self.token, headers.get(AUTHORIZATION)) {
            if bearer(value.as_bytes()).is_some_and(|given| token.is(given)) {
                return Ok(Claim::Token);
            }
            // A gateway may have an Authorization of its own beside the signature of the sender.
            if self.signing_key.is_none() || !headers.contains_key("webhook-signature") {
                return Err("the token is wrong");
            }
        }
        if self.signing_key.is_none() {
            return Err("the header Authorization is missing");
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let id = text("webhook-id")
            .filter(|id| !id.is_empty())
            .ok_or("the header Webhook-Id is missing")?;
        let timestamp = text("webhook-timestamp").ok_or("the header Webhook-Timestamp is missing")?;
        let signature = text("webhook-signature").ok_or("the header Webhook-Signature is missing")?;
        let seconds: i64 = timestamp
            .parse()
            .map_err(|_| "Webhook-Timestamp is not a number of seconds")?;
        if now.as_second().abs_diff(seconds) > TOLERANCE_SECONDS.unsigned_abs() {
            return Err("Webhook-Timestamp is more than five minutes away from now");
        }
        Ok(Claim::Signature {
            id: id.to_owned(),
            timestamp: timestamp.to_owned(),
            signatures: signatures(signature),
        })
    }

    /// Whether one of the signatures is that of this body. Always false without a key.
    pub(super) fn is_signed(&self, id: &str, timestamp: &str, body: &[u8], signatures: &[Vec<u8>]) -> bool {
        let Some(key) = &self.signing_key else { return false };
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
        signatures
            .iter()
            .any(|signature| hmac::verify(key, &signed, signature).is_ok())
    }
}

/// `whsec_` and base64, or the bytes themselves.
fn key_bytes(key: &str) -> Result<Vec<u8>, String> {
    match key.strip_prefix(BASE64_KEY) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|error| {
            format!("signingKey in the Secret of the webhook is not base64 after {BASE64_KEY}: {error}")
        }),
        None => Ok(key.as_bytes().to_vec()),
    }
}

/// Those of version 1: `v1,BASE64 v1,BASE64`.
fn signatures(header: &str) -> Vec<Vec<u8>> {
    let versioned = header.split(' ').filter_map(|part| part.strip_prefix("v1,"));
    versioned
        .filter_map(|encoded| STANDARD.decode(encoded).ok())
        .take(MAX_SIGNATURES)
        .collect()
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

impl Token {
    fn new(token: &str) -> Result<Self, String> {
        let key = Key::generate(HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|_| "the system has no random numbers".to_owned())?;
        let tag = hmac::sign(&key, token.as_bytes());
        Ok(Self { key, tag })
    }

    fn is(&self, given: &[u8]) -> bool {
        hmac::verify(&self.key, given, self.tag.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Standard Webhooks.
    const KEY: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const TIME: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| ((*name).try_into().unwrap(), value.parse().unwrap()))
            .collect()
    }

    fn signed(
        authenticator: &Authenticator,
        id: &str,
        signature: &str,
        body: &[u8],
        now: i64,
    ) -> Result<bool, &'static str> {
        let time = TIME.to_string();
        let headers = headers(&[
            ("webhook-id", id),
            ("webhook-timestamp", &time),
            ("webhook-signature", signature),
        ]);
        match authenticator.claim(&headers, Timestamp::from_second(now).unwrap())? {
            Claim::Token => Ok(false),
            Claim::Signature {
                id,
                timestamp,
                signatures,
            } => Ok(authenticator.is_signed(&id, &timestamp, body, &signatures)),
        }
    }

    #[test]
    fn signatures_of_standard_webhooks() {
        let authenticator = Authenticator::new(Some(KEY.into()), None).unwrap();
        let check = |id: &str, signature: &str, body: &[u8], now| signed(&authenticator, id, signature, body, now);
        assert_eq!(check(ID, SIGNATURE, BODY, TIME), Ok(true));
        let rotated = format!("v1,AAAA v1a,xx {SIGNATURE}");
        assert_eq!(check(ID, &rotated, BODY, TIME + TOLERANCE_SECONDS), Ok(true));
        assert_eq!(check("other", SIGNATURE, BODY, TIME), Ok(false), "the id is signed");
        assert_eq!(check(ID, SIGNATURE, b"other", TIME), Ok(false));
        for wrong in [
            "",
            "v1,",
            "v1,%%%",
            "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            &SIGNATURE[3..],
        ] {
            assert_eq!(check(ID, wrong, BODY, TIME), Ok(false), "{wrong}");
        }
        for now in [TIME + TOLERANCE_SECONDS + 1, TIME - TOLERANCE_SECONDS - 1, 0] {
            assert!(check(ID, SIGNATURE, BODY, now).is_err(), "{now}");
        }
        let many = format!("{}{SIGNATURE}", "v1,AAAA ".repeat(MAX_SIGNATURES));
        assert_eq!(
            check(ID, &many, BODY, TIME),
            Ok(false),
            "a few are tried, not thousands"
        );
    }

    #[test]
    fn hostile_headers_are_refused() {
        let authenticator = Authenticator::new(Some(KEY.into()), None).unwrap();
        let now = Timestamp::from_second(TIME).unwrap();
        for timestamp in [
            "",
            "now",
            "-9223372036854775808",
            "9223372036854775807",
            "99999999999999999999",
            "1.5",
        ] {
            let headers = headers(&[
                ("webhook-id", ID),
                ("webhook-timestamp", timestamp),
                ("webhook-signature", SIGNATURE),
            ]);
            assert!(authenticator.claim(&headers, now).is_err(), "{timestamp}");
        }
        assert!(authenticator.claim(&headers(&[]), now).is_err());
        assert!(
            authenticator
                .claim(&headers(&[("authorization", "Bearer x")]), now)
                .is_err(),
            "no token is set"
        );
    }

    #[test]
    fn tokens() {
        let authenticator = Authenticator::new(None, Some("0123456789abcdef".into())).unwrap();
        let claim = |value| authenticator.claim(&headers(&[("authorization", value)]), Timestamp::now());
        assert_eq!(claim("Bearer 0123456789abcdef"), Ok(Claim::Token));
        assert_eq!(claim("bearer 0123456789abcdef"), Ok(Claim::Token));
        for wrong in [
            "Bearer ",
            "Bearer 0123456789abcdeF",
            "Basic 0123456789abcdef",
            "",
            "Bearer 0123456789abcdef0",
        ] {
            assert!(claim(wrong).is_err(), "{wrong}");
        }
        assert!(authenticator.claim(&headers(&[]), Timestamp::now()).is_err());
        assert!(
            !authenticator.is_signed("a", "1", b"", &[vec![0; 32]]),
            "there is no key"
        );
    }

    #[test]
    fn a_signature_counts_beside_the_authorization_of_a_gateway() {
        let both = Authenticator::new(Some(KEY.into()), Some("0123456789abcdef".into())).unwrap();
        let (now, time) = (Timestamp::from_second(TIME).unwrap(), TIME.to_string());
        let signed = |authorization: &str, signature: &str| {
            let headers = headers(&[
                ("authorization", authorization),
                ("webhook-id", ID),
                ("webhook-timestamp", &time),
                ("webhook-signature", signature),
            ]);
            match both.claim(&headers, now) {
                Ok(Claim::Signature {
                    id,
                    timestamp,
                    signatures,
                }) => both.is_signed(&id, &timestamp, BODY, &signatures),
                Ok(Claim::Token) => panic!("that is not the token"),
                Err(_) => false,
            }
        };
        for gateway in ["Basic Z2F0ZXdheQ==", "Bearer of-the-gateway-itself"] {
            assert!(signed(gateway, SIGNATURE));
            assert!(!signed(gateway, "v1,AAAA"));
        }
        let wrong = headers(&[("authorization", "Bearer wrong")]);
        assert_eq!(both.claim(&wrong, now), Err("the token is wrong"));
    }

    #[test]
    fn secrets_that_can_be_guessed_are_refused() {
        assert!(Authenticator::new(None, None).is_err());
        assert!(Authenticator::new(None, Some("short".into())).is_err());
        assert!(Authenticator::new(Some("whsec_%".into()), None).is_err());
        assert!(Authenticator::new(Some(String::new()), Some("0123456789abcdef".into())).is_err());
        assert!(Authenticator::new(Some("0123456789abcdef".into()), None).is_ok());
    }
}
