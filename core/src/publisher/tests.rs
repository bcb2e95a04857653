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
    publisher.send(outgoing(id)).await
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

/// Waits for a moment before it passes a message on.
#[derive(Clone)]
struct Waiting(Publisher);

impl Service<Outgoing> for Waiting {
    type Response = ();
    type Error = Error;
    type Future = futures_util::future::BoxFuture<'static, Result<()>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            inner.send(outgoing).await
        })
    }
}

/// Notes what it is to send.
#[derive(Debug, Default)]
struct Log(std::sync::Mutex<Vec<String>>);

impl Producer for Log {
    fn send(&self, outgoing: Outgoing) -> Confirmation {
        self.0.lock().unwrap().push(outgoing.envelope.id);
        Confirmation::channel().1
    }
}

fn outgoing(id: &str) -> Outgoing {
    Outgoing::new(crate::Queue::new("order.place"), Envelope::new("order.place", "").with_id(id))
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publish_goes_on_through_its_layers() {
    let log = Arc::new(Log::default());
    let publisher = Publisher(Target::Direct(log.clone()))
        .layer(layer_fn(Waiting))
        .layer(TimeoutLayer::new(Duration::from_secs(9)));
    drop(publisher.send(outgoing("1")));
    let second = tokio::time::timeout(Duration::from_millis(1), publisher.send(outgoing("2")));
    assert!(second.await.is_err());
    assert!(log.0.lock().unwrap().is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut sent = log.0.lock().unwrap().clone();
    sent.sort();
    assert_eq!(sent, ["1", "2"]);
}

#[tokio::test]
async fn layers_that_do_not_wait_send_at_once_and_in_the_order_of_the_calls() {
    let log = Arc::new(Log::default());
    let publisher = Publisher(Target::Direct(log.clone())).layer(layer_fn(Wrapped));
    let sends: Vec<_> = ["1", "2", "3"].map(|id| publisher.send(outgoing(id))).into();
    assert_eq!(*log.0.lock().unwrap(), ["1", "2", "3"], "nobody has polled them");
    drop(sends);
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
