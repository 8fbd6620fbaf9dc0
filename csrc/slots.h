/*
 * kvm-memslots, the C core: tables of guest-physical ranges, and the planner that turns a change of a
 * guest's memory map into calls of KVM_SET_USER_MEMORY_REGION.
 *
 * CAVEATS
 *
 *  - Nothing here allocates, and there are no mutable globals. Callers hand in memory; sizes come from the
 *    *_size() functions. No pointer is ever stored: everything inside a table is an offset from its start,
 *    so the same bytes serve the native build, the WASM build, and every thread at once.
 *  - Every function answers 0, a count, an id, or a negative errno (Linux's numbers, in both builds).
 *    64-bit values travel through memory; a single guest-physical address (GPA) is passed as a double,
 *    exact up to 2^53, because that is the cheapest way in from JavaScript.
 *  - A plain table may be used by one thread at a time. A *map* (two tables and an index) may be read by
 *    any number of threads while one thread writes it: a reader never waits and never sees half a change.
 *  - Sizes and addresses are in bytes. `gpa + size` must not exceed 2^64 - 1.
 *  - Arguments are trusted: the TypeScript side checks them. Contents of a table that another thread is
 *    writing are not: every index read from one is checked before it is used.
 *
 *    a table:   header | keys (GPAs, ascending) | levels | order (id of each key) | ranges by id | used ids (bits)
 *
 *        levels  0x0                                  every 8th key; above it every 64th, and so on
 *        keys    0x0   0x100000   0xfffc0000          searched from the top level down, 8 keys at a time
 *        order     2          0            1          then one step to
 *        ranges  [0] 0x100000 ..  [1] 0xfffc0000 ..  [2] 0x0 ..
 *
 *    Inserting moves 12 bytes for each range above, replacing a range none; ranges stay where they are, under
 *    their id.
 */
#ifndef MEMSLOTS_H
#define MEMSLOTS_H

#include <stddef.h>
#include <stdint.h>

#define MEMSLOTS_EXPORT __attribute__((used, visibility("default")))

/* Bumped whenever the layout of anything below changes; both builds and TypeScript compare it. */
#define MEMSLOTS_ABI_VERSION 2
#define MEMSLOTS_MAGIC 0x4b4d5331u

/* Linux's numbers, also where the C library has others. */
#define MEMSLOTS_ENOENT 2
#define MEMSLOTS_ENOMEM 12
#define MEMSLOTS_EEXIST 17
#define MEMSLOTS_EINVAL 22
#define MEMSLOTS_ENOSPC 28

/* Flags of a range. The low ones are KVM's own (KVM_MEM_*), and the only ones that reach the kernel. */
#define MEMSLOTS_LOG_DIRTY 1u
#define MEMSLOTS_READONLY 2u
#define MEMSLOTS_GUEST_MEMFD 4u
#define MEMSLOTS_KVM_FLAGS 7u
/* The range is backed by host memory: `host` is an address. Otherwise the range traps. */
#define MEMSLOTS_BACKED 0x10000u
/* An added section that was there before and of which only dirty logging changes: not for maps. */
#define MEMSLOTS_LOGGING_ONLY 0x20000u

#define MEMSLOTS_ANY_ID 0xffffffffu

/* One range of guest-physical addresses. The same record is a memory slot, a section of the memory map,
 * and an entry of a look-up map; fields that one of them has no use for are 0. */
struct memslots_range {
	uint64_t gpa;
	uint64_t size;
	uint64_t host;          /* host-virtual address behind `gpa` */
	uint64_t offset;        /* slot: into the guest_memfd; map entry: into the region */
	uint32_t id;            /* slot or entry id, unique within its table */
	uint32_t flags;         /* MEMSLOTS_* */
	uint32_t region;        /* memory region, a number of the caller's */
	uint32_t since;         /* map entry: number of the commit since which every GPA of it is backed */
	uint32_t address_space; /* 0 normal, 1 system management mode */
	int32_t guest_memfd;    /* file descriptor, with MEMSLOTS_GUEST_MEMFD */
	uint32_t reserved[2];
};

/* Keys of a node, one cache line, and the most levels that a table's keys may have: 8^8 is the largest capacity. */
#define MEMSLOTS_NODE 8u
#define MEMSLOTS_LEVELS 8u

struct memslots_table {
	uint32_t capacity; /* ranges, 1 to 2^24 */
	uint32_t count;
	uint32_t shared;   /* 1: part of a map; stores must be visible word by word */
	uint32_t sequence; /* odd while a map's writer is at work on this copy */
	/* Offsets of the parts from the start of the table. Level 0 is the keys; each level above holds the first key
	 * of every node of the one below. Each is whole nodes, filled up with UINT64_MAX. */
	uint32_t levels[MEMSLOTS_LEVELS];
	uint32_t order;
	uint32_t ranges;
	uint32_t used;
	uint32_t reserved;
};

