/*-------------------------------------------------------------------------
 *
 * usage.c
 *		The shared memory of the module.
 *
 * Keys in use have a slot: a rate window and a set of counters for each
 * environment.  Slots are found through a hash table by database and key,
 * split into partitions.  It is the server's shared hash table (dynahash) in
 * small, made here because its partitions can be walked one at a time, which
 * flush and eviction need.
 *
 * Lock protocol
 * -------------
 * Each partition has a lightweight lock.  Shared, it keeps the partition's
 * chains, free list and keys as they are; exclusive, it may change them, which
 * only making and evicting a slot do.  Within that, a slot's window and
 * counters are guarded by the slot's spinlock.  Order: partition lock, then
 * spinlock; never two partitions, never two slots.  No lock outlives a
 * function of this file.
 *
 * Slots with counts to flush are on their partition's list of dirty slots.
 * Whoever makes a slot dirty pushes it, under the slot's spinlock, by
 * compare-and-exchange on the list's head; the worker takes the whole
 * list at once.  So a flush looks at no slot that has nothing to flush.
 *
 * A slot may be evicted when its counters are zero, that is, all is flushed,
 * and its window is empty.  So a slot that usage_collect() returned cannot go
 * away before usage_settle(), the only place where counters get smaller, and
 * a window that still binds anybody is never forgotten.  A standby, which cannot
 * flush, gives up counts rather than refuse keys.
 *
 * The clock of the windows is CLOCK_MONOTONIC, which no one can step, and it is
 * read under the slot's spinlock: requests are counted in the order, and in
 * the second, in which they are admitted.
 *
 *-------------------------------------------------------------------------
 */
#include "usage.h"

#include <math.h>
#include <time.h>

#include "access/xlog.h"
#include "commands/dbcommands.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "location.h"

#define TRANCHE_NAME "regpilot"
#define USAGE_PARTITIONS 64 /* a power of two */
#define NO_SLOT (-1)
#define FLUSH_WAIT_MS 30000
#define SEARCH_INTERVAL 10000 /* microseconds between searches of a full partition */
#define CLOSE_WAIT_MS 1000

#define SLOT_SIZE (2 * CACHE_LINE) /* two that lie side by side are fetched together */

typedef struct UsageKey
{
	Oid database;
	pg_uuid_t key_id;
} UsageKey; /* no padding: hashed and compared as bytes */

/* What admission counts in one environment. */
typedef struct UsageTally
{
	int64 requests;
	TimestampTz last_used_at; /* 0: not since the slot was made */
} UsageTally;

/*
 * What every check touches of a key.  On a busy server each is out of the
 * processor's caches, and is paid for by the cache line.
 */
typedef struct UsageSlot
{
	UsageKey key;	   /* partition lock */
	int next;		   /* partition lock: in the chain or free list */
	int next_dirty;	   /* in the dirty list, while "dirty" */
	slock_t mutex;	   /* guards what follows, and the slot's details */
	bool dirty;		   /* on the dirty list, or taken off it but not collected yet */
	bool flagged;	   /* used while its key was flagged as stale */
	bool has_outcomes; /* else none is kept in the details */
	UsageTally tallies[ENVIRONMENT_COUNT];
} pg_attribute_aligned(SLOT_SIZE) UsageSlot;

StaticAssertDecl(sizeof(UsageSlot) == SLOT_SIZE, "a slot is larger than its cache lines");
StaticAssertDecl(PG_CACHE_LINE_SIZE % SLOT_SIZE == 0, "slots do not lie on cache lines");

/* What became of requests in one environment, which is heard of later. */
typedef struct UsageOutcome
{
	int64 failed_requests;
	int64 prompt_tokens;
	int64 completion_tokens;
} UsageOutcome;

/* What else is known of the key of a slot. */
typedef struct UsageDetails
{
	RateWindow window;
	UsageOutcome outcomes[ENVIRONMENT_COUNT];
} UsageDetails;

typedef struct UsagePartition
{
	LWLock *lock;				  /* fixed */
	int free;					  /* lock: first slot of the free list */
	int hand;					  /* lock: where eviction looks next */
	int64 full_at;				  /* lock: usage_clock() when eviction last failed */
	int64 evicted;				  /* lock: number of evictions */
	int64 refused;				  /* lock: number of failed ones */
	pg_atomic_uint32 first_dirty; /* atomic: head of the dirty list */
} UsagePartition;

