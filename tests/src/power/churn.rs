//! The churn in the machine: pods with jobs and long programs, pulls and removals. Each is reported after the daemon has
//! answered.
//!
//! Called by: [`super::guest`]. Invariant: a removal is announced before it begins, so that the host no longer expects the
//! object. Must not know: when the power goes.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_proto::runtime::v1 as cri;
use cri::ContainerState::ContainerExited;

use super::guest::{Order, Voice, WORKERS, container, sandbox};
use crate::Outcome;
use crate::client::Cri;
use crate::dice::Dice;

/// Addresses that pods have now.
#[derive(Clone, Default)]
pub(super) struct Addresses(Arc<Mutex<HashSet<String>>>);

impl Addresses {
    fn take(&self, address: &str) -> Outcome<()> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.insert(address.to_owned()) {
            true => Ok(()),
            false => Err(format!("{address} was given to two pods").into()),
        }
    }

    fn give_back(&self, address: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(address);
    }
}

/// One of those who churn.
pub(super) struct Worker {
    pub(super) cri: Cri,
    pub(super) voice: Voice,
    pub(super) order: Arc<Order>,
    pub(super) addresses: Addresses,
    pub(super) number: usize,
}

impl Worker {
    pub(super) async fn churn(self) -> Outcome<()> {
        let (mut dice, _) = Dice::fresh();
        for round in 0.. {
            let name = format!("c{}-{}-{round}", self.order.cut, self.number);
            let mine = self.order.offers.iter().skip(self.number).step_by(WORKERS);
            let image = mine.clone().nth(round % mine.count()).ok_or("no image")?;
            self.cri.pull(image).await?;
            self.voice.say(&format!("pulled {image}"));
            let (pod, config) = sandbox(&self.cri, &name).await?;
            let address = self
                .cri
                .pod_status(&pod)
                .await?
                .network
                .unwrap_or_default()
                .ip;
            self.addresses.take(&address)?;
            if dice.percent(60) {
                self.job(&name, image, (&pod, &config), dice.below(200) as i32)
                    .await?;
            }
            if dice.percent(60) {
                let long = container("long", image, "exec /busybox sleep 3600");
                self.cri.create_started(&pod, &long, &config).await?;
            }
            if dice.percent(30) && !self.has_job(&pod).await? {
                self.addresses.give_back(&address);
                self.cri.stop_pod(&pod).await?;
                self.cri.remove_pod(&pod).await?;
                self.voice.say(&format!("removed {pod}"));
                if dice.percent(50) {
                    self.voice.announce(&format!("unpulling {image}")).await;
                    self.cri.remove_image(image).await?;
                }
            }
        }
        Ok(())
    }

    async fn has_job(&self, pod: &str) -> Outcome<bool> {
        let all = self.cri.list(None).await?;
        Ok(all.iter().any(|container| {
            container.pod_sandbox_id == pod && container.state() == ContainerExited
        }))
    }

    /// Runs a job to its end in a pod, and reports it.
    async fn job(
        &self,
        name: &str,
        image: &str,
        (pod, config): (&str, &cri::PodSandboxConfig),
        code: i32,
    ) -> Outcome<()> {
        let script =
            format!("echo run >>/runs/{name}; /busybox fsync /runs/{name} /runs; exit {code}");
        let job = container("job", image, &script);
        let id = self.cri.create_started(pod, &job, config).await?;
        let status = self.cri.wait_exit(&id).await?;
        if status.exit_code != code {
            let why = format!(
                "job {name} exited {}, not {code}: {}",
                status.exit_code, status.message
            );
            return Err(why.into());
        }
        self.voice.say(&format!("exited {id} {code} {name}"));
        Ok(())
    }
}
