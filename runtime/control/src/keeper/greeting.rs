//! Reads a keeper's greeting: which keeper it is, and its containers page by page.
//!
//! Called by [`Keeper::connect`]. Invariants: each page starts after the one before, so there is a last one; texts and number
//! of containers are bounded, whoever made the keeper send them.
//! It must not know what the daemon does with the containers.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::wire::Reply;
use super::{Greeting, Keeper, KeeperContainer, MAX_LISTED, unexpected};
use crate::messages::{Answer, ListedContainer, Request};
use crate::process::Process;
use coracle_spec::Exit;
use coracle_spec::error::{Error, Kind, Result};

impl Keeper {
    /// Reads the greeting and all pages.
    pub(super) async fn greeting(&self, deadline: Duration) -> Result<Greeting> {
        let reply = self.request(Request::Hello, Vec::new(), deadline).await?;
        let (mut greeting, mut next) = greeting(reply)?;
        while let Some(from) = next {
            let reply = self
                .request(Request::ListContainers { from }, Vec::new(), deadline)
                .await?;
            let (containers, fds) = match reply {
                (
                    Answer::Containers {
                        containers,
                        next: n,
                    },
                    fds,
                ) if n.is_none_or(|n| n > from) => {
                    next = n;
                    (containers, fds)
                }
                (other, _) => return Err(unexpected(&other)),
            };
            greeting.containers.extend(with_processes(containers, fds)?);
            if greeting.containers.len() > MAX_LISTED {
                let why = format!("the keeper lists more than {MAX_LISTED} containers");
                return Err(Error::new(Kind::Invalid, why));
            }
        }
        Ok(greeting)
    }
}

/// A greeting's first page, and where the next one starts.
fn greeting((answer, fds): Reply) -> Result<(Greeting, Option<usize>)> {
    let Answer::Greeting {
        protocol,
        engine_hash,
        containers,
        next,
        ..
    } = answer
    else {
        return Err(unexpected(&answer));
    };
    let greeting = Greeting {
        protocol: u32::from(protocol),
        engine_hash,
        containers: with_processes(containers, fds)?,
    };
    Ok((greeting, next))
}

/// The containers of a page with the processes of its pidfds, in order.
fn with_processes(listed: Vec<ListedContainer>, fds: Vec<OwnedFd>) -> Result<Vec<KeeperContainer>> {
    let mut fds = fds.into_iter();
    let mut containers = Vec::with_capacity(listed.len());
    for listed in listed {
        let pidfd = listed.exit.is_none().then(|| fds.next()).flatten();
        // The process of a starting container may still be replaced; the answer to the start has the final one.
        let pidfd = pidfd.filter(|_| !listed.starting);
        let process = pidfd.map(Process::from_pidfd).transpose()?;
        containers.push(KeeperContainer {
            id: listed.id,
            process,
            exit: listed.exit.map(Exit::shortened),
            started_at: listed.started_at,
            starting: listed.starting,
        });
    }
    Ok(containers)
}
