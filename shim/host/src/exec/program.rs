//! What the first word of an exec in a Wasm container names: its own module, another one of its image, or a tool.
//!
//! Called by: execs and probes in Wasm containers. Calls: the image, for its modules.
//! Invariant: a word that names nothing runs nothing; the container's own module runs a second time only for who asks for
//! it.
//! Not here: compiling, the tools themselves.

use coracle_images::{Kind as ImageKind, WasmImage};
use coracle_lifecycle::{Error, Kind, StartRequest, WasmPlan};
use coracle_spec::{Tool, Toolbox};

use super::shell;
use crate::Host;
use crate::plan::Module;

/// Runs the container's own module, whatever that is called.
const SELF: &str = "--self";
/// Exit codes of shells: nothing of that name, and a line that is not understood.
const NOT_FOUND: i32 = 127;
const MISUSED: i32 = 2;
/// Most directories of `PATH` that are looked into.
const MAX_PATH: usize = 16;

/// What is to run.
pub(super) enum Program {
    /// The container's own module.
    Own,
    /// Another module of its image, which has this id.
    Module(Module, coracle_images::ImageId),
    /// One of ours.
    Tool(Toolbox),
}

impl Host {
    /// What `argv` names in the container of `launch`; `argv` becomes what that is to be told.
    /// Errors: the image cannot be read, or the container's keeper is too old for the answer.
    pub(super) async fn program(
        &self,
        launch: &StartRequest,
        own: &WasmPlan,
        argv: &mut Vec<String>,
    ) -> Result<Program, Error> {
        if own.toolbox
            && shell::is_shell(&argv[0])
            && self.named_program(launch, own, argv).await?.is_none()
        {
            match shell::command(argv, &launch.plan.env) {
                Ok(words) => *argv = words,
                Err(text) => return self.message(launch, MISUSED, text),
            }
        }
        if let Some(module) = self.named_program(launch, own, argv).await? {
            return Ok(module);
        }
        if own.toolbox
            && let Some(toolbox) = self.toolbox(launch, &argv[0]).await?
        {
            return match self.knows(launch, toolbox.tool) {
                true => Ok(Program::Tool(toolbox)),
                false => Err(too_old(&argv[0])),
            };
        }
        if Names::of(launch, None).has_without_suffix(&argv[0]) {
            return Ok(Program::Own);
        }
        let text = nothing(&argv[0], &launch.plan.args[0], own.toolbox);
        self.message(launch, NOT_FOUND, text)
    }

    /// The container's own module or another one of its image, if one of them is named.
    async fn named_program(
        &self,
        launch: &StartRequest,
        own: &WasmPlan,
        argv: &mut [String],
    ) -> Result<Option<Program>, Error> {
        if argv[0] == SELF {
            argv[0].clone_from(&launch.plan.args[0]);
            return Ok(Some(Program::Own));
        }
        let image = self.image_of(&launch.plan);
        let wasm = image.as_ref().and_then(|image| match &image.kind {
            ImageKind::Wasm(wasm) => Some(wasm),
            ImageKind::Linux(_) | ImageKind::Artifact(_) => None,
        });
        let is_images = |wasm: &&WasmImage| wasm.module.hex() == own.module_digest;
        if Names::of(launch, wasm.filter(is_images)).has(&argv[0]) {
            return Ok(Some(Program::Own));
        }
        let Some(image) = &image else {
            return Ok(None);
        };
        for path in candidates(&argv[0], &launch.plan.env) {
            if let Some(module) = self.named_module(image, &path).await? {
                return Ok(Some(Program::Module(module, image.id.clone())));
            }
        }
        Ok(None)
    }

    /// Whether the keeper of the container has this tool: one of another engine may be of an older build.
    fn knows(&self, launch: &StartRequest, tool: Tool) -> bool {
        tool.is_in_every_build() || launch.engine.hash == self.own_engine().hash
    }

    fn message(&self, launch: &StartRequest, code: i32, text: String) -> Result<Program, Error> {
        match self.knows(launch, Tool::Message) {
            true => Ok(Program::Tool(Toolbox::message(code, text))),
            false => Err(Error::new(Kind::StartFailed, text)),
        }
    }
}

/// Where `program` may lie: as it is, then, for a bare name, in the directories of the container's `PATH`.
fn candidates(program: &str, env: &[(String, String)]) -> Vec<String> {
    let path = env.iter().find(|(name, _)| name == "PATH");
    let directories = path.map_or("", |(_, value)| value).split(':');
    let is_bare = !program.is_empty() && !program.contains('/');
    let found = directories.filter(|directory| is_bare && directory.starts_with('/'));
    let found = found
        .take(MAX_PATH)
        .map(|directory| format!("{directory}/{program}"));
    std::iter::once(program.to_owned()).chain(found).collect()
}

/// What the container's own module is called.
struct Names<'a>(Vec<&'a str>);

impl<'a> Names<'a> {
    /// By the container's first argument; by the path in `image`, too, if it is that image's own.
    fn of(launch: &'a StartRequest, image: Option<&'a WasmImage>) -> Self {
        let path = image.and_then(|image| image.guest_path.as_deref());
        Self(
            path.into_iter()
                .chain([launch.plan.args[0].as_str()])
                .collect(),
        )
    }

    /// Whether `program` is one of the names, or the last part of one.
    fn has(&self, program: &str) -> bool {
        self.0
            .iter()
            .any(|name| *name == program || last(name) == program)
    }

    /// Whether `program` is one of the names, or the last part of one, without its `.wasm`.
    fn has_without_suffix(&self, program: &str) -> bool {
        let stems = self.0.iter().filter_map(|name| name.strip_suffix(".wasm"));
        stems
            .into_iter()
            .any(|stem| stem == program || last(stem) == program)
    }
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The message for a name that is neither a module nor a tool.
fn nothing(program: &str, own: &str, has_toolbox: bool) -> String {
    let own =
        format!("its own program ({own}, or {SELF}) and other modules of its image by their paths");
    if !has_toolbox {
        return format!("{program}: not found; this WebAssembly container has {own}");
    }
    let tools: Vec<&str> = Tool::ALL.iter().map(|(name, _)| *name).collect();
    format!(
        "{program}: not found; this WebAssembly container has {own}, and the tools {}",
        tools.join(" ")
    )
}

fn too_old(program: &str) -> Error {
    let text = format!(
        "{program}: the pod was started by an older build of Coracle, which has no such tool; a new pod has it"
    );
    Error::new(Kind::StartFailed, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_names_are_looked_for_in_the_path() {
        let env = [("PATH".to_owned(), "/bin:relative:/opt/x".to_owned())];
        assert_eq!(candidates("sh", &env), ["sh", "/bin/sh", "/opt/x/sh"]);
        assert_eq!(candidates("./sh", &env), ["./sh"]);
        assert_eq!(candidates("sh", &[]), ["sh"]);
        assert_eq!(candidates("", &env), [""]);
    }
}
