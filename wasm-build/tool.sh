#!/bin/sh
# Runs a tool; if it is missing, installs the distribution's package that has it first, and says so:
#   tool.sh PACKAGE TOOL [ARGUMENT ...]
set -eu
package=$1
tool=$2
shift 2
if ! command -v "$tool" >/dev/null 2>&1; then
	echo "$tool is missing: installing the distribution's package $package" >&2
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "there is no apt-get here: install $tool by hand" >&2
		exit 1
	fi
	if [ "$(id -u)" = 0 ]; then root=; else root=sudo; fi
	$root apt-get update >&2
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" >&2
fi
exec "$tool" "$@"
