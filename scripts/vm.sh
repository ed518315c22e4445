# shellcheck shell=bash
# Virtual machines for scripts and tests: start one in the background, read its serial port, end it. Source after lib.sh.

# The accelerator. That /dev/kvm exists says nothing: without these flags of the CPU no real guest runs on it.
vm_accel() {
    if grep -qwE 'vmx|svm' /proc/cpuinfo && [[ -w /dev/kvm ]]; then echo kvm; else echo tcg; fi
}

# vm_start LOG QEMU-ARGUMENT...: a machine without network or screen; its serial port is written to LOG. Leaves the
# process id in vm_pid. Ends with the script at the latest.
vm_start() {
    local log=$1 accel cpu=host
    shift
    accel=$(vm_accel)
    [[ $accel == kvm ]] || cpu=max
    : >"$log"
    qemu-system-x86_64 -machine q35,accel="$accel" -cpu $cpu -m "${VM_MEMORY:-384}" -nodefaults -no-user-config \
        -display none -no-reboot -serial "file:$log" "$@" </dev/null >"$log.qemu" 2>&1 &
    vm_pid=$!
    undo stop_process $vm_pid
}

# vm_disk FILE [raw|qcow2]: the -drive argument for a disk as careful people set it: no host cache, discard passed on.
vm_disk() { printf 'file=%s,format=%s,if=virtio,cache=none,aio=native,discard=unmap' "${1//,/,,}" "${2:-raw}"; }

# vm_boot LOG JOB DISK [FORMAT]: boots the Debian guest of mk-debian for a JOB (see guest/report).
vm_boot() { vm_start "$1" -smbios "type=1,serial=$2" -drive "$(vm_disk "$3" "${4:-raw}")"; }

# vm_expect LOG PATTERN SECONDS: waits until the guest has said a line that begins with "@@ PATTERN" (a regular
# expression) and prints the last such line. Fails when the machine ends without it or the time is over.
vm_expect() {
    local log=$1 pattern=$2 deadline=$((SECONDS + $3)) running line
    while true; do
        running=yes
        kill -0 "$vm_pid" 2>/dev/null || running=no
        if line=$(tr -d '\r' <"$log" | grep -aE "^@@ $pattern"); then
            printf '%s\n' "$line" | tail -n 1
            return 0
        fi
        if [[ $running == no ]] || ((SECONDS >= deadline)); then
            say "the guest did not say \"@@ $pattern\" (running: $running); the end of its serial port:"
            { tail -n 5 "$log"; cat "$log.qemu"; } >&2
            return 1
        fi
        sleep 0.2
    done
}

# vm_wait SECONDS: waits until the machine has powered off; fails if it was ended otherwise or the time is over.
vm_wait() {
    local deadline=$((SECONDS + $1))
    while kill -0 "$vm_pid" 2>/dev/null; do
        if ((SECONDS >= deadline)); then
            say "the guest did not power off in $1 s"
            return 1
        fi
        sleep 0.2
    done
    wait "$vm_pid"
}
