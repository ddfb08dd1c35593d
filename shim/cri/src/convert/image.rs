//! Images: converts requests for the store, and renders stored images.
//!
//! Called by `images`. Source: cri-api v0.37 api.proto, `ImageSpec`, `Image`, `AuthConfig`.
//! Invariants: `PullImageResponse.image_ref` is `Image.id`; `uid` and `username` are never both set; credentials for
//! another registry than the image's are not sent to it.
//! Must not know: how a pull is done.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{GeneralPurpose, general_purpose::NO_PAD};
use coracle_images::{Credentials, FsInfo, Image, ImageRef, PlatformPreference, PullRequest};
use coracle_proto::runtime::v1 as cri;
use serde_json::json;

use super::render::now;
use super::sandbox::known_handler;
use super::{BadRequest, check};
use crate::policy::Policies;

/// The longest image name, in bytes.
const MAX_NAME_BYTES: usize = 1024;

/// The image that an `image` field names. Errors: it is absent, empty, too long or not printable.
fn image_name(spec: Option<&cri::ImageSpec>) -> Result<&str, BadRequest> {
    let spec = check::present("image", spec)?;
    let name = check::given("image.image", &spec.image)?;
    check::token("image.image", name, MAX_NAME_BYTES)?;
    Ok(name)
}

/// Which entry of an index an `image` field is about: its handler decides, if it names one (KEP-4216). Errors: there is
/// no such handler.
fn platform(
    spec: Option<&cri::ImageSpec>,
    handlers: &Policies,
) -> Result<PlatformPreference, BadRequest> {
    let name = spec.map_or("", |spec| spec.runtime_handler.as_str());
    let handler = known_handler("image.runtime_handler", handlers, name)?;
    Ok(match handler.base.is_wasm_only() {
        true => PlatformPreference::Wasm,
        false => PlatformPreference::WasmThenLinux,
    })
}

/// A request about one image.
pub(crate) trait NamesImage {
    /// The field that names it.
    fn spec(&self) -> Option<&cri::ImageSpec>;
}

/// A list of images with an optional filter.
pub(crate) trait ListsImages {
    /// The field of the filter.
    fn filter(self) -> Option<cri::ImageFilter>;
}

macro_rules! image_requests {
    ($($one:ident),+; $($many:ident),+) => {
        $(impl NamesImage for cri::$one {
            fn spec(&self) -> Option<&cri::ImageSpec> {
                self.image.as_ref()
            }
        })+
        $(impl ListsImages for cri::$many {
            fn filter(self) -> Option<cri::ImageFilter> {
                self.filter
            }
        })+
    };
}

image_requests!(ImageStatusRequest, RemoveImageRequest; ListImagesRequest, StreamImagesRequest);

/// The image that a request names, and for which platform.
pub(crate) fn named_image<'a>(
    request: &'a impl NamesImage,
    handlers: &Policies,
) -> Result<(&'a str, PlatformPreference), BadRequest> {
    let platform = platform(request.spec(), handlers)?;
    Ok((image_name(request.spec())?, platform))
}

/// The image that a list is filtered by, if any.
pub(crate) fn listed_image(request: impl ListsImages) -> Option<String> {
    request
        .filter()?
        .image
        .map(|spec| spec.image)
        .filter(|name| !name.is_empty())
}

/// Reads PullImage. Errors: no image, or credentials that cannot be used.
pub(crate) fn pull_order(
    request: cri::PullImageRequest,
    handlers: &Policies,
) -> Result<PullRequest, BadRequest> {
    let reference = image_name(request.image.as_ref())?.to_owned();
    let auth = match request.auth {
        Some(auth) if concerns(&auth, &reference) => credentials(auth)?,
        _ => None,
    };
    Ok(PullRequest {
        platform: platform(request.image.as_ref(), handlers)?,
        namespace: namespace(request.sandbox_config),
        reference,
        auth,
    })
}

