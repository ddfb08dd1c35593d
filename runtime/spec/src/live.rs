//! A value that is replaced while others read it: a part of the configuration that a reload changes.
//!
//! Used by: the daemon's parts, which read it when an operation begins; its reload, which replaces it. Invariant: a reader
//! keeps the value that it got, whole, for as long as it needs it.

use std::sync::{Arc, PoisonError, RwLock};

/// A value that can be replaced as a whole.
#[derive(Debug, Default)]
pub struct Live<T>(RwLock<Arc<T>>);

impl<T> Live<T> {
    /// Begins with `value`.
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// The value that holds now.
    pub fn get(&self) -> Arc<T> {
        // Nothing panics under the lock.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on `value` holds.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_got() {
        let live = Live::new(1);
        let before = live.get();
        live.set(2);
        assert_eq!((*before, *live.get()), (1, 2));
    }
}
