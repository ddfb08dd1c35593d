//! The end of a container process that does not end in its payload: an error or a panic, on any of its threads.
//!
//! The code of a container's process and of an exec's runs inside [`run_to_the_end`], from the fork on.
//! Invariant: nothing unwinds beyond it. Above it is the code of the keeper that forked, with a copy of the keeper's
//! memory, and nobody would report to the keeper, which waits for a report or for the exit.
//! It must not know what the code does.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::init::conclude;
use coracle_spec::error::{Error, Kind, Result};
use coracle_wasm::run::End;

/// Exits with the result of `work`; a panic is an error.
pub(super) fn run_to_the_end(work: impl FnOnce() -> Result<End>) -> ! {
    let ended = catch_unwind(AssertUnwindSafe(work));
    conclude(ended.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))))
}

/// The error of a panic, which has written to standard error already where it happened.
fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it has no message");
    let text = format!("the container process panicked, which is a bug in coracle: {text}");
    Error::new(Kind::Bug, text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests;
