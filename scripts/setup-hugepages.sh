#!/bin/bash
# Reserves 2 MiB hugepages for DPDK, and gives them back.
#
# No hugetlbfs mount is needed: malakocut starts DPDK with --in-memory, which takes hugepages
# through memfd. Only the machine-wide knob is used; the kernel spreads the pages over NUMA nodes.
set -euo pipefail

readonly KNOB=/proc/sys/vm/nr_hugepages
readonly COMPACT=/proc/sys/vm/compact_memory
readonly RECORD=/run/malakocut-hugepages
readonly PERSISTENT=/etc/sysctl.d/60-malakocut-hugepages.conf
readonly PAGE_KIB=2048
readonly DEFAULT_PAGES=256
# Below this the packet-buffer pools do not fit, so fewer pages than asked count as a failure.
readonly ENOUGH_PAGES=64

usage() {
    cat <<TEXT
Usage: setup-hugepages.sh [--pages N] [--persistent] [--undo] [--check] [-h|--help]

Reserves 2 MiB hugepages for DPDK. Safe to run again; never lowers what is already reserved.

  --pages N      how many pages there shall be in all (default $DEFAULT_PAGES, that is $((DEFAULT_PAGES * 2)) MiB);
                 fewer when that is more than a quarter of the available memory
  --persistent   also reserve them at boot, in $PERSISTENT
  --undo         put back the number found before the first run, and drop the boot setting
  --check        show the state and change nothing; needs no root
  -h, --help     show this text

Exit status: 0 done, 1 could not be done, 2 wrong usage or not root.
TEXT
}

say() { printf 'hugepages: %s\n' "$*"; }

die() {
    local status=$1
    shift
    printf 'setup-hugepages: %s\n' "$*" >&2
    exit "$status"
}

is_number() { [[ $1 =~ ^(0|[1-9][0-9]{0,8})$ ]]; }

max() { printf '%s\n' "$@" | sort -n | tail -n 1; }

in_mib() { printf '%s MiB' "$(($1 * PAGE_KIB / 1024))"; }

# Prints one value of /proc/meminfo, nothing if it is not there.
meminfo() { awk -v key="$1:" '$1 == key { print $2; exit }' /proc/meminfo; }

read_pages() { cat "$KNOB"; }

write_pages() {
    { printf '%s\n' "$1" >"$KNOB"; } 2>/dev/null || die 1 "the kernel refused $1 pages in $KNOB"
}

# A kernel without compaction lacks the file; the second try is then only a second try.
compact() { { printf '1\n' >"$COMPACT"; } 2>/dev/null || true; }

# Replaces a file by standard input as a whole, so that no reader meets half of it.
replace() {
    { cat >"$1.tmp" && mv -f "$1.tmp" "$1"; } 2>/dev/null || die 1 "$1 cannot be written"
}

remove() { rm -f "$@" 2>/dev/null || die 1 "cannot remove: $*"; }

# The knob counts pages of the default size, which the kernel command line can change.
require_2mib() {
    [[ -r $KNOB ]] || die 1 "this kernel offers no hugepages: $KNOB is not there"
    local size
    size=$(meminfo Hugepagesize)
    [[ $size == "$PAGE_KIB" ]] ||
        die 1 "the default hugepage size is ${size:-unknown} kB here, not $PAGE_KIB kB; nothing was changed"
}

require_root() { ((EUID == 0)) || die 2 "must be run as root (--check works without)"; }

require_writable() {
    [[ -w $KNOB ]] || die 1 "$KNOB is not writable here; in a container, reserve hugepages on its host"
}

# Prints the page counts that the named sysctl files set, one a line.
sysctl_pages() {
    sed -nE 's/^[[:space:]]*-?vm[./]nr_hugepages[[:space:]]*=[[:space:]]*0*([0-9]+).*/\1/p' "$@" 2>/dev/null || true
}

