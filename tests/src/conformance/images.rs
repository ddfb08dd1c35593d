//! Substitutes for the images that critest runs: of Linux programs (a busybox of our own and two small ones), or of
//! one WebAssembly component that answers to the same names (`tests/guests/box.c`).
//!
//! Place in the flow: [`push_all`] fills one registry, which then answers for every registry that critest names.
//! Invariants: every image is an index whose first entry is for another architecture, and images take turns with
//! Docker's and OCI's media types, so that the choice of platform and type is tried everywhere;
//! [`DIGEST_REPOSITORY`] holds the same bytes on every machine.
//! Not here: which runtime pulls them; `layer` makes the layers.

mod layer;

use std::path::Path;

use serde_json::{Value, json};

use crate::push::{self, digest};
use crate::{Outcome, component, guests};
use layer::{Layer, add_file};

/// The hosts that critest pulls from; one registry stands in for all of them.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];
/// The repository of the image that critest knows by digest.
pub const DIGEST_REPOSITORY: &str = "k8s-staging-cri-tools/test-image-digest";

/// The commands of `tests/guests/box.c` that images have in `/bin`.
const BOX_COMMANDS: [&str; 15] = [
    "cat", "echo", "env", "false", "grep", "hostname", "ls", "mkdir", "pause", "sh", "sleep",
    "test", "top", "touch", "true",
];

/// What the images' programs are.
#[derive(Clone, Copy, Debug)]
pub enum Look<'a> {
    /// Linux programs, busybox first of all, which lies here.
    Linux(&'a Path),
    /// One WebAssembly component.
    Wasm,
}

/// The programs that images add to the base, and the platform that they are for.
struct Programs {
    server: Vec<u8>,
    pause: Vec<u8>,
    effective_uid: Vec<u8>,
    platform: (&'static str, &'static str),
}

