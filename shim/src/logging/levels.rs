//! Which lines are logged: by the configuration, and by what an operator has changed since.
//!
//! Called by: [`super::init`], the reload, the admin service. Invariants: a change of an operator wins over the configuration,
//! also over a newer one, until it is over; of two changes of one target the later holds, and the earlier one's end does not
//! end it.
//! Must not know: how lines are written.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_config::{Log, LogLevel};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// The levels by target; that of all the daemon's own lines has the empty target.
type Levels = BTreeMap<String, LogLevel>;

/// What holds, and why.
struct State {
    configured: Levels,
    /// With the number of the change.
    changed: BTreeMap<String, (LogLevel, u64)>,
    changes: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    configured: BTreeMap::new(),
    changed: BTreeMap::new(),
    changes: 0,
});

/// A change by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The lines whose module begins so; empty for all of the daemon's own.
    pub target: String,
    /// `None` for what the configuration says.
    pub level: Option<LogLevel>,
    /// How long it holds; `None` until the daemon ends.
    pub duration: Option<Duration>,
}

impl State {
    fn levels(&self) -> Levels {
        let mut levels = self.configured.clone();
        let changed = self.changed.iter();
        levels.extend(changed.map(|(target, (level, _))| (target.clone(), *level)));
        levels
    }

    /// Returns the number of the change.
    fn change(&mut self, change: &Change) -> u64 {
        self.changes += 1;
        match change.level {
            Some(level) => {
                let entry = (level, self.changes);
                self.changed.insert(change.target.clone(), entry);
            }
            // Without a target all changes end.
            None if change.target.is_empty() => self.changed.clear(),
            None => {
                self.changed.remove(&change.target);
            }
        }
        self.changes
    }

    /// Ends a change, unless it is no longer the one that holds; false if so.
    fn end(&mut self, target: &str, number: u64) -> bool {
        let holds = self
            .changed
            .get(target)
            .is_some_and(|held| held.1 == number);
        if holds {
            self.changed.remove(target);
        }
        holds
    }
}

/// The filter at the start.
pub(super) fn begin(log: &Log) -> Targets {
    let mut state = state();
    state.configured = configured(log);
    filter(&state.levels())
}

/// Applies a changed configuration.
pub fn configure(log: &Log) {
    let mut state = state();
    state.configured = configured(log);
    super::apply(filter(&state.levels()));
}

/// Applies the change of an operator, and returns the levels that hold now, by target. To be called in a tokio runtime.
pub fn set(change: &Change) -> BTreeMap<String, LogLevel> {
    let mut state = state();
    let number = state.change(change);
    let levels = state.levels();
    super::apply(filter(&levels));
    drop(state);
    if let (Some(duration), Some(_)) = (change.duration, change.level) {
        let target = change.target.clone();
        tokio::spawn(async move {
            tokio::time::sleep(duration).await;
            end(&target, number);
        });
    }
    levels
}

fn end(target: &str, number: u64) {
    let mut state = state();
    if state.end(target, number) {
        // Before it holds, as the configured level may leave the line out.
        let of = (!target.is_empty()).then_some(target);
        tracing::info!(of, "the level of the log is the configured one again");
        super::apply(filter(&state.levels()));
    }
}

fn state() -> MutexGuard<'static, State> {
    // Nothing panics under the lock.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn configured(log: &Log) -> Levels {
    let mut levels = log.targets.clone();
    levels.insert(String::new(), log.level);
    levels
}

/// Our own lines from the level of the empty target on, except where another target is more precise. Libraries from `warn` on,
/// except at the lowest level: operators do not need the details of an HTTP library.
fn filter(levels: &Levels) -> Targets {
    let level = levels.get("").copied().unwrap_or_default();
    let own = filter_of(level);
    let others = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        _ => own.min(LevelFilter::WARN),
    };
    let targets = levels.iter().filter(|(target, _)| !target.is_empty());
    Targets::new()
        .with_default(others)
        .with_target("coracle", own)
        .with_targets(targets.map(|(target, level)| (target.clone(), filter_of(*level))))
        // Lines say on their own what they are about.
        .with_target(coracle_trace::TARGET, LevelFilter::OFF)
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    fn of(level: LogLevel) -> Targets {
        filter(&Levels::from([(String::new(), level)]))
    }

    #[test]
    fn libraries_log_less_than_the_daemon() {
        let info = of(LogLevel::Info);
        assert!(info.would_enable("coracle_runtime::keeper", &Level::INFO));
        assert!(!info.would_enable("coracle_runtime::keeper", &Level::DEBUG));
        assert!(!info.would_enable("h2::codec", &Level::INFO));
        assert!(info.would_enable("h2::codec", &Level::WARN));
        assert!(!of(LogLevel::Error).would_enable("h2::codec", &Level::WARN));
        assert!(of(LogLevel::Trace).would_enable("h2::codec", &Level::TRACE));
        assert!(!of(LogLevel::Trace).would_enable(coracle_trace::TARGET, &Level::ERROR));
    }

    #[test]
    fn the_more_precise_target_decides() {
        let levels = [
            ("", LogLevel::Warn),
            ("coracle_network", LogLevel::Debug),
            ("coracle_network::cni", LogLevel::Error),
            ("h2", LogLevel::Info),
        ];
        let filter = filter(
            &levels
                .map(|(target, level)| (target.to_owned(), level))
                .into(),
        );
        for (target, level, is_logged) in [
            ("coracle_cri", Level::INFO, false),
            ("coracle_network::veth", Level::DEBUG, true),
            ("coracle_network::cni::exec", Level::WARN, false),
            ("h2::codec", Level::INFO, true),
            ("hyper", Level::INFO, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), is_logged, "{target}");
        }
    }

    #[test]
    fn the_end_of_an_earlier_change_does_not_end_a_later_one() {
        let mut state = State {
            configured: Levels::from([(String::new(), LogLevel::Info)]),
            changed: BTreeMap::new(),
            changes: 0,
        };
        let of = |target: &str, level| Change {
            target: target.to_owned(),
            level,
            duration: None,
        };
        let first = state.change(&of("", Some(LogLevel::Debug)));
        let second = state.change(&of("", Some(LogLevel::Trace)));
        assert!(!state.end("", first));
        assert_eq!(state.levels().get(""), Some(&LogLevel::Trace));
        assert!(state.end("", second));
        assert_eq!(state.levels(), state.configured);
        state.change(&of("a", Some(LogLevel::Debug)));
        state.change(&of("b", Some(LogLevel::Debug)));
        state.change(&of("a", None));
        assert_eq!(state.levels().len(), 2);
        state.change(&of("", None));
        assert_eq!(state.levels(), state.configured);
    }
}
