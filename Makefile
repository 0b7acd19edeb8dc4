# The two commands a newcomer needs: `make demo` shows it working, `make test` proves it.
# Both install what this machine lacks (Debian or Ubuntu, as root), build, and run.

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
TARGET := $(or $(CARGO_TARGET_DIR),target)
# The programs, behind the profile of each.
BUILT := release/flanneld plugin/flannel release/weft-proxy

.PHONY: build demo test lint bench fuzz packages clean

# Static programs in bin/. The explicit target keeps the flag away from proc-macros, which can't be static.
build: packages
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static" \
		cargo build --release --target $(HOST) -p flanneld -p weft-proxy
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static" \
		cargo build --profile plugin --target $(HOST) -p cni-plugin
	@mkdir -p bin
	@for built in $(BUILT); do program=$${built#*/}; \
		install -m 755 $(TARGET)/$(HOST)/$$built bin/.$$program.new && mv bin/.$$program.new bin/$$program || exit 1; \
	done

# Three nodes, etcd, pods, Services, faults, on this machine: KEEP=1 leaves it up.
demo: build
	cargo build -q -p netns-tests --bin demo
	@$(TARGET)/debug/demo

# Every test of every level; the last line is `N passed, N failed`.
test: build
	@[ $$(stat -c %s bin/flannel) -le 3000000 ] || { echo "bin/flannel is larger than 3 MB"; exit 1; }
	@REQUIRE_NETNS=1 scripts/test

lint: packages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Static like the programs it measures, so that its floor pays for no dynamic linker.
bench: build
	RUSTFLAGS="$(RUSTFLAGS) -C target-feature=+crt-static" cargo run --release --target $(HOST) -p bench

# Each target for SECONDS. cargo-fuzz wants a nightly compiler's flags, which the stable one takes so too.
fuzz: SECONDS := 600
fuzz:
	@command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
	@for target in $$(cargo fuzz list); do \
		mkdir -p fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target fuzz/corpus/$$target fuzz/seeds cni-plugin/core/tests/golden \
			-- -max_total_time=$(SECONDS) || exit 1; \
	done

packages:
	@scripts/packages

clean:
	cargo clean
	rm -rf bin
