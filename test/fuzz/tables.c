/* Tables of ranges against a plain array that is searched from end to end. */
#include "fuzz.h"

/* Several levels of keys, and some batches that fill no vector. */
#define IDS 200u
#define BATCH 37u
#define UNIT 0x1000u

struct model {
	struct memslots_range ranges[IDS];
	uint8_t used[IDS];
	uint32_t capacity;
};

static int32_t holder(const struct model *model, uint64_t gpa)
{
	for (uint32_t id = 0; id < model->capacity; id++)
		if (model->used[id] && gpa - model->ranges[id].gpa < model->ranges[id].size)
			return (int32_t)id;
	return -MEMSLOTS_ENOENT;
}

/* The lowest range that ends above `gpa`. */
static int32_t at_or_above(const struct model *model, uint64_t gpa)
{
	int32_t best = -MEMSLOTS_ENOENT;

	for (uint32_t id = 0; id < model->capacity; id++)
		if (model->used[id] && memslots_end(&model->ranges[id]) > gpa &&
		    (best < 0 || model->ranges[id].gpa < model->ranges[best].gpa))
			best = (int32_t)id;
	return best;
}

static int32_t overlapping(const struct model *model, const struct memslots_range *range)
{
	int32_t id = at_or_above(model, range->gpa);

	return id >= 0 && model->ranges[id].gpa < memslots_end(range) ? id : -MEMSLOTS_ENOENT;
}

static int32_t lowest_free(const struct model *model)
{
	for (uint32_t id = 0; id < model->capacity; id++)
		if (!model->used[id])
			return (int32_t)id;
	return -MEMSLOTS_ENOSPC;
}

static int32_t insert(struct model *model, const struct memslots_range *range)
{
	int32_t id = lowest_free(model);

	if (range->size == 0 || range->gpa + range->size < range->gpa)
		return -MEMSLOTS_EINVAL;
	if (id < 0)
		return id;
	if (range->id != MEMSLOTS_ANY_ID) {
		if (range->id >= model->capacity || model->used[range->id])
			return -MEMSLOTS_EINVAL;
		id = (int32_t)range->id;
	}
	if (overlapping(model, range) >= 0)
		return -MEMSLOTS_EEXIST;
	model->ranges[id] = *range;
	model->ranges[id].id = (uint32_t)id;
	model->used[id] = 1;
	return id;
}

static void compare(const struct memslots_table *table, const struct model *model)
{
	struct memslots_range list[IDS];
	int32_t count = memslots_list(table, list), expected = 0;

	for (uint32_t id = 0; id < model->capacity; id++)
		expected += model->used[id];
	CHECK(count == expected);
	for (int32_t i = 0; i < count; i++) {
		CHECK(i == 0 || memslots_end(&list[i - 1]) <= list[i].gpa);
		CHECK(memcmp(&list[i], &model->ranges[list[i].id], sizeof(list[i])) == 0);
	}
}

/* Half the time close to a range that is there. */
static uint64_t read_gpa(struct input *input, const struct model *model)
{
	uint32_t choice = take(input);
	uint64_t gpa;

	if (choice & 1)
		gpa = model->ranges[take(input) % model->capacity].gpa + (choice >> 1) % 32 * (UNIT / 2);
	else
		gpa = (take(input) << 8 | take(input)) * (uint64_t)(UNIT / 2);
	return gpa;
}

static struct memslots_range read_range(struct input *input, const struct model *model)
{
	struct memslots_range range;

	memset(&range, 0, sizeof(range));
	range.gpa = read_gpa(input, model);
	range.size = take(input) % 16 * UNIT;
	/* Now and then up to the end of all addresses, and past it. */
	if (range.gpa == 0x1000 * UNIT)
		range.gpa = ~0ull - UNIT * 8 + 1;
	range.host = range.gpa + 0x100000000ull;
	range.region = take(input);
	range.id = range.region < 64 ? range.region * 3 : MEMSLOTS_ANY_ID;
	return range;
}

/* Many at once, evenly spaced, so that tables get deep. */
static void insert_many(struct memslots_table *table, struct model *model, struct input *input)
{
	uint64_t gpa = (take(input) << 8) * (uint64_t)UNIT, step = (1 + take(input) % 8) * UNIT;

	for (uint32_t count = take(input) % 64; count > 0; count--, gpa += step) {
		struct memslots_range range = {.gpa = gpa, .size = UNIT, .id = MEMSLOTS_ANY_ID};

		CHECK(memslots_insert(table, &range) == insert(model, &range));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, data + size};
	struct model model = {.capacity = 1 + take(&input) % IDS};
	struct memslots_table *table = zeroed((size_t)memslots_table_size(model.capacity));

	CHECK(memslots_table_init(table, model.capacity) == 0);
	while (input.next < input.end) {
		uint32_t what = take(&input) % 8;
		uint64_t gpa = read_gpa(&input, &model);
		struct memslots_range range;

		switch (what) {
		case 0:
			insert_many(table, &model, &input);
			break;
		case 1:
		case 2:
			range = read_range(&input, &model);
			CHECK(memslots_insert(table, &range) == insert(&model, &range));
			break;
		case 3: {
			uint32_t id = take(&input) % IDS;
			int32_t expected = id < model.capacity && model.used[id] ? 0 : -MEMSLOTS_ENOENT;

			CHECK(memslots_remove(table, id) == expected);
			if (expected == 0)
				model.used[id] = 0;
			break;
		}
		case 4:
			CHECK(memslots_find(table, (double)gpa) == holder(&model, gpa));
			CHECK(memslots_find_at_or_above(table, (double)gpa) == at_or_above(&model, gpa));
			break;
		case 5: {
			int32_t id, expected;

			range = read_range(&input, &model);
			id = holder(&model, range.gpa);
			expected = id >= 0 && model.ranges[id].gpa == range.gpa && model.ranges[id].size == range.size;
			CHECK(memslots_match(table, &range) == (expected ? id : -MEMSLOTS_ENOENT));
			if (range.gpa + range.size > range.gpa)
				CHECK(memslots_overlap(table, &range) == overlapping(&model, &range));
			break;
		}
		case 6: {
			uint32_t paths[] = {MEMSLOTS_PATH_SCALAR, (uint32_t)memslots_best_path()};
			uint32_t count = take(&input) % BATCH;
			uint64_t gpas[BATCH];
			int32_t ids[BATCH], found = 0;

			for (uint32_t i = 0; i < count; i++) {
				gpas[i] = read_gpa(&input, &model);
				found += holder(&model, gpas[i]) >= 0;
			}
			for (uint32_t path = 0; path < 2; path++) {
				CHECK(memslots_find_batch(table, gpas, ids, count, paths[path]) == found);
				for (uint32_t i = 0; i < count; i++)
					CHECK(ids[i] == holder(&model, gpas[i]));
			}
			break;
		}
		default:
			CHECK(memslots_free_id(table) == lowest_free(&model));
			compare(table, &model);
		}
	}
	compare(table, &model);
	free(table);
	return 0;
}
