# shellcheck shell=bash disable=SC2154 # clonefs, pool and work are the demonstration's
# Parts of scripts/demo: how a step is shown, timed and verified, and what is looked at.

rows=()
left=()
step_number=0
took=0

step() { printf '\n%2d. %s\n' $((step_number += 1)) "$*"; }
note() { printf '      %s\n' "$*"; }

# left_out WHAT: something that this machine cannot do; said now and at the end.
left_out() {
    left+=("$*")
    printf '  !!  LEFT OUT: %s\n' "$*"
}

# timed LABEL COMMAND...: runs it and leaves the microseconds in $took and a row for the table.
timed() {
    local label=$1 start
    shift
    start=$(now_us)
    "$@" >/dev/null || die "failed: $label: $*"
    took=$(($(now_us) - start))
    rows+=("$label"$'\t'"$(show_us $took)"$'\t')
    printf '      %-40s %s\n' "$label" "$(show_us $took)"
}

# beside_cp: adds to the last row how it compares with copying.
beside_cp() { rows[-1]+="$((cp_us / (took > 0 ? took : 1))) times faster than cp"; }

# verify WHAT COMMAND...: the command must succeed. What it says is shown only if it does not.
verify() {
    local what=$1 said
    shift
    if said=$("$@" 2>&1); then
        printf '  ok  %s\n' "$what"
    else
        printf '%s\n' "$said" >&2
        die "NOT TRUE: $what"
    fi
}

print_table() {
    local row label time beside
    printf '\n%-42s %12s\n' "what" "time"
    for row in "${rows[@]}"; do
        IFS=$'\t' read -r label time beside <<<"$row"
        printf '%-42s %12s   %s\n' "$label" "$time" "$beside"
    done
    printf '\n'
    for label in "${left[@]}"; do printf 'LEFT OUT: %s\n' "$label"; done
    printf 'every step that was done is verified\n'
}

# ---- files --------------------------------------------------------------------------------------------------------

bytes_used() { echo $(($(stat -c %b "$1") * 512)); }
fs_type() { stat -f -c %T "$1"; }
sha256() { sha256sum <"$1" | cut -d' ' -f1; }

# has_sum SUM FILE...
has_sum() {
    local sum=$1 file
    shift
    for file; do
        [[ $(sha256 "$file") == "$sum" ]] || { echo "$file differs"; return 1; }
    done
}

# Less than a hundredth of the image in all of them together.
nearly_empty() {
    local file total=0
    for file; do total=$((total + $(bytes_used "$file"))); done
    ((total * 100 < $(bytes_used "$pool/base.img"))) || { echo "they take $total bytes"; return 1; }
}

# A disk image for machines that cannot make a real one: as large, as much in it, in 72 pieces.
generate_image() {
    local i
    truncate -s 1536M "$1"
    for ((i = 0; i < 72; i++)); do
        head -c 4M /dev/urandom | dd of="$1" bs=1M seek=$((i * 20)) conv=notrunc iflag=fullblock status=none
    done
}

# ---- the mount ----------------------------------------------------------------------------------------------------

is_clonefs() { grep -qF " $1 fuse.clonefs " /proc/self/mounts; }
is_not_clonefs() { ! is_clonefs "$1"; }

# Whatever happened, nothing of ours stays mounted.
leave_mount() {
    while is_clonefs "$1"; do
        timeout 60 "$clonefs" unmount "$1" || umount -l "$1" || fusermount3 -uz "$1" || return 1
    done
}

all_independent() {
    local file states
    for file; do
        states=$("$clonefs" list --json "$file" | grep -oE '"state": *"[a-z]+"')
        [[ $states =~ \"independent\"$ ]] || { echo "$file: $states"; return 1; }
    done
}

# only_plain_files DIR N: N regular files with one link and no mark of clonefs, and no layer or volume record.
only_plain_files() {
    local dir=$1 found
    found=$(find "$dir" -mindepth 1 -maxdepth 1 ! -name .clonefs ! -name lost+found -type f -links 1 | wc -l)
    ((found == $2)) || { echo "$found ordinary files instead of $2"; return 1; }
    found=$(find "$dir" -mindepth 1 -path "$dir/.clonefs" -prune -o ! -type d ! -type f -print)
    [[ -z $found ]] || { echo "not ordinary: $found"; return 1; }
    if [[ -d $dir/.clonefs ]]; then
        found=$(find "$dir/.clonefs" -mindepth 2)
        [[ -z $found ]] || { echo "left in .clonefs: $found"; return 1; }
    fi
    if have getfattr; then
        found=$(getfattr -R -d -m 'clonefs' --absolute-names "$dir" 2>/dev/null)
        [[ -z $found ]] || { echo "marked: $found"; return 1; }
    fi
}

# ---- records ------------------------------------------------------------------------------------------------------

# Without a guest, the records lie in the disk image itself: from here on, in blocks of 4 KiB.
records_at=262144

# Record number $1, as guest/report writes it: 4 KiB.
record() {
    local line
    printf -v line '%063d' "$1"
    # shellcheck disable=SC2059 # 64 times the same line
    printf "$line\n%.0s" {1..64}
}

# write_records FILE LOG: what the guest does, done by this machine, until it is stopped.
write_records() {
    local i
    for ((i = 1; ; i++)); do
        record $i | dd of="$1" bs=4096 seek=$((records_at + i - 1)) conv=notrunc,fsync status=none || return 1
        echo "@@ ACK $i" >>"$2"
    done
}

last_ack() { tr -d '\r' <"$1" | sed -n 's/^@@ ACK \([0-9]*\)$/\1/p' | tail -n 1; }

# more_acks LOG N: sooner or later records after number N are acknowledged.
more_acks() {
    local tries=600
    until (($(last_ack "$1") > $2 + 4)); do
        if ((tries-- == 0)) || ! kill -0 "$vm_pid"; then
            echo "no record after $2"
            return 1
        fi
        sleep 0.1
    done
}

# count_records FILE: how many whole records in order it begins with.
count_records() {
    local size difference
    size=$(stat -c %s "$1")
    difference=$(awk -v n=$((size / 4096)) 'BEGIN { for (i = 1; i <= n; i++) for (j = 0; j < 64; j++) printf "%063d\n", i }' |
        LC_ALL=C cmp -n $((size / 4096 * 4096)) - "$1" | sed -n 's/.*differ: .* \([0-9]*\), line.*/\1/p')
    echo $(((${difference:-$((size / 4096 * 4096 + 1))} - 1) / 4096))
}

records_between() {
    local count
    count=$(count_records "$1")
    ((count >= $2 && count <= $3)) || { echo "$count records, not $2 to $3"; return 1; }
}

# ---- a guest's filesystem -----------------------------------------------------------------------------------------

# mends FILE: e2fsck in its careful mode does what is done at any boot after a power cut, replays the journal and drops
# what was being deleted, and finds nothing that it would have to ask about (exit code 4).
mends() {
    local status=0
    e2fsck -fp "$1" || status=$?
    ((status <= 1))
}

# usr_is_right FILE: the files of /usr have the checksums that were taken when the image was made.
usr_is_right() {
    local tree=$1.usr status=0
    mkdir "$tree"
    debugfs -R "rdump /usr $tree" "$1" 2>&1
    debugfs -R "dump /var/lib/usr.md5 $tree/sums" "$1" 2>&1
    (cd "$tree" && [[ -s sums ]] && md5sum --quiet -c sums) || status=1
    rm -rf "$tree"
    return $status
}
