//! The HTTP server of a component that handles requests: where it listens, what it is held to.
//!
//! Called by: [`super::plan`]. Pure but for the number of the node's processors.
//! Invariants: a pod's annotations only narrow what its handler allows; a value that would do more is refused by name.
//! Not here: annotations' text, serving.

use coracle_images::Image;
use coracle_lifecycle::{ContainerConfig, Error, HttpConfig, PodRecord, Resources};
use coracle_spec::{HttpLimits, HttpServer, WasmKind};
use coracle_wasm::ModuleInfo;

use super::Host;
use super::errors::invalid;

/// Where a server listens for which nobody names a port.
const USUAL_PORT: u16 = 8080;
/// Most threads of a server.
const MAX_THREADS: usize = 64;

/// What is known of one server.
struct Server<'a> {
    /// The handler's settings, and its name.
    handler: (&'a HttpLimits, &'a str),
    /// What the pod says.
    pod: &'a HttpConfig,
    /// The container's environment.
    env: &'a [(String, String)],
    /// The TCP ports that the image exposes, lowest first.
    exposed: &'a [u16],
    /// The container's limits.
    resources: &'a Resources,
}

impl Host {
    /// The plan of the server of a container of `pod`. Errors: as of [`Server::plan`].
    pub(super) fn server(
        &self,
        pod: &PodRecord,
        container: &ContainerConfig,
        env: &[(String, String)],
        image: &Image,
    ) -> Result<HttpServer, Error> {
        let handler = self.config.live.get().handler_of(pod)?;
        Server {
            handler: (&handler.http, &handler.name),
            pod: &pod.config.http,
            env,
            exposed: &image.config.exposed_ports,
            resources: &container.resources,
        }
        .plan()
    }
}

/// Whether a component handles requests or runs as a program: what the pod's annotation says, else the world that its
/// image is made for, else its exports, of which `wasi:cli/run` comes first. Core modules are programs.
///
/// Errors: Invalid, for a component that has not the export to do so.
pub(super) fn is_served(
    info: &ModuleInfo,
    pod: &HttpConfig,
    target: Option<&str>,
) -> Result<bool, Error> {
    if info.kind == WasmKind::Module {
        return Ok(false);
    }
    let annotated = pod.serve.map(|serve| {
        let source = format!("annotation http.coracle.dev/serve is {serve}");
        (serve, source)
    });
    let targeted = || {
        let target = target?;
        let source = format!("component.target of its image is {target:?}");
        Some((is_server(target)?, source))
    };
    match annotated.or_else(targeted) {
        None => Ok(info.serves_http),
        Some((true, _)) if info.serves_http || info.can_serve_http => Ok(true),
        Some((false, _)) if !info.serves_http => Ok(false),
        Some((serve, source)) => Err(invalid(format!(
            "{source}, and its component exports no {}",
            match serve {
                true => "wasi:http/incoming-handler@0.2",
                false => "wasi:cli/run@0.2",
            }
        ))),
    }
}

impl Host {
    /// Refuses a component of WASI 0.3 where the handler of its pod has that off. Errors: Invalid, naming the setting.
    pub(super) fn check_wasi_version(
        &self,
        pod: &PodRecord,
        info: &ModuleInfo,
    ) -> Result<(), Error> {
        if !info.wasi_p3 {
            return Ok(());
        }
        let handler = self.config.live.get().handler_of(pod)?;
        if handler.wasi_p3 {
            return Ok(());
        }
        let handler = handler.name;
        Err(invalid(format!(
            "its component is for WASI 0.3, which is off on this node, for the engine has no security fixes for it between releases: build it for WASI 0.2, or have the operator set handlers.{handler}.wasi_p3 = true"
        )))
    }
}

