//! How an application tests a service: in memory and in virtual time, where minutes take no time, and
//! unchanged on a real broker. `docs/testing.md` walks through it.
//!
//! ```sh
//! cargo test -p anybroker-tests --test application
//! ANYBROKER_TEST_URL=amqp://localhost cargo test -p anybroker-tests --features rabbitmq --test application
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anybroker::{
    Backoff, BoxError, Broker, Command, DeadLetterFilter, DeadLetterLayer, Envelope, Event,
    Handler, Message, Outcome, Publisher, Report, RetryLayer, ServiceBuilder, Subscription,
    TypedMessage, Worker, connect, handler_fn, permanent,
};
use anybroker_testkit::{Recorder, handle};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

// ----- the application: it knows nothing of tests -----------------------------------------------

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(type = "order.placed")]
struct OrderPlaced {
    order: u64,
    cents: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Command)]
#[command(type = "mail.send")]
struct SendMail {
    order: u64,
    text: String,
}

/// Who gives the money, asked for an order and how often before.
type Bank = fn(&OrderPlaced, u32) -> Result<(), BoxError>;

fn billing() -> Subscription {
    Subscription::topic("order.placed").group("billing")
}

/// Bills an order and asks for a mail about it; tries again after `pause`, three times in all.
fn bill(publisher: Publisher, bank: Bank, pause: Duration) -> impl Handler {
    ServiceBuilder::new()
        .layer(DeadLetterLayer::new())
        .layer(RetryLayer::new(Backoff::fixed(pause)).max_attempts(3))
        .service(handler_fn(move |event: OrderPlaced, message: Message| {
            let publisher = publisher.clone();
            async move {
                bank(&event, message.attempt())?;
                let text = format!("thank you for {} cents", event.cents);
                publisher.publish(&SendMail { order: event.order, text }).await?;
                Ok::<_, BoxError>(())
            }
        }))
}

// ----- its tests --------------------------------------------------------------------------------

#[tokio::test]
async fn a_paid_order_asks_for_a_mail() -> Result<(), BoxError> {
    let lab = Lab::open().await?;
    let report = lab.run(|_, _| Ok(()), async || lab.mails() == 1).await?;
    let mail = SendMail { order: 7, text: "thank you for 995 cents".to_owned() };
    assert_eq!(lab.recorder.published_as::<SendMail>()?, [mail]);
    let [order, mail] = &lab.recorder.published()[..] else { panic!("an order and a mail") };
    assert_eq!(mail.envelope.causation_id.as_ref(), Some(&order.envelope.id));
    assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 0, 0));
    Ok(())
}

#[tokio::test]
async fn a_bank_that_does_not_answer_is_asked_again_later() -> Result<(), BoxError> {
    let lab = Lab::open().await?;
    let (begun, really) = (Instant::now(), std::time::Instant::now());
    let bank: Bank = |_, attempt| if attempt < 3 { Err("no answer".into()) } else { Ok(()) };
    let report = lab.run(bank, async || lab.mails() == 1).await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (1, 2, 0));
    assert!(begun.elapsed() >= 2 * lab.pause, "never early");
    if lab.is_virtual {
        assert!(really.elapsed() < lab.pause / 2, "ten minutes in no time");
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_card_ends_in_the_dead_letter_queue() -> Result<(), BoxError> {
    let lab = Lab::open().await?;
    let bank: Bank = |_, _| Err(permanent("the card is stolen"));
    let report = lab.run(bank, async || !lab.dead_letters().await.is_empty()).await?;
    assert_eq!((report.handled, report.retried, report.dead_lettered), (0, 0, 1));
    assert_eq!(lab.dead_letters().await, ["order 7, permanent after 1: the card is stolen"]);
    assert_eq!(lab.mails(), 0);
    Ok(())
}

#[tokio::test]
async fn without_a_broker_a_handler_is_a_function() -> Result<(), BoxError> {
    let pause = Duration::from_mins(5);
    let publisher = connect("memory://").await?.publisher();
    let handler = bill(publisher, |_, _| Err("no answer".into()), pause);
    let outcome = handle(handler, placed().to_envelope()?).await?;
    assert_eq!(outcome, Outcome::Retry { after: pause });
    Ok(())
}

// ----- what they share --------------------------------------------------------------------------

fn placed() -> OrderPlaced {
    OrderPlaced { order: 7, cents: 995 }
}

/// A broker that notes what is published on it.
struct Lab {
    recorder: Arc<Recorder>,
    is_virtual: bool,
    pause: Duration,
}

impl Lab {
    /// In memory, where no time passes, or on the broker that the environment names.
    async fn open() -> Result<Self, BoxError> {
        let Ok(url) = std::env::var("ANYBROKER_TEST_URL") else {
            tokio::time::pause();
            let recorder = Recorder::new(connect("memory://").await?);
            return Ok(Self { recorder, is_virtual: true, pause: Duration::from_mins(5) });
        };
        // Names of its own for each test. A pause of more than 5 s is the broker's to keep.
        let run = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let separator = if url.contains('?') { '&' } else { '?' };
        let broker = connect(&format!("{url}{separator}prefix=test{run}")).await?;
        let pause = Duration::from_secs(6);
        Ok(Self { recorder: Recorder::new(broker), is_virtual: false, pause })
    }

    /// Lets the service handle an order until `is_done`, and then end in order.
    async fn run(&self, bank: Bank, is_done: impl AsyncFn() -> bool) -> Result<Report, BoxError> {
        let broker: Arc<dyn Broker> = self.recorder.clone();
        let handler = bill(broker.publisher(), bank, self.pause);
        let worker = Worker::new(broker.clone()).subscribe(billing(), handler).start().await?;
        broker.publisher().publish(&placed()).await?;
        let done = async {
            while !is_done().await {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let report = worker.run_until(timeout(10 * self.pause, done)).await?;
        Ok(report)
    }

    fn mails(&self) -> usize {
        let of_type = |envelope: &Envelope| envelope.r#type == SendMail::TYPE;
        self.recorder.published().iter().filter(|sent| of_type(&sent.envelope)).count()
    }

    async fn dead_letters(&self) -> Vec<String> {
        let all = DeadLetterFilter::all();
        let letters = self.recorder.dead_letters(&billing(), &all, 10).await.expect("an answer");
        let shown = letters.entries.iter().map(|letter| {
            let order = OrderPlaced::from_envelope(&letter.envelope).expect("an order").order;
            let failure = letter.failure().expect("a reason");
            let (reason, attempts) = (&failure.reason, letter.hop.attempts);
            format!("order {order}, {reason} after {attempts}: {}", failure.error)
        });
        shown.collect()
    }
}
