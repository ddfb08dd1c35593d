//! Signature policies of namespaces, for the images of a container.
//!
//! Called by: [`super::plan`], before anything is made. Invariant: without such policies nothing is read.
//! Must not know: policies, signatures.

use std::sync::Arc;

use coracle_images::{Image, ImageId, Images};
use coracle_lifecycle::{ContainerConfig, Error, Kind};

use super::blocking;

/// Checks the image and the image volumes of a container in a pod of `namespace`; `volumes` are the images of its mounts, in
/// their order. Errors: Invalid for an image that the namespace's policy does not accept, ImageVolume for a volume.
pub(super) async fn check(
    images: &Images,
    namespace: &str,
    config: &ContainerConfig,
    image: &Image,
    volumes: &[Arc<Image>],
) -> Result<(), Error> {
    if !images.has_signature_policies() {
        return Ok(());
    }
    let own = (&config.user_specified_image, &config.image);
    let mut checks = vec![(Kind::Invalid, image.id.clone(), name(own))];
    let mounted = config
        .mounts
        .iter()
        .filter_map(|mount| mount.image.as_ref());
    for (volume, image) in mounted.zip(volumes) {
        let named = (&volume.user_specified_image, &volume.image);
        checks.push((Kind::ImageVolume, image.id.clone(), name(named)));
    }
    let (images, namespace) = (images.clone(), namespace.to_owned());
    let check = move || {
        checks.into_iter().try_for_each(|(kind, id, name)| {
            let checked = images.check_stored(&id, &name, &namespace);
            checked.map_err(|error| Error::because(kind, refused(&name, &id), error))
        })
    };
    blocking("checking signature policies", check).await
}

/// The name that the pod's author gave, else the one of the request.
fn name((specified, requested): (&String, &String)) -> String {
    match specified.is_empty() {
        true => requested.clone(),
        false => specified.clone(),
    }
}

fn refused(name: &str, id: &ImageId) -> String {
    format!("use image {name:?} ({id})")
}
