//! The user that a container runs as: CRI's request, else the image's `USER`, else 0.
//!
//! Called by: CreateContainer. Reads the image's own `/etc/passwd` and `/etc/group`, as an overlay of its layers shows
//! them.
//! Invariants: digits are a number and never a name, however large; an unclear user is refused, never taken for 0.
//! Must not know: host ids.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::PathBuf;

use coracle_lifecycle::{Error, GroupsPolicy, Kind, UserConfig};
use coracle_spec::{IdRange, Identity};

use super::errors::invalid;
use super::io_error;

/// Largest `/etc/passwd` or `/etc/group` that is read. Bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Largest user or group id, as in Kubernetes; ids beyond a pod's range are mapped to its last ones.
const MAX_ID: u32 = i32::MAX as u32;

/// A user with the image's facts about it.
#[derive(Debug)]
pub struct Resolved {
    /// The ids that the container runs as; the supplementary groups contain the primary one, as in `id -G`.
    pub identity: Identity,
    /// The user's home directory from the image's `/etc/passwd`; `/` without one.
    pub home: String,
}

/// A line of `/etc/passwd`.
struct Entry {
    uid: u32,
    gid: u32,
    /// Its name; `None` for a number without a line.
    name: Option<String>,
    home: String,
}

/// Resolves `config` against the image's `USER` text and its layers (lowest first; none for an artifact).
/// Errors: Invalid for a group without a user, an id that is none, an unknown name.
pub fn resolve(
    config: &UserConfig,
    image_user: &str,
    layers: &[PathBuf],
    range: IdRange,
) -> Result<Resolved, Error> {
    let named = config.uid.is_some() || !config.username.is_empty();
    if config.gid.is_some() && !named {
        return Err(invalid(
            "run_as_group is set, but neither run_as_user nor run_as_username".to_owned(),
        ));
    }
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let found = find_user(&name_or_number(config, image_name), layers)?;
    let gid = match config.gid {
        Some(gid) => number(&gid.to_string(), "group")?,
        None if named || image_group.is_empty() => found.gid,
        None => find_group(image_group, layers)?,
    };
    let mut groups = vec![gid];
    if let (GroupsPolicy::Merge, Some(name)) = (config.policy, &found.name) {
        groups.extend(memberships(name, layers)?);
    }
    for gid in &config.groups {
        groups.push(number(&gid.to_string(), "supplemental group")?);
    }
    Ok(Resolved {
        identity: Identity {
            uid: found.uid,
            gid,
            groups: distinct(groups),
            range,
        },
        home: found.home,
    })
}

/// The user to look up: CRI's request, else the image's, else 0.
fn name_or_number(config: &UserConfig, image_name: &str) -> String {
    match (config.uid, config.username.as_str()) {
        (Some(uid), _) => uid.to_string(),
        (None, "") if image_name.is_empty() => "0".to_owned(),
        (None, "") => image_name.to_owned(),
        (None, name) => name.to_owned(),
    }
}

/// Removes duplicates; keeps the order of first appearance.
pub fn distinct(groups: Vec<u32>) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    groups.into_iter().filter(|gid| seen.insert(*gid)).collect()
}

/// The groups in which the image's `/etc/group` lists the user. Lines without a valid id are skipped.
fn memberships(name: &str, layers: &[PathBuf]) -> Result<Vec<u32>, Error> {
    let text = read_file(layers, "etc/group")?;
    let lists = |fields: &[&str]| {
        fields
            .get(3)
            .is_some_and(|list| list.split(',').any(|one| one == name))
    };
    let lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    Ok(lines
        .filter(|fields| lists(fields))
        .filter_map(|fields| number(fields.get(2)?, "group").ok())
        .collect())
}

/// A number without an entry in passwd has group 0, as in other runtimes.
fn find_user(user: &str, layers: &[PathBuf]) -> Result<Entry, Error> {
    let passwd = read_file(layers, "etc/passwd")?;
    let line = |index: usize, text: &str| {
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.get(index) == Some(&text))
    };
    if is_number(user) {
        let uid = number(user, "user")?;
        let fields = line(2, &uid.to_string()).unwrap_or_default();
        let gid = fields.get(3).and_then(|gid| gid.parse().ok());
        let gid = gid.filter(|gid| *gid <= MAX_ID).unwrap_or(0);
        return Ok(entry(uid, gid, &fields));
    }
    match line(0, user).as_deref() {
        Some(fields @ [_, _, uid, gid, ..]) => {
            Ok(entry(number(uid, "user")?, number(gid, "group")?, fields))
        }
        Some(_) => Err(invalid(format!(
            "user {user:?} has a broken entry in the image's /etc/passwd"
        ))),
        None if user == "root" => Ok(entry(0, 0, &[])),
        None => Err(invalid(format!(
            "user {user:?} is not in the image's /etc/passwd"
        ))),
    }
}

