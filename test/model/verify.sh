#!/bin/sh
# Checks inhibitor.pml: every model of the protocol as it is must hold, and every variant with a known fault must be
# rejected, in the way that its row says. Installs spin from the distribution if it is missing.
# A row's name as argument runs only the rows whose name contains it. MEMSLOTS_VERIFY_MEMORY: megabytes to use at most.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
memory=${MEMSLOTS_VERIFY_MEMORY:-6000}
only=${1:-}
compiler=${CC:-cc}

if ! command -v spin >/dev/null 2>&1; then
	echo "spin is missing: installing the distribution's spin package" >&2
	if [ "$(id -u)" = 0 ]; then root=; else root=sudo; fi
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "there is no apt-get here: install spin (spinroot.com) by hand" >&2
		exit 1
	fi
	$root apt-get update >&2
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends spin >&2
fi

# name | outcome: holds, or how the checker must reject it | vCPUs | other callers | definitions
#
# What "holds" means: in every state that can be reached, no ioctl runs inside a window (assertions in Vcpu, Caller and
# Owner) and nobody sleeps who should have been woken or runs on who should have been kicked (no deadlock, with guests
# that never exit by themselves and an owner that may stop at any time). With OWNER_GETS_IN: an owner that wants a
# window gets it; with VCPU_GETS_ON: a vCPU that was kept out gets in, and its guest gets on; both if every thread gets to
# run now and then (weak fairness), checked on a smaller instance, since the states there are multiplied by the number of
# threads.
rows='
gates and windows                              | holds    | 3 | 2 |
... with pausing                               | holds    | 3 | 1 | PAUSE
... with teardown                              | holds    | 3 | 1 | CLOSE
... with pausing and teardown                  | holds    | 2 | 1 | PAUSE CLOSE
... with deadlines and cancelling              | holds    | 3 | 1 | ABANDON
... with a crashing thread                     | holds    | 3 | 1 | CRASH
... with the age rule                          | holds    | 2 | 1 | FAIRNESS
... with pausing, teardown, deadlines, crashes | holds    | 2 | 1 | PAUSE CLOSE ABANDON CRASH
... with these and the age rule                | holds    | 1 | 1 | PAUSE CLOSE ABANDON CRASH FAIRNESS
... immediate_exit cleared before the gate     | holds    | 3 | 1 | CLEAR_BEFORE_GATE
... the owner gets in                          | holds    | 2 | 1 | FAIRNESS OWNER_GETS_IN
... a vCPU gets on between windows             | holds    | 2 | 1 | FAIRNESS VCPU_GETS_ON
immediate_exit cleared after the re-read       | deadlock | 1 | 1 | FAULT_CLEAR_AFTER_REREAD
no fence between clearing and re-reading       | deadlock | 1 | 1 | FAULT_NO_FENCE
shut not re-read                               | deadlock | 1 | 1 | FAULT_SHUT_NOT_REREAD
closed (stop) not re-read                      | deadlock | 1 | 1 | FAULT_CLOSED_NOT_REREAD CLOSE
paused not re-read                             | deadlock | 1 | 1 | FAULT_PAUSED_NOT_REREAD PAUSE
kicked before the gates are shut               | deadlock | 1 | 1 | FAULT_KICK_BEFORE_SHUT
the owner not notified                         | deadlock | 1 | 1 | FAULT_OWNER_NOT_NOTIFIED
the owner notified without a new value         | deadlock | 1 | 1 | FAULT_NO_EVENT
sleepers not notified                          | deadlock | 1 | 1 | FAULT_SLEEPERS_NOT_NOTIFIED
epoch loaded after the gate                    | deadlock | 1 | 1 | FAULT_EPOCH_AFTER_GATE
notify of one, all on the same word            | deadlock | 1 | 1 | FAULT_ONE_WORD
a crash that the owner is not told of          | deadlock | 2 | 1 | FAULT_CRASH_NOT_TOLD CRASH
a vCPU that is inside waited for as if outside | deadlock | 1 | 1 | FAULT_INSIDE_NOT_SEEN FAIRNESS
newcomers admitted while shut                  | cycle    | 1 | 2 | FAULT_ADMITTED_WHILE_SHUT FAIRNESS OWNER_GETS_IN
no slice for who was let in                    | cycle    | 2 | 1 | FAULT_NO_SLICE FAIRNESS VCPU_GETS_ON
no age rule                                    | cycle    | 2 | 1 | FAULT_NO_AGE_RULE FAIRNESS VCPU_GETS_ON
'

