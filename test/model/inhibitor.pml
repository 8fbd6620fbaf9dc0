/*
 * The protocol of gates and inhibit windows, as ts/kvm/gate.ts, inhibitor.ts, fairness.ts and vcpu.ts have it. Each
 * step that another thread can see is one step here, and names the TypeScript it stands for. verify.sh runs it.
 *
 * VCPUS vCPUs and CALLERS other threads that make VM ioctls; one owner that opens windows for as long as it likes. At
 * any time between two windows it may stop doing so, callers may stop calling, and guests may stay in KVM_RUN until
 * they are kicked: so whoever sleeps and should have been woken is found as a deadlock.
 *
 * What is abstracted, and why nothing is lost by it:
 *  - A counter that is only ever compared with what it was (epoch, events, entries) is one bit for each thread that
 *    remembers it: whether it has moved since that thread read it. So it doesn't wrap; the real ones do after 2^32.
 *  - A spurious wake-up is a wait that returns at once: to everybody else that looks the same as one that slept first.
 *  - A signal that arrives outside the kernel runs its (empty) handler there and then. It might also be found pending
 *    by the next KVM_RUN; but that makes the guest exit at once, which guests may do here anyhow.
 *  - A load of the gate word and the compareExchange that follows are one step: if the word has changed in between,
 *    both are done again, and nobody has noticed.
 *  - Leaving and telling the owner of it (sub, add, notify) are one step, and so are bumping the epoch and its notify:
 *    to be late with a notify looks like a spurious wake-up.
 *  - Loading the epoch is one step with what the thread did before it: had it been later, and the epoch bumped
 *    meanwhile, the wait would return at once and load it again. Coming out of KVM_RUN, or finding that one may not go
 *    in, is one step with leaving the gate: nobody else can tell.
 *  - All gates are shut in one step, and opened in one: a thread looks at no gate but its own, so whatever it does
 *    between the first gate's shutting and its own, it could as well have done before the first. Counts only fall
 *    while gates are shut, so reading one after the other answers as reading all at the right moment would. A kick's
 *    first store may be moved to where the count was read: a vCPU that leaves in between looks at it no more.
 *  - A word that nobody will read before it is written again is kept at 1, so that states which can't be told apart
 *    are one: moved marks outside of load and wait, immediate_exit from KVM_RUN's look at it to its clearing.
 *  - Time: a deadline may pass at any moment (ABANDON). Age is counted in windows (FAIRNESS).
 *
 * Variants with a known fault are made by FAULT_….
 */
#ifndef VCPUS
#define VCPUS 3
#endif
#ifndef CALLERS
#define CALLERS 2
#endif
/* How many windows in a row may keep a vCPU out before the age rule sees to it. */
#define AGE 1

/* The gate words: each vCPU's, and the common one. */
bit shut[VCPUS];
bit paused[VCPUS];
bit closed[VCPUS];
bit awaited[VCPUS];
bit count[VCPUS];
bit commonShut;
byte commonCount;

/* Per vCPU: kvm_run's immediate_exit; whether the thread is inside the kernel's KVM_RUN; a signal is pending there. */
bit immediateExit[VCPUS];
bit inRun[VCPUS];
bit signalled[VCPUS];
bit ended[VCPUS];
/* A processor's store buffer: the clearing of immediate_exit hasn't reached memory yet. Only without the fence. */
bit buffered[VCPUS];

/* Words of fairness, per vCPU: kept out; has gone into KVM_RUN since the owner read `entries`; windows missed. */
bit keptOut[VCPUS];
/* It has made progress since the owner last looked. */
bit gotOn[VCPUS];
bit entered[VCPUS] = 1;
byte age[VCPUS];
/* The owner has left the gates open for a slice of time: whoever is inside now makes progress. */
bit slice[VCPUS];
/* A vCPU that was inside when the slice began, but not in KVM_RUN yet. */
bit hurries[VCPUS];
/* The owner opens no more windows. */
bit retired;

/* Words that threads wait on: has it moved since this thread read it; does this thread sleep on it? */
#define SLEEPERS (VCPUS + CALLERS)
bit epochMoved[SLEEPERS];
bit asleep[SLEEPERS];
bit eventsMoved;
bit ownerAsleep;

/* For the properties: the owner wants a window; it is at work in one. */
bit wanted;
bit windowOpen;

/* Gate.#tellOwner: Atomics.add(events), Atomics.notify(events). Part of a step. */
inline tellOwner()
{
#ifndef FAULT_NO_EVENT
	eventsMoved = 1;
#endif
#ifdef FAULT_ONE_WORD
	epochMoved[0] = 1;
	epochMoved[1] = 1;
	notifyOne();
#elif !defined(FAULT_OWNER_NOT_NOTIFIED)
	ownerAsleep = 0;
#endif
	skip
}

