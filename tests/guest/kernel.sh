#!/usr/bin/env bash
# Prints the directory of the guest's kernel, fetching it first when it is absent: Debian's cloud kernel of the
# suite named as argument (bookworm has 6.1, trixie 6.12), unpacked, with an initramfs of busybox, init and the few
# modules that reach the disk and the host's files. It is not installed; apt's own lists are not touched.
set -euo pipefail
cd "$(dirname "$0")"

suite=$1
cache=${XDG_CACHE_HOME:-$HOME/.cache}/coracle/guest/$suite
stamp=$(sha256sum kernel.sh init | sha256sum | cut -d ' ' -f 1)
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [[ $(cat "$cache/stamp" 2>/dev/null) == "$stamp" ]]; then
    echo "$cache"
    exit 0
fi

# An apt of our own: one source, lists and cache below the cache directory, the host's proxy settings and keys.
apt=$cache/apt
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
cat >"$apt/sources.list" <<SOURCE
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $suite main
SOURCE
options=(
    -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt" -o Dir::State::Status=/dev/null
    -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o APT::Sandbox::User=root
)
if [[ ! -d $cache/lib/modules || ! -f $cache/vmlinuz ]]; then
    rm -rf "$cache/lib"
    {
        apt-get "${options[@]}" update -qq
        package=$(apt-cache "${options[@]}" depends linux-image-cloud-amd64 |
            sed -n 's/^  Depends: \(linux-image-[^ ]*-cloud-amd64\)$/\1/p' | head -n 1)
        (cd "$apt" && apt-get "${options[@]}" download "$package")
        # Newer packages keep everything below usr/.
        dpkg-deb -x "$apt/$package"_*.deb "$apt/root"
    } >&2
    mkdir -p "$cache/lib"
    cp "$apt"/root/boot/vmlinuz-* "$cache/vmlinuz"
    cp -r "$(find "$apt/root" -type d -path '*lib/modules')" "$cache/lib/modules"
    # busybox inserts modules as they are.
    find "$cache/lib/modules" -name '*.ko.xz' -exec xz -d -T 0 {} +
    find "$cache/lib/modules" -name '*.ko.zst' -exec zstd -q -d --rm {} +
    rm -rf "$apt"
fi
version=$(ls "$cache/lib/modules")
# busybox's own depmod, so that nothing but busybox is needed here and in the guest.
busybox depmod -b "$cache" "$version"

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree"/{bin,lib/modules,dev,proc,sys,host,disk,root}
cp "$(command -v busybox)" "$tree/bin/busybox"
ln -s busybox "$tree/bin/sh"
install -m 0755 init "$tree/init"
# The modules and, before each, those that it needs, in the order of insertion.
insertion() {
    local wanted=$1 line path
    line=$(grep -E "(^|/)$wanted\.ko:" "$cache/lib/modules/$version/modules.dep" || true)
    [[ -n $line ]] || return 0 # built in
    for path in $(tr ' ' '\n' <<<"${line#*:}" | tac) "${line%%:*}"; do
        echo "$path"
    done
}
for module in virtio_pci virtio_blk virtiofs overlay; do
    insertion "$module"
done | awk 'NF && !seen[$0]++' >"$tree/modules"
number=100
while read -r path; do
    cp "$cache/lib/modules/$version/$path" "$tree/lib/modules/$number.ko"
    number=$((number + 1))
done <"$tree/modules"
(cd "$tree" && find . | cpio -o -H newc --quiet) | gzip -1 >"$cache/initramfs"
echo "$stamp" >"$cache/stamp"
echo "$cache"
