//! Kills at named places and at random. Afterwards every acknowledged object is there with the right state, no exit
//! code is lost, and nothing is left over.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::client::{Cri, container};
use coracle_tests::daemon::{self, Daemon};
use coracle_tests::dice::Dice;
use coracle_tests::guests;
use coracle_tests::procs::{self, Role};
use coracle_tests::push::{Image, Packing, file};
use coracle_tests::retry;
use tonic::{Code, Status};

use crate::site::{daemon, failing_daemon, images, tool};

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

/// One pod's life with a kill in it: what was asked, what was acknowledged.
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
            restart_asked: Arc::new(AtomicBool::new(false)),
            harmed: self.harmed,
        }
    }

    /// Runs a life whose site kills whoever reaches it, once, while bringing the daemon back whenever it has died.
    async fn with_restarts(&mut self, site: &str, marked: usize, life: Life) -> Result<(), String> {
        let asked = Arc::clone(&life.restart_asked);
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
            if asked.swap(false, Ordering::SeqCst) {
                self.daemon.kill();
            }
            self.revive().await?;
        }
    }

    /// Runs a life, kills the victims as soon as the site is reached, and brings the daemon back if it was one.
    async fn with_kill(&mut self, site: &str, marked: usize, life: Life) -> Result<(), String> {
        let asked = Arc::clone(&life.restart_asked);
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
            if asked.swap(false, Ordering::SeqCst) {
                self.daemon.kill();
            }
            self.revive().await?;
        }
    }
}

/// A pod's whole life as a kubelet would drive it: each call is tried again until it is answered.
struct Life {
    cri: Cri,
    pod: cri::PodSandboxConfig,
    salt: String,
    /// How long it waits before the daemon is killed.
    pause: Duration,
    restart_asked: Arc<AtomicBool>,
    harmed: bool,
}

impl Life {
    async fn live(self) -> Result<(), String> {
        let module = guests::nothing(&self.salt).map_err(|e| e.to_string())?;
        let image = Image::wasi(
            &[file("m.wasm", 0o644, &module)],
            Packing::Gzip,
            &["/m.wasm"],
        );
        let pushed =
            image.and_then(|image| image.push(images().registry.host(), "cross", "latest"));
        let pushed = pushed.map_err(|e| e.to_string())?;
        self.retry("pull", async || {
            self.cri.pull(&pushed.by_digest).await.map(drop)
        })
        .await?;
        let cri = &self.cri;
        let pod = self
            .retry("run", async || retry::run_pod(cri, &self.pod).await)
            .await?;
        let mut ids = Vec::new();
        for (name, args) in [
            ("a", &["sleep"][..]),
            ("b", &["sleep"]),
            ("c", &["exit", "5"]),
        ] {
            let config = container(name, tool(), args);
            let id = self
                .tolerate("create", async || {
                    retry::create(cri, &pod, &config, &self.pod).await
                })
                .await?;
            let Some(id) = id else { continue };
            self.tolerate("start", async || retry::start(cri, &id).await)
                .await?;
            ids.push((name, id));
        }
        if let Some((_, id)) = ids.iter().find(|(name, _)| *name == "c") {
            self.expect_exit(id, 5).await?;
        }
        tokio::time::sleep(self.pause).await;
        // The next daemon has to find all this again.
        self.restart_asked.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let listed = self
            .retry("list", async || cri.list_pods(None).await)
            .await?;
        if !listed.iter().any(|listed| listed.id == pod) {
            return Err(format!("pod {pod} was acknowledged and is not in the list"));
        }
        for (name, id) in &ids {
            let status = self.retry("status", async || cri.status(id).await).await?;
            if *name != "c"
                && !self.harmed
                && status.state() != cri::ContainerState::ContainerRunning
            {
                return Err(format!(
                    "container {name} was started and is {:?} {}",
                    status.state(),
                    status.reason
                ));
            }
        }
        for (name, id) in &ids {
            let grace = if *name == "a" { 5 } else { 0 };
            self.retry("stop", async || cri.stop(id, grace).await)
                .await?;
        }
        if let Some((_, id)) = ids.first() {
            self.retry("remove", async || cri.remove(id).await).await?;
        }
        self.retry("stop pod", async || cri.stop_pod(&pod).await)
            .await?;
        self.retry("remove pod", async || cri.remove_pod(&pod).await)
            .await?;
        self.retry("remove image", async || {
            cri.remove_image(&pushed.by_digest).await
        })
        .await
    }

