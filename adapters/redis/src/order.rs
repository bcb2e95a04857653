//! Ordered groups: each partition has one owner, and all that it does there is refused once
//! somebody else owns it. Owning is renewed beside, in `keep.rs`.

use std::sync::Arc;
use std::time::Duration;

use anybroker_core::{InboxSender, Result};
use redis::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::consume::{Reader, at_least_a_moment, closed};
use crate::held::Reopening;
use crate::line::Line;
use crate::link::Call;
use crate::reclaim::{Cursor, Waits, Whose};
use crate::scripts::{LOCK, OWN, TAKE, array, streams, text};
use crate::settle::millis;

/// For how many leases one is kept that did not get empty within one.
const STAYS: u32 = 10;

impl Reader {
    /// Takes one free partition more while others have as many, and begins to give up what is
    /// beyond this process's share: so all processes of a group share them.
    pub(crate) async fn own(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        // Where the answer is lost, it is asked again with the same token.
        let token = format!("{}-{}", shared.consumer, self.ownerships);
        let begun = Instant::now();
        let mut call = Call::new(&OWN).key(&shared.group.members);
        for partition in &shared.group.partitions {
            call = call.key(&partition.lock);
        }
        let call = call.arg(&token).arg(&self.topology.process).arg(millis(shared.lease()));
        let answer: Vec<i64> = shared.link.run("own a partition", &call).await?;
        let mut places = answer.into_iter().map(|place| usize::try_from(place).ok());
        if let Some(index) = places.next().flatten() {
            self.ownerships += 1;
            shared.held.own(index, token, begun + shared.lease());
            self.leaving[index] = None;
            self.begin_anew(index);
        }
        let beyond: Vec<_> = places.flatten().collect();
        for index in 0..self.leaving.len() {
            if shared.held.is_owned(index) {
                self.leave_or_stay(index, beyond.contains(&index)).await?;
            } else {
                self.leaving[index] = None;
            }
        }
        Ok(())
    }

    /// Gives up what is beyond the share once it is empty. What does not get so within a lease,
    /// and what is within the share again, hands out again.
    async fn leave_or_stay(&mut self, index: usize, beyond: bool) -> Result<()> {
        let (now, lease) = (Instant::now(), self.shared.lease());
        let Some(since) = self.leaving[index] else {
            if beyond && self.staying[index].is_none_or(|until| until <= now) {
                self.shared.held.leave(index);
                self.leaving[index] = Some(now);
            }
            return Ok(());
        };
        match self.shared.held.drain(index) {
            None if beyond => return self.give_up(index).await,
            None => {}
            Some(waiting) => {
                for holding in waiting {
                    drop(self.settler.give_back(holding, false));
                }
            }
        }
        if (!beyond || since + lease <= now) && self.shared.held.stay(index) {
            self.leaving[index] = None;
            self.staying[index] = beyond.then(|| now + STAYS * lease);
            self.begin_anew(index);
        }
        Ok(())
    }

    fn begin_anew(&mut self, index: usize) {
        self.cursors[2 * index] = Cursor::start();
        self.cursors[2 * index + 1] = Cursor::start();
    }

    pub(crate) async fn disown(&mut self) -> Result<()> {
        let mut disowned = Ok(());
        for index in 0..self.leaving.len() {
            disowned = disowned.and(self.give_up(index).await);
        }
        disowned
    }

    async fn give_up(&mut self, index: usize) -> Result<()> {
        let shared = &self.shared;
        if !shared.held.is_owned(index) {
            return Ok(());
        }
        let token = shared.held.token(index);
        let partition = &shared.group.partitions[index];
        let call = Call::new(&LOCK).key(&partition.lock).arg(0).arg(&token);
        shared.link.run::<Vec<i64>>("give up a partition", &call).await?;
        self.leaving[index] = None;
        shared.held.lose(index, &token);
        Ok(())
    }

