//! The cache of attachments on disk: enough to detach a pod after its configuration, its record or the daemon is gone.
//!
//! Called by: [`super::Cni`]; blocks on the disk. Two files a pod below the root directory, which survives a reboot:
//!
//! ```text
//! POD.asked   before the first ADD: list, arguments, namespace          -> DEL is owed
//! POD.added   after the last ADD: its result                            -> DEL and CHECK get it
//! ```
//! Invariants: a file is written atomically and never overwritten; it is removed only after DEL has succeeded. An
//! entry that a power loss has torn is renamed and logged.
//! Not here: running plugins.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::Error;
use super::list::NetworkList;
use super::orphans::{Unfinished, own_cgroups};

/// The format this build writes.
const FORMAT: u32 = 1;

/// What a pod was or is being attached with.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The pod's id, which is its `CNI_CONTAINERID`.
    pub pod: String,
    /// The id of the boot in which ADD was requested.
    pub boot: String,
    /// The path at which its network namespace was pinned.
    pub netns: PathBuf,
    /// Name of the interface in the pod.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// Arguments by capability.
    pub capabilities: Map<String, Value>,
    /// The network.
    pub list: NetworkList,
    /// The result of ADD, once there is one.
    pub result: Option<Value>,
}

/// The content of a `.asked` file.
#[derive(Serialize, Deserialize)]
struct RequestFile {
    format: u32,
    boot: String,
    netns: PathBuf,
    interface: String,
    args: String,
    capabilities: Map<String, Value>,
    list: Value,
    /// The cgroups of the daemon, and of its plugins; empty in requests of older builds.
    #[serde(default)]
    cgroups: String,
}

/// Called with the path of each file that was written or removed.
pub struct Report(pub Box<dyn Fn(&Path) + Send + Sync>);

impl std::fmt::Debug for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Report")
    }
}

/// The cache of one daemon.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    /// Pods that have an entry.
    pods: Mutex<HashSet<String>>,
    /// Called after each change.
    report: OnceLock<Report>,
}

