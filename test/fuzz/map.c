/* Maps of sections against an array with one entry for each page. */
#include "fuzz.h"

#define PAGES 64u
#define PAGE 0x1000ull
#define MOST 64u

struct page {
	uint32_t present, flags, region, since;
	uint64_t host, offset;
};

struct model {
	struct memslots_range sections[MOST];
	uint32_t count;
	struct page pages[PAGES];
};

static void compare(const struct memslots_map *map, const struct model *model)
{
	for (uint32_t i = 0; i < PAGES; i++) {
		const struct page *page = &model->pages[i];
		uint64_t gpa = i * PAGE + i;
		struct memslots_range range;
		int32_t result = memslots_map_lookup(map, (double)gpa, &range);

		CHECK(result == (page->present ? 0 : -MEMSLOTS_ENOENT));
		if (!page->present)
			continue;
		CHECK(range.flags == page->flags && range.region == page->region);
		CHECK(range.since == page->since);
		CHECK(range.host + (gpa - range.gpa) == page->host + i);
		CHECK(range.offset + (gpa - range.gpa) == page->offset + i);
	}
}

static struct memslots_range read_section(struct input *input, uint64_t gpa)
{
	uint32_t kind = take(input);
	struct memslots_range range;

	memset(&range, 0, sizeof(range));
	range.gpa = gpa;
	range.size = (1 + take(input) % 12) * PAGE;
	range.region = kind % 8;
	range.offset = (kind / 8 % 4) * PAGE;
	if (kind < 192) {
		range.flags = MEMSLOTS_BACKED | (kind & 1 ? MEMSLOTS_READONLY : 0);
		range.host = 0x7000000000ull + gpa;
	}
	range.id = MEMSLOTS_ANY_ID;
	return range;
}

/* One commit: what is deleted, then what is added. Changes the model if C took it. */
static void commit(struct memslots_map *map, struct model *model, struct input *input)
{
	struct memslots_range deletes[MOST], adds[MOST], scratch[4 * MOST];
	struct model next = {.count = 0};
	uint32_t delete_count = 0, add_count = 0, number = map->commit + 1;
	int32_t result, collides = 0;

	for (uint32_t i = 0; i < model->count; i++) {
		if (take(input) % 4 == 0)
			deletes[delete_count++] = model->sections[i];
		else
			next.sections[next.count++] = model->sections[i];
	}
	memcpy(next.pages, model->pages, sizeof(next.pages));
	for (uint32_t i = 0; i < delete_count; i++)
		for (uint64_t p = deletes[i].gpa / PAGE; p < memslots_end(&deletes[i]) / PAGE; p++)
			memset(&next.pages[p], 0, sizeof(next.pages[p]));
	for (uint64_t at = take(input) % 16; at < PAGES && add_count < 8 && take(input) % 4;) {
		struct memslots_range add = read_section(input, at * PAGE);
		uint64_t end = memslots_end(&add) / PAGE;

		if (end > PAGES)
			break;
		for (uint64_t p = at; p < end; p++) {
			const struct page *old = &model->pages[p];
			int stays = old->present && old->flags & add.flags & MEMSLOTS_BACKED;
			uint64_t inside = (p - at) * PAGE;

			collides |= next.pages[p].present != 0;
			next.pages[p] = (struct page){.present = 1,
						      .flags = add.flags,
						      .region = add.region,
						      .since = stays ? old->since : number,
						      .host = add.host + inside,
						      .offset = add.offset + inside};
		}
		adds[add_count++] = add;
		next.sections[next.count++] = add;
		at = end + take(input) % 8;
	}
	/* The model's list ascends, as listeners' deletes do. */
	for (uint32_t i = 1; i < next.count; i++)
		for (uint32_t j = i; j > 0 && next.sections[j - 1].gpa > next.sections[j].gpa; j--) {
			struct memslots_range swapped = next.sections[j];

			next.sections[j] = next.sections[j - 1];
			next.sections[j - 1] = swapped;
		}
	result = memslots_map_commit(map, deletes, delete_count, adds, add_count, scratch, 4 * MOST);
	CHECK(result == (collides ? -MEMSLOTS_EEXIST : 0));
	if (result == 0)
		*model = next;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, data + size};
	struct model model = {.count = 0};
	struct memslots_map *map = zeroed((size_t)memslots_map_size(4 * MOST));

	CHECK(memslots_map_init(map, 4 * MOST) == 0);
	while (input.next < input.end && model.count < MOST - 8) {
		commit(map, &model, &input);
		compare(map, &model);
	}
	free(map);
	return 0;
}
