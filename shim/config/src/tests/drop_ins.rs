//! Drop-ins: what later files change, how they are refused, and where each value comes from.

use std::os::unix::fs::chown;

use super::*;

/// A directory with `config.toml` and `conf.d`, removed at the end of the test.
struct Tree(PathBuf);

impl Tree {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let name = format!("coracle-drop-ins-{}-{name}", std::process::id());
        let tree = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(tree.0.join("conf.d")).unwrap();
        tree.mode(".", 0o755);
        tree.mode("conf.d", 0o755);
        for (name, text) in files {
            std::fs::write(tree.0.join(name), text).unwrap();
            tree.mode(name, 0o644);
        }
        tree
    }

    fn mode(&self, name: &str, mode: u32) {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.0.join(name), mode).unwrap();
    }

    fn main(&self) -> PathBuf {
        self.0.join("config.toml")
    }

    fn load(&self) -> Result<Config, String> {
        self.load_from(None)
    }

    fn load_from(&self, config_dir: Option<&Path>) -> Result<Config, String> {
        let overrides = Overrides {
            config_dir: config_dir.map(Path::to_owned),
            ..Overrides::default()
        };
        load(Some(&self.main()), &overrides).map_err(|error| error.to_string())
    }

    fn shown(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MAIN: &str = "[log]\nlevel = \"warn\"\n[images]\nplain_http = [\"a\"]\nmax_layers = 7\n\
                    [handlers.coracle]\nspawn = \"exec\"\n";

#[test]
fn later_files_win_key_by_key_and_lists_are_replaced() {
    let tree = Tree::new(
        "order",
        &[
            ("config.toml", MAIN),
            (
                "conf.d/20-b.toml",
                "images.plain_http = [\"c\", \"d\"]\n[log]\nformat = \"json\"\n",
            ),
            (
                "conf.d/10-a.toml",
                "[images]\nplain_http = [\"b\"]\nmax_layers = 8\n",
            ),
            ("conf.d/A.toml", "handlers.coracle.egress = \"none\"\n"),
            ("conf.d/.hidden.toml", "nonsense"),
            ("conf.d/30.toml~", "nonsense"),
            ("conf.d/README", "nonsense"),
        ],
    );
    let same = "[log]\nlevel = \"warn\"\nformat = \"json\"\n[images]\nplain_http = [\"c\", \"d\"]\nmax_layers = 8\n\
                [handlers.coracle]\nspawn = \"exec\"\negress = \"none\"\n";
    assert_eq!(tree.load(), from(same));
    let names = [
        "config.toml",
        "conf.d/10-a.toml",
        "conf.d/20-b.toml",
        "conf.d/A.toml",
    ];
    let read = files(Some(&tree.main()), &Overrides::default()).unwrap();
    assert_eq!(read, names.map(|name| tree.0.join(name)));
    assert_eq!(tree.load_from(Some(Path::new(""))), from(MAIN));
}

#[test]
fn another_directory_of_drop_ins_has_to_exist() {
    let tree = Tree::new("other", &[("config.toml", MAIN)]);
    let other = Tree::new("named", &[("conf.d/1.toml", "root = \"/b\"\n")]);
    let config = tree.load_from(Some(&other.0.join("conf.d"))).unwrap();
    assert_eq!(config.root, Path::new("/b"));
    let absent = other.shown("absent");
    let refused = tree.load_from(Some(Path::new(&absent))).unwrap_err();
    assert_eq!(refused, format!("read configuration {absent}"));
    std::fs::remove_dir(tree.0.join("conf.d")).unwrap();
    assert_eq!(tree.load(), from(MAIN));
}

#[test]
fn the_file_and_line_that_are_to_blame_are_named() {
    for (text, line, problem) in [
        ("[log]\nlevle = 1\n", 2, "log.levle is not a setting"),
        ("[log]\n\nlevel = 1\n", 3, "log.level: "),
        ("[log\n", 1, ""),
        ("\nimages.max_layers = 0\n", 2, "images.max_layers is 0"),
    ] {
        let tree = Tree::new("blame", &[("config.toml", MAIN), ("conf.d/5.toml", text)]);
        let refused = tree.load().unwrap_err();
        let start = format!("{}:{line}: {problem}", tree.shown("conf.d/5.toml"));
        assert!(
            refused.starts_with(&start),
            "{refused:?} does not start with {start:?}"
        );
    }
    // What a drop-in overrides is no longer to blame, and what it does not touch still is.
    let bad = "[images]\nmax_layers = 0\n";
    let tree = Tree::new(
        "blame",
        &[
            ("config.toml", bad),
            ("conf.d/5.toml", "log.level = \"warn\"\n"),
        ],
    );
    let refused = tree.load().unwrap_err();
    assert!(
        refused.starts_with(&format!("{}:2: ", tree.shown("config.toml"))),
        "{refused}"
    );
    let mended = Tree::new(
        "mended",
        &[
            ("config.toml", bad),
            ("conf.d/5.toml", "images.max_layers = 1\n"),
        ],
    );
    mended.load().unwrap();
}

#[test]
fn what_others_can_write_is_refused_unread() {
    let tree = Tree::new(
        "trust",
        &[("config.toml", MAIN), ("conf.d/1.toml", "nonsense")],
    );
    tree.mode("conf.d/1.toml", 0o666);
    let file = tree.load().unwrap_err();
    assert!(
        file.contains("1.toml is writable by others (mode 0666"),
        "{file}"
    );
    tree.mode("conf.d", 0o1777);
    let directory = tree.load().unwrap_err();
    assert!(
        directory.contains("conf.d of the configuration is writable by others (mode 1777"),
        "{directory}"
    );
    tree.mode("conf.d", 0o755);
    chown(tree.0.join("conf.d"), Some(65_534), None).unwrap();
    let directory = tree.load().unwrap_err();
    assert!(directory.contains("is owned by uid 65534"), "{directory}");
    let file = tree.load_from(Some(&tree.main())).unwrap_err();
    assert!(file.contains("is not a directory"), "{file}");
}

#[test]
fn every_setting_is_shown_with_its_origin() {
    let tree = Tree::new(
        "origins",
        &[
            ("config.toml", MAIN),
            (
                "conf.d/1.toml",
                "\nimages.max_layers = 9\n[[handlers.coracle.namespaces]]\nnamespace = \"a\"\n",
            ),
        ],
    );
    let overrides = Overrides {
        run: Some("/r".into()),
        ..Overrides::default()
    };
    let shown = show_origins(Some(&tree.main()), &overrides).unwrap();
    let (main, drop_in) = (tree.shown("config.toml"), tree.shown("conf.d/1.toml"));
    for line in [
        format!("log.level = \"warn\"  # {main}:2"),
        format!("images.max_layers = 9  # {drop_in}:2"),
        format!("handlers.coracle.spawn = \"exec\"  # {main}:7"),
        "handlers.coracle.egress = \"any\"  # default value".to_owned(),
        "run = \"/r\"  # command line".to_owned(),
        "socket = \"/r/coracle.sock\"  # default value".to_owned(),
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "no {line} in {shown}"
        );
    }
    let known = keys::dotted(&known_keys(), "");
    assert_eq!(shown.lines().count(), known.len(), "{shown}");
    assert_eq!(
        from(&shown),
        load(Some(&tree.main()), &overrides).map_err(|e| e.to_string())
    );
}

