//! Attach: connects a client to the standard streams of a container's own program.
//!
//! Called by: `Pods`. Calls: the pod's keeper, which feeds the output through pipes and hands over the input's
//! descriptor.
//! Invariants: a client that comes and goes changes nothing for the container, unless its input is to be used once; any
//! number of clients may be attached at a time, each with pipes of its own.
//! Must not know: whether the container runs (its driver knows).

use coracle_control::keeper::AttachOptions;
use coracle_lifecycle::{AttachConfig, Error, Kind, StartRequest};
use coracle_streaming::Streams;
use tokio::sync::watch;

use super::channel::{Channel, ClientReader};
use super::exec::pipe;
use super::{Host, runtime_error};

impl Host {
    /// Attaches a client to the running container of `request` until its output ends.
    ///
    /// Errors: Invalid when the client sends input and the container takes none; WrongPhase when it has ended
    /// meanwhile.
    pub async fn attach(
        &self,
        request: &StartRequest,
        config: AttachConfig,
        streams: Streams,
    ) -> Result<(), Error> {
        let what = || format!("attach to container {}", request.id);
        let (container_tty, once) = (request.config.tty, request.config.stdin_once);
        if config.stdin && !request.config.stdin {
            let text = format!("{}: it was created without standard input", what());
            return Err(Error::new(Kind::Invalid, text));
        }
        // Its end shows the container's end, also for a client that reads no output.
        let (out, stdout) = pipe()?;
        let (err, stderr) = (config.stderr && !container_tty)
            .then(pipe)
            .transpose()?
            .unzip();
        let options = AttachOptions {
            container: request.id.clone(),
            stdin: config.stdin,
            once: once && !container_tty,
            stdout: Some(stdout),
            stderr,
        };
        let joined = request.keeper.attach(options).await;
        let joined = joined.map_err(|error| runtime_error(what(), error))?;
        let input = joined.input.map(Channel::new).transpose()?;
        let ours = Joined {
            input,
            tty: joined.tty,
            once,
            out: Channel::new(out)?,
            err: err.map(Channel::new).transpose()?,
        };
        ours.converse(streams).await;
        Ok(())
    }
}

/// A client's ends of a container's streams.
struct Joined {
    input: Option<Channel>,
    tty: bool,
    once: bool,
    out: Channel,
    err: Option<Channel>,
}

impl Joined {
    async fn converse(self, streams: Streams) {
        let (_running, ended) = watch::channel(false);
        let output = async {
            let err = async {
                if let Some(err) = &self.err {
                    err.pump_out(streams.stderr, ended.clone()).await;
                }
            };
            tokio::join!(self.out.pump_out(streams.stdout, ended.clone()), err);
        };
        let (size, tty, once) = (streams.size.clone(), self.tty, self.once);
        let feeding = async {
            match self.input {
                Some(input) if tty => {
                    tokio::join!(
                        input.follow_size(size),
                        type_in(&input, streams.stdin, once)
                    );
                }
                Some(input) => {
                    if let Some(mut client) = streams.stdin {
                        input.pump_in(&mut client).await;
                    }
                    drop(input);
                }
                None => {}
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = output => {}
            () = feeding => {}
        }
    }
}

/// The client's input; its end is the end of the container's input only if that is used once.
async fn type_in(terminal: &Channel, client: Option<ClientReader>, once: bool) {
    if let Some(mut client) = client {
        terminal.pump_in(&mut client).await;
        if once {
            terminal.end_input().await;
        }
    }
}
