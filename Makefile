# kvm-memslots. `make help` lists the targets; `make demo` and `make test` do all their own set-up.

CC ?= cc
CFLAGS = -std=c11 -O3 -Wall -Wextra -Werror
CORE = csrc/slots.c csrc/map.c csrc/plan.c csrc/layout.c
HEADERS = csrc/slots.h csrc/kvm.h
# Arena sizes from 2 MiB to 1 GiB link with these modules; __stack_pointer lets each thread have its own stack.
EMFLAGS = $(CFLAGS) --no-entry -sSTANDALONE_WASM -sWASM_BIGINT -sTOTAL_STACK=65536 -sINITIAL_MEMORY=2097152 \
	-sALLOW_MEMORY_GROWTH -sMAXIMUM_MEMORY=1073741824 -mbulk-memory -mmutable-globals
EMLINK = -Wl,--import-memory,--export=__stack_pointer,--export=__heap_base

.PHONY: help build test demo verify lint clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' Makefile | sed 's/:.*## /\t/' | sort | awk -F'\t' '{printf "make %-10s %s\n", $$1, $$2}'

build: node_modules/.installed wasm-build/slots.so wasm-build/slots.wasm wasm-build/slots-shared.wasm dist/.built ## both C builds, the TypeScript

node_modules/.installed: package.json package-lock.json
	npm ci --no-audit --no-fund
	@touch $@

wasm-build/slots.so: $(CORE) csrc/kvm.c $(HEADERS)
	$(CC) $(CFLAGS) -fPIC -shared -fvisibility=hidden -o $@ $(CORE) csrc/kvm.c

wasm-build/slots.wasm: $(CORE) csrc/slots.h wasm-build/emcc.sh Makefile
	wasm-build/emcc.sh $(EMFLAGS) $(EMLINK) -o $@ $(CORE)

wasm-build/slots-shared.wasm: $(CORE) csrc/slots.h wasm-build/emcc.sh Makefile
	wasm-build/emcc.sh $(EMFLAGS) -matomics $(EMLINK),--shared-memory -o $@ $(CORE)

dist/.built: node_modules/.installed tsconfig.json $(shell find ts -name '*.ts')
	rm -rf dist
	npx --no-install tsc -p tsconfig.json
	@chmod +x dist/cli.js && touch $@

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
