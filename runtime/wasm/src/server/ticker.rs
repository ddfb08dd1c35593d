//! Advances an engine's epoch while guests run, so that none keeps a thread to itself and each meets its deadline.
//!
//! Called by [`super::instances`]: each live instance holds a [`Running`]. Invariant: without one of them the ticker's
//! thread sleeps in the kernel and wakes for nothing.
//! Not here: what a guest does when the epoch advances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// How long a guest computes before others have their turn.
const SLICE: Duration = Duration::from_millis(10);
/// Stack of the thread; it calls nothing deep.
const STACK: usize = 64 * 1024;

/// The thread's handle and what it looks at.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    running: AtomicUsize,
    is_parked: AtomicBool,
}

/// One instance that may be running; the epoch advances for as long as there are any.
pub(crate) struct Running(Arc<Shared>);

impl Ticker {
    /// Starts the thread. Errors: no thread can be made.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("ticker".to_owned())
            .stack_size(STACK)
            .spawn(move || tick(&engine, &own))?;
        Ok(Self {
            shared,
            thread: thread.thread().clone(),
        })
    }

    /// Counts one instance that may run from now on.
    pub(crate) fn run(&self) -> Running {
        self.shared.running.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_parked.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        Running(Arc::clone(&self.shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    loop {
        if shared.running.load(Ordering::SeqCst) == 0 {
            shared.is_parked.store(true, Ordering::SeqCst);
            // Whoever began between the two lines either is seen here or sees the flag.
            while shared.running.load(Ordering::SeqCst) == 0
                && shared.is_parked.load(Ordering::SeqCst)
            {
                thread::park();
            }
            shared.is_parked.store(false, Ordering::SeqCst);
        }
        thread::sleep(SLICE);
        engine.increment_epoch();
    }
}
