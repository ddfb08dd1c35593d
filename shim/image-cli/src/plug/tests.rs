use super::*;

/// Imports a number of one interface and exports it by another.
fn relay(import: &str, export: &str) -> Vec<u8> {
    wasm(&format!(
        r#"(component
            (import "{import}" (instance $from (export "get" (func (result u32)))))
            (alias export $from "get" (func $get))
            (instance $to (export "get" (func $get)))
            (export "{export}" (instance $to)))"#
    ))
}

/// Exports a value of this type by an interface, and imports nothing.
fn source(export: &str, result: &str) -> Vec<u8> {
    wasm(&format!(
        r#"(component
            (core module $m (func (export "get") (result i32) (i32.const 42)))
            (core instance $i (instantiate $m))
            (func $get (result {result}) (canon lift (core func $i "get")))
            (instance $to (export "get" (func $get)))
            (export "{export}" (instance $to)))"#
    ))
}

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn part<'a>(path: &'a str, bytes: &'a [u8]) -> Part<'a> {
    let path = Path::new(path);
    Part { path, bytes }
}

fn names(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
    part("composed.wasm", bytes).names().unwrap()
}

#[test]
fn a_dependency_takes_the_place_of_an_import_and_brings_its_own() {
    let main = relay("a:b/c@1.0.0", "a:b/run@1.0.0");
    // Of another version, which is compatible.
    let first = relay("x:y/z@0.1.0", "a:b/c@1.2.0");
    let second = source("x:y/z@0.1.0", "u32");
    let once = compose(part("main", &main), part("first", &first)).unwrap();
    let exports = vec!["a:b/run@1.0.0".to_owned()];
    assert_eq!(
        names(&once),
        (vec!["x:y/z@0.1.0".to_owned()], exports.clone())
    );
    let twice = compose(part("main", &once), part("second", &second)).unwrap();
    assert_eq!(names(&twice), (Vec::new(), exports));
    let again = compose(part("other", &once), part("name", &second)).unwrap();
    assert_eq!(again, twice, "the bytes depend on more than the files");
}

#[test]
fn what_cannot_be_plugged_is_refused_in_words_that_say_why() {
    let main = relay("a:b/c@1.0.0", "a:b/run@1.0.0");
    let core = wasm("(module (func (export \"get\")))");
    let fits = source("a:b/c@1.0.0", "u32");
    let composed = compose(part("main.wasm", &main), part("fits.wasm", &fits)).unwrap();
    let mut cut = fits.clone();
    cut.truncate(cut.len() - 3);
    // Half an instruction: bodies are looked at when all is composed.
    let mut body = fits.clone();
    let at = body.windows(2).position(|pair| pair == [0x41, 42]);
    body[at.unwrap()] = 0x43;
    let lifted = wasm(
        r#"(component
            (core module $m (func (export "get")))
            (core instance $i (instantiate $m))
            (func $get (result u32) (canon lift (core func $i "get")))
            (export "a" (func $get)))"#,
    );
    for (main, dependency, says) in [
        (
            &main,
            source("x:y/z@0.1.0", "u32"),
            "dep.wasm exports nothing that main.wasm imports: there are exports of x:y/z@0.1.0, and imports of a:b/c@1.0.0",
        ),
        (
            &composed,
            fits.clone(),
            "dep.wasm exports nothing that main.wasm imports: there are exports of a:b/c@1.0.0, and imports of nothing",
        ),
        (
            &main,
            source("a:b/c@2.0.0", "u32"),
            "there are exports of a:b/c@2.0.0, and imports of a:b/c@1.0.0",
        ),
        (
            &main,
            source("a:b/c@1.0.0", "s32"),
            "dep.wasm does not fit main.wasm: they have different types for a:b/c@1.0.0: ",
        ),
        (
            &main,
            source("a:b/c@1.1.0", "s32"),
            "dep.wasm does not fit main.wasm: its a:b/c@1.1.0 does not have what a:b/c@1.0.0 needs: ",
        ),
        (
            &main,
            core.clone(),
            "dep.wasm is a core module, and --plug composes components",
        ),
        (
            &core,
            fits.clone(),
            "main.wasm is a core module, and --plug composes components",
        ),
        (
            &main,
            b"(component)".to_vec(),
            "dep.wasm: it is not a WebAssembly module or component in the binary format",
        ),
        (&main, cut, "dep.wasm: unexpected end"),
        (&main, lifted, "dep.wasm is no valid component: "),
        (&main, body, "compose main.wasm with dep.wasm: "),
    ] {
        let refused = compose(part("main.wasm", main), part("dep.wasm", &dependency));
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(says), "{refused} does not say {says}");
        assert!(!refused.contains('\n'), "{refused}");
    }
}

#[test]
fn a_message_lists_some_names_and_those_of_wasi_last() {
    let names = |count: usize| (0..count).map(|number| format!("a:b/{number}"));
    let wasi = std::iter::once("wasi:io/poll@0.2.0".to_owned());
    assert_eq!(listed(Vec::new()), "nothing");
    assert_eq!(
        listed(wasi.clone().chain(names(1)).collect()),
        "a:b/0, wasi:io/poll@0.2.0"
    );
    assert_eq!(
        listed(wasi.chain(names(7)).collect()),
        "a:b/0, a:b/1, a:b/2, a:b/3, a:b/4, a:b/5 and 2 more"
    );
}
