#!/bin/sh
# Runs races.c under ThreadSanitizer: the core as it is must pass, and every variant with a known fault must be rejected,
# in the way that its row says. clang's ThreadSanitizer, since gcc's refuses fences.
# A row's name as argument runs only the rows whose name contains it.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
only=${1:-}
layouts=10000

build() { # program, folder of the core's sources
	# shellcheck disable=SC2046
	"$root/wasm-build/tool.sh" clang clang -std=c11 -D_GNU_SOURCE -g -O2 -Wall -Wextra -Werror -fsanitize=thread \
		-include sched.h -o "$1" "$here/races.c" $(find "$2" -name '*.c' ! -name kvm.c) -lpthread
}

# ThreadSanitizer wants addresses where it expects them: without setarch, kernels that scatter them widely make it fail.
launch=
if setarch "$(uname -m)" -R true 2>/dev/null; then launch="setarch $(uname -m) -R"; fi
build "$work/races" "$root/csrc"
if ! $launch "$work/races" 0 >"$work/out" 2>&1; then
	echo "races: skipped, programs built with ThreadSanitizer don't start here: $(head -n 1 "$work/out")"
	exit 0
fi

# Some races need a reader to be held up at one place, which chance hits too rarely: between learning which copy is the
# active one and looking whether it is being changed, or between finding a range and reading it.
slowly='s/sequence = __atomic/sequence = (sched_yield(), 0) + __atomic/; s/if (id >=/if (sched_yield(), id >=/'

# name | outcome: passes, race (ThreadSanitizer says so) or wrong (races.c does) | file | what sed makes of it
rows="
the core as it is                         | passes |        |
the core, with look-ups held up           | passes | map.c  | $slowly
a look-up that does not look back         | wrong  | map.c  | s/if (.*table->sequence.*) == sequence)/if (table)/
a look-up in a copy that is being changed | wrong  | map.c  | s/if (sequence & 1)/if (0)/; $slowly
a copy changed without being marked       | wrong  | map.c  | s/__atomic_store_n(&table->sequence, .*)/(void)sequence/
a range read with plain loads             | race   | map.c  | s/__atomic_load_n(&from\[i\], .*)/from[i]/
a map written with plain stores           | race   | map.c  | s/->shared = 1/->shared = 0/
a gate that lets in while it is shut      | race   | gate.c | s/seen & keep_out/keep_out == 0/
a gate entered without acquiring          | race   | gate.c | 1,/^}/s/__ATOMIC_SEQ_CST/__ATOMIC_RELAXED/g
a gate left without releasing             | race   | gate.c | s/1, __ATOMIC_SEQ_CST/1, __ATOMIC_RELAXED/
"

# Checks one row and prints its line; leaves $work/failed behind if the outcome isn't the wanted one.
check() { # name wanted file change
	program=$work/races
	if [ -n "$3" ]; then
		sources=$work/csrc
		rm -rf "$sources"
		cp -r "$root/csrc" "$sources"
		sed -i "$4" "$sources/$3"
		if cmp -s "$sources/$3" "$root/csrc/$3"; then
			echo "$1: WRONG: there is nothing in $3 to break like that any more"
			touch "$work/failed"
			return
		fi
		program=$work/faulty
		build "$program" "$sources"
	fi
	status=0
	TSAN_OPTIONS='halt_on_error=1 exitcode=66' timeout 120 $launch "$program" $layouts >"$work/out" 2>&1 || status=$?
	if [ $status = 0 ]; then
		outcome=passes
	elif grep -q 'WARNING: ThreadSanitizer: data race' "$work/out"; then
		outcome=race
	elif grep -q 'not so:' "$work/out"; then
		outcome=wrong
	else
		outcome="failed ($status)"
	fi
	echo "$1: $outcome"
	if [ "$outcome" = passes ]; then sed 's/^/    /' "$work/out"; fi
	if [ "$outcome" != "$2" ]; then
		echo "    WRONG: should be $2"
		sed 's/^/    /' "$work/out"
		touch "$work/failed"
	fi
}

printf '%s\n' "$rows" >"$work/rows"
while IFS='|' read -r name wanted file change; do
	# Unquoted on purpose: that trims the columns.
	# shellcheck disable=SC2086,SC2116
	name=$(echo $name) wanted=$(echo $wanted) file=$(echo $file)
	case $name in '') continue ;; *"$only"*) ;; *) continue ;; esac
	check "$name" "$wanted" "$file" "$change"
done <"$work/rows"

if [ -e "$work/failed" ]; then
	echo 'FAILED: see the lines marked WRONG.'
	exit 1
fi
echo 'The core passes; every variant with a known fault is rejected.'
