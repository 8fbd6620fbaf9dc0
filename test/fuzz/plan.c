/*
 * The planner against an oracle that knows nothing of how plans are made: it makes a plan's calls one by one on a KVM
 * of its own, which refuses what the kernel refuses, and looks at every page after every call.
 */
#include "fuzz.h"

#define PAGES 64u
#define PAGE 0x1000ull
#define UNITS 4u /* in a page: sections needn't start or end at one */
#define UNIT (PAGE / UNITS)
#define SPACES 2u
#define MOST 96u
#define SLOTS 48u
#define OPERATIONS 256u

struct list {
	struct memslots_range items[MOST];
	uint32_t count;
};

/* What a vCPU finds at a page: `host` is 0 where nothing is mapped. */
struct page {
	uint64_t host;
	uint32_t flags;
};

struct world {
	struct memslots_table *tables[SPACES];
	/* The kernel's slots by id: size 0 where there is none. */
	struct memslots_range slots[SPACES][SLOTS];
	struct list sections; /* by address space and address */
	struct memslots_request request;
	uint64_t splits[3];
};

/* The pages that sections come to: whole ones, of those that memory backs. */
static void pages_of_sections(const struct list *sections, struct page pages[SPACES][PAGES])
{
	memset(pages, 0, sizeof(struct page) * SPACES * PAGES);
	for (uint32_t i = 0; i < sections->count; i++) {
		const struct memslots_range *section = &sections->items[i];
		uint64_t first = (section->gpa + PAGE - 1) / PAGE, end = memslots_end(section) / PAGE;

		if (!(section->flags & MEMSLOTS_BACKED))
			continue;
		for (uint64_t p = first; p < end; p++)
			pages[section->address_space][p] = (struct page){section->host + (p * PAGE - section->gpa),
									 section->flags & MEMSLOTS_KVM_FLAGS};
	}
}

static uint32_t pages_of_kernel(const struct world *world, struct page pages[SPACES][PAGES], uint32_t counts[SPACES])
{
	uint32_t all = 0;

	memset(pages, 0, sizeof(struct page) * SPACES * PAGES);
	for (uint32_t a = 0; a < SPACES; a++) {
		counts[a] = 0;
		for (uint32_t id = 0; id < SLOTS; id++) {
			const struct memslots_range *slot = &world->slots[a][id];

			for (uint64_t p = slot->gpa / PAGE; p < memslots_end(slot) / PAGE; p++)
				pages[a][p] = (struct page){slot->host + (p * PAGE - slot->gpa), slot->flags};
			counts[a] += slot->size != 0;
		}
		all += counts[a];
	}
	return all;
}

/* KVM_SET_USER_MEMORY_REGION, as strict as the kernel. */
static void make_call(struct world *world, const struct memslots_operation *operation)
{
	const struct memslots_range *wanted = &operation->slot;
	struct memslots_range *slots = world->slots[wanted->address_space], *slot = &slots[wanted->id];

	CHECK(wanted->address_space < SPACES && wanted->id < SLOTS);
	CHECK((wanted->flags & ~MEMSLOTS_KVM_FLAGS) == 0);
	switch (operation->kind) {
	case MEMSLOTS_CREATE:
		CHECK(slot->size == 0 && wanted->size > 0);
		CHECK(wanted->gpa % PAGE == 0 && wanted->size % PAGE == 0 && wanted->host % PAGE == 0);
		CHECK(wanted->size <= world->request.largest_slot);
		for (uint32_t id = 0; id < SLOTS; id++)
			CHECK(slots[id].size == 0 || memslots_end(&slots[id]) <= wanted->gpa ||
			      memslots_end(wanted) <= slots[id].gpa);
		*slot = *wanted;
		break;
	case MEMSLOTS_DELETE:
		CHECK(slot->size > 0 && slot->gpa == wanted->gpa && slot->size == wanted->size);
		memset(slot, 0, sizeof(*slot));
		break;
	case MEMSLOTS_FLAGS:
		CHECK(slot->gpa == wanted->gpa && slot->size == wanted->size && slot->host == wanted->host);
		CHECK(slot->flags == operation->old_flags);
		CHECK((slot->flags ^ wanted->flags) == MEMSLOTS_LOG_DIRTY);
		slot->flags = wanted->flags;
		break;
	default:
		CHECK(!"a known kind of call");
	}
}

