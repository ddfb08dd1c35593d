//! The rules of [`step`] as a property: no sequence of events leads where the table does not.

use super::*;

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
        2 => Event::StartRequested,
        3 => Event::Started(run()),
        4 => Event::StartFailed(Ended::never_ran(6, "no")),
        5 => Event::StopRequested(Duration::from_secs(random.below(30))),
        6 => Event::DeadlinePassed,
        7 => Event::Ended(ended()),
        8 => Event::RemoveRequested,
        _ => Event::Removed,
    }
}

/// The property that must hold between any phase and the next.
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
            !(old.then == Then::Remove && new.then == Then::Keep),
            "the removal was forgotten: {context}"
        );
        assert!(
            !(old.stage == Stage::Killed && new.stage == Stage::Requested),
            "the kill was forgotten: {context}"
        );
    }
    if let ContainerPhase::Stopping(_, stop) = after {
        assert_eq!(
            stop.stage == Stage::Requested,
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
        !effects.contains(&Effect::Start) || *before == ContainerPhase::Created,
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
fn no_random_sequence_breaks_the_rules() {
    for seed in 1..=400_u64 {
        let mut random = Xorshift(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut now, mut phase) = (SECOND, ContainerPhase::Creating(Then::Keep));
        for _ in 0..250 {
            now += random.below(5) * SECOND;
            // As in the driver: a due deadline comes before anything else.
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
                phase = ContainerPhase::Creating(Then::Keep);
            }
        }
    }
}
