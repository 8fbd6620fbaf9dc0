/*
 * The planner: from a transaction's deleted and added sections to calls of KVM_SET_USER_MEMORY_REGION.
 *
 * One sweep over an address space walks three sorted lists side by side: deleted sections, added sections and
 * slots. A slot that a section touches is kept or deleted; what is to be mapped and isn't covered by a kept
 * slot comes out as *pieces*, in address order. Pieces that continue each other join into a *run*, and a run
 * becomes one or more creates.
 *
 * The sweep runs twice: once to count (so that it is known whether vCPUs must be inhibited, hence in which
 * order the operations go, and whether there are enough slots), once to write the operations down.
 */
#include <string.h>

#include "slots.h"

#define NOWHERE UINT64_MAX
#define ADDRESS_SPACES 2u

/* One of the transaction's lists, for one address space: `low` to `high` is what is left of its first section. */
struct cursor {
	const struct memslots_range *next, *end;
	uint64_t low, high;
	uint32_t page_size;
};

/* Where the operations of one kind go; only counted while `operations` is NULL. */
struct sink {
	struct memslots_operation *operations;
	uint32_t count;
};

struct sweep {
	const struct memslots_request *request;
	const struct memslots_table *table;
	const uint64_t *split_points;
	struct cursor deletes, adds;
	uint32_t address_space;
	/* Slots of at most this many bytes may be torn down to be merged with a neighbour; 0: none. */
	uint64_t merge_below;
	/* Ids that no create may take: a copy of the table's, without the deleted slots' if those go first. */
	uint64_t *used;
	uint32_t first_free_word;

	struct memslots_range run;
	uint32_t run_reason;
	const struct memslots_range *run_source; /* the added section it comes from, or NULL */
	const struct memslots_range *run_kept;   /* the run is this slot and nothing else, so far */

	int binds_memfd; /* some create has a guest_memfd */
	struct memslots_plan *plan;
	struct sink flags, removals, creates;
};

/* A slot is whole pages: the start is rounded up, the end down, and what is cut off traps. Sections that no
 * host memory backs have no slot. */
static void load(struct cursor *cursor)
{
	for (; cursor->next < cursor->end; cursor->next++) {
		uint64_t mask = cursor->page_size - 1;

		cursor->low = (cursor->next->gpa + mask) & ~mask;
		cursor->high = memslots_end(cursor->next) & ~mask;
		if (cursor->next->flags & MEMSLOTS_BACKED && cursor->low < cursor->high)
			return;
	}
	cursor->low = cursor->high = NOWHERE;
}

/* Forgets everything below `to`. */
static void skip(struct cursor *cursor, uint64_t to)
{
	while (cursor->low < to) {
		if (to < cursor->high) {
			cursor->low = to;
		} else {
			cursor->next++;
			load(cursor);
		}
	}
}

