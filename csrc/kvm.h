/*
 * The system calls of a KVM host, for the native build only (Linux). No state is kept here but the kick
 * signal's handler, which is the process's. Every function answers 0, a count, or a negative errno.
 */
#ifndef MEMSLOTS_KVM_H
#define MEMSLOTS_KVM_H

#include "slots.h"

/* One ioctl. `argument` is a value or an address, as the request wants. Its result, or -errno. */
MEMSLOTS_EXPORT int32_t memslots_ioctl(int32_t fd, uint32_t request, uintptr_t argument);

/* Makes the calls of a plan in order, KVM_SET_USER_MEMORY_REGION2 for slots with a guest_memfd. Stops at the first
 * that fails, whose `result` then holds the negative errno. The number that succeeded. */
MEMSLOTS_EXPORT int32_t memslots_kvm_apply(int32_t vm, struct memslots_operation *operations, uint32_t count);

/* KVM_RUN: 0, or -EINTR after a kick, or another negative errno. */
MEMSLOTS_EXPORT int32_t memslots_kvm_run(int32_t vcpu);

/* Makes the vCPU whose kvm_run page is at `run` leave KVM_RUN, or not enter it: sets immediate_exit, then signals
 * thread `thread` of this process unless that is 0. Any thread. 0 or -errno (-ESRCH: that thread has ended). */
MEMSLOTS_EXPORT int32_t memslots_kvm_kick(uintptr_t run, int32_t thread);

/* Installs an empty handler for the kick signal (SIGRTMIN + 4), without SA_RESTART so that system calls end with
 * EINTR. Again is harmless. -EBUSY if the process already handles that signal otherwise. */
MEMSLOTS_EXPORT int32_t memslots_kick_install(void);

/* The calling thread's id, for memslots_kvm_kick(). */
MEMSLOTS_EXPORT int32_t memslots_thread_id(void);

/* Bytes of a page of this host. */
MEMSLOTS_EXPORT int32_t memslots_page_size(void);

/* Takes the dirty pages out of a vCPU's dirty ring at `ring`, which has `entries` entries (a power of two), from entry
 * *next on, and moves *next past them. Each becomes two words in `out` (room for all entries): slot id with the address
 * space in the high 16 bits, and page within the slot (slots have fewer than 2^31). KVM takes the entries back, and logs
 * their pages again, with KVM_RESET_DIRTY_RINGS. One thread. How many there were. */
MEMSLOTS_EXPORT int32_t memslots_kvm_ring_collect(uintptr_t ring, uint32_t entries, uint32_t *next, uint32_t *out);

/* Maps `size` bytes of zeroed memory, or of file descriptor `fd` from byte `offset` if that isn't -1, shared, readable
 * and writable, nothing reserved. The address goes to *out. 0 or -errno. */
MEMSLOTS_EXPORT int32_t memslots_memory_map(double size, int32_t fd, double offset, uint64_t *out);

MEMSLOTS_EXPORT int32_t memslots_memory_unmap(uintptr_t address, double size);

/* Copies `size` bytes between host memory that a slot maps and a buffer. 0. */
MEMSLOTS_EXPORT int32_t memslots_memory_copy(void *to, const void *from, uint32_t size);

#endif