fn entry(uid: u32, gid: u32, fields: &[&str]) -> Entry {
    let home = fields
        .get(5)
        .filter(|home| home.starts_with('/') && !home.contains('\0'));
    Entry {
        uid,
        gid,
        name: fields.first().map(|name| (*name).to_owned()),
        home: home.map_or("/", |home| *home).to_owned(),
    }
}

fn find_group(group: &str, layers: &[PathBuf]) -> Result<u32, Error> {
    if is_number(group) {
        return number(group, "group");
    }
    let text = read_file(layers, "etc/group")?;
    let mut entries = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    match entries
        .find(|fields| fields.first() == Some(&group))
        .as_deref()
    {
        Some([_, _, gid, ..]) => number(gid, "group"),
        _ if group == "root" => Ok(0),
        _ => Err(invalid(format!(
            "group {group:?} is not in the image's /etc/group"
        ))),
    }
}

/// Whether any tool would take a text for a number: it is then never looked up as a name.
fn is_number(text: &str) -> bool {
    text.trim()
        .trim_start_matches(['+', '-'])
        .starts_with(|first: char| first.is_ascii_digit())
}

fn number(text: &str, what: &str) -> Result<u32, Error> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u32>() {
        Ok(id) if digits && id <= MAX_ID => Ok(id),
        _ => Err(invalid(format!(
            "{what} id {text:?} is not between 0 and {MAX_ID}"
        ))),
    }
}

