//! Everything that the API server of the development cluster has stored.

use std::fs;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use remoteprocess_e2e::daemon_flag;
use remoteprocess_tls::install_crypto_provider;
use reqwest::{Certificate, Client, Identity};
use serde_json::{Value, json};

/// Keys of one answer.
const PAGE: usize = 500;
/// More keys than any cluster of these tests has.
const MOST: usize = 200_000;

/// A key and its value.
pub(super) struct Stored {
    pub key: String,
    pub value: Vec<u8>,
}

/// Reads all keys of etcd, as the API server would.
pub(super) async fn dump() -> Result<Vec<Stored>> {
    install_crypto_provider();
    let file = |flag: &str| -> Result<Vec<u8>> { Ok(fs::read(daemon_flag("kube-apiserver", flag)?)?) };
    let pair = [file("etcd-certfile")?, file("etcd-keyfile")?].concat();
    let client = Client::builder()
        .no_proxy()
        .tls_certs_only([Certificate::from_pem(&file("etcd-cafile")?)?])
        .identity(Identity::from_pem(&pair)?)
        .build()?;
    let url = format!("{}/v3/kv/range", daemon_flag("kube-apiserver", "etcd-servers")?);
    let (mut all, mut from) = (Vec::new(), vec![0]);
    loop {
        // A range from a key to "\0" has everything from that key on.
        let range = json!({"key": STANDARD.encode(&from), "range_end": STANDARD.encode([0]), "limit": PAGE});
        let answer = client
            .post(&url)
            .body(range.to_string())
            .send()
            .await?
            .error_for_status()?;
        let answer: Value = serde_json::from_str(&answer.text().await?)?;
        let page = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
        for pair in page {
            all.push(Stored {
                key: String::from_utf8(bytes(&pair["key"])?)?,
                value: bytes(&pair["value"])?,
            });
        }
        let Some(last) = all.last().filter(|_| page.len() == PAGE) else {
            return Ok(all);
        };
        ensure!(all.len() < MOST, "{} keys", all.len());
        from = [last.key.as_bytes(), &[0]].concat();
    }
}

/// An empty value has no field.
fn bytes(field: &Value) -> Result<Vec<u8>> {
    match field {
        Value::Null => Ok(Vec::new()),
        field => Ok(STANDARD.decode(field.as_str().context("no text")?)?),
    }
}
