use std::sync::Arc;
use std::time::Duration;

use anybroker::BoxError;
use anybroker_testkit::Proxy;
use anybroker_testkit::brokers::{Error, Server};
use anybroker_testkit::history::Harm;
use fastrand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::stage::{CONSUMER, PUBLISHER, Stage};
use crate::clock;
use crate::fault::{Fault, Place};
use crate::plan::Step;

impl Stage {
    /// Does the steps of a plan at their times, until it is told to end.
    pub(super) async fn play(
        self: Arc<Self>,
        plan: Vec<Step>,
        began: Instant,
        mut end: watch::Receiver<bool>,
    ) -> Result<(), BoxError> {
        for step in plan {
            let ended = end.wait_for(|end| *end);
            tokio::select! {
                biased;
                _ = ended => return Ok(()),
                () = sleep_until(began + step.at) => {}
            }
            self.act(step, &mut end).await?;
        }
        Ok(())
    }

    async fn act(&self, step: Step, end: &mut watch::Receiver<bool>) -> Result<(), BoxError> {
        match step.fault.place() {
            Some(Place::Broker) => self.disturb_broker(step, end).await,
            Some(Place::Processes) => self.disturb_process(step, end).await,
            None => Ok(()),
        }
    }

    async fn disturb_broker(
        &self,
        Step { fault, hold, chance, .. }: Step,
        end: &mut watch::Receiver<bool>,
    ) -> Result<(), BoxError> {
        let mut rng = Rng::with_seed(chance);
        let what = format!("{fault} for {:.1} s", hold.as_secs_f64());
        let (seat, on) = match fault {
            Fault::Cut | Fault::BlackHole | Fault::LostAnswers => self.one_or_all(&mut rng).await,
            _ => (None, Vec::new()),
        };
        let seat = seat.as_deref();
        let harm = match fault {
            Fault::WipeBroker => Harm::Forgets,
            Fault::Latency => Harm::None,
            _ => Harm::Interrupts,
        };
        let mut number = self.disturb(what.clone(), on.clone(), harm)?;
        match fault {
            Fault::KillBroker => {
                self.with_server(Server::kill).await?;
                wait(hold, end).await;
                self.with_server(Server::restart).await?;
            }
            Fault::WipeBroker => {
                self.with_server(Server::kill).await?;
                wait(hold, end).await;
                self.with_server(Server::restart_empty).await?;
            }
            Fault::StopBroker => {
                self.with_server(|server| server.pause()).await?;
                wait(hold, end).await;
                self.with_server(|server| server.resume()).await?;
            }
            Fault::Cut => {
                self.with_ways(seat, Proxy::cut).await;
                for _ in 0..rng.u32(0..=2) {
                    sleep(Duration::from_millis(rng.u64(0..300))).await;
                    // Each cut takes deliveries away, and so each is one more in the history.
                    self.heal_one(number)?;
                    number = self.disturb(what.clone(), on.clone(), harm)?;
                    self.with_ways(seat, Proxy::cut).await;
                }
            }
            Fault::Latency => {
                let latency = self.latency().await.mul_f64(rng.f64());
                self.with_ways(None, |way| way.slow(latency)).await;
                wait(hold, end).await;
                self.with_ways(None, Proxy::pass).await;
            }
            // What was swallowed comes late, or is lost with its connection.
            _ => {
                let loses = fault == Fault::LostAnswers || rng.bool();
                let swallow = if fault == Fault::LostAnswers {
                    Proxy::swallow_answers
                } else {
                    Proxy::swallow
                };
                self.with_ways(seat, swallow).await;
                wait(hold, end).await;
                if loses {
                    self.with_ways(seat, Proxy::cut).await;
                }
                self.with_ways(seat, Proxy::pass).await;
            }
        }
        Ok(self.heal_one(number)?)
    }

    async fn disturb_process(
        &self,
        Step { fault, hold, chance, .. }: Step,
        end: &mut watch::Receiver<bool>,
    ) -> Result<(), BoxError> {
        let mut rng = Rng::with_seed(chance);
        let kind = match fault {
            Fault::KillPublisher | Fault::StopPublisher | Fault::Clock => PUBLISHER,
            _ => CONSUMER,
        };
        let seat = self.one(kind, &mut rng);
        let (mut what, mut harm) =
            (format!("{fault} for {:.1} s", hold.as_secs_f64()), Harm::Interrupts);
        let by = *rng.choice(&[-3_600, -40, 40, 3_600]).unwrap_or(&40);
        if fault == Fault::Clock {
            what = format!("clock wrong by {by} s for {:.1} s", hold.as_secs_f64());
        }
        if matches!(fault, Fault::Clock | Fault::DrainConsumer) {
            harm = Harm::None;
        }
        let number = self.disturb(what, vec![self.process(&seat)], harm)?;
        match fault {
            Fault::KillConsumer | Fault::KillPublisher => {
                self.kill(&seat)?;
                wait(hold, end).await;
            }
            Fault::StopConsumer | Fault::StopPublisher => {
                self.with_child(&seat, |child| child.stop())?;
                wait(hold, end).await;
                self.with_child(&seat, |child| child.resume())?;
            }
            Fault::Clock => {
                self.end(&seat).await?;
                self.start(&seat, &clock::shifted(by)?)?;
                wait(hold, end).await;
                self.end(&seat).await?;
            }
            _ => self.end(&seat).await?,
        }
        // Where it was ended; one that was stopped goes on.
        self.start(&seat, &[])?;
        Ok(self.heal_one(number)?)
    }

    fn one(&self, kind: &str, rng: &mut Rng) -> String {
        let names = self.names(kind);
        rng.choice(&names).cloned().unwrap_or_default()
    }

    /// The place whose way is disturbed, with the process that has it; none and none for all.
    async fn one_or_all(&self, rng: &mut Rng) -> (Option<String>, Vec<String>) {
        let seat = self.one("", rng);
        let is_all = rng.bool();
        if is_all || self.site.lock().await.shared().is_some() {
            return (None, Vec::new());
        }
        let process = self.process(&seat);
        (Some(seat), vec![process])
    }

    async fn with_server(
        &self,
        act: impl FnOnce(&mut Server) -> Result<(), Error> + Send,
    ) -> Result<(), BoxError> {
        let mut site = self.site.lock().await;
        // It waits for processes, while others go on.
        Ok(tokio::task::block_in_place(|| act(&mut site.server))?)
    }
}

/// Waits, but not longer than until all is to be healed.
async fn wait(hold: Duration, end: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = sleep(hold) => {}
        // An error means that nobody will say so.
        Ok(_) = end.wait_for(|end| *end) => {}
    }
}