#[test]
fn the_run_directory_is_found_although_the_configuration_is_wrong() {
    let of = |name: &str, main: &str, drop_in: &str| {
        let tree = Tree::new(name, &[("config.toml", main), ("conf.d/1.toml", drop_in)]);
        run_directory(Some(&tree.main()), &Overrides::default()).unwrap()
    };
    assert_eq!(
        of("run", "run = \"/a\"\n", "run = \"/b\"\n"),
        Path::new("/b")
    );
    assert_eq!(
        of("run-wrong", "run = \"/a\"\nrooot = 1\n", ""),
        Path::new("/a")
    );
    assert_eq!(
        of("run-broken", "run = \"/a\"\n", "[log\n"),
        Path::new("/a")
    );
    assert_eq!(of("run-default", "[log\n", ""), Path::new("/run/coracle"));
    let tree = Tree::new("run-trust", &[("config.toml", "run = \"/a\"\n")]);
    tree.mode("config.toml", 0o666);
    assert!(run_directory(Some(&tree.main()), &Overrides::default()).is_err());
    let overrides = Overrides {
        run: Some("/r".into()),
        ..Overrides::default()
    };
    assert_eq!(
        run_directory(Some(&tree.main()), &overrides).unwrap(),
        Path::new("/r")
    );
}