/* How a batch is searched. All find the same. */
enum memslots_path {
	MEMSLOTS_PATH_SCALAR = 0,  /* any processor */
	MEMSLOTS_PATH_AVX2 = 1,    /* native, x86-64 processors that have it */
	MEMSLOTS_PATH_SIMD128 = 2, /* WASM */
};

/* ---- tables (slots.c) ---- */

/* Bytes that a table of `capacity` ranges takes, a multiple of 64; -EINVAL for a capacity out of range. */
MEMSLOTS_EXPORT int32_t memslots_table_size(uint32_t capacity);

/* Makes an empty table in `memory` (64-byte aligned, memslots_table_size() bytes, zeroed or not).
 * 0, or -EINVAL for a capacity out of range. */
MEMSLOTS_EXPORT int32_t memslots_table_init(struct memslots_table *table, uint32_t capacity);

/* Id of the range that holds `gpa`, or -ENOENT. */
MEMSLOTS_EXPORT int32_t memslots_find(const struct memslots_table *table, double gpa);

/* Id of the range that holds `gpa` or, if none does, of the next one above; -ENOENT if there is none. */
MEMSLOTS_EXPORT int32_t memslots_find_at_or_above(const struct memslots_table *table, double gpa);

/* Id of the range that is exactly `range->gpa`, `range->size`, or -ENOENT. */
MEMSLOTS_EXPORT int32_t memslots_match(const struct memslots_table *table, const struct memslots_range *range);

/* memslots_find() for `count` addresses: ids[i] becomes the id of the range that holds gpas[i], or -ENOENT.
 * `path` is an enum memslots_path that this build and processor have, such as memslots_best_path() answers.
 * Answers how many were found; -EINVAL for a path that this build lacks. */
MEMSLOTS_EXPORT int32_t memslots_find_batch(const struct memslots_table *table, const uint64_t *gpas, int32_t *ids,
					    uint32_t count, uint32_t path);

/* The fastest path that this build has on this processor. */
MEMSLOTS_EXPORT int32_t memslots_best_path(void);

/* Id of a range that overlaps `range`, the lowest such, or -ENOENT. */
MEMSLOTS_EXPORT int32_t memslots_overlap(const struct memslots_table *table, const struct memslots_range *range);

/* Inserts a copy of `range` under range->id, or under the lowest free id if that is MEMSLOTS_ANY_ID.
 * The id; -EINVAL (size 0, end past 2^64 - 1, id out of range or in use), -EEXIST (overlaps another range:
 * memslots_overlap() says which), -ENOSPC (the table is full). On an error the table is as it was. */
MEMSLOTS_EXPORT int32_t memslots_insert(struct memslots_table *table, const struct memslots_range *range);

/* Removes the range under `id`: 0 or -ENOENT. */
MEMSLOTS_EXPORT int32_t memslots_remove(struct memslots_table *table, uint32_t id);

/* Gives the range under `id`, which must exist, other flags. */
void memslots_set_flags(struct memslots_table *table, uint32_t id, uint32_t flags);

/* The lowest free id, or -ENOSPC. */
MEMSLOTS_EXPORT int32_t memslots_free_id(const struct memslots_table *table);

/* Copies all ranges, by ascending GPA, to `out` (room for table->count): their number. */
MEMSLOTS_EXPORT int32_t memslots_list(const struct memslots_table *table, struct memslots_range *out);

/* Removes `delete_count` ranges by id and inserts `add_count`, both lists by ascending GPA: each key moves at most
 * once however long the lists are. Each range is the first member of a record of `stride`
 * bytes. An add may take the id of a delete.
 * The result must be free of overlap, and ids must be valid: this is for lists that the planner made,
 * or that were checked with the functions above. */
void memslots_splice(struct memslots_table *table, const void *deletes, uint32_t delete_count, const void *adds,
		     uint32_t add_count, uint32_t stride);

/* Eight bytes of whatever record. */
typedef uint64_t __attribute__((may_alias)) memslots_word;

/*
 * A store into a copy that other threads may be reading, though they will throw away what they find: one that the
 * compiler can neither split nor invent. WASM's atomic stores order everything, and cost several times as much.
 */
#ifdef __wasm__
#define MEMSLOTS_STORE(at, value) (*(volatile __typeof__(*(at)) *)(at) = (value))
#else
#define MEMSLOTS_STORE(at, value) __atomic_store_n(at, value, __ATOMIC_RELAXED)
#endif

/* ---- searching (search.c) ---- */

/* Position of the first key above `gpa`, 0 to count. */
uint32_t memslots_upper(const struct memslots_table *table, uint64_t gpa);

