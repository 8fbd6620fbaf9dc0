/* Slot tables after KVM has accepted operations of a plan: see slots.h. */
#include "slots.h"

/* How many of the `count` operations are of `kind` and `address_space`, and ascend: they are applied in one pass. */
static uint32_t length_of_run(const struct memslots_operation *operations, uint32_t count, uint32_t kind,
			      uint32_t address_space)
{
	uint32_t length = 0;

	while (length < count && operations[length].kind == kind &&
	       operations[length].slot.address_space == address_space &&
	       (length == 0 || operations[length].slot.gpa > operations[length - 1].slot.gpa))
		length++;
	return length;
}

int32_t memslots_apply(char *base, const uint32_t tables[2], const struct memslots_operation *operations,
		       uint32_t count)
{
	uint32_t done = 0;

	while (done < count) {
		const struct memslots_operation *first = &operations[done];
		uint32_t address_space = first->slot.address_space, left = count - done, deletes, creates;
		struct memslots_table *table = (struct memslots_table *)(base + tables[address_space]);

		if (first->kind == MEMSLOTS_FLAGS) {
			memslots_set_flags(table, first->slot.id, first->slot.flags);
			done++;
			continue;
		}
		/* Together, since what replaces a slot mostly leaves the keys around it in their place. */
		deletes = length_of_run(first, left, MEMSLOTS_DELETE, address_space);
		creates = length_of_run(first + deletes, left - deletes, MEMSLOTS_CREATE, address_space);
		if (deletes + creates == 0)
			return -MEMSLOTS_EINVAL;
		memslots_splice(table, first, deletes, first + deletes, creates, sizeof(*first));
		done += deletes + creates;
	}
	return 0;
}
