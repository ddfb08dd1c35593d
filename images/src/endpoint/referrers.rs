//! The referrers of a manifest: what other manifests say that they are about it.
//!
//! Called by: [`crate::registry`]. Source: the distribution specification 1.1, "Listing Referrers"; RFC 8288 for `Link`.
//! Invariant: of the link to another page only the query is used, so that it leads nowhere else.
//! Not here: the tag of registries without this API, how many pages are read, what the referrers are.

use reqwest::header::LINK;
use reqwest::{Method, Url};

use super::body::Bound;
use super::document::{self, Document};
use super::wire::Answer;
use super::{Call, Endpoint};
use crate::error::Error;
use crate::manifest::OCI_INDEX;
use crate::reference::Digest;

/// Where a list goes on.
pub(crate) struct NextPage {
    /// The repository that has sent the page before.
    source: String,
    query: String,
}

impl NextPage {
    /// Whether this host has sent the page before.
    pub(crate) fn is_of(&self, endpoint: &Endpoint) -> bool {
        self.source == endpoint.source()
    }
}

impl Endpoint {
    /// An index of manifests that refer to `digest`, of at most `allowed` bytes, and the page that follows. Errors:
    /// `NotInRegistry` if the host does not have this API, as cosign knows it: not every such host answers 404.
    pub(crate) async fn referrers(
        &self,
        digest: &Digest,
        allowed: u64,
        page: Option<&NextPage>,
    ) -> Result<(Document, Option<NextPage>), Error> {
        let what = format!("referrers of {digest}");
        let path = format!("referrers/{digest}");
        self.retry(&what, || {
            self.within(&what, async {
                let call = Call {
                    query: page.map(|page| page.query.as_str()),
                    ..Call::new(Method::GET, &path, &[OCI_INDEX])
                };
                let mut answer = match self.get(call, &what).await {
                    Err(Error::Status {
                        status: 400 | 406, ..
                    }) => return Err(self.has_not(&what)),
                    answer => answer?,
                };
                if document::content_type(&answer).as_deref() != Some(OCI_INDEX) {
                    return Err(self.has_not(&what));
                }
                let bound = Bound {
                    what: &what,
                    limit: "max_manifest_bytes",
                    allowed,
                };
                let next = self.next_page(&answer);
                let document = document::read(&self.wire, &mut answer, bound).await?;
                Ok((document, next))
            })
        })
        .await
    }

    /// The error for what it does not have.
    pub(crate) fn has_not(&self, what: &str) -> Error {
        Error::NotInRegistry {
            registry: self.host().to_owned(),
            what: what.to_owned(),
        }
    }

    fn next_page(&self, answer: &Answer) -> Option<NextPage> {
        if answer.is_elsewhere {
            return None;
        }
        let links = answer.response.headers().get_all(LINK).into_iter();
        let mut links = links.filter_map(|link| link.to_str().ok());
        let query = links.find_map(|link| next_query(link, answer.response.url()))?;
        let source = self.source();
        Some(NextPage { source, query })
    }
}

/// The query of the link to the next page, if it is of the same list as `at`.
fn next_query(links: &str, at: &Url) -> Option<String> {
    let mut links = links.split('<').skip(1);
    let next = links.find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let mut parameters = parameters.split([';', ',']).map(str::trim);
        let is_next = |parameter: &str| {
            let (name, value) = parameter.split_once('=')?;
            let is_rel = name.trim().eq_ignore_ascii_case("rel");
            (is_rel && value.trim().trim_matches('"').eq_ignore_ascii_case("next")).then_some(())
        };
        parameters.find_map(is_next).map(|()| target)
    })?;
    let next = at.join(next).ok()?;
    let is_same = next.origin() == at.origin() && next.path() == at.path();
    next.query()
        .filter(|_| is_same && next.query() != at.query())
        .map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_to_the_next_page_of_the_same_list_counts() {
        let at = Url::parse("https://r.io/v2/a/referrers/d?n=2").unwrap();
        let more = Some("n=2&last=b".to_owned());
        for (links, expected) in [
            ("</v2/a/referrers/d?n=2&last=b>; rel=\"next\"", &more),
            ("<https://r.io/v2/a/referrers/d?n=2&last=b>;rel=next", &more),
            ("<?n=2&last=b> ; title=x; REL=Next", &more),
            (
                "</x?y>; rel=prev, </v2/a/referrers/d?n=2&last=b>; rel=next",
                &more,
            ),
            ("</v2/a/referrers/d?n=2&last=b>; rel=\"prev\"", &None),
            ("</v2/a/referrers/d?n=2&last=b>", &None),
            ("</v2/b/referrers/d?n=2&last=b>; rel=next", &None),
            ("<http://r.io/v2/a/referrers/d?n=2&last=b>; rel=next", &None),
            (
                "<https://169.254.169.254/v2/a/referrers/d?x>; rel=next",
                &None,
            ),
            ("<?n=2>; rel=next", &None),
            ("<>; rel=next", &None),
            ("; rel=next", &None),
            ("<?x", &None),
        ] {
            assert_eq!(next_query(links, &at), *expected, "{links}");
        }
    }
}
