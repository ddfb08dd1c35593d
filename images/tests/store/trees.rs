//! Images as buildah and skopeo write them, in each of their formats, unpacked here and by umoci: the same tree.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_images::{Image, ImportRequest, Kind};

use super::{open, pull};
use crate::support::{Registry, Scratch};

const NAME: &str = "registry.example/team/app:v1";

/// Makes an image of two layers by buildah below `$1`, with all that a layer can have, writes it in every format, to files and
/// to the registry `$2`, and unpacks it by umoci.
const SCRIPT: &str = r#"
set -e
cd "$1"
# What it keeps is in this directory, not with the machine's images.
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$1" "$1" > storage.conf
export CONTAINERS_STORAGE_CONF=$1/storage.conf
printf '{"default": [{"type": "insecureAcceptAnything"}]}' > policy.json
policy="--signature-policy $1/policy.json"
copy="skopeo --policy $1/policy.json copy --quiet"

lower=$(buildah from $policy scratch)
root=$(buildah mount $lower)
mkdir -p $root/bin $root/empty $root/gone/below $root/kept/sticky $root/opaque
echo program > $root/bin/app
chown 1000:4000000000 $root/bin/app
chmod 4755 $root/bin/app
ln $root/bin/app $root/bin/again
python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.note", b"a\0\nb")' $root/bin/app
python3 -c 'import os, sys; open(os.fsencode(sys.argv[1]) + b"/\xff", "w").write("x")' $root/kept
echo twin > $root/kept/twin
ln $root/kept/twin $root/kept/brother
ln -s ../../../etc/passwd $root/bin/link
mkfifo -m 640 $root/kept/fifo
truncate -s 3M $root/kept/sparse
mkdir -p $root/kept/$(printf 'n%.0s' $(seq 200))/$(printf 'm%.0s' $(seq 200))
echo old > $root/opaque/old
echo old > $root/gone/below/old
echo old > $root/changed
chmod 1777 $root/kept/sticky
chmod 2750 $root/empty
touch -h -d '2001-02-03 04:05:06.789' $root/bin/app $root/bin/link $root/empty $root/kept/fifo $root/changed
touch -d '1969-12-31 23:00:00 UTC' $root/kept/sparse
touch -d '2002-03-04 05:06:07' $root/bin $root/kept $root/gone $root/opaque
buildah umount $lower > /dev/null
buildah commit $policy --quiet --rm $lower localhost/lower > /dev/null

upper=$(buildah from $policy --pull-never localhost/lower)
root=$(buildah mount $upper)
rm -r $root/gone $root/bin/again $root/opaque
mkdir $root/opaque
echo new > $root/opaque/new
echo new > $root/changed
chmod 700 $root/kept/sticky
rmdir $root/empty
echo file > $root/empty
touch -d '2003-04-05 06:07:08' $root/opaque $root/changed $root/bin
buildah umount $upper > /dev/null
buildah commit $policy --quiet --format oci $upper localhost/app:oci > /dev/null
buildah commit $policy --quiet --format docker $upper localhost/app:docker > /dev/null
buildah config --arch s390x $upper
buildah commit $policy --quiet --rm $upper localhost/app:foreign > /dev/null

buildah push $policy --quiet localhost/app:oci oci:$1/oci:v1
umoci unpack --image $1/oci:v1 bundle > /dev/null
name=registry.example/team/app:v1
buildah push $policy --quiet localhost/app:oci oci-archive:$1/buildah-oci.tar:$name
buildah push $policy --quiet localhost/app:docker docker-archive:$1/buildah-docker.tar:$name
buildah push $policy --quiet --compression-format zstd localhost/app:oci oci-archive:$1/buildah-zstd.tar:$name
$copy oci:$1/oci:v1 oci-archive:$1/skopeo-oci.tar:$name
$copy oci:$1/oci:v1 docker-archive:$1/skopeo-docker.tar:$name
$copy --dest-compress-format zstd oci:$1/oci:v1 oci-archive:$1/skopeo-zstd.tar:$name
tar --create --file skopeo-layout.tar --directory oci .

to="--dest-tls-verify=false"
$copy $to --format oci oci:$1/oci:v1 docker://$2/app:oci
$copy $to --format v2s2 oci:$1/oci:v1 docker://$2/app:v2s2
$copy $to --dest-compress-format zstd oci:$1/oci:v1 docker://$2/app:zstd
buildah push $policy --quiet --tls-verify=false localhost/app:docker docker://$2/app:buildah
for format in oci v2s2; do
    buildah manifest create list-$format > /dev/null
    buildah manifest add list-$format localhost/app:foreign > /dev/null
    buildah manifest add list-$format localhost/app:$(test $format = oci && echo oci || echo docker) > /dev/null
    buildah manifest push $policy --quiet --all --tls-verify=false --format $format list-$format docker://$2/app:list-$format
done
buildah rm --all > /dev/null
"#;

