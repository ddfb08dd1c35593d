//! The events that plugins subscribe to, and the calls that carry them.
//!
//! Called by: [`super::session`], [`super::events`]. Source: NRI 0.12, `pkg/api`. Must not know: what an event does.

/// An event, by its number in a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A pod has its network.
    RunPodSandbox = 1,
    /// A pod's containers have ended.
    StopPodSandbox = 2,
    /// A pod is gone.
    RemovePodSandbox = 3,
    /// A container is being created.
    CreateContainer = 4,
    /// A container was created.
    PostCreateContainer = 5,
    /// A container is about to start.
    StartContainer = 6,
    /// A container runs.
    PostStartContainer = 7,
    /// A container's limits are about to change.
    UpdateContainer = 8,
    /// A container's limits were changed.
    PostUpdateContainer = 9,
    /// A container has ended.
    StopContainer = 10,
    /// A container is gone.
    RemoveContainer = 11,
    /// A pod's limits are about to change.
    UpdatePodSandbox = 12,
    /// A pod's limits have changed.
    PostUpdatePodSandbox = 13,
    /// What plugins adjusted is to be checked.
    ValidateContainerAdjustment = 14,
}

/// A bit for each event that NRI 0.12 has.
const ALL: u32 = (1 << 14) - 1;

impl Event {
    /// The call that carries it.
    pub fn method(self) -> &'static str {
        match self {
            Event::RunPodSandbox => "RunPodSandbox",
            Event::StopPodSandbox => "StopPodSandbox",
            Event::RemovePodSandbox => "RemovePodSandbox",
            Event::CreateContainer => "CreateContainer",
            Event::PostCreateContainer => "PostCreateContainer",
            Event::StartContainer => "StartContainer",
            Event::PostStartContainer => "PostStartContainer",
            Event::UpdateContainer => "UpdateContainer",
            Event::PostUpdateContainer => "PostUpdateContainer",
            Event::StopContainer => "StopContainer",
            Event::RemoveContainer => "RemoveContainer",
            Event::UpdatePodSandbox => "UpdatePodSandbox",
            Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
            Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        }
    }

    /// Its bit in a subscription.
    pub fn bit(self) -> u32 {
        1 << (self as u32 - 1)
    }

    /// Whether plugins built before NRI 0.12 know it as a `StateChange` only.
    pub fn was_state_change(self) -> bool {
        !matches!(
            self,
            Event::CreateContainer
                | Event::UpdateContainer
                | Event::StopContainer
                | Event::UpdatePodSandbox
                | Event::ValidateContainerAdjustment
        )
    }
}

/// The subscription that a plugin's answer means. Errors: it has events that do not exist.
pub fn subscription(answer: i32) -> Result<u32, String> {
    match answer.cast_unsigned() {
        0 => Ok(ALL),
        events if events & !ALL == 0 => Ok(events),
        events => Err(format!(
            "it subscribes to events {:#x}, which do not exist",
            events & !ALL
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_events_are_all_and_unknown_ones_are_refused() {
        assert_eq!(subscription(0), Ok(ALL));
        let both = Event::RunPodSandbox.bit() | Event::ValidateContainerAdjustment.bit();
        assert_eq!((both, subscription(0x2001)), (0x2001, Ok(0x2001)));
        for bad in [1 << 14, -1, i32::MIN] {
            assert!(subscription(bad).is_err(), "{bad}");
        }
    }
}
