//! The broker is killed and comes back: nothing confirmed is lost, and everything goes on.

use std::collections::HashSet;
use std::time::Duration;

use anybroker_core::{Broker, DeadLetterFilter, ErrorKind, Outcome, Outgoing, Subscription};
use tokio::time::{Instant, sleep, timeout};

use crate::conformance::case::{Checked, Need, cases};
use crate::conformance::lab::{self, Lab, PATIENCE, message};
use crate::conformance::receiver::Receiver;

cases! {
    what_was_confirmed_survives_a_killed_broker: Need::Restart, within 120;
    what_waits_survives_a_killed_broker: Need::Restart, within 120;
    consumers_and_producers_go_on_after_a_killed_broker: Need::Restart, within 120;
}

/// Publishes, again and again while the broker is not there, until it is confirmed.
async fn publish_until_confirmed(broker: &dyn Broker, outgoing: &Outgoing) -> Checked {
    let end = Instant::now() + 3 * PATIENCE;
    loop {
        match timeout(PATIENCE, broker.producer().send(outgoing.clone())).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if Instant::now() > end => return Err(error.into()),
            Err(_elapsed) => return Err(format!("no answer to a send in {PATIENCE:?}").into()),
            Ok(Err(_)) => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn what_was_confirmed_survives_a_killed_broker(lab: Lab) -> Checked {
    let queue = lab::queue();
    let subscription = Subscription::queue(queue.clone());
    lab.broker().declare(&subscription).await?;
    let (confirmed, mut confirmations) = tokio::sync::mpsc::unbounded_channel();
    let publisher = {
        let (lab, queue) = (lab.clone(), queue.clone());
        tokio::spawn(async move {
            let producer = lab.broker().producer();
            for burst in 0..400 {
                let sends: Vec<_> = (0..50)
                    .map(|number| {
                        let id = format!("m{}", burst * 50 + number);
                        let outgoing = Outgoing::new(queue.clone(), message(&id));
                        (id, producer.send(outgoing))
                    })
                    .collect();
                for (id, send) in sends {
                    // An error is fine, wrong would be an `Ok` for what is lost.
                    if send.await.is_ok() && confirmed.send(id).is_err() {
                        return;
                    }
                }
            }
        })
    };
    let mut expected = HashSet::new();
    while expected.len() < 300 {
        let id = timeout(PATIENCE, confirmations.recv()).await?;
        expected.insert(id.ok_or("the publisher ended early")?);
    }
    lab.step("kill");
    lab.restart().await?;
    publisher.abort();
    confirmations.close();
    while let Some(id) = confirmations.recv().await {
        expected.insert(id);
    }
    lab.step(format!("{} confirmed, on a new connection", expected.len()));
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&subscription).await?;
    while !expected.is_empty() {
        let delivery = receiver.within(PATIENCE).await?;
        let delivery = delivery.ok_or_else(|| format!("{} are lost", expected.len()))?;
        expected.remove(&delivery.envelope().id);
        delivery.settle(Outcome::Ack).await?;
    }
    Ok(())
}

async fn what_waits_survives_a_killed_broker(lab: Lab) -> Checked {
    let queue = lab::queue();
    // Where deliveries are leased, what is held comes again when its lease is over.
    let subscription = Subscription::queue(queue.clone()).lease(Duration::from_secs(5));
    lab.publish(queue.clone(), ["dead", "held", "retried"].map(message)).await?;
    let mut receiver = lab.consume(&subscription).await?;
    let mut held = Vec::new();
    for delivery in receiver.take(3).await? {
        match &*delivery.envelope().id {
            "dead" => delivery.settle(Outcome::dead_letter("test", "before")).await?,
            "retried" => delivery.settle(Outcome::Retry { after: Duration::from_secs(4) }).await?,
            _ => held.push(delivery),
        }
    }
    let delayed = Outgoing::new(queue, message("delayed")).with_delay(Duration::from_secs(4));
    lab.broker().producer().send(delayed).await?;
    // What the delays are kept in was created just now, and is durable itself only after a moment
    // (RabbitMQ: half a second).
    sleep(Duration::from_secs(1)).await;
    lab.step("kill");
    lab.restart().await?;
    lab.step("on a new connection");
    // The one before may have found its way back already.
    drop(receiver);
    let other = lab.reconnected().await?;
    let mut receiver = other.consume(&subscription).await?;
    let mut back = Vec::new();
    for delivery in receiver.take(3).await? {
        back.push((delivery.envelope().id.clone(), delivery.attempt()));
        delivery.settle(Outcome::Ack).await?;
    }
    back.sort();
    let names: Vec<_> = back.iter().map(|(id, _)| &**id).collect();
    assert_eq!(names, ["delayed", "held", "retried"]);
    assert_eq!(back[2].1, 2, "the attempt of the retried one survives");
    let filter = DeadLetterFilter::all();
    let found = other.broker().dead_letters(&subscription, &filter, 10).await?.entries;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].envelope.id, "dead");
    Ok(())
}

async fn consumers_and_producers_go_on_after_a_killed_broker(lab: Lab) -> Checked {
    let queue = lab::queue();
    let (destination, group) = lab.group("one");
    let mut of_queue = lab.consume(&Subscription::queue(queue.clone())).await?;
    let mut of_group = Receiver::open(lab.broker(), &group, 4).await?;
    lab.publish(queue.clone(), [message("before")]).await?;
    lab.publish(destination.clone(), [message("before")]).await?;
    of_queue.ack(1).await?;
    of_group.ack(1).await?;
    for round in 0..2 {
        lab.step(format!("kill {round}"));
        lab.restart().await?;
        let id = format!("after{round}");
        for (destination, receiver) in [
            (anybroker_core::Destination::from(queue.clone()), &mut of_queue),
            (destination.clone(), &mut of_group),
        ] {
            lab.step(format!("publish to {} after kill {round}", destination.name()));
            let outgoing = Outgoing::new(destination, message(&id));
            publish_until_confirmed(&**lab.broker(), &outgoing).await?;
            lab.step(format!("receive after kill {round}"));
            let end = Instant::now() + 2 * PATIENCE;
            loop {
                assert!(Instant::now() < end, "nothing came after the restart");
                let Some(delivery) = receiver.within(PATIENCE).await? else { continue };
                let found = delivery.envelope().id.clone();
                // What was acknowledged just before the kill may come again; and what came just
                // before the broker noticed that the group had lost its member comes again too.
                match delivery.settle(Outcome::Ack).await {
                    Err(error) if error.kind() == ErrorKind::StaleDelivery => continue,
                    settled => settled?,
                }
                if found == id {
                    break;
                }
            }
        }
    }
    Ok(())
}
