//! Whether pods can be attached, and to which network: the configuration, its plugins on disk, and their STATUS.
//!
//! Called by: [`super::Cni`], for every pod and for every CRI Status call.
//! Invariants: a changed file counts from the next call on, without a restart and without polling; a pod always gets
//! the configuration that is on disk now; CRI Status never waits for a disk or a plugin for longer than [`TIMEOUT`].
//! Not here: pods.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::directory::{self, Fingerprint, Reading};
use super::error::{Error, plain};
use super::exec::Runner;
use super::invoke;
use super::list::NetworkList;
use super::verb::Verb;

/// How long CRI Status waits for a refresh before it answers from the last one.
const TIMEOUT: Duration = Duration::from_millis(100);
/// Least interval between two STATUS of the plugins. The kubelet calls CRI Status every five seconds.
const STATUS_INTERVAL: Duration = Duration::from_secs(3);
/// How many broken files a message names; it counts the others.
const NAMED_FILES: usize = 3;
/// Most characters of the reason for one broken file.
const MAX_REASON: usize = 300;

/// The network of new pods, and whether it is ready.
#[derive(Debug)]
pub struct Readiness {
    directory: PathBuf,
    runner: Runner,
    state: Mutex<State>,
    /// Held during a refresh for CRI Status.
    refreshing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    fingerprint: Option<Fingerprint>,
    network: Result<Arc<NetworkList>, String>,
    /// Result and time of the plugins' last STATUS.
    status: Option<(Instant, Result<(), String>)>,
}

impl Readiness {
    /// Reads nothing yet.
    pub fn new(directory: &Path, runner: Runner) -> Readiness {
        Readiness {
            directory: directory.to_owned(),
            runner,
            state: Mutex::new(State {
                fingerprint: None,
                network: Err("the network configuration was not read yet".to_owned()),
                status: None,
            }),
            refreshing: tokio::sync::Mutex::new(()),
        }
    }

    /// The network by the present configuration. Blocks on the disk.
    /// Errors: [`Error::NotReady`] with the path at fault, [`Error::NoPlugin`].
    pub fn network(&self) -> Result<Arc<NetworkList>, Error> {
        let fingerprint = directory::fingerprint(&self.directory).ok();
        let known = {
            let state = self.lock();
            (fingerprint.is_some() && state.fingerprint == fingerprint)
                .then(|| state.network.clone())
        };
        let (network, file) = match known {
            Some(known) => (known, None),
            None => self.read(),
        };
        let network = network
            .map_err(|why| Error::NotReady { why })
            .and_then(|network| self.installed(&network).map(|()| network));
        self.update(fingerprint, &network, file);
        network
    }

    /// Reads the network from the directory, with its file. Errors: why there is none.
    fn read(&self) -> (Result<Arc<NetworkList>, String>, Option<String>) {
        let judged = match directory::read(&self.directory) {
            Ok(reading) => self.choose(reading),
            Err(error) => Err(format!(
                "the directory of network configurations {} cannot be listed: {error}",
                self.directory.display()
            )),
        };
        match judged {
            Ok((network, file)) => (Ok(network), Some(file)),
            Err(why) => (Err(why), None),
        }
    }

    /// Keeps the result of a reading, and logs it if it has changed.
    fn update(
        &self,
        fingerprint: Option<Fingerprint>,
        network: &Result<Arc<NetworkList>, Error>,
        file: Option<String>,
    ) {
        // Installers write the file first and the plugins next: everything is read again then.
        let fingerprint = fingerprint.filter(|_| !matches!(network, Err(Error::NoPlugin { .. })));
        let network = network
            .as_ref()
            .map(Arc::clone)
            .map_err(|error| match error {
                Error::NotReady { why } => why.clone(),
                other => other.to_string(),
            });
        let mut state = self.lock();
        state.fingerprint = fingerprint;
        if state.network == network {
            return;
        }
        state.status = None;
        state.network = network.clone();
        drop(state);
        match network {
            Ok(network) => {
                tracing::info!(network = %network.name, version = network.version.as_str(), file, "new pods are attached to this network")
            }
            Err(why) => tracing::warn!(why, "there is no network for pods"),
        }
    }

    /// The network of a reading with its file. Errors: why there is none.
    fn choose(&self, reading: Reading) -> Result<(Arc<NetworkList>, String), String> {
        let named: Vec<String> = reading
            .broken
            .iter()
            .take(NAMED_FILES)
            .map(|(file, why)| format!("{}: {}", file.display(), plain(why, MAX_REASON)))
            .collect();
        let more = reading.broken.len() - named.len();
        let more = if more > 0 {
            format!("; {more} more")
        } else {
            String::new()
        };
        let broken = format!("{}{more}", named.join("; "));
        match reading.chosen {
            Some((file, list)) => {
                if !named.is_empty() {
                    tracing::warn!(broken, "skipped broken network configurations");
                }
                Ok((Arc::new(list), file.display().to_string()))
            }
            None if named.is_empty() => Err(format!(
                "no network configuration in {}; whoever installs the cluster's network puts a .conflist there",
                self.directory.display()
            )),
            None => Err(format!(
                "no valid network configuration in {}: {broken}",
                self.directory.display()
            )),
        }
    }

    fn installed(&self, network: &NetworkList) -> Result<(), Error> {
        for plugin in &network.plugins {
            self.runner.find(&network.name, &plugin.kind)?;
        }
        Ok(())
    }

