//! Events to an exchange.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use lapin::types::ShortString;
use remoteprocess_api::sink::RabbitMqDestination;
use remoteprocess_api::trigger::RabbitMqSource;
use tokio::time::sleep;

use super::super::{Secrets, SourceError};
use super::DEFAULT_EXCHANGE;
use super::connection::Dialer;
use super::publisher::Outlet;
use super::wire::{ReplyTo, of_result, short};
use crate::outcome::CloudEvent;
use crate::sink::destination::Destination;

/// How often to look whether the connection is there.
const LOOK: Duration = Duration::from_secs(1);

/// An exchange and a routing key, over one connection.
struct Exchange {
    name: ShortString,
    key: ShortString,
    outlet: Outlet,
}

/// Connects.
///
/// # Errors
/// The server cannot be used.
pub(crate) async fn open_exchange(
    destination: &RabbitMqDestination,
    name: &str,
    secrets: &Secrets,
) -> Result<Arc<dyn Destination>, SourceError> {
    // The part of a source by which it connects.
    let source = RabbitMqSource {
        address: destination.address.clone(),
        virtual_host: destination.virtual_host.clone(),
        credentials_secret_name: destination.credentials_secret_name.clone(),
        tls: destination.tls.clone(),
        ..RabbitMqSource::default()
    };
    let dialer = Dialer {
        name: name.to_owned(),
        source,
        secrets: secrets.clone(),
    };
    let exchange = destination.exchange.as_deref().unwrap_or(DEFAULT_EXCHANGE);
    let key = short(&destination.routing_key, "the routing key")?;
    let opened = Exchange {
        name: short(exchange, "the name of the exchange")?,
        outlet: Outlet::new(dialer, key.clone())?,
        key,
    };
    opened.outlet.connect().await?;
    Ok(Arc::new(opened))
}

impl Destination for Exchange {
    fn send<'a>(&'a self, event: &'a CloudEvent, _key: &'a str) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let what = format!("event to exchange {:?} with key {}", self.name.as_str(), self.key);
            let nobody = ReplyTo {
                reply_to: String::new(),
                correlation_id: None,
            };
            let (payload, properties) = (event.to_json(), of_result(event, &nobody));
            let (exchange, key) = (self.name.clone(), self.key.clone());
            self.outlet.publish(&what, exchange, key, &payload, properties).await
        })
    }

    fn lost(&self) -> BoxFuture<'_, SourceError> {
        Box::pin(async {
            while !self.outlet.is_lost() {
                sleep(LOOK).await;
            }
            SourceError::unreachable("the connection to RabbitMQ broke")
        })
    }
}
