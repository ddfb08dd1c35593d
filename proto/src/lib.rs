//! The Kubernetes Container Runtime Interface: messages, client and server of CRI v1, API v0.37.
//!
//! Place in the flow: the outermost ring. The daemon serves these types and the end-to-end tests call
//! them; neither the image store nor the sandbox knows that they exist.
//!
//! Invariants: `api.proto` is the only source of the types of CRI, and `tests/fields.rs` holds what was compiled
//! from it against `fields.txt`, so that no name and no number moves unnoticed. Maps are `BTreeMap`s, so
//! that a message renders the same way twice. `Debug` of a message never shows a credential or the value
//! of an environment variable.
//!
//! Not here: the meaning of requests and replies, which is the daemon's business.

#![forbid(unsafe_code)]

mod redact;

/// The generated code, laid out like the protocol's package `runtime.v1`.
pub mod runtime {
    /// Messages, `runtime_service_client`/`_server` and `image_service_client`/`_server`.
    ///
    /// Source: `api.proto`. Enum fields are `i32`; compare them with `Enum::Variant as i32` or read them
    /// with the getter of the field's name, which turns an unknown number into the enum's zero value.
    #[allow(
        missing_docs,
        deprecated,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated from api.proto; the protocol's names and comments are not ours to lint"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
    }
}

/// Our own protocol beside CRI: images as files.
pub mod archives {
    /// Messages, `archive_service_client`/`_server`. Source: `archives.proto`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated from archives.proto, which has the comments"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/coracle.archives.v1.rs"));
    }
}

/// Our own protocol for operators of the running daemon.
pub mod admin {
    /// Messages, `admin_service_client`/`_server`; messages serialize to what `--json` prints. Source: `admin.proto`.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated from admin.proto, which has the comments"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/coracle.admin.v1.rs"));
    }
}

/// The Node Resource Interface: what plugins and the daemon say to each other.
pub mod nri {
    /// Messages. Source: `nri.proto`, which has the names and numbers of NRI 0.12.
    #[allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::restriction,
        reason = "generated from nri.proto, which has the comments"
    )]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/coracle.nri.v1.rs"));
    }
}

/// The encoded `google.protobuf.FileDescriptorSet` of `api.proto`, without source positions.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