/// The text of a file of the image, as a container sees it; empty when absent.
fn read_file(layers: &[PathBuf], name: &str) -> Result<String, Error> {
    let found = coracle_images::open_file(layers, name).map_err(|error| {
        Error::because(Kind::Invalid, format!("open the image's /{name}"), error)
    })?;
    let Some(file) = found else {
        return Ok(String::new());
    };
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| io_error(format!("read the image's /{name}"), error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(invalid(format!(
            "the image's /{name} is larger than {MAX_BYTES} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const RANGE: IdRange = IdRange {
        base: 1 << 20,
        size: 65_536,
    };

    fn resolve(
        config: UserConfig,
        image_user: &str,
        layers: &[PathBuf],
    ) -> Result<(u32, u32), String> {
        super::resolve(&config, image_user, layers, RANGE)
            .map(|found| (found.identity.uid, found.identity.gid))
            .map_err(|error| error.to_string())
    }

    fn image(name: &str) -> (Scratch, Vec<PathBuf>) {
        let scratch = Scratch::new(&format!("user-{name}"));
        let root = &scratch.0;
        let layers = vec![root.join("low"), root.join("high")];
        for layer in &layers {
            std::fs::create_dir_all(layer.join("etc")).unwrap();
        }
        std::fs::write(
            layers[0].join("etc/passwd"),
            "root:x:0:0::/root:/\nweb:x:101:202::/srv/web:/\n4294967296:x:0:0::/:/\n",
        )
        .unwrap();
        std::fs::write(layers[0].join("etc/group"), "root:x:0:\nwheel:x:10:root\nstaff:x:303:www,web\nweb:x:202:web\nodd:x:-1:web\nx:x:9:webb\n").unwrap();
        (scratch, layers)
    }

    #[test]
    fn without_any_request_the_user_is_0() {
        assert_eq!(resolve(UserConfig::default(), "", &[]), Ok((0, 0)));
        assert_eq!(resolve(UserConfig::default(), "root", &[]), Ok((0, 0)));
    }

    #[test]
    fn cri_wins_over_the_image_and_names_are_looked_up_in_it() {
        let (_scratch, layers) = image("names");
        let uid = |uid| UserConfig {
            uid: Some(uid),
            ..UserConfig::default()
        };
        assert_eq!(resolve(uid(7), "web:staff", &layers), Ok((7, 0)));
        assert_eq!(resolve(uid(101), "", &layers), Ok((101, 202)));
        assert_eq!(
            resolve(
                UserConfig {
                    gid: Some(9),
                    ..uid(101)
                },
                "",
                &layers
            ),
            Ok((101, 9))
        );
        assert_eq!(
            resolve(UserConfig::default(), "web", &layers),
            Ok((101, 202))
        );
        assert_eq!(
            resolve(UserConfig::default(), "web:staff", &layers),
            Ok((101, 303))
        );
        assert_eq!(resolve(UserConfig::default(), "8:9", &layers), Ok((8, 9)));
        assert_eq!(
            resolve(
                UserConfig {
                    username: "web".into(),
                    ..UserConfig::default()
                },
                "5",
                &layers
            ),
            Ok((101, 202))
        );
        assert!(
            resolve(UserConfig::default(), "nobody", &layers)
                .unwrap_err()
                .contains("nobody")
        );
        assert!(
            resolve(UserConfig::default(), "web:nogroup", &layers)
                .unwrap_err()
                .contains("nogroup")
        );
    }

    #[test]
    fn odd_numbers_are_refused_and_never_looked_up() {
        let (_scratch, layers) = image("numbers");
        for user in [
            "4294967296",
            "4294967295",
            "2147483648",
            "-1",
            "+0",
            " 0",
            "0x0",
            "1000:99999999999",
            "1:-1",
        ] {
            assert!(
                resolve(UserConfig::default(), user, &layers).is_err(),
                "{user:?} was taken"
            );
        }
        for uid in [-1, 2_147_483_648, i64::MAX] {
            assert!(
                resolve(
                    UserConfig {
                        uid: Some(uid),
                        ..UserConfig::default()
                    },
                    "",
                    &layers
                )
                .is_err(),
                "{uid}"
            );
        }
    }

    #[test]
    fn groups_of_the_image_are_merged_unless_the_policy_is_strict() {
        let (_scratch, layers) = image("groups");
        let groups = |config: UserConfig, image_user: &str| {
            let found = super::resolve(&config, image_user, &layers, RANGE).unwrap();
            (found.identity.groups, found.home)
        };
        let config = |uid, policy| UserConfig {
            uid,
            policy,
            groups: vec![700, 303],
            ..UserConfig::default()
        };
        let (merge, strict) = (GroupsPolicy::Merge, GroupsPolicy::Strict);
        let web = "/srv/web".to_owned();
        assert_eq!(
            groups(config(Some(101), merge), ""),
            (vec![202, 303, 700], web.clone())
        );
        assert_eq!(
            groups(config(Some(101), strict), ""),
            (vec![202, 700, 303], web.clone())
        );
        assert_eq!(
            groups(config(None, merge), "web"),
            (vec![202, 303, 700], web)
        );
        assert_eq!(
            groups(config(Some(999), merge), ""),
            (vec![0, 700, 303], "/".to_owned())
        );
        let nobody = UserConfig::default();
        assert_eq!(groups(nobody, ""), (vec![0, 10], "/root".to_owned()));
    }

    #[test]
    fn a_group_needs_a_user() {
        let config = UserConfig {
            gid: Some(5),
            ..UserConfig::default()
        };
        assert!(
            resolve(config, "7", &[])
                .unwrap_err()
                .contains("run_as_group")
        );
    }

    #[test]
    fn a_planted_link_or_device_is_not_followed_out_of_the_image() {
        let (scratch, layers) = image("planted");
        std::fs::write(scratch.0.join("outside"), "evil:x:0:0::/:/\n").unwrap();
        std::os::unix::fs::symlink(scratch.0.join("outside"), layers[1].join("etc/passwd"))
            .unwrap();
        assert!(resolve(UserConfig::default(), "evil", &layers).is_err());
        std::fs::remove_file(layers[1].join("etc/passwd")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            layers[1].join("etc/passwd"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        assert!(
            resolve(UserConfig::default(), "web", &layers).is_err(),
            "a FIFO did not hide the lower file"
        );
    }

    /// A way in which a layer hides a file of the layers below, and how to make it in the layer's directory.
    type Hiding = (&'static str, fn(&std::path::Path));

    /// All ways to hide a file of the layers below: whiteout, opaque directory, a file in the way, a link.
    #[test]
    fn users_that_a_layer_has_removed_do_not_exist() {
        use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};
        use std::os::unix::fs::symlink;
        let hides: [Hiding; 5] = [
            ("whiteout of the file", |high| {
                let path = high.join("etc/passwd");
                mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            }),
            ("whiteout of its directory", |high| {
                std::fs::remove_dir(high.join("etc")).unwrap();
                let path = high.join("etc");
                mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            }),
            ("opaque directory", |high| {
                let name = "trusted.overlay.opaque";
                setxattr(high.join("etc"), name, b"y", XattrFlags::empty()).unwrap();
            }),
            ("a file in the way", |high| {
                std::fs::remove_dir(high.join("etc")).unwrap();
                std::fs::write(high.join("etc"), "").unwrap();
            }),
            ("a link elsewhere", |high| {
                std::fs::remove_dir(high.join("etc")).unwrap();
                symlink("/other", high.join("etc")).unwrap();
            }),
        ];
        for (number, (how, hide)) in hides.into_iter().enumerate() {
            let (_scratch, layers) = image(&format!("hidden-{number}"));
            hide(&layers[1]);
            let found = resolve(UserConfig::default(), "web", &layers);
            assert!(found.is_err(), "{how}: {found:?}");
        }
        let (_scratch, layers) = image("linked");
        std::fs::remove_dir(layers[1].join("etc")).unwrap();
        std::fs::create_dir(layers[1].join("new")).unwrap();
        std::fs::write(layers[1].join("new/passwd"), "web:x:7:8::/:/\n").unwrap();
        symlink("../../new", layers[1].join("etc")).unwrap();
        assert_eq!(resolve(UserConfig::default(), "web", &layers), Ok((7, 8)));
    }
}
