//! A plugin beside a daemon, and what it wrote down.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use coracle_tests::client::TIMEOUT;
use coracle_tests::daemon::Daemon;
use coracle_tests::tools;
use serde_json::Value;

/// Ends when it is dropped.
pub struct Plugin {
    child: Child,
    journal: PathBuf,
}

/// The socket of a daemon for plugins.
pub fn socket(daemon: &Daemon) -> PathBuf {
    daemon.scratch().dir().join("run/nri.sock")
}

impl Plugin {
    /// Starts a plugin with index 10 and waits until it is synchronised.
    pub async fn start(daemon: &Daemon, name: &str, flags: &[&str]) -> Plugin {
        Self::start_at(daemon, "10", name, flags).await
    }

    /// The same with another index.
    pub async fn start_at(daemon: &Daemon, index: &str, name: &str, flags: &[&str]) -> Plugin {
        let plugin = Self::spawn(daemon, index, name, flags);
        plugin.wait_for("Synchronize").await;
        plugin
    }

    /// Starts a plugin that may never be synchronised.
    pub fn spawn(daemon: &Daemon, index: &str, name: &str, flags: &[&str]) -> Plugin {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = BUILT.get_or_init(|| tools::build("nri-plugin.sh", &[]).unwrap());
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let journal = daemon.scratch().dir().join(format!("plugin-{count}"));
        let child = Command::new(program)
            .arg("-socket")
            .arg(socket(daemon))
            .args(["-idx", index, "-name", name, "-journal"])
            .arg(&journal)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Plugin { child, journal }
    }

    /// Everything that it wrote down; a line that is not whole yet is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.journal).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The first event of that name, once it has come.
    pub async fn wait_for(&self, name: &str) -> Value {
        let end = Instant::now() + TIMEOUT;
        while Instant::now() < end {
            if let Some(found) = self
                .events()
                .into_iter()
                .find(|event| event["event"] == name)
            {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {name} among {:?}", self.events());
    }

    /// Whether its process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
