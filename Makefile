# kvm-memslots. `make help` lists the targets; `make demo` and `make test` do all their own set-up.

CC ?= cc
EMCC ?= wasm-build/tool.sh emscripten emcc
CFLAGS = -std=c11 -O3 -Wall -Wextra -Werror
CORE = $(filter-out csrc/kvm.c,$(wildcard csrc/*.c))
HEADERS = csrc/slots.h csrc/kvm.h
# Arena sizes from 2 MiB to 1 GiB link with these modules; __stack_pointer lets each thread have its own stack.
EMFLAGS = $(CFLAGS) --no-entry -sSTANDALONE_WASM -sWASM_BIGINT -sTOTAL_STACK=65536 -sINITIAL_MEMORY=2097152 \
	-sALLOW_MEMORY_GROWTH -sMAXIMUM_MEMORY=1073741824 -mbulk-memory -mmutable-globals -msimd128
EMLINK = -Wl,--import-memory,--export=__stack_pointer,--export=__heap_base

# The native library has its platform in its name, by which ts/core/native.ts looks for it. It is for Linux only.
PLATFORM := $(shell node -p 'process.platform + "-" + process.arch')$(if $(shell ldd --version 2>&1 | grep -i musl),-musl)
NATIVE := $(patsubst %,wasm-build/slots-%.so,$(filter linux-%,$(PLATFORM)))
# Those that packages carry, whatever they are built on.
PREBUILT = wasm-build/slots-linux-x64.so wasm-build/slots-linux-arm64.so
CROSS_linux-x64 = x86_64-linux-gnu-gcc
CROSS_linux-arm64 = aarch64-linux-gnu-gcc
DEBIAN_linux-x64 = gcc-x86-64-linux-gnu and libc6-dev-amd64-cross
DEBIAN_linux-arm64 = gcc-aarch64-linux-gnu and libc6-dev-arm64-cross
# The compiler for the library whose platform is $*.
LIBRARY_CC = $(if $(filter $@,$(NATIVE)),$(CC),$(CROSS_$*))

.PHONY: help build arm64 pack-files test demo verify lint clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed 's/:.*## /\t/' | sort | awk -F'\t' '{printf "make %-10s %s\n", $$1, $$2}'

build: node_modules/.installed $(NATIVE) wasm-build/slots.wasm wasm-build/slots-shared.wasm dist/.built dist/page/viewer.html ## both C builds, the TypeScript, the page

# The stamp is a copy of the lock file: a checkout that only touches it installs nothing.
node_modules/.installed: package.json package-lock.json
	@cmp -s package-lock.json $@ || (set -x; npm ci --no-audit --no-fund)
	@cp package-lock.json $@

wasm-build/slots-%.so: $(CORE) csrc/kvm.c $(HEADERS)
	@command -v $(firstword $(LIBRARY_CC)) >/dev/null || { \
		echo "$@ needs $(LIBRARY_CC), which is missing: install Debian's $(DEBIAN_$*)" >&2; exit 1; }
	$(LIBRARY_CC) $(CFLAGS) -fPIC -shared -fvisibility=hidden -o $@ $(CORE) csrc/kvm.c

arm64: wasm-build/slots-linux-arm64.so ## the native library for arm64, with Debian's cross compiler

wasm-build/slots.wasm: $(CORE) csrc/slots.h wasm-build/tool.sh
	$(EMCC) $(EMFLAGS) $(EMLINK) -o $@ $(CORE)

wasm-build/slots-shared.wasm: $(CORE) csrc/slots.h wasm-build/tool.sh
	$(EMCC) $(EMFLAGS) -matomics $(EMLINK),--shared-memory -o $@ $(CORE)

dist/.built: node_modules/.installed tsconfig.json wasm-build/inline.mjs wasm-build/slots.wasm $(shell find ts -name '*.ts')
	rm -rf dist
	npx --no-install tsc -p tsconfig.json
	node wasm-build/inline.mjs dist/core/slots-wasm.js
	@chmod +x dist/cli.js && touch $@

dist/page/viewer.html: dist/.built wasm-build/slots.wasm wasm-build/slots-shared.wasm $(shell find ts/viewer -type f)
	node ts/viewer/bundle.mjs

pack-files: build $(PREBUILT) ## everything that a package holds, which npm pack runs

test: build ## the whole suite, with the native core and with the WASM one
	npx --no-install vitest run

demo: build ## resize, split and merge a running VM's memory, naively and atomically
	node dist/cli.js demo

verify: ## the locking protocol, proved by a model checker; and that faulty variants of it are found
	@CC=$(CC) test/model/verify.sh

lint: node_modules/.installed ## style and types
	npx --no-install biome check .
	npx --no-install tsc --noEmit -p tsconfig.json

clean: ## everything that can be made again
	rm -rf dist coverage node_modules wasm-build/*.wasm wasm-build/*.so