# Checks one row and prints its line; leaves $work/failed behind if the outcome isn't the wanted one.
check() { # name wanted vcpus callers definitions
	name=$1 wanted=$2 vcpus=$3 callers=$4
	pan=$(mktemp -d "$work/pan.XXXXXX")
	definitions="-DVCPUS=$vcpus -DCALLERS=$callers"
	for definition in $5; do definitions="$definitions -D$definition"; done
	# How deep the search may go, which takes memory from the start.
	depth=1000000
	if [ $((vcpus + callers)) -gt 3 ]; then depth=8000000; fi
	case $5 in
	*GETS*) build='' run='-a -f' depth=4000000 ;;
	*) build=-DSAFETY run='' ;;
	esac
	begun=$(date +%s)
	# shellcheck disable=SC2086
	(cd "$pan" && spin -a $definitions "$here/inhibitor.pml" >spin.out 2>&1 &&
		$compiler -O2 -w -DCOLLAPSE -DNFAIR=4 $build "-DMEMLIM=$memory" -o pan pan.c) || cat "$pan/spin.out" >&2
	# shellcheck disable=SC2086
	(cd "$pan" && ./pan $run "-m$depth" -w22 >pan.out 2>&1) || true
	awk -v name="$name" -v wanted="$wanted" -v vcpus="$vcpus" -v callers="$callers" \
		-v seconds=$(($(date +%s) - begun)) -v failed="$work/failed" '
		/^pan:.*invalid end state/ { outcome = "deadlock" }
		/^pan:.*assertion violated/ { outcome = "assertion" }
		/^pan:.*acceptance cycle/ { outcome = "cycle" }
		/out of memory|max search depth too small/ { if (outcome == "") outcome = "unfinished" }
		/errors: 0$/ { if (outcome == "") outcome = "holds" }
		/states, stored/ { states = $1 }
		/total actual memory/ { megabytes = $1 }
		END {
			if (outcome == "") outcome = "failed"
			if (outcome != wanted) {
				print name > failed
				verdict = "  WRONG: should be " wanted
			}
			printf "%-47s %-10s %5d %7d %12d %7d %7d%s\n", name, outcome, vcpus, callers, states, megabytes, \
				seconds, verdict
		}
	' "$pan/pan.out"
	rm -rf "$pan"
}

printf '%-47s %-10s %5s %7s %12s %7s %7s\n' model outcome vCPUs callers states MB seconds
printf '%s\n' "$rows" >"$work/rows"
running=
while IFS='|' read -r name wanted vcpus callers definitions; do
	# Unquoted on purpose: that trims the columns.
	# shellcheck disable=SC2086,SC2116
	name=$(echo $name) wanted=$(echo $wanted) vcpus=$(echo $vcpus) callers=$(echo $callers)
	case $name in '') continue ;; *"$only"*) ;; *) continue ;; esac
	check "$name" "$wanted" "$vcpus" "$callers" "$definitions" &
	# The first row takes as long as all others: it runs beside them, which run one after the other.
	if [ -n "$running" ]; then wait $!; else running=$!; fi
done <"$work/rows"
wait

if [ -e "$work/failed" ]; then
	echo 'FAILED: see the lines marked WRONG.'
	exit 1
fi
echo 'Every model of the protocol holds; every variant with a known fault is rejected.'
