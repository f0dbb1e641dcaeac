//! How the bridge authenticates to Google: by the key of a service account, or as the node's or pod's own account.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use remoteprocess_api::bridge::BridgeReason;
use remoteprocess_api::trigger::PubSubSource;
use reqwest::Client;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::{Secrets, SourceError, in_time};
use super::api::{failed, read};

/// For whom a token that we sign is meant ("Service account authorization without OAuth").
const AUDIENCE: &str = "https://pubsub.googleapis.com/";
/// Lifetime of such a token, in seconds: the longest that Google accepts.
const LIFETIME: u64 = 3600;
/// A token is renewed this long before its end.
const MARGIN: Duration = Duration::from_secs(120);
/// Where a machine or pod of Google gets a token. Link-local, so plain HTTP.
const METADATA: &str = "http://metadata.google.internal";
const METADATA_PATH: &str = "computeMetadata/v1/instance/service-accounts/default/token";
/// Largest answer of the metadata server, in bytes.
const MAX_TOKEN_ANSWER: usize = 16 << 10;

/// How a call is authenticated.
pub(super) enum Credential {
    /// Not at all: an emulator.
    None,
    /// By a token that we sign.
    Key(Box<Key>, Cache),
    /// By a token of the metadata server: Workload Identity.
    Metadata(Cache),
}

/// The last token, and when it is to be renewed.
type Cache = Mutex<Option<(String, Instant)>>;

impl Credential {
    /// Reads the key that the trigger names, if it names one.
    ///
    /// # Errors
    /// [`BridgeReason::InvalidSecret`].
    pub(super) async fn read(source: &PubSubSource, secrets: &Secrets) -> Result<Self, SourceError> {
        if source.credentials_secret_name.is_none() {
            return Ok(Self::Metadata(Cache::default()));
        }
        let key = Key::read(&secrets.required_credential("key.json").await?)?;
        Ok(Self::Key(Box::new(key), Cache::default()))
    }

    /// A token that is valid for two minutes at least.
    ///
    /// # Errors
    /// The metadata server does not answer.
    pub(super) async fn token(&self, client: &Client) -> Result<Option<String>, SourceError> {
        let (Self::Key(_, cache) | Self::Metadata(cache)) = self else {
            return Ok(None);
        };
        let mut cached = cache.lock().await;
        if let Some((token, _)) = cached.as_ref().filter(|(_, until)| *until > Instant::now()) {
            return Ok(Some(token.clone()));
        }
        let (token, lifetime) = match self {
            Self::Key(key, _) => (key.token(Timestamp::now())?, Duration::from_secs(LIFETIME)),
            Self::Metadata(_) | Self::None => of_machine(client).await?,
        };
        *cached = Some((token.clone(), Instant::now() + lifetime.saturating_sub(MARGIN)));
        Ok(Some(token))
    }
}

/// What the metadata server answers.
#[derive(Deserialize)]
struct MachineToken {
    access_token: String,
    expires_in: u64,
}

async fn of_machine(client: &Client) -> Result<(String, Duration), SourceError> {
    const WHAT: &str =
        "ask the metadata server of Google for a token (spec.source.pubsub.credentialsSecretName is not set)";
    let refused =
        |why: &dyn ToString| SourceError::new(BridgeReason::Unauthorized, format!("{WHAT}: {}", why.to_string()));
    in_time(WHAT, async {
        let request = client
            .get(format!("{METADATA}/{METADATA_PATH}"))
            .header("Metadata-Flavor", "Google");
        let mut response = request.send().await.map_err(|error| failed(WHAT, &error))?;
        if !response.status().is_success() {
            return Err(refused(&response.status()));
        }
        let body = read(&mut response, MAX_TOKEN_ANSWER)
            .await
            .map_err(|why| refused(&why))?;
        let token: MachineToken = serde_json::from_slice(&body).map_err(|error| refused(&error))?;
        Ok((token.access_token, Duration::from_secs(token.expires_in.min(LIFETIME))))
    })
    .await
}

/// The key of a service account.
pub(super) struct Key {
    email: String,
    id: String,
    pair: RsaKeyPair,
}

/// The file of a key, as Google gives it out.
#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key_id: String,
    #[serde(default)]
    private_key: String,
}

impl Key {
    /// Reads `key.json`.
    ///
    /// # Errors
    /// [`BridgeReason::InvalidSecret`], without anything of the key.
    fn read(text: &str) -> Result<Self, SourceError> {
        let invalid =
            |why: &str| SourceError::new(BridgeReason::InvalidSecret, format!("key.json of the Secret {why}"));
        let file: KeyFile =
            serde_json::from_str(text).map_err(|_| invalid("is not the key file of a service account"))?;
        if file.kind != "service_account" {
            return Err(invalid(
                "is not of type service_account, the only one that the bridge reads",
            ));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes());
        let der = der.map_err(|_| invalid("has no private_key in PEM"))?;
        let pair =
            RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| invalid("has no RSA key in private_key"))?;
        if file.client_email.is_empty() {
            return Err(invalid("has no client_email"));
        }
        Ok(Self {
            email: file.client_email,
            id: file.private_key_id,
            pair,
        })
    }

    /// A token (RFC 7519, RS256) that Pub/Sub accepts as it is.
    fn token(&self, now: Timestamp) -> Result<String, SourceError> {
        let now = now.as_second();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.id});
        let claims = json!({
            "iss": self.email, "sub": self.email, "aud": AUDIENCE,
            "iat": now, "exp": now + i64::try_from(LIFETIME).unwrap_or_default(),
        });
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let signed = format!(
            "{}.{}",
            encode(header.to_string().as_bytes()),
            encode(claims.to_string().as_bytes())
        );
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .map_err(|_| SourceError::new(BridgeReason::InvalidSecret, "key.json of the Secret cannot sign"))?;
        Ok(format!("{signed}.{}", encode(&signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use serde_json::Value;

    /// Made for this test: `openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048`.
    fn private_key() -> String {
        let der = STANDARD.encode(include_bytes!("test-key.der"));
        format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n")
    }

    fn file(kind: &str, email: &str, key: &str) -> String {
        json!({"type": kind, "client_email": email, "private_key_id": "k1", "private_key": key}).to_string()
    }

    #[test]
    fn a_token_is_signed_by_the_key_of_the_service_account() {
        let key = Key::read(&file(
            "service_account",
            "bridge@p.iam.gserviceaccount.com",
            &private_key(),
        ))
        .unwrap();
        let token = key.token(Timestamp::from_second(1_000_000).unwrap()).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.pair.public().as_ref());
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        assert!(public.verify(signed.as_bytes(), &signature).is_ok());
        let parts: Vec<Value> = signed
            .split('.')
            .map(|part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap())
            .collect();
        assert_eq!(parts[0], json!({"alg": "RS256", "typ": "JWT", "kid": "k1"}));
        assert_eq!(parts[1]["iss"], "bridge@p.iam.gserviceaccount.com");
        assert_eq!(
            (&parts[1]["iat"], &parts[1]["exp"]),
            (&json!(1_000_000), &json!(1_003_600))
        );
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_without_its_content() {
        for (text, word) in [
            ("secret-nonsense".to_owned(), "not the key file"),
            (file("external_account", "e", &private_key()), "service_account"),
            (file("service_account", "e", "secret-nonsense"), "private_key"),
            (file("service_account", "", &private_key()), "client_email"),
        ] {
            let error = Key::read(&text).err().unwrap();
            assert_eq!(error.reason, BridgeReason::InvalidSecret);
            assert!(
                error.message.contains(word) && !error.message.contains("nonsense"),
                "{error}"
            );
        }
    }
}
