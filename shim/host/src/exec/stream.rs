//! A streamed exec: its pipes or its terminal, joined to a client.
//!
//! ```text
//! client --Streams--> pumps here --pipes, by descriptor--> program
//!                              or --controlling side--> terminal
//! ```
//! Called by: [`super`]. Invariants: the keeper copies no bytes; the session ends when the program has ended and its
//! output was read, whoever still holds a pipe; dropping a session kills everything that the program started.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use coracle_control::keeper::{Exec, ExecStreams};
use coracle_control::terminal;
use coracle_lifecycle::{Error, ExecConfig, Kind, Payload, StartRequest};
use coracle_streaming::Streams;
use tokio::sync::watch;

use super::{Stdio, pipe};
use crate::channel::{Channel, ClientReader};
use crate::{Host, io_error, runtime_error};

/// Our ends of an exec's streams.
enum Ours {
    Pipes {
        stdin: Option<Channel>,
        stdout: Channel,
        stderr: Channel,
    },
    Terminal(Channel),
    /// The program has not sent it yet.
    TerminalToCome,
}

impl Host {
    /// Runs a program in the running container of `request` with the client's streams; returns its exit code.
    ///
    /// Errors: StartFailed when the program cannot be executed, WrongPhase when the container has ended meanwhile.
    pub async fn exec_stream(
        self: &Arc<Self>,
        request: &StartRequest,
        config: ExecConfig,
        streams: Streams,
    ) -> Result<i32, Error> {
        let mut leaf = self.exec_leaf(request).await?;
        let stdio = Stdio {
            stdin: config.stdin,
            tty: config.tty,
        };
        let (theirs, ours) = ends(stdio, &request.plan.payload)?;
        let with = (stdio, theirs);
        let order = self.exec_options(request, config.argv, &leaf.cgroup, with);
        let order = order.await?;
        let what = || format!("exec in container {}", request.id);
        let started = request.keeper.exec(order, &self.parts.filters).await;
        let mut exec = started.map_err(|error| runtime_error(what(), error))?;
        leaf.process = Some(exec.process.clone());
        let ours = match (ours, exec.terminal.take()) {
            (Ours::TerminalToCome, Some(terminal)) => Ours::Terminal(Channel::new(terminal)?),
            (ours, _) => ours,
        };
        let code = converse(&mut exec, ours, streams).await?;
        leaf.ended = true;
        Ok(code)
    }
}

/// The program's ends of its streams, and ours.
fn ends(stdio: Stdio, payload: &Payload) -> Result<(ExecStreams, Ours), Error> {
    if !stdio.tty {
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let (stdin, input) = match stdio.stdin {
            true => {
                let (read, write) = pipe()?;
                (Some(read), Some(Channel::new(write)?))
            }
            false => (None, None),
        };
        let ours = Ours::Pipes {
            stdin: input,
            stdout: Channel::new(out)?,
            stderr: Channel::new(err)?,
        };
        let theirs = ExecStreams::Given {
            stdin,
            stdout,
            stderr,
        };
        return Ok((theirs, ours));
    }
    match payload {
        Payload::Linux(_) => Ok((ExecStreams::OwnTerminal, Ours::TerminalToCome)),
        // Wasm has no terminal driver to create one from.
        Payload::Wasm(_) => {
            let pair = terminal::pair();
            let (control, side) = pair.map_err(|error| io_error("make a terminal", error))?;
            let theirs = ExecStreams::Given {
                stdin: Some(copy(&side)?),
                stdout: copy(&side)?,
                stderr: side,
            };
            Ok((theirs, Ours::Terminal(Channel::new(control)?)))
        }
    }
}

fn copy(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    fd.try_clone()
        .map_err(|error| io_error("copy a terminal's descriptor", error))
}

/// Copies bytes until the program has ended and its output was read; returns its exit code.
async fn converse(exec: &mut Exec, ours: Ours, streams: Streams) -> Result<i32, Error> {
    let (say_ended, ended) = watch::channel(false);
    let Streams {
        stdin,
        stdout,
        stderr,
        size,
    } = streams;
    match ours {
        Ours::Pipes {
            stdin: input,
            stdout: out,
            stderr: err,
        } => {
            let feeding = async move {
                if let (Some(mut client), Some(input)) = (stdin, input) {
                    input.pump_in(&mut client).await;
                    // Closing our end passes the client's end on to the program.
                    drop(input);
                }
            };
            let output = async {
                let out = out.pump_out(stdout, ended.clone());
                tokio::join!(out, err.pump_out(stderr, ended.clone()));
            };
            until_end(exec, say_ended, output, feeding).await
        }
        Ours::Terminal(terminal) => {
            let feeding = async {
                tokio::join!(terminal.follow_size(size), type_in(&terminal, stdin));
            };
            let output = terminal.pump_out(stdout, ended.clone());
            until_end(exec, say_ended, output, feeding).await
        }
        Ours::TerminalToCome => Err(Error::new(
            Kind::Bug,
            "an exec's terminal did not come from its keeper",
        )),
    }
}

async fn type_in(terminal: &Channel, client: Option<ClientReader>) {
    if let Some(mut client) = client {
        terminal.pump_in(&mut client).await;
        terminal.end_input().await;
    }
}

/// Waits for an exec's end while its streams are copied, and then for its output; returns its exit code.
async fn until_end(
    exec: &mut Exec,
    say_ended: watch::Sender<bool>,
    output: impl Future<Output = ()>,
    feeding: impl Future<Output = ()>,
) -> Result<i32, Error> {
    let end = async {
        let exit = exec.ended().await;
        let _ = say_ended.send(true);
        exit
    };
    let feeding = async {
        feeding.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ((), exit) = async { tokio::join!(output, end) } => exit
            .map(|exit| exit.code)
            .map_err(|error| runtime_error("wait for an exec's end", error)),
        () = feeding => Err(Error::new(Kind::Bug, "the input of an exec cannot end it")),
    }
}
