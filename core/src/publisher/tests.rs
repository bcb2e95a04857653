use std::error::Error as StdError;

use tower::layer::layer_fn;
use tower::timeout::TimeoutLayer;

use super::*;

/// Answers each send a second later.
#[derive(Debug)]
struct Slow;

impl Producer for Slow {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        Confirmation::run(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match &*outgoing.envelope.id {
                "unroutable" => Err(Error::new(ErrorKind::Unroutable, "no group")),
                _ => Ok(()),
            }
        })
    }
}

#[derive(Clone)]
struct Wrapped(Publisher);

/// What a layer from elsewhere makes of an error.
#[derive(Debug)]
struct Foreign(Error);

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the layer failed")
    }
}

impl StdError for Foreign {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

impl Service<Outgoing> for Wrapped {
    type Response = ();
    type Error = Foreign;
    type Future = futures_util::future::MapErr<Confirmation, fn(Error) -> Foreign>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Foreign>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        futures_util::TryFutureExt::map_err(self.0.call(outgoing), Foreign)
    }
}

fn slow() -> Publisher {
    Publisher(Target::Direct(Arc::new(Slow)))
}

async fn send(publisher: &Publisher, id: &str) -> Result<()> {
    let envelope = Envelope::new("order.place", "").with_id(id);
    publisher.send(Outgoing::new(crate::Queue::new("order.place"), envelope)).await
}

#[tokio::test(start_paused = true)]
async fn a_layer_s_timeout_leaves_open_whether_it_happened() {
    let publisher = slow().layer(TimeoutLayer::new(Duration::from_millis(10)));
    let error = send(&publisher, "1").await.expect_err("it takes longer");
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Broker, RetryClass::Ambiguous));
}

#[tokio::test(start_paused = true)]
async fn our_error_is_found_beneath_a_layer_s() {
    let publisher = slow().layer(layer_fn(Wrapped));
    assert!(send(&publisher, "1").await.is_ok());
    let error = send(&publisher, "unroutable").await.expect_err("no group");
    assert_eq!((error.kind(), error.retry_class()), (ErrorKind::Unroutable, RetryClass::Permanent));
}

#[derive(serde::Serialize, serde::Deserialize, anybroker_macros::Command)]
#[command(type = "order.place", crate = crate)]
struct PlaceOrder {
    number: u32,
}

#[tokio::test(start_paused = true)]
async fn many_publishes_through_a_layer_are_under_way_together() {
    let publisher = slow().layer(layer_fn(Wrapped));
    let orders: Vec<_> = (0..100).map(|number| PlaceOrder { number }).collect();
    let start = tokio::time::Instant::now();
    let results = publisher.publish_all(&orders).await;
    assert!(results.len() == 100 && results.iter().all(Result::is_ok));
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}