impl Cache {
    /// Lists the entries of earlier daemons. Errors: the directory can be neither created nor listed.
    pub fn open(directory: &Path) -> Result<Cache, Error> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| Error::file("make directory", directory, error))?;
        let failed = |error| Error::file("list", directory, error);
        let mut pods = HashSet::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let (stem, extension) = (path.file_stem(), path.extension());
            match (stem.and_then(|stem| stem.to_str()), extension) {
                (Some(pod), Some(extension)) if extension == "asked" => {
                    pods.insert(pod.to_owned());
                }
                // Half-written by a daemon that was killed before its ADD began.
                (_, Some(extension)) if extension == "new" => {
                    let _ = fs::remove_file(&path);
                }
                _ => {}
            }
        }
        Ok(Cache {
            directory: directory.to_owned(),
            pods: Mutex::new(pods),
            report: OnceLock::new(),
        })
    }

    /// Reports existing files once, which a killed daemon may not have synced, and all changes from now on.
    pub fn report_changes(&self, report: Report) {
        for pod in self.pods() {
            for extension in ["asked", "added"] {
                (report.0)(&self.path(&pod, extension));
            }
        }
        // A second call changes nothing.
        let _ = self.report.set(report);
    }

    fn changed(&self, path: &Path) {
        if let Some(report) = self.report.get() {
            (report.0)(path);
        }
    }

    /// Whether DEL is owed for a pod.
    pub fn contains(&self, pod: &str) -> bool {
        self.lock().contains(pod)
    }

    /// The number of pods for which DEL is owed.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// All pods for which DEL is owed.
    pub fn pods(&self) -> Vec<String> {
        let mut pods: Vec<String> = self.lock().iter().cloned().collect();
        pods.sort();
        pods
    }

    /// Whether ADD of a pod has succeeded.
    pub fn is_added(&self, pod: &str) -> bool {
        self.path(pod, "added").exists()
    }

    /// The pods whose ADD did not end, and where its plugins are: beside this daemon or the one that requested it. An entry
    /// that cannot be read names no place.
    pub fn unfinished(&self) -> Unfinished {
        let mut pods = self.pods();
        pods.retain(|pod| !self.is_added(pod));
        let cgroups = pods.iter().filter_map(|pod| {
            let text = read(&self.path(pod, "asked")).ok()??;
            let request: RequestFile = serde_json::from_slice(&text).ok()?;
            (!request.cgroups.is_empty()).then_some(request.cgroups)
        });
        Unfinished {
            cgroups: cgroups.chain([own_cgroups()]).collect(),
            pods: pods.into_iter().collect(),
        }
    }

    /// Records an ADD that is about to run. Errors: the disk's; nothing is recorded then.
    pub fn record_request(&self, entry: &Entry) -> Result<(), Error> {
        let request = RequestFile {
            format: FORMAT,
            boot: entry.boot.clone(),
            netns: entry.netns.clone(),
            interface: entry.interface.clone(),
            args: entry.args.clone(),
            capabilities: entry.capabilities.clone(),
            list: entry.list.to_json(),
            cgroups: own_cgroups(),
        };
        let path = self.path(&entry.pod, "asked");
        let text =
            serde_json::to_vec(&request).map_err(|error| Error::file("write", &path, error))?;
        write(&path, &text)?;
        self.changed(&path);
        self.lock().insert(entry.pod.clone());
        Ok(())
    }

    /// Records the result of an ADD. Errors: the disk's.
    pub fn record_result(&self, pod: &str, result: &Value) -> Result<(), Error> {
        let path = self.path(pod, "added");
        write(&path, result.to_string().as_bytes())?;
        self.changed(&path);
        Ok(())
    }

    /// A pod's entry; `None` if DEL is not owed. Errors: the disk's, or [`Error::Entry`].
    pub fn read(&self, pod: &str) -> Result<Option<Entry>, Error> {
        let path = self.path(pod, "asked");
        let Some(text) = read(&path)? else {
            self.lock().remove(pod);
            return Ok(None);
        };
        let broken = |what: String| Error::Entry {
            file: path.clone(),
            what,
        };
        let request: RequestFile =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        if request.format != FORMAT {
            return Err(broken(format!(
                "its format is {}, we know {FORMAT}",
                request.format
            )));
        }
        let list = NetworkList::parse(request.list.to_string().as_bytes());
        let list = list.and_then(NetworkList::complete).map_err(broken)?;
        // A torn result counts as none: plugins must be able to detach without one.
        let result = read(&self.path(pod, "added"))?;
        Ok(Some(Entry {
            pod: pod.to_owned(),
            boot: request.boot,
            netns: request.netns,
            interface: request.interface,
            args: request.args,
            capabilities: request.capabilities,
            list,
            result: result.and_then(|text| serde_json::from_slice(&text).ok()),
        }))
    }

    /// Removes a pod's entry after its DEL. Errors: the disk's.
    pub fn remove(&self, pod: &str) -> Result<(), Error> {
        // The result first: an entry without one is still valid.
        for extension in ["added", "asked"] {
            remove(&self.path(pod, extension))?;
        }
        self.changed(&self.path(pod, "asked"));
        self.lock().remove(pod);
        Ok(())
    }

    /// Renames a broken entry, so that an operator can read it; DEL is not owed any more.
    pub fn set_aside(&self, pod: &str) -> Result<(), Error> {
        let path = self.path(pod, "asked");
        fs::rename(&path, self.path(pod, "broken"))
            .map_err(|error| Error::file("rename", &path, error))?;
        remove(&self.path(pod, "added"))?;
        self.lock().remove(pod);
        Ok(())
    }

    fn path(&self, pod: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{pod}.{extension}"))
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        // No use of it leaves the set half changed.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes a file under another name and renames it.
fn write(path: &Path, text: &[u8]) -> Result<(), Error> {
    let new = path.with_added_extension("new");
    let written = || -> io::Result<()> {
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text)?;
        fs::rename(&new, path)
    };
    written().map_err(|error| {
        let _ = fs::remove_file(&new);
        Error::file("write", path, error)
    })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path, error)),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]
mod tests {
    use serde_json::json;

    use super::super::tests::Temp;
    use super::*;

