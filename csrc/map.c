/*
 * Maps: two copies of a table, of which readers use the active one. See slots.h.
 *
 * The writer changes the idle copy, makes it the active one, then repeats the change on the other. A reader
 * that is still on the copy being changed notices by its sequence number and looks again, in the new active
 * copy, which stays as it is until the next change.
 */
#include <string.h>

#include "slots.h"

static struct memslots_table *copy_of(const struct memslots_map *map, uint32_t index)
{
	return (struct memslots_table *)((char *)map + map->copies[index]);
}

int32_t memslots_map_size(uint32_t capacity)
{
	int32_t table = memslots_table_size(capacity);

	if (table < 0 || table > (INT32_MAX - (int32_t)sizeof(struct memslots_map)) / 2)
		return -MEMSLOTS_EINVAL;
	return (int32_t)sizeof(struct memslots_map) + 2 * table;
}

int32_t memslots_map_init(struct memslots_map *map, uint32_t capacity)
{
	uint32_t i;

	if (memslots_map_size(capacity) < 0)
		return -MEMSLOTS_EINVAL;
	memset(map, 0, sizeof(*map));
	for (i = 0; i < 2; i++) {
		map->copies[i] = (uint32_t)sizeof(*map) + i * (uint32_t)memslots_table_size(capacity);
		memslots_table_init(copy_of(map, i), capacity);
		copy_of(map, i)->shared = 1;
	}
	return 0;
}

