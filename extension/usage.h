/*-------------------------------------------------------------------------
 *
 * usage.h
 *		The shared memory of the module: usage counters and rate windows of
 *		the keys in use, and the meeting point of those who want a flush with
 *		the worker who does it.
 *
 * Counts that live here survive the ROLLBACK of the transaction that made
 * them: a request that was answered has been made.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_USAGE_H
#define REGPILOT_USAGE_H

#include "regpilot.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "ratelimit.h"

typedef enum UsageAdmission
{
	USAGE_ADMITTED,	 /* counted, and has its place in the window */
	USAGE_LIMITED,	 /* the window is full; nothing was counted */
	USAGE_EXHAUSTED, /* no slot can be had; nothing was counted */
} UsageAdmission;

/* What one key did in one environment. */
typedef struct UsageCounters
{
	int64 total_requests;
	int64 failed_requests;
	int64 prompt_tokens;
	int64 completion_tokens;
	TimestampTz last_used_at; /* 0: not since the slot was made */
} UsageCounters;

struct UsageSlot;

/* What was counted, and waits to be added to the tables. */
typedef struct UsageDelta
{
	struct UsageSlot *slot; /* it was collected from */
	pg_uuid_t key_id;
	Environment environment;
	bool flagged;	  /* the key was used while flagged as stale */
	TimestampTz hour; /* that it belongs to */
	UsageCounters counters;
} UsageDelta;

/* A list of them, in the memory context that was current at its first addition. */
typedef struct UsageDeltas
{
	UsageDelta *items;
	int count;
	int capacity;
} UsageDeltas;

/* All that is known of a key, as it is saved over a restart of the server. */
typedef struct UsageRecord
{
	Oid database;
	pg_uuid_t key_id;
	RateWindow window;
	UsageCounters counters[ENVIRONMENT_COUNT];
} UsageRecord;

/* How full the shared memory is, and what became of it since the server start. */
typedef struct UsageStatus
{
	Size bytes;
	int slots;
	int used;
	int unflushed;			/* of those used: hold counts that are not in the table */
	int limiting;			/* of those used: have requests in their rate window */
	int64 evicted;			/* keys that gave their slot to another */
	int64 refused;			/* requests that found no slot */
	TimestampTz flushed_at; /* end of the last flush, 0: none yet */
	int flushed_rows;		/* keys and environments that that one wrote */
} UsageStatus;

/* Ask for shared memory and install the hooks.  Called once, at preload. */
extern void usage_init(void);

/*
 * Raise ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE unless the module was
 * preloaded, or, for usage_require(), unless this database is the one that the
 * worker serves.
 */
extern void usage_require_preload(void);
extern void usage_require(void);

/*
 * Ask for a place for a request of a valid key under a limit per minute (0:
 * unlimited), and count the request if it gets one.  "flagged" says that the key
 * is flagged as stale.  *slot is the number of the key's slot when it had one
 * last; any is safe.  It is set to what it is now, and *decision is set unless the
 * limit is 0, both unless the slots are exhausted.  Holds no lock on return.
 */
pg_nodiscard extern UsageAdmission usage_admit(const pg_uuid_t *key_id, Environment environment,
											   int limit, bool flagged, TimestampTz now,
											   uint32 *slot, RateDecision *decision);

/* Have the processor fetch a slot, of any number, for usage_admit(). */
extern void usage_prefetch(uint32 slot);

/*
 * Add the outcome of requests of a valid key, counted before.  It is not kept, but
 * counted as refused, if its slot has been evicted since and slots are exhausted.
 * Raises no error.
 */
extern void usage_record(const pg_uuid_t *key_id, Environment environment,
						 const UsageCounters *counters);

/* Add counters to others; the later time of last use is that of both. */
extern void usage_add_counters(UsageCounters *sum, const UsageCounters *counters);

/* Add a copy of a delta to a list. */
extern void usage_add_delta(UsageDeltas *list, const UsageDelta *delta);

/*
 * For the worker, in this order.  usage_attach_worker() announces it; what its
 * predecessor collected and may not have settled will be collected again.
 * usage_collect() returns what has been counted in this database and not been
 * collected.  usage_begin_commit() says that from now on nobody can tell whether
 * that is in a table, and usage_settle() that it is, as of now.
 */
extern void usage_attach_worker(void);
extern UsageDeltas usage_collect(void);
extern void usage_begin_commit(void);
extern void usage_settle(const UsageDeltas *deltas);

/*
 * The worker asks before it collects for the number of the latest flush that was
 * requested, and says when that one and all before it are done.
 */
extern uint64 usage_requested_flush(void);
extern void usage_finish_flush(uint64 request, int rows);

/*
 * Have the worker flush what was counted before this call, and add it to the
 * totals, and wait for it.  Returns the number of keys and environments that had
 * counts.  Raises an error after half a minute.
 */
extern int usage_wait_for_flush(void);

extern void usage_get_status(UsageStatus *status);

/*
 * For saving.  usage_close() refuses slots to everyone from now on; false if
 * somebody may still be in one.  usage_has_worker() tells whether a worker has
 * been there since the shared memory was made.  usage_next_record() copies what
 * the next slot holds that is worth saving, beginning at *position 0; false at
 * the end.
 * Counts are left out if it is not certain that they are not in the table, or
 * if not asked for.  It takes no locks: call it when all other processes are
 * gone, or after usage_close().  usage_restore_record() is for a server that
 * starts; the record's clock said less by "shift" than ours; false if there is
 * no slot.
 */
pg_nodiscard extern bool usage_close(void);
extern bool usage_has_worker(void);
extern bool usage_next_record(int *position, bool counters, UsageRecord *record);
pg_nodiscard extern bool usage_restore_record(const UsageRecord *record, int64 shift);

/* The clock of the rate windows, in microseconds: no one can step it. */
extern int64 usage_clock(void);

#endif /* REGPILOT_USAGE_H */
