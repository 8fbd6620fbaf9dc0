/* Tables of guest-physical ranges: see slots.h. */
#include <string.h>

#include "slots.h"

#define MOST_RANGES (1u << 24)

static uint64_t *keys_of(struct memslots_table *table)
{
	return (uint64_t *)((char *)table + table->levels[0]);
}

static uint32_t *order_of(struct memslots_table *table)
{
	return (uint32_t *)((char *)table + table->order);
}

static struct memslots_range *ranges_of(struct memslots_table *table)
{
	return (struct memslots_range *)((char *)table + table->ranges);
}

static uint64_t *used_of(struct memslots_table *table)
{
	return (uint64_t *)((char *)table + table->used);
}

static uint32_t round_up(uint32_t value, uint32_t multiple)
{
	return (value + multiple - 1) / multiple * multiple;
}

/* The parts, in this order, each on a cache line of its own. */
static int64_t lay_out(struct memslots_table *table, uint32_t capacity)
{
	uint64_t at = sizeof(*table);
	uint32_t level, keys;

	for (level = 0, keys = capacity; level == 0 || keys > 1; level++) {
		keys = (keys + MEMSLOTS_NODE - 1) / MEMSLOTS_NODE;
		table->levels[level] = (uint32_t)at;
		at += (uint64_t)keys * MEMSLOTS_NODE * sizeof(uint64_t);
	}
	table->order = (uint32_t)at;
	at += round_up(capacity * (uint32_t)sizeof(uint32_t), 64);
	table->ranges = (uint32_t)at;
	at += (uint64_t)capacity * sizeof(struct memslots_range);
	table->used = (uint32_t)at;
	at += round_up((capacity + 63) / 64 * (uint32_t)sizeof(uint64_t), 64);
	return (int64_t)at;
}

int32_t memslots_table_size(uint32_t capacity)
{
	struct memslots_table table;

	if (capacity == 0 || capacity > MOST_RANGES)
		return -MEMSLOTS_EINVAL;
	return (int32_t)((lay_out(&table, capacity) + 63) / 64 * 64);
}

int32_t memslots_table_init(struct memslots_table *table, uint32_t capacity)
{
	if (capacity == 0 || capacity > MOST_RANGES)
		return -MEMSLOTS_EINVAL;
	memset(table, 0, sizeof(*table));
	lay_out(table, capacity);
	table->capacity = capacity;
	memset(used_of(table), 0, (capacity + 63) / 64 * sizeof(uint64_t));
	memslots_update_levels(table, 0, 0);
	return 0;
}

/* Moves items within a table, or a record into it. Where nobody else is reading, memmove is faster. */
static void move_halves(const struct memslots_table *table, uint32_t *to, const uint32_t *from, size_t count)
{
	size_t i;

	if (!table->shared) {
		memmove(to, from, count * sizeof(*to));
	} else if (to < from) {
		for (i = 0; i < count; i++)
			MEMSLOTS_STORE(&to[i], from[i]);
	} else {
		for (i = count; i-- > 0;)
			MEMSLOTS_STORE(&to[i], from[i]);
	}
}

static void move_words(const struct memslots_table *table, memslots_word *to, const memslots_word *from, size_t count)
{
	size_t i;

	if (!table->shared) {
		memmove(to, from, count * sizeof(*to));
	} else if (to < from) {
		for (i = 0; i < count; i++)
			MEMSLOTS_STORE(&to[i], from[i]);
	} else {
		for (i = count; i-- > 0;)
			MEMSLOTS_STORE(&to[i], from[i]);
	}
}

static void move_keys(struct memslots_table *table, uint32_t to, uint32_t from, uint32_t count)
{
	move_words(table, &keys_of(table)[to], &keys_of(table)[from], count);
	move_halves(table, &order_of(table)[to], &order_of(table)[from], count);
}

static void set_key(struct memslots_table *table, uint32_t position, const struct memslots_range *range)
{
	move_words(table, &keys_of(table)[position], &range->gpa, 1);
	move_halves(table, &order_of(table)[position], &range->id, 1);
	move_words(table, (memslots_word *)&ranges_of(table)[range->id], (const memslots_word *)range,
		   sizeof(*range) / sizeof(memslots_word));
	used_of(table)[range->id / 64] |= 1ull << range->id % 64;
}

static void set_count(struct memslots_table *table, uint32_t count)
{
	__atomic_store_n(&table->count, count, __ATOMIC_RELAXED);
}

int32_t memslots_find_at_or_above(const struct memslots_table *table, double gpa)
{
	int32_t id = memslots_find_exactly(table, (uint64_t)gpa);
	uint32_t position;

	if (id >= 0)
		return id;
	position = memslots_upper(table, (uint64_t)gpa);
	return position < table->count ? (int32_t)memslots_order(table)[position] : -MEMSLOTS_ENOENT;
}

int32_t memslots_match(const struct memslots_table *table, const struct memslots_range *range)
{
	int32_t id = memslots_find_exactly(table, range->gpa);

	if (id < 0 || memslots_ranges(table)[id].gpa != range->gpa || memslots_ranges(table)[id].size != range->size)
		return -MEMSLOTS_ENOENT;
	return id;
}

int32_t memslots_overlap(const struct memslots_table *table, const struct memslots_range *range)
{
	int32_t id = memslots_find_exactly(table, range->gpa);
	uint32_t position;

	if (id >= 0)
		return id;
	position = memslots_upper(table, range->gpa);
	if (position < table->count && memslots_keys(table)[position] < memslots_end(range))
		return (int32_t)memslots_order(table)[position];
	return -MEMSLOTS_ENOENT;
}

