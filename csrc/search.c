/*
 * Searching a table's keys: see slots.h for their levels.
 *
 * A search goes down from the top level. In each node it counts the keys at or below the address, which takes no
 * branch, and so knows which node of the level below holds the rest of the answer:
 *
 *     level 1     0 -- 800 -- 1600 -- ...           750: one key is at or below it, so node 0 of level 0
 *                 |     |
 *     level 0     0 100 .. 700 | 800 900 .. 1500    eight are: position 8
 *
 * The loop's length depends on the number of keys alone, so there is nothing to mispredict. A batch searches for
 * several addresses in step, so that the memory accesses of one overlap with those of the others.
 */
#include "slots.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#define INLINE static inline __attribute__((always_inline))

/* Addresses of a batch that are searched for in step. */
#define LANES 8u

/* The level that is one node, for `count` keys. */
INLINE uint32_t top_level(uint32_t count)
{
	return (31 - (uint32_t)__builtin_clz((count - 1) | 1)) / 3;
}

/* How many of a node's keys are at or below `gpa`. */
INLINE uint32_t rank_scalar(const uint64_t *node, uint64_t gpa)
{
	uint32_t rank = 0, i;

	for (i = 0; i < MEMSLOTS_NODE; i++)
		rank += node[i] <= gpa;
	return rank;
}

/* The same of a node above level 0, less one: its first key always is. */
INLINE uint32_t child_scalar(const uint64_t *node, uint64_t gpa)
{
	uint32_t child = 0, i;

	for (i = 1; i < MEMSLOTS_NODE; i++)
		child += node[i] <= gpa;
	return child;
}

#if defined(__wasm_simd128__)
INLINE uint32_t rank_simd128(const uint64_t *node, uint64_t gpa)
{
	const v128_t sign = wasm_i64x2_splat(INT64_MIN);
	v128_t wanted = wasm_i64x2_splat((int64_t)(gpa ^ 1ull << 63));
	v128_t above[MEMSLOTS_NODE / 2];
	uint32_t i;

	for (i = 0; i < MEMSLOTS_NODE / 2; i++)
		above[i] = wasm_i64x2_gt(wasm_v128_xor(wasm_v128_load(node + 2 * i), sign), wanted);
	/* 64-bit lanes of all ones or none, packed to 16 bits each. */
	return MEMSLOTS_NODE -
	       (uint32_t)__builtin_popcount(wasm_i8x16_bitmask(wasm_i8x16_narrow_i16x8(
		       wasm_i16x8_narrow_i32x4(above[0], above[1]), wasm_i16x8_narrow_i32x4(above[2], above[3])))) /
		       2;
}

INLINE uint32_t child_simd128(const uint64_t *node, uint64_t gpa)
{
	return rank_simd128(node, gpa) - 1;
}

#define RANK rank_simd128
#define CHILD child_simd128
#else
#define RANK rank_scalar
#define CHILD child_scalar
#endif

uint32_t memslots_upper(const struct memslots_table *table, uint64_t gpa)
{
	uint32_t count = table->count, level, at = 0;

	if (count == 0)
		return 0;
	for (level = top_level(count); level > 0; level--)
		at = (at + CHILD(memslots_level(table, level) + at, gpa)) * MEMSLOTS_NODE;
	at += RANK(memslots_keys(table) + at, gpa);
	/* The last node is filled up with UINT64_MAX. */
	return at < count ? at : count;
}

uint32_t memslots_upper_shared(const struct memslots_table *table, uint64_t gpa)
{
	uint32_t count = __atomic_load_n(&table->count, __ATOMIC_RELAXED), level, at = 0, i;

	count = count < table->capacity ? count : table->capacity;
	if (count == 0)
		return 0;
	for (level = top_level(count); level > 0; level--) {
		const uint64_t *node = memslots_level(table, level) + at;
		/* Position of the last node of the level below, as large as that level can be. */
		uint32_t last = ((table->capacity - 1) >> 3 * (level - 1)) & ~(MEMSLOTS_NODE - 1);

		for (i = 1; i < MEMSLOTS_NODE; i++)
			at += __atomic_load_n(&node[i], __ATOMIC_RELAXED) <= gpa;
		at = at * MEMSLOTS_NODE < last ? at * MEMSLOTS_NODE : last;
	}
	for (i = 0, level = at; i < MEMSLOTS_NODE; i++)
		at += __atomic_load_n(&memslots_keys(table)[level + i], __ATOMIC_RELAXED) <= gpa;
	return at < count ? at : count;
}

/* Nodes that `keys` keys take. */
INLINE uint32_t nodes_of(uint32_t keys)
{
	return (keys + MEMSLOTS_NODE - 1) / MEMSLOTS_NODE;
}

static void store(const struct memslots_table *table, uint64_t *key, uint64_t value)
{
	if (table->shared)
		MEMSLOTS_STORE(key, value);
	else
		*key = value;
}

void memslots_update_levels(struct memslots_table *table, uint32_t from, uint32_t to)
{
	uint32_t count = table->count, level, i;

	for (level = 0;; level++) {
		uint64_t *keys = (uint64_t *)memslots_level(table, level), *above;

		for (i = count; i % MEMSLOTS_NODE || i == 0; i++)
			store(table, &keys[i], UINT64_MAX);
		if (count <= MEMSLOTS_NODE)
			break;
		above = (uint64_t *)memslots_level(table, level + 1);
		count = nodes_of(count);
		from = nodes_of(from);
		to = to < UINT32_MAX ? nodes_of(to) : UINT32_MAX;
		for (i = from; i < count && i < to; i++)
			store(table, &above[i], keys[(uint64_t)i * MEMSLOTS_NODE]);
		/* Whatever lies below the first key belongs to the first node. */
		store(table, above, 0);
	}
}