typedef struct UsageShared
{
	slock_t mutex;			/* guards the next six */
	Latch *worker;			/* NULL until there has been one */
	uint64 flush_requested; /* number of the latest request */
	uint64 flush_done;		/* and of the latest one that is done */
	int done_rows;			/* rows that that one wrote */
	TimestampTz flushed_at; /* end of the last flush, requested or not */
	int flushed_rows;		/* rows that it wrote */
	ConditionVariable flush_finished;

	bool committing; /* written by the worker: see usage_begin_commit() */
	bool closed;	 /* once true stays so: see usage_close() */

	UsagePartition partitions[USAGE_PARTITIONS];
} UsageShared;

static UsageShared *shared = NULL;
static int *buckets;		  /* [USAGE_PARTITIONS][bucket_count]: partition lock */
static UsageSlot *slots;	  /* [USAGE_PARTITIONS][slots_per_partition] */
static UsageDetails *details; /* of the slots, as many */

static int slots_per_partition;
static int bucket_count; /* in a partition; a power of two */

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

/*
 * Keys spread over the partitions by hash.  Four standard deviations above the
 * mean, and a few, leave room for max_keys of them almost surely.
 */
static void
size_partitions(void)
{
	double mean = (double) regpilot_max_keys / USAGE_PARTITIONS;

	slots_per_partition = (int) ceil(mean + 4 * sqrt(mean)) + 4;
	bucket_count = 1;
	while (bucket_count < slots_per_partition)
		bucket_count *= 2;
}

static Size
buckets_size(void)
{
	return mul_size(USAGE_PARTITIONS, mul_size(bucket_count, sizeof(int)));
}

/* Of an array with an element a slot, of that size. */
static Size
per_slot_size(Size element)
{
	return mul_size(USAGE_PARTITIONS, mul_size(slots_per_partition, element));
}

static Size
shared_size(void)
{
	Size size = CACHELINEALIGN(sizeof(UsageShared));

	size = add_size(size, CACHELINEALIGN(buckets_size()));
	size = add_size(size, per_slot_size(sizeof(UsageSlot)));
	return add_size(size, per_slot_size(sizeof(UsageDetails)));
}

static void
usage_shmem_request(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();

	size_partitions();
	RequestAddinShmemSpace(shared_size());
	RequestAddinShmemSpace(location_size());
	RequestNamedLWLockTranche(TRANCHE_NAME, USAGE_PARTITIONS);
}

static void
initialize_shared(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE_NAME);

	memset(shared, 0, shared_size());
	SpinLockInit(&shared->mutex);
	ConditionVariableInit(&shared->flush_finished);
	memset(buckets, 0xFF, buckets_size()); /* NO_SLOT everywhere */

	for (int i = 0; i < USAGE_PARTITIONS; i++)
	{
		UsagePartition *partition = &shared->partitions[i];
		int first = i * slots_per_partition;

		partition->lock = &locks[i].lock;
		partition->full_at = -SEARCH_INTERVAL;
		pg_atomic_init_u32(&partition->first_dirty, NO_SLOT);
		partition->free = first;
		for (int s = 0; s < slots_per_partition; s++)
		{
			UsageSlot *slot = &slots[first + s];

			SpinLockInit(&slot->mutex);
			slot->next = s + 1 < slots_per_partition ? first + s + 1 : NO_SLOT;
		}
	}
}

/* Runs at server start, and again when the server restarts after a crash. */
static void
usage_shmem_startup(void)
{
	bool found;
	char *memory;

	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	memory = ShmemInitStruct("regpilot", shared_size(), &found);
	shared = (UsageShared *) memory;
	memory += CACHELINEALIGN(sizeof(UsageShared));
	buckets = (int *) memory;
	memory += CACHELINEALIGN(buckets_size());
	slots = (UsageSlot *) memory;
	memory += per_slot_size(sizeof(UsageSlot));
	details = (UsageDetails *) memory;
	if (!found)
		initialize_shared();
	location_attach();
	LWLockRelease(AddinShmemInitLock);
}

