#!/bin/sh
# Installs Coracle from the archive that this file is in.
#
#   ./install.sh [PREFIX]     PREFIX is /usr/local unless given; DESTDIR is put before all paths
#
# What is in /etc/coracle already stays. Starts nothing and enables nothing.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-/usr/local}
to=${DESTDIR:-}

(cd "$here/usr" && find . -type f) | while read -r file; do
    mode=0644
    [ ! -x "$here/usr/$file" ] || mode=0755
    install -D -m "$mode" "$here/usr/$file" "$to$prefix/$file"
done
sed "s|/usr/bin/coracle|$prefix/bin/coracle|" "$here/usr/lib/systemd/system/coracle.service" \
    >"$to$prefix/lib/systemd/system/coracle.service"
install -d "$to/etc/coracle/conf.d"
if [ -e "$to/etc/coracle/config.toml" ]; then
    echo "kept $to/etc/coracle/config.toml"
else
    install -m 0644 "$here/etc/coracle/config.toml" "$to/etc/coracle/config.toml"
fi
echo "next: $prefix/bin/coracle check && systemctl daemon-reload && systemctl enable --now coracle"