/* Whether the dirty bitmap has to be read before this call. */
static int loses_bits(const struct world *world, const struct memslots_operation *operation)
{
	const struct memslots_range *slot = &world->slots[operation->slot.address_space][operation->slot.id];

	if (world->request.discard_dirty || !(slot->flags & MEMSLOTS_LOG_DIRTY))
		return 0;
	return operation->kind == MEMSLOTS_DELETE ||
	       (operation->kind == MEMSLOTS_FLAGS && !(operation->slot.flags & MEMSLOTS_LOG_DIRTY));
}

/* Makes the calls of `plan` and checks every claim it makes. */
static void execute(struct world *world, const struct memslots_plan *plan, const struct memslots_operation *operations,
		    const struct list *after)
{
	struct page before[SPACES][PAGES], wanted[SPACES][PAGES], now[SPACES][PAGES];
	uint32_t counts[SPACES], harvests = 0, by_kind[4] = {0}, i, a, p, broken = 0;
	uint64_t torn_down = 0, remapped = 0;

	pages_of_kernel(world, before, counts);
	memcpy(now, before, sizeof(now));
	pages_of_sections(after, wanted);
	for (i = 0; i < plan->operation_count; i++) {
		const struct memslots_operation *operation = &operations[i];

		CHECK(operation->harvest == (uint32_t)loses_bits(world, operation));
		harvests += operation->harvest;
		CHECK(operation->kind < 4);
		by_kind[operation->kind]++;
		if (operation->kind == MEMSLOTS_DELETE) {
			const struct memslots_range *slot = &operation->slot;

			torn_down += slot->size;
			for (p = (uint32_t)(slot->gpa / PAGE); p < memslots_end(slot) / PAGE; p++) {
				const struct page *old = &before[slot->address_space][p];
				const struct page *next = &wanted[slot->address_space][p];

				if (next->host == old->host && next->flags == old->flags)
					remapped += PAGE;
			}
		}
		make_call(world, operation);
		pages_of_kernel(world, now, counts);
		for (a = 0; a < SPACES; a++) {
			CHECK(counts[a] <= world->request.slot_limit);
			for (p = 0; p < PAGES; p++)
				broken |= before[a][p].host && wanted[a][p].host && !now[a][p].host;
		}
	}
	for (a = 0; a < SPACES; a++)
		for (p = 0; p < PAGES; p++)
			CHECK(now[a][p].host == wanted[a][p].host && now[a][p].flags == wanted[a][p].flags);
	CHECK(plan->overlap == broken);
	CHECK(plan->harvest == harvests);
	CHECK(plan->inhibit == (broken || harvests));
	CHECK(plan->creates == by_kind[MEMSLOTS_CREATE] && plan->deletes == by_kind[MEMSLOTS_DELETE]);
	CHECK(plan->flag_changes == by_kind[MEMSLOTS_FLAGS]);
	CHECK(plan->bytes_torn_down == torn_down);
	CHECK(plan->bytes_remapped == remapped);
}

/* What the tables say is what the kernel has. */
static void compare_tables(const struct world *world)
{
	for (uint32_t a = 0; a < SPACES; a++) {
		struct memslots_range list[SLOTS];
		int32_t count = memslots_list(world->tables[a], list);
		uint32_t there = 0;

		for (uint32_t id = 0; id < SLOTS; id++)
			there += world->slots[a][id].size != 0;
		CHECK(count == (int32_t)there);
		for (int32_t i = 0; i < count; i++) {
			const struct memslots_range *slot = &world->slots[a][list[i].id];

			CHECK(slot->gpa == list[i].gpa && slot->size == list[i].size && slot->host == list[i].host);
			CHECK(slot->flags == list[i].flags);
		}
	}
}

static struct memslots_range read_section(struct input *input, uint32_t address_space, uint64_t unit)
{
	uint32_t kind = take(input);
	struct memslots_range section;

	memset(&section, 0, sizeof(section));
	section.gpa = unit * UNIT;
	/* Whole pages, most of the time. */
	section.size = (1 + kind % 64) * (kind & 64 ? UNIT : PAGE);
	section.address_space = address_space;
	kind = take(input);
	section.region = 1 + kind % 4;
	if (kind & 0xe0) {
		section.flags = MEMSLOTS_BACKED;
		section.flags |= kind & 4 ? MEMSLOTS_LOG_DIRTY : 0;
		section.flags |= kind & 8 ? MEMSLOTS_READONLY : 0;
		/* Few translations, so that neighbours often continue each other. */
		section.host = ((uint64_t)(1 + kind % 2) << 40) + (kind & 16 ? PAGE : 0) + section.gpa;
	}
	return section;
}

