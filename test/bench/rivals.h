/*
 * What the benchmark compares the C core with: what one would write, or what other VMMs do. Compiled with the core's
 * flags into a library of its own that is no part of the package. Nothing here is shared with the core but records.
 */
#ifndef RIVALS_H
#define RIVALS_H

#include <stddef.h>
#include <stdint.h>

#define RIVAL __attribute__((used, visibility("default")))

/* The layout of struct memslots_range: 64 bytes, as QEMU's record of a slot is about. Size 0: free. */
struct rival_slot {
	uint64_t gpa, size, host, offset;
	uint32_t id, flags, region, since, address_space;
	int32_t guest_memfd;
	uint32_t reserved[2];
};

/* Keeps the calling thread on the boot processor, or, with 0, lets it go where it likes: 0 or -errno. There the kernel's
 * workers end the grace periods that calls changing slots wait for: on another processor a call takes several times as
 * long, and a thread that wanders has now the one time and now the other. */
RIVAL int32_t rival_stay(int32_t stay);

/* Nanoseconds that the calling thread has had of a processor: what others take of it doesn't count. */
RIVAL double rival_thread_time(void);

/* ---- look-ups: ids[i] becomes the id of the slot that holds gpas[i], or -2; the number found (rivals.c) ---- */

/* QEMU's method: all slots in the order of their ids until one fits. */
RIVAL int32_t rival_find_linear(const struct rival_slot *slots, uint32_t slot_count, const uint64_t *gpas, int32_t *ids,
				uint32_t count);

/* Binary search as in the textbook, over sorted arrays of starts, ends and ids. */
RIVAL int32_t rival_find_branchy(const uint64_t *starts, const uint64_t *ends, const uint32_t *slot_ids,
				 uint32_t slot_count, const uint64_t *gpas, int32_t *ids, uint32_t count);

/* The same without a branch that depends on the address. */
RIVAL int32_t rival_find_branchless(const uint64_t *starts, const uint64_t *ends, const uint32_t *slot_ids,
				    uint32_t slot_count, const uint64_t *gpas, int32_t *ids, uint32_t count);

/* memslots_find() and memslots_map_lookup() of the core in a loop: what a single search costs without a way in. */
RIVAL int32_t rival_find_singly(const void *table, const double *gpas, uint32_t count);
RIVAL int32_t rival_look_up_singly(const void *map, const double *gpas, uint32_t count, void *out);

/* ---- planning as QEMU does it (rivals.c) ---- */

/* One transaction: `deletes` and `adds` ascend. Walks both lists for an overlap, then looks for the slot of each delete
 * and for a free slot for each add, from the first slot on. Changes `slots`, writes the calls to `operations`.
 * Their number, with bit 31 set if vCPUs must be inhibited; -1 for a delete that isn't there, or no free slot. */
RIVAL int32_t rival_plan(struct rival_slot *slots, uint32_t slot_count, const struct rival_slot *deletes,
			 uint32_t delete_count, const struct rival_slot *adds, uint32_t add_count,
			 struct rival_slot *operations);

/* ---- a gate (rivals.c) ---- */

/* `count` times: enters the gate at `word` unless a bit above 15 is set, and leaves it. */
RIVAL int32_t rival_gate(uint32_t *word, uint32_t count);

/* ---- a virtual machine of the Linux kernel, in C alone (rival-vm.c) ---- */

/* struct kvm_userspace_memory_region. */
struct rival_region {
	uint32_t slot, flags;
	uint64_t gpa, size, host;
};

struct rival_vm {
	int32_t device, vm, vcpu, has_thread;
	uint64_t run, thread;
	uint64_t run_bytes;
	uint32_t gate; /* bit 31 shut, bit 30 closed, bits 0 to 15 inside */
	int32_t thread_id;
	uint32_t reserved[2];
};

/* Makes a VM. 0 or -errno. */
RIVAL int32_t rival_vm_open(struct rival_vm *vm);

/* Starts the VM's vCPU in a thread, at `entry` in flat 32-bit protected mode, with its gate shut. 0 or -errno. */
RIVAL int32_t rival_vm_start(struct rival_vm *vm, uint32_t entry);

/* Lets the vCPU run, or keeps it out and waits until it is. */
RIVAL int32_t rival_vm_resume(struct rival_vm *vm);
RIVAL int32_t rival_vm_pause(struct rival_vm *vm);

/* The calls of KVM_SET_USER_MEMORY_REGION in a loop: 0 or the first error. */
RIVAL int32_t rival_vm_set(const struct rival_vm *vm, const struct rival_region *regions, uint32_t count);

/* The same while the vCPU is kept out. */
RIVAL int32_t rival_vm_set_in_window(struct rival_vm *vm, const struct rival_region *regions, uint32_t count);

/* `count` times KVM_RUN on the calling thread, each until the guest leaves by a port: a round trip. The vCPU must have
 * been started by rival_vm_prepare(). 0 or -errno. */
RIVAL int32_t rival_vm_prepare(struct rival_vm *vm, uint32_t entry);
RIVAL int32_t rival_vm_round_trips(const struct rival_vm *vm, uint32_t count);

RIVAL void rival_vm_close(struct rival_vm *vm);

/* ---- a guest that touches pages on command (rival-vm.c) ---- */

/* Shared with the guest: it waits for `sequence` to differ from `done`, touches `pages` pages from `start` on, again
 * and again while `repeat` is set, and then makes them equal. */
struct rival_mailbox {
	uint32_t sequence, done, start, pages, write, repeat;
};

/* Has the guest begin to touch pages. */
RIVAL void rival_begin(volatile struct rival_mailbox *mailbox, uint32_t start, uint32_t pages, uint32_t write,
		       uint32_t repeat);

/* Has it touch them no more, and waits until it has come to the end of them: 0, or -ETIMEDOUT after 10 s. */
RIVAL int32_t rival_end(volatile struct rival_mailbox *mailbox);

/* Gives host pages back, `chunk` bytes at a time, as memory that is unmapped: the guest faults when it touches them. */
RIVAL int32_t rival_discard(uint64_t host, uint64_t size, uint64_t chunk);

#endif
