# Coracle: build, show, test, measure, install. `make help` lists the targets.
#
# Everything is compiled in one profile (release) into one directory outside the checkout, always with the
# whole workspace selected: another selection gives some dependencies other features, and wasmtime would be
# compiled twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

export CARGO_TARGET_DIR ?= $(HOME)/.cache/coracle/target
CARGO ?= cargo
RELEASE := $(CARGO_TARGET_DIR)/release
FAILPOINTS := $(CARGO_TARGET_DIR)/failpoints-bin

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
BINDIR := $(PREFIX)/bin
UNITDIR := $(PREFIX)/lib/systemd/system

# To build: a C compiler and libseccomp. To test: a registry, a C compiler for WebAssembly, Python to fetch
# Go for crictl where Go is absent. To compare: containerd with runc and its network plugins.
BUILD_PACKAGES := build-essential pkg-config libseccomp-dev ca-certificates
DEMO_PACKAGES := $(BUILD_PACKAGES) docker-registry
TEST_PACKAGES := $(DEMO_PACKAGES) clang lld wasi-libc libclang-rt-14-dev-wasm32 python3-venv buildah containerd runc crun \
	containernetworking-plugins iptables nftables iproute2 busybox-static prometheus openssl skopeo umoci
# An emulated machine. virtiofsd comes with qemu-system-common or, on newer systems, by itself.
GUEST_PACKAGES = $(TEST_PACKAGES) qemu-system-x86 busybox-static cpio xz-utils zstd debian-archive-keyring \
    $(if $(filter systemd,$(INIT)),systemd) $(if $(LSM),$(if $(filter selinux,$(LSM)),secilc,apparmor)) \
    $(shell apt-cache show virtiofsd >/dev/null 2>&1 && echo virtiofsd)
BENCH_PACKAGES := $(TEST_PACKAGES)
DEB_PACKAGES := $(BUILD_PACKAGES) debhelper dh-apparmor lintian man-db
RPM_PACKAGES := $(BUILD_PACKAGES) rpm rpmlint busybox-static
# busybox is built from source; ipcmk and ipcrm belong to util-linux; the peer's host ports need iptables.
CONFORMANCE_PACKAGES := $(DEMO_PACKAGES) clang lld wasi-libc libclang-rt-14-dev-wasm32 python3-venv dpkg-dev xz-utils bzip2 util-linux \
    $(if $(PEER),containerd runc containernetworking-plugins iptables) $(if $(LSM),$(GUEST_PACKAGES))

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: packages
packages:
	@.ci/packages $(TEST_PACKAGES)

# What `coracle version` says. Only here, so that a commit does not have everything linked again that is only tested.
STAMPED := CORACLE_COMMIT=$$(git rev-parse HEAD 2>/dev/null || echo unknown) \
    CORACLE_COMMIT_DATE=$$(git log -1 --format=%cI 2>/dev/null || echo unknown)
.PHONY: build
build: ## build the daemon
	@.ci/packages $(BUILD_PACKAGES)
	$(STAMPED) $(CARGO) build --release --workspace --bin coracle

.PHONY: demo
demo: ## build, then show a pod's whole life through the CRI socket (as root)
	@.ci/packages $(DEMO_PACKAGES)
	$(CARGO) build --release --workspace --bin coracle
	$(RELEASE)/coracle demo

# The daemon is built twice: with failpoints for the tests that break it, and last without, so that the
# plain one is what lies at release/coracle. The unit tests share the build with failpoints, whose crates are
# optimized less: half the time to compile.
FAILPOINT_CRATES := cgroup config control cri host images lifecycle network runtime sandbox shim spec wasm
FAILPOINT_BUILD := --features coracle-shim/failpoints \
    $(FAILPOINT_CRATES:%=--config profile.release.package.coracle-%.opt-level=1)
UNIT_AND_END_TO_END := --lib --bins --test '*'
# As on a node with systemd, whose mounts are shared.
SHARED_MOUNTS := unshare --mount --propagation shared
.PHONY: test-build
test-build:
	@.ci/packages $(TEST_PACKAGES)
	$(CARGO) build --release --workspace --bin coracle $(FAILPOINT_BUILD)
	install -D -m 0755 $(RELEASE)/coracle $(FAILPOINTS)/coracle
	$(CARGO) test --release --workspace $(UNIT_AND_END_TO_END) $(FAILPOINT_BUILD) --no-run
	$(CARGO) build --release --workspace --bins
	tests/tools/crictl.sh >/dev/null

