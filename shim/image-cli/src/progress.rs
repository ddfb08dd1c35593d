//! What is shown while a command works: a bar on a terminal, else a plain line every ten seconds.
//!
//! Called by: the commands, with a future and a way to look how far it is. Invariants: all of it goes to standard error; a
//! command that is quick says nothing on a pipe; looking never delays or fails the work; a closed standard error is no
//! reason to stop.
//! Must not know: the daemon, registries.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::print::size;

/// How often a bar is drawn.
const DRAWN: Duration = Duration::from_millis(200);
/// How often a line is written.
const LINE: Duration = Duration::from_secs(10);

/// How far something is.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// Bytes that are done.
    pub(crate) done: u64,
    /// All bytes; 0 if that is not known.
    pub(crate) total: u64,
    /// What else there is to say.
    pub(crate) remark: String,
}

/// Counts the bytes of work on another thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Count {
    done: Arc<AtomicU64>,
    total: Arc<AtomicU64>,
}

impl Count {
    pub(crate) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn state(&self) -> State {
        State {
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
            remark: String::new(),
        }
    }
}

/// Waits for `work` and shows how far it is, as `look` says; `None`: nothing is known yet.
pub(crate) async fn watch<T, F: Future<Output = Option<State>>>(
    doing: &str,
    work: impl Future<Output = T>,
    mut look: impl FnMut() -> F,
) -> T {
    let mut work = std::pin::pin!(work);
    let (began, mut shown) = (Instant::now(), Shown::new(doing));
    loop {
        match tokio::time::timeout(shown.interval(), &mut work).await {
            Ok(done) => {
                shown.end();
                return done;
            }
            Err(_) => {
                // The work goes on while somebody looks.
                let state = tokio::select! {
                    done = &mut work => {
                        shown.end();
                        return done;
                    }
                    state = look() => state,
                };
                shown.show(state.unwrap_or_default(), began.elapsed());
            }
        }
    }
}

/// [`watch`] for work that counts itself.
pub(crate) async fn counted<T>(doing: &str, count: &Count, work: impl Future<Output = T>) -> T {
    watch(doing, work, || std::future::ready(Some(count.state()))).await
}

/// Where it is shown.
enum Shown {
    Bar(ProgressBar),
    /// What is being done.
    Lines(String),
}

impl Shown {
    fn new(doing: &str) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines(doing.to_owned());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_prefix(doing.to_owned());
        Self::Bar(bar)
    }

    fn interval(&self) -> Duration {
        match self {
            Self::Bar(_) => DRAWN,
            Self::Lines(_) => LINE,
        }
    }

    fn show(&mut self, state: State, elapsed: Duration) {
        match self {
            Self::Bar(bar) => {
                let template = match state.total {
                    0 => "{prefix} {spinner} {bytes} {msg} {elapsed}",
                    _ => "{prefix} [{wide_bar}] {bytes}/{total_bytes} {msg} {elapsed}",
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                if state.total > 0 {
                    bar.set_length(state.total);
                }
                bar.set_message(state.remark);
                bar.set_position(state.done);
                bar.tick();
            }
            Self::Lines(doing) => line(&text(doing, &state, elapsed)),
        }
    }

    /// Removes the bar.
    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A line for a log.
fn text(doing: &str, state: &State, elapsed: Duration) -> String {
    let mut text = format!("{doing} for {} s", elapsed.as_secs());
    match (state.done, state.total) {
        (0, 0) => {}
        (done, 0) => text += &format!(": {}", size(done)),
        // What was transferred twice counts twice.
        (done, total) => text += &format!(": {} of {}", size(done.min(total)), size(total)),
    }
    if !state.remark.is_empty() {
        text += &format!(", {}", state.remark);
    }
    text
}

/// A line on standard error. A closed one is no reason to stop.
pub(crate) fn line(text: &str) {
    let _ = writeln!(io::stderr(), "coracle: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let state = |done, total, remark: &str| State {
            done,
            total,
            remark: remark.to_owned(),
        };
        for (state, expected) in [
            (state(0, 0, ""), "pulling a for 20 s"),
            (state(2048, 0, ""), "pulling a for 20 s: 2.0 KiB"),
            (
                state(1024, 2048, ""),
                "pulling a for 20 s: 1.0 KiB of 2.0 KiB",
            ),
            (
                state(4096, 2048, "1 of 2 layers unpacked"),
                "pulling a for 20 s: 2.0 KiB of 2.0 KiB, 1 of 2 layers unpacked",
            ),
        ] {
            assert_eq!(text("pulling a", &state, Duration::from_secs(20)), expected);
        }
    }
}
