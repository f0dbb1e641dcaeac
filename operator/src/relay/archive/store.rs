//! The object store of the archive, and how to reach it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::{Archive, Error};

/// Time limits for a connection, and for a whole request: a segment of 4 MiB over a slow line.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(30);

/// Where the archive is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// A directory, which is created.
    Volume(PathBuf),
    /// S3 or a compatible service. Credentials come from the environment, as for AWS' own programs: a key
    /// (`AWS_ACCESS_KEY_ID`, …), a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN`), or the role of the pod
    /// or the instance.
    S3 {
        /// The bucket.
        bucket: Bucket,
        /// Region of the bucket.
        region: String,
        /// `https://endpoint/bucket/object` instead of `https://bucket.endpoint/object`.
        path_style: bool,
    },
    /// Google Cloud Storage. Credentials come from the environment (`GOOGLE_APPLICATION_CREDENTIALS`) or are the
    /// workload's identity.
    Gcs(Bucket),
}

/// A bucket of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// All objects are below this path; empty: the whole bucket.
    pub prefix: String,
    /// URL of the service; `None`: the provider's own.
    pub endpoint: Option<String>,
    /// Certificates (PEM) to trust besides the public ones.
    pub ca: Option<String>,
}

impl Archive {
    /// Opens the archive. It sends no request to a service yet, because an unavailable service must not prevent the
    /// operator from starting.
    pub fn open(config: &StoreConfig) -> Result<Self, Error> {
        match config {
            StoreConfig::Volume(root) => Self::local(root),
            StoreConfig::S3 {
                bucket,
                region,
                path_style,
            } => {
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(&bucket.name)
                    .with_region(region)
                    .with_virtual_hosted_style_request(!path_style)
                    .with_client_options(bucket.client()?)
                    .with_retry(no_retries());
                if let Some(endpoint) = &bucket.endpoint {
                    builder = builder.with_endpoint(match path_style {
                        true => endpoint.clone(),
                        false => with_host_label(endpoint, &bucket.name),
                    });
                }
                Ok(bucket.archive(builder.build()?))
            }
            StoreConfig::Gcs(bucket) => {
                let mut builder = GoogleCloudStorageBuilder::from_env()
                    .with_bucket_name(&bucket.name)
                    .with_client_options(bucket.client()?)
                    .with_retry(no_retries());
                if let Some(endpoint) = &bucket.endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                Ok(bucket.archive(builder.build()?))
            }
        }
    }
}

impl Bucket {
    fn archive(&self, store: impl ObjectStore) -> Archive {
        match self.prefix.is_empty() {
            true => Archive::new(Arc::new(store)),
            false => Archive::new(Arc::new(PrefixStore::new(store, self.prefix.as_str()))),
        }
    }

    /// The image contains no system certificates: the public ones are compiled in.
    fn client(&self) -> Result<ClientOptions, Error> {
        let is_plain = self.endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
        let mut options = ClientOptions::new()
            .with_allow_http(is_plain)
            .with_connect_timeout(CONNECT)
            .with_timeout(REQUEST)
            .with_no_system_certificates(true);
        for root in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
            options = options.with_root_certificate(Certificate::from_der(root)?);
        }
        for own in Certificate::from_pem_bundle(self.ca.as_deref().unwrap_or_default().as_bytes())? {
            options = options.with_root_certificate(own);
        }
        Ok(options)
    }
}

/// The caller retries. A retry by the client itself could arrive late, and replace a newer form of the same object.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn with_host_label(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => format!("{bucket}.{endpoint}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_can_be_part_of_the_host() {
        assert_eq!(
            with_host_label("https://s3.example:9000", "logs"),
            "https://logs.s3.example:9000"
        );
    }
}