/// The namespace of the pod that needs the image; empty if the request names none.
fn namespace(config: Option<cri::PodSandboxConfig>) -> String {
    let metadata = config.and_then(|config| config.metadata);
    metadata.map_or_else(String::new, |metadata| metadata.namespace)
}

/// Whether `auth` is for the registry of `reference`. Credentials without an address are for every registry.
fn concerns(auth: &cri::AuthConfig, reference: &str) -> bool {
    let address = auth.server_address.as_str();
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = address.split('/').next().unwrap_or_default();
    if host.is_empty() {
        return true;
    }
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    // The store refuses a reference that cannot be parsed; no credentials are sent for it.
    reference
        .parse::<ImageRef>()
        .is_ok_and(|image| image.registry().eq_ignore_ascii_case(host))
}

fn credentials(auth: cri::AuthConfig) -> Result<Option<Credentials>, BadRequest> {
    if !auth.registry_token.is_empty() {
        return Ok(Some(Credentials::Bearer(auth.registry_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credentials::Basic {
            username: auth.username,
            password: auth.password,
        }));
    }
    if !auth.auth.is_empty() {
        let pair = base64(auth.auth.trim_end_matches('\0'))
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|text| text.split_once(':'));
        let bad = || BadRequest::invalid("auth.auth", "is not the base64 of `user:password`");
        let (username, password) = pair.ok_or_else(bad)?;
        let (username, password) = (
            username.to_owned(),
            password.trim_end_matches('\0').to_owned(),
        );
        return Ok(Some(Credentials::Basic { username, password }));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credentials::Identity(auth.identity_token)));
    }
    Ok(None)
}

/// Decodes standard base64, padded or not; `None` for anything else.
fn base64(text: &str) -> Option<Vec<u8>> {
    const UNPADDED: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        NO_PAD.with_decode_allow_trailing_bits(true),
    );
    UNPADDED.decode(text.trim_end_matches('=')).ok()
}

/// One image for lists and status.
pub(crate) fn image(image: &Image) -> cri::Image {
    let user = image.user.as_deref().unwrap_or_default();
    let user = user.split(':').next().unwrap_or_default();
    let uid = uid(user);
    let spec = (!image.spec_annotations.is_empty()).then(|| cri::ImageSpec {
        image: image.id.to_string(),
        annotations: BTreeMap::clone(&image.spec_annotations),
        ..Default::default()
    });
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        uid: uid.map(|value| cri::Int64Value { value }),
        spec,
        pinned: image.pinned,
    }
}

/// The numeric id in a `USER` text, if it is one: digits only, and a valid id. Other texts that look like a number are
/// returned as a name, which the kubelet's check for non-root users refuses.
fn uid(user: &str) -> Option<i64> {
    if user.is_empty() || !user.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    user.parse::<u32>()
        .ok()
        .filter(|uid| *uid != u32::MAX)
        .map(i64::from)
}

/// The reply of ImageStatus; an absent image is not an error.
pub(crate) fn image_status_reply(
    found: Option<&Image>,
    request: &cri::ImageStatusRequest,
) -> cri::ImageStatusResponse {
    let info = match found {
        Some(image) if request.verbose => {
            let details = json!({
                "entrypoint": image.config.entrypoint,
                "cmd": image.config.cmd,
                "workingDir": image.config.working_dir,
                "labels": image.config.labels,
            });
            BTreeMap::from([("info".to_owned(), details.to_string())])
        }
        _ => BTreeMap::new(),
    };
    cri::ImageStatusResponse {
        image: found.map(image),
        info,
    }
}

