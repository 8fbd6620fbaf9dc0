/* The two steps of a gate that everybody takes: see slots.h. */
#include "slots.h"

int32_t memslots_gate_enter(uint32_t *gate, uint32_t keep_out)
{
	uint32_t seen = __atomic_load_n(gate, __ATOMIC_SEQ_CST);

	while (!(seen & keep_out))
		if (__atomic_compare_exchange_n(gate, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			return 1;
	return 0;
}

int32_t memslots_gate_leave(uint32_t *gate)
{
	return (int32_t)__atomic_fetch_sub(gate, 1, __ATOMIC_SEQ_CST);
}
