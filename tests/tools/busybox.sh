#!/bin/sh
# Prints the path of a static busybox with every applet of its default configuration, building it first when it is
# absent. Debian's busybox-static is a standalone shell without ipcs and pgrep, which critest runs in containers.
#
# The source is the distribution's own, from the mirrors that apt is configured with, checked by apt's signatures.
# It is fetched with lists of its own, because source packages are seldom enabled.
set -eu

target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
out=$target/tools/busybox
[ -x "$out" ] && { echo "$out"; exit 0; }
mkdir -p "$target/tools"
exec 9>"$out.lock"
flock 9
[ -x "$out" ] && { echo "$out"; exit 0; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir -p lists/partial source
apt-get indextargets --format '$(ORIGIN) deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    sed -n 's/^\(Debian\|Ubuntu\) //p' | grep ' main$' | sort -u >sources.list
if ! [ -s sources.list ]; then
    echo "busybox.sh: apt knows no package lists of Debian or Ubuntu; run apt-get update" >&2
    exit 1
fi
apt_src() {
    apt-get -qq -o "Dir::State::lists=$work/lists" -o "Dir::Etc::sourcelist=$work/sources.list" \
        -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root "$@" >&2
}
apt_src update
apt_src source --download-only busybox
tar -xf busybox_*.orig.tar.* -C source --strip-components=1
cd source
make defconfig >/dev/null 2>&1
# tc does not build with the headers of newer kernels.
sed -i -e 's/.*CONFIG_STATIC[ =].*/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
yes '' | make oldconfig >/dev/null 2>&1
nice -n 10 make -j"$(nproc)" >build.log 2>&1 || { tail -n 30 build.log >&2; exit 1; }
cp busybox "$out.new"
mv "$out.new" "$out"
echo "$out"
