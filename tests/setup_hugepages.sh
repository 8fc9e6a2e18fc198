#!/bin/bash
# Exercises scripts/setup-hugepages.sh on the running machine and leaves it as found.
#
# Every page count is relative to what is reserved already, so pages in use are never touched.
set -uo pipefail

readonly SCRIPT=${1:-$(dirname "$0")/../scripts/setup-hugepages.sh}
readonly KNOB=/proc/sys/vm/nr_hugepages
readonly RECORD=/run/malakocut-hugepages
readonly PERSISTENT=/etc/sysctl.d/60-malakocut-hugepages.conf
readonly NOBODY=65534
# The most pages a case adds.
readonly ROOM=110

passed=0 failed=0
work=$(mktemp -d) || exit 1
start=$(cat "$KNOB" 2>/dev/null) || start=
# Other users run the script too, and the checkout may be closed to them.
copy=$work/setup-hugepages.sh
cp "$SCRIPT" "$copy" && chmod 755 "$work" "$copy" || exit 1

pages() { cat "$KNOB"; }

# result NAME PROBLEM: a case passes when its problem is empty.
result() {
    if [[ -z $2 ]]; then
        echo "ok - $1"
        passed=$((passed + 1))
    else
        echo "not ok - $1:$2"
        failed=$((failed + 1))
    fi
}

# run COMMAND...: keeps its output lines in `out` and its exit status in `status`.
run() {
    out=$("$@" 2>&1)
    status=$?
}

# The wants_* functions add to `problem` what is not as it should be.
problem=
wants_status() { [[ $status == "$1" ]] || problem+=" exit status $status, not $1 ($out);"; }
wants_pages() { [[ $(pages) == "$1" ]] || problem+=" $(pages) pages, not $1;"; }
wants_text() { [[ $out == *"$1"* ]] || problem+=" '$1' not in '$out';"; }
wants_lines() { (($(wc -l <<<"$out") <= $1)) || problem+=" more than $1 lines: '$out';"; }
wants_file() { [[ $(cat "$1" 2>&1) == *"$2"* ]] || problem+=" '$2' not in $1;"; }
wants_no_file() { [[ ! -e $1 ]] || problem+=" $1 is there;"; }

# finish NAME: ends a case.
finish() {
    result "$1" "$problem"
    problem=
}

# Back to the state at the start, whatever the script left.
clear_state() {
    rm -f "$RECORD" "$PERSISTENT"
    if [[ $(pages) != "$start" ]]; then echo "$start" >"$KNOB"; fi
}

# Runs the script's main after the shell text $1, which replaces some of its functions.
run_with() {
    local replaced=$1
    shift
    # shellcheck disable=SC2016 # expanded by the inner shell
    run bash -c 'source "$1"; eval "$2"; shift 2; main "$@"' with "$copy" "$replaced" "$@"
}

restore() {
    if ((EUID == 0)) && [[ -n $start ]]; then
        clear_state
        if [[ -e $work/record ]]; then mv "$work/record" "$RECORD"; fi
        if [[ -e $work/persistent ]]; then mv "$work/persistent" "$PERSISTENT"; fi
    fi
    rm -rf "$work"
}

as_anyone() {
    local option
    run "$copy" --help
    wants_status 0
    wants_text 'Usage: '
    finish 'help'

    for option in --nonsense stray --pages '--pages 0' '--pages x' '--pages -4' '--check --undo' '--undo --persistent'; do
        # shellcheck disable=SC2086 # two words on purpose
        run "$copy" $option
        wants_status 2
        wants_lines 1
        wants_pages "$start"
        finish "refuses '$option'"
    done

    run "$copy" --check
    wants_status 0
    wants_text "$start pages reserved"
    wants_pages "$start"
    finish 'check'
}

# without_root NAME COMMAND...: the command runs the copy as somebody else.
without_root() {
    local name=$1 option
    shift
    for option in '' --undo --persistent; do
        run "$@" "$copy" ${option:+"$option"}
        wants_status 2
        wants_lines 1
        wants_text root
        wants_pages "$start"
        finish "$name is refused ${option:-without options}"
    done
    run "$@" "$copy" --check
    wants_status 0
    wants_text "$start pages reserved"
    finish "$name may check"
}