/// The media types of one family: index, manifest, config, gzip layer.
struct Family([&'static str; 4]);

const OCI: Family = Family([
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
]);
const DOCKER: Family = Family([
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
]);

/// One image to be: where it goes, what it adds to the base, how it starts.
struct Recipe {
    repository: String,
    tags: Vec<&'static str>,
    /// Path, permission bits and content of the one program it adds.
    program: Option<(&'static str, u32, Vec<u8>)>,
    run: Value,
}

/// Pushes every image. Errors: a compiler or busybox is missing, or the registry refuses.
pub fn push_all(host: &str, look: Look<'_>) -> Outcome<()> {
    let (programs, base) = match look {
        Look::Linux(busybox) => (Programs::linux()?, layer::of_busybox(busybox)?),
        Look::Wasm => {
            let program = component::from_c("box.c")?;
            let base = layer::of_links(&program, &BOX_COMMANDS)?;
            (Programs::wasm(program), base)
        }
    };
    for (number, recipe) in recipes(&programs).iter().enumerate() {
        let family = if number % 2 == 0 { OCI } else { DOCKER };
        push_one(host, &base, recipe, (&family, programs.platform))?;
    }
    let (manifest, blobs) = digest_image()?;
    for blob in &blobs {
        push::push_blob(host, DIGEST_REPOSITORY, blob)?;
    }
    push::push_manifest(
        host,
        DIGEST_REPOSITORY,
        "by-digest",
        (OCI.0[1], manifest.as_bytes()),
    )?;
    Ok(())
}

/// `sha256:...` of the manifest in [`DIGEST_REPOSITORY`]: the same on every machine, known before anything is pushed.
pub fn known_digest() -> Outcome<String> {
    Ok(digest(digest_image()?.0.as_bytes()))
}

impl Programs {
    fn linux() -> Outcome<Self> {
        Ok(Self {
            server: guests::web_server()?,
            pause: guests::linux_pause()?,
            effective_uid: guests::effective_uid()?,
            platform: ("linux", architecture()),
        })
    }

    /// The component goes by the name of its file.
    fn wasm(program: Vec<u8>) -> Self {
        Self {
            server: program.clone(),
            pause: program.clone(),
            effective_uid: program,
            platform: ("wasi", "wasm"),
        }
    }
}

fn recipes(programs: &Programs) -> Vec<Recipe> {
    let serve = |path: &'static str, port: &str, args: &str| {
        let start =
            json!({"Entrypoint": [format!("/{path}"), port, args], "StopSignal": "SIGQUIT"});
        (Some((path, 0o755, programs.server.clone())), start)
    };
    let (nginx, nginx_run) = serve("usr/sbin/nginx", "80", "master process");
    let (hostnet, hostnet_run) = serve("usr/sbin/nginx", "12003", "master process");
    let (httpd, httpd_run) = serve("usr/local/apache2/bin/httpd", "80", "-DFOREGROUND");
    let escalate = Some(("nnp", 0o4755, programs.effective_uid.clone()));
    let pause = Some(("pause", 0o755, programs.pause.clone()));
    let e2e = |name: &str, tag, program, run| {
        recipe(format!("e2e-test-images/{name}"), &[tag], program, run)
    };
    let mut all = vec![
        e2e("busybox", "1.29-2", None, json!({"Cmd": ["/bin/sh"]})),
        e2e("nginx", "1.14-2", nginx, nginx_run),
        e2e("httpd", "2.4.39-4", httpd, httpd_run),
        e2e(
            "nonewprivs",
            "1.3",
            escalate,
            json!({"Entrypoint": ["/nnp"]}),
        ),
        recipe(
            "pause".into(),
            &["3.9"],
            pause,
            json!({"Entrypoint": ["/pause"]}),
        ),
        recipe(
            staging(&format!("hostnet-nginx-{}", architecture())),
            &["latest"],
            hostnet,
            hostnet_run,
        ),
    ];
    all.extend(plain_images());
    all
}

/// The images of cri-tools' own registry that differ only in tags and users.
fn plain_images() -> Vec<Recipe> {
    let plain = |name: &str, tags: &[&'static str], user: &str| {
        let run =
            json!({"Cmd": ["/bin/sh"], "User": user, "Labels": {"name": name, "tag": tags[0]}});
        recipe(staging(name), tags, None, run)
    };
    vec![
        plain("test-image-latest", &["latest"], ""),
        plain("test-image-tag", &["test"], ""),
        plain("test-image-tag", &["all"], ""),
        plain("test-image-1", &["latest"], ""),
        plain("test-image-2", &["latest"], ""),
        plain("test-image-3", &["latest"], ""),
        plain("test-image-tags", &["1", "2", "3"], ""),
        plain("test-image-user-uid", &["latest"], "1002"),
        plain("test-image-user-username", &["latest"], "www-data"),
        plain("test-image-user-uid-group", &["latest"], "1003:users"),
        plain(
            "test-image-user-username-group",
            &["latest"],
            "www-data:100",
        ),
        plain("test-image-predefined-group", &["latest"], "1000"),
    ]
}

fn staging(name: &str) -> String {
    format!("k8s-staging-cri-tools/{name}")
}

fn recipe(
    repository: String,
    tags: &[&'static str],
    program: Option<(&'static str, u32, Vec<u8>)>,
    run: Value,
) -> Recipe {
    Recipe {
        repository,
        tags: tags.to_vec(),
        program,
        run,
    }
}

/// This machine's architecture as images name it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn push_one(
    host: &str,
    base: &Layer,
    recipe: &Recipe,
    (family, own): (&Family, (&'static str, &'static str)),
) -> Outcome<()> {
    let repository = &recipe.repository;
    let added = match &recipe.program {
        Some((path, mode, bytes)) => Some(Layer::of(|tar| add_file(tar, path, *mode, bytes))?),
        None => None,
    };
    let layers: Vec<&Layer> = std::iter::once(base).chain(&added).collect();
    for layer in &layers {
        push::push_blob(host, repository, &layer.packed)?;
    }
    // The other architecture's image is complete, but its programs do not run here.
    let is_arm = architecture() == "arm64";
    let foreign = if is_arm { "amd64" } else { "arm64" };
    let mut entries = Vec::new();
    for (os, architecture) in [("linux", foreign), own] {
        let config = config(recipe, (os, architecture), &layers)
            .to_string()
            .into_bytes();
        push::push_blob(host, repository, &config)?;
        let manifest = manifest(family, &config, &layers).to_string().into_bytes();
        let tag = format!("{}-{architecture}", recipe.tags[0]);
        push::push_manifest(host, repository, &tag, (family.0[1], &manifest))?;
        let mut entry = push::descriptor(family.0[1], &manifest);
        entry["platform"] = json!({"os": os, "architecture": architecture});
        entries.push(entry);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": family.0[0], "manifests": entries}).to_string();
    for tag in &recipe.tags {
        push::push_manifest(host, repository, tag, (family.0[0], index.as_bytes()))?;
    }
    Ok(())
}

fn config(recipe: &Recipe, (os, architecture): (&str, &str), layers: &[&Layer]) -> Value {
    let mut run = recipe.run.clone();
    run["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    json!({
        "created": "2026-01-02T03:04:05Z", "os": os, "architecture": architecture, "config": run,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>()},
    })
}

fn manifest(family: &Family, config: &[u8], layers: &[&Layer]) -> Value {
    let describe = |layer: &&Layer| push::descriptor(family.0[3], &layer.packed);
    json!({
        "schemaVersion": 2, "mediaType": family.0[1], "config": push::descriptor(family.0[2], config),
        "layers": layers.iter().map(describe).collect::<Vec<_>>(),
    })
}

/// The image known by digest: its manifest and blobs. Nothing that a compiler or packer made is in it.
fn digest_image() -> Outcome<(String, Vec<Vec<u8>>)> {
    let mut tar = tar::Builder::new(Vec::new());
    add_file(&mut tar, "test-image-digest", 0o644, b"known by digest\n")?;
    let tar = tar.into_inner()?;
    let config = json!({
        "created": "2026-01-02T03:04:05Z", "os": "linux", "architecture": architecture(),
        "config": {"Cmd": ["/test-image-digest"]}, "rootfs": {"type": "layers", "diff_ids": [digest(&tar)]},
    });
    let config = config.to_string().into_bytes();
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI.0[1], "config": push::descriptor(OCI.0[2], &config),
        "layers": [push::descriptor(plain, &tar)],
    });
    Ok((manifest.to_string(), vec![config, tar]))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_a_place_of_its_own() {
        let mut places: Vec<String> = recipes(&Programs::wasm(Vec::new()))
            .iter()
            .flat_map(|recipe| {
                recipe
                    .tags
                    .iter()
                    .map(|tag| format!("{}:{tag}", recipe.repository))
            })
            .collect();
        let count = places.len();
        places.sort();
        places.dedup();
        assert_eq!((places.len(), count), (20, 20), "{places:?}");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_image_known_by_digest_is_the_same_everywhere() {
        assert_eq!(
            known_digest().unwrap(),
            "sha256:c5f0bc3555e9ef4f942180cc30cbfc00e41ce7c32f2a285191822cd3604bafa1"
        );
    }
}
