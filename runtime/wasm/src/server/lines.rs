//! Standard output and error of instances that run at the same time: each line goes out whole.
//!
//! Called by what a guest writes and by the server's own messages. A line is kept until its end has come; the rest
//! of an instance's last line goes out with the instance.
//! Invariants: one line is one write under one lock, so that no two interleave; what is kept of one instance is bounded.
//! A line can carry the id of its request.
//! Not here: who reads the streams, time stamps, which id.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::streams::{Sink, WRITE_BYTES};

/// Longest line that is kept together; a longer one becomes several. Bytes.
const MAX_LINE_BYTES: usize = WRITE_BYTES;

/// One of the two streams, shared by all instances.
#[derive(Clone)]
pub(super) struct Stream(Arc<Mutex<Box<dyn Sink>>>);

impl Stream {
    /// A stream that ends in `sink`.
    pub(super) fn new(sink: impl Sink + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(sink))))
    }

    /// Writes one line of the server's own. What cannot be written is lost: there is nobody to tell.
    pub(super) fn line(&self, text: &str) {
        let _ = self.put(format!("{text}\n").as_bytes());
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .put(bytes)
    }

    /// The same stream for one more instance, with a line of its own.
    pub(super) fn of_instance(&self) -> Lines {
        Lines(Arc::new(Mutex::new(Begun {
            stream: self.clone(),
            prefix: Vec::new(),
            text: Vec::new(),
        })))
    }
}

/// A stream as one instance has it; all handles of the instance share the line that it has begun.
#[derive(Clone)]
pub(super) struct Lines(Arc<Mutex<Begun>>);

struct Begun {
    stream: Stream,
    /// What each line begins with.
    prefix: Vec<u8>,
    text: Vec<u8>,
}

impl Begun {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            self.keep(line)?;
            self.put()?;
        }
        self.keep(bytes)
    }

    /// Adds to the line, and ends it where it has become too long.
    fn keep(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.begin();
        while self.text.len() + bytes.len() > MAX_LINE_BYTES {
            let (fits, rest) = bytes.split_at(MAX_LINE_BYTES - self.text.len());
            bytes = rest;
            self.text.extend_from_slice(fits);
            self.end()?;
            self.begin();
        }
        self.text.extend_from_slice(bytes);
        Ok(())
    }

    fn begin(&mut self) {
        if self.text.is_empty() {
            self.text.extend_from_slice(&self.prefix);
        }
    }

    /// Ends the line, if there is one.
    fn end(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        if self.text.last() != Some(&b'\n') {
            self.text.push(b'\n');
        }
        self.put()
    }

    fn put(&mut self) -> io::Result<()> {
        let put = self.stream.put(&self.text);
        self.text.clear();
        put
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Lines {
    /// Puts `id` before each line from the next one on; what was begun without it goes out as a line of its own.
    pub(super) fn set_request(&self, id: &str) {
        let mut begun = self.begun();
        let _ = begun.end();
        begun.prefix.clear();
        begun.prefix.extend_from_slice(id.as_bytes());
        begun.prefix.push(b' ');
    }

    /// Writes one line of the server's own, after what the guest had begun to say.
    pub(super) fn line(&self, text: &str) {
        let mut begun = self.begun();
        let _ = begun.end();
        let _ = begun.write(format!("{text}\n").as_bytes());
    }

    fn begun(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Lines {
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.begun().write(bytes)
    }
}
