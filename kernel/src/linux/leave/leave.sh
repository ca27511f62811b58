#!/bin/sh
# Ends what MeshStor has in use on this machine while it shuts down, as long as the network is there: without this, file
# systems are unmounted and arrays stopped after it, writes to copies on other nodes wait for ever, and so does the reboot.
# Written by the node agent, run by meshstor-leave.service when it stops: after kubelet, the container runtime and all pods.
# Only sh, util-linux, coreutils and sysfs. SYS, PROC and CGROUP are other trees in tests.
set -u
SYS=${SYS:-/sys} PROC=${PROC:-/proc} CGROUP=${CGROUP:-/sys/fs/cgroup}
# Seconds that pods get to end after SIGTERM, and that file systems and arrays get before paths are given up, and after.
TERM_PATIENCE=${TERM_PATIENCE:-10} PATIENCE=${PATIENCE:-15}

say() { echo "meshstor-leave: $*"; }

uptime() { read -r seconds _ </proc/uptime && echo "${seconds%.*}"; }

# Waits for at most $1 seconds until "$@" succeeds.
within() {
    until=$(($(uptime) + $1))
    shift
    until "$@"; do
        [ "$(uptime)" -lt "$until" ] || return 1
        sleep 0.2
    done
}

# Names of our arrays: md1000 to md1999.
arrays() {
    for dir in "$SYS"/block/md1[0-9][0-9][0-9]; do
        [ -e "$dir/md/array_state" ] || continue
        case $(cat "$dir/md/array_state") in clear | inactive) ;; *) echo "${dir##*/}" ;; esac
    done
}
no_arrays() { [ -z "$(arrays)" ]; }

# Mount points of our arrays in this mount namespace, the deepest first.
mounts() {
    for array in $(arrays); do
        number=$(cat "$SYS/block/$array/dev")
        while read -r _ _ device _ point _; do
            [ "$device" = "$number" ] && printf '%b\n' "$point"
        done <"$PROC/self/mountinfo"
    done | sort -r
}

# Processes of pods. With cgroupfs as cgroup driver nobody else asks them to end; a cgroup root of kubelet's own may be above.
groups() { find "$CGROUP" -maxdepth 4 -type d -name 'kubepods*' -prune; }
pods() { cat /dev/null $(groups | while read -r dir; do find "$dir" -name cgroup.procs; done) 2>/dev/null; }
no_pods() { [ -z "$(pods)" ]; }

end_pods() {
    no_pods && return
    say "ending $(pods | wc -l) processes of pods"
    kill -TERM $(pods) 2>/dev/null
    within "$TERM_PATIENCE" no_pods && return
    groups | while read -r dir; do echo 1 >"$dir/cgroup.kill"; done
    within 5 no_pods || say "$(pods | wc -l) processes of pods cannot be ended"
}

# Everything once, each in the background: a call that waits for a path cannot be ended.
release() {
    mounts | while IFS= read -r point; do umount -- "$point" & done 2>/dev/null
    # kubelet holds a loop device on each raw block volume.
    for dir in "$SYS"/block/loop*/loop; do
        case $(cat "$dir/backing_file" 2>/dev/null) in
        */kubernetes.io/csi/volumeDevices/*) name=${dir%/loop} && losetup -d "/dev/${name##*/}" & ;;
        esac
    done 2>/dev/null
    for array in $(arrays); do
        [ -n "$(mounts_of "$array")" ] || { echo clear >"$SYS/block/$array/md/array_state"; } 2>/dev/null &
    done
    sleep 0.5
    no_arrays
}
mounts_of() { grep -F " $(cat "$SYS/block/$1/dev") " "$PROC/self/mountinfo"; }

# Takes all paths to other nodes down. What no array uses any more goes because others read every block device they find while
# they shut down (LVM does), and would wait for ever for one whose network is gone.
#
# Of an array that is still there, the writes that wait for a path are answered now, by what is left of the array. Nobody is
# told that they are done: whoever wrote them was ended before. So this is a crash of this node, which every volume survives
# (docs/protocol.md, rule 7).
disconnect() {
    for dir in "$SYS"/class/nvme/nvme*; do
        case $(cat "$dir/subsysnqn" 2>/dev/null) in
        nqn.2025-12.io.meshstor:*) [ -e "$dir/delete_controller" ] && echo 1 >"$dir/delete_controller" & ;;
        esac
    done 2>/dev/null
}
paths() { cat "$SYS"/class/nvme/nvme*/subsysnqn 2>/dev/null | grep -c '^nqn.2025-12.io.meshstor:'; }
no_paths() { [ "$(paths)" = 0 ]; }

# Kills what could still be told that a write is done: whatever has a file of ours open or mapped, and whatever has one of our
# file systems in a mount namespace of its own, as containers do. Nobody should by now.
end_openers() {
    mounts | while IFS= read -r point; do
        ls -l "$PROC"/[0-9]*/fd 2>/dev/null | awk -v point="$point" '
            /^\/.*:$/ { split($0, part, "/"); pid = part[length(part) - 1] }
            index($0, " -> " point "/") || $0 ~ " -> " point "$" { print pid }' | sort -u
        grep -lF " $point/" "$PROC"/[0-9]*/maps 2>/dev/null | awk -F/ '{ print $(NF - 1) }'
    done | kill_all
    own=$(readlink "$PROC/self/ns/mnt")
    for array in $(arrays); do
        grep -lF " $(cat "$SYS/block/$array/dev") " "$PROC"/[0-9]*/mountinfo 2>/dev/null
    done | while IFS= read -r file; do
        [ "$(readlink "${file%/mountinfo}/ns/mnt")" = "$own" ] || echo "$file" | awk -F/ '{ print $(NF - 1) }'
    done | kill_all
}
kill_all() { sort -u | while read -r pid; do kill -KILL "$pid" 2>/dev/null; done; }

main() {
    # Stopped by hand: nothing of this machine's is to end.
    [ "$(systemctl is-system-running 2>/dev/null)" = stopping ] || { say "the machine is not shutting down"; return; }
    end_pods
    if no_arrays; then
        say "no volume is in use"
    else
        say "ending $(arrays | tr '\n' ' ')"
        within "$PATIENCE" release || end_anyway
    fi
    disconnect
    within "$PATIENCE" no_paths || say "$(paths) paths to other nodes are still there"
    if no_arrays; then say "done"; fi
}

end_anyway() {
    end_openers
    say "still there after $PATIENCE s: $(arrays | tr '\n' ' '); paths to other nodes are given up"
    disconnect
    within "$PATIENCE" release || say "still there: $(arrays | tr '\n' ' ')"
}

[ "${1:-}" = test ] || main
