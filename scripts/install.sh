#!/usr/bin/env bash
# Installs built programs on this machine without a package, or takes them away again.
# usage: install.sh BIN_DIR | install.sh --undo
#
# Configuration files that are there are kept, new ones go beside them as .new. --undo gives cards and
# hugepages back and leaves configuration and data.
#
# With DESTDIR=DIR the files go below that directory, to be packed, and nothing else is done.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

readonly MANIFEST=/usr/share/malakocut/installed
readonly root=${DESTDIR-}

[[ $EUID -eq 0 || -n $root ]] || {
	echo "install.sh: must be run as root" >&2
	exit 2
}
if [[ -z $root && "$(dpkg-query -W -f '${Status}' malakocut 2>/dev/null)" == *" installed" ]]; then
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
	[[ -z $root ]] || {
		echo "install.sh: --undo takes what is installed on this machine away: DESTDIR must not be set" >&2
		exit 2
	}
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
	if [[ -e $root/$file ]] && ! cmp -s "$root/$file" "$work/$file"; then
		mv "$work/$file" "$work/$file.new"
		echo "kept $root/$file; the new one is $root/$file.new"
	fi
done
# Directories that are there, the root above all, keep their modes: cp -a would give them those of
# the staging area.
mkdir -p "$root/"
tar -C "$work" -cf - . | tar -C "$root/" --no-overwrite-dir --no-same-owner -xpf -
mkdir -p "$root${MANIFEST%/*}"
(cd "$work" && find usr -type f | sed 's|^|/|') >"$root$MANIFEST"
[[ -n $root ]] || sh configs/debian/postinst configure
