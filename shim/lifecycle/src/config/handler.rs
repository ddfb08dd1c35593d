//! The runtime handlers, as a request names them and a record keeps them.
//!
//! Made by: `cri/convert`, from `runtime_handler`; the settings by the shim, from the configuration. Read by: the driver,
//! the host, and whoever shows a pod.
//! Invariant: the names in a record do not change.
//! Must not know: how a handler runs a program, keys of the configuration file.

use coracle_spec::{HttpLimits, ResourceLimit, Spawn};
use serde::{Deserialize, Deserializer, Serialize};

/// The built-in runtime handlers (DESIGN.md section 5). Those of the operator have names of their own and are like one of
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Handler {
    /// `""`: choose by image.
    Default,
    /// `coracle`: choose by image.
    Coracle,
    /// `coracle-wasm`: Wasm only, a Linux image is refused.
    Wasm,
    /// `coracle-strict`: Wasm only, each instance with an address-space layout of its own.
    Strict,
}

impl Handler {
    /// Every handler, in the order in which Status lists them.
    pub const ALL: [Handler; 4] = [
        Handler::Default,
        Handler::Coracle,
        Handler::Wasm,
        Handler::Strict,
    ];

    /// The handler with that name, if there is one.
    pub fn parse(name: &str) -> Option<Handler> {
        Handler::ALL
            .into_iter()
            .find(|handler| handler.as_str() == name)
    }

    /// Its name in `runtime_handler`.
    pub fn as_str(self) -> &'static str {
        match self {
            Handler::Default => "",
            Handler::Coracle => "coracle",
            Handler::Wasm => "coracle-wasm",
            Handler::Strict => "coracle-strict",
        }
    }

    /// Its name for people: the default handler is `coracle` without its name.
    pub fn shown(self) -> &'static str {
        match self {
            Handler::Default => Handler::Coracle.as_str(),
            named => named.as_str(),
        }
    }

    /// Whether it runs only WebAssembly.
    pub fn is_wasm_only(self) -> bool {
        matches!(self, Handler::Wasm | Handler::Strict)
    }
}

/// How a handler runs containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandlerSettings {
    /// Its name in the configuration, for messages.
    pub name: String,
    /// How a container's process is created.
    pub spawn: Spawn,
    /// The limits of its HTTP servers. Keys of newer builds are skipped.
    #[serde(default, deserialize_with = "recorded_limits")]
    pub http: HttpLimits,
    /// Whether components of WASI 0.3 run.
    #[serde(default)]
    pub wasi_p3: bool,
    /// Most processes and threads of a Linux container; 0 is no limit, `None` (of older builds) the usual one.
    #[serde(default)]
    pub pids_limit: Option<u64>,
    /// Limits of Linux programs that replace the usual ones.
    #[serde(default)]
    pub rlimits: Vec<ResourceLimit>,
    /// Whether Linux programs without CAP_SYS_ADMIN may make no user namespaces.
    #[serde(default)]
    pub no_user_namespaces: bool,
    /// AppArmor profiles of the node, whole names or a prefix and `*`, that containers may have in whatever mode they are.
    #[serde(default)]
    pub apparmor_profiles: Vec<String>,
}

/// Limits as a record has them: what the configuration refuses, a key that this build does not know, is skipped.
fn recorded_limits<'de, D: Deserializer<'de>>(from: D) -> Result<HttpLimits, D::Error> {
    // What is flattened gets only the keys that it knows.
    #[derive(Deserialize)]
    struct Recorded {
        #[serde(flatten)]
        limits: HttpLimits,
    }
    Recorded::deserialize(from).map(|recorded| recorded.limits)
}