.PHONY: test
test: test-build ## build, then run every test, unit and end to end (as root)
	$(SHARED_MOUNTS) $(CARGO) test --release --workspace $(UNIT_AND_END_TO_END) $(FAILPOINT_BUILD)

# INIT=systemd: the tests of the systemd cgroup driver. LSM=apparmor or selinux: those of such a kernel.
# KERNEL=bookworm: Linux 6.1. TESTS: which, by name; unless set all of those two kinds, and else the ones for which the
# version of cgroups matters and which fit into 15 minutes. GUEST_TIMEOUT=SECONDS for more.
GUEST = GUEST_INIT=$(or $(INIT),plain) GUEST_LSM=$(LSM) GUEST_KERNEL=$(or $(KERNEL),trixie) tests/guest/run.sh
V2_TESTS := containers:: linux:: pods:: stats:: volumes::
.PHONY: test-v2
test-v2: test-build ## run the end-to-end tests on cgroup v2, in an emulated machine (INIT=, LSM=, TESTS=)
	@.ci/packages $(GUEST_PACKAGES)
	$(GUEST) $(or $(TESTS),$(if $(LSM)$(filter systemd,$(INIT)),,$(V2_TESTS)))

.PHONY: bench
bench: ## build, then compare with containerd + runc (as root; BENCH_JSON=FILE also writes JSON)
	@.ci/packages $(BENCH_PACKAGES) e2fsprogs
	$(CARGO) build --release --workspace --bins
	tests/tools/on-ext4.sh 8 $(RELEASE)/bench

# Beside wasmtime's own server, built from crates.io the first time (some twenty minutes), and a native one under containerd.
.PHONY: bench-http
bench-http: ## build, then compare HTTP functions with wasmtime serve and a native server (as root; QUICK=1, COLD=1, BENCH_JSON=FILE)
	@.ci/packages $(BENCH_PACKAGES) wrk e2fsprogs
	$(CARGO) build --release --workspace --bins
	$(if $(COLD),,tests/tools/wasmtime.sh >/dev/null)
	tests/tools/on-ext4.sh 8 $(RELEASE)/bench-http $(if $(QUICK),--quick) $(if $(COLD),--cold)

.PHONY: bench-images
bench-images: ## build, then compare pulls of images with containerd (as root; QUICK=1, BENCH_JSON=FILE)
	@.ci/packages $(BENCH_PACKAGES) e2fsprogs
	$(CARGO) build --release --workspace --bins
	tests/tools/on-ext4.sh 8 $(RELEASE)/bench-images $(if $(QUICK),--quick)

.PHONY: bench-scale
bench-scale: ## build, then show what a pod costs beside none and beside 2,000 others (as root; PODS=, BENCH_JSON=FILE)
	@.ci/packages $(BENCH_PACKAGES) e2fsprogs
	$(CARGO) build --release --workspace --bins
	tests/tools/on-ext4.sh 8 $(RELEASE)/bench-scale $(PODS)

# PODS pods while daemon and spawner are killed after every 200, then half as many on one daemon. See docs/security/fuzzing.md.
.PHONY: churn
churn: ## build, then run 10,000 pods under kills and look for leaks (as root; PODS=)
	@.ci/packages $(BENCH_PACKAGES)
	$(CARGO) build --release --workspace --bins
	$(RELEASE)/churn $(PODS)

# Chromium opens the node's page, and pages of what `coracle status` and `ps` print; their pictures are in docs/operate.
.PHONY: page
page: test-build ## build, then look at the node's page in a browser and take its picture (as root)
	@.ci/packages chromium fonts-dejavu-core
	CORACLE_PICTURES=$(CURDIR)/docs/operate $(SHARED_MOUNTS) $(CARGO) test --release --workspace \
	    --test cri $(FAILPOINT_BUILD) -- --ignored page::

