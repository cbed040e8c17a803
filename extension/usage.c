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
 * A slot may be evicted when its counters are zero, that is, all is flushed,
 * and its window is empty.  So a slot that usage_collect() returned cannot go
 * away before usage_subtract(), the only place where counters get smaller, and
 * a window that still binds anybody is never forgotten.
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

#define TRANCHE_NAME "regpilot"
#define PARTITION_COUNT 64 /* a power of two */
#define NO_SLOT (-1)
#define FLUSH_WAIT_MS 30000
#define SEARCH_INTERVAL 10000 /* microseconds between searches of a full partition */

typedef struct UsageKey
{
	Oid database;
	pg_uuid_t key_id;
} UsageKey; /* no padding: hashed and compared as bytes */

typedef struct UsageSlot
{
	UsageKey key;  /* partition lock */
	int next;	   /* partition lock: in the chain or free list */
	slock_t mutex; /* guards what follows */
	RateWindow window;
	UsageCounters counters[ENVIRONMENT_COUNT];
} UsageSlot;

typedef struct UsagePartition
{
	LWLock *lock;			/* fixed */
	int free;				/* lock: first slot of the free list */
	int hand;				/* lock: where eviction looks next */
	int64 full_at;			/* lock: monotonic time when eviction last failed */
	pg_atomic_uint32 dirty; /* atomic: a slot may hold what is not flushed */
} UsagePartition;

typedef struct UsageShared
{
	slock_t mutex;			/* guards the next four */
	Latch *worker;			/* NULL until there has been one */
	uint64 flush_requested; /* number of the latest request */
	uint64 flush_done;		/* and of the latest one that is done */
	int flush_rows;			/* rows that that one wrote */
	ConditionVariable flush_finished;

	UsagePartition partitions[PARTITION_COUNT];
} UsageShared;

static UsageShared *shared = NULL;
static int *buckets;	 /* [PARTITION_COUNT][bucket_count]: partition lock */
static UsageSlot *slots; /* [PARTITION_COUNT][slots_per_partition] */

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
	double mean = (double) regpilot_max_keys / PARTITION_COUNT;

	slots_per_partition = (int) ceil(mean + 4 * sqrt(mean)) + 4;
	bucket_count = 1;
	while (bucket_count < slots_per_partition)
		bucket_count *= 2;
}

static Size
buckets_size(void)
{
	return mul_size(PARTITION_COUNT, mul_size(bucket_count, sizeof(int)));
}

static Size
slots_size(void)
{
	return mul_size(PARTITION_COUNT, mul_size(slots_per_partition, sizeof(UsageSlot)));
}

static Size
shared_size(void)
{
	return add_size(MAXALIGN(sizeof(UsageShared)),
					add_size(MAXALIGN(buckets_size()), slots_size()));
}

static void
usage_shmem_request(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();

	size_partitions();
	RequestAddinShmemSpace(shared_size());
	RequestNamedLWLockTranche(TRANCHE_NAME, PARTITION_COUNT);
}

static void
initialize_shared(void)
{
	LWLockPadded *locks = GetNamedLWLockTranche(TRANCHE_NAME);

	memset(shared, 0, shared_size());
	SpinLockInit(&shared->mutex);
	ConditionVariableInit(&shared->flush_finished);
	memset(buckets, 0xFF, buckets_size()); /* NO_SLOT everywhere */

	for (int i = 0; i < PARTITION_COUNT; i++)
	{
		UsagePartition *partition = &shared->partitions[i];
		int first = i * slots_per_partition;

		partition->lock = &locks[i].lock;
		partition->full_at = -SEARCH_INTERVAL;
		pg_atomic_init_u32(&partition->dirty, 0);
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
	buckets = (int *) (memory + MAXALIGN(sizeof(UsageShared)));
	slots = (UsageSlot *) ((char *) buckets + MAXALIGN(buckets_size()));
	if (!found)
		initialize_shared();
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
usage_require(void)
{
	/* a backend stays in its database, and no one can rename that meanwhile */
	static bool served = false;

	if (served)
		return;

	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("regpilot must be loaded via shared_preload_libraries"),
				 errhint("Add regpilot to shared_preload_libraries and restart the server.")));

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

static int64
monotonic_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64) now.tv_sec * USECS_PER_SEC + now.tv_nsec / 1000;
}

