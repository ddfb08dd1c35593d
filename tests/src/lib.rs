//! The end-to-end harness: starts real parts (a daemon, a registry, a peer runtime), drives them only through the CRI
//! socket and the command line, and looks at what they leave on the machine.
//!
//! Flow of a test: [`scratch`] gives it a corner of the machine of its own, [`registry`] and [`push`] the images made
//! from [`guests`], [`daemon`] a running Coracle, [`client`] the calls, [`log`] the lines it wrote, [`leaks`] the proof
//! that nothing stayed. [`peer`] is containerd + runc behind the same calls; [`mod@bench`] measures both.
//!
//! Invariants: every process, mount, interface and cgroup made here carries the scratch's number in its name or its
//! cgroup, so it can be found and removed even after a crash of the tests. Nothing here links or reads the product's
//! code; the harness knows the CRI, the command line, and the names listed in [`daemon`].

pub mod bench;
pub mod bench_http;
pub mod bench_images;
pub mod builds;
pub mod churn;
pub mod client;
pub mod cni;
pub mod collector;
pub mod component;
pub mod conformance;
pub mod crictl;
pub mod daemon;
pub mod dependencies;
pub mod dice;
pub mod faulty_registry;
pub mod fuse;
pub mod guests;
pub mod hostile;
pub mod http;
pub mod kubelet;
pub mod leaks;
pub mod linux;
pub mod log;
pub mod nameserver;
pub mod oracle;
pub mod peer;
pub mod power;
pub mod procs;
pub mod protobuf;
pub mod push;
pub mod raw;
pub mod registry;
pub mod retry;
pub mod scale;
pub mod scratch;
pub mod scripted_registry;
pub mod streaming;
pub mod tools;
pub mod vitals;

/// What a step of the harness gives back. The error is for a reader: it names the step and the object.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
