/*
 * Readers against a writer: more threads than processors look addresses up in a map, and go in and out of a gate, while
 * one thread publishes layouts and shuts the gate, without a pause. For ThreadSanitizer: see races.sh, and
 * test/core/races-thread.ts for the same schedule in workers.
 *
 * A map's addresses are BLOCKS blocks. Each layout has a number and replaces the ranges of some blocks; every field of a
 * range follows from its address and from the layout that made it, so that a range of which a field is another's shows.
 * A look-up must give what one of the layouts says that were published, or about to be, while it looked.
 *
 * Prints what was done, and fails if look-ups met too few changes under way. Usage: races LAYOUTS; 0 does nothing.
 */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "../fuzz/fuzz.h"

#define PAGE 4096u
#define BLOCKS 8u
#define BLOCK_PAGES 16u
#define PAGES (BLOCKS * BLOCK_PAGES)
/* One layout in so many comes with a window, in which the gate is shut. */
#define WINDOW_EVERY 4u
#define SHUT (1u << 31)
#define COUNT 0xffffu
/* Look-ups that must have met a change; until they have, up to so many times the layouts asked for are published. */
#define LEAST_MET 1000u
#define PATIENCE 50u
#define MOST_READERS 64u

/* What works on its caller's own memory only: looking at that too would leave less time for what matters. */
#define PRIVATE __attribute__((no_sanitize("thread"))) static

PRIVATE uint32_t mix(uint32_t a, uint32_t b)
{
	uint32_t hash = a * 0x9e3779b1u ^ b * 0x85ebca6bu;

	hash = (hash ^ hash >> 15) * 0x2c1b3c6du;
	hash = (hash ^ hash >> 12) * 0x297a2d39u;
	return hash ^ hash >> 15;
}

/* Whether layout `number` replaces `block`. Each replaces one at least; the first, all. */
PRIVATE int replaces(uint32_t number, uint32_t block)
{
	return number == 0 || number % BLOCKS == block || mix(number, block) % 3 == 0;
}

/* The layout that made what `block` has in layout `number`. */
PRIVATE uint32_t maker(uint32_t number, uint32_t block)
{
	while (!replaces(number, block))
		number--;
	return number;
}

/* The range that layout `number`, which replaces its block, has at `page`: 0 if there is a hole. */
PRIVATE int range_at(uint32_t number, uint32_t page, struct memslots_range *out)
{
	uint32_t block = page / BLOCK_PAGES, length = 1 + mix(number, block + 100) % 5;
	uint32_t inside = page % BLOCK_PAGES / length * length, first = block * BLOCK_PAGES + inside;

	memset(out, 0, sizeof(*out));
	if (mix(number, first + 200) % 4 == 0)
		return 0;
	out->gpa = (uint64_t)first * PAGE;
	out->size = (uint64_t)(inside + length < BLOCK_PAGES ? length : BLOCK_PAGES - inside) * PAGE;
	out->host = (uint64_t)(number + 1) << 28 | out->gpa;
	out->offset = (uint64_t)(number + 1) * 7 * PAGE + out->gpa;
	out->id = MEMSLOTS_ANY_ID;
	out->flags = MEMSLOTS_BACKED | (number & 1 ? MEMSLOTS_READONLY : 0);
	out->region = number;
	out->since = number ^ 0x5a5a;
	out->address_space = number & 1;
	out->guest_memfd = (int32_t)number + 3;
	return 1;
}

/* The ranges of `block` as layout `number` makes them: how many. */
PRIVATE uint32_t ranges_of(uint32_t number, uint32_t block, struct memslots_range *out)
{
	uint32_t count = 0, page;
	uint64_t end = (uint64_t)block * BLOCK_PAGES * PAGE;

	for (page = block * BLOCK_PAGES; page < (block + 1) * BLOCK_PAGES; page++)
		if ((uint64_t)page * PAGE >= end && range_at(number, page, &out[count]))
			end = memslots_end(&out[count++]);
	return count;
}

static struct memslots_map *map;
/* Layouts of which publishing has begun, and of which it has ended. Windows in which the gate was shut. */
static uint32_t begun, ended, windows;
static uint32_t gate;
/* Look-ups that met a change, of all readers. */
static uint32_t met;
/* 1 once the readers are to end. */
static uint32_t enough;
/* Written in windows only, read inside the gate only: the gate is all that orders the two. */
static uint32_t witness[2];

static void publish(uint32_t number)
{
	struct memslots_range deletes[PAGES], adds[PAGES];
	uint32_t delete_count = 0, add_count = 0, block;

	for (block = 0; block < BLOCKS; block++) {
		if (!replaces(number, block))
			continue;
		if (number > 0)
			delete_count += ranges_of(maker(number - 1, block), block, &deletes[delete_count]);
		add_count += ranges_of(number, block, &adds[add_count]);
	}
	__atomic_store_n(&begun, number, __ATOMIC_RELEASE);
	CHECK(memslots_map_apply(map, deletes, delete_count, adds, add_count) == 0);
	__atomic_store_n(&ended, number, __ATOMIC_RELEASE);
}

