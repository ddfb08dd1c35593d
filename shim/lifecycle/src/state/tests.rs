//! The rules of [`step`] as a table; those of [`pod_step`] in `pod`; as a property of random sequences in `random`.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use coracle_spec::{Cause, Exit};

use super::ended::MESSAGE_LIMIT;
use super::*;

mod pod;
mod random;

const SECOND: u64 = 1_000_000_000;

fn run() -> Run {
    Run {
        process: ProcessFact {
            pid: 7,
            start_time: 99,
        },
        started_at: 5,
    }
}

fn ended() -> Ended {
    Ended {
        started_at: 5,
        finished_at: 6,
        code: 0,
        reason: Reason::Completed,
        message: String::new(),
    }
}

/// The short names in the table.
#[derive(Clone, Copy, Debug)]
enum Act {
    Build,
    BuildFail,
    Start,
    Started,
    StartFail,
    Stop(u64),
    Wait(u64),
    End,
    Remove,
    Removed,
}

fn event(act: Act) -> Event {
    match act {
        Act::Build => Event::Built,
        Act::BuildFail => Event::BuildFailed,
        Act::Start => Event::StartRequested,
        Act::Started => Event::Started(run()),
        Act::StartFail => Event::StartFailed(Ended::never_ran(6, "no")),
        Act::Stop(seconds) => Event::StopRequested(Duration::from_secs(seconds)),
        Act::Wait(_) => Event::DeadlinePassed,
        Act::End => Event::Ended(ended()),
        Act::Remove => Event::RemoveRequested,
        Act::Removed => Event::Removed,
    }
}

/// Applies `acts` to a new container; returns the last phase's name and all effects, or the refusal.
fn live(acts: &[Act]) -> Result<(&'static str, Vec<Effect>), Refused> {
    let (mut now, mut phase, mut all) = (SECOND, ContainerPhase::Creating(Then::Keep), Vec::new());
    for act in acts {
        if let Act::Wait(seconds) = act {
            now += seconds * SECOND;
        }
        let (next, effects) = step(now, phase, event(*act))?;
        phase = next;
        all.extend(effects);
    }
    Ok((phase.name(), all))
}

macro_rules! lifecycle {
    ($($name:ident: [$($act:expr),*] => $phase:literal after [$($effect:ident),*];)*) => {$(
        #[test]
        fn $name() {
            use Act::*;
            let seen = live(&[$($act),*]);
            assert_eq!(seen, Ok(($phase, vec![$(Effect::$effect),*])));
        }
    )*};
}

lifecycle! {
    a_life_ends_by_itself:               [Build, Start, Started, End] => "exited" after [Start, CleanUp];
    stop_of_a_created_one_changes_nothing: [Build, Stop(9)] => "created" after [];
    stop_signals_first:                  [Build, Start, Started, Stop(9)] => "stopping" after [Start, Signal];
    stop_without_grace_kills_at_once:    [Build, Start, Started, Stop(0)] => "stopping" after [Start, Kill];
    grace_over_kills:                    [Build, Start, Started, Stop(9), Wait(9)] => "stopping" after [Start, Signal, Kill];
    grace_not_over_waits:                [Build, Start, Started, Stop(9), Wait(8)] => "stopping" after [Start, Signal];
    it_is_killed_once_by_the_clock:      [Build, Start, Started, Stop(1), Wait(1), Wait(1)] => "stopping" after [Start, Signal, Kill];
    a_shorter_grace_wins:                [Build, Start, Started, Stop(9), Stop(1), Wait(1)] => "stopping" after [Start, Signal, Kill];
    a_longer_grace_does_not:             [Build, Start, Started, Stop(1), Stop(9), Wait(1)] => "stopping" after [Start, Signal, Kill];
    stopping_again_now_kills:            [Build, Start, Started, Stop(9), Stop(0)] => "stopping" after [Start, Signal, Kill];
    stopping_a_killed_one_kills_again:   [Build, Start, Started, Stop(0), Stop(9)] => "stopping" after [Start, Kill, Kill];
    stop_is_idempotent:                  [Build, Start, Started, Stop(9), End, Stop(9)] => "exited" after [Start, Signal, CleanUp];
    stop_while_starting_signals_later:   [Build, Start, Stop(9), Started] => "stopping" after [Start, Signal];
    stop_while_starting_may_be_due_already: [Build, Start, Stop(1), Stop(0), Started] => "stopping" after [Start, Kill];
    remove_kills_first:                  [Build, Start, Started, Remove, End, Removed] => "gone" after [Start, Kill, Forget];
    remove_while_starting_kills_later:   [Build, Start, Remove, Started, End, Removed] => "gone" after [Start, Kill, Forget];
    remove_while_starting_and_it_fails:  [Build, Start, Remove, StartFail, Removed] => "gone" after [Start, Forget];
    remove_survives_a_later_stop:        [Build, Start, Started, Remove, Stop(9), End] => "being removed" after [Start, Kill, Kill, Forget];
    a_stop_turned_removal_kills:         [Build, Start, Started, Stop(9), Remove, End] => "being removed" after [Start, Signal, Kill, Forget];
    remove_of_a_created_one:             [Build, Remove, Removed] => "gone" after [Forget];
    remove_while_creating_waits:         [Remove, Build, Removed] => "gone" after [Forget];
    remove_can_be_repeated:              [Build, Remove, Remove, Removed, Remove] => "gone" after [Forget, Forget];
    a_failed_build_leaves_nothing:       [BuildFail, Removed] => "gone" after [Forget];
    a_failed_start_is_an_exit:           [Build, Start, StartFail] => "exited" after [Start, CleanUp];
    an_end_seen_twice_counts_once:       [Build, Start, Started, End, End] => "exited" after [Start, CleanUp];
    stop_of_the_gone_is_fine:            [Build, Remove, Removed, Stop(1)] => "gone" after [Forget];
}

