//! Reads image configs: untrusted JSON in, checked values out. Pure.
//!
//! Place in the flow: after the manifest, before any layer is fetched, so that an image this node cannot run
//! costs no download.
//! Invariants: one diff id per layer, each a sha256; every text that is kept of a config is bounded, and all together are.
//! Not here: network, disk; whether a value is valid for running the image.

use std::collections::BTreeSet;

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::config::Limits;
use crate::error::Error;
use crate::manifest::{Blob, Platform, json};
use crate::reference::Digest;
use crate::run_config::{RunConfig, TEXT_BYTES};

/// Longest name of a world. Bytes.
const MAX_TARGET_BYTES: usize = 256;

/// Longest `User`: the names of a user and a group, each as long as the kernel's interfaces take. Bytes.
const MAX_USER_BYTES: u64 = 512;
/// Longest `WorkingDir`: PATH_MAX. Bytes.
const MAX_WORKING_DIR_BYTES: u64 = 4096;
/// Longest `StopSignal`. Bytes.
const MAX_STOP_SIGNAL_BYTES: u64 = 64;

/// What is read of a config of type `application/vnd.wasm.config.v0+json`.
#[derive(Deserialize)]
struct Artifact {
    component: Option<ComponentConfig>,
}

#[derive(Deserialize)]
struct ComponentConfig {
    target: Option<String>,
}

/// The config of an image of archives.
#[derive(Debug)]
pub(crate) struct Config {
    pub platform: Platform,
    pub run: RunConfig,
    pub diff_ids: Vec<Digest>,
}

/// Reads an image config. Errors: not JSON, wrong digests, too much of it, or not one diff id a layer.
pub(crate) fn parse_config(
    what: &str,
    bytes: &[u8],
    layers: usize,
    limits: &Limits,
) -> Result<Config, Error> {
    let config: ImageConfiguration = json(what, bytes)?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|id| {
            id.parse()
                .map_err(|source| Error::invalid(what, format!("a diff id is unusable: {source}")))
        })
        .collect::<Result<Vec<Digest>, _>>()?;
    if diff_ids.len() != layers {
        let problem = format!(
            "it lists {} diff ids, the manifest {layers} layers",
            diff_ids.len()
        );
        return Err(Error::invalid(what, problem));
    }
    let platform = Platform {
        os: config.os().to_string().to_ascii_lowercase(),
        architecture: config.architecture().to_string().to_ascii_lowercase(),
        variant: config.variant().clone(),
    };
    let run = config.config().clone().map(run_config).unwrap_or_default();
    check_size(what, &run, limits)?;
    Ok(Config {
        platform,
        run,
        diff_ids,
    })
}

/// Errors: [`Error::Limit`] for more text than any container needs.
fn check_size(what: &str, run: &RunConfig, limits: &Limits) -> Result<(), Error> {
    for (field, text, limit, allowed) in [
        ("User", &run.user, "of a User", MAX_USER_BYTES),
        (
            "WorkingDir",
            &run.working_dir,
            "of a WorkingDir",
            MAX_WORKING_DIR_BYTES,
        ),
        (
            "StopSignal",
            &run.stop_signal,
            "of a StopSignal",
            MAX_STOP_SIGNAL_BYTES,
        ),
    ] {
        let bytes = text.len() as u64;
        if bytes > allowed {
            let what = format!("{what} with {bytes} bytes of {field}");
            return Err(Error::Limit {
                what,
                limit,
                allowed,
            });
        }
    }
    let bytes = run.weight();
    if bytes > limits.max_run_config_bytes {
        let what = format!(
            "{what} with {bytes} bytes of environment, arguments, volumes and labels, \
             {TEXT_BYTES} for each besides its own"
        );
        return Err(Error::Limit {
            what,
            limit: "max_run_config_bytes",
            allowed: limits.max_run_config_bytes,
        });
    }
    Ok(())
}

fn run_config(config: oci_spec::image::Config) -> RunConfig {
    let mut volumes = config.volumes().clone().unwrap_or_default();
    volumes.sort();
    RunConfig {
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        env: config.env().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
        volumes,
        labels: config
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
        exposed_ports: tcp_ports(&config.exposed_ports().clone().unwrap_or_default()),
        target: None,
    }
}

/// The world that a config of the CNCF artifact states for its component. A config that cannot be read states none, for
/// nothing else of it is used; nor does a name longer than any world's count.
pub(crate) fn target(bytes: &[u8]) -> Option<String> {
    let config: Artifact = serde_json::from_slice(bytes).ok()?;
    let target = config.component?.target?;
    (target.len() <= MAX_TARGET_BYTES && !target.chars().any(char::is_control)).then_some(target)
}

/// The TCP ports among `80`, `80/tcp` and `53/udp`, lowest first; an odd entry is nobody's port.
fn tcp_ports(exposed: &[String]) -> Vec<u16> {
    let port = |entry: &String| match entry.split_once('/') {
        None => entry.parse().ok(),
        Some((port, "tcp")) => port.parse().ok(),
        Some(_) => None,
    };
    let ports: BTreeSet<u16> = exposed
        .iter()
        .filter_map(port)
        .filter(|port| *port != 0)
        .collect();
    ports.into_iter().collect()
}

