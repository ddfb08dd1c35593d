//! Which provider attaches new pods: the configured one, or one that is decided once by what the node has.
//!
//! ```text
//! auto: recorded? --yes--> that one
//!         | no
//!         +--a CNI configuration, at the start or before the first pod--> cni, recorded
//!         +--the first pod--> builtin, recorded
//! ```
//! Called by: [`super::Network`]; blocks on the disk only until it is decided. Invariants: what is decided stays so as long
//! as the root directory does, for pods of two networks do not reach each other; nothing is decided before it has to be.
//! Not here: whether a configuration is valid, or its plugins are installed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::Error;
use super::{Provider, cni};

/// How the provider is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Always this one.
    Fixed(Provider),
    /// CNI if a configuration is there before the first pod, else the built-in network.
    Auto,
}

/// The choice of one daemon.
#[derive(Debug)]
pub struct Choice {
    mode: Mode,
    /// The file that keeps what was decided.
    record: PathBuf,
    /// The directory of CNI configurations.
    conf_dir: PathBuf,
    decided: Mutex<Option<Provider>>,
}

impl Choice {
    /// The choice of a daemon whose root directory is `root`. Decides if a CNI configuration is there already.
    /// Errors: what was decided cannot be read, or recorded.
    pub fn open(mode: Mode, root: &Path, conf_dir: &Path) -> Result<Choice, Error> {
        let record = root.join("network-mode");
        let decided = match mode {
            Mode::Fixed(provider) => Some(provider),
            Mode::Auto => recorded(&record)?,
        };
        let choice = Choice {
            mode,
            record,
            conf_dir: conf_dir.to_owned(),
            decided: Mutex::new(decided),
        };
        if choice.look().1 == Provider::Cni {
            choice.decide()?;
        }
        Ok(choice)
    }

    /// What is decided for a daemon with this root directory; `None` if nothing is. Errors: it cannot be read.
    pub fn peek(root: &Path) -> Result<Option<Provider>, Error> {
        recorded(&root.join("network-mode"))
    }

    /// The provider for a pod that is about to be attached. Errors: the decision cannot be recorded.
    pub fn decide(&self) -> Result<Provider, Error> {
        let mut decided = self.lock();
        if let Some(provider) = *decided {
            return Ok(provider);
        }
        let found = cni::first_configuration(&self.conf_dir);
        let provider = Provider::by(found.as_deref());
        self.save(provider)
            .map_err(|error| Error::Record(self.record.clone(), error))?;
        *decided = Some(provider);
        tracing::info!(
            network = provider.name(),
            configuration = found.map(|path| path.display().to_string()),
            "the network of this node is decided (network.mode is auto)"
        );
        Ok(provider)
    }

    /// The provider, and whether it is decided; else the one that a pod would get now.
    pub fn look(&self) -> (bool, Provider) {
        match *self.lock() {
            Some(provider) => (true, provider),
            None => {
                let found = cni::first_configuration(&self.conf_dir);
                (false, Provider::by(found.as_deref()))
            }
        }
    }

    /// The same, for people.
    pub fn shown(&self) -> String {
        match (self.mode, self.look()) {
            (Mode::Fixed(provider), _) => provider.name().to_owned(),
            (Mode::Auto, (true, provider)) => format!("{} (auto)", provider.name()),
            (Mode::Auto, (false, provider)) => {
                format!(
                    "auto: {} unless that changes before the first pod",
                    provider.name()
                )
            }
        }
    }

    /// Replaces the file in one step.
    fn save(&self, provider: Provider) -> io::Result<()> {
        let new = self.record.with_extension("new");
        std::fs::write(&new, format!("{}\n", provider.name()))?;
        std::fs::rename(&new, &self.record)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Provider>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a file says was decided; `None` if it is absent, or empty after a loss of power.
fn recorded(path: &Path) -> Result<Option<Provider>, Error> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Record(path.to_owned(), error)),
    };
    match text.trim() {
        "" => Ok(None),
        name => match [Provider::Builtin, Provider::Cni]
            .into_iter()
            .find(|provider| provider.name() == name)
        {
            Some(provider) => Ok(Some(provider)),
            None => Err(Error::UnknownRecord {
                path: path.to_owned(),
                found: name.chars().take(64).collect(),
            }),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("coracle-choice-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("net.d")).unwrap();
        path
    }

    #[test]
    fn a_configuration_decides_before_the_first_pod_and_not_after_it() {
        let root = scratch("before");
        let conf_dir = root.join("net.d");
        let open = || Choice::open(Mode::Auto, &root, &conf_dir).unwrap();
        let early = open();
        assert_eq!(early.look(), (false, Provider::Builtin));
        assert_eq!(Choice::peek(&root).unwrap(), None);
        std::fs::write(conf_dir.join("10-net.conflist"), "{}").unwrap();
        assert_eq!(early.look(), (false, Provider::Cni));
        assert_eq!(early.decide().unwrap(), Provider::Cni);
        // It stays, without the configuration and over a restart.
        std::fs::remove_file(conf_dir.join("10-net.conflist")).unwrap();
        assert_eq!(early.decide().unwrap(), Provider::Cni);
        assert_eq!(open().shown(), "cni (auto)");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_first_pod_without_a_configuration_decides_for_the_built_in_network() {
        let root = scratch("first");
        let conf_dir = root.join("net.d");
        let open = |mode| Choice::open(mode, &root, &conf_dir).unwrap();
        assert_eq!(open(Mode::Auto).decide().unwrap(), Provider::Builtin);
        std::fs::write(conf_dir.join("10-net.conf"), "{}").unwrap();
        assert_eq!(open(Mode::Auto).look(), (true, Provider::Builtin));
        // An operator who says what he wants gets that.
        let cni = open(Mode::Fixed(Provider::Cni));
        assert_eq!(cni.decide().unwrap(), Provider::Cni);
        assert_eq!(Choice::peek(&root).unwrap(), Some(Provider::Builtin));
        std::fs::write(root.join("network-mode"), "bridge\n").unwrap();
        let refused = Choice::open(Mode::Auto, &root, &conf_dir).unwrap_err();
        assert!(refused.to_string().contains("\"bridge\""), "{refused}");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_configuration_at_the_start_decides_at_once() {
        let root = scratch("start");
        std::fs::write(root.join("net.d/10-net.conflist"), "{}").unwrap();
        let choice = Choice::open(Mode::Auto, &root, &root.join("net.d")).unwrap();
        assert_eq!(choice.look(), (true, Provider::Cni));
        assert_eq!(Choice::peek(&root).unwrap(), Some(Provider::Cni));
        std::fs::remove_dir_all(root).unwrap();
    }
}
