//! What the configuration says of registries: those without TLS, the credentials of the node, proxies.
//!
//! Called by: `main`, for `coracle image`, `coracle pack` and `coracle config check`; the daemon and `coracle check` for
//! proxies. Invariant: only root uses the credentials of the node. Must not know: how images are pushed or pulled.

use std::path::Path;

use coracle_config::{Config, Images, Proxy};
use coracle_image_cli::{Login, Registries};
use coracle_images::{Credentials, Proxies};

/// As the configuration says, if there is one.
pub fn configured(config: Option<&Config>) -> Registries {
    let images = config.map(|config| &config.images);
    let is_root = rustix::process::geteuid().is_root();
    let own = images.and_then(|images| images.auth_file.clone());
    let own = own.filter(|_| is_root);
    Registries {
        plain_http: images.map_or_else(Vec::new, |images| images.plain_http.clone()),
        login: Box::new(move |file, name| match file.or(own.as_deref()) {
            Some(file) => login(file, name),
            None => Ok(None),
        }),
    }
}

fn login(file: &Path, name: &str) -> Result<Option<Login>, String> {
    let found = coracle_images::credentials_in(file, name);
    let found = found.map_err(|error| coracle_spec::error::chain(&error))?;
    Ok(found.map(|credentials| match credentials {
        Credentials::Basic { username, password } => Login::Basic(username, password),
        Credentials::Bearer(token) => Login::Bearer(token),
        Credentials::Identity(token) => Login::Identity(token),
    }))
}

/// The proxies for registries; `variable` looks up a variable of the environment, if the configuration wants that. Errors: a
/// URL of a proxy, or an entry of `no_proxy`, that cannot be used.
pub fn proxies(
    images: &Images,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Proxies, coracle_images::Error> {
    match &images.proxy {
        Proxy::Url(url) => Proxies::new(url, &images.no_proxy),
        Proxy::Environment => Proxies::of_environment(variable, &images.no_proxy),
        // The list must be good all the same: it counts as soon as there is a proxy.
        Proxy::None => {
            Proxies::of_environment(|_| None, &images.no_proxy).map(|_| Proxies::default())
        }
    }
}

/// Errors: as [`proxies`], for what the configuration itself says: the environment of the daemon is not this one.
pub fn check_proxies(images: &Images) -> Result<(), coracle_images::Error> {
    proxies(images, |_| None).map(drop)
}
