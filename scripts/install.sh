#!/usr/bin/env bash
# Installs built programs on this machine without a package, or takes them away again.
# usage: install.sh BIN_DIR | install.sh --undo
#
# Configuration files that are there are kept, new ones go beside them as .new. --undo gives cards and
# hugepages back and leaves configuration and data.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MANIFEST=/usr/share/malakocut/installed

[[ $EUID -eq 0 ]] || {
	echo "install.sh: must be run as root" >&2
	exit 2
}
if [[ "$(dpkg-query -W -f '${Status}' malakocut 2>/dev/null)" == *" installed" ]]; then
	echo "install.sh: the Debian package is installed; use apt" >&2
	exit 1
fi

undo() {
	[[ -e $MANIFEST ]] || {
		echo "install.sh: nothing is installed"
		return
	}
	sh configs/debian/prerm remove
	xargs -d '\n' rm -f <"$MANIFEST"
	rm -f "$MANIFEST"
	rmdir /usr/lib/malakocut /usr/share/malakocut/secops /usr/share/malakocut /usr/share/doc/malakocut 2>/dev/null || true
	sh configs/debian/postrm remove
	echo "removed; /etc/malakocut, /etc/default/malakocut and /var/lib/malakocut are left"
}

if [[ ${1-} == --undo ]]; then
	undo
	exit
fi
[[ $# -eq 1 ]] || {
	echo "usage: ${0##*/} BIN_DIR | --undo" >&2
	exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
scripts/stage.sh "$1" "$work"
(cd "$work" && find etc -type f) | while read -r file; do
	if [[ -e /$file ]] && ! cmp -s "/$file" "$work/$file"; then
		mv "$work/$file" "$work/$file.new"
		echo "kept /$file; the new one is /$file.new"
	fi
done
cp -a --no-preserve=ownership "$work/." /
mkdir -p "${MANIFEST%/*}"
(cd "$work" && find usr -type f | sed 's|^|/|') >"$MANIFEST"
sh configs/debian/postinst configure
