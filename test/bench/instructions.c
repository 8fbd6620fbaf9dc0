/*
 * Does one thing of the C core again and again, so that a tool can count its instructions: see instructions.test.ts.
 *
 *     instructions find|batch|plan SLOTS TIMES
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../csrc/slots.h"

#define ADDRESSES 4096u
#define SLOT_BYTES 0x10000ull
/* Sections that a transaction moves to other memory. */
#define CHANGES 16u

static void *room(size_t bytes)
{
	void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);

	if (!memory)
		exit(2);
	memset(memory, 0, (bytes + 63) / 64 * 64);
	return memory;
}

/* Slot `index` of a layout with gaps, backed so that no two are one translation. */
static struct memslots_range slot_at(uint32_t index, uint64_t host)
{
	return (struct memslots_range){.gpa = index * 2 * SLOT_BYTES,
				       .size = SLOT_BYTES,
				       .host = host + index * 4 * SLOT_BYTES,
				       .id = MEMSLOTS_ANY_ID,
				       .flags = MEMSLOTS_BACKED,
				       .guest_memfd = -1};
}

static void plan(struct memslots_table *table, uint32_t slots, uint32_t times)
{
	struct memslots_request request = {.policy = MEMSLOTS_POLICY_STABLE,
					   .page_size = 4096,
					   .largest_slot = 1ull << 40,
					   .slot_limit = slots,
					   .delete_count = CHANGES,
					   .add_count = CHANGES,
					   .operation_capacity = 4 * CHANGES,
					   .scratch_capacity = slots};
	struct memslots_range deletes[CHANGES], adds[CHANGES], *scratch = room(slots * sizeof(*scratch));
	struct memslots_operation operations[4 * CHANGES];
	struct memslots_plan answer;
	uint32_t tables[2] = {0, 0}, i;

	for (i = 0; i < CHANGES; i++) {
		uint32_t index = (uint32_t)((uint64_t)i * slots / CHANGES);

		deletes[i] = slot_at(index, 0);
		adds[i] = slot_at(index, 1ull << 44);
	}
	while (times-- > 0) {
		if (memslots_plan(&request, (const char *)table, tables, deletes, adds, NULL, &answer, operations,
				  scratch) < 0 ||
		    answer.operation_count != 2 * CHANGES || !answer.inhibit)
			exit(3);
	}
}

int main(int count, char **arguments)
{
	uint32_t slots, times, i, state = 1;
	struct memslots_table *table;
	uint64_t *gpas = room(ADDRESSES * sizeof(*gpas));
	int32_t *ids = room(ADDRESSES * sizeof(*ids));
	int32_t found = 0;

	if (count != 4)
		return 2;
	slots = (uint32_t)atoi(arguments[2]);
	times = (uint32_t)atoi(arguments[3]);
	table = room((size_t)memslots_table_size(slots));
	memslots_table_init(table, slots);
	for (i = 0; i < slots; i++) {
		struct memslots_range slot = slot_at(i, 0);

		slot.flags = 0;
		if (memslots_insert(table, &slot) < 0)
			return 3;
	}
	for (i = 0; i < ADDRESSES; i++) {
		state = state * 1664525 + 1013904223;
		gpas[i] = (uint64_t)(state >> 8) % (slots * 2 * SLOT_BYTES);
	}
	if (strcmp(arguments[1], "plan") == 0) {
		plan(table, slots, times);
	} else if (strcmp(arguments[1], "batch") == 0) {
		while (times-- > 0)
			found += memslots_find_batch(table, gpas, ids, ADDRESSES, MEMSLOTS_PATH_SCALAR);
	} else {
		while (times-- > 0)
			for (i = 0; i < ADDRESSES; i++)
				found += memslots_find(table, (double)gpas[i]) >= 0;
	}
	printf("%d\n", found);
	return 0;
}
