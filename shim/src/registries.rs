//! What the command line knows of registries: the configured ones without TLS, and the credentials of the node.
//!
//! Called by: `main`, for `coracle image` and `coracle pack`. Invariant: only root uses the credentials of the node.
//! Must not know: how images are pushed.

use std::path::Path;

use coracle_config::Config;
use coracle_image_cli::{Login, Registries};
use coracle_images::Credentials;

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