reserve_and_undo() {
    local want=$((start + 64))
    run "$copy" --pages "$want"
    wants_status 0
    wants_pages "$want"
    wants_text "$start -> $want "
    wants_lines 2
    wants_file "$RECORD" "$start"
    wants_no_file "$PERSISTENT"
    finish 'reserves'

    run "$copy" --pages "$want"
    wants_status 0
    wants_pages "$want"
    wants_text already
    finish 'reserves only once'

    run "$copy" --check
    wants_status 0
    wants_pages "$want"
    wants_text "$want pages reserved"
    wants_text "$start before the first run"
    finish 'check shows what is reserved'

    run "$copy" --pages $((want - 32))
    wants_status 0
    wants_pages "$want"
    finish 'never lowers its own'

    run "$copy" --pages $((want + 16))
    wants_status 0
    wants_pages $((want + 16))
    finish 'raises again'

    run "$copy" --undo
    wants_status 0
    wants_pages "$start"
    wants_text "$((want + 16)) -> $start "
    wants_no_file "$RECORD"
    finish 'undoes both runs'

    run "$copy" --undo
    wants_status 0
    wants_pages "$start"
    wants_text already
    finish 'undoes only once'
    clear_state
}

persistent() {
    local want=$((start + 64))
    run "$copy" --pages "$want" --persistent
    wants_status 0
    wants_pages "$want"
    wants_file "$PERSISTENT" "vm.nr_hugepages = $want"
    finish 'writes the boot setting'

    run "$copy" --pages "$want" --persistent
    wants_status 0
    wants_text "already $want pages at boot"
    wants_file "$PERSISTENT" "vm.nr_hugepages = $want"
    finish 'writes the boot setting only once'

    if command -v sysctl >/dev/null; then
        echo "$start" >"$KNOB"
        run sysctl -q -p "$PERSISTENT"
        wants_status 0
        wants_pages "$want"
        finish 'the boot setting works'
    else
        echo 'skipped: needs sysctl - the boot setting works'
    fi

    # As after a reboot: /run is empty.
    rm -f "$RECORD"
    run "$copy" --undo
    wants_status 0
    wants_pages "$start"
    wants_no_file "$PERSISTENT"
    finish 'undoes after a reboot'

    run "$copy" --undo
    wants_status 0
    wants_pages "$start"
    finish 'undoes after a reboot only once'
    clear_state

    run_with "others_at_boot() { echo $((want + 1000)); }" --pages "$want" --persistent
    wants_status 0
    wants_pages "$want"
    wants_file "$PERSISTENT" "vm.nr_hugepages = $((want + 1000))"
    finish 'asks for no less at boot than others do'
    clear_state
}

pages_of_others() {
    local theirs=$((start + 80))
    echo "$theirs" >"$KNOB"
    run "$copy" --pages $((start + 64))
    wants_status 0
    wants_pages "$theirs"
    wants_text already
    wants_no_file "$RECORD"
    finish 'leaves a larger number found'

    run "$copy" --undo
    wants_status 0
    wants_pages "$theirs"
    finish 'undo leaves a larger number found'

    run "$copy" --pages $((start + 96))
    run "$copy" --undo
    wants_status 0
    wants_pages "$theirs"
    finish 'undo puts back a number of others'
    clear_state

    run "$copy" --pages $((start + 64))
    echo "$theirs" >"$KNOB"
    run "$copy" --undo
    wants_status 0
    wants_pages "$theirs"
    wants_text 'somebody else'
    finish 'undo leaves what others added later'
    clear_state

    run "$copy" --pages $((start + 64))
    echo "$theirs" >"$KNOB"
    run "$copy" --pages $((start + 96))
    run "$copy" --undo
    wants_status 0
    wants_pages "$theirs"
    finish 'undo leaves what others added between two runs'
    clear_state
}

short_memory() {
    local limit=$((start + 64)) available
    # Everything but MemAvailable is as it is.
    local poor="meminfo() { if [[ \$1 == MemAvailable ]]; then echo \$AVAILABLE; else awk -v k=\"\$1:\" '\$1 == k { print \$2 }' /proc/meminfo; fi; }"
    available=$((limit * 4 * 2048))
    run_with "AVAILABLE=$available; $poor" --pages $((start + 100))
    wants_status 0
    wants_pages "$limit"
    wants_text 'memory is short'
    finish 'takes a quarter of the available memory at most'

    run_with "AVAILABLE=$((available - 64 * 2048)); $poor" --pages $((start + 100))
    wants_status 0
    wants_pages "$limit"
    wants_text already
    finish 'takes a quarter only once'
    clear_state

    run "$copy" --pages $((start + 64))
    run_with "AVAILABLE=0; $poor" --pages $((start + 100)) --persistent
    wants_status 0
    wants_pages "$limit"
    finish 'takes nothing of no memory'
    clear_state
}

