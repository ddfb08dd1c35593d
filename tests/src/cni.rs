//! Pod networks by CNI for a daemon under test: Debian's plugins on a bridge of the scratch's own, or scripts whose
//! behaviour a test sets and that record their calls.
//!
//! Called by: tests, and the bench, for a daemon whose [`crate::daemon::Options::cni`] is set. Everything lies in the
//! scratch: `cni/` holds configurations, `plugins/` scripts and the calls that they recorded, `ipam/` the addresses of `host-local`.
//! Not here: starting the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;
use serde_json::{Value, json};
use tonic::Status;

use crate::client::Cri;
use crate::scratch::Scratch;
use crate::{Outcome, peer, tools};

/// Where Debian puts the plugins.
pub const PLUGINS: &str = "/usr/lib/cni";
/// The file that `prepare` writes.
pub const FILE: &str = "10-bridge.conflist";

/// The script of every test plugin: it records the call, does what the test has set, then keeps a lease for each pod.
const SCRIPT: &str = r#"#!/bin/sh
name=$(basename "$0")
dir=$(dirname "$0")
cat > "$dir/$name.$CNI_COMMAND.input"
env > "$dir/$name.$CNI_COMMAND.env"
echo "$CNI_COMMAND $name $CNI_CONTAINERID $CNI_NETNS" >> "$dir/calls"
[ -e "$dir/$name.$CNI_COMMAND.do" ] && . "$dir/$name.$CNI_COMMAND.do"
case $CNI_COMMAND in
ADD)
    : > "$dir/leases/$name-$CNI_CONTAINERID"
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "192.0.2.7/24"}]}'
    ;;
DEL) rm -f "$dir/leases/$name-$CNI_CONTAINERID" ;;
esac
"#;

/// Makes the directories of a scratch, the configuration of the peers' bridge in them, and the bridge, so that it is
/// there before and after.
pub(crate) fn prepare(scratch: &Scratch) -> Outcome<()> {
    let place = Place::of(scratch);
    fs::create_dir_all(place.conf_dir())?;
    fs::create_dir_all(place.plugins().join("leases"))?;
    fs::write(place.conf_dir().join(FILE), peer::cni(scratch))?;
    // One that a killed test has left.
    peer::remove_bridge(scratch);
    let bridge = place.bridge();
    let made = Command::new("ip")
        .args(["link", "add", &bridge, "type", "bridge"])
        .stderr(Stdio::null())
        .status()?;
    match made.success() {
        true => Ok(()),
        false => Err(format!("bridge {bridge} cannot be made").into()),
    }
}

/// The CNI directories of one daemon.
#[derive(Clone, Debug)]
pub struct Place {
    dir: PathBuf,
    prefix: String,
}

impl Place {
    /// Those of a scratch.
    pub fn of(scratch: &Scratch) -> Self {
        Self {
            dir: scratch.dir().to_owned(),
            prefix: scratch.interface_prefix(),
        }
    }

    /// The directory of configurations.
    pub fn conf_dir(&self) -> PathBuf {
        self.dir.join("cni")
    }

    /// The directory of scripted plugins, which comes before Debian's.
    pub fn plugins(&self) -> PathBuf {
        self.dir.join("plugins")
    }

    /// The name of the bridge.
    pub fn bridge(&self) -> String {
        self.prefix.clone() + "br"
    }

    /// Replaces all configurations by this one.
    pub fn configure(&self, list: &Value) -> Outcome<()> {
        self.unconfigure()?;
        Ok(fs::write(
            self.conf_dir().join("20-test.conflist"),
            list.to_string(),
        )?)
    }

