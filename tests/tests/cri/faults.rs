//! Kills at named places and at random. Afterwards every acknowledged object is there with the right state, no exit
//! code is lost, and nothing is left over.

mod life;
mod random;

use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_tests::client::Cri;
use coracle_tests::daemon::{self, Daemon};
use coracle_tests::procs::{self, Role};
use life::Life;

use crate::site::failing_daemon;

/// Every failpoint site, from the binary itself; with `CORACLE_TEST_SITE` only those that begin with its value.
fn sites() -> Vec<String> {
    let out = Command::new(daemon::failpoints_binary().unwrap())
        .arg("failpoints")
        .output()
        .unwrap();
    let sites: Vec<String> = String::from_utf8(out.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    assert!(sites.len() > 30, "`coracle failpoints` printed {sites:?}");
    let chosen = std::env::var("CORACLE_TEST_SITE").unwrap_or_default();
    sites
        .into_iter()
        .filter(|site| site.starts_with(&chosen))
        .collect()
}

/// Who is killed while a step stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The process that reaches the site, by its own hand.
    Itself,
    /// The processes of this role, from outside.
    All(Role),
}

/// One pod's life with a kill in it: what was requested, what was acknowledged.
struct Crossing {
    daemon: Daemon,
    cri: Cri,
    victim: Victim,
    /// Whether a keeper or guest of the pod may be among the killed: then its containers may end with 137.
    harmed: bool,
}

impl Crossing {
    /// Crosses one site: a whole life of a pod, with the kill where the site stands in it.
    async fn cross(&mut self, number: usize, site: &str) -> Result<(), String> {
        let action = if self.victim == Victim::Itself {
            "kill"
        } else {
            "delay:150"
        };
        self.daemon
            .plan(&format!("{site} {action}\n"))
            .map_err(|e| e.to_string())?;
        let marked = self.daemon.reached().len();
        let life = self.life(number, site);
        let done = match self.victim {
            Victim::Itself => self.with_restarts(site, marked, life).await,
            Victim::All(_) => self.with_kill(site, marked, life).await,
        };
        self.daemon.plan("").map_err(|e| e.to_string())?;
        self.revive().await?;
        let reached = self.daemon.reached();
        if !reached[marked..].iter().any(|reached| reached == site) {
            return Err("the site was never reached".into());
        }
        done?;
        self.cri
            .remove_all_pods()
            .await
            .map_err(|e| format!("clean up: {e}"))?;
        self.daemon.expect_no_leak().await
    }

    async fn revive(&mut self) -> Result<(), String> {
        if procs::is_alive(self.daemon.pid()) {
            return Ok(());
        }
        if self.daemon.restart().await.is_ok() {
            return Ok(());
        }
        // It died of the site itself, on its way up; the next one finds no plan.
        self.daemon.plan("").map_err(|e| e.to_string())?;
        self.daemon.restart().await.map_err(|e| e.to_string())
    }

    /// The steps of one pod's life. They run beside the kills, so they own all they need.
    fn life(&self, number: usize, site: &str) -> Life {
        // Records are synced in the background, a fifth of a second after they were saved.
        let in_background = site.starts_with("sync.");
        Life {
            pause: Duration::from_millis(if in_background { 500 } else { 0 }),
            cri: self.cri.clone(),
            pod: self.daemon.pod(&format!("cross-{number}")),
            salt: format!("{:?}-{number}", self.victim),
            restart_requested: Arc::new(AtomicBool::new(false)),
            harmed: self.harmed,
        }
    }

    /// Runs a life whose site kills whoever reaches it, once, while bringing the daemon back whenever it has died.
    async fn with_restarts(&mut self, site: &str, marked: usize, life: Life) -> Result<(), String> {
        let restart = Arc::clone(&life.restart_requested);
        let mut running = std::pin::pin!(life.live());
        loop {
            tokio::select! {
                done = &mut running => return done,
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            if self.daemon.reached()[marked..]
                .iter()
                .any(|reached| reached == site)
            {
                self.daemon.plan("").map_err(|e| e.to_string())?;
            }
            if restart.swap(false, Ordering::SeqCst) {
                self.daemon.kill();
            }
            self.revive().await?;
        }
    }

    /// Runs a life, kills the victims as soon as the site is reached, and brings the daemon back if it was one.
    async fn with_kill(&mut self, site: &str, marked: usize, life: Life) -> Result<(), String> {
        let restart = Arc::clone(&life.restart_requested);
        let mut running = std::pin::pin!(life.live());
        let mut killed = false;
        loop {
            tokio::select! {
                done = &mut running => return done,
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            if !killed
                && self.daemon.reached()[marked..]
                    .iter()
                    .any(|reached| reached == site)
            {
                killed = true;
                let Victim::All(role) = self.victim else {
                    continue;
                };
                for process in self.daemon.processes(role) {
                    procs::kill(process.pid);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
                self.daemon.plan("").map_err(|e| e.to_string())?;
            }
            if restart.swap(false, Ordering::SeqCst) {
                self.daemon.kill();
            }
            self.revive().await?;
        }
    }
}

async fn cross_every_site(victim: Victim, harmed: bool) {
    let daemon = failing_daemon().await;
    let mut crossing = Crossing {
        cri: daemon.cri(),
        daemon,
        victim,
        harmed,
    };
    let mut failures = Vec::new();
    for (number, site) in sites().iter().enumerate() {
        if let Err(why) = crossing.cross(number, site).await {
            let failure = format!("{site} with {victim:?} killed: {why}");
            // Told at once, since what the test runner holds back comes minutes later.
            let _ = writeln!(std::io::stderr(), "{failure}");
            failures.push(failure);
            // The next site begins from a clean daemon.
            let daemon = failing_daemon().await;
            crossing = Crossing {
                cri: daemon.cri(),
                daemon,
                ..crossing
            };
        }
    }
    assert!(
        failures.is_empty(),
        "{} sites fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
    crossing.daemon.finish().await.unwrap();
}

#[tokio::test]
async fn every_site_survives_a_kill_of_whoever_reaches_it() {
    cross_every_site(Victim::Itself, true).await;
}

#[tokio::test]
async fn every_site_survives_a_kill_of_the_daemon() {
    cross_every_site(Victim::All(Role::Daemon), false).await;
}

#[tokio::test]
async fn every_site_survives_a_kill_of_the_spawner() {
    cross_every_site(Victim::All(Role::Spawner), false).await;
}

#[tokio::test]
async fn every_site_survives_a_kill_of_the_keeper() {
    cross_every_site(Victim::All(Role::Keeper), true).await;
}

#[tokio::test]
async fn every_site_survives_a_kill_of_the_guests() {
    cross_every_site(Victim::All(Role::Guest), true).await;
}
