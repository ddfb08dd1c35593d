//! What can go wrong between us and network plugins. Made where it happens; shown by whoever asked.
//! Invariant: a plugin's own words are bounded and hold no control character. Not here: logging.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::verb::Verb;

/// A network that was not made, unmade or looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no network that a pod could be attached to.
    #[error("no network for pods: {why}")]
    NotReady {
        /// Which file or directory is at fault, and why.
        why: String,
    },
    /// Something a plugin would be told of the pod is not fit to be told.
    #[error(
        "tell plugins of pod {pod}: {what} is {value:?}; only letters, digits and `-_.:` are passed on"
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
        /// Where it was looked for.
        dirs: String,
    },
    /// The plugin said no.
    #[error("{verb} of plugin {plugin} for network {network}: {message}")]
    Refused {
        /// What it was asked to do.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// Its words, or how it ended if it had none.
        message: String,
    },
    /// The plugin took too long and was killed.
    #[error("{verb} of plugin {plugin} for network {network}: no answer within {} s, killed", limit.as_secs())]
    TimedOut {
        /// What it was asked to do.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The plugin succeeded, and what it answered is of no use.
    #[error("{verb} of plugin {plugin} for network {network}: its answer {what}")]
    Answer {
        /// What it was asked to do.
        verb: Verb,
        /// The plugin's type.
        plugin: String,
        /// The network's name.
        network: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// A file of ours that holds what a pod was attached with cannot be understood.
    #[error("read {}: {what}; what its pod holds of the network is not given back", file.display())]
    Entry {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A system call failed.
    #[error("{operation} {object}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// To what.
        object: String,
        /// What the kernel said.
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
    let mut words = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((at, _)) = words.char_indices().nth(limit) {
        words.truncate(at);
        words.push_str("...");
    }
    words
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
