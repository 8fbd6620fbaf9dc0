# kvm-memslots. `make help` lists the targets; `make demo` and `make test` do all their own set-up.

CC ?= cc
# Runs a tool, and installs the distribution's package that has it where it is missing: PACKAGE TOOL ARGUMENT...
TOOL = wasm-build/tool.sh
EMCC ?= $(TOOL) emscripten emcc
CFLAGS = -std=c11 -O3 -Wall -Wextra -Werror
STRICT = $(CFLAGS) -Wconversion -Wno-sign-conversion -fsyntax-only
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

.PHONY: help build arm64 pack-files test demo bench verify lint lint-c docs coverage fuzz sanitize races clean

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

bench: build test/artefacts/rivals.so ## speed against what one would use instead, in minutes; BENCH=--quick: in under two
	node test/bench/run.mjs $(BENCH)

# What the benchmark compares with, by the same compiler with the same flags. Not part of the package.
test/artefacts/rivals.so: test/bench/rivals.c test/bench/rival-vm.c test/bench/rivals.h $(CORE) csrc/slots.h
	@mkdir -p test/artefacts
	$(CC) $(CFLAGS) -fPIC -shared -fvisibility=hidden -o $@ test/bench/rivals.c test/bench/rival-vm.c $(CORE) -lpthread

verify: ## the locking protocol, proved by a model checker; and that faulty variants of it are found
	@CC=$(CC) test/model/verify.sh

lint: node_modules/.installed lint-c ## style, types and warnings of the TypeScript and the C
	npx --no-install biome check .
	npx --no-install tsc --noEmit -p test

lint-c:
	$(TOOL) clang-format clang-format --dry-run -Werror csrc/*.[ch] test/fuzz/*.[ch] test/races/*.c
	$(TOOL) cppcheck cppcheck --quiet --std=c11 --enable=warning,style,performance,portability --inline-suppr \
		--suppress=missingIncludeSystem --error-exitcode=1 csrc
	$(TOOL) gcc gcc $(STRICT) $(CORE) csrc/kvm.c
	$(TOOL) clang clang $(STRICT) $(CORE) csrc/kvm.c

docs: build ## the manual page and the API reference, from the commands' tables and the doc comments
	node dist/cli.js --man > docs/memslots.1.new && mv docs/memslots.1.new docs/memslots.1
	node docs/api.mjs

# Counters go to a file as they count, so that a process that is killed loses none.
coverage/slots.so: $(CORE) csrc/kvm.c $(HEADERS)
	@mkdir -p coverage
	$(TOOL) clang clang -std=c11 -g -O1 -fPIC -shared -fprofile-instr-generate -fcoverage-mapping \
		-mllvm -runtime-counter-relocation -o $@ $(CORE) csrc/kvm.c

coverage: build coverage/slots.so ## lines of the TypeScript and the C that the tests run
	rm -rf coverage/v8 coverage/c && mkdir coverage/c
	MEMSLOTS_LIBRARY=$(CURDIR)/coverage/slots.so LLVM_PROFILE_FILE='$(CURDIR)/coverage/c/%p%c.profraw' \
		NODE_V8_COVERAGE=$(CURDIR)/coverage/v8 npx --no-install vitest run --config test/coverage/vitest.config.ts
	$(TOOL) llvm llvm-profdata merge -o coverage/c.profdata coverage/c/*.profraw
	$(TOOL) llvm llvm-cov export -format=lcov -instr-profile=coverage/c.profdata coverage/slots.so >coverage/c.lcov
	node test/coverage/report.mjs coverage

# Each target gets a share; what they have found worth keeping stays for the next time.
SECONDS = 60
FUZZERS = tables map plan
FUZZ = test/artefacts/fuzz
FUZZ_OPTIONS = -max_len=1000 -len_control=0 -artifact_prefix=$(FUZZ)/

$(FUZZ)/%: test/fuzz/%.c test/fuzz/fuzz.h $(CORE) csrc/slots.h
	@mkdir -p $(FUZZ)/corpus-$*
	$(TOOL) clang clang -std=c11 -g -O1 -Wall -Wextra -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
		-o $@ $< $(CORE)

fuzz: $(FUZZERS:%=$(FUZZ)/%) dist/.built ## random input for the C core and the readers, for SECONDS=60 in all
	@for target in $(FUZZERS); do \
		$(FUZZ)/$$target -max_total_time=$$(($(SECONDS) / 4 + 1)) $(FUZZ_OPTIONS) $(FUZZ)/corpus-$$target \
			>$(FUZZ)/$$target.log 2>&1 || { tail -n 60 $(FUZZ)/$$target.log; exit 1; }; \
		echo "$$target: $$(grep '^Done' $(FUZZ)/$$target.log), nothing found"; done
	@node test/fuzz/readers.mjs $$(($(SECONDS) / 4 + 1))

sanitize: $(FUZZERS:%=$(FUZZ)/%) ## the same random input for the C core each time, under sanitizers
	@for target in $(FUZZERS); do \
		$(FUZZ)/$$target -runs=10000 -seed=1 $(FUZZ_OPTIONS) >$(FUZZ)/$$target.log 2>&1 || \
			{ tail -n 60 $(FUZZ)/$$target.log; exit 1; }; \
		echo "$$target: $$(grep '^Done' $(FUZZ)/$$target.log), nothing found"; done

races: ## the C core's readers against its writer under ThreadSanitizer; and that faulty variants are found
	@test/races/races.sh

clean: ## everything that can be made again
	rm -rf dist coverage node_modules wasm-build/*.wasm wasm-build/*.so