/* Inhibitor.#wakeSleepers: Atomics.add(epoch), Atomics.notify(epoch). Part of a step. */
inline wakeSleepers()
{
	i = 0;
	do
	:: i < SLEEPERS ->
		epochMoved[i] = 1;
#if !defined(FAULT_SLEEPERS_NOT_NOTIFIED) && !defined(FAULT_ONE_WORD)
		asleep[i] = 0;
#endif
		i++
	:: else -> i = 0; break
	od;
#ifdef FAULT_ONE_WORD
	eventsMoved = 1;
	notifyOne();
#endif
	skip
}

#ifdef FAULT_ONE_WORD
/* One word for everybody to sleep on, and Atomics.notify(word, 1): it wakes any one of them. */
inline notifyOne()
{
	if
	:: ownerAsleep -> ownerAsleep = 0
	:: asleep[0] -> asleep[0] = 0
	:: asleep[1] -> asleep[1] = 0
	:: !ownerAsleep && !asleep[0] && !asleep[1]
	fi
}
#endif

/* Atomics.wait(word, value). Sleeps only if the word hasn't moved; may return for no reason. Then loads it again. */
inline wait(moved, sleeping)
{
	atomic {
		if
		:: moved -> moved = 0
		:: !moved -> sleeping = 1; moved = 1
#ifndef FAULT_ONE_WORD
		:: true -> moved = 0
#endif
		fi
	};
	atomic { !sleeping -> moved = 0 }
}

/* Backend.kick (memslots_kvm_kick): the signal, after immediate_exit was set. */
inline signal(v)
{
	atomic {
		if
		:: inRun[v] -> signalled[v] = 1
		/* An interrupt drains the store buffer: what was in it overwrites what the kick has stored. */
		:: !inRun[v] && buffered[v] -> buffered[v] = 0; immediateExit[v] = 0
		:: !inRun[v] && !buffered[v]
		fi
	}
}

/*
 * Gate.leave: Atomics.sub(gate, 1) & shut. With the epoch that Gate.enter loads next: Atomics.load(epoch). What
 * VcpuLoop.#handle does in between, outside the gate, is nobody else's business. Part of a step.
 */
inline leave(v)
{
	buffered[v] = 0;
	count[v] = 0;
	if
	:: shut[v] -> tellOwner()
	:: else
	fi;
	loadEpoch(v)
}

/* Not in the variant that does it too late. */
inline loadEpoch(me)
{
#ifndef FAULT_EPOCH_AFTER_GATE
	epochMoved[me] = 0
#else
	epochMoved[me] = 1
#endif
}

/* Out of KVM_RUN, and out of the gate. Part of a step. */
inline comeOut(v)
{
	inRun[v] = 0;
#ifdef FAIRNESS
	/* VcpuLoop.#run, Gate.progressed: unless it was kicked too early for its guest to get anywhere */
	if
	:: !signalled[v] || slice[v] -> gotOn[v] = gotOn[v] || keptOut[v]; keptOut[v] = 0
	:: signalled[v] && !slice[v]
	fi;
	slice[v] = 0;
#endif
	signalled[v] = 0;
#ifdef CRASH
	/* The first vCPU's thread may throw or exit here. Its exit hook, Gate.release: Atomics.store(gate, closed) */
	if
	:: v == 0 ->
		closed[v] = 1;
		shut[v] = 0;
		count[v] = 0;
#ifndef FAULT_CRASH_NOT_TOLD
		tellOwner();
#endif
		goto over
	:: true
	fi;
#endif
	leave(v);
	goto enter
}

/* ---- a vCPU's thread: VcpuLoop.run ---- */

