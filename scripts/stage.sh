#!/usr/bin/env bash
# Lays malakocut's files out below a directory, as they are on a system.
# usage: stage.sh BIN_DIR DEST
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

[[ $# -eq 2 && -x $1/malakocut ]] || {
	echo "usage: ${0##*/} BIN_DIR DEST (BIN_DIR holds the built programs)" >&2
	exit 2
}
bin=$1 dest=$2

put() { install -D -m "$1" "$2" "$dest/$3"; }

for program in malakocut malakocut-cli gomon; do
	put 755 "$bin/$program" "usr/bin/$program"
	strip --strip-unneeded "$dest/usr/bin/$program"
done
put 755 scripts/setup-hugepages.sh usr/lib/malakocut/setup-hugepages.sh
put 644 configs/malakocut.service usr/lib/systemd/system/malakocut.service
put 644 configs/malakocut-setup.service usr/lib/systemd/system/malakocut-setup.service
put 644 configs/malakocut.sysusers usr/lib/sysusers.d/malakocut.conf
put 644 configs/malakocut.tmpfiles usr/lib/tmpfiles.d/malakocut.conf
put 644 configs/malakocut.default etc/default/malakocut
put 644 configs/malakocut.toml etc/malakocut/malakocut.toml
put 644 README.md usr/share/doc/malakocut/README.md
for filter in configs/*.bpf; do put 644 "$filter" "usr/share/malakocut/${filter##*/}"; done
for file in configs/secops/*; do put 644 "$file" "usr/share/malakocut/secops/${file##*/}"; done

cli=$bin/malakocut-cli
man=$dest/usr/share/man/man1
mkdir -p "$man"
"$cli" man "$man"
gzip -9nf "$man"/*.1
for program in malakocut malakocut-cli gomon; do
	for shell in bash:usr/share/bash-completion/completions:$program \
		zsh:usr/share/zsh/vendor-completions:_$program \
		fish:usr/share/fish/vendor_completions.d:$program.fish; do
		IFS=: read -r name directory file <<<"$shell"
		mkdir -p "$dest/$directory"
		"$cli" completions "$name" "$program" >"$dest/$directory/$file"
	done
done
