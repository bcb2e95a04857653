//! How many messages a group has. It blocks.

use std::sync::Arc;

use anybroker_core::{Depth, ErrorKind, Result, now};
use rdkafka::Message;
use rdkafka::consumer::Consumer;

use crate::ask::{ANSWER, patiently};
use crate::error::{error_of, failed};
use crate::message::read;
use crate::names::Names;
use crate::position::Position;
use crate::scan::{Range, scan};
use crate::topology::{Topology, committed};

/// Up to so many offsets are looked at one by one: transactions leave offsets that are no message.
const COUNTED: i64 = 1_000;

#[derive(Default)]
struct Count {
    ready: i64,
    out: i64,
    delayed: i64,
}

/// Counts; `topics` come with their partitions.
pub(crate) fn depth(
    topology: &Arc<Topology>,
    names: &Names,
    topics: [(&str, Option<usize>); 2],
) -> Result<Depth> {
    let mut total = Count::default();
    for (topic, partitions) in topics {
        let Some(partitions) = partitions else {
            let text = format!("topic {topic:?} does not exist; declare the subscription");
            return Err(error_of(ErrorKind::NotFound, "depth", text));
        };
        count(topology, &names.group, topic, partitions, topic == names.retry, &mut total)?;
    }
    let mut depth = Depth::default();
    depth.ready = Some((total.ready - total.out).max(0).unsigned_abs());
    depth.in_flight = Some(total.out.unsigned_abs());
    depth.delayed = Some(total.delayed.unsigned_abs());
    Ok(depth)
}

fn count(
    topology: &Arc<Topology>,
    group: &str,
    topic: &str,
    partitions: usize,
    delays: bool,
    total: &mut Count,
) -> Result<()> {
    let asked = |error| failed("depth", &format!("topic {topic:?}"), error);
    let positions = committed(topology, group, topic, partitions)?;
    let mut small = Vec::new();
    for (partition, position) in (0..).zip(&positions) {
        let ask = || topology.reader().fetch_watermarks(topic, partition, ANSWER);
        let (low, end) = patiently(&topology.clients.cluster, ask).map_err(asked)?;
        let from = position.as_ref().map_or(low, |position| position.offset.max(low));
        total.out += position.as_ref().map_or(0, |position| position.out);
        let ahead = position.as_ref().map_or(0, Position::finished_ahead);
        if end - from <= COUNTED {
            small.push(Range { topic: topic.to_owned(), partition, from, end });
            continue;
        }
        let lag = (end - from - ahead).max(0);
        // What waits in the retry topic is mostly there for its time.
        *(if delays { &mut total.delayed } else { &mut total.ready }) += lag;
    }
    let mut looked = Count::default();
    let seen = scan(&topology.clients, group, small.clone(), |message| {
        let index = usize::try_from(message.partition()).unwrap_or(usize::MAX);
        let position = positions.get(index).and_then(Option::as_ref);
        if position.is_some_and(|position| position.is_done(message.offset())) {
            return Ok(true);
        }
        let due = || read(message, "").1.and_then(|hop| hop.not_before);
        let waits = delays && due().is_some_and(|time| time > now());
        *(if waits { &mut looked.delayed } else { &mut looked.ready }) += 1;
        Ok(true)
    });
    match seen {
        // What cannot be unpacked waits too.
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            let lag: i64 = small.iter().map(|range| (range.end - range.from).max(0)).sum();
            *(if delays { &mut total.delayed } else { &mut total.ready }) += lag;
        }
        seen => {
            seen?;
            total.ready += looked.ready;
            total.delayed += looked.delayed;
        }
    }
    Ok(())
}
