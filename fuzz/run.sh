#!/bin/sh
# Runs every fuzz target for SECONDS seconds each (60), coverage-guided, on the stable toolchain.
#
# usage: fuzz/run.sh [SECONDS] [TARGET...]     what is found stays in fuzz/artifacts/
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# -gt 0 ] && shift
export RUSTFLAGS="--cfg fuzzing -C target-cpu=x86-64-v2 -C passes=sancov-module \
-C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
-C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares"
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --locked --target "$triple"
for target in ${*:-dns tls quic http ssh dhcp neighbour inspector}; do
	mkdir -p "corpus/$target" "artifacts/$target"
	echo "== $target, $seconds s"
	"target/$triple/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=5 -rss_limit_mb=1024 \
		-print_final_stats=1 -artifact_prefix="artifacts/$target/" "corpus/$target" 2>&1 |
		grep -E '^(stat::|SUMMARY|==[0-9]|.*panicked)' || true
	[ -z "$(ls -A "artifacts/$target")" ] || { echo "$target: found $(ls "artifacts/$target")" >&2; exit 1; }
done