    /// Removes all configurations.
    pub fn unconfigure(&self) -> Outcome<()> {
        for entry in fs::read_dir(self.conf_dir())? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Installs scripted plugins and configures them, in this order, as the network `scripted`.
    pub fn script(&self, version: &str, plugins: &[&str]) -> Outcome<()> {
        for name in plugins {
            self.install(name, SCRIPT)?;
        }
        let listed: Vec<Value> = plugins.iter().map(|name| json!({"type": name})).collect();
        self.configure(&json!({"cniVersion": version, "name": "scripted", "plugins": listed}))
    }

    /// Writes an executable.
    pub fn install(&self, name: &str, text: &str) -> Outcome<()> {
        let (new, path) = (self.plugins().join("new"), self.plugins().join(name));
        tools::install(&new, text.as_bytes())?;
        Ok(fs::rename(new, path)?)
    }

    /// What a scripted plugin does at a command before it does what it always does; nothing if the text is empty.
    pub fn does(&self, plugin: &str, command: &str, script: &str) -> Outcome<()> {
        let (new, path) = (
            self.plugins().join("new"),
            self.plugins().join(format!("{plugin}.{command}.do")),
        );
        fs::write(&new, script)?;
        Ok(fs::rename(new, path)?)
    }

    /// `COMMAND PLUGIN POD NETNS` of every call so far; they are forgotten.
    pub fn calls(&self) -> Vec<String> {
        let calls = self.plugins().join("calls");
        let text = fs::read_to_string(&calls).unwrap_or_default();
        let _ = fs::remove_file(calls);
        text.lines().map(str::to_owned).collect()
    }

    /// `COMMAND PLUGIN` of every call so far; they are forgotten.
    pub fn commands(&self) -> Vec<String> {
        let fields = |call: String| call.split(' ').take(2).collect::<Vec<_>>().join(" ");
        self.calls().into_iter().map(fields).collect()
    }

    /// What a scripted plugin got on standard input at its last call of this command.
    pub fn input(&self, plugin: &str, command: &str) -> Outcome<Value> {
        let path = self.plugins().join(format!("{plugin}.{command}.input"));
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// The environment at its last call of this command.
    pub fn environment(&self, plugin: &str, command: &str) -> Outcome<String> {
        let path = self.plugins().join(format!("{plugin}.{command}.env"));
        Ok(fs::read_to_string(path)?)
    }

    /// What scripted plugins still keep for pods, `PLUGIN-POD`.
    pub fn leases(&self) -> Vec<String> {
        names(&self.plugins().join("leases"))
    }

    /// The addresses that `host-local` has given away.
    pub fn addresses(&self) -> Vec<String> {
        let networks = names(&self.dir.join("ipam"));
        let mut found = Vec::new();
        for network in networks {
            let all = names(&self.dir.join("ipam").join(network));
            found.extend(
                all.into_iter()
                    .filter(|name| name.parse::<std::net::IpAddr>().is_ok()),
            );
        }
        found
    }

    /// The ports of the bridge.
    pub fn ports(&self) -> Vec<String> {
        names(&Path::new("/sys/class/net").join(self.bridge()).join("brif"))
    }

    /// What the daemon keeps of attached pods.
    pub fn entries(&self) -> Vec<String> {
        names(&self.dir.join("root/cni"))
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The network condition of Status: whether it is ready, the reason and the message.
pub async fn condition(client: &Cri) -> Result<(bool, String, String), Status> {
    let request = cri::StatusRequest { verbose: false };
    let reply = client.runtime.clone().status(request).await?.into_inner();
    let conditions = reply.status.unwrap_or_default().conditions;
    let network = conditions
        .into_iter()
        .find(|condition| condition.r#type == "NetworkReady")
        .ok_or_else(|| Status::not_found("no condition NetworkReady"))?;
    Ok((network.status, network.reason, network.message))
}

/// How long the plugins of the peers' bridge take by themselves: executed as a runtime would, ADD and then DEL, for a
/// network namespace of our own. Errors: no plugin, or it fails.
pub fn plugin_times(scratch: &Scratch) -> Outcome<(Duration, Duration)> {
    let list: Value = serde_json::from_str(&peer::cni(scratch))?;
    let mut input = list["plugins"][0].clone();
    input["name"] = list["name"].clone();
    input["cniVersion"] = list["cniVersion"].clone();
    let netns = scratch.dir().join("plugin-netns");
    let make = format!("touch {0} && unshare --net={0} true", netns.display());
    succeeds(Command::new("/bin/sh").args(["-c", &make]))?;
    let timed = time_plugin(scratch, &netns, "ADD", &input).and_then(|(added, result)| {
        input["prevResult"] = result;
        let (deleted, _) = time_plugin(scratch, &netns, "DEL", &input)?;
        Ok((added, deleted))
    });
    rustix::mount::unmount(&netns, rustix::mount::UnmountFlags::DETACH)?;
    timed
}

fn time_plugin(
    scratch: &Scratch,
    netns: &Path,
    command: &str,
    input: &Value,
) -> Outcome<(Duration, Value)> {
    let (text, output) = (
        scratch.dir().join("plugin-input"),
        scratch.dir().join("plugin-output"),
    );
    fs::write(&text, input.to_string())?;
    let mut plugin = Command::new(Path::new(PLUGINS).join("bridge"));
    plugin
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "plugins-alone")
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .stdin(fs::File::open(&text)?)
        .stdout(fs::File::create(&output)?);
    let begun = Instant::now();
    succeeds(&mut plugin)?;
    let took = begun.elapsed();
    let result = serde_json::from_slice(&fs::read(&output)?).unwrap_or_default();
    Ok((took, result))
}

fn succeeds(command: &mut Command) -> Outcome<()> {
    let status = command.status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {status}").into()),
    }
}
