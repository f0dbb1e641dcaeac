//! A relay's host: everything is real except the API server, the store and the network.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use remoteprocess_operator::directory::Directory;
use remoteprocess_operator::relay::archive::Archive;
use remoteprocess_operator::relay::attempt::Agent;
use remoteprocess_operator::relay::core::Core;
use remoteprocess_operator::relay::core::authorize::Authorizer;
use remoteprocess_operator::relay::core::streams::Streams;
use remoteprocess_operator::relay::grpc::RelayService;
use remoteprocess_operator::relay::grpc::agent::{Connect, ConnectError};
use remoteprocess_operator::relay::grpc::peers::Peers;
use remoteprocess_operator::relay::live::{Budget, Context, LiveAttempts};
use remoteprocess_operator::relay::reconcile::{self, Reconciler};
use remoteprocess_operator::relay::status::Recorder;
use remoteprocess_tls::{ClientAuth, Dialer, Limits, Role, serve};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use turmoil::reverse_lookup;

use super::network::{self, Port};
use super::plan::RELAYS;
use super::{World, identity};

struct Agents {
    world: Arc<World>,
    dialer: Dialer,
    from: &'static str,
}

impl Connect for Agents {
    fn connect<'a>(&'a self, agent: &'a Agent) -> BoxFuture<'a, Result<Channel, ConnectError>> {
        let role = Role::Agent {
            namespace: agent.namespace.clone(),
            pod_uid: agent.pod_uid.clone(),
        };
        Box::pin(async move {
            let host = agent
                .address
                .parse()
                .ok()
                .and_then(|address: SocketAddr| reverse_lookup(address.ip()));
            let host = host.unwrap_or_default();
            Ok(network::dial(&self.world, &self.dialer, (self.from, &host), &role, None).await?)
        })
    }
}

/// One life of a relay.
pub(super) async fn run(world: Arc<World>, index: usize) -> turmoil::Result {
    let identity = identity(&Role::Operator);
    let client = world.api.client();
    let shutdown = CancellationToken::new();
    let archive = Archive::new(world.store.clone());
    let recorder = Recorder::new(client.clone(), RELAYS[index].to_owned());
    let context = Context {
        archive: archive.clone(),
        connect: Arc::new(Agents {
            world: world.clone(),
            dialer: Dialer::new(identity.clone()),
            from: RELAYS[index],
        }),
        peers: Peers::by_name(Dialer::new(identity.clone()), None),
        record: Box::new(recorder.clone()),
        memory: Arc::new(Budget::new(world.plan.rings)),
        shutdown: shutdown.clone(),
    };
    let directory = Directory::default();
    let attempts = LiveAttempts::new(Arc::new(context));
    let changes = directory.subscribe();
    let reconciler = Reconciler {
        directory: directory.clone(),
        attempts: attempts.clone(),
        recorder: recorder.clone(),
    };
    let service = RelayService::new(Core {
        directory: directory.clone(),
        live: attempts.clone(),
        archive: archive.clone(),
        authorizer: Authorizer::new(client),
        recorder: recorder.clone(),
        streams: Streams::default(),
        shutdown: shutdown.clone(),
    });
    let listed = CancellationToken::new();
    let port = Port::bind().await?;
    let serving = async {
        listed.cancelled().await;
        tokio::join!(
            serve(
                port,
                identity,
                ClientAuth::Required,
                service.into_server(),
                Limits::default(),
                shutdown.clone()
            ),
            reconcile::record_archived_ends(&directory, &archive, &attempts, &recorder),
        )
    };
    tokio::join!(
        serving,
        reconciler.run(changes),
        world.api.watch(&directory, || listed.cancel())
    );
    Ok(())
}
