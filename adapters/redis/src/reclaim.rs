//! Entries that were delivered before: what others left behind, and what was lost on its way here.

use std::time::Duration;

use anybroker_core::Result;
use anybroker_core::adapter::{Alone, suspicious};
use tokio::time::Instant;

use crate::consume::Reader;
use crate::held::Source;
use crate::scripts::{CLAIM, Found, array, integer, text};
use crate::settle::millis;

/// Pending entries taken over in one step; more would hold up the server's other clients.
const PAGE: usize = 1000;

/// After so many deliveries, or nearly as many as there may be, without a settlement an entry is a
/// suspect: it may be what ends its process, which holds one of them at a time.
const SUSPICIOUS: u32 = 2;

/// What to take over.
pub(crate) enum Whose {
    /// What never came here.
    Mine,
    /// All of an ordered partition.
    InOrder,
    /// What others left, with a suspect among it if there is a place.
    Any(Option<Alone>),
}

/// What a claim could not take over yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Nothing,
    Suspects,
    Room,
}

/// How far a source was searched for entries that were delivered before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cursor {
    From(String),
    Done,
}

impl Cursor {
    pub(crate) fn start() -> Self {
        Self::From("-".to_owned())
    }
}

impl Reader {
    /// Takes over what has been idle for longer than its lease.
    pub(crate) async fn claim_all(&mut self) -> Result<()> {
        self.claims = false;
        for source in 0..self.cursors.len() {
            self.cursors[source] = Cursor::start();
            while let Cursor::From(from) = self.cursors[source].clone() {
                let (room, suspects) = self.shared.held.room(self.shared.prefetch());
                // Being claimed counts, and of another consumer of this process one may be held.
                let place = if suspects == 0 { self.topology.suspects.enter() } else { None };
                let (idle, whose) = (self.shared.lease(), Whose::Any(place));
                let settling = self.shared.held.settling(source);
                match self.claim(source, idle, &from, room, whose, settling).await? {
                    // What is behind a suspect need not wait for it.
                    Some(Waits::Nothing | Waits::Suspects) => {}
                    Some(Waits::Room) | None => {
                        self.claims = true;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Receives what is pending under this consumer's name although it never came here.
    pub(crate) async fn recover(&mut self) -> Result<()> {
        for source in 0..self.cursors.len() {
            self.cursors[source] = Cursor::start();
            while let Cursor::From(from) = self.cursors[source].clone() {
                let known = self.shared.held.ids(source);
                self.claim(source, Duration::ZERO, &from, PAGE, Whose::Mine, known).await?;
            }
        }
        Ok(())
    }

    /// After how many deliveries an entry is a suspect.
    pub(crate) fn suspicious(&self) -> u32 {
        suspicious(&self.shared.subscription, SUSPICIOUS)
    }

    /// Takes over one page, and moves the cursor. Answers what had to wait; `None`
    /// when the partition is lost.
    pub(crate) async fn claim(
        &mut self,
        source: Source,
        idle: Duration,
        from: &str,
        room: usize,
        whose: Whose,
        known: Vec<String>,
    ) -> Result<Option<Waits>> {
        let shared = &self.shared;
        let (word, suspects, place) = match whose {
            Whose::Mine => ("mine", PAGE, None),
            Whose::InOrder => ("any", PAGE, None),
            Whose::Any(place) => ("any", usize::from(place.is_some()), place),
        };
        let token = shared.held.token(source / 2);
        let call = shared
            .call(&CLAIM, source, &[])
            .arg(millis(idle))
            .arg(from)
            .arg(PAGE)
            .arg(room)
            .arg(word)
            .arg(suspects)
            .arg(self.suspicious())
            .arg(known);
        let asked = Instant::now();
        let answer: redis::Value = shared.link.run("claim", &call).await?;
        let mut answer = array(answer).into_iter();
        let Some(cursor) = shared.of_owned(source / 2, &token, answer.next()) else {
            return Ok(None);
        };
        let (Some(waits), Some(gone)) = (answer.next(), answer.next()) else { return Ok(None) };
        let waits = match integer(&waits) {
            Some(0) => Waits::Nothing,
            Some(1) => Waits::Suspects,
            _ => Waits::Room,
        };
        if integer(&gone).is_some_and(|gone| gone > 0) {
            let stream = shared.group.stream(source);
            tracing::error!(?gone, stream, "somebody removed messages that were not handled yet");
        }
        match text(cursor) {
            Some(cursor) if !cursor.is_empty() => self.cursors[source] = Cursor::From(cursor),
            _ if waits == Waits::Room => {}
            _ => self.cursors[source] = Cursor::Done,
        }
        let found = answer.filter_map(Found::counted).collect();
        self.take_in(source, found, asked, place);
        Ok(Some(waits))
    }
}