#[test]
fn start_is_refused_in_every_phase_but_created() {
    use Act::*;
    let lives: [&[Act]; 7] = [
        &[],
        &[Build, Start],
        &[Build, Start, Started],
        &[Build, Start, Started, Stop(5)],
        &[Build, Start, Started, End],
        &[Build, Remove],
        &[Build, Remove, Removed],
    ];
    for life in lives {
        let mut acts = life.to_vec();
        acts.push(Start);
        assert!(
            matches!(live(&acts), Err(Refused::Start { .. })),
            "start after {life:?}"
        );
    }
}

#[test]
fn impossible_pairs_are_named() {
    use Act::*;
    for acts in [
        &[Build, Build][..],
        &[Started],
        &[Build, Started],
        &[Build, End],
        &[Build, Removed],
        &[End],
    ] {
        let refused = live(acts).unwrap_err();
        assert!(
            matches!(refused, Refused::Impossible { .. }),
            "{acts:?}: {refused}"
        );
    }
}

#[test]
fn the_reason_follows_from_cause_code_and_killer() {
    let exit = |code, cause| Exit {
        code,
        signal: None,
        finished_at: 9,
        cause,
        message: String::new(),
    };
    let table = [
        (exit(0, Cause::Ended), 0, None, Reason::Completed),
        (exit(0, Cause::Ended), 3, None, Reason::Completed),
        (exit(3, Cause::Ended), 0, None, Reason::Error),
        (
            exit(143, Cause::Ended),
            1,
            Some(Stage::Requested),
            Reason::Error,
        ),
        (exit(137, Cause::Ended), 0, None, Reason::Error),
        (exit(137, Cause::Ended), 1, None, Reason::CgroupOom),
        (
            exit(137, Cause::Ended),
            1,
            Some(Stage::Requested),
            Reason::CgroupOom,
        ),
        (
            exit(137, Cause::Ended),
            1,
            Some(Stage::Killed),
            Reason::Error,
        ),
        (
            exit(134, Cause::Trap("unreachable".into())),
            0,
            None,
            Reason::Trap,
        ),
        (
            exit(128, Cause::StartFailed("seccomp".into())),
            0,
            None,
            Reason::StartFailed,
        ),
        (exit(137, Cause::KeeperLost), 1, None, Reason::KeeperLost),
        (exit(255, Cause::Unknown), 0, None, Reason::Unknown),
    ];
    for (exit, oom_kills, stage, want) in table {
        assert_eq!(
            Ended::judge(5, &exit, oom_kills, stage).reason,
            want,
            "{exit:?} {oom_kills} {stage:?}"
        );
    }
}

#[test]
fn an_end_without_success_says_what_to_do_about_it() {
    let exit = |code, message: &str| Exit {
        code,
        signal: None,
        finished_at: 9,
        cause: Cause::Ended,
        message: message.to_owned(),
    };
    let ended = Ended::judge(5, &exit(1, "list it"), 0, None);
    assert_eq!(
        (ended.reason, ended.message.as_str()),
        (Reason::Error, "list it")
    );
    assert_eq!(Ended::judge(5, &exit(0, "list it"), 0, None).message, "");
    let killed = Ended::judge(5, &exit(137, ""), 1, None);
    assert_eq!(killed.reason, Reason::CgroupOom);
    assert!(
        killed.message.contains("resources.limits.memory"),
        "{}",
        killed.message
    );
}

#[test]
fn messages_are_cut_at_a_character_and_no_end_is_before_its_start() {
    let text = "é".repeat(MESSAGE_LIMIT);
    let exit = Exit {
        code: 134,
        signal: None,
        finished_at: 3,
        cause: Cause::Trap(format!("x{text}")),
        message: String::new(),
    };
    let ended = Ended::judge(5, &exit, 0, None);
    assert_eq!(ended.message.len(), MESSAGE_LIMIT - 1);
    assert_eq!(ended.finished_at, 5);
}

#[test]
fn reasons_are_spelled_as_kubelet_reads_them() {
    assert_eq!(Reason::CgroupOom.name(), "OOMKilled");
    assert_eq!(Reason::Completed.name(), "Completed");
    assert_eq!(Reason::Error.name(), "Error");
}

/// The clock is set back or forward by a day at any point of a container's life.
#[test]
fn times_of_a_container_stay_in_order_when_the_clock_is_set() {
    const DAY: i64 = 86_400_000_000_000;
    let process = ProcessFact {
        pid: 1,
        start_time: 1,
    };
    let created_at = 1_700_000_000_000_000_000;
    for jump in [-DAY, 0, DAY] {
        for second_jump in [-DAY, 0, DAY] {
            let run = Run::new(process, created_at + jump + 1, created_at);
            let exit = coracle_spec::Exit {
                code: 0,
                signal: None,
                finished_at: created_at + jump + second_jump + 2,
                cause: coracle_spec::Cause::Ended,
                message: String::new(),
            };
            let ended = Ended::judge(run.started_at, &exit, 0, None);
            assert!(created_at <= ended.started_at, "{jump} {second_jump}");
            assert!(
                ended.started_at <= ended.finished_at,
                "{jump} {second_jump}"
            );
        }
    }
}