/* Where a key belongs: its partition, and the head of its chain there. */
static UsagePartition *
locate(const UsageKey *key, int **head)
{
	uint32 hash = hash_bytes((const unsigned char *) key, sizeof(UsageKey));
	int partition = hash % PARTITION_COUNT;
	int bucket = (hash / PARTITION_COUNT) & (bucket_count - 1);

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

/* Caller holds the partition lock exclusively, so no one else is in the slot. */
static bool
slot_is_evictable(const UsageSlot *slot, int64 now)
{
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
	{
		if (!counters_are_zero(&slot->counters[i]))
			return false;
	}
	return ratelimit_is_empty(&slot->window, now);
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
	now = monotonic_now();
	if (now - partition->full_at < SEARCH_INTERVAL)
		return NO_SLOT;

	for (int i = 0; i < slots_per_partition; i++)
	{
		index = first + partition->hand;
		partition->hand = (partition->hand + 1) % slots_per_partition;
		if (slot_is_evictable(&slots[index], now))
		{
			unlink_slot(index);
			return index;
		}
	}
	partition->full_at = now;
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

	slot = &slots[index];
	slot->key = *key;
	memset(&slot->window, 0, sizeof(slot->window));
	memset(slot->counters, 0, sizeof(slot->counters));
	slot->next = *head;
	*head = index;
	return slot;
}

/*
 * Find a key's slot, or make it if asked to.  Unless NULL is returned, the
 * partition's lock is held, and the caller must call leave_slot().
 */
static UsageSlot *
enter_slot(const pg_uuid_t *key_id, bool make, UsagePartition **partition)
{
	UsageKey key;
	int *head;
	UsageSlot *slot;

	key.database = MyDatabaseId;
	key.key_id = *key_id;
	*partition = locate(&key, &head);

	LWLockAcquire((*partition)->lock, LW_SHARED);
	slot = find_slot(*head, &key);
	if (slot == NULL && make)
	{
		LWLockRelease((*partition)->lock);
		LWLockAcquire((*partition)->lock, LW_EXCLUSIVE);
		slot = find_slot(*head, &key);
		if (slot == NULL)
			slot = make_slot(*partition, head, &key);
	}
	if (slot == NULL)
		LWLockRelease((*partition)->lock);
	return slot;
}

/* Leave a slot whose counters have changed or not. */
static void
leave_slot(UsagePartition *partition, bool changed)
{
	if (changed)
	{
		/*
		 * Either usage_collect() has yet to clear the flag, and will see the
		 * change when it looks at the slot afterwards, or we see it cleared
		 * and set it for the next time.  Read first: all write to one flag.
		 */
		pg_memory_barrier();
		if (pg_atomic_read_u32(&partition->dirty) == 0)
			pg_atomic_write_u32(&partition->dirty, 1);
	}
	LWLockRelease(partition->lock);
}

UsageAdmission
usage_admit(const pg_uuid_t *key_id, Environment environment, int limit, TimestampTz now,
			RateDecision *decision)
{
	UsagePartition *partition;
	UsageSlot *slot = enter_slot(key_id, true, &partition);
	bool admitted = true;

	if (slot == NULL)
		return USAGE_EXHAUSTED;

	SpinLockAcquire(&slot->mutex);
	if (limit > 0)
	{
		*decision = ratelimit_admit(&slot->window, limit, monotonic_now());
		admitted = decision->admitted;
	}
	if (admitted)
	{
		UsageCounters *counters = &slot->counters[environment];

		counters->total_requests++;
		counters->last_used_at = Max(counters->last_used_at, now);
	}
	SpinLockRelease(&slot->mutex);

	leave_slot(partition, admitted);
	return admitted ? USAGE_ADMITTED : USAGE_LIMITED;
}

static void
add_counters(UsageCounters *sum, const UsageCounters *counters, int sign)
{
	sum->total_requests += sign * counters->total_requests;
	sum->failed_requests += sign * counters->failed_requests;
	sum->prompt_tokens += sign * counters->prompt_tokens;
	sum->completion_tokens += sign * counters->completion_tokens;
}

bool
usage_record(const pg_uuid_t *key_id, Environment environment, const UsageCounters *counters,
			 bool make)
{
	UsagePartition *partition;
	UsageSlot *slot = enter_slot(key_id, make, &partition);

	if (slot == NULL)
		return false;

	SpinLockAcquire(&slot->mutex);
	add_counters(&slot->counters[environment], counters, 1);
	SpinLockRelease(&slot->mutex);

	leave_slot(partition, true);
	return true;
}

/*
 * Append what a slot has counted to the deltas.  Caller holds the partition
 * lock and has seen to the room.
 */
static int
collect_slot(UsageSlot *slot, UsageDelta *deltas)
{
	UsageCounters counters[ENVIRONMENT_COUNT];
	int count = 0;

	if (!OidIsValid(slot->key.database))
		return 0; /* never used */

	SpinLockAcquire(&slot->mutex);
	memcpy(counters, slot->counters, sizeof(counters));

	/*
	 * Of another database there is no one to flush for: it had the name that
	 * we serve, and is no more.  Drop its counts, so the slot can be evicted.
	 */
	if (slot->key.database != MyDatabaseId)
		memset(slot->counters, 0, sizeof(slot->counters));
	SpinLockRelease(&slot->mutex);

	if (slot->key.database != MyDatabaseId)
		return 0;

	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
	{
		if (counters_are_zero(&counters[i]))
			continue;
		deltas[count].slot = slot;
		deltas[count].key_id = slot->key.key_id;
		deltas[count].environment = (Environment) i;
		deltas[count].counters = counters[i];
		count++;
	}
	return count;
}

UsageDelta *
usage_collect(int *count)
{
	int capacity = 1024;
	UsageDelta *deltas = palloc(capacity * sizeof(UsageDelta));

	*count = 0;
	for (int i = 0; i < PARTITION_COUNT; i++)
	{
		UsagePartition *partition = &shared->partitions[i];
		int most = slots_per_partition * ENVIRONMENT_COUNT;

		if (pg_atomic_exchange_u32(&partition->dirty, 0) == 0)
			continue;

		/* make room before the lock, not under it */
		if (capacity - *count < most)
		{
			capacity = Max(capacity * 2, *count + most);
			deltas = repalloc_huge(deltas, capacity * sizeof(UsageDelta));
		}

		LWLockAcquire(partition->lock, LW_SHARED);
		for (int s = 0; s < slots_per_partition; s++)
			*count += collect_slot(&slots[i * slots_per_partition + s], deltas + *count);
		LWLockRelease(partition->lock);
	}
	return deltas;
}

void
usage_subtract(const UsageDelta *deltas, int count)
{
	/* nonzero counters hold each slot in its place: no partition lock needed */
	for (int i = 0; i < count; i++)
	{
		UsageSlot *slot = deltas[i].slot;

		SpinLockAcquire(&slot->mutex);
		add_counters(&slot->counters[deltas[i].environment], &deltas[i].counters, -1);
		SpinLockRelease(&slot->mutex);
	}
}

void
usage_collect_all_again(void)
{
	for (int i = 0; i < PARTITION_COUNT; i++)
		pg_atomic_write_u32(&shared->partitions[i].dirty, 1);
}

void
usage_attach_worker(void)
{
	SpinLockAcquire(&shared->mutex);
	shared->worker = MyLatch;
	SpinLockRelease(&shared->mutex);
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
	shared->flush_rows = rows;
	SpinLockRelease(&shared->mutex);
	ConditionVariableBroadcast(&shared->flush_finished);
}

int
usage_wait_for_flush(void)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), FLUSH_WAIT_MS);
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
		rows = shared->flush_rows;
		SpinLockRelease(&shared->mutex);

		if (done >= request)
		{
			ConditionVariableCancelSleep();
			return rows;
		}

		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
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
					 "See the server log for errors of the worker, and end transactions that lock regpilot.key_usage.")));
		}
		(void) ConditionVariableTimedSleep(&shared->flush_finished, left, PG_WAIT_EXTENSION);
	}
}
