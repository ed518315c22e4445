# shellcheck shell=bash disable=SC2034 # what is not used here is used where this is sourced
# What the scripts share: messages, times, the cache, and a list of things to undo whatever happens.
# Source it after `set -euo pipefail`.

# Files that are expensive to make and can be made again at any time.
cache_dir=${XDG_CACHE_HOME:-$HOME/.cache}/clonefs
repo_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [[ $(id -u) == 0 ]]; }

# Most tools of mine are in sbin, which is not in an ordinary user's PATH.
PATH=$PATH:/usr/sbin:/sbin:$cache_dir/tools/bin

# ---- time ---------------------------------------------------------------------------------------------------------

# Microseconds now. EPOCHREALTIME has six decimals, behind a comma in some locales.
now_us() { printf '%s' "${EPOCHREALTIME//[.,]/}"; }

# Microseconds as people read them: 12.3 ms, 4.56 s, 3 min 20 s.
show_us() {
    local us=$1
    if ((us < 100000)); then
        printf '%d.%01d ms' $((us / 1000)) $((us % 1000 / 100))
    elif ((us < 100000000)); then
        printf '%d.%02d s' $((us / 1000000)) $((us % 1000000 / 10000))
    else
        printf '%d min %d s' $((us / 60000000)) $((us / 1000000 % 60))
    fi
}

# Bytes as people read them: 290.4 MiB.
show_bytes() {
    local tenths=$(($1 * 10 / 1048576))
    printf '%d.%d MiB' $((tenths / 10)) $((tenths % 10))
}

# ---- the cache ----------------------------------------------------------------------------------------------------

# cache_entry NAME FILE...: directory for what NAME makes; a new one whenever one of FILEs (the recipe) changes.
cache_entry() {
    local name=$1 key
    shift
    key=$(cat -- "$@" | sha256sum | cut -c1-12)
    printf '%s' "$cache_dir/$name-$key"
}

# build_once DIR COMMAND...: runs `COMMAND... TMP` to fill DIR, unless DIR is there. DIR appears whole or not at all,
# and two that want it at once make it once.
build_once() {
    local dir=$1 tmp
    shift
    [[ ! -d $dir ]] || return 0
    mkdir -p "$(dirname "$dir")"
    (
        flock 9
        [[ ! -d $dir ]] || exit 0
        tmp=$(mktemp -d "$dir.tmp.XXXX")
        undo_begin
        undo rm -rf --one-file-system "$tmp"
        "$@" "$tmp"
        mv -T "$tmp" "$dir"
    ) 9>"$dir.lock"
}

# ---- undo ---------------------------------------------------------------------------------------------------------

undo_list=()

# undo_begin: from here on this shell (or subshell) undoes what `undo` recorded when it ends, last first.
undo_begin() {
    undo_list=()
    trap undo_all EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

# undo COMMAND...: records what takes back the step that comes next (or just came). Must be harmless when there is
# nothing to take back any more.
undo() { undo_list+=("$(printf '%q ' "$@")"); }

undo_all() {
    local status=$? i
    trap '' INT TERM HUP
    set +e
    for ((i = ${#undo_list[@]} - 1; i >= 0; i--)); do
        eval "${undo_list[i]}" >/dev/null 2>&1
    done
    undo_list=()
    exit "$status"
}

# unmount DIR: whatever is mounted there, also when it no longer answers.
unmount() {
    local dir=$1
    while mountpoint -q "$dir" || grep -qF " $dir " /proc/self/mounts; do
        timeout 60 umount "$dir" || umount -l "$dir" || return 1
    done
}

# stop_process PID: ends a process that this script started.
stop_process() {
    local pid=$1 tries=50
    kill "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null && ((tries-- > 0)); do sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
}
