//! What every instance of one component finds around it: arguments, environment, working directory, directories.
//!
//! [`super::host`] makes it once for all instances of a container. [`link`] replaces the functions of WASI 0.2 and 0.3 that
//! hand it out, so that an instance costs nothing for what its guest does not ask for: wasmtime-wasi copies every variable and
//! opens every directory for each instance, which a request would pay for.
//! Invariant: instances share directories, but no position in them and nothing that one of them has opened.
//! Not here: preview 1, which takes the same from wasmtime-wasi's context.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::filesystem::{Descriptor, Dir};

use super::host::ComponentState;
use super::preopens;
use coracle_spec::{ContainerSpec, WasmSpec};

/// The interfaces of one version of WASI, and the one function whose name is not the same in all.
pub(super) struct Names {
    environment: &'static str,
    working_dir: &'static str,
    preopens: &'static str,
}

/// Those of 0.2; the linker gives them to importers of every 0.2 version.
pub(super) const P2: Names = Names {
    environment: "wasi:cli/environment@0.2.12",
    working_dir: "initial-cwd",
    preopens: "wasi:filesystem/preopens@0.2.12",
};

/// Those of 0.3.
pub(super) const P3: Names = Names {
    environment: "wasi:cli/environment@0.3.0",
    working_dir: "get-initial-cwd",
    preopens: "wasi:filesystem/preopens@0.3.0",
};

/// What the guests of one container are given.
pub(super) struct Surroundings {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    working_dir: String,
    directories: Vec<(Dir, String)>,
}

impl Surroundings {
    /// Those of `wasm` in a container of `spec`; calls on its directories may wait if `may_block`.
    ///
    /// Errors: a directory cannot be opened, or the working directory is none.
    pub(super) fn new(
        spec: &ContainerSpec,
        wasm: &WasmSpec,
        may_block: bool,
    ) -> wasmtime::Result<Self> {
        let directories = preopens::list(spec, wasm)?.into_iter();
        Ok(Self {
            arguments: wasm.args.clone(),
            environment: environment(wasm),
            working_dir: wasm.working_dir.clone(),
            directories: directories
                .map(|directory| directory.open(may_block))
                .collect::<wasmtime::Result<_>>()?,
        })
    }
}

/// The variables of a guest: the container's, and where it starts.
pub(super) fn environment(wasm: &WasmSpec) -> Vec<(String, String)> {
    let mut all = wasm.env.clone();
    // What Go's and other standard libraries start in; a container that sets it knows better.
    if preopens::has_own_directory(wasm) && !all.iter().any(|(name, _)| name == "PWD") {
        all.push(("PWD".to_owned(), wasm.working_dir.clone()));
    }
    all
}

/// Puts our functions in place of those that `linker` has. Errors: the engine refuses a definition.
pub(super) fn link(linker: &mut Linker<ComponentState>, names: &Names) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(names.environment)?;
    interface.func_wrap("get-arguments", |store: Store<'_>, (): ()| {
        Ok((store.data().surroundings.arguments.clone(),))
    })?;
    interface.func_wrap("get-environment", |store: Store<'_>, (): ()| {
        Ok((store.data().surroundings.environment.clone(),))
    })?;
    interface.func_wrap(names.working_dir, |store: Store<'_>, (): ()| {
        Ok((Some(store.data().surroundings.working_dir.clone()),))
    })?;
    let mut interface = linker.instance(names.preopens)?;
    interface.func_wrap("get-directories", |mut store: Store<'_>, (): ()| {
        Ok((directories(store.data_mut())?,))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

type Store<'a> = StoreContextMut<'a, ComponentState>;

fn directories(
    state: &mut ComponentState,
) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
    let surroundings = state.surroundings.clone();
    let table = state.ctx().table;
    let mut given = Vec::with_capacity(surroundings.directories.len());
    for (dir, name) in &surroundings.directories {
        given.push((table.push(Descriptor::Dir(dir.clone()))?, name.clone()));
    }
    Ok(given)
}