void
usage_init(void)
{
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = usage_shmem_request;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = usage_shmem_startup;
}

void
usage_require_preload(void)
{
	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("regpilot must be loaded via shared_preload_libraries"),
				 errdetail(
					 "Usage and rate windows are in shared memory, which is made at server start."),
				 errhint("Add regpilot to shared_preload_libraries and restart the server.")));
}

void
usage_require(void)
{
	/* a backend stays in its database, and no one can rename that meanwhile */
	static bool served = false;

	if (served)
		return;

	usage_require_preload();
	if (strcmp(get_database_name(MyDatabaseId), regpilot_database) != 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("database \"%s\" is not served by the regpilot worker",
					get_database_name(MyDatabaseId)),
			 errdetail("The worker serves database \"%s\"; usage counted elsewhere would be lost.",
					   regpilot_database),
			 errhint("Set regpilot.database and restart the server.")));

	served = true;
}

int64
usage_clock(void)
{
	struct timespec now;

	/* ahead of the system's by as much as a rate window reaches back */
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) (now.tv_sec + RATE_BUCKETS) * USECS_PER_SEC + now.tv_nsec / 1000;
}

/* Where a key belongs: its partition, and the head of its chain there. */
static UsagePartition *
locate(const UsageKey *key, int **head)
{
	uint32 hash = hash_bytes((const unsigned char *) key, sizeof(UsageKey));
	int partition = hash % USAGE_PARTITIONS;
	int bucket = (hash / USAGE_PARTITIONS) & (bucket_count - 1);

	*head = &buckets[(size_t) partition * bucket_count + bucket];
	return &shared->partitions[partition];
}

/* Caller holds the partition lock. */
static UsageSlot *
find_slot(int head, const UsageKey *key)
{
	for (int i = head; i != NO_SLOT; i = slots[i].next)
	{
		if (memcmp(&slots[i].key, key, sizeof(UsageKey)) == 0)
			return &slots[i];
	}
	return NULL;
}

static bool
counters_are_zero(const UsageCounters *counters)
{
	return (counters->total_requests | counters->failed_requests | counters->prompt_tokens |
			counters->completion_tokens) == 0;
}

static UsageDetails *
details_of(const UsageSlot *slot)
{
	return &details[slot - slots];
}

/* What was counted in one environment.  Caller holds the slot's spinlock. */
static UsageCounters
get_counters(const UsageSlot *slot, int environment)
{
	const UsageTally *tally = &slot->tallies[environment];
	UsageCounters counters = {
		.total_requests = tally->requests,
		.last_used_at = tally->last_used_at,
	};

	if (slot->has_outcomes)
	{
		const UsageOutcome *outcome = &details_of(slot)->outcomes[environment];

		counters.failed_requests = outcome->failed_requests;
		counters.prompt_tokens = outcome->prompt_tokens;
		counters.completion_tokens = outcome->completion_tokens;
	}
	return counters;
}

/* Set what was counted.  Caller holds the slot's spinlock. */
static void
set_counters(UsageSlot *slot, int environment, const UsageCounters *counters)
{
	slot->tallies[environment] = (UsageTally){
		.requests = counters->total_requests,
		.last_used_at = counters->last_used_at,
	};

	slot->has_outcomes |=
		(counters->failed_requests | counters->prompt_tokens | counters->completion_tokens) != 0;
	if (slot->has_outcomes)
		details_of(slot)->outcomes[environment] = (UsageOutcome){
			.failed_requests = counters->failed_requests,
			.prompt_tokens = counters->prompt_tokens,
			.completion_tokens = counters->completion_tokens,
		};
}

static bool
slot_has_counts(const UsageSlot *slot)
{
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
	{
		UsageCounters counters = get_counters(slot, i);

		if (!counters_are_zero(&counters))
			return true;
	}
	return false;
}

/* Caller holds the partition lock exclusively, so no one else is in the slot. */
static bool
slot_is_evictable(const UsageSlot *slot, int64 now)
{
	return ratelimit_is_empty(&details_of(slot)->window, now) &&
		   (!slot_has_counts(slot) || (IsUnderPostmaster && RecoveryInProgress()));
}

