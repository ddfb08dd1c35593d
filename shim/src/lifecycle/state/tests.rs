//! The rules of [`step`] and [`pod_step`] as a table, then as a property over random lives.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use coracle_runtime::spec::{Cause, Exit};

use super::ended::MESSAGE_LIMIT;
use super::pod::PodRefused;
use super::*;

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

/// The short names that the table is written in.
#[derive(Clone, Copy, Debug)]
enum Act {
    Build,
    BuildFail,
    Start,
    Launch,
    LaunchFail,
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
        Act::Start => Event::StartAsked,
        Act::Launch => Event::Launched(run()),
        Act::LaunchFail => Event::LaunchFailed(Ended::never_ran(6, "no")),
        Act::Stop(seconds) => Event::StopAsked(Duration::from_secs(seconds)),
        Act::Wait(_) => Event::DeadlinePassed,
        Act::End => Event::Ended(ended()),
        Act::Remove => Event::RemoveAsked,
        Act::Removed => Event::Removed,
    }
}

/// Lives through `acts` from the beginning; returns the last phase's name and all effects, or the refusal.
fn live(acts: &[Act]) -> Result<(&'static str, Vec<Effect>), Refused> {
    let (mut now, mut phase, mut all) = (SECOND, ContainerPhase::Creating(Then::Rest), Vec::new());
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
    a_life_ends_by_itself:               [Build, Start, Launch, End] => "exited" after [Launch, CleanUp];
    stop_of_a_created_one_changes_nothing: [Build, Stop(9)] => "created" after [];
    stop_signals_first:                  [Build, Start, Launch, Stop(9)] => "stopping" after [Launch, Signal];
    stop_without_grace_kills_at_once:    [Build, Start, Launch, Stop(0)] => "stopping" after [Launch, Kill];
    grace_over_kills:                    [Build, Start, Launch, Stop(9), Wait(9)] => "stopping" after [Launch, Signal, Kill];
    grace_not_over_waits:                [Build, Start, Launch, Stop(9), Wait(8)] => "stopping" after [Launch, Signal];
    it_is_killed_once_by_the_clock:      [Build, Start, Launch, Stop(1), Wait(1), Wait(1)] => "stopping" after [Launch, Signal, Kill];
    a_shorter_grace_wins:                [Build, Start, Launch, Stop(9), Stop(1), Wait(1)] => "stopping" after [Launch, Signal, Kill];
    a_longer_grace_does_not:             [Build, Start, Launch, Stop(1), Stop(9), Wait(1)] => "stopping" after [Launch, Signal, Kill];
    stopping_again_now_kills:            [Build, Start, Launch, Stop(9), Stop(0)] => "stopping" after [Launch, Signal, Kill];
    stopping_a_killed_one_kills_again:   [Build, Start, Launch, Stop(0), Stop(9)] => "stopping" after [Launch, Kill, Kill];
    stop_is_idempotent:                  [Build, Start, Launch, Stop(9), End, Stop(9)] => "exited" after [Launch, Signal, CleanUp];
    stop_while_starting_signals_later:   [Build, Start, Stop(9), Launch] => "stopping" after [Launch, Signal];
    stop_while_starting_may_be_due_already: [Build, Start, Stop(1), Stop(0), Launch] => "stopping" after [Launch, Kill];
    remove_kills_first:                  [Build, Start, Launch, Remove, End, Removed] => "gone" after [Launch, Kill, Forget];
    remove_while_starting_kills_later:   [Build, Start, Remove, Launch, End, Removed] => "gone" after [Launch, Kill, Forget];
    remove_while_starting_and_it_fails:  [Build, Start, Remove, LaunchFail, Removed] => "gone" after [Launch, Forget];
    remove_survives_a_later_stop:        [Build, Start, Launch, Remove, Stop(9), End] => "being removed" after [Launch, Kill, Kill, Forget];
    a_stop_turned_removal_kills:         [Build, Start, Launch, Stop(9), Remove, End] => "being removed" after [Launch, Signal, Kill, Forget];
    remove_of_a_created_one:             [Build, Remove, Removed] => "gone" after [Forget];
    remove_while_creating_waits:         [Remove, Build, Removed] => "gone" after [Forget];
    remove_can_be_repeated:              [Build, Remove, Remove, Removed, Remove] => "gone" after [Forget, Forget];
    a_failed_build_leaves_nothing:       [BuildFail, Removed] => "gone" after [Forget];
    a_failed_launch_is_an_exit:          [Build, Start, LaunchFail] => "exited" after [Launch, CleanUp];
    an_end_told_twice_counts_once:       [Build, Start, Launch, End, End] => "exited" after [Launch, CleanUp];
    stop_of_the_gone_is_fine:            [Build, Remove, Removed, Stop(1)] => "gone" after [Forget];
}

