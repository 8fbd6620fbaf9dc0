/* A virtual machine in C alone, to measure commits against: see rivals.h. */
#define _GNU_SOURCE
#include "rivals.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SHUT (1u << 31)
#define CLOSED (1u << 30)
#define INSIDE 0xffffu

/* Another than the library's, which holds SIGRTMIN + 4. */
static int kick_signal(void)
{
	return SIGRTMIN + 6;
}

static void on_kick(int signal)
{
	(void)signal;
}

static void sleep_on(uint32_t *word, uint32_t seen)
{
	syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

int32_t rival_vm_open(struct rival_vm *vm)
{
	struct sigaction action;

	memset(vm, 0, sizeof(*vm));
	vm->vcpu = -1;
	vm->device = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (vm->device < 0)
		return -errno;
	vm->vm = ioctl(vm->device, KVM_CREATE_VM, 0);
	if (vm->vm < 0) {
		int error = errno;

		close(vm->device);
		return -error;
	}
	memset(&action, 0, sizeof(action));
	action.sa_handler = on_kick;
	sigaction(kick_signal(), &action, NULL);
	return 0;
}

int32_t rival_vm_prepare(struct rival_vm *vm, uint32_t entry)
{
	struct kvm_sregs special;
	struct kvm_regs general = {.rip = entry, .rflags = 2};
	void *run;

	vm->vcpu = ioctl(vm->vm, KVM_CREATE_VCPU, 0);
	if (vm->vcpu < 0)
		return -errno;
	vm->run_bytes = (uint64_t)ioctl(vm->device, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
	if (run == MAP_FAILED || ioctl(vm->vcpu, KVM_GET_SREGS, &special) < 0)
		return -errno;
	vm->run = (uintptr_t)run;
	struct kvm_segment flat = {
		.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};

	special.ds = special.es = special.fs = special.gs = special.ss = flat;
	special.cs = flat;
	special.cs.selector = 8;
	special.cs.type = 11;
	special.cr0 |= 1;
	if (ioctl(vm->vcpu, KVM_SET_SREGS, &special) < 0 || ioctl(vm->vcpu, KVM_SET_REGS, &general) < 0)
		return -errno;
	return 0;
}

static void *vcpu_thread(void *argument)
{
	struct rival_vm *vm = argument;
	struct kvm_run *run = (struct kvm_run *)(uintptr_t)vm->run;

	__atomic_store_n(&vm->thread_id, (int32_t)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
	for (;;) {
		uint32_t seen = __atomic_load_n(&vm->gate, __ATOMIC_SEQ_CST);

		if (seen & CLOSED)
			return NULL;
		if (seen & SHUT) {
			sleep_on(&vm->gate, seen);
			continue;
		}
		if (!__atomic_compare_exchange_n(&vm->gate, &seen, seen + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			continue;
		__atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (!(__atomic_load_n(&vm->gate, __ATOMIC_SEQ_CST) & (SHUT | CLOSED)))
			ioctl(vm->vcpu, KVM_RUN, 0);
		if (__atomic_sub_fetch(&vm->gate, 1, __ATOMIC_SEQ_CST) & (SHUT | CLOSED))
			wake(&vm->gate);
	}
}

int32_t rival_vm_start(struct rival_vm *vm, uint32_t entry)
{
	int32_t result = rival_vm_prepare(vm, entry);
	pthread_t thread;

	if (result < 0)
		return result;
	vm->gate = SHUT;
	result = -pthread_create(&thread, NULL, vcpu_thread, vm);
	if (result < 0)
		return result;
	vm->thread = (uint64_t)thread;
	vm->has_thread = 1;
	while (__atomic_load_n(&vm->thread_id, __ATOMIC_SEQ_CST) == 0)
		usleep(100);
	return 0;
}

static void shut(struct rival_vm *vm, uint32_t bits)
{
	struct kvm_run *run = (struct kvm_run *)(uintptr_t)vm->run;
	uint32_t seen = __atomic_or_fetch(&vm->gate, bits, __ATOMIC_SEQ_CST);

	if (seen & INSIDE) {
		__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
		syscall(SYS_tgkill, getpid(), vm->thread_id, kick_signal());
	}
	for (; seen & INSIDE; seen = __atomic_load_n(&vm->gate, __ATOMIC_SEQ_CST))
		sleep_on(&vm->gate, seen);
}

static void reopen(struct rival_vm *vm)
{
	__atomic_and_fetch(&vm->gate, ~SHUT, __ATOMIC_SEQ_CST);
	wake(&vm->gate);
}

int32_t rival_vm_resume(struct rival_vm *vm)
{
	reopen(vm);
	return 0;
}

int32_t rival_vm_pause(struct rival_vm *vm)
{
	shut(vm, SHUT);
	return 0;
}

int32_t rival_vm_set(const struct rival_vm *vm, const struct rival_region *regions, uint32_t count)
{
	uint32_t i;

	for (i = 0; i < count; i++)
		if (ioctl(vm->vm, KVM_SET_USER_MEMORY_REGION, &regions[i]) < 0)
			return -errno;
	return 0;
}

int32_t rival_vm_set_in_window(struct rival_vm *vm, const struct rival_region *regions, uint32_t count)
{
	int32_t result;

	shut(vm, SHUT);
	result = rival_vm_set(vm, regions, count);
	reopen(vm);
	return result;
}

int32_t rival_vm_round_trips(const struct rival_vm *vm, uint32_t count)
{
	const struct kvm_run *run = (const struct kvm_run *)(uintptr_t)vm->run;
	uint32_t i;

	for (i = 0; i < count; i++) {
		if (ioctl(vm->vcpu, KVM_RUN, 0) < 0)
			return -errno;
		if (run->exit_reason != KVM_EXIT_IO)
			return -EIO;
	}
	return 0;
}

void rival_vm_close(struct rival_vm *vm)
{
	if (vm->has_thread) {
		shut(vm, CLOSED);
		wake(&vm->gate);
		pthread_join((pthread_t)vm->thread, NULL);
	}
	if (vm->run)
		munmap((void *)(uintptr_t)vm->run, vm->run_bytes);
	if (vm->vcpu >= 0)
		close(vm->vcpu);
	close(vm->vm);
	close(vm->device);
}

int32_t rival_stay(int32_t stay)
{
	cpu_set_t processors;
	int i;

	CPU_ZERO(&processors);
	for (i = 0; i < (stay ? 1 : CPU_SETSIZE); i++)
		CPU_SET(i, &processors);
	return sched_setaffinity(0, sizeof(processors), &processors) < 0 ? -errno : 0;
}

double rival_thread_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void rival_begin(volatile struct rival_mailbox *mailbox, uint32_t start, uint32_t pages, uint32_t write,
		 uint32_t repeat)
{
	mailbox->start = start;
	mailbox->pages = pages;
	mailbox->write = write;
	mailbox->repeat = repeat;
	__atomic_store_n(&mailbox->sequence, mailbox->sequence + 1, __ATOMIC_SEQ_CST);
}

int32_t rival_end(volatile struct rival_mailbox *mailbox)
{
	double deadline = seconds() + 10;

	__atomic_store_n(&mailbox->repeat, 0, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&mailbox->done, __ATOMIC_SEQ_CST) != mailbox->sequence)
		if (seconds() > deadline)
			return -ETIMEDOUT;
	return 0;
}

int32_t rival_discard(uint64_t host, uint64_t size, uint64_t chunk)
{
	uint64_t at;

	/* The memory is shared, so that what is given back has to be taken out of the file as well. */
	for (at = 0; at < size; at += chunk)
		if (madvise((void *)(uintptr_t)(host + at), chunk, MADV_REMOVE) < 0)
			return -errno;
	return 0;
}
