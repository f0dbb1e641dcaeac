//! The services that gRPC tools expect of every server: health and reflection, for users.

use std::convert::Infallible;

use futures::future::BoxFuture;
use remoteprocess_proto::DESCRIPTORS;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::Service;
use tower::util::BoxCloneSyncService;

use super::methods::{HEALTH, REFLECTION, RELAY};

type Boxed = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>;

/// Health and reflection. Cheap to clone.
#[derive(Clone)]
pub(super) struct Standard {
    health: HealthServer<Serving>,
    reflection: Boxed,
}

impl Default for Standard {
    fn default() -> Self {
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // The agent's and the enrollment's services are not at this port, or not for users.
            .with_service_name(RELAY)
            .with_service_name(HEALTH)
            .build_v1()
            .expect("a test reads the descriptors");
        Self {
            health: HealthServer::new(Serving),
            reflection: BoxCloneSyncService::new(reflection),
        }
    }
}

impl Standard {
    /// Whether the path belongs to one of these services.
    pub(super) fn serves(path: &str) -> bool {
        matches!(service(path), Some(HEALTH | REFLECTION))
    }

    /// The answer of the service of the path.
    pub(super) fn call(
        &mut self,
        request: http::Request<Body>,
    ) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>> {
        match service(request.uri().path()) {
            Some(HEALTH) => self.health.call(request),
            _ => Box::pin(self.reflection.call(request)),
        }
    }
}

fn service(path: &str) -> Option<&str> {
    path.split('/').nth(1)
}

/// A relay that answers serves: its listener opens when it is ready.
struct Serving;

#[tonic::async_trait]
impl Health for Serving {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.into_inner().service.as_str() {
            "" | RELAY => Ok(Response::new(HealthCheckResponse {
                status: ServingStatus::Serving.into(),
            })),
            other => Err(Status::not_found(format!("there is no service {other:?} here"))),
        }
    }

    type WatchStream = tokio_stream::Empty<Result<HealthCheckResponse, Status>>;

    /// A stream without an end would outlive the certificate of the user. Clients must expect this code (gRPC Health
    /// Checking Protocol).
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("the health is not watched here; call Check"))
    }
}
