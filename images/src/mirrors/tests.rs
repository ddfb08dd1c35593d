use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

/// A directory of `hosts.toml` files that goes when the test ends.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("coracle-mirrors-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn with(self, host: &str, text: &str) -> Self {
        fs::create_dir_all(self.0.join(host)).unwrap();
        fs::write(self.0.join(host).join("hosts.toml"), text).unwrap();
        self
    }

    fn find(&self, registry: &str) -> Result<Vec<Upstream>, String> {
        upstreams(Some(&self.0), registry, |host| host.starts_with("127."))
            .map_err(|error| error.to_string())
    }

    /// `http://host/prefix` of each upstream, `!` after those that get credentials.
    fn order(&self, registry: &str) -> Vec<String> {
        let show = |up: Upstream| {
            let scheme = if up.plain_http { "http" } else { "https" };
            let mark = if up.gets_credentials { "!" } else { "" };
            format!("{scheme}://{}{}{mark}", up.authority, up.prefix())
        };
        self.find(registry).unwrap().into_iter().map(show).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let dir = Dir::new("order").with(
        "r.io",
        "server = \"https://real.r.io\"\n[host.\"http://z:1\"]\n[host.\"https://a/base\"]\n[host.\"127.0.0.1:5\"]\n[host.\"m\"]\n",
    );
    assert_eq!(
        dir.order("r.io"),
        [
            "http://z:1",
            "https://a/base",
            "http://127.0.0.1:5",
            "https://m",
            "https://real.r.io!"
        ]
    );
}

#[test]
fn without_a_directory_or_file_only_the_registry_is_used() {
    let dir = Dir::new("none");
    assert_eq!(dir.order("r.io:5000"), ["https://r.io:5000!"]);
    assert_eq!(dir.order("127.0.0.1:5000"), ["http://127.0.0.1:5000!"]);
    let alone = upstreams(None, "r.io", |_| false).unwrap();
    assert_eq!(alone, [Upstream::plain("r.io", false)]);
    assert_eq!(
        upstreams(Some(Path::new("/nonexistent")), "r.io", |_| false).unwrap(),
        alone
    );
}

#[test]
fn the_directory_of_the_very_host_wins_over_the_default_one() {
    let dir = Dir::new("names")
        .with("_default", "[host.\"http://any\"]\n")
        .with("r.io_5000_", "[host.\"http://ported\"]\n")
        .with("s.io:5000", "[host.\"http://colon\"]\n");
    assert_eq!(
        dir.order("r.io:5000"),
        ["http://ported", "https://r.io:5000!"]
    );
    assert_eq!(
        dir.order("s.io:5000"),
        ["http://colon", "https://s.io:5000!"]
    );
    assert_eq!(dir.order("t.io"), ["http://any", "https://t.io!"]);
    // A directory without a file says: no mirrors here.
    fs::create_dir(dir.0.join("t.io")).unwrap();
    assert_eq!(dir.order("t.io"), ["https://t.io!"]);
}

#[test]
fn credentials_stay_with_the_registry_and_its_own_host() {
    let dir = Dir::new("secrets")
        .with(
            "r.io",
            "server = \"https://real.io\"\n[host.\"https://r.io\"]\n[host.\"https://r.io.evil\"]\n",
        )
        .with("_default", "server = \"https://elsewhere\"\n");
    assert_eq!(
        dir.order("r.io"),
        ["https://r.io!", "https://r.io.evil", "https://real.io!"]
    );
    // What stands for all registries is nobody's own.
    assert_eq!(dir.order("other.io"), ["https://elsewhere"]);
}