    /// Reads what is owned: first what was delivered before, in its order, then what is new.
    pub(crate) async fn read_in_order(
        &mut self,
        line: &mut Line,
        mut room: usize,
        inbox: &InboxSender,
        closing: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        let before = self.surplus.len();
        let mut ready = Vec::new();
        let (first, partitions) = (self.turn, self.leaving.len());
        for index in (first..partitions).chain(0..first) {
            let is_owned = self.shared.held.is_owned(index);
            if !is_owned || self.leaving[index].is_some() || room == 0 {
                continue;
            }
            match self.shared.held.reopen(index) {
                Reopening::Open => {}
                Reopening::Again => self.begin_anew(index),
                Reopening::Not(waiting) => {
                    for holding in waiting {
                        drop(self.settler.give_back(holding, false));
                    }
                    continue;
                }
            }
            let before = self.surplus.len();
            if self.read_again(index, room).await? {
                ready.push(index);
            }
            let taken = self.surplus.len() - before;
            if taken > 0 {
                self.turn = (index + 1) % partitions;
            }
            room = room.saturating_sub(taken);
        }
        let (mut keys, mut last) = (Vec::new(), Vec::new());
        if room > 0 && !ready.is_empty() {
            for (index, at) in self.read_new(&ready, room).await? {
                let partition = &self.shared.group.partitions[index];
                keys.extend([partition.stream.clone(), partition.retry.clone()]);
                last.extend(at);
            }
        }
        if self.surplus.len() > before {
            return Ok(());
        }
        let wait = self.next_tick.saturating_duration_since(Instant::now());
        if keys.is_empty() {
            let wait = wait.min(Duration::from_millis(50));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.shared.room.notified() => {}
                () = closed(inbox, closing) => {}
            }
            return Ok(());
        }
        // Only to be woken: what is there is read by the script, while the partition is owned.
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(at_least_a_moment(wait));
        command.arg("STREAMS").arg(keys).arg(last);
        let wake = &self.shared.claimable;
        line.read(&command, wait, &self.shared.link, wake, closed(inbox, closing)).await?;
        Ok(())
    }

    /// Takes over what was delivered before; answers whether there is no more of it.
    async fn read_again(&mut self, index: usize, room: usize) -> Result<bool> {
        for source in [2 * index, 2 * index + 1] {
            while let Cursor::From(from) = self.cursors[source].clone() {
                let before = self.surplus.len();
                let known = self.shared.held.ids(source);
                let waits =
                    self.claim(source, Duration::ZERO, &from, room, Whose::InOrder, known).await?;
                match waits {
                    None | Some(Waits::Room) => return Ok(false),
                    Some(_) if self.surplus.len() - before >= room => return Ok(false),
                    Some(_) => {}
                }
            }
        }
        Ok(true)
    }

    /// Reads new entries, of the first partitions first; returns after which ids of each more will
    /// come.
    async fn read_new(
        &mut self,
        partitions: &[usize],
        room: usize,
    ) -> Result<Vec<(usize, [String; 2])>> {
        let shared = Arc::clone(&self.shared);
        let tokens: Vec<_> = partitions.iter().map(|index| shared.held.token(*index)).collect();
        let mut call = Call::new(&TAKE);
        for index in partitions {
            let partition = &shared.group.partitions[*index];
            call = call.key(&partition.lock).key(&partition.stream).key(&partition.retry);
        }
        let call = call.arg(&shared.group.name).arg(&shared.consumer).arg(room).arg(&tokens);
        let asked = Instant::now();
        let answer: Value = shared.link.run("read in order", &call).await?;
        let mut ends = Vec::new();
        for ((index, token), answer) in partitions.iter().zip(&tokens).zip(array(answer)) {
            let owned = Some(answer).filter(|answer| !matches!(answer, Value::Nil));
            let Some(owned) = shared.of_owned(*index, token, owned) else { continue };
            let mut owned = array(owned).into_iter();
            let Some(found) = owned.next() else { continue };
            let stream = &shared.group.partitions[*index].stream;
            for (name, found) in streams(found) {
                if !found.is_empty() {
                    self.turn = (index + 1) % self.leaving.len();
                }
                self.take_in(2 * index + usize::from(name != *stream), found, asked, None);
            }
            let at = owned.next().and_then(text).zip(owned.next().and_then(text));
            ends.extend(at.map(|(stream, retry)| (*index, [stream, retry])));
        }
        Ok(ends)
    }
}
