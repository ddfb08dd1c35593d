//! Starts one container: turns its plan into the request that its pod's keeper carries out.
//!
//! Called by: its pod's driver. Calls: the compile cache, seccomp profiles, the keeper.
//! Invariant: the plan alone decides what a container process gets; image and request are not read again.
//! Must not know: how a plan is made, what follows a start.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use coracle_cgroup::{Cgroup, Exposure};
use coracle_control::keeper::{self, Keeper, StartOptions, StartPayload};
use coracle_lifecycle::{
    ContainerKind, Error, Kind, LinuxPlan, Payload, Plan, SeccompPlan, StartRequest, Started,
    counters,
};
use coracle_network as network;
use coracle_sandbox::profile::Profile;
use coracle_spec::id::ContainerId;
use coracle_spec::{ContainerSpec, Hooks, LinuxSpec, Root, SPEC_VERSION, WasmSpec, Workload};
use coracle_wasm::Compiled;
use tracing::{Instrument as _, info_span};

use super::{Host, blocking, log, pass, runtime_error};

impl Host {
    /// Has the keeper start a container. Its log file exists when this returns.
    /// Errors: StartFailed when the jail or the program failed; the container has then ended.
    pub async fn start(&self, request: StartRequest) -> Result<Started, Error> {
        let began = Instant::now();
        let kind = ContainerKind::from(&request.plan.payload);
        pass("start.log")?;
        let log = log::open(
            &self.paths,
            &self.config.log_root,
            &request.log_directory,
            &request.plan.log_path,
        )
        .await?;
        let plan = &request.plan;
        self.move_net_devices(&request).await?;
        let mut spec = self.spec(&request)?;
        let span = info_span!(target: "otel", "container.prepare");
        let payload = self.payload(&request, &mut spec).instrument(span).await?;
        let options = StartOptions {
            container: request.id.clone(),
            spec,
            payload,
            cgroup: self.entrance(plan)?,
            log,
        };
        counters::container_prepared(kind, began.elapsed());
        let began = Instant::now();
        pass("start.order")?;
        let span = info_span!(target: "otel", "container.spawn");
        let started = request.keeper.start(options, &self.parts.filters);
        let started = started.instrument(span).await;
        if started.is_ok() {
            counters::container_spawned(kind, began.elapsed());
        }
        start_result(&request.id, started)
    }

    /// Gives the pod the network devices of the container's plan, which it keeps until it is stopped.
    async fn move_net_devices(&self, request: &StartRequest) -> Result<(), Error> {
        let Payload::Linux(linux) = &request.plan.payload else {
            return Ok(());
        };
        if linux.net_devices.is_empty() {
            return Ok(());
        }
        let (devices, pin) = (linux.net_devices.clone(), self.pin(&request.pod));
        let directory = self.run_directory().join(request.pod.as_str());
        blocking("moving network devices into a pod", move || {
            let failed = |error| Error::because(Kind::StartFailed, "give devices", error);
            let netns = network::open_pin(&pin).map_err(failed)?;
            devices.iter().try_for_each(|device| {
                let names = (device.on_node.as_str(), device.in_pod.as_str());
                network::move_device(netns.as_fd(), names, &directory).map_err(failed)
            })
        })
        .await
    }

    /// Waits for the end of a start that an earlier daemon began. Errors: as of [`Host::start`].
    pub async fn await_launch(
        &self,
        keeper: &Keeper,
        container: &ContainerId,
    ) -> Result<Started, Error> {
        start_result(container, keeper.await_start(container).await)
    }

    /// The container's cgroup in the unified tree, into which its process is forked.
    fn entrance(&self, plan: &Plan) -> Result<Option<OwnedFd>, Error> {
        let opened = self.home(plan)?.clone_into_fd();
        opened.map_err(|error| {
            Error::because(Kind::Io, format!("open cgroup {}", plan.cgroup), error)
        })
    }

    /// The cgroup that a container's processes are in: its own, or the inner one.
    pub(super) fn home(&self, plan: &Plan) -> Result<Cgroup, Error> {
        let cgroup = self.parts.cgroups.open(&plan.cgroup);
        let cgroup = cgroup
            .map_err(|error| Error::because(Kind::Bug, format!("cgroup {}", plan.cgroup), error))?;
        Ok(match plan.exposure() {
            Exposure::Inner => cgroup.inner(),
            _ => cgroup,
        })
    }

