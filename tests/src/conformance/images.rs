//! The look-alikes of the images that critest runs, made from a busybox of our own and two small programs.
//!
//! Place in the flow: [`push_all`] fills one registry, which then answers for every registry that critest names.
//! Invariants: every image is an index whose first entry is for another architecture, and images take turns with
//! Docker's and OCI's media types, so that the choice of platform and type is tried everywhere; commands of busybox
//! are hard links, because specs mask single ones; [`DIGEST_REPOSITORY`] holds the same bytes on every machine.
//! Not here: which runtime pulls them.

use std::process::Command;

use serde_json::{Value, json};

use crate::push::{self, digest};
use crate::{Outcome, guests};

/// The hosts that critest pulls from; one registry stands in for all of them.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "k8s.gcr.io", "gcr.io"];
/// The repository of the image that critest knows by digest.
pub const DIGEST_REPOSITORY: &str = "k8s-staging-cri-tools/test-image-digest";

const MTIME: u64 = 1_700_000_000;
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\n\
    default-user:x:1000:1000:Linux User:/home/default-user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\ndefault-user:x:1000:\n\
    group-defined-in-image:x:50000:default-user\nnobody:x:65534:\n";

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

/// A layer: the digest of its tar, and the tar packed.
struct Layer {
    diff_id: String,
    packed: Vec<u8>,
}

/// One image to be: where it goes, what it adds to the base, how it starts.
struct Recipe {
    repository: String,
    tags: Vec<&'static str>,
    /// Path, permission bits and content of the one program it adds.
    program: Option<(&'static str, u32, Vec<u8>)>,
    run: Value,
}

/// Pushes every image. Errors: a compiler or busybox is missing, or the registry refuses.
pub fn push_all(host: &str, busybox: &std::path::Path) -> Outcome<()> {
    let base = base_layer(busybox)?;
    for (number, recipe) in recipes()?.iter().enumerate() {
        let family = if number % 2 == 0 { OCI } else { DOCKER };
        push_one(host, &base, recipe, &family)?;
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

fn recipes() -> Outcome<Vec<Recipe>> {
    let server = guests::web_server()?;
    let serve = |path: &'static str, port: &str, words: &str| {
        let start =
            json!({"Entrypoint": [format!("/{path}"), port, words], "StopSignal": "SIGQUIT"});
        (Some((path, 0o755, server.clone())), start)
    };
    let (nginx, nginx_run) = serve("usr/sbin/nginx", "80", "master process");
    let (hostnet, hostnet_run) = serve("usr/sbin/nginx", "12003", "master process");
    let (httpd, httpd_run) = serve("usr/local/apache2/bin/httpd", "80", "-DFOREGROUND");
    let escalate = Some(("nnp", 0o4755, guests::effective_uid()?));
    let pause = Some(("pause", 0o755, guests::linux_pause()?));
    let e2e = |name: &str, tag, program, run| {
        recipe(format!("e2e-test-images/{name}"), &[tag], program, run)
    };
    let mut all = vec![
        e2e("busybox", "1.29-2", None, json!({"Cmd": ["sh"]})),
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
    Ok(all)
}

/// The images of cri-tools' own registry that differ only in tags and users.
fn plain_images() -> Vec<Recipe> {
    let plain = |name: &str, tags: &[&'static str], user: &str| {
        let run = json!({"Cmd": ["sh"], "User": user, "Labels": {"name": name, "tag": tags[0]}});
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

fn push_one(host: &str, base: &Layer, recipe: &Recipe, family: &Family) -> Outcome<()> {
    let repository = &recipe.repository;
    let own = match &recipe.program {
        Some((path, mode, bytes)) => Some(layer(|tar| add_file(tar, path, *mode, bytes))?),
        None => None,
    };
    let layers: Vec<&Layer> = std::iter::once(base).chain(&own).collect();
    for layer in &layers {
        push::push_blob(host, repository, &layer.packed)?;
    }
    // The other architecture's image is whole, too, but nothing in it could run here.
    let foreign = if architecture() == "arm64" {
        "amd64"
    } else {
        "arm64"
    };
    let mut entries = Vec::new();
    for architecture in [foreign, architecture()] {
        let config = config(recipe, architecture, &layers)
            .to_string()
            .into_bytes();
        push::push_blob(host, repository, &config)?;
        let manifest = manifest(family, &config, &layers).to_string().into_bytes();
        let tag = format!("{}-{architecture}", recipe.tags[0]);
        push::push_manifest(host, repository, &tag, (family.0[1], &manifest))?;
        let mut entry = push::descriptor(family.0[1], &manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": family.0[0], "manifests": entries}).to_string();
    for tag in &recipe.tags {
        push::push_manifest(host, repository, tag, (family.0[0], index.as_bytes()))?;
    }
    Ok(())
}

fn config(recipe: &Recipe, architecture: &str, layers: &[&Layer]) -> Value {
    let mut run = recipe.run.clone();
    run["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    json!({
        "created": "2026-01-02T03:04:05Z", "os": "linux", "architecture": architecture, "config": run,
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

/// Busybox under the names of all its commands, and the few files and directories that a root needs.
fn base_layer(busybox: &std::path::Path) -> Outcome<Layer> {
    let listed = Command::new(busybox).arg("--list-full").output()?;
    let names = String::from_utf8(listed.stdout)?;
    let program = std::fs::read(busybox)?;
    layer(|tar| {
        for dir in [
            "bin", "dev", "etc", "home", "proc", "run", "sbin", "sys", "usr", "usr/bin",
            "usr/sbin", "var", "var/run",
        ] {
            add_directory(tar, dir, 0o755)?;
        }
        add_directory(tar, "root", 0o700)?;
        add_directory(tar, "tmp", 0o1777)?;
        add_file(tar, "etc/passwd", 0o644, PASSWD.as_bytes())?;
        add_file(tar, "etc/group", 0o644, GROUP.as_bytes())?;
        add_file(tar, "bin/busybox", 0o755, &program)?;
        for name in names.lines().filter(|name| *name != "bin/busybox") {
            let mut header = header(tar::EntryType::Link, 0o755, 0);
            tar.append_link(&mut header, name, "bin/busybox")?;
        }
        Ok(())
    })
}

fn layer(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>) -> Outcome<()>) -> Outcome<Layer> {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar)?;
    let tar = tar.into_inner()?;
    Ok(Layer {
        diff_id: digest(&tar),
        packed: push::gzip(&tar)?,
    })
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(MTIME);
    header
}

fn add_directory(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32) -> Outcome<()> {
    let mut header = header(tar::EntryType::Directory, mode, 0);
    Ok(tar.append_data(&mut header, format!("{path}/"), &[][..])?)
}

fn add_file(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8]) -> Outcome<()> {
    let mut header = header(tar::EntryType::Regular, mode, bytes.len() as u64);
    Ok(tar.append_data(&mut header, path, bytes)?)
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
        let mut places: Vec<String> = recipes()
            .unwrap()
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