/// The names of an image's unpacked layers, lowest first: by chain id and blob together. A hostile layer may have
/// compromised its unpacker, so the output for one blob is never used for another blob.
pub(crate) fn layer_names(diff_ids: &[Digest], layers: &[Blob]) -> Vec<Digest> {
    let name = |(chain, layer): (&Digest, &Blob)| {
        Digest::of(format!("{chain} {}", layer.digest).as_bytes())
    };
    chain_ids(diff_ids).iter().zip(layers).map(name).collect()
}

/// The chain ids of a stack of layers, lowest first.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test panics to fail")]
mod tests {
    use super::*;
    use crate::error::Kind;
    use serde_json::json;

    #[test]
    fn configs_are_read_with_nulls_and_checked() {
        let diff_id = Digest::of(b"layer");
        let mut config = json!({
            "os": "wasi", "architecture": "wasm",
            "config": {"Entrypoint": null, "Cmd": ["/app.wasm", "x"], "Volumes": {"/b": {}, "/a": {}}, "Labels": null, "Env": null},
            "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]},
        });
        let read = parse_config(
            "config",
            config.to_string().as_bytes(),
            1,
            &Limits::default(),
        )
        .unwrap();
        assert!(read.platform.is_wasm());
        assert_eq!(read.run.argv0(), Some("/app.wasm"));
        assert_eq!(read.run.volumes, ["/a", "/b"]);
        let refused = parse_config(
            "config",
            config.to_string().as_bytes(),
            2,
            &Limits::default(),
        )
        .unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("1 diff ids, the manifest 2 layers"),
            "{refused}"
        );
        config["config"]["Env"] = json!(["A=".to_owned() + &"x".repeat(1 << 20)]);
        let refused = parse_config(
            "config",
            config.to_string().as_bytes(),
            1,
            &Limits::default(),
        )
        .unwrap_err();
        assert_eq!(refused.kind(), Kind::Limit);
    }

    #[test]
    fn every_text_of_a_config_is_bounded_and_so_is_their_number() {
        let read = |run: serde_json::Value| {
            let config = json!({
                "os": "linux", "architecture": "amd64", "config": run,
                "rootfs": {"type": "layers", "diff_ids": []},
            });
            let bytes = config.to_string().into_bytes();
            parse_config("config", &bytes, 0, &Limits::default()).map(|_| ())
        };
        let text = |bytes: usize| "a".repeat(bytes);
        let empty = vec![""; 60_000];
        let named: serde_json::Map<_, _> = (0..60_000)
            .map(|number| (format!("/{number}"), json!({})))
            .collect();
        let labels: serde_json::Map<_, _> = (0..60_000)
            .map(|number| (number.to_string(), json!("")))
            .collect();
        for (run, limit) in [
            (json!({"User": text(513)}), "limit of a User (512)"),
            (
                json!({"WorkingDir": text(4097)}),
                "limit of a WorkingDir (4096)",
            ),
            (
                json!({"StopSignal": text(65)}),
                "limit of a StopSignal (64)",
            ),
            (json!({"Env": empty}), "max_run_config_bytes"),
            (json!({"Cmd": empty}), "max_run_config_bytes"),
            (json!({"Entrypoint": empty}), "max_run_config_bytes"),
            (json!({"Volumes": named}), "max_run_config_bytes"),
            (json!({"Labels": labels}), "max_run_config_bytes"),
        ] {
            let refused = read(run).unwrap_err();
            assert_eq!(refused.kind(), Kind::Limit);
            assert!(refused.to_string().contains(limit), "{refused}");
            assert!(refused.to_string().len() < 300, "{refused}");
        }
        read(json!({
            "User": text(512), "WorkingDir": text(4096), "StopSignal": "SIGRTMIN+3",
            "Labels": {"io.buildpacks.build.metadata": text(512 << 10)},
        }))
        .unwrap();
    }

    #[test]
    fn the_target_of_an_artifact_is_read_and_nothing_odd_is() {
        let long = format!(r#"{{"component": {{"target": "{}"}}}}"#, "x".repeat(300));
        for (config, expected) in [
            (
                r#"{"component": {"target": "wasi:http/proxy@0.2.0", "exports": []}}"#,
                Some("wasi:http/proxy@0.2.0"),
            ),
            (r#"{"component": null}"#, None),
            (r#"{"component": {"target": 7}}"#, None),
            (r#"{"component": {"target": "a\nb"}}"#, None),
            (&long, None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(target(config.as_bytes()).as_deref(), expected, "{config}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_specification() {
        let layers = [Digest::of(b"1"), Digest::of(b"2")];
        let chain = chain_ids(&layers);
        assert_eq!(chain[0], layers[0]);
        assert_eq!(
            chain[1],
            Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes())
        );
    }
}
