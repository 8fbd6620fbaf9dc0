/* Slot tables after KVM has accepted operations of a plan: see slots.h. */
#include "slots.h"

/* Operations of one kind and address space that ascend are applied in one pass over the table. */
static uint32_t length_of_run(const struct memslots_operation *operations, uint32_t count)
{
	uint32_t length = 1;

	while (length < count && operations[length].kind == operations[0].kind &&
	       operations[length].slot.address_space == operations[0].slot.address_space &&
	       operations[length].slot.gpa > operations[length - 1].slot.gpa)
		length++;
	return length;
}

int32_t memslots_apply(char *base, const uint32_t tables[2], const struct memslots_operation *operations,
		       uint32_t count)
{
	uint32_t done = 0;

	while (done < count) {
		const struct memslots_operation *first = &operations[done];
		struct memslots_table *table = (struct memslots_table *)(base + tables[first->slot.address_space]);
		uint32_t length = length_of_run(first, count - done), stride = sizeof(*first), i;

		switch (first->kind) {
		case MEMSLOTS_DELETE:
			memslots_splice(table, first, length, NULL, 0, stride);
			break;
		case MEMSLOTS_CREATE:
			memslots_splice(table, NULL, 0, first, length, stride);
			break;
		case MEMSLOTS_FLAGS:
			for (i = 0; i < length; i++)
				memslots_set_flags(table, first[i].slot.id, first[i].slot.flags);
			break;
		default:
			return -MEMSLOTS_EINVAL;
		}
		done += length;
	}
	return 0;
}