/* Take a slot out of its chain.  Caller holds the partition lock exclusively. */
static void
unlink_slot(int index)
{
	int *link;

	(void) locate(&slots[index].key, &link);
	while (*link != index)
		link = &slots[*link].next;
	*link = slots[index].next;
}

/*
 * A slot to use anew, or NO_SLOT if all are needed.  Caller holds the partition
 * lock exclusively.
 */
static int
take_slot(UsagePartition *partition)
{
	int first = (int) (partition - shared->partitions) * slots_per_partition;
	int index = partition->free;
	int64 now;

	if (index != NO_SLOT)
	{
		partition->free = slots[index].next;
		return index;
	}

	/* a search takes its time: do not repeat one that failed for every request */
	now = usage_clock();
	if (now - partition->full_at < SEARCH_INTERVAL)
	{
		partition->refused++;
		return NO_SLOT;
	}

	for (int i = 0; i < slots_per_partition; i++)
	{
		index = first + partition->hand;
		partition->hand = (partition->hand + 1) % slots_per_partition;
		if (slot_is_evictable(&slots[index], now))
		{
			unlink_slot(index);
			partition->evicted++;
			return index;
		}
	}
	partition->full_at = now;
	partition->refused++;
	return NO_SLOT;
}

/* Caller holds the partition lock exclusively.  NULL if slots are exhausted. */
static UsageSlot *
make_slot(UsagePartition *partition, int *head, const UsageKey *key)
{
	int index = take_slot(partition);
	UsageSlot *slot;

	if (index == NO_SLOT)
		return NULL;

	/* "dirty" stays: it says where the slot is, not what is in it */
	slot = &slots[index];
	slot->key = *key;
	slot->flagged = false;
	slot->has_outcomes = false;
	memset(slot->tallies, 0, sizeof(slot->tallies));
	memset(details_of(slot), 0, sizeof(UsageDetails));
	slot->next = *head;
	*head = index;
	return slot;
}

/* The partition that a slot lies in. */
static UsagePartition *
partition_of(const UsageSlot *slot)
{
	return &shared->partitions[(slot - slots) / slots_per_partition];
}

static bool
is_slot(uint32 number)
{
	return number < (uint32) (USAGE_PARTITIONS * slots_per_partition);
}

/*
 * The slot of that number, if it is the key's.  If so its partition's lock is held,
 * and the caller must release it.
 */
static UsageSlot *
enter_slot_by_number(uint32 number, const UsageKey *key, UsagePartition **partition)
{
	UsageSlot *slot;

	if (!is_slot(number))
		return NULL;

	slot = &slots[number];
	*partition = partition_of(slot);
	LWLockAcquire((*partition)->lock, LW_SHARED);
	if (memcmp(&slot->key, key, sizeof(UsageKey)) == 0)
		return slot;
	LWLockRelease((*partition)->lock);
	return NULL;
}

/*
 * Find a key's slot, which may have that number, or make it.  Unless NULL is
 * returned, the partition's lock is held, and the caller must release it.
 */
static UsageSlot *
enter_slot(const pg_uuid_t *key_id, uint32 number, UsagePartition **partition)
{
	UsageKey key;
	int *head;
	UsageSlot *slot;

	key.database = MyDatabaseId;
	key.key_id = *key_id;

	slot = enter_slot_by_number(number, &key, partition);
	if (slot == NULL)
	{
		*partition = locate(&key, &head);
		LWLockAcquire((*partition)->lock, LW_SHARED);
		slot = find_slot(*head, &key);
	}
	if (slot == NULL)
	{
		LWLockRelease((*partition)->lock);
		LWLockAcquire((*partition)->lock, LW_EXCLUSIVE);
		slot = find_slot(*head, &key);
		if (slot == NULL)
			slot = make_slot(*partition, head, &key);
	}
	if (shared->closed)
		slot = NULL;
	if (slot == NULL)
		LWLockRelease((*partition)->lock);
	return slot;
}

/*
 * Put a slot that has counts to flush on the dirty list, unless it is there.
 * Caller holds the slot's spinlock: who finds the slot dirty relies on the list.
 */
static void
become_dirty(UsagePartition *partition, UsageSlot *slot)
{
	uint32 first;

	if (slot->dirty)
		return;
	slot->dirty = true;
	first = pg_atomic_read_u32(&partition->first_dirty);
	do
	{
		slot->next_dirty = (int) first;
	} while (
		!pg_atomic_compare_exchange_u32(&partition->first_dirty, &first, (uint32) (slot - slots)));
}

