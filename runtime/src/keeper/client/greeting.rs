//! What a keeper says first: who it is, and its containers page by page.
//!
//! Called by: [`Keeper::connect`]. Invariant: pages only go forward, so that they come to an end.
//! Must not know: what follows from what is said.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::wire::Reply;
use super::{Greeted, Greeting, Keeper, unexpected};
use crate::control::messages::{Answer, Ask, Kept};
use crate::process::Process;
use coracle_spec::error::Result;

impl Keeper {
    /// Hears who it is and what it keeps, page by page.
    pub(super) async fn greeting(&self, deadline: Duration) -> Result<Greeting> {
        let reply = self.ask(Ask::Hello, Vec::new(), deadline).await?;
        let (mut greeting, mut next) = greeting(reply)?;
        while let Some(from) = next {
            let reply = self.ask(Ask::Kept { from }, Vec::new(), deadline).await?;
            let (containers, fds) = match reply {
                (
                    Answer::Kept {
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
            greeting.containers.extend(greeted(containers, fds)?);
        }
        Ok(greeting)
    }
}

/// A greeting's first page, and where the next one begins.
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
        containers: greeted(containers, fds)?,
    };
    Ok((greeting, next))
}

/// The containers of a page with the processes that its descriptors name, in order.
fn greeted(containers: Vec<Kept>, fds: Vec<OwnedFd>) -> Result<Vec<Greeted>> {
    let mut fds = fds.into_iter();
    let mut greeted = Vec::with_capacity(containers.len());
    for kept in containers {
        let pidfd = kept.exit.is_none().then(|| fds.next()).flatten();
        // The process of a start may give way to another; its end names the right one.
        let pidfd = pidfd.filter(|_| !kept.starting);
        let process = pidfd.map(Process::from_pidfd).transpose()?;
        greeted.push(Greeted {
            id: kept.id,
            process,
            exit: kept.exit,
            started_at: kept.started_at,
            starting: kept.starting,
        });
    }
    Ok(greeted)
}
