#!/bin/bash
# Installs, upgrades, rolls back, removes and purges the package in a writable copy of this machine's files, and looks at what
# each step leaves.
#
#   unshare --mount --propagation private bash chroot.sh DIRECTORY OLDER.deb NEWER.deb
#
# Called by tests/package.rs. The copy is an overlay on a tmpfs in this process's mount namespace and ends with it.
set -euo pipefail
directory=$1 older=$2 newer=$3

mount -t tmpfs -o mode=0755 package "$directory"
root=$directory/root upper=$directory/upper
mkdir "$root" "$upper" "$directory/work"
mount -t overlay -o "lowerdir=/,upperdir=$upper,workdir=$directory/work" package "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
# A node without systemd, whatever this machine has.
mount -t tmpfs -o mode=0755 package "$root/run"
mount -t tmpfs package "$root/tmp"
cp "$older" "$root/tmp/older.deb"
cp "$newer" "$root/tmp/newer.deb"

fail() { echo "chroot.sh: $*" >&2; exit 1; }
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
is_there() { [[ -e $root/$1 ]] || fail "$1 is not there"; }
is_gone() { [[ ! -e $root/$1 ]] || fail "$1 is still there"; }
installed_version() { inside dpkg-query --show --showformat '${Version}' coracle; }
# What the daemon needs is installed, else it could not have been built here.
install_package() { inside dpkg --install "/tmp/$1.deb"; }

install_package older
for path in usr/bin/coracle usr/lib/systemd/system/coracle.service etc/coracle/config.toml etc/coracle/conf.d \
    etc/apparmor.d/coracle-default usr/share/man/man8/coracle.8.gz usr/share/man/man8/coracle-serve.8.gz \
    usr/share/man/man5/coracle.toml.5.gz usr/share/bash-completion/completions/coracle \
    usr/share/zsh/vendor-completions/_coracle usr/share/fish/vendor_completions.d/coracle.fish \
    usr/share/doc/coracle/README.md usr/share/doc/coracle/copyright usr/share/doc/coracle/NOTICE.gz \
    usr/share/doc/coracle/sbom.cdx.json.gz usr/share/doc/coracle/changelog.gz usr/share/doc/coracle/docs/architecture.md \
    usr/share/doc/coracle/examples/crictl.yaml; do
    is_there "$path"
done
is_gone etc/systemd/system/multi-user.target.wants/coracle.service
is_gone var/lib/coracle
inside coracle config check /etc/coracle/config.toml
inside coracle version --json | grep -q '"commit":"[0-9a-f]\{40\}"' || fail "coracle version names no commit"
inside bash -n /usr/share/bash-completion/completions/coracle
inside grep -q 'ExecStart=/usr/bin/coracle serve' /usr/lib/systemd/system/coracle.service
for page in "$root"/usr/share/man/man[58]/coracle*.gz; do
    complaints=$(inside man --warnings -E UTF-8 -l -Tutf8 -Z "${page#"$root"}" 2>&1 >/dev/null)
    [[ -z $complaints ]] || fail "$page: $complaints"
done

# What an administrator has changed outlives upgrade, rollback and removal.
echo '# changed here' >>"$root/etc/coracle/config.toml"
printf '[log]\nlevel = "warn"\n' >"$root/etc/coracle/conf.d/50-site.toml"
install_package newer
[[ $(installed_version) == *-2 ]] || fail "the newer package is not installed"
install_package older
[[ $(installed_version) == *-1 ]] || fail "the older package is not installed again"
inside dpkg --remove coracle
grep -q '# changed here' "$root/etc/coracle/config.toml" || fail "config.toml was replaced"
is_there etc/coracle/conf.d/50-site.toml
is_gone usr/bin/coracle

# Purged beside a record of a pod, which may run on, and then without.
install_package newer
mkdir -p "$root/var/lib/coracle/pods/0123" "$root/run/coracle"
inside dpkg --purge coracle
is_there var/lib/coracle/pods/0123
is_there etc/coracle/conf.d/50-site.toml
install_package newer
rm -r "$root/var/lib/coracle/pods/0123" "$root/etc/coracle/conf.d/50-site.toml"
inside dpkg --purge coracle
is_gone var/lib/coracle
is_gone run/coracle
is_gone etc/coracle

# Nothing else is left but what dpkg, its triggers and systemd's helper keep for themselves.
left=$(cd "$upper" && find . -type f ! -path './var/lib/dpkg/*' ! -path './var/log/*' ! -path './var/cache/*' \
    ! -path './var/lib/systemd/*')
[[ -z $left ]] || fail "left after the purge: $left"
ours=$(cd "$upper" && find . -iname '*coracle*' ! -type c ! -path './var/lib/dpkg/*')
[[ -z $ours ]] || fail "left after the purge: $ours"