int32_t memslots_free_id(const struct memslots_table *table)
{
	const uint64_t *used = memslots_used(table);
	uint32_t word, id;

	for (word = 0; word * 64 < table->capacity; word++) {
		if (used[word] == ~0ull)
			continue;
		id = word * 64 + (uint32_t)__builtin_ctzll(~used[word]);
		return id < table->capacity ? (int32_t)id : -MEMSLOTS_ENOSPC;
	}
	return -MEMSLOTS_ENOSPC;
}

int32_t memslots_insert(struct memslots_table *table, const struct memslots_range *range)
{
	struct memslots_range copy = *range;
	int32_t free_id = memslots_free_id(table);

	if (range->size == 0 || range->gpa + range->size < range->gpa)
		return -MEMSLOTS_EINVAL;
	if (free_id < 0)
		return free_id;
	if (copy.id == MEMSLOTS_ANY_ID)
		copy.id = (uint32_t)free_id;
	else if (copy.id >= table->capacity || memslots_used(table)[copy.id / 64] >> copy.id % 64 & 1)
		return -MEMSLOTS_EINVAL;
	if (memslots_overlap(table, range) >= 0)
		return -MEMSLOTS_EEXIST;
	memslots_splice(table, NULL, 0, &copy, 1, sizeof(copy));
	return (int32_t)copy.id;
}

int32_t memslots_remove(struct memslots_table *table, uint32_t id)
{
	struct memslots_range copy;

	if (id >= table->capacity || !(memslots_used(table)[id / 64] >> id % 64 & 1))
		return -MEMSLOTS_ENOENT;
	copy = memslots_ranges(table)[id];
	memslots_splice(table, &copy, 1, NULL, 0, sizeof(copy));
	return 0;
}

void memslots_set_flags(struct memslots_table *table, uint32_t id, uint32_t flags)
{
	move_halves(table, &ranges_of(table)[id].flags, &flags, 1);
}

int32_t memslots_list(const struct memslots_table *table, struct memslots_range *out)
{
	uint32_t i;

	for (i = 0; i < table->count; i++)
		out[i] = memslots_ranges(table)[memslots_order(table)[i]];
	return (int32_t)table->count;
}

static const struct memslots_range *record(const void *list, uint32_t index, uint32_t stride)
{
	/* An empty list may be NULL, but has no records. */
	/* cppcheck-suppress nullPointerArithmetic */
	return (const struct memslots_range *)((const char *)list + (size_t)index * stride);
}

static uint32_t position_of(const struct memslots_table *table, const struct memslots_range *range)
{
	return range->gpa == 0 ? 0 : memslots_upper(table, range->gpa - 1);
}

/*
 * The keys between two records of the lists move by the number of adds below them less that of deletes, those that
 * move down from the lowest on, then those that move up from the highest on: so none is overwritten before it has
 * moved. Where a delete and an add meet, nothing moves at all, and that is what most changes are.
 *
 * Searches stay right while keys are on their way, by the levels as they were: what lies below a record lies below it
 * wherever it is by then, and so above.
 */
void memslots_splice(struct memslots_table *table, const void *deletes, uint32_t delete_count, const void *adds,
		     uint32_t add_count, uint32_t stride)
{
	uint32_t count = table->count, d, a, from = 0, to, lowest = count, highest = 0;
	int32_t shift = 0, most = 0;

	for (d = 0; d < delete_count; d++) {
		uint32_t id = record(deletes, d, stride)->id;

		used_of(table)[id / 64] &= ~(1ull << id % 64);
	}
	for (d = 0, a = 0; d < delete_count || a < add_count;) {
		const struct memslots_range *delete = d < delete_count ? record(deletes, d, stride) : NULL;
		const struct memslots_range *add = a < add_count ? record(adds, a, stride) : NULL;

		if (delete &&(!add || delete->gpa <= add->gpa)) {
			to = position_of(table, delete);
			if (shift < 0)
				move_keys(table, from + (uint32_t)shift, from, to - from);
			from = to + 1;
			shift--;
			d++;
		} else {
			to = memslots_upper(table, add->gpa);
			if (shift < 0) {
				move_keys(table, from + (uint32_t)shift, from, to - from);
				set_key(table, to + (uint32_t)shift, add);
			}
			from = to;
			shift++;
			a++;
			most = shift > most ? shift : most;
		}
		lowest = to < lowest ? to : lowest;
		highest = from + 1;
	}
	if (shift < 0)
		move_keys(table, from + (uint32_t)shift, from, count - from);

	for (to = count; most > 0 && (d > 0 || a > 0); to = from) {
		const struct memslots_range *delete = d > 0 ? record(deletes, d - 1, stride) : NULL;
		const struct memslots_range *add = a > 0 ? record(adds, a - 1, stride) : NULL;

		if (add && (!delete || delete->gpa <= add->gpa)) {
			from = memslots_upper(table, add->gpa);
			if (shift > 0) {
				move_keys(table, from + (uint32_t)shift, from, to - from);
				set_key(table, from + (uint32_t)shift - 1, add);
			}
			shift--;
			a--;
		} else {
			from = position_of(table, delete);
			if (shift > 0)
				move_keys(table, from + 1 + (uint32_t)shift, from + 1, to - from - 1);
			shift++;
			d--;
		}
	}
	set_count(table, count - delete_count + add_count);
	memslots_update_levels(table, lowest, add_count == delete_count ? highest : UINT32_MAX);
}