    fn entry(pod: &str) -> Entry {
        let list =
            json!({"name": "n", "cniVersion": "1.0.0", "plugins": [{"type": "p", "mtu": 9000}]});
        Entry {
            pod: pod.into(),
            boot: "b".into(),
            netns: "/run/x".into(),
            interface: "eth0".into(),
            args: "A=b".into(),
            capabilities: json!({"mac": "m"}).as_object().unwrap().clone(),
            list: NetworkList::parse(list.to_string().as_bytes()).unwrap(),
            result: None,
        }
    }

    #[test]
    fn an_entry_survives_its_daemon_until_it_is_removed() {
        let temp = Temp::new();
        let cache = Cache::open(temp.dir()).unwrap();
        assert_eq!(cache.read("a").unwrap(), None);
        let mut expected = entry("a");
        cache.record_request(&expected).unwrap();
        cache.record_request(&entry("b")).unwrap();
        assert!(!cache.is_added("a"));
        expected.result = Some(json!({"ips": []}));
        cache.record_result("a", &json!({"ips": []})).unwrap();
        fs::write(temp.dir().join("c.asked.new"), "{").unwrap();

        let later = Cache::open(temp.dir()).unwrap();
        assert_eq!(later.pods(), ["a", "b"]);
        assert!(later.contains("a") && later.is_added("a") && !later.is_added("b"));
        assert_eq!(later.read("a").unwrap(), Some(expected));
        later.remove("a").unwrap();
        later.remove("a").unwrap();
        assert!(!later.contains("a"));
        assert_eq!(Cache::open(temp.dir()).unwrap().pods(), ["b"]);
        assert_eq!(fs::read_dir(temp.dir()).unwrap().count(), 1);
    }

    #[test]
    fn plugins_are_looked_for_beside_the_daemon_that_requested_them() {
        let temp = Temp::new();
        let cache = Cache::open(temp.dir()).unwrap();
        for pod in ["added", "here", "elsewhere", "older"] {
            cache.record_request(&entry(pod)).unwrap();
        }
        cache.record_result("added", &json!({})).unwrap();
        for (pod, cgroups) in [
            ("elsewhere", json!("0::/of/another\n")),
            ("older", json!("")),
        ] {
            let path = temp.dir().join(format!("{pod}.asked"));
            let mut request: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(request["cgroups"], own_cgroups().as_str());
            request["cgroups"] = cgroups;
            fs::write(&path, request.to_string()).unwrap();
        }
        let of = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let expected = Unfinished {
            pods: of(&["here", "elsewhere", "older"]),
            cgroups: of(&["0::/of/another\n", &own_cgroups()]),
        };
        assert_eq!(Cache::open(temp.dir()).unwrap().unfinished(), expected);
    }

    #[test]
    fn a_torn_entry_is_named_and_set_aside_and_a_torn_result_is_none() {
        let temp = Temp::new();
        let cache = Cache::open(temp.dir()).unwrap();
        cache.record_request(&entry("a")).unwrap();
        fs::write(temp.dir().join("a.added"), "{\"ips").unwrap();
        assert_eq!(cache.read("a").unwrap().unwrap().result, None);
        for torn in ["", "{", "{\"format\":2}"] {
            fs::write(temp.dir().join("a.asked"), torn).unwrap();
            let error = cache.read("a").unwrap_err();
            assert!(error.to_string().contains("a.asked"), "{error}");
        }
        cache.set_aside("a").unwrap();
        assert_eq!(cache.pods(), Vec::<String>::new());
        assert!(temp.dir().join("a.broken").exists());
    }

    #[test]
    fn every_change_is_reported_and_what_was_there_before_once() {
        let temp = Temp::new();
        Cache::open(temp.dir())
            .unwrap()
            .record_request(&entry("old"))
            .unwrap();
        let cache = Cache::open(temp.dir()).unwrap();
        let (sender, reported) = std::sync::mpsc::channel();
        cache.report_changes(Report(Box::new(move |path| {
            sender.send(path.to_owned()).unwrap();
        })));
        let was_reported = |name: &str| reported.try_iter().any(|path| path.ends_with(name));
        assert!(was_reported("old.asked"));
        cache.record_request(&entry("a")).unwrap();
        assert!(was_reported("a.asked"));
        cache.record_result("a", &json!({})).unwrap();
        assert!(was_reported("a.added"));
        cache.remove("a").unwrap();
        assert!(was_reported("a.asked"));
    }
}
