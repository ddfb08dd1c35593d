#!/bin/sh
# python.sh NAME WORLD prints the path of the component made of tests/guests/python/NAME.py for a world of
# tests/guests/wit, building it first unless it is there and nothing that it is made of has changed: half a minute.
# componentize-py comes from PyPI into the target directory, in the version and with the hash of python.txt.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
name=$1 world=$2
target=${CARGO_TARGET_DIR:-$HOME/.cache/coracle/target}
guests=$here/../guests
mkdir -p "$target/tools/python"
hash() { sha256sum | cut -c1-16; }
venv=$target/tools/python/venv-$(hash <"$here/python.txt")
key=$(find "$guests/wit" -type f | LC_ALL=C sort | xargs cat "$0" "$here/python.txt" "$guests/python/$name.py" | hash)
out=$target/tools/python/$name-$key.wasm
[ -s "$out" ] && { echo "$out"; exit 0; }
exec 9>"$target/tools/python/lock"
flock 9
[ -s "$out" ] && { echo "$out"; exit 0; }

# A directory without this file is one whose installation was cut short.
if ! [ -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 5 --only-binary=:all: --require-hashes \
        -r "$here/python.txt" >&2 || {
        echo "python.sh: componentize-py cannot be had from PyPI; without it the tests of Python guests fail" >&2
        exit 1
    }
    : >"$venv/complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$guests/python/$name.py" "$work/app.py"
mkdir -p "$work/none/lib/site-packages"
cd "$work"
# It looks for packages in the environment that it runs in.
env -u PYTHONPATH VIRTUAL_ENV="$work/none" nice -n 10 \
    "$venv/bin/componentize-py" --quiet -d "$guests/wit" -w "$world" componentize app -o app.wasm >&2
mv app.wasm "$out.new"
mv "$out.new" "$out"
echo "$out"
