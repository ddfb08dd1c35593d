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

fn created() -> PodEvent {
    PodEvent::Created(Live {
        keeper: ProcessFact {
            pid: 8,
            start_time: 4,
        },
        attachment: None,
    })
}

#[test]
fn pods_follow_the_table() {
    use PodEffect::{EndContainers, Forget, RemoveContainers, TearDown};
    use PodEvent::{
        Cleared, CreateFailed, Emptied, Forgotten, KeeperLost, RemoveRequested, StopRequested,
        TornDown,
    };
    let table: [(&[PodEvent], &str, &[PodEffect]); 9] = [
        (&[created()], "ready", &[]),
        (&[CreateFailed, Forgotten], "gone", &[Forget]),
        (
            &[created(), StopRequested, Emptied, TornDown],
            "not ready",
            &[EndContainers, TearDown],
        ),
        (
            &[created(), KeeperLost, Emptied, TornDown],
            "not ready",
            &[EndContainers, TearDown],
        ),
        (
            &[created(), StopRequested, StopRequested, Emptied],
            "stopping",
            &[EndContainers, EndContainers, TearDown],
        ),
        (
            &[
                created(),
                StopRequested,
                RemoveRequested,
                StopRequested,
                Emptied,
                TornDown,
            ],
            "being removed",
            &[
                EndContainers,
                EndContainers,
                EndContainers,
                TearDown,
                RemoveContainers,
            ],
        ),
        (
            &[
                created(),
                RemoveRequested,
                Emptied,
                TornDown,
                Cleared,
                Forgotten,
            ],
            "gone",
            &[EndContainers, TearDown, RemoveContainers, Forget],
        ),
        (
            &[
                created(),
                StopRequested,
                Emptied,
                TornDown,
                StopRequested,
                KeeperLost,
            ],
            "not ready",
            &[EndContainers, TearDown],
        ),
        (
            &[
                created(),
                StopRequested,
                Emptied,
                TornDown,
                RemoveRequested,
                Cleared,
                Forgotten,
                StopRequested,
                RemoveRequested,
            ],
            "gone",
            &[EndContainers, TearDown, RemoveContainers, Forget],
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
fn a_pod_refuses_impossible_events() {
    for events in [
        &[PodEvent::StopRequested][..],
        &[PodEvent::TornDown],
        &[created(), created()],
        &[created(), PodEvent::Emptied],
    ] {
        assert!(live_pod(events).is_err(), "{events:?}");
    }
}