/// Whether components of this world handle requests; `None` for a world of somebody's own, which says nothing about it.
fn is_server(world: &str) -> Option<bool> {
    match world.split('@').next()? {
        "wasi:http/proxy"
        | "wasi:http/incoming-handler"
        | "wasi:http/service"
        | "wasi:http/handler" => Some(true),
        "wasi:cli/command" | "wasi:cli/run" => Some(false),
        _ => None,
    }
}

impl Server<'_> {
    /// The plan of the server. Errors: Invalid, naming an annotation that asks for more than the handler allows, or a
    /// `PORT` that is none.
    fn plan(&self) -> Result<HttpServer, Error> {
        let (own, pod) = (self.handler.0, self.pod);
        let limits = HttpLimits {
            deadline_s: self.narrow(
                "deadline-seconds",
                "deadline_s",
                pod.deadline_s,
                own.deadline_s,
            )?,
            max_requests: self.narrow(
                "max-requests",
                "max_requests",
                pod.max_requests,
                own.max_requests,
            )?,
            max_instance_requests: pod
                .max_instance_requests
                .unwrap_or(own.max_instance_requests),
            request_memory_bytes: self.narrow(
                "request-memory-bytes",
                "request_memory_bytes",
                pod.request_memory_bytes,
                own.request_memory_bytes,
            )?,
            access_log: pod.access_log.unwrap_or(own.access_log),
            request_ids: pod.request_ids.unwrap_or(own.request_ids),
            idle_s: self.idle()?,
            ..own.clone()
        };
        Ok(HttpServer {
            port: self.port()?,
            threads: threads(self.resources),
            limits,
        })
    }

    /// After how long a server sleeps: what the pod asks for, unless that is later than the handler says.
    fn idle(&self) -> Result<u32, Error> {
        let most = self.handler.0.idle_s;
        match self.pod.idle_s {
            None => Ok(most),
            Some(asked) if self.pod.idle_is_granted || most == 0 => Ok(asked),
            Some(asked) if (1..=most).contains(&asked) => Ok(asked),
            Some(asked) => Err(invalid(format!(
                "annotation coracle.dev/idle-seconds is {asked}, and handlers.{0}.http.idle_s of this node allows 1 to {most}; the operator can list the annotation in handlers.{0}.annotations",
                self.handler.1
            ))),
        }
    }

    /// What the pod asks for, else the handler's value, which is the most there may be unless it is 0.
    fn narrow<T: Copy + PartialOrd + Default + std::fmt::Display>(
        &self,
        annotation: &str,
        setting: &str,
        asked: Option<T>,
        most: T,
    ) -> Result<T, Error> {
        match asked {
            None => Ok(most),
            Some(asked) if asked <= most || most == T::default() => Ok(asked),
            Some(asked) => Err(invalid(format!(
                "annotation http.coracle.dev/{annotation} is {asked}, and handlers.{}.http.{setting} of this node allows {most}",
                self.handler.1
            ))),
        }
    }

    fn port(&self) -> Result<u16, Error> {
        if let Some(port) = self.pod.port {
            return Ok(port);
        }
        let named = self.env.iter().find(|(name, _)| name == "PORT");
        if let Some((_, text)) = named.filter(|(_, text)| !text.is_empty()) {
            return match text.parse() {
                Ok(port) if port != 0 => Ok(port),
                _ => Err(invalid(format!(
                    "environment variable PORT is {text:?}, and the component listens where it says: it must be a number from 1 to 65535"
                ))),
            };
        }
        Ok(self.exposed.first().copied().unwrap_or(USUAL_PORT))
    }
}