# Prints the largest page count that any other sysctl file asks for at boot.
others_at_boot() {
    local file files=()
    for file in /usr/lib/sysctl.d/*.conf /run/sysctl.d/*.conf /etc/sysctl.d/*.conf /etc/sysctl.conf; do
        if [[ -r $file && $file != "$PERSISTENT" ]]; then files+=("$file"); fi
    done
    if ((${#files[@]} > 0)); then max 0 "$(sysctl_pages "${files[@]}")"; else echo 0; fi
}

# Sets `before`, the number found before the first run, and `ours`, the number set since; fails if
# neither is known. $RECORD does not outlive a reboot, so the boot setting carries the number too.
load_record() {
    local at_boot
    before='' ours=0
    at_boot=$(max 0 "$(sysctl_pages "$PERSISTENT")")
    if [[ -e $RECORD ]]; then
        read -r before ours <"$RECORD" || true
        if ! is_number "$before" || ! is_number "$ours"; then
            die 1 "$RECORD is damaged: set $KNOB by hand, then remove that file"
        fi
    elif [[ -e $PERSISTENT ]]; then
        before=$(sed -n 's/^# before: //p' "$PERSISTENT")
    fi
    is_number "$before" || return 1
    ours=$(max "$ours" "$at_boot")
}

# Prints how many pages may be asked for: a quarter of the available memory is the limit.
affordable() {
    local available
    available=$(meminfo MemAvailable)
    echo $((${available:-0} / 4 / PAGE_KIB))
}

# Raises the knob to $1 pages, as far as the kernel finds them.
reserve() {
    write_pages "$1"
    if (($(read_pages) < $1)); then
        compact
        write_pages "$1"
    fi
}

# Raises the knob from $1 to $2 pages and keeps what --undo needs.
raise() {
    local now=$1 target=$2 after
    # More than was set here is somebody else's, and --undo must leave it to them.
    if ! load_record || ((now > ours)); then before=$now; fi
    # Written first, so that --undo also works after an interrupted run.
    printf '%s %s\n' "$before" "$target" | replace "$RECORD"
    reserve "$target"
    after=$(read_pages)
    if ((after > before)); then
        printf '%s %s\n' "$before" "$after" | replace "$RECORD"
    else
        remove "$RECORD"
    fi
    say "$now -> $after pages reserved ($(in_mib "$after"))"
    if ((after < target)); then
        say "memory is fragmented: $after of $target pages, also after compacting it"
    fi
}

# Makes $1 pages last over a reboot; $2 were there before this run.
persist() {
    local pages existing
    existing=$(max 0 "$(sysctl_pages "$PERSISTENT")")
    # sysctl sets the number, it does not raise it: a smaller one would lower what others ask for.
    pages=$(max "$1" "$existing" "$(others_at_boot)")
    if ((pages == 0)); then
        return
    elif ((pages == existing)); then
        say "already $pages pages at boot ($PERSISTENT)"
        return
    fi
    load_record || before=$2
    mkdir -p "${PERSISTENT%/*}" 2>/dev/null || die 1 "${PERSISTENT%/*} cannot be made"
    replace "$PERSISTENT" <<TEXT
# Hugepages for malakocut; removed by setup-hugepages.sh --undo, which puts back this number:
# before: $before
vm.nr_hugepages = $pages
TEXT
    say "$existing -> $pages pages at boot ($PERSISTENT)"
}

setup() {
    local wanted=$1 persistent=$2 now target limit after
    now=$(read_pages)
    limit=$(affordable)
    target=$wanted
    if ((now < wanted && limit < wanted)); then
        target=$limit
        say "memory is short: at most $limit of $wanted pages, a quarter of what is available"
    fi
    if ((now >= target)); then
        say "already $now pages reserved ($(in_mib "$now"))"
    else
        raise "$now" "$target"
    fi
    after=$(read_pages)
    if ((persistent)); then persist "$(max "$after" "$target")" "$now"; fi
    if ((after < wanted && after < ENOUGH_PAGES)); then
        die 1 "only $after pages, too few; malakocut also runs without hugepages, only slower"
    fi
}

undo() {
    local now after surplus
    now=$(read_pages)
    if ! load_record; then
        say "already undone: $now pages reserved, none of them by this script"
    elif ((now > ours)); then
        say "$now pages reserved, more than the $ours set here: left as they are, somebody else set them"
    elif ((now <= before)); then
        say "already $now pages reserved, as before the first run or fewer"
    else
        write_pages "$before"
        after=$(read_pages)
        say "$now -> $after pages reserved ($(in_mib "$after"))"
        surplus=$(meminfo HugePages_Surp)
        if ((${surplus:-0} > 0)); then say "$surplus more are in use and go when their user ends"; fi
    fi
    if [[ -e $PERSISTENT ]]; then say "removed $PERSISTENT"; fi
    remove "$RECORD" "$PERSISTENT"
}

check() {
    local now found='nothing to undo' at_boot='not set at boot'
    now=$(read_pages)
    say "$now pages reserved ($(in_mib "$now")), $(meminfo HugePages_Free) free; up to $(affordable) affordable"
    if load_record; then found="$before before the first run"; fi
    if [[ -e $PERSISTENT ]]; then at_boot="$(max 0 "$(sysctl_pages "$PERSISTENT")") at boot"; fi
    say "$found; $at_boot"
}

main() {
    local action=setup pages=$DEFAULT_PAGES persistent=0 others=0 before='' ours=0
    while (($# > 0)); do
        case $1 in
            --pages)
                [[ ${2-} =~ ^[1-9][0-9]{0,6}$ ]] || die 2 "--pages needs a number from 1 to 9999999"
                pages=$2 others=1
                shift
                ;;
            --persistent) persistent=1 others=1 ;;
            --undo | --check)
                [[ $action == setup || $action == "${1#--}" ]] || die 2 "--undo and --check exclude each other"
                action=${1#--}
                ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) die 2 "unknown option: $1 (--help lists them)" ;;
        esac
        shift
    done
    [[ $action == setup ]] || ((others == 0)) || die 2 "--$action takes no other option"
    umask 022
    if [[ $action == check ]]; then
        require_2mib
        check
        return
    fi
    require_root
    require_2mib
    require_writable
    if [[ $action == undo ]]; then undo; else setup "$pages" "$persistent"; fi
}

# Sourced, as its test does, it only defines its functions.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then main "$@"; fi