#[test]
fn start_is_refused_in_every_phase_but_created() {
    use Act::*;
    let lives: [&[Act]; 7] = [
        &[],
        &[Build, Start],
        &[Build, Start, Launch],
        &[Build, Start, Launch, Stop(5)],
        &[Build, Start, Launch, End],
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
        &[Launch],
        &[Build, Launch],
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

struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn random_event(random: &mut Xorshift) -> Event {
    match random.below(10) {
        0 => Event::Built,
        1 => Event::BuildFailed,
        2 => Event::StartAsked,
        3 => Event::Launched(run()),
        4 => Event::LaunchFailed(Ended::never_ran(6, "no")),
        5 => Event::StopAsked(Duration::from_secs(random.below(30))),
        6 => Event::DeadlinePassed,
        7 => Event::Ended(ended()),
        8 => Event::RemoveAsked,
        _ => Event::Removed,
    }
}

/// What must hold between any phase and the one that follows it.
fn assert_lawful(
    now: BootTime,
    before: &ContainerPhase,
    event: &Event,
    after: &ContainerPhase,
    effects: &[Effect],
) {
    let context = format!("{before:?} --{event:?}--> {after:?} with {effects:?}");
    if let (ContainerPhase::Stopping(_, old), ContainerPhase::Stopping(_, new)) = (before, after) {
        assert!(new.kill_at <= old.kill_at, "the grace grew: {context}");
        assert!(
            !(old.then == Then::Remove && new.then == Then::Rest),
            "the removal was forgotten: {context}"
        );
        assert!(
            !(old.stage == Stage::Killed && new.stage == Stage::Asked),
            "the kill was forgotten: {context}"
        );
    }
    if let ContainerPhase::Stopping(_, stop) = after {
        assert_eq!(
            stop.stage == Stage::Asked,
            stop.kill_at > now,
            "a due kill was not sent: {context}"
        );
    }
    if *before == ContainerPhase::Gone {
        assert!(
            *after == ContainerPhase::Gone && effects.is_empty(),
            "the gone acts: {context}"
        );
    }
    let enters = |name| after.name() == name && before.name() != name;
    assert_eq!(
        enters("exited"),
        effects.contains(&Effect::CleanUp),
        "clean-up belongs to the exit: {context}"
    );
    assert!(
        !enters("being removed") || effects.contains(&Effect::Forget),
        "nothing removes it: {context}"
    );
    assert!(
        !effects.contains(&Effect::Launch) || *before == ContainerPhase::Created,
        "{context}"
    );
    let touches_process = effects
        .iter()
        .any(|effect| matches!(effect, Effect::Signal | Effect::Kill));
    assert!(
        !touches_process || after.run().is_some(),
        "a signal without a process: {context}"
    );
}

#[test]
fn no_random_life_breaks_the_rules() {
    for seed in 1..=400_u64 {
        let mut random = Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut now, mut phase) = (SECOND, ContainerPhase::Creating(Then::Rest));
        for _ in 0..250 {
            now += random.below(5) * SECOND;
            // As in the driver: a due deadline is told before anything else.
            if phase.deadline().is_some_and(|at| at <= now) {
                let (after, effects) = step(now, phase.clone(), Event::DeadlinePassed).unwrap();
                assert_lawful(now, &phase, &Event::DeadlinePassed, &after, &effects);
                phase = after;
            }
            let event = random_event(&mut random);
            if let Ok((after, effects)) = step(now, phase.clone(), event.clone()) {
                assert_lawful(now, &phase, &event, &after, &effects);
                phase = after;
            }
            if phase == ContainerPhase::Gone && random.below(4) == 0 {
                phase = ContainerPhase::Creating(Then::Rest);
            }
        }
    }
}

#[test]
fn ends_are_judged_by_cause_code_and_who_killed() {
    let exit = |code, cause| Exit {
        code,
        signal: None,
        finished_at: 9,
        cause,
    };
    let table = [
        (exit(0, Cause::Ended), 0, None, Reason::Completed),
        (exit(0, Cause::Ended), 3, None, Reason::Completed),
        (exit(3, Cause::Ended), 0, None, Reason::Error),
        (
            exit(143, Cause::Ended),
            1,
            Some(Stage::Asked),
            Reason::Error,
        ),
        (exit(137, Cause::Ended), 0, None, Reason::Error),
        (exit(137, Cause::Ended), 1, None, Reason::CgroupOom),
        (
            exit(137, Cause::Ended),
            1,
            Some(Stage::Asked),
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
fn a_message_is_cut_at_a_character_and_never_finishes_before_it_started() {
    let text = "é".repeat(MESSAGE_LIMIT);
    let exit = Exit {
        code: 134,
        signal: None,
        finished_at: 3,
        cause: Cause::Trap(format!("x{text}")),
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

fn live_pod(events: &[PodEvent]) -> Result<(&'static str, Vec<PodEffect>), PodRefused> {
    let (mut phase, mut all) = (PodPhase::Starting, Vec::new());
    for event in events {
        let (next, effects) = pod_step(phase, event.clone())?;
        phase = next;
        all.extend(effects);
    }
    Ok((phase.name(), all))
}

fn raised() -> PodEvent {
    PodEvent::Raised(Live {
        keeper: ProcessFact {
            pid: 8,
            start_time: 4,
        },
        attachment: None,
    })
}

#[test]
fn pods_live_by_the_table() {
    use PodEffect::{EndContainers, Forget, RemoveContainers, TakeDown};
    use PodEvent::{
        Cleared, Emptied, Forgotten, KeeperLost, RaiseFailed, RemoveAsked, StopAsked, TakenDown,
    };
    let table: [(&[PodEvent], &str, &[PodEffect]); 9] = [
        (&[raised()], "ready", &[]),
        (&[RaiseFailed, Forgotten], "gone", &[Forget]),
        (
            &[raised(), StopAsked, Emptied, TakenDown],
            "not ready",
            &[EndContainers, TakeDown],
        ),
        (
            &[raised(), KeeperLost, Emptied, TakenDown],
            "not ready",
            &[EndContainers, TakeDown],
        ),
        (
            &[raised(), StopAsked, StopAsked, Emptied],
            "stopping",
            &[EndContainers, EndContainers, TakeDown],
        ),
        (
            &[
                raised(),
                StopAsked,
                RemoveAsked,
                StopAsked,
                Emptied,
                TakenDown,
            ],
            "being removed",
            &[
                EndContainers,
                EndContainers,
                EndContainers,
                TakeDown,
                RemoveContainers,
            ],
        ),
        (
            &[
                raised(),
                RemoveAsked,
                Emptied,
                TakenDown,
                Cleared,
                Forgotten,
            ],
            "gone",
            &[EndContainers, TakeDown, RemoveContainers, Forget],
        ),
        (
            &[
                raised(),
                StopAsked,
                Emptied,
                TakenDown,
                StopAsked,
                KeeperLost,
            ],
            "not ready",
            &[EndContainers, TakeDown],
        ),
        (
            &[
                raised(),
                StopAsked,
                Emptied,
                TakenDown,
                RemoveAsked,
                Cleared,
                Forgotten,
                StopAsked,
                RemoveAsked,
            ],
            "gone",
            &[EndContainers, TakeDown, RemoveContainers, Forget],
        ),
    ];
    for (events, phase, effects) in table {
        assert_eq!(
            live_pod(events),
            Ok((phase, effects.to_vec())),
            "{events:?}"
        );
    }
}

#[test]
fn a_pod_refuses_what_cannot_be() {
    for events in [
        &[PodEvent::StopAsked][..],
        &[PodEvent::TakenDown],
        &[raised(), raised()],
        &[raised(), PodEvent::Emptied],
    ] {
        assert!(live_pod(events).is_err(), "{events:?}");
    }
}
