//! What a WebAssembly file is, as far as its image says it.
//!
//! Called by: `pack`. Pure. Must not know: images.

use wasmparser::{Encoding, Parser, Payload};

/// A file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Module {
    /// A core module.
    Core,
    /// A component, with the names of what it imports and exports.
    Component {
        imports: Vec<String>,
        exports: Vec<String>,
    },
}

impl Module {
    /// Looks into a file. Errors: it is no WebAssembly in the binary format.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        if !bytes.starts_with(b"\0asm") {
            return Err(
                "it is not a WebAssembly module or component in the binary format".to_owned(),
            );
        }
        let (mut imports, mut exports) = (Vec::new(), Vec::new());
        let (mut depth, mut is_component) = (0, false);
        for payload in Parser::new(0).parse_all(bytes) {
            match payload.map_err(problem)? {
                Payload::Version { encoding, .. } => {
                    is_component |= depth == 0 && encoding == Encoding::Component;
                    depth += 1;
                }
                Payload::End(_) => depth -= 1,
                Payload::ComponentImportSection(section) if depth == 1 => {
                    for import in section {
                        imports.push(import.map_err(problem)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 1 => {
                    for export in section {
                        exports.push(export.map_err(problem)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(match is_component {
            true => Self::Component { imports, exports },
            false => Self::Core,
        })
    }

    /// The os that the image is for.
    pub(crate) fn os(&self) -> &'static str {
        match self {
            Self::Core => "wasip1",
            Self::Component { .. } => "wasip2",
        }
    }
}

fn problem(error: wasmparser::Error) -> String {
    error.to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn modules_and_components_are_told_apart() {
        let core = wat::parse_str("(module (import \"env\" \"f\" (func)))").unwrap();
        assert_eq!(Module::read(&core).unwrap(), Module::Core);
        let text = r#"(component
            (import "wasi:io/streams@0.2.0" (instance))
            (component $inner (import "hidden" (func)))
            (core module (import "env" "f" (func)))
            (instance $i)
            (export "wasi:cli/run@0.2.0" (instance $i)))"#;
        let component = wat::parse_str(text).unwrap();
        let names = |name: &str| vec![name.to_owned()];
        let expected = Module::Component {
            imports: names("wasi:io/streams@0.2.0"),
            exports: names("wasi:cli/run@0.2.0"),
        };
        assert_eq!(Module::read(&component).unwrap(), expected);
        for odd in [&b"(module)"[..], b"", b"\0asm", b"\0asm\x01\0\0\0\xff"] {
            Module::read(odd).unwrap_err();
        }
    }
}
