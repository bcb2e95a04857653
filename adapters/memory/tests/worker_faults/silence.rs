//! A broker that does not answer settlements.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anybroker_core::{Confirmation, Confirmer, Delivery, Inbox, Message, Outcome, Settler, Worker};
use tokio::time::Instant;
use tower::service_fn;

use crate::double::{Answer, Double, envelope, pass, stop_with, work};

/// Answers settlements of even tags only; notes what is renewed.
#[derive(Debug, Default)]
struct Silent {
    open: Mutex<Vec<Confirmer>>,
    abandoned: Mutex<Vec<u64>>,
    renewed: Mutex<Vec<(u64, Instant)>>,
}

impl Settler for Silent {
    fn settle(&self, delivery: Delivery, _: Outcome) -> Confirmation {
        let (confirmer, confirmation) = Confirmation::channel();
        if delivery.tag().is_multiple_of(2) {
            confirmer.confirm(Ok(()));
        } else {
            self.open.lock().unwrap().push(confirmer);
        }
        confirmation
    }

    fn renew(&self, tags: &[u64]) -> Confirmation {
        let now = Instant::now();
        self.renewed.lock().unwrap().extend(tags.iter().map(|tag| (*tag, now)));
        Confirmation::ready(Ok(()))
    }

    fn runs_by_runtime_clock(&self) -> bool {
        true
    }

    fn abandon(&self, tag: u64) {
        self.abandoned.lock().unwrap().push(tag);
    }
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_is_not_answered_loses_its_lease_and_counts_as_unsettled() {
    let settler = Arc::new(Silent::default());
    let (sender, inbox) = Inbox::channel(64);
    let inbox = inbox.leased(settler.clone(), Duration::from_secs(3));
    let deliver = |tag| Delivery::new(Arc::new(envelope()), None, 0, tag, settler.clone());
    let handler = service_fn(|_: Message| async { Answer::Ok(Outcome::Ack) });
    let worker = Worker::new(Double::broker(vec![Box::new(inbox)])).subscribe(work(), handler);
    let begun = Instant::now();
    let (stop, report) = stop_with(worker.loops(1)).await;
    for tag in 0..4 {
        sender.deliver(deliver(tag)).await.unwrap();
        pass(Duration::from_secs(20)).await;
    }
    pass(Duration::from_mins(5)).await;
    let kept = |tag: u64| {
        let renewed = settler.renewed.lock().unwrap();
        let last = renewed.iter().filter(|(of, _)| *of == tag).map(|(_, at)| *at).max();
        last.map(|at| (at - begun).as_secs())
    };
    assert_eq!((kept(0), kept(2)), (None, None), "answered at once");
    for (tag, sent) in [(1, 20), (3, 60)] {
        let kept = kept(tag).expect("it was renewed") - sent;
        assert!((59..=120).contains(&kept), "{tag} kept its lease for {kept} s");
    }
    // Whatever is answered after that harms nobody.
    for confirmer in settler.open.lock().unwrap().drain(..) {
        confirmer.confirm(Ok(()));
    }
    sender.deliver(deliver(4)).await.unwrap();
    pass(Duration::from_mins(1)).await;
    stop.send(()).unwrap();
    sender.closed().await;
    drop(sender);
    let report = report.await.unwrap();
    assert_eq!((report.handled, report.stale, report.unsettled), (3, 0, 2));
    assert!(settler.abandoned.lock().unwrap().is_empty(), "a settlement may have taken effect");
}