# A daemon in an emulated machine churns pods on an ext4 disk while the machine is switched off. See docs/operate/state.md.
.PHONY: test-power
test-power: ## build, then cut a machine's power at random points of a churn (as root; CUTS=50)
	@.ci/packages $(GUEST_PACKAGES)
	$(CARGO) build --release --workspace --bins
	$(RELEASE)/power $(CUTS)

# See docs/security/fuzzing.md.
.PHONY: fuzz
fuzz: ## build, then run one fuzz target (TARGET= SECONDS=60)
	@.ci/packages $(BUILD_PACKAGES)
	tests/tools/fuzz.sh $(TARGET) $(or $(SECONDS),60)

# See docs/reference/conformance.md. Without SPDY or WEBSOCKET critest runs by both. With LSM=apparmor the first run builds
# critest and skips what only the guest can run.
CONFORMANCE := $(if $(FOCUS),--focus '$(FOCUS)') $(if $(SKIP),--skip '$(SKIP)') $(if $(SPDY),--spdy) $(if $(WEBSOCKET),--websocket) \
    $(if $(PEER),--peer $(PEER)) $(if $(HANDLER),--handler $(HANDLER))
.PHONY: conformance
conformance: ## build, then run critest (as root; FOCUS=REGEX SKIP=REGEX SPDY=1 WEBSOCKET=1 PEER= HANDLER= LSM=)
	@.ci/packages $(CONFORMANCE_PACKAGES)
	$(CARGO) build --release --workspace --bins
	$(RELEASE)/conformance $(if $(LSM),--focus AppArmor --spdy,$(CONFORMANCE))
	$(if $(LSM),GUEST_FILES='release/coracle tools/busybox tools/critest tools/critest.version' \
	    GUEST_COMMAND='bash /run/guest/critest.sh --focus AppArmor --spdy' GUEST_TESTS=release/conformance $(GUEST))

# A kubelet and a kubectl of the pinned release are built from their modules the first time: some ten minutes.
.PHONY: kubelet
kubelet: ## build, then hold a real kubelet's static pods to what kubelet promises (as root; TESTS=)
	@.ci/packages $(TEST_PACKAGES)
	$(CARGO) build --release --workspace --bins
	tests/tools/kubelet.sh >/dev/null
	$(CARGO) test --release --workspace --test kubelet -- --ignored $(TESTS)

# The parts of docs/quickstart/function.md whose compilers `make test` does not have; it runs the part on Python.
.PHONY: quickstart
quickstart: test-build ## build, then follow the quickstart in every language (as root)
	rustup target add wasm32-wasip2
	$(CARGO) test --release --workspace --test cri $(FAILPOINT_BUILD) -- --include-ignored quickstart::

# Unit tests that need root (namespaces, cgroups, devices, files of other owners) or minutes: whole crates, and parts of
# names in the others. `make test` runs these, too.
ROOT_CRATES := coracle-cgroup coracle-config coracle-demo coracle-sys coracle-tree coracle-unpack
ROOT_TESTS := builtin:: check::place check::probe cni::directory cni::readiness cni::tests compile::tests::capabilities \
    containers::tests device::tests fuse:: identity::tests::the_map landlock:: linux::devices mirrors:: namespace::tests \
    nft::tests paths::tests snapshot:: stats::network toolbox:: user::tests::users watch::tests
.PHONY: check
check: ## formatting, clippy and the unit tests that need no root: before each commit
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets --quiet -- -D warnings
	$(CARGO) test --release --workspace $(ROOT_CRATES:%=--exclude %) --lib --bins --quiet -- $(ROOT_TESTS:%=--skip %)

.PHONY: doc
doc: ## the documentation of all crates, without warnings; it begins with the architecture
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --release --workspace --no-deps
	@echo "open $(CARGO_TARGET_DIR)/doc/coracle/index.html"

