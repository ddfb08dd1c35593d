//! Composes a component with another that it imports, for `pack --plug`.
//!
//! Called by: `pack`, once for each dependency, in their order: what a dependency imports in turn is plugged by one after it.
//! Calls: wac-graph, which links the types and writes the component.
//! Invariants: the same two files give the same component, byte for byte; a dependency that would change nothing is refused,
//! and so is one whose export has the name of an import and another type.
//! Must not know: images; where the files come from.

use std::collections::HashSet;
use std::error::Error as StdError;
use std::path::Path;

use wac_graph::types::{Package, SubtypeChecker, are_semver_compatible};
use wac_graph::{CompositionGraph, EncodeOptions, PackageId, PlugError, plug};

use crate::error::Error;
use crate::module::Module;

/// Most names of imports or exports that a message lists.
const MAX_NAMES: usize = 6;

/// A file that takes part: where it was, for messages, and what is in it.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) path: &'a Path,
    pub(crate) bytes: &'a [u8],
}

impl Part<'_> {
    /// Its imports and exports. Errors: it is no component.
    fn names(&self) -> Result<(Vec<String>, Vec<String>), Error> {
        let path = self.path.display();
        match Module::read(self.bytes) {
            Ok(Module::Component { imports, exports }) => Ok((imports, exports)),
            Ok(Module::Core) => Err(Error::new(format!(
                "{path} is a core module, and --plug composes components: make one of it first, for example with `wasm-tools component new`"
            ))),
            Err(problem) => Err(Error::because(&path.to_string(), problem)),
        }
    }

    /// Adds it to a graph. Errors: it is no valid component.
    fn add(&self, name: &str, graph: &mut CompositionGraph) -> Result<PackageId, Error> {
        let invalid = |problem| {
            let path = self.path.display();
            Error::new(format!("{path} is no valid component: {problem}"))
        };
        let package = Package::from_bytes(name, None, self.bytes, graph.types_mut());
        let package = package.map_err(|error| invalid(format!("{error:#}")))?;
        let added = graph.register_package(package);
        added.map_err(|error| invalid(chain(&error)))
    }
}

/// The component that has the exports of `main`, with those of `dependency` for its imports. What else the two import, it
/// imports.
///
/// Errors: one of them is no component, or they do not fit.
pub(crate) fn compose(main: Part<'_>, dependency: Part<'_>) -> Result<Vec<u8>, Error> {
    let (imports, _) = main.names()?;
    let (_, exports) = dependency.names()?;
    let (socket_path, plug_path) = (main.path.display(), dependency.path.display());
    let mut graph = CompositionGraph::new();
    let socket = main.add("main", &mut graph)?;
    let plugged = dependency.add("dependency", &mut graph)?;
    if let Some(problem) = mismatch(&graph, socket, plugged) {
        return Err(Error::new(format!(
            "{plug_path} does not fit {socket_path}: {problem}"
        )));
    }
    let failed = |error: &dyn StdError| {
        Error::because(
            &format!("compose {socket_path} with {plug_path}"),
            chain(error),
        )
    };
    match plug(&mut graph, vec![plugged], socket) {
        Ok(()) => {}
        Err(PlugError::NoPlugHappened) => {
            let (exports, imports) = (listed(exports), listed(imports));
            return Err(Error::new(format!(
                "{plug_path} exports nothing that {socket_path} imports: there are exports of {exports}, and imports of {imports}; what only a dependency imports is plugged after that one"
            )));
        }
        Err(error) => return Err(failed(&error)),
    }
    let encoded = graph.encode(EncodeOptions::default());
    encoded.map_err(|error| failed(&error))
}

/// The first export that has the name of an import, and cannot stand for it.
fn mismatch(graph: &CompositionGraph, socket: PackageId, plugged: PackageId) -> Option<String> {
    let types = graph.types();
    let imports = &types[graph[socket].ty()].imports;
    let exports = &types[graph[plugged].ty()].exports;
    let mut cache = HashSet::new();
    let mut checker = SubtypeChecker::new(&mut cache);
    exports.iter().find_map(|(export, kind)| {
        // As `plug` looks for it: this version of an interface, else one that is compatible.
        let exact = imports.get_key_value(export);
        let mut compatible = imports.iter();
        let (import, wanted) = exact
            .or_else(|| compatible.find(|(import, _)| are_semver_compatible(export, import)))?;
        let error = checker.is_subtype(*kind, types, *wanted, types).err()?;
        Some(match import == export {
            true => format!("they have different types for {export}: {error:#}"),
            false => format!("its {export} does not have what {import} needs: {error:#}"),
        })
    })
}

/// Names for a message, those of WASI last.
fn listed(mut names: Vec<String>) -> String {
    names.sort_by_key(|name| name.starts_with("wasi:"));
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    match (names.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests;
