use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{Confirmation, Confirmer, Envelope, Error, ErrorKind, Result};

/// How much of what is published waits for its confirmation at the same time.
///
/// So an application that publishes without waiting, to a broker that takes nothing, is told so
/// before its memory is full.
#[derive(Clone, Debug, Default)]
pub struct Room(Arc<AtomicUsize>);

/// Held by what waits.
#[derive(Debug)]
pub(crate) struct Place {
    room: Room,
    size: usize,
}

impl Room {
    /// The most bytes.
    const MOST: usize = 512 * 1024 * 1024;

    /// What a message counts beside its payload.
    pub const OVERHEAD: usize = 1024;

    /// As [`Confirmation::channel`]; the message takes its place until it is answered.
    ///
    /// # Errors
    /// `Blocked` when messages of 512 MiB wait, of which each counts its payload and 1 KiB.
    pub fn channel(&self, envelope: &Envelope) -> Result<(Confirmer, Confirmation)> {
        let size = envelope.payload.len() + Self::OVERHEAD;
        let waiting = self.0.fetch_add(size, Ordering::Relaxed);
        let place = Place { room: self.clone(), size };
        if waiting > Self::MOST {
            let text = "too many messages wait for their confirm; await some before sending more";
            return Err(Error::new(ErrorKind::Blocked, text).operation("publish"));
        }
        let (confirmer, confirmation) = Confirmation::channel();
        Ok((confirmer.holding(place), confirmation))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.0.fetch_sub(self.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_room_again_when_something_is_answered() {
        let room = Room::default();
        let envelope = Envelope::new("t", vec![0; 64 * 1024 * 1024]);
        let mut taken: Vec<_> = (0..9).map_while(|_| room.channel(&envelope).ok()).collect();
        assert_eq!(taken.len(), 8, "the ninth finds more than 512 MiB");
        let refused = room.channel(&envelope).expect_err("no room");
        assert_eq!(refused.kind(), ErrorKind::Blocked);
        let (confirmer, _confirmation) = taken.remove(0);
        confirmer.confirm(Ok(()));
        assert!(room.channel(&envelope).is_ok());
        // Nobody awaits them: what counts is who is to answer.
        for (confirmer, confirmation) in taken {
            drop(confirmation);
            drop(confirmer);
        }
        assert_eq!(room.0.load(Ordering::Relaxed), 0);
    }
}