/// Everything that can be seen of what has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    mode: u32,
    owner: (u32, u32),
    time: (i64, i64),
    target: PathBuf,
    data: Vec<u8>,
    note: Option<Vec<u8>>,
    /// The layer and the file in it.
    file: (usize, u64),
}

type Tree = BTreeMap<Vec<u8>, Facts>;

/// Adds a layer to a tree, as overlayfs does. The root itself is left out: it is not in these layers.
fn add(tree: &mut Tree, layer: usize, root: &Path) {
    let mut pending = vec![root.to_owned()];
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let facts = std::fs::symlink_metadata(&path).unwrap();
            if facts.is_dir() {
                pending.push(path.clone());
            }
            let name = path.strip_prefix(root).unwrap().as_os_str();
            found.push((name.as_bytes().to_vec(), path, facts));
        }
    }
    for (name, path, facts) in &found {
        let mut value = [0; 4];
        let opaque = rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value);
        if !facts.is_dir() || opaque == Ok(1) {
            let below = [name, &b"/"[..]].concat();
            tree.retain(|other, _| other != name && !other.starts_with(&below));
        }
    }
    for (name, path, facts) in found {
        if facts.file_type().is_char_device() {
            continue;
        }
        let mut note = vec![0; 64];
        let count = rustix::fs::lgetxattr(&path, "user.note", &mut note);
        note.truncate(*count.as_ref().unwrap_or(&0));
        let facts = Facts {
            mode: facts.mode(),
            owner: (facts.uid(), facts.gid()),
            time: (facts.mtime(), facts.mtime_nsec()),
            target: std::fs::read_link(&path).unwrap_or_default(),
            data: match facts.is_file() {
                true => std::fs::read(&path).unwrap(),
                false => Vec::new(),
            },
            note: count.ok().map(|_| note),
            file: (layer, facts.ino()),
        };
        tree.insert(name, facts);
    }
}

/// The names of each file that has several, in their order.
fn links(tree: &Tree) -> Vec<Vec<&[u8]>> {
    let mut names: BTreeMap<(usize, u64), Vec<&[u8]>> = BTreeMap::new();
    for (name, facts) in tree {
        names.entry(facts.file).or_default().push(name);
    }
    let mut links: Vec<_> = names
        .into_values()
        .filter(|names| names.len() > 1)
        .collect();
    links.sort();
    links
}

fn expect_same(ours: &Tree, theirs: &Tree, what: &str) {
    let names = |tree: &Tree| -> Vec<String> {
        let names = tree.keys();
        names.map(|name| name.escape_ascii().to_string()).collect()
    };
    assert_eq!(names(ours), names(theirs), "{what}");
    for (name, theirs) in theirs {
        let ours = Facts {
            file: theirs.file,
            ..ours[name].clone()
        };
        assert!(
            ours == *theirs,
            "{what}: {}: {ours:?}, umoci has {theirs:?}",
            name.escape_ascii()
        );
    }
    assert_eq!(links(ours), links(theirs), "{what}");
}

fn tree(image: &Image) -> Tree {
    let Kind::Linux(linux) = &image.kind else {
        panic!("{} is no Linux image", image.id);
    };
    let mut tree = Tree::new();
    for (number, layer) in linux.layers.iter().enumerate() {
        add(&mut tree, number, layer);
    }
    tree
}

#[tokio::test(flavor = "multi_thread")]
async fn every_format_of_buildah_and_skopeo_becomes_the_tree_that_umoci_makes() {
    let (scratch, registry) = (Scratch::new(), Registry::start().await);
    let made = Command::new("bash")
        .args(["-c", SCRIPT, "bash"])
        .arg(&scratch.0)
        .arg(&registry.host)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(
        made.status.success(),
        "buildah, skopeo or umoci (Debian packages of these names): {said}"
    );
    let mut expected = Tree::new();
    add(&mut expected, 0, &scratch.0.join("bundle/rootfs"));
    assert!(expected.len() > 10, "{:?}", expected.keys());
    for archive in [
        "buildah-oci",
        "buildah-docker",
        "buildah-zstd",
        "skopeo-oci",
        "skopeo-docker",
        "skopeo-zstd",
        "skopeo-layout",
    ] {
        let store = Scratch::new();
        let images = open(&store.0).await;
        let path = scratch.0.join(format!("{archive}.tar"));
        let request = ImportRequest {
            name: path.display().to_string(),
            reference: Some(NAME.to_owned()),
            ..ImportRequest::default()
        };
        let imported = images.import(File::open(&path).unwrap(), &request).await;
        let imported = imported.unwrap_or_else(|error| panic!("{archive}: {error}"));
        expect_same(&tree(&imported[0]), &expected, archive);
    }
    for tag in ["oci", "v2s2", "zstd", "buildah", "list-oci", "list-v2s2"] {
        let store = Scratch::new();
        let images = open(&store.0).await;
        let pulled = pull(&images, &format!("{}/app:{tag}", registry.host)).await;
        let pulled = pulled.unwrap_or_else(|error| panic!("{tag}: {error}"));
        expect_same(&tree(&pulled), &expected, tag);
    }
}