/* Id of the range that holds `gpa`, or -ENOENT. */
int32_t memslots_find_exactly(const struct memslots_table *table, uint64_t gpa);

/* memslots_upper() on a copy of a map that may be changing: then it may be wrong, but not above the table's capacity. */
uint32_t memslots_upper_shared(const struct memslots_table *table, uint64_t gpa);

/* Brings the levels up to date with the keys, of which only those from position `from` to before `to` have changed
 * since; UINT32_MAX if their number has. */
void memslots_update_levels(struct memslots_table *table, uint32_t from, uint32_t to);

static inline const uint64_t *memslots_level(const struct memslots_table *table, uint32_t level)
{
	return (const uint64_t *)((const char *)table + table->levels[level]);
}

static inline const uint64_t *memslots_keys(const struct memslots_table *table)
{
	return memslots_level(table, 0);
}

static inline const uint32_t *memslots_order(const struct memslots_table *table)
{
	return (const uint32_t *)((const char *)table + table->order);
}

static inline const struct memslots_range *memslots_ranges(const struct memslots_table *table)
{
	return (const struct memslots_range *)((const char *)table + table->ranges);
}

static inline const uint64_t *memslots_used(const struct memslots_table *table)
{
	return (const uint64_t *)((const char *)table + table->used);
}

static inline uint64_t memslots_end(const struct memslots_range *range)
{
	return range->gpa + range->size;
}

/* ---- maps: readable by all threads while one writes (map.c) ---- */

struct memslots_map {
	uint32_t active;    /* 0 or 1: the copy that readers use */
	uint32_t commit;    /* number of the last commit, see memslots_map_commit() */
	uint32_t copies[2]; /* offsets of the two tables from the start of the map */
	uint32_t reserved[12];
};

/* Bytes that a map of `capacity` ranges takes, or -EINVAL. */
MEMSLOTS_EXPORT int32_t memslots_map_size(uint32_t capacity);

/* Makes an empty map in `memory` (64-byte aligned): 0 or -EINVAL. */
MEMSLOTS_EXPORT int32_t memslots_map_init(struct memslots_map *map, uint32_t capacity);

/* Copies the range that holds `gpa` to `out`: 0, or -ENOENT. Any thread, at any time. It repeats its search
 * only if two changes were published while it looked, so it never waits for the writer. */
MEMSLOTS_EXPORT int32_t memslots_map_lookup(const struct memslots_map *map, double gpa, struct memslots_range *out);

/* Publishes one change: the deletes (found by their exact GPA and size) and adds appear to readers at one
 * instant. Both lists ascend. Adds keep their id unless it is MEMSLOTS_ANY_ID; the ids chosen are written
 * back. 0; -ENOENT (a delete that isn't there), -EEXIST (an add overlaps what stays), -ENOSPC, -EINVAL: then
 * nothing has changed. One writer thread. */
MEMSLOTS_EXPORT int32_t memslots_map_apply(struct memslots_map *map, struct memslots_range *deletes,
					   uint32_t delete_count, struct memslots_range *adds, uint32_t add_count);

/* As memslots_map_apply(), for a map of sections: numbers the commit, and gives each add the number of the
 * commit since which its addresses have been backed by host memory, splitting adds where that differs.
 * `scratch` holds `scratch_capacity` ranges for the split adds; -ENOSPC if that isn't enough. */
MEMSLOTS_EXPORT int32_t memslots_map_commit(struct memslots_map *map, const struct memslots_range *deletes,
					    uint32_t delete_count, const struct memslots_range *adds,
					    uint32_t add_count, struct memslots_range *scratch,
					    uint32_t scratch_capacity);

/* ---- gates (gate.c): see ts/kvm/gate.ts, which says what their bits mean and does all waiting ---- */

/* Counts the caller in, in the low bits of the word, unless a bit of `keep_out` is set in it: 1, or 0 if one is. */
MEMSLOTS_EXPORT int32_t memslots_gate_enter(uint32_t *gate, uint32_t keep_out);

/* Counts the caller out: the word as it was before. */
MEMSLOTS_EXPORT int32_t memslots_gate_leave(uint32_t *gate);

/* ---- the planner (plan.c) ---- */

enum memslots_policy {
	/* Slots mirror sections, as in QEMU: a deleted section deletes its slot, an added one creates one. */
	MEMSLOTS_POLICY_EXACT = 0,
	/* A slot stays if each of its addresses keeps its host page and its flags, whatever became of the
	 * sections around it. */
	MEMSLOTS_POLICY_STABLE = 1,
};

enum memslots_operation_kind {
	MEMSLOTS_CREATE = 1,
	MEMSLOTS_DELETE = 2,
	MEMSLOTS_FLAGS = 3, /* only MEMSLOTS_LOG_DIRTY differs: no hole */
};

