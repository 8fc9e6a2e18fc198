# make run    build malakocut and show what it finds in the capture that ships with it
# make test   every check and test; installs what it needs
# make bench  measure the binary against the machine's limits and other programs (BENCH_ARGS=--quick)
# make bench-check  instructions per packet against the committed figures (BLESS=--bless)
# make soak   the journal under 200,000 power cuts and 1,000 kills, the spool under 2,000 cuts (hours)
# make fuzz   the parsers under coverage-guided fuzzing, FUZZ_SECONDS=60 each (stable toolchain)
# make install | uninstall   on this machine, with the systemd service (as root); DESTDIR=DIR below DIR
# make deb    the Debian package, in target/deb
# make vm-test  the package in a Debian guest under qemu: NIC, service, power cut, undo (minutes)
# make api-fuzz  the API driven by its own description, API_EXAMPLES=50 for each path (schemathesis)
# make build | lint | clean

CARGO ?= cargo
CAPTURE := tests/captures/home.pcap.gz

.PHONY: run build test bench bench-check soak fuzz api-fuzz install uninstall deb vm-test lint toolchain clean

run: build
	@scripts/setup-hugepages.sh || true
	@echo
	target/release/malakocut --read $(CAPTURE)

build: toolchain
	@scripts/install-packages.sh build
	$(CARGO) build --release --locked

test: toolchain
	@scripts/install-packages.sh test
	@$(MAKE) --no-print-directory lint
	$(CARGO) test --workspace --locked --no-fail-fast -- --show-output
	tests/setup_hugepages.sh

bench: build
	@scripts/install-packages.sh bench
	python3 benches/bench.py $(BENCH_ARGS)
	$(CARGO) bench --locked --bench packet_path -- $(CAPTURE)
	$(CARGO) bench --locked --bench spool
	$(CARGO) bench --locked --bench hand_over
	$(CARGO) bench --locked --bench journal
	$(CARGO) bench --locked --bench journal_query

bench-check: toolchain
	@scripts/install-packages.sh bench
	$(CARGO) bench --locked --bench packet_path --no-run
	@benches/check.py "$$($(CARGO) bench --locked --bench packet_path --no-run --message-format=json 2>/dev/null \
		| sed -n 's/.*"executable":"\([^"]*packet_path[^"]*\)".*/\1/p')" $(CAPTURE) $(BLESS)

soak: toolchain
	@scripts/install-packages.sh test
	MALAKO_CUTS=200000 MALAKO_SEED=$$(date +%s) $(CARGO) test --release --locked --test journal_power -- --nocapture
	MALAKO_CUTS=2000 $(CARGO) test --release --locked --test spool_power -- --nocapture
	MALAKO_KILLS=1000 $(CARGO) test --release --locked --test journal a_kill_at_full_rate -- --nocapture

FUZZ_SECONDS ?= 60
fuzz: toolchain
	@scripts/install-packages.sh build
	fuzz/run.sh $(FUZZ_SECONDS)

install: $(if $(wildcard target/release/malakocut),,build)
	scripts/install.sh target/release

uninstall:
	scripts/install.sh --undo

deb: build
	scripts/package-deb.sh target/release target/deb

# VM_PROFILE=debug tests a quick build.
VM_PROFILE ?= release
vm-test: toolchain
	@scripts/install-packages.sh build
	$(CARGO) build --locked --bins $(if $(filter release,$(VM_PROFILE)),--release)
	tests/vm/run.py target/$(VM_PROFILE)

API_EXAMPLES ?= 50
api-fuzz: toolchain
	@scripts/install-packages.sh test
	$(CARGO) build --locked
	tests/api_fuzz.sh target/debug/malakocut $(API_EXAMPLES)

lint: toolchain
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) metadata --locked --manifest-path fuzz/Cargo.toml --format-version 1 >/dev/null

toolchain:
	@command -v $(CARGO) >/dev/null || { \
		echo "cargo was not found: malakocut needs Rust 1.95 or later (rustup installs it)" >&2; exit 1; }

clean:
	$(CARGO) clean
