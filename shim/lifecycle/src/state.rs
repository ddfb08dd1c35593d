//! The states of containers and pods: phases, events, and the functions [`step`] and [`pod_step`] that decide the next
//! phase.
//!
//! Called by: the driver, which saves the new phase and then runs the effects. Pure: the caller passes the time in,
//! nothing waits, nothing is logged.
//! Invariants: an event that [`step`] refuses changes nothing; a stop deadline only ever moves earlier; a requested
//! removal is never forgotten; `Gone` is final.
//! Must not know: which requests wait, how an effect is carried out.

mod ended;
mod pod;
mod stop;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use ended::{Ended, Reason};
pub use pod::{Live, PodEffect, PodEvent, PodPhase, pod_step};
pub use stop::{Stage, Stop, Then};

/// Nanoseconds of the boot clock: runs through suspend, never jumps, the same for every daemon of one boot.
pub type BootTime = u64;

/// A process as a record identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFact {
    /// Its pid in the host's namespace.
    pub pid: i32,
    /// Its start time in clock ticks since boot, from `/proc/PID/stat`.
    pub start_time: u64,
}

/// A running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its first process.
    pub process: ProcessFact,
    /// Nanoseconds since 1970 UTC.
    pub started_at: i64,
}

impl Run {
    /// A container created at `created_at` runs. A start is never before the creation, even if the clock was set back.
    pub fn new(process: ProcessFact, started_at: i64, created_at: i64) -> Run {
        Run {
            process,
            started_at: started_at.max(created_at),
        }
    }
}

/// The phase of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerPhase {
    /// Its directories and cgroup are being made; not listed.
    Creating(Then),
    /// It can be started.
    Created,
    /// The keeper was sent the start request; a stop may have come meanwhile.
    Starting(Option<Stop>),
    /// It runs.
    Running(Run),
    /// It runs and was requested to stop.
    Stopping(Run, Stop),
    /// It has ended.
    Exited(Ended),
    /// Its record, or the record of its exit, cannot be used, for the reason given; left as it is and read again. Never
    /// on disk.
    Unreadable(String),
    /// Everything of it is being removed; its last state is still shown. Never on disk.
    Removing(Option<Ended>),
    /// It does not exist any more. Never on disk.
    Gone,
}

impl ContainerPhase {
    /// Its name for messages and logs.
    pub fn name(&self) -> &'static str {
        match self {
            ContainerPhase::Creating(_) => "being created",
            ContainerPhase::Created => "created",
            ContainerPhase::Starting(_) => "starting",
            ContainerPhase::Running(_) => "running",
            ContainerPhase::Stopping(..) => "stopping",
            ContainerPhase::Exited(_) => "exited",
            ContainerPhase::Unreadable(_) => "unknown because its record cannot be read",
            ContainerPhase::Removing(_) => "being removed",
            ContainerPhase::Gone => "gone",
        }
    }

    /// Whether a process of it may exist.
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            ContainerPhase::Starting(_) | ContainerPhase::Running(_) | ContainerPhase::Stopping(..)
        )
    }

    /// The running process, when there is one.
    pub fn run(&self) -> Option<Run> {
        match self {
            ContainerPhase::Running(run) | ContainerPhase::Stopping(run, _) => Some(*run),
            _ => None,
        }
    }

    /// When the driver has to send [`Event::DeadlinePassed`].
    pub fn deadline(&self) -> Option<BootTime> {
        match self {
            ContainerPhase::Stopping(_, stop) if stop.stage == Stage::Requested => {
                Some(stop.kill_at)
            }
            _ => None,
        }
    }

    /// How far a stop has come, when one is under way.
    pub fn stop_stage(&self) -> Option<Stage> {
        match self {
            ContainerPhase::Stopping(_, stop) => Some(stop.stage),
            _ => None,
        }
    }
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Directories and cgroup exist.
    Built,
    /// Directories or cgroup could not be created.
    BuildFailed,
    /// StartContainer.
    StartRequested,
    /// The keeper started it.
    Started(Run),
    /// The keeper could not start it.
    StartFailed(Ended),
    /// StopContainer, or the pod stops.
    StopRequested(Duration),
    /// The deadline that [`ContainerPhase::deadline`] named has come.
    DeadlinePassed,
    /// Its process has ended.
    Ended(Ended),
    /// RemoveContainer, or the pod is removed.
    RemoveRequested,
    /// Everything of it was removed.
    Removed,
}

/// What the driver does after it saved a phase. Each effect can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the keeper to run it.
    Start,
    /// Send its stop signal.
    Signal,
    /// Kill all its processes.
    Kill,
    /// Remove its cgroup and the keeper's exit record.
    CleanUp,
    /// Remove everything that is left of it.
    Forget,
}

/// A request that does not fit the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// StartContainer.
    #[error("cannot start it while it is {while_in}; only a created container can be started")]
    Start {
        /// The phase's name.
        while_in: &'static str,
    },
    /// An event that cannot occur in this phase: a bug.
    #[error("{event} does not happen to a container that is {while_in}")]
    Impossible {
        /// The event's name.
        event: &'static str,
        /// The phase's name.
        while_in: &'static str,
    },
}

