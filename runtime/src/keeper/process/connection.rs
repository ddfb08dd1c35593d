//! A keeper's connection to the daemon: accepts, reads, writes and closes it without blocking.
//!
//! Called by the event loop. Invariant: there is at most one connection, to the newest daemon, which is root; one that
//! breaks the protocol is closed. It must not know what a message means.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::EventLoop;
use crate::keeper::tokens::CONNECTION;
use coracle_control::frame::{Frame, Reader, Writer};
use coracle_control::messages::{FromKeeper, ToKeeper};

/// The daemon's connection and its partial frames.
pub(super) struct Connection {
    socket: OwnedFd,
    reader: Reader,
    writer: Writer,
}

impl EventLoop<'_> {
    /// Accepts the newest daemon and closes an older connection.
    pub(super) fn accept(&mut self) {
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(&self.inherited.listener, flags) else {
            return;
        };
        let is_root = coracle_sys::peer_uid(socket.as_fd()).is_ok_and(|uid| uid == 0);
        if !is_root {
            return;
        }
        self.hang_up();
        if self
            .watch(CONNECTION, socket.as_fd(), EventFlags::IN)
            .is_ok()
        {
            self.connection = Some(Connection {
                socket,
                reader: Reader::default(),
                writer: Writer::default(),
            });
        }
    }

    fn hang_up(&mut self) {
        if let Some(old) = self.connection.take() {
            let _ = epoll::delete(&self.epoll, &old.socket);
        }
        self.containers.forget_requester();
        self.execs.kill_all();
    }

    pub(super) fn receive(&mut self) {
        loop {
            let Some(connection) = &mut self.connection else {
                return;
            };
            match connection.reader.read(connection.socket.as_fd()) {
                Ok(Some(frame)) => match frame.message::<ToKeeper>() {
                    Ok(message) => self.handle_request(message, frame.version, frame.fds),
                    Err(_) => return self.hang_up(),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => return self.hang_up(),
            }
        }
    }

    pub(super) fn send(&mut self, message: &FromKeeper, fds: Vec<OwnedFd>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match Frame::pack(message, fds) {
            Ok(frame) => connection.writer.push(frame),
            Err(_) => self.hang_up(),
        }
    }

    pub(super) fn flush(&mut self) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        let flags = match connection.writer.flush(connection.socket.as_fd()) {
            Ok(()) => EventFlags::IN,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => EventFlags::IN | EventFlags::OUT,
            Err(_) => return self.hang_up(),
        };
        let _ = epoll::modify(
            &self.epoll,
            &connection.socket,
            EventData::new_u64(CONNECTION),
            flags,
        );
    }
}
