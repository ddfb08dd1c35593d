//! A network configuration list: the checked content of one file of the configuration directory.
//!
//! Called by: [`super::directory`] for files, [`super::cache`] for attachments. Pure.
//! Source: CNI specification 1.1.0, "Network configuration format"; where that is silent, libcni 1.3 `conf.go`.
//! Invariants: a [`NetworkList`] has a supported version, a name that is safe as a file name, at least one plugin, and
//! only plugins whose type is a plain file name. Not here: files, processes.

use std::fmt;

use serde_json::{Map, Value, json};

/// Most plugins of one network.
const MAX_PLUGINS: usize = 32;
/// Longest name of a network or a plugin, bytes: a file name's.
const MAX_NAME_BYTES: usize = 255;

/// A supported version of the specification; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0: results name interfaces.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK; DEL gets the result.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0: STATUS and GC.
    V1_1_0,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Version; 5] = [
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The text of the version.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Version> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.as_str())
    }
}

/// One plugin of a network.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugin {
    /// Its type: the name of its executable, without any directory.
    pub kind: String,
    /// Arguments of the pod that it accepts at run time, e.g. `portMappings`.
    pub capabilities: Vec<String>,
    /// Its whole configuration object.
    config: Map<String, Value>,
}

/// One network.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// The `cniVersion` used with its plugins.
    pub version: Version,
    /// CHECK is disabled.
    pub disable_check: bool,
    /// GC is disabled.
    pub disable_gc: bool,
    /// The list's directory is not searched for further plugins (`loadOnlyInlinedPlugins`).
    pub only_inlined: bool,
    /// Its plugins, in the order of ADD; not empty once it is complete.
    pub plugins: Vec<Plugin>,
}

/// What a plugin gets besides its configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra<'a> {
    /// The result so far.
    pub previous: Option<&'a Value>,
    /// Arguments by capability.
    pub capabilities: Option<&'a Map<String, Value>>,
    /// The attachments that GC must keep.
    pub valid_attachments: Option<&'a Value>,
}