/// The next phase and the effects when `event` happens to a container in `phase` at `now`.
/// Errors: the event is impossible in this phase, which then stays.
pub fn step(
    now: BootTime,
    phase: ContainerPhase,
    event: Event,
) -> Result<(ContainerPhase, Vec<Effect>), Refused> {
    match event {
        Event::StartRequested => match phase {
            ContainerPhase::Created => Ok((ContainerPhase::Starting(None), vec![Effect::Start])),
            other => Err(Refused::Start {
                while_in: other.name(),
            }),
        },
        Event::StopRequested(grace) => Ok(stop(now, phase, Stop::after(now, grace))),
        Event::RemoveRequested => Ok(remove(now, phase)),
        Event::DeadlinePassed => Ok(deadline(now, phase)),
        Event::Ended(ended) => end(phase, ended),
        Event::Built
        | Event::BuildFailed
        | Event::Started(_)
        | Event::StartFailed(_)
        | Event::Removed => finish(now, phase, event),
    }
}

fn stop(now: BootTime, phase: ContainerPhase, config: Stop) -> (ContainerPhase, Vec<Effect>) {
    use ContainerPhase::{Running, Starting, Stopping, Unreadable};
    match phase {
        Starting(None) => (Starting(Some(config)), vec![]),
        Starting(Some(old)) => (Starting(Some(old.joined(config))), vec![]),
        Running(run) => begin_stop(now, run, config),
        // Killing again is harmless, and repeats a kill that failed.
        Stopping(run, old) if old.joined(config).kill_at <= now => (
            Stopping(
                run,
                Stop {
                    stage: Stage::Killed,
                    ..old.joined(config)
                },
            ),
            vec![Effect::Kill],
        ),
        Stopping(run, old) => (Stopping(run, old.joined(config)), vec![]),
        // Kills whatever process it has.
        Unreadable(why) => (Unreadable(why), vec![Effect::Kill]),
        // CRI: stopping what does not run is success and changes nothing.
        other => (other, vec![]),
    }
}

fn begin_stop(now: BootTime, run: Run, config: Stop) -> (ContainerPhase, Vec<Effect>) {
    if config.kill_at <= now {
        let stop = Stop {
            stage: Stage::Killed,
            ..config
        };
        return (ContainerPhase::Stopping(run, stop), vec![Effect::Kill]);
    }
    (ContainerPhase::Stopping(run, config), vec![Effect::Signal])
}

fn remove(now: BootTime, phase: ContainerPhase) -> (ContainerPhase, Vec<Effect>) {
    use ContainerPhase::{Created, Creating, Exited, Gone, Removing, Unreadable};
    match phase {
        Creating(_) => (Creating(Then::Remove), vec![]),
        Created | Unreadable(_) => (Removing(None), vec![Effect::Forget]),
        Exited(ended) => (Removing(Some(ended)), vec![Effect::Forget]),
        Removing(ended) => (Removing(ended), vec![Effect::Forget]),
        Gone => (Gone, vec![]),
        live => stop(now, live, Stop::to_remove(now)),
    }
}

fn deadline(now: BootTime, phase: ContainerPhase) -> (ContainerPhase, Vec<Effect>) {
    match phase {
        ContainerPhase::Stopping(run, stop)
            if stop.stage == Stage::Requested && stop.kill_at <= now =>
        {
            (
                ContainerPhase::Stopping(
                    run,
                    Stop {
                        stage: Stage::Killed,
                        ..stop
                    },
                ),
                vec![Effect::Kill],
            )
        }
        other => (other, vec![]),
    }
}

fn end(phase: ContainerPhase, ended: Ended) -> Result<(ContainerPhase, Vec<Effect>), Refused> {
    use ContainerPhase::{Exited, Running, Stopping};
    match phase {
        Running(_) => Ok((Exited(ended), vec![Effect::CleanUp])),
        Stopping(_, stop) => Ok(rest_or_remove(ended, stop.then)),
        // Keeper and pidfd report the same end; the first report counts.
        ended @ (Exited(_) | ContainerPhase::Removing(_) | ContainerPhase::Gone) => {
            Ok((ended, vec![]))
        }
        other => Err(Refused::Impossible {
            event: "an end",
            while_in: other.name(),
        }),
    }
}

fn rest_or_remove(ended: Ended, then: Then) -> (ContainerPhase, Vec<Effect>) {
    match then {
        Then::Keep => (ContainerPhase::Exited(ended), vec![Effect::CleanUp]),
        Then::Remove => (ContainerPhase::Removing(Some(ended)), vec![Effect::Forget]),
    }
}

fn finish(
    now: BootTime,
    phase: ContainerPhase,
    event: Event,
) -> Result<(ContainerPhase, Vec<Effect>), Refused> {
    use ContainerPhase::{Created, Creating, Gone, Removing, Running, Starting};
    match (phase, event) {
        (Creating(Then::Keep), Event::Built) => Ok((Created, vec![])),
        (Creating(Then::Remove), Event::Built) | (Creating(_), Event::BuildFailed) => {
            Ok((Removing(None), vec![Effect::Forget]))
        }
        (Starting(None), Event::Started(run)) => Ok((Running(run), vec![])),
        (Starting(Some(stop)), Event::Started(run)) => Ok(begin_stop(now, run, stop)),
        (Starting(stop), Event::StartFailed(ended)) => Ok(rest_or_remove(
            ended,
            stop.map_or(Then::Keep, |stop| stop.then),
        )),
        (Removing(_), Event::Removed) => Ok((Gone, vec![])),
        (other, event) => Err(Refused::Impossible {
            event: event.name(),
            while_in: other.name(),
        }),
    }
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Event::Built => "a finished build",
            Event::BuildFailed => "a failed build",
            Event::StartRequested => "a start",
            Event::Started(_) => "a finished start",
            Event::StartFailed(_) => "a failed start",
            Event::StopRequested(_) => "a stop",
            Event::DeadlinePassed => "a deadline",
            Event::Ended(_) => "an end",
            Event::RemoveRequested => "a removal",
            Event::Removed => "a finished removal",
        }
    }
}

#[cfg(test)]
mod tests;
