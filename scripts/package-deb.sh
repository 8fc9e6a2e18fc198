#!/usr/bin/env bash
# Builds a Debian package from built programs; prints its path.
# usage: package-deb.sh BIN_DIR OUT_DIR [COMPRESSION]   (xz; none is quick)
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

[[ $# -ge 2 ]] || {
	echo "usage: ${0##*/} BIN_DIR OUT_DIR [COMPRESSION]" >&2
	exit 2
}
bin=$1 out=$2 compression=${3:-xz}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root/DEBIAN" "$work/debian" "$out"
chmod 755 "$root"

scripts/stage.sh "$bin" "$root"
cp configs/debian/control "$work/debian/control"
version=$("$bin/malakocut" --version | awk '{ print $2 }')
# Which libraries, from the programs themselves; DPDK's drivers are plugins that nothing links to.
libraries=$(cd "$work" && dpkg-shlibdeps --ignore-missing-info -O root/usr/bin/* 2>/dev/null |
	sed -n 's/^shlibs:Depends=//p')
[[ -n $libraries ]] || {
	echo "package-deb.sh: dpkg-shlibdeps found no libraries" >&2
	exit 1
}
size=$(du -sk --exclude=DEBIAN "$root" | cut -f1)
cat >"$root/DEBIAN/control" <<TEXT
Package: malakocut
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: malakocut developers <malakocut@localhost>
Section: net
Priority: optional
Installed-Size: $size
Depends: $libraries, $(cat configs/debian/depends)
Recommends: librte-net-mlx5-23
Suggests: librte-net-mlx4-23, librte-net-bnxt23, librte-net-atlantic23, librte-net-ena23, librte-net-netvsc23
Description: network detection and response sensor for a mirror port
 Takes packets from a mirror (SPAN) port through DPDK, keeps bidirectional
 flows, says what they were about, writes them as JSON lines or sends them
 on, and keeps the packets of the last 48 hours as plain pcap files.
TEXT
(cd "$root" && find etc -type f | sed 's|^|/|' | sort) >"$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
for script in postinst prerm postrm; do
	install -m 755 "configs/debian/$script" "$root/DEBIAN/$script"
done
package=$out/malakocut_${version}_$(dpkg --print-architecture).deb
dpkg-deb --root-owner-group -Z"$compression" --build "$root" "$package" >/dev/null
echo "$package"
