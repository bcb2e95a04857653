use std::time::Duration;

use super::*;

const LEASE: Duration = Duration::from_secs(30);

fn ordered() -> Held {
    let held = Held::ordered(2);
    for partition in 0..2 {
        held.own(partition, "token".to_owned(), Instant::now() + LEASE);
    }
    held
}

fn insert(held: &Held, number: u64, count: u32) -> u64 {
    held.insert(0, Id(number, 0), count, Instant::now() + LEASE, count > 2)
}

#[test]
fn what_was_dropped_before_it_was_handed_out_goes_back_unseen() {
    let held = Held::default();
    let (waiting, out) = (insert(&held, 1, 1), insert(&held, 2, 1));
    assert!(held.lock().hand_out(out));
    assert!(matches!(held.abandon(waiting, false), Some((_, false))));
    assert!(matches!(held.abandon(out, false), Some((_, true))));
    assert!(held.abandon(out, false).is_none(), "once");
    assert_eq!(held.room(4).0, 4);
    assert!(!held.is_empty(), "until it is with the server");
    held.remove([waiting, out]);
    assert!(held.is_empty());
}

#[test]
fn what_comes_once_more_is_lost_to_its_former_tag() {
    let held = Held::default();
    let former = insert(&held, 1, 1);
    let latter = insert(&held, 1, 2);
    assert!(held.settle(former, false).is_none());
    assert!(held.is_lost(former) && !held.is_lost(latter));
    assert_eq!(held.settle(latter, false).map(|holding| holding.count), Some(2));
    assert_eq!(held.room(4).0, 4);
}

#[test]
fn the_last_suspect_makes_room_for_the_next() {
    let held = Held::default();
    let (suspect, other) = (insert(&held, 1, 3), insert(&held, 2, 1));
    assert_eq!(held.room(4), (2, 1));
    assert!(!held.remove([other]));
    assert!(held.remove([suspect]));
    assert_eq!(held.room(4), (4, 0));
}

#[test]
fn a_partition_that_does_not_get_empty_hands_out_again_from_its_beginning() {
    let held = ordered();
    let [out, dropped, waiting] = [1, 2, 3].map(|number| insert(&held, number, 1));
    assert!(held.lock().hand_out(out));
    held.leave(0);
    assert!(!held.lock().hand_out(dropped));
    assert!(matches!(held.abandon(dropped, true), Some((_, false))));
    assert!(!held.stay(0), "one is on its way, one waits");
    let returns = held.drain(0).expect("one is out");
    assert_eq!(returns.iter().map(|holding| holding.tag).collect::<Vec<_>>(), [waiting]);
    assert!(!held.stay(0), "both are on their way");
    held.remove([dropped, waiting]);
    assert!(held.drain(0).is_some_and(|returns| returns.is_empty()));
    assert!(held.stay(0));
    assert!(matches!(held.reopen(0), Reopening::Open));
    let again = insert(&held, 2, 1);
    assert!(held.lock().hand_out(again));
    held.leave(0);
    held.settle(out, true).expect("it is out");
    held.remove([out]);
    assert!(held.stay(0));
    assert!(matches!(held.reopen(0), Reopening::Not(_)), "what follows the returned is out");
    held.remove([again]);
    assert!(held.drain(0).is_none());
}

#[test]
fn a_shut_partition_hands_out_nothing_until_all_is_back() {
    let held = ordered();
    let [back, waiting, elsewhere] = [
        insert(&held, 1, 1),
        insert(&held, 2, 1),
        held.insert(2, Id(1, 0), 1, Instant::now() + LEASE, false),
    ];
    assert!(held.lock().hand_out(back));
    held.settle(back, true).expect("it is out");
    assert!(!held.lock().hand_out(waiting));
    assert!(held.lock().hand_out(elsewhere));
    let Reopening::Not(returns) = held.reopen(0) else { panic!("one is on its way") };
    assert_eq!(returns.iter().map(|holding| holding.tag).collect::<Vec<_>>(), [waiting]);
    held.remove([back, waiting]);
    assert!(matches!(held.reopen(0), Reopening::Again));
    assert!(matches!(held.reopen(0), Reopening::Open));
    assert!(matches!(held.reopen(1), Reopening::Open));
}

#[test]
fn what_was_read_from_a_partition_is_held_as_long_as_that() {
    let held = ordered();
    let [here, elsewhere] = [0, 2].map(|source| {
        // Its own lease is over at once.
        held.insert(source, Id(1, 0), 1, Instant::now(), false)
    });
    assert!(!held.is_lost(here) && held.lock().hand_out(here));
    assert!(!held.lose(0, "a former token") && !held.is_lost(here));
    held.keep(0, "token", Instant::now());
    assert!(!held.is_lost(here), "what is answered late makes nothing shorter");
    assert!(held.lose(0, "token") && held.is_lost(here) && held.settle(here, false).is_none());
    held.keep(0, "token", Instant::now() + LEASE);
    assert!(!held.is_owned(0), "once lost, it is owned anew or not at all");
    assert!(!held.is_lost(elsewhere));
}

#[test]
fn nothing_passes_what_was_withheld_while_it_was_open_whose_its_partition_is() {
    let held = Held::ordered(1);
    // The answer that it is owned took longer than the lease.
    held.own(0, "token".to_owned(), Instant::now());
    let [withheld, next] = [1, 2].map(|number| insert(&held, number, 1));
    assert!(held.is_lost(withheld) && !held.lock().hand_out(withheld));
    held.keep(0, "token", Instant::now() + LEASE);
    assert!(!held.lock().hand_out(next));
    assert!(matches!(held.abandon(withheld, true), Some((_, false))));
    let Reopening::Not(returns) = held.reopen(0) else { panic!("one is on its way") };
    assert_eq!(returns.len(), 1);
    held.remove([withheld, next]);
    assert!(matches!(held.reopen(0), Reopening::Again));
}
