use super::*;
use crate::trial::Court;

const LOG: i64 = 1000;

fn owner(position: Position, limit: Option<u32>) -> Partition {
    let mut partition = Partition::new(("t".into(), 0, 7), position, LOG, (false, true, limit));
    partition.committed(Some(LOG));
    partition
}

fn kept(hop: Hop) -> Kept {
    (Arc::new(Envelope::new("t", "")), (hop != Hop::default()).then(|| Box::new(hop)))
}

fn read(partition: &mut Partition, offsets: impl IntoIterator<Item = i64>) {
    for offset in offsets {
        partition.read(offset, kept(Hop::default()));
    }
}

/// Hands out all that may be; answers offsets, and how often each came back.
fn take_all(partition: &mut Partition) -> Vec<(i64, u32)> {
    std::iter::from_fn(|| partition.take(1)).map(|(offset, count, _)| (offset, count)).collect()
}

/// The suspects that are tried together first, and how often each came back.
fn try_some(partition: &mut Partition) -> Vec<(i64, u32)> {
    let Some((offsets, decides)) = partition.next_trial(1000) else { return Vec::new() };
    let permit = Court::default().permit(decides).expect("nothing is beside it");
    let taken = partition.start_trial(&offsets, permit, 1);
    taken.into_iter().map(|(offset, count, _)| (offset, count)).collect()
}

/// What the next owner begins with when this one is killed.
fn after_a_kill(partition: &Partition) -> Partition {
    let last = partition.position(None);
    owner(Position::read(last.offset, &last.metadata()), partition.limit)
}

/// What the next owner of the partition begins with.
fn next_owner(partition: &Partition) -> Partition {
    let last = partition.last_position();
    owner(Position::read(last.offset, &last.metadata()), partition.limit)
}

#[test]
fn only_the_finished_prefix_is_committed() {
    let mut partition = owner(Position::at(10), None);
    read(&mut partition, 10..16);
    take_all(&mut partition);
    for offset in [12, 11, 14] {
        partition.finish(offset);
    }
    let position = partition.position(None);
    assert_eq!((position.offset, &*position.done), (10, &[(11, 13), (14, 15)][..]));
    partition.finish(10);
    assert_eq!(partition.position(None).offset, 13);
    assert_eq!(partition.finish(10), None, "finished twice is finished once");
    partition.finish(13);
    partition.finish(15);
    assert_eq!(partition.position(None).offset, 16);
    assert_eq!(partition.out, 0);
}

#[test]
fn what_came_back_before_its_partition_left_is_not_counted_twice() {
    let mut partition = owner(Position::at(10), None);
    read(&mut partition, 10..13);
    take_all(&mut partition);
    partition.give_back(10, Duration::ZERO, |_| 1);
    let mut next = next_owner(&partition);
    read(&mut next, 10..14);
    assert_eq!(take_all(&mut next), [(10, 1), (11, 1), (12, 1), (13, 0)]);
}

#[test]
fn offsets_that_are_no_message_hold_nothing_up() {
    let mut partition = owner(Position::at(10), None);
    read(&mut partition, [10, 12, 17]);
    take_all(&mut partition);
    partition.finish(12);
    partition.finish(17);
    assert_eq!(partition.position(None).done, [(12, 18)]);
    partition.finish(10);
    assert_eq!(partition.position(None).offset, 18);
}

#[test]
fn the_next_owner_repeats_nothing_that_is_finished() {
    let mut first = owner(Position::at(10), None);
    read(&mut first, 10..20);
    take_all(&mut first);
    for offset in (10..20).filter(|offset| ![11, 15].contains(offset)) {
        first.finish(offset);
    }
    first.give_back(11, Duration::ZERO, |returned| returned);
    first.give_back(15, Duration::ZERO, |_| 3);
    assert!(!first.last_position().open);
    let mut second = next_owner(&first);
    // It has read some only when it lets go in turn.
    read(&mut second, 11..14);
    let mut third = next_owner(&second);
    read(&mut third, 11..22);
    assert_eq!(take_all(&mut third), [(11, 0), (15, 3), (20, 0), (21, 0)]);
}

#[test]
fn what_was_out_at_one_end_may_have_come_back_and_at_two_runs_alone() {
    let mut first = owner(Position::at(10), None);
    read(&mut first, 10..14);
    for _ in 0..3 {
        first.take(1);
    }
    first.finish(11);
    let mut second = next_owner(&first);
    read(&mut second, 10..14);
    assert_eq!(take_all(&mut second), [(10, 1), (12, 1), (13, 0)]);
    let mut third = next_owner(&second);
    read(&mut third, 10..16);
    assert_eq!(take_all(&mut third), [], "the others wait for the suspects");
    assert_eq!(try_some(&mut third), [(10, 2)]);
    // The process dies with it: of the suspects it alone was handed out.
    let mut fourth = next_owner(&third);
    read(&mut fourth, 10..16);
    for (offset, returned) in [(10, 3), (12, 2)] {
        assert_eq!(try_some(&mut fourth), [(offset, returned)]);
        fourth.finish(offset);
    }
    assert_eq!(take_all(&mut fourth), [(13, 1), (14, 0), (15, 0)]);
}

#[test]
fn nobody_is_given_up_for_what_is_only_possible() {
    let open = Position { open: true, until: 12, ..Position::at(10) };
    let mut partition = owner(open, Some(5));
    let last_attempt = Hop { attempts: 4, ..Hop::default() };
    partition.read(10, kept(last_attempt));
    read(&mut partition, [11]);
    assert_eq!(take_all(&mut partition), [(10, 0), (11, 1)]);
}

