//! Lists a keeper's containers for a greeting, in pages that always fit a frame.
//!
//! Called by the event loop when a daemon connects. Invariants: a page is at most [`PAGE_BYTES`] of JSON and
//! [`PAGE_FDS`] descriptors, however long the exit messages are and however many containers there are; of more than
//! [`MAX_EXITED`] exited containers, the oldest are on disk only, as exit records.
//! It must not know the connection.

use std::os::fd::OwnedFd;

use super::{Containers, State};
use coracle_control::messages::ListedContainer;

/// Most bytes of JSON in a page: half a frame.
const PAGE_BYTES: usize = coracle_control::frame::MAX_BODY / 2;
/// Most descriptors in a page.
const PAGE_FDS: usize = 128;
/// Most exited containers that a keeper remembers; the exit records of others stay on disk.
const MAX_EXITED: usize = 1024;
/// Bytes of an exit message for a daemon that reads one page only.
const SHORT_TEXT: usize = 256;

/// Some of a keeper's containers, in order.
#[derive(Debug, Default)]
pub(in crate::keeper) struct Page {
    /// The containers.
    pub(in crate::keeper) containers: Vec<ListedContainer>,
    /// A pidfd for each that has not ended.
    pub(in crate::keeper) pidfds: Vec<OwnedFd>,
    /// Where the next page starts, if there is one.
    pub(in crate::keeper) next: Option<usize>,
}

impl Page {
    /// Takes from `listed`, which has each container with its number, as many as fit.
    fn fill(listed: impl Iterator<Item = (usize, ListedContainer, Option<OwnedFd>)>) -> Self {
        let (mut page, mut bytes) = (Self::default(), 0);
        for (number, listed, pidfd) in listed {
            // Our own message types always serialize.
            bytes += serde_json::to_vec(&listed).map_or(PAGE_BYTES, |text| text.len()) + 1;
            let is_full = bytes > PAGE_BYTES || page.pidfds.len() == PAGE_FDS;
            if is_full && !page.containers.is_empty() {
                page.next = Some(number);
                return page;
            }
            page.containers.push(listed);
            page.pidfds.extend(pidfd);
        }
        page
    }
}

impl Containers {
    /// The containers from number `from` on, as many as fit.
    pub(in crate::keeper) fn page(&self, from: usize) -> Page {
        Page::fill(self.listed(from))
    }

    /// One page of all containers, as many as fit, for a daemon that reads one page only: running ones first, exit
    /// messages cut short.
    pub(in crate::keeper) fn only_page(&self) -> Page {
        let (running, ended): (Vec<_>, Vec<_>) = self
            .listed(0)
            .partition(|(_, listed, _)| listed.exit.is_none());
        let mut all: Vec<_> = running.into_iter().chain(ended).collect();
        for (_, listed, _) in &mut all {
            if let Some(exit) = &mut listed.exit {
                exit.cause.shorten(SHORT_TEXT);
                let end = exit.message.floor_char_boundary(SHORT_TEXT);
                exit.message.truncate(end);
            }
        }
        Page::fill(all.into_iter())
    }

    /// The containers from number `from` on, and pidfds of those that have not ended.
    fn listed(
        &self,
        from: usize,
    ) -> impl Iterator<Item = (usize, ListedContainer, Option<OwnedFd>)> {
        let slots = self.slots.iter().enumerate().skip(from);
        slots.filter_map(|(number, slot)| {
            let entry = slot.as_ref()?;
            let (exit, pidfd) = match &entry.state {
                State::Exited(exit) => (Some(exit.clone()), None),
                // Without a free descriptor, the daemon finds the process by its record.
                _ => (None, Some(entry.pidfd.try_clone().ok()?)),
            };
            let listed = ListedContainer {
                id: entry.id.clone(),
                started_at: entry.started_at,
                exit,
                starting: entry.state.is_starting(),
            };
            Some((number, listed, pidfd))
        })
    }

    /// Forgets the container that exited first, if there are too many.
    pub(super) fn bound_exited(&mut self) {
        let ended = |slot: &Option<super::Entry>| match slot.as_ref().map(|entry| &entry.state) {
            Some(State::Exited(exit)) => Some(exit.finished_at),
            _ => None,
        };
        let all = self.slots.iter().enumerate();
        let ends: Vec<_> = all
            .filter_map(|(at, slot)| Some((ended(slot)?, at)))
            .collect();
        if ends.len() > MAX_EXITED
            && let Some((_, first)) = ends.into_iter().min()
        {
            self.slots[first] = None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use coracle_control::frame::{Frame, MAX_BODY};
    use coracle_control::messages::{Answer, FromKeeper};
    use coracle_spec::id::{ContainerId, PodId};
    use coracle_spec::{Cause, Exit, MAX_CAUSE_BYTES, MAX_MESSAGE_BYTES};

    fn trapped(text: &str) -> ListedContainer {
        let mut cause = Cause::Trap(text.to_owned());
        cause.shorten(MAX_CAUSE_BYTES);
        ListedContainer {
            id: ContainerId::random().unwrap(),
            started_at: i64::MIN,
            exit: Some(Exit {
                code: i32::MIN,
                signal: Some(i32::MIN),
                finished_at: i64::MIN,
                cause,
                message: text[..text.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned(),
            }),
            starting: false,
        }
    }

    #[test]
    fn every_page_fits_a_frame_and_none_is_left_out() {
        // Texts that JSON makes longest, and a cut in the middle of a character.
        for text in [
            "\u{1}".repeat(100_000),
            "\u{1f600}".repeat(50_000),
            String::new(),
        ] {
            let all: Vec<ListedContainer> = (0..700).map(|_| trapped(&text)).collect();
            let ids: Vec<_> = all.iter().map(|listed| listed.id.clone()).collect();
            let (mut seen, mut from) = (Vec::new(), 0);
            let again = |listed: &ListedContainer| ListedContainer {
                id: listed.id.clone(),
                started_at: listed.started_at,
                exit: listed.exit.clone(),
                starting: listed.starting,
            };
            loop {
                let rest = all.iter().enumerate().skip(from);
                let page = Page::fill(rest.map(|(number, listed)| (number, again(listed), None)));
                seen.extend(page.containers.iter().map(|listed| listed.id.clone()));
                let answer = Answer::Greeting {
                    protocol: u16::MAX,
                    engine_hash: "f".repeat(64),
                    pod: PodId::random().unwrap(),
                    containers: page.containers,
                    next: page.next,
                };
                let request = u64::MAX;
                let frame = Frame::pack(&FromKeeper::Answer { request, answer }, Vec::new());
                assert!(frame.unwrap().body.len() <= MAX_BODY);
                match page.next {
                    Some(next) => from = next,
                    None => break,
                }
            }
            assert_eq!(seen, ids);
        }
    }

    #[test]
    fn a_page_carries_no_more_descriptors_than_a_frame() {
        let running = |number| {
            let listed = ListedContainer {
                exit: None,
                ..trapped("")
            };
            let pidfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
            (number, listed, Some(pidfd))
        };
        let page = Page::fill((0..300).map(running));
        assert_eq!((page.pidfds.len(), page.next), (PAGE_FDS, Some(PAGE_FDS)));
    }

    #[test]
    fn a_text_is_cut_at_a_character() {
        let mut cause = Cause::Trap("a\u{1f600}b".to_owned());
        cause.shorten(3);
        assert_eq!(cause, Cause::Trap("a".to_owned()));
    }
}
