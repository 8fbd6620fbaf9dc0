/* Rivals of the core: see rivals.h. */
#include "rivals.h"

#include "../../csrc/slots.h"

int32_t rival_find_linear(const struct rival_slot *slots, uint32_t slot_count, const uint64_t *gpas, int32_t *ids,
			  uint32_t count)
{
	int32_t found = 0;
	uint32_t i, j;

	for (i = 0; i < count; i++) {
		ids[i] = -2;
		for (j = 0; j < slot_count; j++) {
			if (gpas[i] - slots[j].gpa < slots[j].size) {
				ids[i] = (int32_t)slots[j].id;
				found++;
				break;
			}
		}
	}
	return found;
}

static inline int32_t answer(const uint64_t *ends, const uint32_t *slot_ids, uint32_t position, uint64_t gpa)
{
	return position > 0 && gpa < ends[position - 1] ? (int32_t)slot_ids[position - 1] : -2;
}

int32_t rival_find_branchy(const uint64_t *starts, const uint64_t *ends, const uint32_t *slot_ids, uint32_t slot_count,
			   const uint64_t *gpas, int32_t *ids, uint32_t count)
{
	int32_t found = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		uint32_t low = 0, high = slot_count;

		while (low < high) {
			uint32_t middle = low + (high - low) / 2;

			if (starts[middle] <= gpas[i])
				low = middle + 1;
			else
				high = middle;
		}
		ids[i] = answer(ends, slot_ids, low, gpas[i]);
		found += ids[i] >= 0;
	}
	return found;
}

/* gcc 12 and clang 14 turn `at <= gpa ? base + half : base` into a branch, which makes this search as slow as the one
 * above, and a product into a multiplication. So that nobody can call the rival weak, the instruction is written out. */
static inline const uint64_t *advance(const uint64_t *base, uint64_t half, uint64_t gpa)
{
#if defined(__x86_64__)
	const uint64_t *next = base + half;

	__asm__("cmpq %2, -8(%1)\n\tcmovbe %1, %0" : "+r"(base) : "r"(next), "r"(gpa) : "cc", "memory");
	return base;
#else
	return base + (base[half - 1] <= gpa) * half;
#endif
}

int32_t rival_find_branchless(const uint64_t *starts, const uint64_t *ends, const uint32_t *slot_ids,
			      uint32_t slot_count, const uint64_t *gpas, int32_t *ids, uint32_t count)
{
	int32_t found = 0;
	uint32_t i;

	for (i = 0; i < count; i++) {
		const uint64_t *base = starts;
		uint64_t length = slot_count;

		while (length > 1) {
			uint64_t half = length / 2;

			base = advance(base, half, gpas[i]);
			length -= half;
		}
		ids[i] = answer(ends, slot_ids, (uint32_t)(base - starts) + (*base <= gpas[i]), gpas[i]);
		found += ids[i] >= 0;
	}
	return found;
}

int32_t rival_find_singly(const void *table, const double *gpas, uint32_t count)
{
	int32_t found = 0;
	uint32_t i;

	for (i = 0; i < count; i++)
		found += memslots_find(table, gpas[i]) >= 0;
	return found;
}

int32_t rival_look_up_singly(const void *map, const double *gpas, uint32_t count, void *out)
{
	int32_t found = 0;
	uint32_t i;

	for (i = 0; i < count; i++)
		found += memslots_map_lookup(map, gpas[i], out) >= 0;
	return found;
}

static int overlap(const struct rival_slot *deletes, uint32_t delete_count, const struct rival_slot *adds,
		   uint32_t add_count)
{
	uint32_t d = 0, a = 0;

	while (d < delete_count && a < add_count) {
		if (deletes[d].gpa < adds[a].gpa + adds[a].size && adds[a].gpa < deletes[d].gpa + deletes[d].size)
			return 1;
		if (deletes[d].gpa < adds[a].gpa)
			d++;
		else
			a++;
	}
	return 0;
}

static struct rival_slot *slot_of(struct rival_slot *slots, uint32_t slot_count, uint64_t gpa, uint64_t size)
{
	uint32_t i;

	for (i = 0; i < slot_count; i++)
		if (slots[i].gpa == gpa && slots[i].size == size)
			return &slots[i];
	return NULL;
}

static struct rival_slot *free_slot(struct rival_slot *slots, uint32_t slot_count)
{
	uint32_t i;

	for (i = 0; i < slot_count; i++)
		if (slots[i].size == 0)
			return &slots[i];
	return NULL;
}

int32_t rival_plan(struct rival_slot *slots, uint32_t slot_count, const struct rival_slot *deletes,
		   uint32_t delete_count, const struct rival_slot *adds, uint32_t add_count,
		   struct rival_slot *operations)
{
	uint32_t inhibit = overlap(deletes, delete_count, adds, add_count) ? 1u << 31 : 0, i;

	for (i = 0; i < delete_count; i++) {
		struct rival_slot *slot = slot_of(slots, slot_count, deletes[i].gpa, deletes[i].size);

		if (!slot)
			return -1;
		*operations = *slot;
		operations++->size = 0;
		slot->size = 0;
	}
	for (i = 0; i < add_count; i++) {
		struct rival_slot *slot = free_slot(slots, slot_count);
		uint32_t id;

		if (!slot)
			return -1;
		id = slot->id;
		*slot = adds[i];
		slot->id = id;
		*operations++ = *slot;
	}
	return (int32_t)(inhibit | (delete_count + add_count));
}

int32_t rival_gate(uint32_t *word, uint32_t count)
{
	uint32_t i, entered = 0;

	for (i = 0; i < count; i++) {
		uint32_t seen = __atomic_load_n(word, __ATOMIC_SEQ_CST);

		if (seen >> 16)
			break;
		if (!__atomic_compare_exchange_n(word, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		entered++;
		__atomic_sub_fetch(word, 1, __ATOMIC_SEQ_CST);
	}
	return (int32_t)entered;
}
