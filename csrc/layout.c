/*
 * Sizes, offsets and constants of slots.h as text, one `name=number` a line. TypeScript reads its layout from
 * here and nowhere else, so the two can't drift apart, and refuses to start if the two builds differ.
 */
#include "slots.h"

/* The formatter takes these braces for blocks, and would give each entry a line. */
/* clang-format off */
#define SIZE(type) {#type, sizeof(struct memslots_##type)}
#define FIELD(type, field) {#type "." #field, offsetof(struct memslots_##type, field)}
#define CONSTANT(name) {#name, MEMSLOTS_##name}

/* A record that the layouts of two compilers might disagree on would be caught here before anywhere else. */
_Static_assert(sizeof(struct memslots_range) == 64, "a range is one cache line");
_Static_assert(sizeof(struct memslots_table) == 64, "keys start on a cache line");
_Static_assert(sizeof(struct memslots_operation) == 88, "no padding at the end of an operation");
_Static_assert(sizeof(struct memslots_map) == 64, "tables of a map start on a cache line");

struct entry {
	const char *name;
	uint32_t value;
};

static const struct entry entries[] = {
	CONSTANT(MAGIC), CONSTANT(ABI_VERSION), CONSTANT(LOG_DIRTY), CONSTANT(READONLY), CONSTANT(GUEST_MEMFD),
	CONSTANT(BACKED), CONSTANT(LOGGING_ONLY), CONSTANT(ANY_ID), CONSTANT(POLICY_EXACT), CONSTANT(POLICY_STABLE), CONSTANT(CREATE),
	CONSTANT(DELETE), CONSTANT(FLAGS), CONSTANT(REASON_ADDED), CONSTANT(REASON_REMAINDER), CONSTANT(REASON_GONE),
	CONSTANT(REASON_CHANGED), CONSTANT(REASON_MERGED), CONSTANT(REASON_LOGGING), CONSTANT(PATH_SCALAR),
	CONSTANT(PATH_AVX2), CONSTANT(PATH_SIMD128),

	SIZE(range), FIELD(range, gpa), FIELD(range, size), FIELD(range, host), FIELD(range, offset),
	FIELD(range, id), FIELD(range, flags), FIELD(range, region), FIELD(range, since),
	FIELD(range, address_space), FIELD(range, guest_memfd),

	SIZE(table), FIELD(table, capacity), FIELD(table, count),

	SIZE(map), FIELD(map, commit),

	SIZE(operation), FIELD(operation, slot), FIELD(operation, kind), FIELD(operation, reason),
	FIELD(operation, old_flags), FIELD(operation, harvest), FIELD(operation, result),

	SIZE(request), FIELD(request, policy), FIELD(request, page_size), FIELD(request, largest_slot),
	FIELD(request, slot_limit), FIELD(request, discard_dirty), FIELD(request, delete_count),
	FIELD(request, add_count), FIELD(request, split_count), FIELD(request, operation_capacity),
	FIELD(request, scratch_capacity),

	SIZE(plan), FIELD(plan, operation_count), FIELD(plan, inhibit), FIELD(plan, overlap), FIELD(plan, harvest),
	FIELD(plan, creates), FIELD(plan, deletes), FIELD(plan, flag_changes), FIELD(plan, kept),
	FIELD(plan, merged), FIELD(plan, needed), FIELD(plan, full_address_space), FIELD(plan, bytes_torn_down),
	FIELD(plan, bytes_remapped),
};
/* clang-format on */

struct text {
	char *out;
	uint32_t length, capacity;
};

static void put(struct text *text, char character)
{
	if (text->length < text->capacity)
		text->out[text->length] = character;
	text->length++;
}

int32_t memslots_layout(char *out, uint32_t capacity)
{
	struct text text = {out, 0, capacity};
	uint32_t i;

	for (i = 0; i < sizeof(entries) / sizeof(entries[0]); i++) {
		uint32_t value = entries[i].value, divisor = 1000000000;
		const char *name;

		for (name = entries[i].name; *name; name++)
			put(&text, *name);
		put(&text, '=');
		while (divisor > 1 && value / divisor == 0)
			divisor /= 10;
		for (; divisor > 0; divisor /= 10)
			put(&text, (char)('0' + value / divisor % 10));
		put(&text, '\n');
	}
	return text.length <= capacity ? (int32_t)text.length : -MEMSLOTS_ENOSPC;
}

int32_t memslots_nothing(void)
{
	return 0;
}