/// As many threads as the container may use processors.
fn threads(resources: &Resources) -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let allowed = match (resources.cpu_quota, resources.cpu_period) {
        (quota, period) if quota > 0 && period > 0 => {
            usize::try_from(quota.saturating_add(period - 1) / period).unwrap_or(usize::MAX)
        }
        _ => processors,
    };
    let threads = allowed.min(processors).clamp(1, MAX_THREADS);
    u16::try_from(threads).unwrap_or(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    fn plan(pod: &HttpConfig, env: &[(&str, &str)], exposed: &[u16]) -> Result<HttpServer, Error> {
        let env: Vec<(String, String)> = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        Server {
            handler: (&HttpLimits::default(), "coracle"),
            pod,
            env: &env,
            exposed,
            resources: &Resources::default(),
        }
        .plan()
    }

    #[test]
    fn the_port_is_the_pods_then_the_environments_then_the_images() {
        let none = HttpConfig::default();
        let pod = HttpConfig {
            port: Some(1),
            ..HttpConfig::default()
        };
        let env = [("PORT", "2")];
        let port = |pod, env: &[_], exposed: &[u16]| plan(pod, env, exposed).unwrap().port;
        assert_eq!(port(&pod, &env, &[3]), 1);
        assert_eq!(port(&none, &env, &[3]), 2);
        assert_eq!(port(&none, &[("PORT", "")], &[3, 4]), 3);
        assert_eq!(port(&none, &[], &[]), 8080);
        for odd in ["0", "http", "65536", "80/tcp"] {
            let refused = plan(&none, &[("PORT", odd)], &[]).unwrap_err();
            assert!(refused.to_string().contains("PORT"), "{refused}");
        }
    }

    #[test]
    fn a_pod_narrows_and_does_no_more() {
        let asks = |deadline, memory| HttpConfig {
            deadline_s: Some(deadline),
            request_memory_bytes: Some(memory),
            ..HttpConfig::default()
        };
        let plan = |pod: &HttpConfig| plan(pod, &[], &[]);
        let narrowed = plan(&asks(5, 65_536)).unwrap();
        // Without a limit of the handler's there is nothing to widen.
        assert_eq!(
            (
                narrowed.limits.deadline_s,
                narrowed.limits.request_memory_bytes
            ),
            (5, 65_536)
        );
        let refused = plan(&asks(61, 65_536)).unwrap_err().to_string();
        assert!(
            refused.contains("deadline-seconds is 61")
                && refused.contains("handlers.coracle.http.deadline_s")
                && refused.contains("allows 60"),
            "{refused}"
        );
    }

    #[test]
    fn a_server_sleeps_no_later_than_the_handler_says_unless_that_is_granted() {
        let idle = |own, asked, idle_is_granted| {
            let pod = HttpConfig {
                idle_s: asked,
                idle_is_granted,
                ..HttpConfig::default()
            };
            let handler = HttpLimits {
                idle_s: own,
                ..HttpLimits::default()
            };
            let server = Server {
                handler: (&handler, "coracle"),
                pod: &pod,
                env: &[],
                exposed: &[],
                resources: &Resources::default(),
            };
            server.plan().map(|server| server.limits.idle_s)
        };
        assert_eq!(idle(0, None, false).unwrap(), 0);
        assert_eq!(idle(0, Some(5), false).unwrap(), 5);
        assert_eq!(idle(30, None, false).unwrap(), 30);
        assert_eq!(idle(30, Some(30), false).unwrap(), 30);
        for later in [0, 31] {
            assert_eq!(idle(30, Some(later), true).unwrap(), later);
            let refused = idle(30, Some(later), false).unwrap_err().to_string();
            for said in [
                "idle-seconds is",
                "allows 1 to 30",
                "handlers.coracle.annotations",
            ] {
                assert!(refused.contains(said), "{refused}");
            }
        }
    }

    #[test]
    fn threads_follow_the_cpu_limit() {
        let of = |cpu_quota, cpu_period| {
            threads(&Resources {
                cpu_quota,
                cpu_period,
                ..Resources::default()
            })
        };
        assert_eq!(of(50_000, 100_000), 1);
        assert_eq!(of(100_000, 100_000), 1);
        assert_eq!(of(0, 100_000), of(-1, 100_000));
        assert!(of(200_000, 100_000) <= 2 && of(1 << 40, 100_000) == of(0, 0));
    }
}
