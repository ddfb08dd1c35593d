//! The CRI logs of the demo's containers, read as a kubelet reads them.
//!
//! Called by: `steps`. Invariant: a log without the expected line is an error.
//! Must not know: who writes them.

use std::path::PathBuf;
use std::time::Duration;

use super::error::Error;
use super::timed_calls::print_line;

/// How often the greeting is looked for, and the pause in between.
const POLL: (u32, Duration) = (1000, Duration::from_millis(10));

/// The pod's log directory, and the line that every container of the demo prints.
pub struct Logs {
    /// The pod's log directory on the host.
    pub directory: PathBuf,
    /// The line that each log must contain.
    pub greeting: &'static str,
}

impl Logs {
    /// Waits until a container has printed the greeting. Errors: it does not within ten seconds.
    pub async fn wait_for_greeting(&self, name: &str) -> Result<(), Error> {
        let file = self.file(name);
        for _ in 0..POLL.0 {
            match std::fs::read_to_string(&file) {
                Ok(log) if log.contains(self.greeting) => return Ok(()),
                _ => tokio::time::sleep(POLL.1).await,
            }
        }
        self.show(name)
    }

    /// Prints a container's log. Errors: it does not contain the greeting.
    pub fn show(&self, name: &str) -> Result<(), Error> {
        let file = self.file(name);
        let log =
            std::fs::read_to_string(&file).map_err(|error| Error::file("read", &file, error))?;
        print_line(format_args!("\nthe CRI log of {name}:"))?;
        for line in log.lines() {
            print_line(format_args!("  {line}"))?;
        }
        if log.contains(self.greeting) {
            return Ok(());
        }
        Err(Error::new(format!(
            "{} does not hold the line {:?}",
            file.display(),
            self.greeting
        )))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }
}