proctype Vcpu(byte v)
{
	bit told; /* Gate.startRun found the awaited bit */

enter:
#ifdef CLEAR_BEFORE_GATE
	immediateExit[v] = 0;
#endif
	/* Gate.enter: Atomics.load(gate), Atomics.compareExchange(gate, word, word + 1) */
	atomic {
		if
		:: closed[v] -> epochMoved[v] = 1; goto over
		:: !closed[v] && (shut[v] || paused[v]) -> goto park
		:: !closed[v] && !shut[v] && !paused[v] -> count[v] = 1; epochMoved[v] = 1
		fi
	};
#if defined(FAULT_NO_FENCE)
	buffered[v] = 1;
#elif !defined(CLEAR_BEFORE_GATE) && !defined(FAULT_CLEAR_AFTER_REREAD)
	/* VcpuRunner.clearKick: Atomics.store(immediate_exit, 0) */
	immediateExit[v] = 0;
#endif
	/* Gate.startRun: Atomics.load(gate) */
	atomic {
		if
#ifndef FAULT_SHUT_NOT_REREAD
		:: shut[v] -> leave(v); goto enter
#endif
#ifndef FAULT_CLOSED_NOT_REREAD
		:: closed[v] -> leave(v); goto enter
#endif
#ifndef FAULT_PAUSED_NOT_REREAD
		:: paused[v] -> leave(v); goto enter
#endif
		:: else
		fi;
		told = awaited[v]
	};
#ifdef FAULT_CLEAR_AFTER_REREAD
	immediateExit[v] = 0;
#endif
#ifdef FAIRNESS
	/* Atomics.add(entries); and if the gate word had it, the owner is told */
	entered[v] = 1;
	if
	:: told -> atomic { told = 0; tellOwner() }
	:: !told
	fi;
#endif
	/*
	 * VcpuRunner.run: KVM_RUN looks at immediate_exit. A processor sees its own buffered store before memory. Then the
	 * guest runs until it exits by itself or, if it never does, until a signal is pending.
	 */
	atomic {
		if
		:: !immediateExit[v] || buffered[v] ->
			inRun[v] = 1;
			immediateExit[v] = !buffered[v];
			slice[v] = hurries[v];
			hurries[v] = 0
		:: else -> hurries[v] = 0; leave(v); goto enter
		fi;
		assert(!windowOpen);
		if
		:: goto endGuest
		:: true
		fi
	};
	atomic { comeOut(v) };
endGuest:
	atomic { signalled[v] -> comeOut(v) };

park:
#ifdef FAIRNESS
	/* Atomics.store(keptOut, 1) */
	keptOut[v] = 1;
#endif
#ifdef FAULT_EPOCH_AFTER_GATE
	epochMoved[v] = 0;
#endif
	wait(epochMoved[v], asleep[v]);
	goto enter;

over:
	ended[v] = 1
}

/* ---- another thread's VM ioctls, through the common gate ---- */

proctype Caller(byte me)
{
enter:
	/* Gate.enter: Atomics.load(gate), Atomics.compareExchange(gate, word, word + 1). Or it has no more calls to make. */
	atomic {
		if
		:: epochMoved[me] = 1; goto over
#ifdef FAULT_ADMITTED_WHILE_SHUT
		/* As with a lock that newcomers may share with those inside. */
		:: commonShut && commonCount == 0 -> goto park
		:: !commonShut || commonCount != 0 -> commonCount++; epochMoved[me] = 1
#else
		:: commonShut -> goto park
		:: !commonShut -> commonCount++; epochMoved[me] = 1
#endif
		fi
	};
	/* The ioctl itself; Gate.leave: Atomics.sub(gate, 1) & shut; and loading the epoch for the next Gate.enter. */
	atomic {
		assert(!windowOpen);
		commonCount--;
		if
		:: commonShut -> tellOwner()
		:: else
		fi;
		epochMoved[me] = 0;
		goto enter
	};

park:
	wait(epochMoved[me], asleep[me]);
	goto enter;

over:
	skip
}

/* ---- the owner's thread ---- */

#ifdef FAULT_INSIDE_NOT_SEEN
#define INSIDE(v) false
#else
#define INSIDE(v) count[v]
#endif

/* Fairness.#isKeptOut */
#define keptByWindows(v) (keptOut[v] && !paused[v] && !closed[v])