/* Why an operation is in the plan. */
enum memslots_reason {
	MEMSLOTS_REASON_ADDED = 1,     /* create: a new section */
	MEMSLOTS_REASON_REMAINDER = 2, /* create: what is left of a slot that had to go */
	MEMSLOTS_REASON_GONE = 3,      /* delete: no address of it is mapped any more */
	MEMSLOTS_REASON_CHANGED = 4,   /* delete: some address of it is mapped elsewhere, differently, or not at all */
	MEMSLOTS_REASON_MERGED = 5,    /* delete or create: neighbours joined, because slots run short */
	MEMSLOTS_REASON_LOGGING = 6,   /* flags */
};

/* One call of KVM_SET_USER_MEMORY_REGION, to be made in the order of the plan. */
struct memslots_operation {
	struct memslots_range slot; /* as it will be (create, flags) or as it was (delete) */
	uint32_t kind;
	uint32_t reason;
	uint32_t old_flags; /* flags: what to go back to */
	uint32_t harvest;   /* 1: read the dirty bitmap before this call, inside the window */
	int32_t result;     /* set by whoever makes the call: 0 or a negative errno */
	uint32_t reserved;
};

/* What the planner is asked. */
struct memslots_request {
	uint32_t policy;
	uint32_t page_size;     /* alignment of slots: starts are rounded up, ends down */
	uint64_t largest_slot;  /* bytes; larger sections become several slots. KVM: (2^31 - 1) pages */
	uint32_t slot_limit;    /* slots an address space may hold, at most the table's capacity */
	uint32_t discard_dirty; /* 1: bits of logged slots that go away aren't wanted, so need no window */
	uint32_t delete_count;
	uint32_t add_count;
	uint32_t split_count; /* split points: ascending GPAs at which new slots are cut */
	uint32_t operation_capacity;
	uint32_t scratch_capacity; /* ranges */
	uint32_t reserved;
};

/* What the planner answers. Slots are counted over both address spaces. */
struct memslots_plan {
	uint32_t operation_count;
	uint32_t inhibit; /* 1: vCPUs must be kept out while the operations run */
	uint32_t overlap; /* 1: some address mapped before and after is unmapped in between */
	uint32_t harvest; /* operations with `harvest` set */
	uint32_t creates;
	uint32_t deletes;
	uint32_t flag_changes;
	uint32_t kept;   /* slots that the change touched and that stay */
	uint32_t merged; /* slots saved by merging, because they ran short */
	uint32_t needed; /* on -ENOSPC: slots that the map needs at least, in `full_address_space` */
	uint32_t full_address_space;
	uint32_t reserved;
	uint64_t bytes_torn_down; /* bytes of deleted slots */
	uint64_t bytes_remapped;  /* those of them mapped again to the same host memory with the same flags */
};

/*
 * Plans one transaction over one or two address spaces.
 *
 * `tables[a]` (as offsets from `base`) is the slot table of address space a, as KVM has it; it isn't changed.
 * `deletes` and `adds` are sections, each list ascending by (address space, GPA) and free of overlap. An added
 * section replaces whatever was at its addresses, with or without a delete of it; so a change of the dirty
 * logging of a section is an add of it with the new flags.
 *
 * The operations come out in the order in which they are to be made: every prefix of them is legal for KVM.
 * With a window: flags, deletes, creates. Without: flags, creates, deletes, so that a failed create can be
 * undone before anything was lost.
 *
 * 0; -EINVAL (a list that doesn't ascend, overlaps itself, or names an address space there isn't); -ENOSPC
 * (the map needs more slots than `slot_limit` even when all neighbours are merged: plan->needed); -ENOMEM
 * (operation_capacity or scratch_capacity too small).
 */
MEMSLOTS_EXPORT int32_t memslots_plan(const struct memslots_request *request, const char *base,
				      const uint32_t tables[2], const struct memslots_range *deletes,
				      const struct memslots_range *adds, const uint64_t *split_points,
				      struct memslots_plan *plan, struct memslots_operation *operations,
				      struct memslots_range *scratch);

/* Brings the slot tables up to date with operations that KVM has accepted, in any number. */
MEMSLOTS_EXPORT int32_t memslots_apply(char *base, const uint32_t tables[2],
				       const struct memslots_operation *operations, uint32_t count);

/* ---- the layout of all this, for TypeScript (layout.c) ---- */

/* Writes lines of `name=number` (sizes, offsets, constants) to `out`, without a final NUL: the number of
 * bytes, or -ENOSPC if `capacity` is too small. */
MEMSLOTS_EXPORT int32_t memslots_layout(char *out, uint32_t capacity);

/* Does nothing: what a call costs, for benchmarks. */
MEMSLOTS_EXPORT int32_t memslots_nothing(void);

#endif
