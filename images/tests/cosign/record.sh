#!/bin/sh
# Records what cosign signs: `record.sh COSIGN DIRECTORY`, as root, with docker-registry and curl. README.md says what is there.
# Nothing leaves the machine: registry and cosign have a network of their own, which is loopback alone.
set -eu

[ -n "${CORACLE_RECORDING:-}" ] || exec env CORACLE_RECORDING=1 unshare --net "$0" "$@"
ip link set lo up
cosign=$(realpath "$1") to=$(realpath "$2")
work=$(mktemp -d /tmp/coracle-cosign.XXXXXX)
cd "$work"
host=127.0.0.1:5000
cat >registry.yml <<CONFIG
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $host}
CONFIG
docker-registry serve registry.yml >registry.log 2>&1 &
registry=$!
trap 'kill $registry; rm -rf "$work"' EXIT
until curl -sSf "http://$host/v2/" >/dev/null 2>&1; do sleep 0.1; done

sum() { echo "sha256:$(sha256sum <"$1" | cut -d' ' -f1)"; }
push_blob() {
    upload=$(curl -sSf -D - -o /dev/null -X POST "http://$host/v2/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sSf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$2" "$upload&digest=$(sum "$2")"
}
descriptor() { printf '{"mediaType":"%s","digest":"%s","size":%s}' "$1" "$(sum "$2")" "$(stat -c %s "$2")"; }

# An empty module, as a CNCF Wasm artifact.
oci=application/vnd.oci.image.manifest.v1+json
printf '\0asm\001\0\0\0' >module
printf '{"created":"2026-01-01T00:00:00Z","architecture":"wasm","os":"wasip1","layerDigests":["%s"]}' "$(sum module)" >config
printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' "$oci" \
    "$(descriptor application/vnd.wasm.config.v0+json config)" "$(descriptor application/wasm module)" >manifest

# Everything that a tag of the repository leads to, by its digest.
record() {
    mkdir -p "$to/$1/blobs"
    for tag in $(curl -sSf "http://$host/v2/$1/tags/list" | sed 's/.*\[//; s/[]}"]//g; s/,/ /g'); do
        curl -sSf -H "Accept: $oci" -H 'Accept: application/vnd.oci.image.index.v1+json' \
            -o found "http://$host/v2/$1/manifests/$tag"
        echo "$tag $(sum found)"
        keep "$1" found
    done >"$to/$1/tags"
}
keep() {
    mv "$2" "$to/$1/blobs/$(sum "$2" | cut -d: -f2)"
    grep -aho 'sha256:[0-9a-f]\{64\}' "$to/$1"/blobs/* | sort -u | while read -r digest; do
        [ -e "$to/$1/blobs/${digest#sha256:}" ] && continue
        curl -sf -o next "http://$host/v2/$1/blobs/$digest" ||
            curl -sf -H "Accept: $oci" -o next "http://$host/v2/$1/manifests/$digest" || continue
        keep "$1" next
    done
}

export COSIGN_PASSWORD=made-for-a-test COSIGN_EXPERIMENTAL=1
"$cosign" generate-key-pair
for kind in tag referrers bundle; do
    push_blob "$kind" module
    push_blob "$kind" config
    curl -sSf -X PUT -H "Content-Type: $oci" --data-binary @manifest "http://$host/v2/$kind/manifests/v1"
    case $kind in
    tag) set -- --new-bundle-format=false ;;
    referrers) set -- --new-bundle-format=false --registry-referrers-mode=oci-1-1 ;;
    bundle) set -- --new-bundle-format=true ;;
    esac
    "$cosign" sign --yes --key cosign.key --use-signing-config=false --tlog-upload=false "$@" "$host/$kind@$(sum manifest)"
    record "$kind"
done
cp cosign.pub "$to/"
"$cosign" version 2>&1 | grep -E '^Git(Version|Commit)|^GoVersion' || true