UsageAdmission
usage_admit(const pg_uuid_t *key_id, Environment environment, int limit, bool flagged,
			TimestampTz now, uint32 *number, RateDecision *decision)
{
	UsagePartition *partition;
	UsageSlot *slot = enter_slot(key_id, *number, &partition);
	bool admitted = true;

	if (slot == NULL)
		return USAGE_EXHAUSTED;
	*number = (uint32) (slot - slots);

	SpinLockAcquire(&slot->mutex);
	if (limit > 0)
	{
		*decision = ratelimit_admit(&details_of(slot)->window, limit, usage_clock());
		admitted = decision->admitted;
	}
	if (admitted)
	{
		UsageTally *tally = &slot->tallies[environment];

		tally->requests++;
		tally->last_used_at = Max(tally->last_used_at, now);
		slot->flagged |= flagged;
		become_dirty(partition, slot);
	}
	SpinLockRelease(&slot->mutex);

	LWLockRelease(partition->lock);
	return admitted ? USAGE_ADMITTED : USAGE_LIMITED;
}

void
usage_prefetch(uint32 number)
{
	if (!is_slot(number))
		return;
	for (Size i = 0; i < sizeof(UsageSlot); i += CACHE_LINE)
		__builtin_prefetch((char *) &slots[number] + i, 1);
}

void
usage_add_counters(UsageCounters *sum, const UsageCounters *counters)
{
	sum->total_requests += counters->total_requests;
	sum->failed_requests += counters->failed_requests;
	sum->prompt_tokens += counters->prompt_tokens;
	sum->completion_tokens += counters->completion_tokens;
	sum->last_used_at = Max(sum->last_used_at, counters->last_used_at);
}

static void
subtract_counters(UsageCounters *sum, const UsageCounters *counters)
{
	sum->total_requests -= counters->total_requests;
	sum->failed_requests -= counters->failed_requests;
	sum->prompt_tokens -= counters->prompt_tokens;
	sum->completion_tokens -= counters->completion_tokens;
}

void
usage_record(const pg_uuid_t *key_id, Environment environment, const UsageCounters *counters)
{
	UsagePartition *partition;
	UsageSlot *slot = enter_slot(key_id, LOCATION_NO_SLOT, &partition);
	UsageCounters sum;

	if (slot == NULL)
		return;

	SpinLockAcquire(&slot->mutex);
	sum = get_counters(slot, environment);
	usage_add_counters(&sum, counters);
	set_counters(slot, environment, &sum);
	become_dirty(partition, slot);
	SpinLockRelease(&slot->mutex);

	LWLockRelease(partition->lock);
}

void
usage_add_delta(UsageDeltas *list, const UsageDelta *delta)
{
	if (list->count == list->capacity)
	{
		list->capacity = Max(1024, list->capacity * 2);
		list->items = list->items == NULL
						  ? palloc(list->capacity * sizeof(UsageDelta))
						  : repalloc_huge(list->items, list->capacity * sizeof(UsageDelta));
	}
	list->items[list->count++] = *delta;
}

/*
 * The hour that a delta belongs to: that of its last request, which may be a
 * flush interval later than its first one.
 */
static TimestampTz
hour_of(const UsageCounters *counters)
{
	TimestampTz time = counters->last_used_at;

	if (time == 0)
		time = GetCurrentTimestamp();
	return time - time % USECS_PER_HOUR;
}

/*
 * Take what a slot of the dirty list has counted.  Caller holds the partition
 * lock.  Returns where the list goes on.
 */
