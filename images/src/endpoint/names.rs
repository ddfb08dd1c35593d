//! Names of hosts: which are mirrors, what messages call them.
//!
//! Called by: the parent and its parts. Pure. Not here: names of this machine ([`crate::loopback`]), addresses that names resolve to ([`super::address_policy`]).

use crate::mirrors::{Upstream, host_of};
use crate::reference::ImageRef;

/// True for a host that is not the registry itself under one of its names.
pub(super) fn is_mirror(reference: &ImageRef, upstream: &Upstream) -> bool {
    upstream.authority != host_of(reference.registry())
}

/// What messages call it: the registry's name, or the URL of a mirror.
pub(super) fn name(reference: &ImageRef, upstream: &Upstream) -> String {
    if !is_mirror(reference, upstream) && upstream.api == "/v2" {
        return reference.registry().to_owned();
    }
    let scheme = if upstream.plain_http { "http" } else { "https" };
    let prefix = upstream.api.strip_suffix("/v2").unwrap_or(&upstream.api);
    format!("{scheme}://{}{prefix}", upstream.authority)
}