proctype Owner()
{
	byte i;
	bit anyone;

idle:
	/* Any of these, in any order, for as long as it likes. */
	if
	:: goto window
	:: retired = 1; goto retire
#ifdef PAUSE
	:: !paused[0] -> goto pause
	:: paused[0] -> goto resume
#endif
#ifdef CLOSE
	:: !closed[0] -> goto close
#endif
	fi;

window:
	wanted = 1;
#ifdef FAIRNESS
	/* Fairness.letStarvingIn: whoever was kept out for too long, by windows alone, is let in first. */
	do
	:: i < VCPUS ->
		if
		:: atomic { !keptByWindows(i) || gotOn[i] -> age[i] = 0; gotOn[i] = 0; i++ }
		:: atomic { keptByWindows(i) && !gotOn[i] && age[i] < AGE -> age[i]++; i++ }
		:: atomic { keptByWindows(i) && !gotOn[i] && age[i] == AGE -> entered[i] = 0; age[i] = 0 };
#ifndef FAULT_NO_AGE_RULE
			/* Atomics.or(gate, awaited) */
			awaited[i] = 1;
			do
			:: eventsMoved = 0; /* Fairness.#sleep: Atomics.load(events) */
				if
				:: !keptByWindows(i) || INSIDE(i) || entered[i] -> eventsMoved = 1; break
				:: else
				fi;
				wait(eventsMoved, ownerAsleep)
			od;
			/* Atomics.and(gate, ~awaited) */
			atomic { awaited[i] = 0; entered[i] = 1 };
#ifndef FAULT_NO_SLICE
			/* Fairness.#sleep: the slice, time enough for whoever is inside to get into KVM_RUN and on. */
			atomic { slice[i] = inRun[i]; hurries[i] = count[i] && !inRun[i] };
			!hurries[i];
#endif
#endif
			i++
		fi
	:: else -> i = 0; break
	od;
#endif
#ifdef FAULT_KICK_BEFORE_SHUT
	do
	:: i < VCPUS ->
		if
		:: atomic { count[i] != 0 -> immediateExit[i] = 1 }; signal(i)
		:: count[i] == 0
		fi;
		i++
	:: else -> i = 0; break
	od;
#endif
	/* Inhibitor.#shut: Atomics.or(gate, shut) */
	atomic {
		commonShut = 1;
		do
		:: i < VCPUS -> shut[i] = 1; i++
		:: else -> i = 0; break
		od
	};
#ifndef FAULT_KICK_BEFORE_SHUT
	/* Inhibitor.#kickInside: Inhibitor.#count, then Backend.kick stores immediate_exit, and signals */
	do
	:: i < VCPUS ->
		if
		:: atomic { count[i] != 0 -> immediateExit[i] = 1 };
			signal(i)
		:: count[i] == 0
		fi;
		i++
	:: else -> i = 0; break
	od;
#endif
waiting:
	/* Inhibitor.#waitForAllOut: Atomics.load(events) */
	eventsMoved = 0;
	/* Inhibitor.#count of every gate */
	atomic {
		anyone = (commonCount != 0);
		do
		:: i < VCPUS -> anyone = anyone || count[i]; i++
		:: else -> i = 0; break
		od
	};
	if
	:: !anyone -> eventsMoved = 1; goto work
	:: anyone -> anyone = 0
#ifdef ABANDON
	/* The deadline has passed, or another thread has cancelled: the gates open with somebody inside. */
	:: anyone -> anyone = 0; eventsMoved = 1; goto open
#endif
	fi;
	wait(eventsMoved, ownerAsleep);
	goto waiting;

work:
	/* The work itself: no ioctl of anybody's runs from here to the next step. */
	atomic {
		windowOpen = 1;
		do
		:: i < VCPUS -> assert(!inRun[i]); i++
		:: else -> i = 0; break
		od;
		assert(commonCount == 0)
	};
	windowOpen = 0;
open:
	/* Atomics.and(gate, ~shut) */
	atomic {
		wanted = 0;
		commonShut = 0;
		do
		:: i < VCPUS -> shut[i] = 0; i++
		:: else -> i = 0; break
		od
	};
	atomic { wakeSleepers() };
	goto idle;

#ifdef PAUSE
pause:
	/* Inhibitor.pause: Atomics.or(gate, paused), Backend.kick */
	paused[0] = 1;
	immediateExit[0] = 1;
	signal(0);
	/* The owner goes on at once; or, to see that the kick can't be lost, waits until the vCPU is out. */
	if
	:: goto idle
	:: true
	fi;
	count[0] == 0;
	goto idle;
resume:
	/* Inhibitor.resume: Atomics.and(gate, ~paused) */
	paused[0] = 0;
	atomic { wakeSleepers() };
	goto idle;
#endif
#ifdef CLOSE
close:
	/* Inhibitor.close: Atomics.or(gate, closed), Backend.kick; then Vcpu.end waits for the thread. */
	closed[0] = 1;
	immediateExit[0] = 1;
	signal(0);
	atomic { wakeSleepers() };
	ended[0];
	goto idle;
#endif

retire:
#ifdef PAUSE
	if
	:: paused[0] -> paused[0] = 0; atomic { wakeSleepers() }
	:: else
	fi;
#endif
	skip
}

init
{
	byte n;

	atomic {
		do
		:: n < VCPUS -> run Vcpu(n); n++
		:: else -> n = 0; break
		od;
		do
		:: n < CALLERS -> run Caller(VCPUS + n); n++
		:: else -> n = 0; break
		od;
		run Owner()
	}
}

#ifdef OWNER_GETS_IN
ltl owner_gets_in { []<> !wanted }
#endif
#ifdef VCPU_GETS_ON
ltl vcpu_gets_on { []<> (!keptOut[0] || (inRun[0] && retired)) }
#endif
