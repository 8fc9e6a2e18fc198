#!/usr/bin/env bash
# Installs the Debian packages that malakocut needs, if any is missing.
# usage: install-packages.sh build|test|bench
set -euo pipefail

build=(build-essential pkg-config clang libclang-dev libdpdk-dev libpcap0.8-dev libssl-dev zlib1g-dev ca-certificates)
test=(curl nats-server openssl tcpdump tshark tcpreplay ethtool iproute2 procps util-linux e2fsprogs mount tmux ieee-data)

bench=(dpdk-dev softflowd nfdump argus-server argus-client libndpi-bin valgrind)

case "${1:-}" in
build) packages=("${build[@]}") ;;
test) packages=("${build[@]}" "${test[@]}") ;;
bench) packages=("${build[@]}" "${test[@]}" "${bench[@]}") ;;
*)
	echo "usage: ${0##*/} build|test|bench" >&2
	exit 2
	;;
esac

missing=()
for package in "${packages[@]}"; do
	[[ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" == *" installed" ]] || missing+=("$package")
done
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $EUID -ne 0 ]]; then
	if ! command -v sudo >/dev/null; then
		echo "these Debian packages are missing, and installing them needs root: ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo)
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get update &&
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
		apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -20 "$log" >&2
	echo "apt-get could not install: ${missing[*]}" >&2
	exit 1
fi