    /// The exit code of a container whose start was acknowledged is never lost, only replaced by a kill.
    async fn expect_exit(&self, id: &str, code: i32) -> Result<(), String> {
        let status = self
            .retry("wait", async || self.cri.wait_exit(id).await)
            .await?;
        let killed = self.harmed && status.exit_code == 137;
        if status.exit_code == code || killed || status.reason == "StartError" && self.harmed {
            return Ok(());
        }
        Err(format!(
            "container {id} exited {} {} instead of {code}",
            status.exit_code, status.reason
        ))
    }

    /// Calls until there is an answer; a daemon that is away or dies on the way is asked again.
    async fn retry<T>(
        &self,
        what: &str,
        call: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<T, String> {
        retry::until_answered(what, call).await
    }

    /// The same, but a pod that lost its keeper or a guest may refuse for good.
    async fn tolerate<T>(
        &self,
        what: &str,
        call: impl AsyncFn() -> Result<T, Status>,
    ) -> Result<Option<T>, String> {
        if !self.harmed {
            return self.retry(what, call).await.map(Some);
        }
        for _ in 0..20 {
            match call().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(refusal) if refusal.code() == Code::FailedPrecondition => return Ok(None),
                Err(_) => tokio::time::sleep(Duration::from_millis(30)).await,
            }
        }
        Ok(None)
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

#[tokio::test]
async fn two_hundred_pods_live_and_die_under_random_kills() {
    tokio::task::LocalSet::new().run_until(random_kills()).await;
}

async fn random_kills() {
    const CYCLES: usize = 200;
    let (mut dice, seed) = Dice::fresh();
    let mut daemon = daemon().await;
    let left = Arc::new(AtomicUsize::new(CYCLES));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..4 {
        let (cri, left) = (daemon.cri(), Arc::clone(&left));
        let pods: Vec<_> = (0..CYCLES)
            .map(|n| daemon.pod(&format!("w{worker}-{n}")))
            .collect();
        workers.spawn_local(async move {
            for pod in pods {
                if left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                    .is_err()
                {
                    break;
                }
                cycle(&cri, pod).await?;
            }
            Ok::<_, String>(())
        });
    }
    loop {
        let pause = Duration::from_millis(60 + dice.below(120));
        match tokio::time::timeout(pause, workers.join_next()).await {
            Ok(None) => break,
            Ok(Some(done)) => done
                .unwrap()
                .unwrap_or_else(|why| panic!("seed {seed}: {why}")),
            Err(_) => kill_one(&mut daemon, &mut dice).await,
        }
    }
    daemon
        .finish()
        .await
        .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
}

async fn kill_one(daemon: &mut Daemon, dice: &mut Dice) {
    let role = [Role::Daemon, Role::Spawner, Role::Keeper, Role::Guest][dice.below(4) as usize];
    if role == Role::Daemon {
        daemon.restart().await.unwrap();
        return;
    }
    let candidates = daemon.processes(role);
    if !candidates.is_empty() {
        procs::kill(candidates[dice.below(candidates.len() as u64) as usize].pid);
    }
}

/// One pod with one container that exits 5, from nothing to nothing. A kill on the way may end it with 137.
async fn cycle(cri: &Cri, config: cri::PodSandboxConfig) -> Result<(), String> {
    let name = config
        .metadata
        .as_ref()
        .map(|m| m.name.clone())
        .unwrap_or_default();
    let salt = String::new();
    let life = Life {
        cri: cri.clone(),
        pod: config,
        salt,
        pause: Duration::ZERO,
        restart_asked: Arc::default(),
        harmed: true,
    };
    let pod = life
        .retry("run", async || retry::run_pod(cri, &life.pod).await)
        .await?;
    let workload = container("c", tool(), &["exit", "5"]);
    if let Some(id) = life
        .tolerate("create", async || {
            retry::create(cri, &pod, &workload, &life.pod).await
        })
        .await?
    {
        let started = life
            .tolerate("start", async || retry::start(cri, &id).await)
            .await?;
        if started.is_some() {
            life.expect_exit(&id, 5)
                .await
                .map_err(|why| format!("{name}: {why}"))?;
        }
    }
    life.retry("stop pod", async || cri.stop_pod(&pod).await)
        .await?;
    life.retry("remove pod", async || cri.remove_pod(&pod).await)
        .await?;
    let listed: BTreeSet<_> = life
        .retry("list", async || cri.list_pods(None).await)
        .await?
        .into_iter()
        .map(|p| p.id)
        .collect();
    if listed.contains(&pod) {
        Err(format!("{name}: removed pod {pod} is still listed"))
    } else {
        Ok(())
    }
}