.PHONY: lint
lint: ## formatting, clippy, and cargo-deny where it is installed
	@.ci/packages $(BUILD_PACKAGES)
	@$(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt
	@$(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	$(CARGO) clippy --release --workspace --bin fuzz --features coracle-shim/fuzzing -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --config .deny.toml check; fi

# docs/reference holds what the command line and the default configuration say; a test compares.
.PHONY: reference
reference: ## write the pages of docs/reference that are made from the source
	CORACLE_WRITE_REFERENCE=1 $(CARGO) test --release --workspace --bins manual:: --quiet

# CycloneDX, of what is linked into the daemon; the licences of all that is compiled are held to .deny.toml by a test.
.PHONY: sbom
sbom: ## list what the daemon is made of (CycloneDX), in sbom.cdx.json of cargo's target directory
	@.ci/packages $(BUILD_PACKAGES)
	$(CARGO) build --release --workspace --bin sbom
	$(RELEASE)/sbom bom >$(CARGO_TARGET_DIR)/sbom.cdx.json

.PHONY: deb
deb: ## build the Debian package, in deb/ of cargo's target directory, and run lintian
	@.ci/packages $(DEB_PACKAGES)
	$(STAMPED) $(CARGO) build --release --workspace --bin coracle --bin sbom
	.ci/deb $(RELEASE) $(CARGO_TARGET_DIR)/deb

# The package and one of a later revision, installed, upgraded, rolled back and purged: in a chroot, or with INIT=systemd in
# an emulated machine under running pods.
.PHONY: test-deb
test-deb: deb ## build the Debian package, then install, upgrade, roll back and purge it (as root; INIT=systemd)
	.ci/deb $(RELEASE) $(CARGO_TARGET_DIR)/deb 2
	$(if $(filter systemd,$(INIT)),@.ci/packages $(GUEST_PACKAGES))
	$(if $(filter systemd,$(INIT)),GUEST_SUITE=package GUEST_FILES="release/coracle \
	    $$(cd $(CARGO_TARGET_DIR) && echo deb/*-[12]_*.deb)" $(GUEST) systemd,\
	    $(CARGO) test --release --workspace --test package -- --ignored chroot)

# The others that are not of Debian; each is made again by its test, which compares the bytes.
.PHONY: tarball
tarball: ## build the archive for nodes without dpkg and rpm, in tarball/ of cargo's target directory
	@.ci/packages $(BUILD_PACKAGES)
	$(STAMPED) $(CARGO) build --release --workspace --bin coracle --bin sbom
	.ci/tarball $(RELEASE) $(CARGO_TARGET_DIR)/tarball

.PHONY: test-tarball
test-tarball: tarball ## build the archive, then install it into a directory
	$(CARGO) test --release --workspace --test package -- --ignored archive

.PHONY: rpm
rpm: ## build the rpm, in rpm/ of cargo's target directory, and run rpmlint
	@.ci/packages $(RPM_PACKAGES)
	$(STAMPED) $(CARGO) build --release --workspace --bin coracle --bin sbom
	.ci/rpm $(RELEASE) $(CARGO_TARGET_DIR)/rpm

.PHONY: test-rpm
test-rpm: rpm ## build the rpm, then install, upgrade and remove it in a root of its own (as root)
	.ci/rpm $(RELEASE) $(CARGO_TARGET_DIR)/rpm 2
	$(CARGO) test --release --workspace --test package -- --ignored rpm

# A configuration that is already there is the operator's and stays.
.PHONY: install
install: build ## install binary, default configuration, crictl.yaml and unit (PREFIX, SYSCONFDIR, DESTDIR)
	install -D -m 0755 $(RELEASE)/coracle $(DESTDIR)$(BINDIR)/coracle
	@keep() { \
	    if [[ -e $$2 ]]; then echo "kept $$2"; else echo "install $$2"; install -D -m 0644 $$1 $$2; fi; \
	}; \
	keep shim/assets/config.toml $(DESTDIR)$(SYSCONFDIR)/coracle/config.toml; \
	keep shim/assets/crictl.yaml $(DESTDIR)$(SYSCONFDIR)/crictl.yaml
	install -d $(DESTDIR)$(UNITDIR)
	sed -e 's|@BINDIR@|$(BINDIR)|g' -e 's|@SYSCONFDIR@|$(SYSCONFDIR)|g' shim/assets/coracle.service \
	    >$(DESTDIR)$(UNITDIR)/coracle.service
	@echo "next: $(BINDIR)/coracle check && systemctl daemon-reload && systemctl enable --now coracle"