impl NetworkList {
    /// Reads a `.conflist`. It may have no plugins if further files may add them: see
    /// [`NetworkList::only_inlined`] and [`NetworkList::complete`]. Errors: what is wrong, as text.
    pub fn parse(text: &[u8]) -> Result<NetworkList, String> {
        let top = object(text)?;
        let mut list = Self::head(&top)?;
        match top.get("plugins") {
            None if list.only_inlined => {
                return Err("loadOnlyInlinedPlugins is true and there is no key plugins".to_owned());
            }
            None => {}
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                return Err("plugins is empty".to_owned());
            }
            Some(Value::Array(plugins)) => {
                for (at, plugin) in plugins.iter().enumerate() {
                    let plugin = Plugin::read(plugin.clone());
                    list.plugins
                        .push(plugin.map_err(|why| format!("plugins[{at}]: {why}"))?);
                }
            }
            Some(_) => return Err("plugins is no list".to_owned()),
        }
        Ok(list)
    }

    /// Reads a `.conf` or `.json`: one plugin, with name and version of its network.
    pub fn parse_single(text: &[u8]) -> Result<NetworkList, String> {
        let top = object(text)?;
        let mut list = Self::head(&top)?;
        list.only_inlined = true;
        list.plugins.push(Plugin::read(Value::Object(top))?);
        Ok(list)
    }

    fn head(top: &Map<String, Value>) -> Result<NetworkList, String> {
        let name = top.get("name").ok_or("the key name is missing")?;
        let name = name.as_str().ok_or("name is no string")?;
        file_name("name", name)?;
        Ok(NetworkList {
            name: name.to_owned(),
            version: choose_version(top)?,
            disable_check: switch(top, "disableCheck")?,
            disable_gc: switch(top, "disableGC")?,
            only_inlined: switch(top, "loadOnlyInlinedPlugins")?,
            plugins: Vec::new(),
        })
    }

    /// Adds a plugin from a file of its own.
    pub fn add_plugin(&mut self, text: &[u8]) -> Result<(), String> {
        self.plugins
            .push(Plugin::read(Value::Object(object(text)?))?);
        Ok(())
    }

    /// Checks the number of plugins. Errors: none, or too many.
    pub fn complete(self) -> Result<NetworkList, String> {
        match self.plugins.len() {
            0 => Err("it has no plugins".to_owned()),
            1..=MAX_PLUGINS => Ok(self),
            many => Err(format!("it has {many} plugins, the limit is {MAX_PLUGINS}")),
        }
    }

    /// The standard input of `plugin`.
    pub fn input(&self, plugin: &Plugin, extra: Extra<'_>) -> Vec<u8> {
        let mut config = plugin.config.clone();
        config.remove("capabilities");
        config.insert("name".to_owned(), json!(self.name));
        config.insert("cniVersion".to_owned(), json!(self.version.as_str()));
        if let Some(previous) = extra.previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        if let Some(known) = extra.capabilities {
            let arguments: Map<String, Value> = known
                .iter()
                .filter(|(name, _)| plugin.capabilities.contains(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if !arguments.is_empty() {
                config.insert("runtimeConfig".to_owned(), Value::Object(arguments));
            }
        }
        if let Some(valid) = extra.valid_attachments {
            config.insert("cni.dev/valid-attachments".to_owned(), valid.clone());
            // For plugins written when the specification misspelled the key.
            config.insert("cni.dev/attachments".to_owned(), valid.clone());
        }
        Value::Object(config).to_string().into_bytes()
    }

    /// The list as JSON; [`NetworkList::parse`] reads it back to an equal one.
    pub fn to_json(&self) -> Value {
        let plugins: Vec<&Map<String, Value>> =
            self.plugins.iter().map(|plugin| &plugin.config).collect();
        json!({
            "name": self.name,
            "cniVersion": self.version.as_str(),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": self.only_inlined,
            "plugins": plugins,
        })
    }
}

impl Plugin {
    fn read(value: Value) -> Result<Plugin, String> {
        let Value::Object(config) = value else {
            return Err("is no object".to_owned());
        };
        let kind = config.get("type").ok_or("the key type is missing")?;
        let kind = kind.as_str().ok_or("type is no string")?;
        file_name("type", kind)?;
        let mut capabilities = Vec::new();
        match config.get("capabilities") {
            None | Some(Value::Null) => {}
            Some(Value::Object(named)) => {
                for (name, on) in named {
                    let on = on
                        .as_bool()
                        .ok_or_else(|| format!("capabilities.{name} is neither true nor false"))?;
                    if on {
                        capabilities.push(name.clone());
                    }
                }
            }
            Some(_) => return Err("capabilities is no object".to_owned()),
        }
        Ok(Plugin {
            kind: kind.to_owned(),
            capabilities,
            config,
        })
    }
}

fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is JSON, and no object".to_owned()),
        Err(error) => Err(format!("it is no JSON: {error}")),
    }
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`. Source: libcni `ValidateNetworkName`.
fn file_name(key: &str, name: &str) -> Result<(), String> {
    let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let good = name
        .as_bytes()
        .first()
        .is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(is_usual)
        && name.len() <= MAX_NAME_BYTES;
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(format!(
        "{key} is {shown:?}, must be letters, digits, `_`, `.` and `-` and begin with one of the first two"
    ))
}

/// The highest supported version in `cniVersion` and `cniVersions`.
fn choose_version(top: &Map<String, Value>) -> Result<Version, String> {
    let mut named = Vec::new();
    match top.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => named.push(version.as_str()),
        Some(_) => return Err("cniVersion is no string".to_owned()),
    }
    match top.get("cniVersions") {
        None => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                named.push(
                    version
                        .as_str()
                        .ok_or("cniVersions holds something else than strings")?,
                );
            }
        }
        Some(_) => return Err("cniVersions is no list".to_owned()),
    }
    let spoken = named.iter().filter_map(|version| Version::parse(version));
    spoken.max().ok_or_else(|| {
        let known = Version::ALL.map(Version::as_str).join(", ");
        match named.is_empty() {
            true => format!("the key cniVersion is missing; we speak {known}"),
            false => {
                let shown: String = named.join(", ").chars().take(64).collect();
                format!("cniVersion is {shown:?}, we speak {known}")
            }
        }
    })
}

/// A boolean, false unless set. Like libcni, it accepts text, too.
fn switch(top: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match top.get(key) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(format!("{key} is neither true nor false")),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<NetworkList, String> {
        NetworkList::parse(value.to_string().as_bytes()).and_then(NetworkList::complete)
    }

    #[test]
    fn the_highest_version_that_both_speak_is_chosen() {
        let list = |version: Value, versions: Value| {
            let mut text = json!({"name": "n", "plugins": [{"type": "p"}]});
            if !version.is_null() {
                text["cniVersion"] = version;
            }
            if !versions.is_null() {
                text["cniVersions"] = versions;
            }
            parse(&text).map(|list| list.version)
        };
        for version in Version::ALL {
            assert_eq!(list(json!(version.as_str()), Value::Null), Ok(version));
        }
        let several = json!(["0.4.0", "1.1.0", "9.0.0"]);
        assert_eq!(list(json!("0.3.1"), several), Ok(Version::V1_1_0));
        assert_eq!(list(json!("0.3.1"), json!(["0.2.0"])), Ok(Version::V0_3_1));
        let refused = list(json!("2.0.0"), json!([])).unwrap_err();
        assert!(
            refused.contains("2.0.0") && refused.contains("1.1.0"),
            "{refused}"
        );
        assert!(
            list(Value::Null, Value::Null)
                .unwrap_err()
                .contains("missing")
        );
        assert!(list(json!(1), Value::Null).is_err());
        assert!(list(Value::Null, json!([1])).is_err());
    }

    #[test]
    fn names_that_are_no_plain_file_names_are_refused() {
        let long = "x".repeat(256);
        for bad in [
            "../../bin/sh",
            "/bin/sh",
            "a/b",
            "..",
            ".hidden",
            "-rf",
            "",
            "a b",
            "a;b",
            "a\n",
            &long,
        ] {
            let list = json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": bad}]});
            let refused = parse(&list).unwrap_err();
            assert!(
                refused.starts_with("plugins[0]: type"),
                "{bad:?}: {refused}"
            );
            let list = json!({"name": bad, "cniVersion": "1.0.0", "plugins": [{"type": "p"}]});
            assert!(parse(&list).unwrap_err().starts_with("name"), "{bad:?}");
        }
        let list = json!({"name": "cbr0", "cniVersion": "1.0.0", "plugins": [{"type": "calico-ipam.v2_1"}]});
        assert!(parse(&list).is_ok());
    }

    #[test]
    fn invalid_lists_are_refused_with_the_reason() {
        let cases = [
            (json!([]), "no object"),
            (json!({"cniVersion": "1.0.0"}), "name is missing"),
            (json!({"name": 1, "cniVersion": "1.0.0"}), "no string"),
            (json!({"name": "n", "cniVersion": "1.0.0"}), "no plugins"),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": []}),
                "empty",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": {}}),
                "no list",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": [1]}),
                "plugins[0]: is no object",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{}]}),
                "type is missing",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "loadOnlyInlinedPlugins": true}),
                "loadOnlyInlinedPlugins",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "disableGC": 3, "plugins": [{"type": "p"}]}),
                "disableGC",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "p", "capabilities": {"a": 1}}]}),
                "capabilities.a",
            ),
            (
                json!({"name": "n", "cniVersion": "1.0.0", "plugins": vec![json!({"type": "p"}); 33]}),
                "33 plugins",
            ),
        ];
        for (text, expected) in cases {
            let refused = parse(&text).unwrap_err();
            assert!(refused.contains(expected), "{text}: {refused}");
        }
        let deep = "[".repeat(100_000);
        assert!(NetworkList::parse(deep.as_bytes()).is_err());
        assert!(NetworkList::parse(b"\xff\xfe").is_err());
    }

    #[test]
    fn a_plugin_gets_only_the_capabilities_that_it_declares() {
        let list = parse(&json!({
            "name": "n", "cniVersion": "1.0.0",
            "plugins": [{"type": "a", "mtu": 1400, "capabilities": {"portMappings": true, "dns": false}}],
        }))
        .unwrap();
        let known = json!({"portMappings": [1], "dns": {}, "mac": "x"});
        let (result, plugin) = (json!({"ips": []}), &list.plugins[0]);
        let extra = Extra {
            previous: Some(&result),
            capabilities: known.as_object(),
            valid_attachments: None,
        };
        let input: Value = serde_json::from_slice(&list.input(plugin, extra)).unwrap();
        let expected = json!({
            "name": "n", "cniVersion": "1.0.0", "type": "a", "mtu": 1400, "prevResult": {"ips": []},
            "runtimeConfig": {"portMappings": [1]},
        });
        assert_eq!(input, expected);
        let bare: Value = serde_json::from_slice(&list.input(plugin, Extra::default())).unwrap();
        assert_eq!(
            bare,
            json!({"name": "n", "cniVersion": "1.0.0", "type": "a", "mtu": 1400})
        );
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let text = br#"{"name": "n", "cniVersion": "0.4.0", "type": "bridge", "bridge": "b0"}"#;
        let list = NetworkList::parse_single(text).unwrap();
        assert_eq!((list.name.as_str(), list.version), ("n", Version::V0_4_0));
        assert_eq!(list.plugins[0].kind, "bridge");
        assert!(NetworkList::parse_single(br#"{"name": "n", "cniVersion": "0.4.0"}"#).is_err());
    }

    #[test]
    fn a_cached_list_equals_the_list_that_was_used() {
        let mut list = parse(&json!({
            "name": "n", "cniVersions": ["1.1.0"], "disableCheck": "TRUE", "disableGC": true,
            "plugins": [{"type": "a", "capabilities": {"mac": true}, "x": [1, {"y": null}]}],
        }))
        .unwrap();
        list.add_plugin(br#"{"type": "b"}"#).unwrap();
        assert!(list.disable_check && list.disable_gc);
        assert_eq!(parse(&list.to_json()), Ok(list));
    }
}
