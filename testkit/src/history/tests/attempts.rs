//! Attempts are the runs of handlers, as exactly as each broker counts them.

use super::*;

#[test]
fn an_attempt_is_the_number_of_runs() {
    let attempt = |attempt| {
        changed(
            sound(),
            |event| matches!(event, Event::Started { .. }),
            vec![(2_000, "c", started(ONE, attempt, 1))],
        )
    };
    assert_eq!(wrong(attempt(2)), [Wrong::Attempts]);
    let fault = |from| {
        vec![
            (from, "director", disturbed(1, &["c"], Harm::Interrupts)),
            (from + 10, "director", Event::Healed { number: 1 }),
        ]
    };
    let (none, counts) = judge(with(attempt(2), fault(1_500)));
    assert_eq!((none, counts.overcounted), (vec![], 1));
    assert_eq!(wrong(with(attempt(3), fault(1_500))), [Wrong::Attempts], "one counts once");
    // The second was killed before its first run, while it held the message that the first had held.
    let two = with(
        fault(1_500),
        vec![
            (1_600, "director", disturbed(2, &["d"], Harm::Interrupts)),
            (1_610, "director", Event::Healed { number: 2 }),
        ],
    );
    let born = |handles| vec![(1, "director", Event::Born { process: "d".to_owned(), handles })];
    assert!(wrong(with(with(attempt(3), two.clone()), born(true))).is_empty());
    assert_eq!(wrong(with(with(attempt(3), two), born(false))), [Wrong::Attempts]);
    let low = changed(
        given_up(),
        |event| matches!(event, Event::Started { run: 2, .. }),
        vec![(2_600, "c", started(ONE, 1, 2))],
    );
    assert_eq!(wrong(low), [Wrong::Attempts]);
}

#[test]
fn an_end_of_all_consumers_counts_once_for_each_where_the_broker_counts_so() {
    let attempt = |attempt, on: &[&str]| {
        let lines = changed(
            sound(),
            |event| matches!(event, Event::Started { .. }),
            vec![(2_000, "c", started(ONE, attempt, 1))],
        );
        let fault = vec![
            (1_500, "director", disturbed(1, on, Harm::Interrupts)),
            (1_510, "director", Event::Healed { number: 1 }),
        ];
        with(lines, fault)
    };
    let judged = |is_ordered, lines| {
        let checker = Checker::new(AFTERMATH).group(GROUP, "q", is_ordered);
        judge_by(&checker.counts_each_of(3), lines).0
    };
    assert!(judged(false, attempt(4, &[])).is_empty(), "three consumers were in line");
    assert_eq!(judged(false, attempt(5, &[])), [Wrong::Attempts], "and not a fourth");
    assert_eq!(judged(false, attempt(3, &["c"])), [Wrong::Attempts], "one of them alone");
    assert_eq!(judged(true, attempt(3, &[])), [Wrong::Attempts], "runs are counted in order");
    assert_eq!(wrong(attempt(3, &[])), [Wrong::Attempts], "other brokers count one");
}

#[test]
fn an_answer_that_is_lost_counts_once_for_each_lease_where_the_broker_counts_hand_outs() {
    let attempt_on = |on: &[&str], attempt| {
        let lines = changed(
            sound(),
            |event| matches!(event, Event::Started { .. }),
            vec![(2_000, "c", started(ONE, attempt, 1))],
        );
        let fault = vec![
            (1_500, "director", disturbed(1, on, Harm::Interrupts)),
            (1_950, "director", Event::Healed { number: 1 }),
        ];
        with(lines, fault)
    };
    let attempt = |attempt| attempt_on(&[], attempt);
    let judged = |millis, lines| {
        let checker = Checker::new(AFTERMATH).group(GROUP, "q", false);
        judge_by(&checker.counts_each_lease(Duration::from_millis(millis)), lines).0
    };
    assert!(judged(200, attempt(4)).is_empty(), "at once, and after each of two leases");
    assert_eq!(judged(200, attempt(5)), [Wrong::Attempts], "and not a third");
    assert_eq!(judged(500, attempt(3)), [Wrong::Attempts], "it lasted no lease");
    assert_eq!(
        judged(200, attempt_on(&["p"], 2)),
        [Wrong::Attempts],
        "a publisher receives nothing"
    );
    assert_eq!(wrong(attempt(3)), [Wrong::Attempts], "other brokers count one");
}

#[test]
fn attempts_begin_anew_in_another_process_where_the_broker_keeps_no_count() {
    let attempt = |process, attempt| {
        let runs = vec![
            (2_000, "c", started(ONE, 1, 1)),
            (2_100, "c", ended(ONE, 1, RunEnd::Retry(100))),
            (2_200, process, started(ONE, attempt, 2)),
            (2_300, process, ended(ONE, 2, RunEnd::Ack)),
        ];
        changed(sound(), is_run, runs)
    };
    let judged = |is_ordered, lines| {
        let checker = Checker::new(AFTERMATH).group(GROUP, "q", is_ordered);
        judge_by(&checker.counts_by_process(), lines).0
    };
    assert!(judged(true, attempt("d", 1)).is_empty(), "another process");
    assert!(judged(true, attempt("d", 2)).is_empty(), "it may have kept the count");
    assert_eq!(judged(true, attempt("c", 1)), [Wrong::Attempts], "the same process");
    assert_eq!(judged(false, attempt("d", 1)), [Wrong::Attempts], "a group without order");
    assert_eq!(wrong(attempt("d", 1)), [Wrong::Attempts], "other brokers keep it");
}
