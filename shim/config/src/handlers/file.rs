//! `[handlers.*]` as written, and the defaults of each handler.
//!
//! Called by: [`super::super::file`], which contains [`HandlersFile`]. Invariant: when it is filled, no key is left out, so that
//! what is shown is what is in force. Must not know: whether a value is valid.

use std::collections::BTreeMap;

use coracle_cri::policy::Base;
use coracle_spec::{HttpLimits, PIDS_LIMIT};
use serde::{Deserialize, Serialize};

use crate::egress::EgressFile;

/// The built-in handlers, and what their pods may do by default.
pub(super) static BUILT_IN: [BuiltIn; 3] = [
    BuiltIn {
        base: Base::Coracle,
        spawn: Spawn::Fork,
        egress: EgressFile::Any,
        annotations: &["cdi.k8s.io/*"],
        user_namespaces: true,
    },
    BuiltIn {
        base: Base::Wasm,
        spawn: Spawn::Fork,
        egress: EgressFile::Any,
        annotations: &[],
        user_namespaces: true,
    },
    BuiltIn {
        base: Base::Strict,
        spawn: Spawn::Exec,
        egress: EgressFile::None,
        annotations: &[],
        user_namespaces: false,
    },
];

/// What a built-in handler does unless the file says otherwise.
pub(super) struct BuiltIn {
    /// Which one it is.
    pub base: Base,
    spawn: Spawn,
    egress: EgressFile,
    annotations: &'static [&'static str],
    user_namespaces: bool,
}

/// `[handlers.*]` by name: the built-in ones, and those of the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HandlersFile(pub(super) BTreeMap<String, HandlerFile>);

impl Default for HandlersFile {
    fn default() -> Self {
        let mut file = Self(BTreeMap::new());
        file.fill();
        file
    }
}

impl HandlersFile {
    /// Adds the built-in handlers, and sets every key that is left out, to the default of its handler.
    pub(crate) fn fill(&mut self) {
        for built_in in &BUILT_IN {
            self.0.entry(built_in.base.as_str().to_owned()).or_default();
        }
        for (name, file) in &mut self.0 {
            let built_in = BUILT_IN.iter().find(|one| one.base.as_str() == name);
            // The operator's own are like `coracle-wasm`, which honours no annotation that grants something.
            let usual = built_in.unwrap_or(&BUILT_IN[1]);
            file.spawn.get_or_insert(usual.spawn);
            file.pids_limit.get_or_insert(PIDS_LIMIT);
            file.egress.get_or_insert_with(|| usual.egress.clone());
            let annotations = || usual.annotations.iter().map(ToString::to_string).collect();
            file.annotations.get_or_insert_with(annotations);
            file.user_namespaces.get_or_insert(usual.user_namespaces);
        }
    }

    /// The keys of a handler of the operator's own, filled.
    pub(crate) fn template() -> HandlerFile {
        let mut file = Self::default();
        let mut own = file.0.remove(Base::Wasm.as_str()).unwrap_or_default();
        own.kind = Some(Kind::Any);
        own
    }
}

/// `[handlers.NAME]`. A key that is left out takes the default of that handler, not one common to all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HandlerFile {
    /// What a handler of the operator's own runs; the built-in ones have no such key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// How a container's first process is created.
    pub spawn: Option<Spawn>,
    /// The destinations that its pods may reach.
    pub egress: Option<EgressFile>,
    /// Annotations of pods that are honoured although they grant something: whole keys, or a prefix and `*`.
    pub annotations: Option<Vec<String>>,
    /// Whether components of WASI 0.3 run.
    pub wasi_p3: bool,
    /// Most processes and threads of a Linux container; 0 for no limit.
    pub pids_limit: Option<u64>,
    /// Limits of Linux programs by resource, `"N"` or `"SOFT:HARD"`.
    pub rlimits: BTreeMap<String, String>,
    /// Whether Linux programs without CAP_SYS_ADMIN may make user namespaces, if their seccomp profile lets them.
    pub user_namespaces: Option<bool>,
    /// AppArmor profiles of the node that containers may have in whatever mode they are: names, or a prefix and `*`.
    pub apparmor_profiles: Vec<String>,
    /// Exceptions for pods of some namespaces.
    pub namespaces: Vec<NamespaceFile>,
    /// The limits of its HTTP servers.
    pub http: HttpLimits,
}

/// What a handler of the operator's own runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// WebAssembly or Linux, by image.
    Any,
    /// WebAssembly; a Linux image is refused.
    Wasm,
}

/// One entry of `handlers.NAME.namespaces`. Where a key is left out, the handler's applies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceFile {
    /// A namespace, or a prefix and `*`.
    pub namespace: String,
    /// The destinations that their pods may reach.
    #[serde(default)]
    pub egress: Option<EgressFile>,
    /// As [`HandlerFile::annotations`].
    #[serde(default)]
    pub annotations: Option<Vec<String>>,
}

/// How a container's first process is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Spawn {
    /// Forked from the keeper: fastest, but with the spawner's address-space layout.
    #[default]
    Fork,
    /// Executed anew inside the jail: its own layout, for about 3 ms and 2.5 MiB.
    Exec,
}
