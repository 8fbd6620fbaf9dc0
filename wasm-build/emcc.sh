#!/bin/sh
# Runs emscripten's compiler: $EMCC if set, else emcc, which is installed from the distribution if it is missing.
set -eu
if [ -n "${EMCC:-}" ]; then
	exec "$EMCC" "$@"
fi
if ! command -v emcc >/dev/null 2>&1; then
	echo "emcc is missing: installing the distribution's emscripten package (set EMCC to use another one)" >&2
	if [ "$(id -u)" = 0 ]; then root=; else root=sudo; fi
	if ! command -v apt-get >/dev/null 2>&1; then
		echo "there is no apt-get here: install emscripten by hand, or set EMCC" >&2
		exit 1
	fi
	$root apt-get update >&2
	$root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends emscripten >&2
fi
exec emcc "$@"