    /// Why pods cannot be attached, for users to read; `None` if they can. Starts a refresh and waits briefly for it.
    pub async fn problem(self: &Arc<Self>) -> Option<String> {
        let this = Arc::clone(self);
        let fingerprint = tokio::spawn(async move { this.refresh().await });
        // A slower refresh completes in the background; the next call returns its result.
        let _ = tokio::time::timeout(TIMEOUT, fingerprint).await;
        self.last_problem()
    }

    fn last_problem(&self) -> Option<String> {
        let state = self.lock();
        match (&state.network, &state.status) {
            (Err(why), _) => Some(why.clone()),
            (Ok(network), None) if invoke::has_status(network) => Some(format!(
                "plugins of network {} have not reported yet whether they are ready",
                network.name
            )),
            (Ok(_), Some((_, Err(why)))) => Some(why.clone()),
            (Ok(_), _) => None,
        }
    }

    /// Reads the disk and runs STATUS, unless another refresh is running.
    async fn refresh(self: Arc<Self>) {
        let Ok(_only) = self.refreshing.try_lock() else {
            return;
        };
        let reader = Arc::clone(&self);
        let network = tokio::task::spawn_blocking(move || reader.network()).await;
        let Ok(Ok(network)) = network else { return };
        let is_fresh = |at: &Instant| at.elapsed() < STATUS_INTERVAL;
        let checked_at = self.lock().status.as_ref().map(|(at, _)| *at);
        if !invoke::has_status(&network) || checked_at.as_ref().is_some_and(is_fresh) {
            return;
        }
        let status = invoke::status(&self.runner, &network);
        let status = self.runner.observed(Verb::Status, status).await;
        let status = status.map_err(|error| error.to_string());
        let mut state = self.lock();
        // The status of a network that was replaced meanwhile is dropped.
        if state.network.as_ref().is_ok_and(|now| *now == network) {
            state.status = Some((Instant::now(), status));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use std::fs;

    use super::super::tests::Temp;
    use super::*;

    fn readiness(temp: &Temp) -> Arc<Readiness> {
        let runner = Runner {
            dirs: vec![temp.dir().join("bin")],
            limit: Duration::from_secs(120),
            observer: Arc::default(),
        };
        Arc::new(Readiness::new(&temp.dir().join("conf"), runner))
    }

    /// Waits until the problem is this one: on a slow machine a call returns what an earlier one has found.
    async fn becomes(readiness: &Arc<Readiness>, expected: Option<&str>) {
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let problem = readiness.problem().await;
            let is_so = match expected {
                None => problem.is_none(),
                Some(expected) => problem.as_ref().is_some_and(|why| why.contains(expected)),
            };
            if is_so {
                return;
            }
            assert!(Instant::now() < deadline, "never {expected:?}: {problem:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn write(temp: &Temp, name: &str, version: &str) {
        let text = format!(
            r#"{{"name": "{name}", "cniVersion": "{version}", "plugins": [{{"type": "p"}}]}}"#
        );
        fs::write(temp.dir().join("conf/10.conflist"), text).unwrap();
    }

    #[tokio::test]
    async fn the_network_becomes_ready_and_unready_as_files_come_and_go() {
        let temp = Temp::new();
        let readiness = readiness(&temp);
        becomes(&readiness, Some("conf cannot be listed")).await;
        fs::create_dir(temp.dir().join("conf")).unwrap();
        becomes(&readiness, Some("no network configuration in")).await;
        fs::write(temp.dir().join("conf/05.conflist"), "{").unwrap();
        becomes(&readiness, Some("05.conflist: it is no JSON")).await;
        write(&temp, "one", "1.0.0");
        becomes(&readiness, Some("find plugin p of network one")).await;
        fs::create_dir(temp.dir().join("bin")).unwrap();
        temp.script("bin/p", "exit 0");
        becomes(&readiness, None).await;
        assert_eq!(readiness.network().unwrap().name, "one");
        write(&temp, "two", "1.0.0");
        assert_eq!(readiness.network().unwrap().name, "two");
        fs::remove_file(temp.dir().join("bin/p")).unwrap();
        assert!(matches!(readiness.network(), Err(Error::NoPlugin { .. })));
        becomes(&readiness, Some("find plugin p")).await;
        temp.script("bin/p", "exit 0");
        becomes(&readiness, None).await;
        fs::remove_dir_all(temp.dir().join("conf")).unwrap();
        becomes(&readiness, Some("cannot be listed")).await;
    }

    #[tokio::test]
    async fn plugin_status_is_requested_without_blocking_callers() {
        let temp = Temp::new();
        fs::create_dir(temp.dir().join("conf")).unwrap();
        fs::create_dir(temp.dir().join("bin")).unwrap();
        let answer = temp.dir().join("answer");
        fs::write(&answer, format!("{}; exit 0", temp.until("up"))).unwrap();
        temp.script("bin/p", &format!(". {}", answer.display()));
        write(&temp, "one", "1.1.0");
        let readiness = readiness(&temp);
        let problem = readiness.problem().await.unwrap();
        assert!(problem.contains("have not reported yet"), "{problem}");
        fs::write(temp.dir().join("up"), "").unwrap();
        becomes(&readiness, None).await;
        fs::write(
            &answer,
            r#"echo '{"code": 50, "msg": "no uplink"}'; exit 1"#,
        )
        .unwrap();
        let why = "STATUS of plugin p for network one: no uplink (code 50)";
        becomes(&readiness, Some(why)).await;
        fs::write(&answer, "exit 0").unwrap();
        becomes(&readiness, None).await;
    }
}