/* Looks `gpa` up in a copy that may be changing under it: it may go wrong, but not out of bounds. */
static int32_t search(const struct memslots_table *table, uint64_t gpa, struct memslots_range *out)
{
	uint32_t position = memslots_upper_shared(table, gpa), id, i;
	const memslots_word *from;
	memslots_word *to = (memslots_word *)out;

	if (position == 0)
		return -MEMSLOTS_ENOENT;
	id = __atomic_load_n(&memslots_order(table)[position - 1], __ATOMIC_RELAXED);
	if (id >= table->capacity)
		return -MEMSLOTS_ENOENT;
	from = (const memslots_word *)&memslots_ranges(table)[id];
	for (i = 0; i < sizeof(*out) / sizeof(memslots_word); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	return gpa - out->gpa < out->size ? 0 : -MEMSLOTS_ENOENT;
}

int32_t memslots_map_lookup(const struct memslots_map *map, double gpa, struct memslots_range *out)
{
	for (;;) {
		const struct memslots_table *table = copy_of(map, __atomic_load_n(&map->active, __ATOMIC_ACQUIRE));
		uint32_t sequence = __atomic_load_n(&table->sequence, __ATOMIC_ACQUIRE);
		int32_t result;

		if (sequence & 1)
			continue;
		result = search(table, (uint64_t)gpa, out);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (__atomic_load_n(&table->sequence, __ATOMIC_RELAXED) == sequence)
			return result;
	}
}

static void change(struct memslots_table *table, const struct memslots_range *deletes, uint32_t delete_count,
		   const struct memslots_range *adds, uint32_t add_count)
{
	uint32_t sequence = table->sequence + 1;

	__atomic_store_n(&table->sequence, sequence, __ATOMIC_SEQ_CST);
	__atomic_thread_fence(__ATOMIC_RELEASE);
#ifdef __wasm__
	/* Optimisers of WASM take fences out. A load waits for the store before it, and what is stored next for the load. */
	sequence = __atomic_load_n(&table->sequence, __ATOMIC_SEQ_CST);
#endif
	memslots_splice(table, deletes, delete_count, adds, add_count, sizeof(*adds));
	__atomic_store_n(&table->sequence, sequence + 1, __ATOMIC_RELEASE);
}

/* Whether the adds collide with each other or with what is left after the deletes. */
static int collides(const struct memslots_table *table, const struct memslots_range *deletes, uint32_t delete_count,
		    const struct memslots_range *adds, uint32_t add_count)
{
	uint32_t i, next_delete = 0;

	for (i = 0; i < add_count; i++) {
		const struct memslots_range *add = &adds[i];
		uint32_t position = memslots_upper(table, add->gpa);

		if (i > 0 && memslots_end(&adds[i - 1]) > add->gpa)
			return 1;
		if (position > 0)
			position--;
		for (; position < table->count && memslots_keys(table)[position] < memslots_end(add); position++) {
			const struct memslots_range *other = &memslots_ranges(table)[memslots_order(table)[position]];

			if (memslots_end(other) <= add->gpa)
				continue;
			while (next_delete < delete_count && deletes[next_delete].gpa < other->gpa)
				next_delete++;
			if (next_delete == delete_count || deletes[next_delete].gpa != other->gpa)
				return 1;
		}
	}
	return 0;
}

/* Gives adds their ids: those of the deletes first, then the lowest free ones. */
static int32_t assign_ids(const struct memslots_table *table, const struct memslots_range *deletes,
			  uint32_t delete_count, struct memslots_range *adds, uint32_t add_count)
{
	uint32_t i, reused = 0, slice = 0;
	uint64_t taken = 0;

	for (i = 0; i < add_count; i++) {
		if (adds[i].id != MEMSLOTS_ANY_ID)
			continue;
		if (reused < delete_count) {
			adds[i].id = deletes[reused++].id;
			continue;
		}
		while (slice * 64 < table->capacity && (memslots_used(table)[slice] | taken) == ~0ull) {
			slice++;
			taken = 0;
		}
		adds[i].id = slice * 64;
		if (slice * 64 < table->capacity)
			adds[i].id += (uint32_t)__builtin_ctzll(~(memslots_used(table)[slice] | taken));
		if (adds[i].id >= table->capacity)
			return -MEMSLOTS_ENOSPC;
		taken |= 1ull << adds[i].id % 64;
	}
	return 0;
}

int32_t memslots_map_apply(struct memslots_map *map, struct memslots_range *deletes, uint32_t delete_count,
			   struct memslots_range *adds, uint32_t add_count)
{
	uint32_t idle = !map->active, i;
	struct memslots_table *table = copy_of(map, idle);
	int32_t result;

	for (i = 0; i < delete_count; i++) {
		int32_t id = memslots_match(table, &deletes[i]);

		if (id < 0)
			return id;
		if (i > 0 && deletes[i - 1].gpa >= deletes[i].gpa)
			return -MEMSLOTS_EINVAL;
		deletes[i].id = (uint32_t)id;
	}
	for (i = 0; i < add_count; i++) {
		if (adds[i].size == 0 || adds[i].gpa + adds[i].size < adds[i].gpa)
			return -MEMSLOTS_EINVAL;
		if (i > 0 && adds[i - 1].gpa >= adds[i].gpa)
			return -MEMSLOTS_EINVAL;
		if (adds[i].id != MEMSLOTS_ANY_ID && adds[i].id >= table->capacity)
			return -MEMSLOTS_EINVAL;
	}
	if (collides(table, deletes, delete_count, adds, add_count))
		return -MEMSLOTS_EEXIST;
	if (table->count - delete_count + add_count > table->capacity)
		return -MEMSLOTS_ENOSPC;
	result = assign_ids(table, deletes, delete_count, adds, add_count);
	if (result < 0)
		return result;
	change(table, deletes, delete_count, adds, add_count);
	__atomic_store_n(&map->active, idle, __ATOMIC_RELEASE);
	change(copy_of(map, !idle), deletes, delete_count, adds, add_count);
	return 0;
}

/* Cuts `add` where the commit since which its addresses are backed differs: `out` has room for `room` pieces.
 * The number of pieces, or -ENOSPC. */
static int32_t split_by_since(const struct memslots_table *table, const struct memslots_range *add, uint32_t commit,
			      struct memslots_range *out, uint32_t room)
{
	uint64_t at = add->gpa, end = memslots_end(add);
	uint32_t position = memslots_upper(table, at), pieces = 0;

	if (position > 0)
		position--;
	while (at < end) {
		uint64_t stop = end;
		uint32_t since = commit;

		while (position < table->count) {
			const struct memslots_range *old = &memslots_ranges(table)[memslots_order(table)[position]];

			if (memslots_end(old) <= at || !(old->flags & MEMSLOTS_BACKED)) {
				position++;
				continue;
			}
			if (old->gpa > at) {
				stop = old->gpa < end ? old->gpa : end;
			} else {
				since = old->since;
				stop = memslots_end(old) < end ? memslots_end(old) : end;
			}
			break;
		}
		if (!(add->flags & MEMSLOTS_BACKED)) {
			since = commit;
			stop = end;
		}
		if (pieces > 0 && out[pieces - 1].since == since) {
			out[pieces - 1].size += stop - at;
		} else {
			if (pieces == room)
				return -MEMSLOTS_ENOSPC;
			out[pieces] = *add;
			out[pieces].gpa = at;
			out[pieces].size = stop - at;
			out[pieces].host += at - add->gpa;
			out[pieces].offset += at - add->gpa;
			out[pieces].since = since;
			out[pieces].id = MEMSLOTS_ANY_ID;
			pieces++;
		}
		at = stop;
	}
	return (int32_t)pieces;
}

/* Section deletes name whole sections; the map may hold them in pieces. Writes the pieces to `out`. */
static int32_t gather_pieces(const struct memslots_table *table, const struct memslots_range *section,
			     struct memslots_range *out, uint32_t room)
{
	uint64_t at = section->gpa;
	uint32_t position = memslots_upper(table, at), pieces = 0;

	if (position == 0)
		return -MEMSLOTS_ENOENT;
	for (position--; at < memslots_end(section); position++, pieces++) {
		if (position == table->count)
			return -MEMSLOTS_ENOENT;
		if (pieces == room)
			return -MEMSLOTS_ENOSPC;
		out[pieces] = memslots_ranges(table)[memslots_order(table)[position]];
		if (out[pieces].gpa != at)
			return -MEMSLOTS_ENOENT;
		at = memslots_end(&out[pieces]);
	}
	return at == memslots_end(section) ? (int32_t)pieces : -MEMSLOTS_ENOENT;
}

int32_t memslots_map_commit(struct memslots_map *map, const struct memslots_range *deletes, uint32_t delete_count,
			    const struct memslots_range *adds, uint32_t add_count, struct memslots_range *scratch,
			    uint32_t scratch_capacity)
{
	const struct memslots_table *table = copy_of(map, map->active);
	uint32_t commit = map->commit + 1, delete_pieces = 0, add_pieces = 0, i;
	int32_t result;

	for (i = 0; i < delete_count; i++) {
		result = gather_pieces(table, &deletes[i], scratch + delete_pieces, scratch_capacity - delete_pieces);
		if (result < 0)
			return result;
		delete_pieces += (uint32_t)result;
	}
	for (i = 0; i < add_count; i++) {
		uint32_t used = delete_pieces + add_pieces;

		if (adds[i].flags & MEMSLOTS_LOGGING_ONLY)
			continue;
		result = split_by_since(table, &adds[i], commit, scratch + used, scratch_capacity - used);
		if (result < 0)
			return result;
		add_pieces += (uint32_t)result;
	}
	result = memslots_map_apply(map, scratch, delete_pieces, scratch + delete_pieces, add_pieces);
	if (result == 0)
		__atomic_store_n(&map->commit, commit, __ATOMIC_RELEASE);
	return result;
}