# Prints how many pages the kernel has looked at to compact memory, nothing if it cannot.
compaction_work() { awk '$1 == "compact_migrate_scanned" { print $2 }' /proc/vmstat; }

# The kernel is made to find fewer pages than asked by a limit on what is written to its knob.
fragmented() {
    local asked=$((start + 100)) limited before tries=$work/tries
    limited="write_pages() { echo w >>$tries; echo \$((\$1 < LIMIT ? \$1 : LIMIT)) >$KNOB; }; compact() { echo c >>$tries; }"
    run_with "LIMIT=$((start + 80)); $limited" --pages "$asked"
    wants_status 0
    wants_pages $((start + 80))
    wants_text "$((start + 80)) of $asked pages"
    wants_lines 2
    [[ $(tr -d '\n' <"$tries") == wcw ]] || problem+=" tries were $(tr '\n' ' ' <"$tries");"
    finish 'makes do with fewer pages after one more try'

    run "$copy" --undo
    wants_status 0
    wants_pages "$start"
    finish 'undoes fewer pages'
    clear_state

    if ((start + 10 >= 64)); then
        echo 'skipped: enough pages are reserved already - fails with too few pages'
    else
        run_with "LIMIT=$((start + 10)); $limited" --pages "$asked"
        wants_status 1
        wants_pages $((start + 10))
        wants_text 'without hugepages'
        finish 'fails with too few pages'
        clear_state
    fi

    run_with "LIMIT=$start; $limited" --pages "$asked"
    wants_pages "$start"
    wants_no_file "$RECORD"
    finish 'records nothing when nothing came'
    clear_state

    before=$(compaction_work)
    if [[ -n $before ]]; then
        run_with compact --check
        wants_status 0
        (($(compaction_work) > before)) || problem+=' the kernel compacted nothing;'
        finish 'compacts memory'
    else
        echo 'skipped: needs a kernel with compaction - compacts memory'
    fi
}

unusual_machines() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    local read_only='mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys || exit 99; exec "$@"'
    run unshare -m bash -c "$read_only" in true
    if ((status == 0)); then
        run unshare -m bash -c "$read_only" in "$copy" --pages $((start + 64))
        wants_status 1
        wants_lines 1
        wants_text 'not writable'
        wants_pages "$start"
        wants_no_file "$RECORD"
        finish 'says when the knob is read-only'
    else
        echo 'skipped: needs mount namespaces - says when the knob is read-only'
    fi

    run_with 'meminfo() { echo 1048576; }' --pages $((start + 64))
    wants_status 1
    wants_lines 1
    wants_pages "$start"
    finish 'refuses another default page size'

    echo nonsense >"$RECORD"
    run "$copy" --undo
    wants_status 1
    wants_lines 1
    wants_pages "$start"
    finish 'refuses a damaged record'
    clear_state
}

main() {
    local available quarter group
    local groups=(reserve_and_undo persistent pages_of_others short_memory fragmented unusual_machines)
    if [[ -z $start ]]; then
        echo 'skipped: needs a kernel with hugepages'
    elif ((EUID != 0)); then
        as_anyone
        without_root 'this user'
        for group in "${groups[@]}"; do echo "skipped: needs root - $group"; done
    else
        if [[ -e $RECORD ]]; then mv "$RECORD" "$work/record"; fi
        if [[ -e $PERSISTENT ]]; then mv "$PERSISTENT" "$work/persistent"; fi
        as_anyone
        without_root 'another user' setpriv --reuid="$NOBODY" --regid="$NOBODY" --clear-groups
        available=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
        quarter=$((available / 4 / 2048))
        for group in "${groups[@]}"; do
            if [[ ! -w $KNOB ]]; then
                echo "skipped: needs a writable $KNOB - $group"
            elif ((quarter < start + ROOM)); then
                echo "skipped: needs $(((start + ROOM) * 8)) MiB of available memory - $group"
            else
                "$group"
            fi
        done
        wants_pages "$start"
        wants_no_file "$RECORD"
        wants_no_file "$PERSISTENT"
        finish 'the machine is as found'
    fi
    echo "$passed passed, $failed failed"
    ((failed == 0))
}

trap restore EXIT
trap 'exit 130' INT TERM HUP
main
