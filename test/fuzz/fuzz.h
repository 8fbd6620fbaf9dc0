/* What the fuzz targets share: a reader of the fuzzer's bytes, and checks that abort. */
#ifndef MEMSLOTS_FUZZ_H
#define MEMSLOTS_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/slots.h"

#define CHECK(condition)                                                                        \
	do {                                                                                    \
		if (!(condition)) {                                                             \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                \
		}                                                                               \
	} while (0)

struct input {
	const uint8_t *next, *end;
};

/* The next byte, 0 once there are no more. */
static inline uint32_t take(struct input *input)
{
	return input->next < input->end ? *input->next++ : 0;
}

static inline void *zeroed(size_t bytes)
{
	void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);

	CHECK(memory != NULL);
	memset(memory, 0, (bytes + 63) / 64 * 64);
	return memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