static int
collect_slot(UsageSlot *slot, UsageDeltas *deltas)
{
	bool ours = slot->key.database == MyDatabaseId;
	UsageDelta delta = {.slot = slot, .key_id = slot->key.key_id};
	UsageCounters counters[ENVIRONMENT_COUNT];
	int next_dirty;

	SpinLockAcquire(&slot->mutex);
	next_dirty = slot->next_dirty; /* once not dirty it may be pushed again */
	slot->dirty = false;
	delta.flagged = slot->flagged;
	slot->flagged = false;
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
	{
		static const UsageCounters none = {0};

		counters[i] = get_counters(slot, i);

		/*
		 * Of another database there is no one to flush for: it had the name that
		 * we serve, and is no more.  Drop its counts, so the slot can be evicted.
		 */
		if (!ours)
			set_counters(slot, i, &none);
	}
	SpinLockRelease(&slot->mutex);

	for (int i = 0; ours && i < ENVIRONMENT_COUNT; i++)
	{
		if (counters_are_zero(&counters[i]))
			continue;
		delta.environment = (Environment) i;
		delta.hour = hour_of(&counters[i]);
		delta.counters = counters[i];
		usage_add_delta(deltas, &delta);
	}
	return next_dirty;
}

UsageDeltas
usage_collect(void)
{
	UsageDeltas deltas = {0};

	for (int i = 0; i < USAGE_PARTITIONS; i++)
	{
		UsagePartition *partition = &shared->partitions[i];
		int slot;

		LWLockAcquire(partition->lock, LW_SHARED);
		slot = (int) pg_atomic_exchange_u32(&partition->first_dirty, (uint32) NO_SLOT);
		while (slot != NO_SLOT)
			slot = collect_slot(&slots[slot], &deltas);
		LWLockRelease(partition->lock);
	}
	return deltas;
}

void
usage_begin_commit(void)
{
	shared->committing = true;
	pg_memory_barrier();
}

void
usage_settle(const UsageDeltas *deltas)
{
	TimestampTz now = GetCurrentTimestamp();

	/* nonzero counters hold each slot in its place: no partition lock needed */
	for (int i = 0; i < deltas->count; i++)
	{
		const UsageDelta *delta = &deltas->items[i];
		UsageSlot *slot = delta->slot;

		UsageCounters rest;

		SpinLockAcquire(&slot->mutex);
		rest = get_counters(slot, delta->environment);
		subtract_counters(&rest, &delta->counters);
		set_counters(slot, delta->environment, &rest);
		SpinLockRelease(&slot->mutex);
	}
	pg_memory_barrier();
	shared->committing = false;

	SpinLockAcquire(&shared->mutex);
	shared->flushed_at = now;
	shared->flushed_rows = deltas->count;
	SpinLockRelease(&shared->mutex);
}

/* Make the dirty lists anew from the slots that have counts. */
static void
collect_all_again(void)
{
	for (int i = 0; i < USAGE_PARTITIONS; i++)
	{
		UsagePartition *partition = &shared->partitions[i];

		/* keeps everyone else out of the slots */
		LWLockAcquire(partition->lock, LW_EXCLUSIVE);
		pg_atomic_write_u32(&partition->first_dirty, (uint32) NO_SLOT);
		for (int s = 0; s < slots_per_partition; s++)
		{
			UsageSlot *slot = &slots[i * slots_per_partition + s];

			slot->dirty = false;
			if (slot_has_counts(slot))
				become_dirty(partition, slot);
		}
		LWLockRelease(partition->lock);
	}
}

void
usage_attach_worker(void)
{
	SpinLockAcquire(&shared->mutex);
	shared->worker = MyLatch;
	SpinLockRelease(&shared->mutex);

	collect_all_again();
	shared->committing = false;
}

uint64
usage_requested_flush(void)
{
	uint64 request;

	SpinLockAcquire(&shared->mutex);
	request = shared->flush_requested;
	SpinLockRelease(&shared->mutex);
	return request;
}

void
usage_finish_flush(uint64 request, int rows)
{
	SpinLockAcquire(&shared->mutex);
	shared->flush_done = request;
	shared->done_rows = rows;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->flush_finished);
}

