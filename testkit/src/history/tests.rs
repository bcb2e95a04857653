//! Each kind of violation is planted into a history that is sound without it, and must be found: a
//! checker that finds nothing proves nothing.

mod attempts;

use std::time::Duration;

use super::*;

/// A message that is sent at one second, and handled by the group at the next.
const ONE: &str = "m1";
const GROUP: &str = "g";
const AFTERMATH: Duration = Duration::from_secs(5);

type Line = (u64, &'static str, Event);

fn sending(id: &str, to: &str, fate: Fate) -> Event {
    let key = Some("k".to_owned());
    Event::Sending { id: id.to_owned(), to: to.to_owned(), key, delay: 0, fate }
}

fn confirmed(id: &str) -> Event {
    Event::Confirmed { id: id.to_owned() }
}

fn started(id: &str, attempt: u32, run: u64) -> Event {
    Event::Started { id: id.to_owned(), group: GROUP.to_owned(), attempt, run }
}

fn ended(id: &str, run: u64, end: RunEnd) -> Event {
    Event::Ended { id: id.to_owned(), group: GROUP.to_owned(), run, end }
}

fn letter(id: &str, reason: &str) -> Event {
    let (group, reason, text) = (GROUP.to_owned(), reason.to_owned(), String::new());
    Event::DeadLettered { id: id.to_owned(), group, reason, text }
}

fn disturbed(number: u64, on: &[&str], harm: Harm) -> Event {
    let on = on.iter().map(|one| (*one).to_owned()).collect();
    Event::Disturbed { number, what: "fault long".to_owned(), on, harm }
}

fn gone(process: &str, how: Gone) -> Event {
    Event::Gone { process: process.to_owned(), how }
}

fn exhausted() -> Fate {
    Fate::DeadLettered { reason: "exhausted".to_owned(), runs: 2 }
}

/// Sent, confirmed and handled.
fn sound() -> Vec<Line> {
    vec![
        (1_000, "p", sending(ONE, "q", Fate::Handled)),
        (1_010, "p", confirmed(ONE)),
        (2_000, "c", started(ONE, 1, 1)),
        (2_100, "c", ended(ONE, 1, RunEnd::Ack)),
    ]
}

/// Sent, failed twice and given up.
fn given_up() -> Vec<Line> {
    vec![
        (1_000, "p", sending(ONE, "q", exhausted())),
        (1_010, "p", confirmed(ONE)),
        (2_000, "c", started(ONE, 1, 1)),
        (2_100, "c", ended(ONE, 1, RunEnd::Retry(500))),
        (2_600, "c", started(ONE, 2, 2)),
        (2_700, "c", ended(ONE, 2, RunEnd::DeadLetter("exhausted".to_owned()))),
        (60_000, "director", letter(ONE, "exhausted")),
    ]
}

fn judge(lines: Vec<Line>) -> (Vec<Wrong>, Counts) {
    judge_by(&Checker::new(AFTERMATH).group(GROUP, "q", true), lines)
}

fn judge_by(checker: &Checker, lines: Vec<Line>) -> (Vec<Wrong>, Counts) {
    let record =
        |(at, by, event): Line| Record { at: Duration::from_millis(at), by: by.to_owned(), event };
    let history = History::new(lines.into_iter().map(record).collect());
    let findings = checker.check(&history);
    let wrong = findings.violations.iter().map(|violation| violation.wrong).collect();
    for violation in &findings.violations {
        let known = history.about(&violation.subject);
        assert!(!known.contains("nothing is known"), "{violation:?} has a history: {known}");
    }
    (wrong, findings.counts)
}

fn wrong(lines: Vec<Line>) -> Vec<Wrong> {
    judge(lines).0
}

/// The lines without those that this is true of, and with others.
fn changed(lines: Vec<Line>, without: impl Fn(&Event) -> bool, with: Vec<Line>) -> Vec<Line> {
    lines.into_iter().filter(|(_, _, event)| !without(event)).chain(with).collect()
}

fn with(lines: Vec<Line>, more: Vec<Line>) -> Vec<Line> {
    changed(lines, |_| false, more)
}

fn is_run(event: &Event) -> bool {
    matches!(event, Event::Started { .. } | Event::Ended { .. })
}

#[test]
fn what_is_sound_is_not_wrong() {
    let (wrong, counts) = judge(sound());
    assert!(wrong.is_empty(), "{wrong:?}");
    let expected = Counts { sent: 1, confirmed: 1, runs: 1, handled: 1, ..Counts::default() };
    assert_eq!(counts, expected);
    let (wrong, counts) = judge(given_up());
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!((counts.dead_lettered, counts.runs), (1, 2));
}

#[test]
fn a_confirmed_message_that_nobody_handled_is_lost() {
    let lost = changed(sound(), is_run, vec![]);
    assert_eq!(wrong(lost), [Wrong::Lost]);
    let unfinished = changed(sound(), |event| matches!(event, Event::Ended { .. }), vec![]);
    assert_eq!(wrong(unfinished), [Wrong::Lost], "a run without an end handled nothing");
    let unconfirmed = changed(
        sound(),
        |event| event.id() == Some(ONE),
        vec![(1_000, "p", sending(ONE, "q", Fate::Handled))],
    );
    assert!(wrong(unconfirmed).is_empty(), "what was not confirmed need not arrive");
}

#[test]
fn each_group_has_to_handle_it() {
    let history = |lines: Vec<Line>| {
        let record = |(at, by, event): Line| Record {
            at: Duration::from_millis(at),
            by: by.to_owned(),
            event,
        };
        History::new(lines.into_iter().map(record).collect())
    };
    let checker = Checker::new(Duration::ZERO).group(GROUP, "q", false).group("other", "q", false);
    let findings = checker.check(&history(sound()));
    assert_eq!(findings.kinds().into_iter().collect::<Vec<_>>(), [(Wrong::Lost, 1)]);
}

#[test]
fn a_given_up_message_that_is_no_dead_letter_is_lost() {
    let lost = changed(given_up(), |event| matches!(event, Event::DeadLettered { .. }), vec![]);
    assert_eq!(wrong(lost), [Wrong::Lost]);
}

#[test]
fn what_the_broker_was_made_to_forget_is_not_lost() {
    let forgotten = |from, to| {
        let fault = vec![
            (from, "director", disturbed(1, &[], Harm::Forgets)),
            (to, "director", Event::Healed { number: 1 }),
        ];
        wrong(with(changed(sound(), is_run, vec![]), fault))
    };
    assert!(forgotten(1_500, 1_900).is_empty());
    assert_eq!(forgotten(100, 200), [] as [Wrong; 0], "the groups may not be there again");
    let late = vec![
        (9_000, "p", sending("m2", "q", Fate::Handled)),
        (9_010, "p", confirmed("m2")),
        (100, "director", disturbed(1, &[], Harm::Forgets)),
        (200, "director", Event::Healed { number: 1 }),
    ];
    assert_eq!(wrong(late), [Wrong::Lost], "what is sent long afterwards is kept");
    let kept = vec![
        (1_500, "director", disturbed(1, &[], Harm::Interrupts)),
        (1_900, "director", Event::Healed { number: 1 }),
    ];
    assert_eq!(wrong(with(changed(sound(), is_run, vec![]), kept)), [Wrong::Lost]);
}

#[test]
fn what_is_handled_after_the_quiet_time_was_stuck() {
    assert_eq!(wrong(with(sound(), vec![(2_050, "director", Event::Due)])), [Wrong::Stuck]);
    assert!(wrong(with(sound(), vec![(2_200, "director", Event::Due)])).is_empty());
}

fn again(start: u64, by: &'static str, attempt: u32) -> Vec<Line> {
    vec![(start, by, started(ONE, attempt, 7)), (start + 10, by, ended(ONE, 7, RunEnd::Ack))]
}

#[test]
fn what_is_handled_again_without_an_interruption_is_doubled() {
    assert_eq!(wrong(with(sound(), again(3_000, "d", 2))), [Wrong::Doubled]);
    let interrupted = |on, harm| {
        let fault = vec![
            (2_050, "director", disturbed(1, on, harm)),
            (2_060, "director", Event::Healed { number: 1 }),
        ];
        judge(with(with(sound(), again(3_000, "d", 2)), fault))
    };
    let (none, counts) = interrupted(&["c"], Harm::Interrupts);
    assert!(none.is_empty(), "{none:?}");
    assert_eq!((counts.again, counts.runs), (1, 2));
    assert_eq!(interrupted(&["d"], Harm::Interrupts).0, [Wrong::Doubled], "of another process");
    assert_eq!(interrupted(&[], Harm::None).0, [Wrong::Doubled], "slowness explains nothing");
}

#[test]
fn a_machine_that_stood_still_is_an_interruption() {
    let stalled = |by| {
        let stall = vec![(2_300, by, Event::Stalled { millis: 500 })];
        wrong(with(with(sound(), again(3_000, "d", 2)), stall))
    };
    assert!(stalled("c").is_empty());
    assert!(stalled(DIRECTOR).is_empty(), "the broker may have stood still as well");
    assert_eq!(stalled("other"), [Wrong::Doubled]);
}

#[test]
fn an_interruption_that_is_long_past_explains_nothing() {
    let fault = vec![
        (100, "director", disturbed(1, &[], Harm::Interrupts)),
        (200, "director", Event::Healed { number: 1 }),
    ];
    let lines = vec![
        (8_000, "p", sending(ONE, "q", Fate::Handled)),
        (8_010, "p", confirmed(ONE)),
        (8_100, "c", started(ONE, 1, 1)),
        (8_110, "c", ended(ONE, 1, RunEnd::Ack)),
    ];
    assert_eq!(wrong(with(with(lines, again(8_200, "c", 2)), fault)), [Wrong::Doubled]);
}

#[test]
fn two_runs_at_the_same_time_are_found() {
    assert_eq!(wrong(with(sound(), again(2_050, "d", 2))), [Wrong::AtOnce]);
    let killed = changed(
        with(sound(), again(2_050, "d", 2)),
        |event| matches!(event, Event::Ended { run: 1, .. }),
        vec![
            (2_040, "director", disturbed(1, &["c"], Harm::Interrupts)),
            (2_040, "director", gone("c", Gone::Killed)),
        ],
    );
    assert!(wrong(killed).is_empty(), "the first ended with its process");
    let stopped = vec![
        (2_010, "director", disturbed(1, &["c"], Harm::Interrupts)),
        (9_000, "director", Event::Healed { number: 1 }),
    ];
    let (none, counts) = judge(with(with(sound(), again(2_050, "d", 2)), stopped));
    assert!(none.is_empty(), "{none:?}");
    assert_eq!(counts.at_once, 1);
}

/// A second message of the same key, sent after the first.
fn second(start: u64) -> Vec<Line> {
    vec![
        (1_020, "p", sending("m2", "q", Fate::Handled)),
        (1_030, "p", confirmed("m2")),
        (start, "d", started("m2", 1, 1)),
        (start + 10, "d", ended("m2", 1, RunEnd::Ack)),
    ]
}

#[test]
fn what_is_handled_before_an_earlier_one_of_its_key_is_reordered() {
    assert!(wrong(with(sound(), second(2_200))).is_empty());
    assert_eq!(wrong(with(sound(), second(1_500))), [Wrong::Reordered]);
    assert_eq!(wrong(with(sound(), second(2_050))), [Wrong::Reordered], "while the first runs");
    let fault = vec![(1_400, "director", disturbed(1, &[], Harm::Interrupts))];
    let excused = with(with(sound(), second(1_500)), fault);
    assert_eq!(wrong(excused), [Wrong::Reordered], "an interruption excuses no disorder");
}

#[test]
fn order_is_that_of_the_first_handlings_that_count() {
    let failed_first = changed(
        with(sound(), second(2_200)),
        |_| false,
        vec![(1_500, "d", started("m2", 1, 5)), (1_510, "d", ended("m2", 5, RunEnd::Dropped))],
    );
    assert!(wrong(failed_first).is_empty(), "a run that did not end in success has no place");
    assert!(wrong(with(given_up(), second(1_500))).is_empty(), "what has to fail has no place");
}

#[test]
fn a_retry_before_its_wait_is_over_is_early() {
    let early = |start| {
        changed(
            given_up(),
            |event| matches!(event, Event::Started { run: 2, .. }),
            vec![(start, "c", started(ONE, 2, 2))],
        )
    };
    assert_eq!(wrong(early(2_500)), [Wrong::Early]);
    assert!(wrong(early(2_595)).is_empty(), "within what brokers round");
    let fault = vec![(2_150, "director", disturbed(1, &["c"], Harm::Interrupts))];
    assert!(wrong(with(early(2_500), fault)).is_empty(), "its settlement was interrupted");
}

#[test]
fn a_delayed_message_before_its_time_is_early() {
    let delayed = |delay| {
        changed(
            sound(),
            |event| matches!(event, Event::Sending { .. }),
            vec![(
                1_000,
                "p",
                Event::Sending {
                    id: ONE.to_owned(),
                    to: "q".to_owned(),
                    key: None,
                    delay,
                    fate: Fate::Handled,
                },
            )],
        )
    };
    assert!(wrong(delayed(1_000)).is_empty());
    assert_eq!(wrong(delayed(1_200)), [Wrong::Early]);
    let fault = vec![(900, "director", disturbed(1, &[], Harm::Interrupts))];
    assert_eq!(wrong(with(delayed(1_200), fault)), [Wrong::Early], "nothing excuses it");
}

#[test]
fn a_sound_message_in_the_dead_letter_queue_is_given_up() {
    let reasons = ["exhausted", "max-deliveries"];
    for reason in reasons {
        let lines = with(sound(), vec![(60_000, "director", letter(ONE, reason))]);
        assert_eq!(wrong(lines), [Wrong::GivenUp], "{reason}");
    }
}

#[test]
fn a_dead_letter_has_its_own_reason_and_enough_runs() {
    let other = changed(
        given_up(),
        |event| matches!(event, Event::DeadLettered { .. }),
        vec![(60_000, "director", letter(ONE, "max-deliveries"))],
    );
    assert_eq!(wrong(other), [Wrong::GivenUp]);
    let too_soon = || {
        changed(
            given_up(),
            |event| matches!(event, Event::Started { run: 2, .. } | Event::Ended { run: 2, .. }),
            vec![],
        )
    };
    assert_eq!(wrong(too_soon()), [Wrong::GivenUp]);
    let fault = vec![(2_000, "director", disturbed(1, &["c"], Harm::Interrupts))];
    assert!(wrong(with(too_soon(), fault)).is_empty(), "what was handed out may have been a run");
    let twice = with(given_up(), vec![(60_000, "director", letter(ONE, "exhausted"))]);
    let (none, counts) = judge(twice);
    assert_eq!((none, counts.dead_twice), (vec![], 1));
}

fn refused(class: &str) -> Vec<Line> {
    let (id, class, error) = (ONE.to_owned(), class.to_owned(), "no".to_owned());
    vec![
        (1_000, "p", sending(ONE, "q", Fate::Handled)),
        (1_010, "p", Event::Refused { id, class, error }),
    ]
}

#[test]
fn a_publish_that_is_refused_without_a_cause_is_found() {
    assert_eq!(wrong(refused("transient")), [Wrong::Refused]);
    let fault = |on| vec![(900, "director", disturbed(1, on, Harm::Interrupts))];
    assert!(wrong(with(refused("transient"), fault(&["p"]))).is_empty());
    assert_eq!(wrong(with(refused("transient"), fault(&["c"]))), [Wrong::Refused]);
    let for_good = with(refused("permanent"), fault(&["p"]));
    assert_eq!(wrong(for_good), [Wrong::Refused], "nothing that heals is permanent");
}

#[test]
fn a_publish_that_is_never_answered_is_found() {
    let unanswered = |how| {
        vec![(1_000, "p", sending(ONE, "q", Fate::Handled)), (9_000, "director", gone("p", how))]
    };
    assert_eq!(wrong(unanswered(Gone::Told)), [Wrong::Unanswered]);
    assert!(wrong(unanswered(Gone::Killed)).is_empty());
}

#[test]
fn a_publish_that_was_stored_twice_is_counted() {
    let twice = || {
        let second =
            vec![(5_000, "d", started(ONE, 1, 7)), (5_010, "d", ended(ONE, 7, RunEnd::Ack))];
        with(sound(), second)
    };
    let fault = vec![
        (900, "director", disturbed(1, &["p"], Harm::Interrupts)),
        (1_005, "director", Event::Healed { number: 1 }),
    ];
    let (none, counts) = judge(with(twice(), fault));
    assert_eq!((none, counts.stored_twice), (vec![], 1));
    assert_eq!(wrong(twice()), [Wrong::Doubled]);
}

#[test]
fn a_process_that_ends_by_itself_or_not_at_all_is_found() {
    for how in [Gone::ByItself("exit status: 101".to_owned()), Gone::Overdue] {
        assert_eq!(
            wrong(with(sound(), vec![(9_000, "director", gone("c", how))])),
            [Wrong::Process]
        );
    }
    for how in [Gone::Killed, Gone::Told] {
        assert!(wrong(with(sound(), vec![(9_000, "director", gone("c", how))])).is_empty());
    }
}

#[test]
fn a_step_that_fails_without_a_cause_is_found() {
    let failed = || {
        let (doing, error) = ("start".to_owned(), "denied".to_owned());
        let born = (1, "director", Event::Born { process: "c".to_owned(), handles: true });
        with(sound(), vec![born, (3_000, "c", Event::Failed { doing, error })])
    };
    assert_eq!(wrong(failed()), [Wrong::Failed]);
    let fault = vec![(2_900, "director", disturbed(1, &[], Harm::Interrupts))];
    assert!(wrong(with(failed(), fault)).is_empty());
}

#[test]
fn what_nobody_sent_is_found() {
    let stranger = vec![
        (2_000, "c", started("stranger", 1, 1)),
        (2_100, "c", ended("stranger", 1, RunEnd::Ack)),
    ];
    assert_eq!(wrong(with(sound(), stranger)), [Wrong::Unknown]);
}

#[test]
fn ledgers_are_read_as_they_grow() -> std::io::Result<()> {
    let folder = std::env::temp_dir().join(format!("anybroker-history-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut reader = Reader::new(&folder);
    let (first, second) = (Writer::open(&folder, "p-1.0")?, Writer::open(&folder, "c-1.0")?);
    let before = now();
    let events = [
        sending(ONE, "q", exhausted()),
        ended(ONE, 3, RunEnd::Retry(5)),
        disturbed(1, &["c"], Harm::Forgets),
    ];
    first.note(&events[0])?;
    second.note(&events[1])?;
    let mut news = reader.news()?;
    news.sort_by_key(|record| record.at);
    assert_eq!(news.iter().map(|record| &*record.by).collect::<Vec<_>>(), ["p-1.0", "c-1.0"]);
    assert!(news.iter().all(|record| record.at >= before && record.at <= now()));
    first.note(&events[2])?;
    news.extend(reader.news()?);
    assert!(reader.news()?.is_empty());
    assert_eq!(news.into_iter().map(|record| record.event).collect::<Vec<_>>(), events);
    std::fs::remove_dir_all(&folder)
}
