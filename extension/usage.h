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

/* Counts of a slot that wait to be written to the table. */
typedef struct UsageDelta
{
	struct UsageSlot *slot;
	pg_uuid_t key_id;
	Environment environment;
	UsageCounters counters;
} UsageDelta;

/* Ask for shared memory and install the hooks.  Called once, at preload. */
extern void usage_init(void);

/*
 * Raise ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE unless the module was
 * preloaded and this database is the one that the worker serves.
 */
extern void usage_require(void);

/*
 * Ask for a place for a request of a valid key under a limit per minute (0:
 * unlimited), and count the request if it gets one.  *decision is set unless
 * the limit is 0 or the slots are exhausted.  Holds no lock on return.
 */
pg_nodiscard extern UsageAdmission usage_admit(const pg_uuid_t *key_id, Environment environment,
											   int limit, TimestampTz now, RateDecision *decision);

/*
 * Add the outcome of requests counted before.  If the key's slot has been
 * evicted since, a new one is made only if the key may have one: false is
 * returned while "make" is false and there is none, or when slots are
 * exhausted.
 */
pg_nodiscard extern bool usage_record(const pg_uuid_t *key_id, Environment environment,
									  const UsageCounters *counters, bool make);

/*
 * For the worker.  usage_collect() returns, palloc'd, what has been counted in
 * this database and not been flushed; usage_subtract() takes it out of the
 * counters again once it is safe in the table.  One process does this at a
 * time.  usage_collect_all_again() makes the next usage_collect() look at
 * every slot: what the last one returned may not have been subtracted.
 */
extern UsageDelta *usage_collect(int *count);
extern void usage_subtract(const UsageDelta *deltas, int count);
extern void usage_collect_all_again(void);

/*
 * The worker announces itself, asks before it collects which flushes were
 * requested by then, and says afterwards that those are done.
 */
extern void usage_attach_worker(void);
extern uint64 usage_requested_flush(void);
extern void usage_finish_flush(uint64 request, int rows);

/*
 * Have the worker flush what was counted before this call, and wait for it.
 * Returns the number of rows written.  Raises an error after half a minute.
 */
extern int usage_wait_for_flush(void);

#endif /* REGPILOT_USAGE_H */
