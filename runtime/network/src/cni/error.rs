//! Errors of CNI networks and plugins, created where they happen and logged by the caller.
//! Invariant: a plugin's own message is bounded and has no control characters. Not here: logging.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::verb::Verb;

/// Why a pod was not attached, detached or checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no network that a pod could be attached to.
    #[error("no network for pods: {why}")]
    NotReady {
        /// Which file or directory is at fault, and why.
        why: String,
    },
    /// A name of the pod is unsafe as an argument of plugins.
    #[error(
        "build the arguments of plugins for pod {pod}: {what} is {value:?}; only letters, digits and `-_.:` are passed on"
    )]
    InvalidName {
        /// The pod.
        pod: String,
        /// Which of its properties.
        what: &'static str,
        /// The value, cut short.
        value: String,
    },
    /// No directory holds the plugin.
    #[error("find plugin {plugin} of network {network}: no executable of that name in {dirs}")]
    NoPlugin {
        /// The network's name.
        network: String,
        /// The plugin's type.
        plugin: String,
        /// The directories that were searched.
        dirs: String,
    },
    /// The plugin failed.
    #[error("{verb} of plugin {plugin} for network {network}: {message}")]
    Refused {
        /// The operation.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// Its message, or its exit status if it printed none.
        message: String,
    },
    /// The plugin took too long and was killed.
    #[error("{verb} of plugin {plugin} for network {network}: no answer within {} s, killed", limit.as_secs())]
    TimedOut {
        /// The operation.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// The time limit.
        limit: Duration,
    },
    /// The plugin succeeded, but its result is invalid.
    #[error("{verb} of plugin {plugin} for network {network}: its answer {what}")]
    Answer {
        /// The operation.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// What is wrong with the result.
        what: String,
    },
    /// A file of the cache is broken.
    #[error("read {}: {what}; its pod is not detached from the network", file.display())]
    Entry {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("{operation} {object}")]
    Io {
        /// The operation.
        operation: &'static str,
        /// Its object.
        object: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// An [`Error::Io`] about a file.
    pub(super) fn file(operation: &'static str, file: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io {
            operation,
            object: file.display().to_string(),
            source: source.into(),
        }
    }
}

/// `text` on one line, without control characters, at most `limit` characters long.
pub(super) fn plain(text: &str, limit: usize) -> String {
    let is_odd = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let spaced: String = text
        .chars()
        .map(|c| if is_odd(c) { ' ' } else { c })
        .collect();
    let mut line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = line.char_indices().nth(limit) {
        line.truncate(at);
        line.push_str("...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_messages_become_one_bounded_line() {
        assert_eq!(plain("a\n\tb\u{1b}[31m\u{202e}c\0", 80), "a b [31m c");
        assert_eq!(plain(&"\u{e9}".repeat(90), 3), "\u{e9}\u{e9}\u{e9}...");
        assert_eq!(plain("", 3), "");
    }
}
