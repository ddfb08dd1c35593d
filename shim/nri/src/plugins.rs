//! The plugins that are connected, in the order in which they are called.
//!
//! Called by: [`super::events`], [`super::listener`]. Invariant: the lock is held for a few instructions.
//! Must not know: calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters;
use super::session::Session;

/// The list.
#[derive(Default)]
pub struct Connected {
    /// Whether lifecycles have to call us at all.
    any: AtomicBool,
    list: Mutex<Arc<Vec<Arc<Session>>>>,
    /// Plugins without which no container is created.
    required: Vec<String>,
}

impl Connected {
    /// None yet.
    pub fn new(required: Vec<String>) -> Self {
        Connected {
            any: AtomicBool::new(!required.is_empty()),
            list: Mutex::default(),
            required,
        }
    }

    /// Whether there is a plugin, or one is required.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// All, by ascending index.
    pub fn all(&self) -> Arc<Vec<Arc<Session>>> {
        self.lock().clone()
    }

    /// Adds one. Errors: one of that name is connected.
    pub fn add(&self, session: &Arc<Session>) -> Result<(), String> {
        let mut list = self.lock();
        if list.iter().any(|known| known.name() == session.name()) {
            return Err("a plugin of that index and name is connected already".to_owned());
        }
        let mut all: Vec<_> = list.iter().cloned().collect();
        all.push(Arc::clone(session));
        all.sort_by(|one, other| one.name().cmp(other.name()));
        self.replace(&mut list, all);
        Ok(())
    }

    /// Removes one, if it is there.
    pub fn remove(&self, session: &Arc<Session>) {
        let mut list = self.lock();
        let others = list.iter().filter(|known| !Arc::ptr_eq(known, session));
        let others = others.cloned().collect();
        self.replace(&mut list, others);
    }

    /// The first required plugin that is not connected.
    pub fn missing(&self) -> Option<&str> {
        let list = self.all();
        let is_there = |required: &str| {
            let open = list.iter().filter(|session| !session.is_closed());
            let mut names = open.map(|session| session.name());
            names.any(|name| name == required || name.get(3..) == Some(required))
        };
        let mut required = self.required.iter().map(String::as_str);
        required.find(|required| !is_there(required))
    }

    fn replace(&self, list: &mut Arc<Vec<Arc<Session>>>, all: Vec<Arc<Session>>) {
        self.any.store(
            !(all.is_empty() && self.required.is_empty()),
            Ordering::Release,
        );
        counters::connected(all.len());
        *list = Arc::new(all);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Vec<Arc<Session>>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