#[test]
fn what_runs_alone_is_counted_however_near_its_limit_it_is() {
    let twice = Position { open: true, witnesses: 11, until: 11, ..Position::at(10) };
    for attempts in 0..5 {
        let hop = || Hop { attempts, ..Hop::default() };
        let mut partition = owner(twice.clone(), Some(5));
        partition.read(10, kept(hop()));
        let first = try_some(&mut partition)[0].1;
        // The process dies with it.
        let mut partition = next_owner(&partition);
        partition.read(10, kept(hop()));
        let next = try_some(&mut partition)[0].1;
        assert_eq!((first, next), (2.min(4 - attempts), first + 1), "{attempts} attempts");
    }
}

#[test]
fn nothing_is_handed_out_that_was_not_made_known() {
    let mut partition =
        Partition::new(("t".into(), 0, 7), Position::at(0), LOG, (false, true, None));
    read(&mut partition, 0..500);
    assert!(take_all(&mut partition).is_empty() && partition.needs_reservation());
    let until = partition.reservation().expect("all is used up");
    partition.committed(Some(until));
    let take = |partition: &mut Partition, count| {
        let taken = std::iter::from_fn(|| partition.take(1)).take(count);
        taken.count()
    };
    let half = usize::try_from(until / 2).expect("a few");
    assert_eq!(take(&mut partition, half), half);
    assert_eq!(partition.reservation(), None, "half of it is left");
    assert_eq!(take(&mut partition, 1), 1);
    let renewed = partition.reservation().expect("less than half of it is left");
    assert_eq!(renewed, until + until / 2 + 1);
    partition.committed(Some(renewed));
    assert_eq!(take(&mut partition, 500), 2 * half);
    let larger = partition.reservation().expect("all is used up");
    assert_eq!(larger, renewed + 2 * until, "it was used up before a commit renewed it");
}

#[test]
fn in_place_what_is_given_back_holds_back_the_others() {
    let mut partition =
        Partition::new(("t".into(), 0, 7), Position::at(0), LOG, (true, false, None));
    partition.committed(Some(LOG));
    read(&mut partition, 0..4);
    partition.take(1);
    partition.take(1);
    partition.give_back(0, Duration::from_hours(1), |returned| returned + 1);
    assert!(take_all(&mut partition).is_empty());
    partition.finish(1);
    assert!(take_all(&mut partition).is_empty(), "however long it takes");
}

#[test]
fn what_waits_for_its_time_blocks_nobody_and_can_be_moved_on() {
    let mut partition = owner(Position::at(0), None);
    partition.read(0, kept(Hop::delayed(Duration::from_hours(1))));
    read(&mut partition, 1..20);
    assert_eq!(take_all(&mut partition).len(), 19);
    assert!(partition.advance().is_some());
    for offset in 1..20 {
        partition.finish(offset);
    }
    assert!(partition.take_laggard(20, 9).is_none(), "not many are behind it");
    assert_eq!(partition.take_laggard(10, 9).expect("it lags").0, 0);
    partition.finish(0);
    assert_eq!(partition.position(None).offset, 20);
}

/// An owner of these messages that has handed all of them out, twice in a row, when it was killed.
fn killed_twice(count: i64, limit: u32) -> Partition {
    let mut partition = owner(Position::at(0), Some(limit));
    for _ in 0..2 {
        read(&mut partition, 0..count);
        assert_eq!(take_all(&mut partition).len(), usize::try_from(count).expect("a few"));
        partition = after_a_kill(&partition);
    }
    read(&mut partition, 0..count);
    partition
}

#[test]
fn innocent_suspects_are_cleared_in_a_few_trials() {
    let mut partition = killed_twice(300, 20);
    let (mut trials, mut cleared) = (0, 0);
    while cleared < 300 {
        let tried = try_some(&mut partition);
        assert!(!tried.is_empty() && take_all(&mut partition).is_empty());
        for (offset, _) in tried {
            partition.finish(offset);
            cleared += 1;
        }
        trials += 1;
    }
    assert_eq!(trials, 3);
}

#[test]
fn what_kills_its_process_is_found_by_halves_and_takes_nobody_along() {
    for (count, limit, killer) in
        [(64, 20, 37), (64, 20, 0), (64, 20, 63), (6, 4, 5), (64, 4, 40), (128, 3, 100), (2, 3, 1)]
    {
        let mut partition = killed_twice(count, limit);
        let (mut runs, mut trials) = (2, 0);
        let mut left: BTreeSet<_> = (0..count).collect();
        'given_up: loop {
            let tried = try_some(&mut partition);
            trials += 1;
            assert!(!tried.is_empty(), "{left:?} stay");
            for (offset, returned) in &tried {
                if *returned >= limit {
                    // The worker gives it up unseen.
                    assert_eq!((*offset, runs), (killer, limit));
                    partition.finish(*offset);
                    left.remove(offset);
                    break 'given_up;
                }
            }
            if tried.iter().any(|(offset, _)| *offset == killer) {
                runs += 1;
                partition = after_a_kill(&partition);
                read(&mut partition, 0..count);
            } else {
                for (offset, _) in tried {
                    partition.finish(offset);
                    left.remove(&offset);
                }
            }
        }
        // With a few runs left each is soon alone.
        let most = if limit == 20 { 40 } else { count + 4 };
        assert!(trials <= most, "{trials} trials for the one at {killer} of {count}");
        while !left.is_empty() {
            for (offset, returned) in try_some(&mut partition) {
                assert!(returned < limit, "{offset} of {count} is given up along with {killer}");
                partition.finish(offset);
                left.remove(&offset);
            }
        }
    }
}