/* A transaction of one address space, as a listener hears it; what holds afterwards goes to `after`. */
static void transact(struct input *input, const struct list *before, uint32_t address_space, struct list *deletes,
		     struct list *adds, struct list *after)
{
	uint32_t i, first = after->count;
	uint64_t unit = take(input) % 32;
	uint8_t deleted[MOST] = {0};

	for (i = 0; i < before->count; i++) {
		uint32_t choice = take(input);

		if (before->items[i].address_space != address_space)
			continue;
		deleted[i] = choice % 4 == 0;
		if (deleted[i])
			deletes->items[deletes->count++] = before->items[i];
	}
	for (i = 0; i < before->count; i++) {
		struct memslots_range section = before->items[i];

		if (section.address_space != address_space || deleted[i])
			continue;
		/* New sections below the next one that stays. */
		while (unit < PAGES * UNITS && take(input) % 3 && after->count - first < MOST / SPACES - 8) {
			struct memslots_range add = read_section(input, address_space, unit);

			if (memslots_end(&add) > section.gpa)
				break;
			adds->items[adds->count++] = add;
			after->items[after->count++] = add;
			unit = memslots_end(&add) / UNIT + take(input) % 8 * UNITS;
		}
		if (section.flags & MEMSLOTS_BACKED && take(input) % 8 == 0) {
			section.flags ^= MEMSLOTS_LOG_DIRTY;
			adds->items[adds->count] = section;
			adds->items[adds->count++].flags |= MEMSLOTS_LOGGING_ONLY;
		}
		after->items[after->count++] = section;
		unit = unit * UNIT < memslots_end(&section) ? memslots_end(&section) / UNIT : unit;
	}
	while (unit < PAGES * UNITS && take(input) % 4 && after->count - first < MOST / SPACES - 8) {
		struct memslots_range add = read_section(input, address_space, unit);

		if (memslots_end(&add) > PAGES * PAGE)
			break;
		adds->items[adds->count++] = add;
		after->items[after->count++] = add;
		unit = memslots_end(&add) / UNIT + take(input) % 8 * UNITS;
	}
}

static void step(struct world *world, struct input *input)
{
	static struct memslots_operation operations[OPERATIONS];
	static struct memslots_range scratch[8];
	struct list deletes = {.count = 0}, adds = {.count = 0}, after = {.count = 0};
	uint32_t tables[SPACES] = {0, (uint32_t)((char *)world->tables[1] - (char *)world->tables[0])}, a;
	struct memslots_plan plan;
	int32_t result;

	for (a = 0; a < SPACES; a++)
		transact(input, &world->sections, a, &deletes, &adds, &after);
	world->request.delete_count = deletes.count;
	world->request.add_count = adds.count;
	result = memslots_plan(&world->request, (char *)world->tables[0], tables, deletes.items, adds.items,
			       world->splits, &plan, operations, scratch);
	if (result == -MEMSLOTS_ENOSPC) {
		/* Refused, and nothing has changed. */
		CHECK(plan.needed > world->request.slot_limit && plan.full_address_space < SPACES);
		compare_tables(world);
		return;
	}
	CHECK(result == 0);
	execute(world, &plan, operations, &after);
	CHECK(memslots_apply((char *)world->tables[0], tables, operations, plan.operation_count) == 0);
	compare_tables(world);
	world->sections = after;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, data + size};
	static struct world world;
	int32_t bytes = memslots_table_size(SLOTS);
	uint32_t options = take(&input), split;
	char *memory = zeroed(SPACES * (size_t)bytes);

	memset(&world, 0, sizeof(world));
	for (uint32_t a = 0; a < SPACES; a++) {
		world.tables[a] = (struct memslots_table *)(memory + a * (size_t)bytes);
		CHECK(memslots_table_init(world.tables[a], SLOTS) == 0);
	}
	world.request.policy = options & 1 ? MEMSLOTS_POLICY_EXACT : MEMSLOTS_POLICY_STABLE;
	world.request.discard_dirty = options >> 1 & 1;
	world.request.largest_slot = options & 4 ? (1 + options / 64) * 4 * PAGE : PAGES * PAGE;
	world.request.page_size = PAGE;
	world.request.slot_limit = options & 8 ? 1 + take(&input) % SLOTS : SLOTS;
	world.request.operation_capacity = OPERATIONS;
	world.request.scratch_capacity = sizeof(uint64_t) * 8;
	for (split = 0; options & 16 && split < 3; split++)
		world.splits[split] = (16 * (split + 1)) * PAGE;
	world.request.split_count = split;
	while (input.next < input.end && world.sections.count < MOST - 32)
		step(&world, &input);
	free(memory);
	return 0;
}
