//! Ends a guest on a stop signal: through the epoch if it computes, through an eventfd if it waits.
//!
//! The container process arms it before it runs anything, and a server's process, which is forked from that one, once
//! more; whatever waits on the guest's behalf reads it.
//! Invariant: the handler does only what is safe in a signal handler.
//! It must not know which signals these are, or the guest's exit code.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};
use std::time::Duration;

use wasmtime::Engine;

use coracle_spec::error::{Context as _, Result};
use coracle_sys as sys;

static STOP_SIGNAL: AtomicI32 = AtomicI32::new(0);
/// Milliseconds; negative if nobody said.
static STOP_GRACE: AtomicI32 = AtomicI32::new(-1);
static STOP_ENGINE: AtomicPtr<Engine> = AtomicPtr::new(std::ptr::null_mut());
static STOP_WAKE: AtomicI32 = AtomicI32::new(-1);

/// The stop signal that has arrived; 0 if none has.
pub fn signal() -> i32 {
    STOP_SIGNAL.load(Ordering::SeqCst)
}

/// How long after the stop signal this process will be killed; `None` if its sender did not say.
pub fn grace() -> Option<Duration> {
    let millis = STOP_GRACE.load(Ordering::SeqCst);
    u64::try_from(millis).ok().map(Duration::from_millis)
}

/// Whether a stop signal has arrived.
pub(super) fn stopping() -> bool {
    STOP_SIGNAL.load(Ordering::Relaxed) != 0
}

/// The stop signal's handler: stores it, advances the epoch, wakes the event loop. All three are signal-safe.
extern "C" fn on_stop(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: this is the handler, and `info` is what the kernel passed.
    if let Some(millis) = unsafe { sys::signals::grace_of(info) } {
        STOP_GRACE.store(millis, Ordering::SeqCst);
    }
    STOP_SIGNAL.store(signal, Ordering::SeqCst);
    let engine = STOP_ENGINE.load(Ordering::SeqCst);
    if !engine.is_null() {
        // SAFETY: the pointer was made from a leaked Box and is never freed; increment_epoch is documented signal-safe.
        unsafe { (*engine).increment_epoch() };
    }
    let wake = STOP_WAKE.load(Ordering::SeqCst);
    let one = 1_u64;
    // SAFETY: write(2) is async-signal-safe; the eventfd stays open for the life of the guest, and `one` is 8 bytes.
    unsafe { libc::write(wake, (&raw const one).cast(), 8) };
}

/// Arranges for stop signals to end the guest. Call once, before [`run`](super::run::run).
///
/// Errors: out of descriptors, or sigaction(2) refused.
pub fn arm_stop(engine: &Engine) -> Result<OwnedFd> {
    let wake = wake()?;
    set_engine(engine);
    sys::signals::catch_stops(on_stop).during(|| "catch stop signals".into())?;
    Ok(wake)
}

/// Has stop signals end the guests of `engine` from now on, instead of those of the one before.
pub(super) fn set_engine(engine: &Engine) {
    STOP_ENGINE.store(Box::into_raw(Box::new(engine.clone())), Ordering::SeqCst);
}

/// Gives this process an eventfd of its own, which can be read already if a stop signal has arrived. Call it after a fork
/// of a process that had called [`arm_stop`], whose eventfd both share until then.
///
/// Errors: out of descriptors.
pub fn rearm_stop() -> Result<OwnedFd> {
    let wake = wake()?;
    if stopping() {
        rustix::io::write(&wake, &1_u64.to_ne_bytes()).during(|| "repeat a stop signal".into())?;
    }
    Ok(wake)
}

/// A new eventfd, which the handler writes to from now on.
fn wake() -> Result<OwnedFd> {
    use rustix::event::EventfdFlags;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let wake = rustix::event::eventfd(0, flags).during(|| "make the stop eventfd".into())?;
    STOP_WAKE.store(std::os::fd::AsRawFd::as_raw_fd(&wake), Ordering::SeqCst);
    Ok(wake)
}

/// Blocks until a stop signal has arrived, and returns its number.
pub fn await_stop(stop: BorrowedFd<'_>) -> i32 {
    use rustix::event::{PollFd, PollFlags, poll};
    while !stopping() {
        // The handler also interrupts the wait itself.
        let _ = poll(&mut [PollFd::from_borrowed_fd(stop, PollFlags::IN)], None);
    }
    signal()
}