/* Keeps the readers out of the gate for a moment. */
static void open_window(void)
{
	__atomic_fetch_or(&gate, SHUT, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&gate, __ATOMIC_SEQ_CST) & COUNT)
		sched_yield();
	windows++;
	witness[0] = windows;
	witness[1] = windows;
	__atomic_fetch_and(&gate, ~SHUT, __ATOMIC_SEQ_CST);
}

/* Whether one of the layouts `from` to `to` has a hole at `page`. */
PRIVATE int has_hole(uint32_t from, uint32_t to, uint32_t page)
{
	struct memslots_range range;
	uint32_t number;

	for (number = from; number <= to; number++)
		if (!range_at(maker(number, page / BLOCK_PAGES), page, &range))
			return 1;
	return 0;
}

/* Whether one of the layouts `from` to `to` has `found` at `page`. */
PRIVATE int has_range(uint32_t from, uint32_t to, uint32_t page, const struct memslots_range *found)
{
	struct memslots_range wanted;
	uint32_t number = found->region, block = page / BLOCK_PAGES;

	if (number > to || !replaces(number, block) || !range_at(number, page, &wanted))
		return 0;
	if (number < from && maker(from, block) != number)
		return 0;
	wanted.id = found->id;
	return memcmp(&wanted, found, sizeof(wanted)) == 0;
}

struct reader {
	pthread_t thread;
	uint32_t seed;
	uint32_t lookups, holes, met, entered, kept_out;
};

/* The sequence number of the copy at `index`: it moves when that copy is changed. */
static uint32_t sequence_of(uint32_t index)
{
	const struct memslots_table *table = (const void *)((const char *)map + map->copies[index]);

	return __atomic_load_n(&table->sequence, __ATOMIC_ACQUIRE);
}

static void look_up(struct reader *reader)
{
	uint32_t from = __atomic_load_n(&ended, __ATOMIC_ACQUIRE), to;
	uint32_t copy = __atomic_load_n(&map->active, __ATOMIC_ACQUIRE), sequence = sequence_of(copy), page;
	struct memslots_range range;
	int32_t result;

	reader->seed = mix(reader->seed, reader->lookups++);
	page = reader->seed % PAGES;
	result = memslots_map_lookup(map, (double)page * PAGE + reader->seed % PAGE, &range);
	/* The copy that readers were to use has been changed meanwhile. */
	if (sequence_of(copy) != sequence) {
		reader->met++;
		__atomic_fetch_add(&met, 1, __ATOMIC_RELAXED);
	}
	to = __atomic_load_n(&begun, __ATOMIC_ACQUIRE);
	if (result == 0) {
		CHECK(has_range(from, to, page, &range));
	} else {
		CHECK(result == -MEMSLOTS_ENOENT && has_hole(from, to, page));
		reader->holes++;
	}
}

static void pass_gate(struct reader *reader)
{
	if (!memslots_gate_enter(&gate, SHUT)) {
		reader->kept_out++;
		return;
	}
	CHECK(witness[0] == witness[1]);
	memslots_gate_leave(&gate);
	reader->entered++;
}

static void *read_on(void *argument)
{
	struct reader *reader = argument;

	while (!__atomic_load_n(&enough, __ATOMIC_ACQUIRE)) {
		look_up(reader);
		if (reader->lookups % 8 == 0)
			pass_gate(reader);
	}
	return NULL;
}

int main(int count, char **arguments)
{
	static struct reader readers[MOST_READERS];
	uint32_t layouts = count > 1 ? (uint32_t)strtoul(arguments[1], NULL, 10) : 0, number, i;
	uint32_t processors = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
	uint32_t reader_count = processors + 2 < MOST_READERS ? processors + 2 : MOST_READERS;
	struct reader sum = {.lookups = 0};

	if (layouts == 0)
		return 0;
	map = zeroed((size_t)memslots_map_size(PAGES));
	CHECK(memslots_map_init(map, PAGES) == 0);
	publish(0);
	for (i = 0; i < reader_count; i++) {
		readers[i].seed = i + 1;
		CHECK(pthread_create(&readers[i].thread, NULL, read_on, &readers[i]) == 0);
	}
	for (number = 1; number <= layouts * PATIENCE; number++) {
		if (number > layouts && __atomic_load_n(&met, __ATOMIC_RELAXED) >= LEAST_MET)
			break;
		publish(number);
		if (number % WINDOW_EVERY == 0)
			open_window();
	}
	__atomic_store_n(&enough, 1, __ATOMIC_RELEASE);
	for (i = 0; i < reader_count; i++) {
		CHECK(pthread_join(readers[i].thread, NULL) == 0);
		sum.lookups += readers[i].lookups;
		sum.holes += readers[i].holes;
		sum.met += readers[i].met;
		sum.entered += readers[i].entered;
		sum.kept_out += readers[i].kept_out;
	}
	free(map);
	printf("%u readers, %u layouts, %u look-ups (%u of holes, %u met a change), %u windows, %u times inside the "
	       "gate, "
	       "%u kept out\n",
	       reader_count, number - 1, sum.lookups, sum.holes, sum.met, windows, sum.entered, sum.kept_out);
	/* Too little is a failure too. */
	CHECK(sum.met >= LEAST_MET && sum.holes > 0 && sum.entered > 0);
	return 0;
}
