//! The rules of [`pod_step`] as a table.

use super::super::pod::PodRefused;
use super::*;

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