/* The range before `position`, if it holds `gpa`: no branch but on the result. */
INLINE int32_t holder(const struct memslots_table *table, uint32_t position, uint64_t gpa)
{
	uint32_t id = memslots_order(table)[position - (position > 0)];
	const struct memslots_range *range = &memslots_ranges(table)[id];

	return gpa - range->gpa < range->size ? (int32_t)id : -MEMSLOTS_ENOENT;
}

int32_t memslots_find_exactly(const struct memslots_table *table, uint64_t gpa)
{
	return table->count == 0 ? -MEMSLOTS_ENOENT : holder(table, memslots_upper(table, gpa), gpa);
}

int32_t memslots_find(const struct memslots_table *table, double gpa)
{
	return memslots_find_exactly(table, (uint64_t)(int64_t)gpa);
}

/* Defines the search of LANES addresses in step: RANK and CHILD are rank_scalar() and child_scalar(), or do the same. */
#define DEFINE_FIND_LANES(NAME, ATTRIBUTE, RANK, CHILD)                                                               \
	ATTRIBUTE static int32_t NAME(const struct memslots_table *table, const uint64_t *gpas, int32_t *ids,         \
				      uint32_t groups)                                                                \
	{                                                                                                             \
		uint32_t top = top_level(table->count), group, level, lane;                                           \
		int32_t found = 0;                                                                                    \
                                                                                                                      \
		for (group = 0; group < groups; group++, gpas += LANES, ids += LANES) {                               \
			uint32_t at[LANES] = {0};                                                                     \
                                                                                                                      \
			for (level = top; level > 0; level--)                                                         \
				for (lane = 0; lane < LANES; lane++)                                                  \
					at[lane] = (at[lane] +                                                        \
						    CHILD(memslots_level(table, level) + at[lane], gpas[lane])) *     \
						   MEMSLOTS_NODE;                                                     \
			for (lane = 0; lane < LANES; lane++)                                                          \
				at[lane] += RANK(memslots_keys(table) + at[lane], gpas[lane]);                        \
			for (lane = 0; lane < LANES; lane++) {                                                        \
				ids[lane] =                                                                           \
					holder(table, at[lane] < table->count ? at[lane] : table->count, gpas[lane]); \
				found += ids[lane] >= 0;                                                              \
			}                                                                                             \
		}                                                                                                     \
		return found;                                                                                         \
	}

DEFINE_FIND_LANES(find_lanes_scalar, , rank_scalar, child_scalar)

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,popcnt")))

AVX2 INLINE uint32_t rank_avx2(const uint64_t *node, uint64_t gpa)
{
	/* Only signed comparisons exist. */
	const __m256i sign = _mm256_set1_epi64x(INT64_MIN);
	__m256i wanted = _mm256_xor_si256(_mm256_set1_epi64x((int64_t)gpa), sign);
	__m256i low = _mm256_xor_si256(_mm256_load_si256((const __m256i *)node), sign);
	__m256i high = _mm256_xor_si256(_mm256_load_si256((const __m256i *)node + 1), sign);
	__m256i above = _mm256_packs_epi32(_mm256_cmpgt_epi64(low, wanted), _mm256_cmpgt_epi64(high, wanted));

	return MEMSLOTS_NODE - (uint32_t)__builtin_popcount((uint32_t)_mm256_movemask_epi8(above)) / 4;
}

AVX2 INLINE uint32_t child_avx2(const uint64_t *node, uint64_t gpa)
{
	return rank_avx2(node, gpa) - 1;
}

DEFINE_FIND_LANES(find_lanes_avx2, AVX2, rank_avx2, child_avx2)
#endif

#if defined(__wasm_simd128__)
DEFINE_FIND_LANES(find_lanes_simd128, , rank_simd128, child_simd128)
#endif

int32_t memslots_best_path(void)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx2"))
		return MEMSLOTS_PATH_AVX2;
#elif defined(__wasm_simd128__)
	return MEMSLOTS_PATH_SIMD128;
#endif
	return MEMSLOTS_PATH_SCALAR;
}

static int32_t find_lanes(const struct memslots_table *table, const uint64_t *gpas, int32_t *ids, uint32_t groups,
			  uint32_t path)
{
	switch (path) {
	case MEMSLOTS_PATH_SCALAR:
		return find_lanes_scalar(table, gpas, ids, groups);
#if defined(__x86_64__)
	case MEMSLOTS_PATH_AVX2:
		return find_lanes_avx2(table, gpas, ids, groups);
#elif defined(__wasm_simd128__)
	case MEMSLOTS_PATH_SIMD128:
		return find_lanes_simd128(table, gpas, ids, groups);
#endif
	default:
		return -MEMSLOTS_EINVAL;
	}
}

int32_t memslots_find_batch(const struct memslots_table *table, const uint64_t *gpas, int32_t *ids, uint32_t count,
			    uint32_t path)
{
	uint64_t last_gpas[LANES] = {0};
	int32_t last_ids[LANES], found;
	uint32_t i, left = count % LANES, groups = count / LANES;

	if (table->count == 0) {
		for (i = 0; i < count; i++)
			ids[i] = -MEMSLOTS_ENOENT;
		return find_lanes(table, gpas, ids, 0, path);
	}
	found = find_lanes(table, gpas, ids, groups, path);
	if (found < 0 || left == 0)
		return found;
	for (i = 0; i < left; i++)
		last_gpas[i] = gpas[groups * LANES + i];
	find_lanes(table, last_gpas, last_ids, 1, path);
	for (i = 0; i < left; i++) {
		ids[groups * LANES + i] = last_ids[i];
		found += last_ids[i] >= 0;
	}
	return found;
}