int
usage_wait_for_flush(void)
{
	int64 deadline = usage_clock() + FLUSH_WAIT_MS * INT64CONST(1000);
	Latch *worker;
	uint64 request;

	SpinLockAcquire(&shared->mutex);
	request = ++shared->flush_requested;
	worker = shared->worker;
	SpinLockRelease(&shared->mutex);

	/* the latch of a worker that is gone may be another's now: no harm done */
	if (worker != NULL)
		SetLatch(worker);

	ConditionVariablePrepareToSleep(&shared->flush_finished);
	for (;;)
	{
		uint64 done;
		int rows;
		long left;

		SpinLockAcquire(&shared->mutex);
		done = shared->flush_done;
		rows = shared->done_rows;
		SpinLockRelease(&shared->mutex);

		if (done >= request)
		{
			ConditionVariableCancelSleep();
			return rows;
		}

		left = (deadline - usage_clock()) / 1000;
		if (left <= 0)
		{
			ConditionVariableCancelSleep();
			ereport(
				ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the regpilot worker has not flushed within %d seconds",
						FLUSH_WAIT_MS / 1000),
				 errdetail("The counts are kept, and written when the worker can."),
				 errhint(
					 "See the server log for errors of the worker, and end transactions that lock regpilot.usage_journal or regpilot.key_usage.")));
		}
		(void) ConditionVariableTimedSleep(&shared->flush_finished, left, PG_WAIT_EXTENSION);
	}
}

void
usage_get_status(UsageStatus *status)
{
	int64 now = usage_clock();

	memset(status, 0, sizeof(*status));
	status->bytes = add_size(shared_size(), location_size());
	status->slots = USAGE_PARTITIONS * slots_per_partition;

	SpinLockAcquire(&shared->mutex);
	status->flushed_at = shared->flushed_at;
	status->flushed_rows = shared->flushed_rows;
	SpinLockRelease(&shared->mutex);

	for (int i = 0; i < USAGE_PARTITIONS; i++)
	{
		UsagePartition *partition = &shared->partitions[i];

		CHECK_FOR_INTERRUPTS();
		LWLockAcquire(partition->lock, LW_SHARED);
		status->evicted += partition->evicted;
		status->refused += partition->refused;
		for (int s = 0; s < slots_per_partition; s++)
		{
			UsageSlot *slot = &slots[i * slots_per_partition + s];

			if (!OidIsValid(slot->key.database))
				continue; /* never used */
			status->used++;
			SpinLockAcquire(&slot->mutex);
			status->unflushed += slot_has_counts(slot);
			status->limiting += !ratelimit_is_empty(&details_of(slot)->window, now);
			SpinLockRelease(&slot->mutex);
		}
		LWLockRelease(partition->lock);
	}
}

bool
usage_close(void)
{
	int waited = 0;

	shared->closed = true;
	pg_memory_barrier();

	/* who has entered a slot before holds its partition's lock until he leaves */
	for (int i = 0; i < USAGE_PARTITIONS; i++)
	{
		while (!LWLockConditionalAcquire(shared->partitions[i].lock, LW_EXCLUSIVE))
		{
			if (waited++ >= CLOSE_WAIT_MS)
				return false;
			pg_usleep(1000L);
		}
		LWLockRelease(shared->partitions[i].lock);
	}
	return true;
}

bool
usage_has_worker(void)
{
	return shared->worker != NULL;
}

bool
usage_next_record(int *position, bool counters, UsageRecord *record)
{
	counters &= !shared->committing;

	while (*position < USAGE_PARTITIONS * slots_per_partition)
	{
		const UsageSlot *slot = &slots[(*position)++];

		if (!OidIsValid(slot->key.database))
			continue; /* never used */
		if (ratelimit_is_empty(&details_of(slot)->window, usage_clock()) &&
			!(counters && slot_has_counts(slot)))
			continue;

		memset(record, 0, sizeof(*record));
		record->database = slot->key.database;
		record->key_id = slot->key.key_id;
		record->window = details_of(slot)->window;
		for (int i = 0; counters && i < ENVIRONMENT_COUNT; i++)
			record->counters[i] = get_counters(slot, i);
		return true;
	}
	return false;
}

bool
usage_restore_record(const UsageRecord *record, int64 shift)
{
	UsageKey key;
	int *head;
	UsagePartition *partition;
	UsageSlot *slot;

	key.database = record->database;
	key.key_id = record->key_id;
	partition = locate(&key, &head);
	slot = find_slot(*head, &key);
	if (slot == NULL)
		slot = make_slot(partition, head, &key);
	if (slot == NULL)
		return false;

	/* the worker finds the counts when it attaches itself */
	ratelimit_restore(&details_of(slot)->window, &record->window, shift, usage_clock());
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
		set_counters(slot, i, &record->counters[i]);
	return true;
}