#[test]
fn settings_belong_to_their_table() {
    let dir = Dir::new("settings").with(
        "r.io",
        "capabilities = [\"pull\"]\nskip_verify = true\n\
         [host.\"http://m\"]\ncapabilities = [\"resolve\", \"push\"]\nca = \"own.pem\"\n\
         [host.\"http://o/v2/cache/\"]\noverride_path = true\n[host.\"http://p/v2\"]\n",
    );
    let pem = "-----BEGIN CERTIFICATE-----\n";
    fs::write(dir.0.join("r.io/own.pem"), pem).unwrap();
    let up = dir.find("r.io").unwrap();
    assert_eq!(
        (up[0].may_resolve, up[0].may_pull, up[0].skip_verify),
        (true, false, false)
    );
    assert_eq!(up[0].authorities, [pem.as_bytes()]);
    assert_eq!(
        (up[1].api.as_str(), up[1].repository_prefix.as_str()),
        ("/v2", "cache/")
    );
    assert_eq!(
        (up[2].api.as_str(), up[2].repository_prefix.as_str()),
        ("/v2", "")
    );
    assert_eq!(
        (up[3].may_resolve, up[3].may_pull, up[3].skip_verify),
        (false, true, true)
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    for (text, line, expected) in [
        ("server = \"https://r.io\"\nhost = [\n", 2, "unclosed array"),
        (
            "\n[host.\"http://m\"]\ncapabilites = []\n",
            3,
            "unknown field `capabilites`",
        ),
        (
            "[host.\"http://m\"]\nserver = \"http://x\"\n",
            2,
            "a host has no `server` or `host` of its own",
        ),
        (
            "[host.\"http://m\"]\nproxy = \"socks5://user:secret@p\"\n",
            2,
            "the proxy has the scheme",
        ),
        (
            "[host.\"http://m\".header]\n\nhost = \"x\"\n",
            3,
            "`host` is a header field that the request itself decides",
        ),
        (
            "[header]\nx = \"secret\\n\"\n",
            2,
            "`x` has a value that no header field has",
        ),
        (
            "\n\n[host.\"ftp://m\"]\n",
            3,
            "`ftp://m` is neither http nor https",
        ),
        (
            "[host.\"http://user:secret@m\"]\n",
            1,
            "without user and query",
        ),
        ("[host.\"http:///v2\"]\n", 1, "is not the URL of a host"),
        (
            "[host.\"http://m\"]\ncapabilities = [\"fly\"]\n",
            2,
            "unknown capability `fly`",
        ),
    ] {
        let dir = Dir::new("wrong").with("r.io", text);
        let place = format!("{}:{line}: ", dir.0.join("r.io/hosts.toml").display());
        let error = dir.find("r.io").unwrap_err();
        assert!(
            error.starts_with(&place) && error.contains(expected),
            "{text:?}: {error}"
        );
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(
            dir.order("s.io"),
            ["https://s.io!"],
            "another registry is not concerned"
        );
    }
}

#[test]
fn a_file_that_others_can_write_is_not_read() {
    let dir = Dir::new("trust").with("r.io", "[host.\"http://m\"]\n");
    let path = dir.0.join("r.io/hosts.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let error = dir.find("r.io").unwrap_err();
    assert!(
        error.contains("mode 0666") && error.contains("only root can write"),
        "{error}"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(dir.order("r.io").len(), 2);
}

/// What stands for all registries would be shown to whatever host an image's name has.
#[test]
fn nobody_is_shown_who_this_node_is_without_being_named() {
    let secrets = [
        ("client = \"node.pem\"\n", "`client`", 1),
        (
            "[header]\nx = \"y\"\nAuthorization = \"secret\"\n",
            "`Authorization`",
            3,
        ),
        ("[header]\ncookie = \"secret\"\n", "`cookie`", 2),
    ];
    for (text, what, line) in secrets {
        let dir = Dir::new("unnamed").with("_default", text);
        let error = dir.find("evil.io").unwrap_err();
        let place = format!("hosts.toml:{line}: {what} would be shown to every registry");
        assert!(error.contains(&place), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
    for text in [
        "server = \"https://cache\"\n[header]\nauthorization = \"secret\"\n",
        "[host.\"https://cache\".header]\nauthorization = \"secret\"\n",
        "[header]\nx = \"y\"\n",
    ] {
        let dir = Dir::new("named").with("_default", text);
        dir.find("r.io").unwrap();
    }
}

#[test]
fn docker_hub_is_reached_where_it_answers_and_gets_its_credentials_there() {
    let hub = ["https://registry-1.docker.io!"];
    let dir = Dir::new("hub");
    assert_eq!(dir.order("docker.io"), hub);
    // As containerd's own example has it.
    let dir = dir.with(
        "docker.io",
        "server = \"https://docker.io\"\n[host.\"https://registry-1.docker.io\"]\n",
    );
    assert_eq!(dir.order("docker.io"), [hub[0], hub[0]]);
}