static struct cursor cursor_over(const struct memslots_range *list, uint32_t count, uint32_t address_space,
				 uint32_t page_size)
{
	struct cursor cursor = {list, list + count, 0, 0, page_size};

	while (cursor.next < cursor.end && cursor.next->address_space < address_space)
		cursor.next++;
	while (cursor.end > cursor.next && cursor.end[-1].address_space > address_space)
		cursor.end--;
	load(&cursor);
	return cursor;
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Whether `b` at its GPA is the same translation as `a` would be there, dirty logging aside. */
static int same_translation(const struct memslots_range *a, const struct memslots_range *b)
{
	if ((a->flags ^ b->flags) & (MEMSLOTS_KVM_FLAGS & ~MEMSLOTS_LOG_DIRTY))
		return 0;
	if (a->host - a->gpa != b->host - b->gpa)
		return 0;
	return !(a->flags & MEMSLOTS_GUEST_MEMFD) ||
	       (a->guest_memfd == b->guest_memfd && a->offset - a->gpa == b->offset - b->gpa);
}

/* `range` narrowed to [low, high). */
static struct memslots_range part(const struct memslots_range *range, uint64_t low, uint64_t high)
{
	struct memslots_range result = *range;

	result.host += low - range->gpa;
	result.offset += range->flags & MEMSLOTS_GUEST_MEMFD ? low - range->gpa : 0;
	result.gpa = low;
	result.size = high - low;
	return result;
}

static void emit(struct sink *sink, uint32_t kind, uint32_t reason, const struct memslots_range *slot,
		 uint32_t old_flags, uint32_t harvest)
{
	if (sink->operations) {
		struct memslots_operation *operation = &sink->operations[sink->count];

		memset(operation, 0, sizeof(*operation));
		operation->slot = *slot;
		operation->kind = kind;
		operation->reason = reason;
		operation->old_flags = old_flags;
		operation->harvest = harvest;
	}
	sink->count++;
}

static void emit_delete(struct sweep *sweep, const struct memslots_range *slot, uint32_t reason)
{
	uint32_t harvest = slot->flags & MEMSLOTS_LOG_DIRTY && !sweep->request->discard_dirty;

	emit(&sweep->removals, MEMSLOTS_DELETE, reason, slot, slot->flags, harvest);
	if (!sweep->removals.operations)
		sweep->used[slot->id / 64] &= ~(1ull << slot->id % 64);
	sweep->plan->bytes_torn_down += slot->size;
	sweep->plan->harvest += harvest;
}

static void emit_flags(struct sweep *sweep, const struct memslots_range *slot, uint32_t flags)
{
	uint32_t harvest = slot->flags & ~flags & MEMSLOTS_LOG_DIRTY && !sweep->request->discard_dirty;
	struct memslots_range changed = *slot;

	changed.flags = flags;
	emit(&sweep->flags, MEMSLOTS_FLAGS, MEMSLOTS_REASON_LOGGING, &changed, slot->flags, harvest);
	sweep->plan->harvest += harvest;
}

static uint32_t take_id(struct sweep *sweep)
{
	uint32_t words = (sweep->table->capacity + 63) / 64, id;

	while (sweep->first_free_word < words && sweep->used[sweep->first_free_word] == ~0ull)
		sweep->first_free_word++;
	if (sweep->first_free_word == words)
		return MEMSLOTS_ANY_ID;
	id = sweep->first_free_word * 64 + (uint32_t)__builtin_ctzll(~sweep->used[sweep->first_free_word]);
	sweep->used[id / 64] |= 1ull << id % 64;
	return id;
}

/* The first split point above `gpa`. */
static uint64_t split_after(const struct sweep *sweep, uint64_t gpa)
{
	uint32_t i;

	if (sweep->request->policy != MEMSLOTS_POLICY_STABLE || sweep->merge_below)
		return NOWHERE;
	for (i = 0; i < sweep->request->split_count; i++)
		if (sweep->split_points[i] > gpa)
			return sweep->split_points[i];
	return NOWHERE;
}

static void finish_run(struct sweep *sweep)
{
	struct memslots_range *run = &sweep->run;
	uint64_t at = run->gpa, end = run->gpa + run->size;

	if (sweep->run_kept) {
		if (run->flags != sweep->run_kept->flags)
			emit_flags(sweep, sweep->run_kept, run->flags);
		at = end;
	}
	while (at < end) {
		uint64_t stop = end;
		struct memslots_range slot;

		if (stop - at > sweep->request->largest_slot)
			stop = at + sweep->request->largest_slot;
		stop = least(stop, split_after(sweep, at));
		slot = part(run, at, stop);
		slot.id = sweep->creates.operations ? take_id(sweep) : 0;
		emit(&sweep->creates, MEMSLOTS_CREATE, sweep->run_reason, &slot, 0, 0);
		sweep->binds_memfd |= (slot.flags & MEMSLOTS_GUEST_MEMFD) != 0;
		at = stop;
	}
	run->size = 0;
	sweep->run_kept = NULL;
}

/* A slot that could stay goes, to come back as part of the run. */
static void tear_down(struct sweep *sweep, const struct memslots_range *slot)
{
	emit_delete(sweep, slot, MEMSLOTS_REASON_MERGED);
	sweep->plan->overlap = 1;
	sweep->plan->bytes_remapped += slot->flags == sweep->run.flags ? slot->size : 0;
	sweep->plan->merged++;
}

/* Extends the run by `piece` if it continues it. */
static int join(struct sweep *sweep, const struct memslots_range *piece, uint32_t reason)
{
	struct memslots_range *run = &sweep->run;

	if (!run->size || memslots_end(run) != piece->gpa || run->flags != piece->flags ||
	    !same_translation(run, piece))
		return 0;
	if (sweep->run_kept) {
		tear_down(sweep, sweep->run_kept);
		sweep->run_kept = NULL;
	}
	run->size += piece->size;
	if (sweep->run_reason < reason)
		sweep->run_reason = reason;
	return 1;
}

static void start_run(struct sweep *sweep, const struct memslots_range *piece, uint32_t reason)
{
	finish_run(sweep);
	sweep->run = *piece;
	sweep->run_reason = reason;
}

/* Maps [low, high) of `range`, for no kept slot does. `source` tells sections apart where slots mirror them. */
static void push_piece(struct sweep *sweep, const struct memslots_range *range, uint64_t low, uint64_t high,
		       uint32_t reason, const struct memslots_range *source)
{
	struct memslots_range piece = part(range, low, high);
	int may_join = sweep->request->policy == MEMSLOTS_POLICY_STABLE || sweep->run_source == source;

	piece.flags &= MEMSLOTS_KVM_FLAGS;
	if (!may_join || !join(sweep, &piece, reason))
		start_run(sweep, &piece, reason);
	sweep->run_source = source;
}

/* A small slot that could stay with these flags, while slots are short: it stays unless a neighbour continues it. */
static void offer_slot(struct sweep *sweep, const struct memslots_range *slot, uint32_t flags)
{
	struct memslots_range piece = *slot;

	piece.flags = flags;
	if (join(sweep, &piece, MEMSLOTS_REASON_MERGED)) {
		tear_down(sweep, slot);
	} else {
		start_run(sweep, &piece, MEMSLOTS_REASON_MERGED);
		sweep->run_kept = slot;
	}
}

/* What the sections make of a slot. */
struct verdict {
	int keep;
	uint32_t flags;                     /* to keep it with */
	uint32_t reason;                    /* not to keep it */
	uint64_t changed_low, changed_high; /* all that changes lies between these two */
};

/* Reads the sections ahead without moving on. */
static struct verdict judge(const struct sweep *sweep, const struct memslots_range *slot)
{
	struct cursor deletes = sweep->deletes, adds = sweep->adds;
	uint64_t at = slot->gpa, end = memslots_end(slot), stop;
	struct verdict verdict = {1, slot->flags, MEMSLOTS_REASON_GONE, NOWHERE, 0};
	uint64_t logged = 0; /* bytes to be logged, of those that stay mapped */
	uint64_t mapped = 0;

	if (sweep->request->policy == MEMSLOTS_POLICY_EXACT && deletes.low < end)
		verdict.keep = 0;
	for (; at < end; at = stop) {
		uint32_t wanted = slot->flags;
		int same = 1;

		skip(&adds, at);
		skip(&deletes, at);
		stop = least(adds.low == at ? adds.high : adds.low, end);
		if (adds.low == at) {
			wanted = adds.next->flags;
			same = same_translation(slot, adds.next);
		} else if (deletes.low == at) {
			stop = least(deletes.high, stop);
			same = 0;
		} else {
			stop = least(deletes.low, stop);
		}
		verdict.keep &= same;
		if (!same || (wanted ^ slot->flags) & MEMSLOTS_LOG_DIRTY) {
			verdict.changed_low = least(verdict.changed_low, at);
			verdict.changed_high = stop;
		}
		if (same || adds.low == at)
			mapped += stop - at;
		if (same && wanted & MEMSLOTS_LOG_DIRTY)
			logged += stop - at;
	}
	if (mapped)
		verdict.reason = MEMSLOTS_REASON_CHANGED;
	/* The flags call is for whole slots. */
	if (logged != 0 && logged != slot->size)
		verdict.keep = 0;
	verdict.flags = (slot->flags & ~MEMSLOTS_LOG_DIRTY) | (logged ? MEMSLOTS_LOG_DIRTY : 0);
	return verdict;
}

/*
 * Where memory was reshaped once it is reshaped again, mostly close by and, in the recordings of PCs, below: above
 * lies the bulk of RAM. So what stays of a slot below a change is cut once more, as far from the change as the change
 * is long; the next one will tear down that much, and not all the rest. NOWHERE if that isn't worth a slot.
 */
static uint64_t margin_below(const struct sweep *sweep, const struct memslots_range *slot,
			     const struct verdict *verdict, uint64_t at)
{
	uint64_t length = verdict->changed_high - verdict->changed_low, margin = verdict->changed_low - length;

	if (sweep->request->policy != MEMSLOTS_POLICY_STABLE || sweep->merge_below ||
	    verdict->changed_low - slot->gpa < 2 * length || at >= margin)
		return NOWHERE;
	return margin;
}

/* What is to be mapped where a deleted slot was comes out as pieces; all of it is unmapped in between. */
static void replace_slot(struct sweep *sweep, const struct memslots_range *slot, const struct verdict *verdict)
{
	uint64_t at = slot->gpa, end = memslots_end(slot), stop;

	for (; at < end; at = stop) {
		const struct memslots_range *range = slot, *source = NULL;
		uint32_t reason = MEMSLOTS_REASON_REMAINDER;

		skip(&sweep->adds, at);
		skip(&sweep->deletes, at);
		stop = least(sweep->adds.low == at ? sweep->adds.high : sweep->adds.low, end);
		if (sweep->adds.low == at) {
			range = source = sweep->adds.next;
			reason = MEMSLOTS_REASON_ADDED;
		} else if (sweep->deletes.low == at) {
			stop = least(sweep->deletes.high, stop);
			continue;
		} else {
			stop = least(sweep->deletes.low, stop);
		}
		sweep->plan->overlap = 1;
		if (same_translation(slot, range) && !((slot->flags ^ range->flags) & MEMSLOTS_LOG_DIRTY)) {
			uint64_t margin = margin_below(sweep, slot, verdict, at);

			sweep->plan->bytes_remapped += stop - at;
			if (margin < stop) {
				push_piece(sweep, range, at, margin, MEMSLOTS_REASON_REMAINDER, source);
				finish_run(sweep);
				at = margin;
			}
			reason = MEMSLOTS_REASON_REMAINDER;
		}
		push_piece(sweep, range, at, stop, reason, source);
	}
}

static void visit_slot(struct sweep *sweep, const struct memslots_range *slot, int touched)
{
	struct verdict verdict = judge(sweep, slot);

	if (!verdict.keep) {
		emit_delete(sweep, slot, verdict.reason);
		replace_slot(sweep, slot, &verdict);
	} else {
		if (slot->size <= sweep->merge_below)
			offer_slot(sweep, slot, verdict.flags);
		else if (verdict.flags != slot->flags)
			emit_flags(sweep, slot, verdict.flags);
		sweep->plan->kept += (uint32_t)touched;
	}
	skip(&sweep->adds, memslots_end(slot));
	skip(&sweep->deletes, memslots_end(slot));
}

/* Where no slot is, up to `stop`, only an added section matters. */
static void visit_gap(struct sweep *sweep, uint64_t stop)
{
	if (sweep->adds.low <= sweep->deletes.low) {
		uint64_t high = least(sweep->adds.high, stop);

		push_piece(sweep, sweep->adds.next, sweep->adds.low, high, MEMSLOTS_REASON_ADDED, sweep->adds.next);
		skip(&sweep->adds, high);
	} else {
		skip(&sweep->deletes, least(sweep->deletes.high, stop));
	}
}

static void walk(struct sweep *sweep)
{
	const struct memslots_table *table = sweep->table;
	uint32_t position = 0;

	for (;;) {
		uint64_t event = least(sweep->adds.low, sweep->deletes.low);
		const struct memslots_range *slot = NULL;

		if (!sweep->merge_below) {
			if (event == NOWHERE)
				break;
			/* Straight to the first slot that reaches beyond the event's start. */
			position = memslots_upper(table, event);
			if (position > 0 &&
			    memslots_end(&memslots_ranges(table)[memslots_order(table)[position - 1]]) > event)
				position--;
		}
		if (position < table->count)
			slot = &memslots_ranges(table)[memslots_order(table)[position]];
		if (slot && (slot->gpa <= event)) {
			visit_slot(sweep, slot, event < memslots_end(slot));
			position++;
		} else if (event != NOWHERE) {
			visit_gap(sweep, slot ? slot->gpa : NOWHERE);
		} else {
			break;
		}
	}
	finish_run(sweep);
}

static void prepare(struct sweep *sweep, const struct memslots_range *deletes, const struct memslots_range *adds)
{
	const struct memslots_request *request = sweep->request;
	uint32_t a = sweep->address_space;

	sweep->deletes = cursor_over(deletes, request->delete_count, a, request->page_size);
	sweep->adds = cursor_over(adds, request->add_count, a, request->page_size);
	sweep->run.size = 0;
	sweep->run_kept = NULL;
	sweep->run_source = NULL;
}

static void copy_used_ids(struct sweep *sweep)
{
	memcpy(sweep->used, memslots_used(sweep->table), (sweep->table->capacity + 63) / 64 * sizeof(uint64_t));
}

static void add_up(struct memslots_plan *total, const struct memslots_plan *one)
{
	total->overlap |= one->overlap;
	total->harvest += one->harvest;
	total->kept += one->kept;
	total->merged += one->merged;
	total->bytes_torn_down += one->bytes_torn_down;
	total->bytes_remapped += one->bytes_remapped;
}

/*
 * Counts one address space's operations. When they would take too many slots, ever larger slots are merged
 * with their neighbours until the map fits. `delete_first` is set if deletes have to come first to make room.
 */
static int32_t count_operations(struct sweep *sweep, const struct memslots_range *deletes,
				const struct memslots_range *adds, struct memslots_plan *total, uint32_t *delete_first)
{
	uint32_t limit = sweep->request->slot_limit;
	struct memslots_plan one;

	for (sweep->merge_below = 0;;) {
		uint32_t before = sweep->table->count, after;

		memset(&one, 0, sizeof(one));
		/* Nothing uses it once this function has returned. */
		/* cppcheck-suppress autoVariables */
		sweep->plan = &one;
		memset(&sweep->flags, 0, sizeof(sweep->flags));
		memset(&sweep->removals, 0, sizeof(sweep->removals));
		memset(&sweep->creates, 0, sizeof(sweep->creates));
		copy_used_ids(sweep);
		prepare(sweep, deletes, adds);
		walk(sweep);
		after = before - sweep->removals.count + sweep->creates.count;
		if (after <= limit) {
			/* A guest_memfd's range may be bound to one slot only, so the old one has to go first. */
			*delete_first |= before + sweep->creates.count > limit || sweep->binds_memfd;
			add_up(total, &one);
			return 0;
		}
		if (sweep->request->policy != MEMSLOTS_POLICY_STABLE || sweep->merge_below == NOWHERE) {
			total->needed = after;
			total->full_address_space = sweep->address_space;
			return -MEMSLOTS_ENOSPC;
		}
		sweep->merge_below = sweep->merge_below ? sweep->merge_below * 16 : sweep->request->page_size;
		if (sweep->merge_below > 1ull << 52)
			sweep->merge_below = NOWHERE;
	}
}

/* Whether a list ascends, doesn't overlap itself, and names only address spaces that there are. */
static int well_formed(const struct memslots_range *list, uint32_t count)
{
	uint32_t i;

	for (i = 0; i < count; i++) {
		if (list[i].address_space >= ADDRESS_SPACES || list[i].gpa + list[i].size < list[i].gpa)
			return 0;
		if (i == 0 || list[i - 1].address_space < list[i].address_space)
			continue;
		if (list[i - 1].address_space > list[i].address_space || memslots_end(&list[i - 1]) > list[i].gpa)
			return 0;
	}
	return 1;
}

int32_t memslots_plan(const struct memslots_request *request, const char *base, const uint32_t tables[2],
		      const struct memslots_range *deletes, const struct memslots_range *adds,
		      const uint64_t *split_points, struct memslots_plan *plan, struct memslots_operation *operations,
		      struct memslots_range *scratch)
{
	struct sweep sweeps[ADDRESS_SPACES];
	struct sink flag_sink = {operations, 0}, removal_sink = {0}, create_sink = {0};
	uint32_t a, flags = 0, removals = 0, creates = 0, delete_first = 0, words;

	memset(plan, 0, sizeof(*plan));
	if (!well_formed(deletes, request->delete_count) || !well_formed(adds, request->add_count))
		return -MEMSLOTS_EINVAL;
	if (request->page_size == 0 || request->page_size & (request->page_size - 1) || request->slot_limit == 0)
		return -MEMSLOTS_EINVAL;
	for (a = 0, words = 0; a < ADDRESS_SPACES; a++) {
		struct sweep *sweep = &sweeps[a];
		int32_t result;

		memset(sweep, 0, sizeof(*sweep));
		sweep->request = request;
		sweep->table = (const struct memslots_table *)(base + tables[a]);
		sweep->split_points = split_points;
		sweep->address_space = a;
		sweep->used = (uint64_t *)scratch + words;
		words += (sweep->table->capacity + 63) / 64;
		if ((uint64_t)words * sizeof(uint64_t) > (uint64_t)request->scratch_capacity * sizeof(*scratch))
			return -MEMSLOTS_ENOMEM;
		if (request->slot_limit > sweep->table->capacity)
			return -MEMSLOTS_EINVAL;
		result = count_operations(sweep, deletes, adds, plan, &delete_first);
		if (result < 0)
			return result;
		flags += sweep->flags.count;
		removals += sweep->removals.count;
		creates += sweep->creates.count;
	}
	plan->operation_count = flags + removals + creates;
	if (plan->operation_count > request->operation_capacity)
		return -MEMSLOTS_ENOMEM;
	plan->flag_changes = flags;
	plan->deletes = removals;
	plan->creates = creates;
	plan->inhibit = plan->overlap || plan->harvest;
	delete_first |= plan->inhibit;

	/* The same walk again, now writing. */
	removal_sink.operations = operations + flags + (delete_first ? 0 : creates);
	create_sink.operations = operations + flags + (delete_first ? removals : 0);
	for (a = 0; a < ADDRESS_SPACES; a++) {
		struct sweep *sweep = &sweeps[a];
		struct memslots_plan ignored;

		if (!delete_first)
			copy_used_ids(sweep);
		sweep->plan = &ignored;
		sweep->flags = flag_sink;
		sweep->removals = removal_sink;
		sweep->creates = create_sink;
		prepare(sweep, deletes, adds);
		walk(sweep);
		flag_sink = sweep->flags;
		removal_sink = sweep->removals;
		create_sink = sweep->creates;
	}
	return 0;
}
