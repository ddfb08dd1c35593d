//! The benchmark of HTTP functions: one component behind Coracle and behind `wasmtime serve`, beside a native server
//! under containerd and runc, all on one machine, in one run.
//!
//! [`server`] starts the servers and knows what is their own; [`load`] drives them with wrk, each in turn at each number of
//! connections, so that a machine that is busy for a while is so for all of them; [`cold`] times what happens before the
//! first answer; [`report`] prints one table with ratios and the JSON that CI keeps.
//! Every server is reached through the veth of a network namespace; nothing listens at the node's own addresses.

pub mod cold;
pub mod load;
pub mod report;
pub mod server;

use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long one run of wrk takes.
    pub run: Duration,
    /// How many runs each server has at each number of connections; the median counts.
    pub rounds: usize,
    /// Pods that are started and removed one after the other to time the first answer of each.
    pub first_answers: usize,
    /// Functions that sleep at the same time, whose memory is read.
    pub idle_functions: usize,
    /// How many of them are woken, one after the other.
    pub wakes: usize,
    /// How often a function in Python is woken.
    pub python_wakes: usize,
}

impl Plan {
    /// The plan of `make bench-http`.
    pub const FULL: Self = Self {
        run: Duration::from_secs(5),
        rounds: 3,
        first_answers: 60,
        idle_functions: 500,
        wakes: 200,
        python_wakes: 20,
    };
    /// Short runs, to see that everything works.
    pub const QUICK: Self = Self {
        run: Duration::from_secs(1),
        rounds: 1,
        first_answers: 5,
        idle_functions: 10,
        wakes: 10,
        python_wakes: 3,
    };
}
