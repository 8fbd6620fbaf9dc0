/* The system calls of a KVM host: see kvm.h. */
#define _GNU_SOURCE
#include "kvm.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Distributions still ship headers without these (they came with Linux 6.8). */
struct region2 {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
#define SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct region2)

/* struct kvm_dirty_gfn, which came with Linux 5.11. */
struct dirty_page {
	uint32_t flags, slot;
	uint64_t page;
};
#define DIRTY_PAGE_DIRTY 1u
#define DIRTY_PAGE_RESET 2u

int32_t memslots_ioctl(int32_t fd, uint32_t request, uintptr_t argument)
{
	int result = ioctl(fd, request, argument);

	return result < 0 ? -errno : result;
}

static int32_t set_region(int32_t vm, const struct memslots_operation *operation)
{
	const struct memslots_range *slot = &operation->slot;
	struct region2 region = {
		.slot = slot->address_space << 16 | slot->id,
		.flags = slot->flags & MEMSLOTS_KVM_FLAGS,
		.guest_phys_addr = slot->gpa,
		.memory_size = operation->kind == MEMSLOTS_DELETE ? 0 : slot->size,
		.userspace_addr = slot->host,
	};

	if (operation->kind == MEMSLOTS_DELETE) {
		/* A delete ignores valid flags, but not their combinations. */
		region.flags = 0;
	} else if (region.flags & MEMSLOTS_GUEST_MEMFD) {
		region.guest_memfd = (uint32_t)slot->guest_memfd;
		region.guest_memfd_offset = slot->offset;
		return memslots_ioctl(vm, SET_USER_MEMORY_REGION2, (uintptr_t)&region);
	}
	/* The older call's argument is the start of the newer one's. */
	return memslots_ioctl(vm, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region);
}

int32_t memslots_kvm_apply(int32_t vm, struct memslots_operation *operations, uint32_t count)
{
	uint32_t done;

	for (done = 0; done < count; done++) {
		operations[done].result = set_region(vm, &operations[done]);
		if (operations[done].result < 0)
			break;
	}
	return (int32_t)done;
}

int32_t memslots_kvm_run(int32_t vcpu)
{
	return memslots_ioctl(vcpu, KVM_RUN, 0);
}

static int kick_signal(void)
{
	return SIGRTMIN + 4;
}

int32_t memslots_kvm_kick(uintptr_t run, int32_t thread)
{
	__atomic_store_n(&((struct kvm_run *)run)->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (thread == 0)
		return 0;
	return syscall(SYS_tgkill, getpid(), thread, kick_signal()) < 0 ? -errno : 0;
}

static void on_kick(int signal)
{
	(void)signal;
}

int32_t memslots_kick_install(void)
{
	struct sigaction action, old;

	if (sigaction(kick_signal(), NULL, &old) < 0)
		return -errno;
	if (old.sa_handler == on_kick)
		return 0;
	if (old.sa_handler != SIG_DFL)
		return -EBUSY;
	memset(&action, 0, sizeof(action));
	action.sa_handler = on_kick;
	return sigaction(kick_signal(), &action, NULL) < 0 ? -errno : 0;
}

int32_t memslots_thread_id(void)
{
	return (int32_t)syscall(SYS_gettid);
}

int32_t memslots_page_size(void)
{
	return (int32_t)sysconf(_SC_PAGESIZE);
}

int32_t memslots_kvm_ring_collect(uintptr_t ring, uint32_t entries, uint32_t *next, uint32_t *out)
{
	struct dirty_page *pages = (struct dirty_page *)ring;
	uint32_t count;

	for (count = 0; count < entries; count++, (*next)++) {
		struct dirty_page *page = &pages[*next & (entries - 1)];

		/* The rest of the entry was written before its flags. */
		if (__atomic_load_n(&page->flags, __ATOMIC_ACQUIRE) != DIRTY_PAGE_DIRTY)
			break;
		out[2 * count] = page->slot;
		out[2 * count + 1] = (uint32_t)page->page;
		__atomic_store_n(&page->flags, DIRTY_PAGE_RESET, __ATOMIC_RELEASE);
	}
	return (int32_t)count;
}

int32_t memslots_memory_map(double size, int32_t fd, double offset, uint64_t *out)
{
	int flags = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
	void *address = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, flags, fd, (off_t)offset);

	if (address == MAP_FAILED)
		return -errno;
	*out = (uintptr_t)address;
	return 0;
}

int32_t memslots_memory_unmap(uintptr_t address, double size)
{
	return munmap((void *)address, (size_t)size) < 0 ? -errno : 0;
}

int32_t memslots_memory_copy(void *to, const void *from, uint32_t size)
{
	memcpy(to, from, size);
	return 0;
}