/// The reply of ImageFsInfo: the file systems of images and of writable layers, which may be one (KEP-4191).
pub(crate) fn filesystem_usage(images: &FsInfo, layers: &FsInfo) -> cri::ImageFsInfoResponse {
    let timestamp = now();
    let usage = |info: &FsInfo| cri::FilesystemUsage {
        timestamp,
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: info.mountpoint.display().to_string(),
        }),
        used_bytes: Some(cri::UInt64Value {
            value: info.used_bytes,
        }),
        inodes_used: Some(cri::UInt64Value {
            value: info.inodes_used,
        }),
    };
    cri::ImageFsInfoResponse {
        image_filesystems: vec![usage(images)],
        container_filesystems: vec![usage(layers)],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::policy::tests::usual;

    fn auth(change: impl FnOnce(&mut cri::AuthConfig)) -> Result<Option<Credentials>, BadRequest> {
        let mut auth = cri::AuthConfig::default();
        change(&mut auth);
        let image = Some(cri::ImageSpec {
            image: "registry.example/a/b:1".into(),
            ..Default::default()
        });
        let request = cri::PullImageRequest {
            image,
            auth: Some(auth),
            sandbox_config: None,
        };
        pull_order(request, &usual()).map(|order| order.auth)
    }

    fn basic(username: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Basic {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn an_image_must_be_named() {
        assert_eq!(
            image_name(None).unwrap_err().to_string(),
            "image is missing"
        );
        assert_eq!(
            image_name(Some(&cri::ImageSpec::default()))
                .unwrap_err()
                .to_string(),
            "image.image is empty"
        );
        let odd = cri::ImageSpec {
            image: "a b\n".into(),
            ..Default::default()
        };
        assert!(image_name(Some(&odd)).is_err());
    }

    #[test]
    fn credentials_come_in_every_form_of_the_protocol() {
        assert_eq!(auth(|_| ()).unwrap(), None);
        let named = auth(|a| (a.username, a.password) = ("alice".into(), "pw".into()));
        assert_eq!(named.unwrap(), basic("alice", "pw"));
        assert_eq!(
            auth(|a| a.auth = "YWxpY2U6cDp3".into()).unwrap(),
            basic("alice", "p:w")
        );
        assert_eq!(
            auth(|a| a.registry_token = "t".into()).unwrap(),
            Some(Credentials::Bearer("t".into()))
        );
        for odd in ["YWxpY2U", "?", "A"] {
            let refused = auth(|a| a.auth = odd.into()).unwrap_err().to_string();
            assert!(
                !refused.contains(odd) && refused.starts_with("auth.auth"),
                "{refused}"
            );
        }
        assert_eq!(
            auth(|a| a.identity_token = "t".into()).unwrap(),
            Some(Credentials::Identity("t".into()))
        );
    }

    #[test]
    fn credentials_go_to_the_registry_they_are_for() {
        let at = |address: &str| {
            let found = auth(|a| {
                (a.username, a.server_address) = ("alice".into(), address.into());
            });
            found.unwrap().is_some()
        };
        for own in [
            "",
            "registry.example",
            "https://registry.example/v2/",
            "REGISTRY.example",
        ] {
            assert!(at(own), "{own}");
        }
        for other in [
            "evil.example",
            "registry.example:5000",
            "https://registry.example.evil/",
        ] {
            assert!(!at(other), "{other}");
        }
        let hub = cri::AuthConfig {
            server_address: "https://index.docker.io/v1/".into(),
            ..Default::default()
        };
        assert!(concerns(&hub, "busybox"));
    }

    #[test]
    fn base64_is_read_exactly() {
        for (text, want) in [
            ("", ""),
            ("Zg==", "f"),
            ("Zm8=", "fo"),
            ("Zm9v", "foo"),
            ("Zm9vYg", "foob"),
        ] {
            assert_eq!(base64(text).unwrap(), want.as_bytes(), "{text}");
        }
        for odd in ["Z", "Zm9vY", "Zm 9", "Zm9-"] {
            assert_eq!(base64(odd), None, "{odd}");
        }
    }

    #[test]
    fn only_a_plain_number_is_a_uid() {
        assert_eq!(
            (uid("0"), uid("1002"), uid("4294967294")),
            (Some(0), Some(1002), Some(4_294_967_294))
        );
        for odd in [
            "",
            "root",
            "+0",
            " 0",
            "0x0",
            "-1",
            "4294967295",
            "4294967296",
            "99999999999999999999",
        ] {
            assert_eq!(uid(odd), None, "{odd}");
        }
    }
}