    /// The request for the keeper; complete once [`Host::payload`] has added the payload.
    pub(super) fn spec(&self, request: &StartRequest) -> Result<ContainerSpec, Error> {
        let (plan, config) = (&request.plan, &request.config);
        let directory = self.layout.container_directory(&request.pod, &request.id);
        let cgroup = self.home(plan)?;
        Ok(ContainerSpec {
            version: SPEC_VERSION,
            pod: request.pod.clone(),
            id: request.id.clone(),
            workload: self.workload(request),
            root: Root {
                layers: plan.layers.clone(),
                upper: directory.join("upper"),
                work: directory.join("work"),
                readonly: config.readonly_rootfs,
            },
            mounts: plan.mounts.clone(),
            identity: plan.identity.clone(),
            cgroup_procs: cgroup.task_files(),
            memory_limit_bytes: plan.memory_limit_bytes,
            oom_score_adj: i32::try_from(config.resources.oom_score_adj.clamp(-1000, 1000))
                .unwrap_or(0),
            spawn: plan.spawn,
            staging: self.staging(),
        })
    }

    /// What the payload needs beside its spec: compiled code, or a seccomp filter, whose flags are set in `spec`.
    pub(super) async fn payload(
        &self,
        request: &StartRequest,
        spec: &mut ContainerSpec,
    ) -> Result<StartPayload, Error> {
        match &request.plan.payload {
            Payload::Wasm(wasm) => {
                let module = (wasm.module.as_path(), wasm.module_digest.as_str());
                let compiled = self.compiled_for(request, module).await?;
                open_code(compiled).await
            }
            Payload::Linux(linux) => {
                let filter = self.filter(linux).await?;
                let (filter, flags) = filter.unzip();
                if let Workload::Linux(linux) = &mut spec.workload {
                    linux.filter_flags = flags.unwrap_or(0);
                }
                Ok(StartPayload::Linux(filter))
            }
        }
    }

    /// The filter of a Linux program, built now unless it is cached, and the flags to load it with.
    async fn filter(&self, linux: &LinuxPlan) -> Result<Option<(OwnedFd, u32)>, Error> {
        let (profiles, seccomp) = (Arc::clone(&self.parts.profiles), linux.seccomp.clone());
        let (capabilities, floor) = (linux.jail.capabilities.bounding, linux.floor);
        blocking("building a seccomp filter", move || {
            let built = with_profile(&seccomp, |profile| {
                if profile.is_none() && floor.is_open() {
                    return Ok(None);
                }
                let filter = profiles.filter(profile, capabilities, floor)?;
                Ok(Some((filter, Profile::flags(profile))))
            })?;
            built.map_err(|error| runtime_error("build the seccomp filter", error))
        })
        .await
    }

    fn workload(&self, request: &StartRequest) -> Workload {
        let (plan, stdin) = (&request.plan, request.config.stdin);
        match &plan.payload {
            Payload::Wasm(wasm) => Workload::Wasm(Box::new(WasmSpec {
                kind: wasm.kind,
                args: plan.args.clone(),
                env: plan.env.clone(),
                working_dir: plan.working_dir.clone(),
                stdin,
                tty: request.config.tty,
                network: wasm.network.clone(),
                resolver: wasm.resolver.clone(),
                toolbox: None,
                server: wasm.server.clone(),
                diagnosis: wasm.diagnosis.clone(),
                wasi_p3: wasm.wasi_p3,
                rlimits: wasm.rlimits.clone(),
            })),
            Payload::Linux(linux) => Workload::Linux(Box::new(LinuxSpec {
                args: plan.args.clone(),
                env: plan.env.clone(),
                working_dir: plan.working_dir.clone(),
                stdin,
                jail: (*linux.jail).clone(),
                userns: request.userns,
                cgroups: self.parts.cgroups.mounts(),
                shm: self.shared_memory(&request.pod),
                filter_flags: 0,
                hooks: Hooks {
                    directory: self.config.run.clone(),
                    create_container: linux.hooks.clone(),
                },
            })),
        }
    }
}

/// Opens compiled code for a container process. Errors: it was removed since it was verified.
pub(super) async fn open_code(compiled: Arc<Compiled>) -> Result<StartPayload, Error> {
    blocking("opening compiled code", move || {
        let code = compiled.open();
        code.map(StartPayload::Wasm)
            .map_err(|error| runtime_error("open compiled code", error))
    })
    .await
}

fn start_result(
    container: &ContainerId,
    started: coracle_spec::error::Result<keeper::Started>,
) -> Result<Started, Error> {
    let started =
        started.map_err(|error| runtime_error(format!("start container {container}"), error))?;
    Ok(Started {
        process: Arc::new(started.process),
        started_at: started.started_at,
    })
}

/// Calls `use_it` with the profile of a plan; `None` is unconfined. Errors: it is not a valid profile.
fn with_profile<T>(
    plan: &SeccompPlan,
    use_it: impl FnOnce(Option<&Profile>) -> T,
) -> Result<T, Error> {
    match plan {
        SeccompPlan::Unconfined => Ok(use_it(None)),
        SeccompPlan::Default => Ok(use_it(Some(Profile::runtime_default()))),
        SeccompPlan::Localhost { profile } => {
            let parsed = Profile::parse(profile.as_bytes());
            let parsed = parsed.map_err(|e| runtime_error("read the seccomp profile", e))?;
            Ok(use_it(Some(&parsed)))
        }
    }
}
