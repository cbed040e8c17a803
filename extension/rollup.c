/*-------------------------------------------------------------------------
 *
 * rollup.c
 *		The rollup of the request log: sums of its rows by the hour and the day,
 *		made by the worker.
 *
 * regpilot.request_rollup_progress says up to which time rows have been rolled up, and
 * changes in the same transaction as the sums: who reads the sums and, under the
 * same snapshot, the rows of the log from that time on has each row once, whatever
 * crashes and whenever.  record_many() has no part in it.
 *
 * Rows come with the time at which they were written, and may be committed later.  So a time
 * is noted together with the transactions that are writing to the log then, which
 * its lock tells, and it is rolled up to once they have ended, five seconds later or more.
 *
 * When the clock is set back, rows come of times that have been rolled up.  The sums
 * of that day and later are then made anew.
 *
 *-------------------------------------------------------------------------
 */
#include "rollup.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_roll_up_request_log);

#define INTERVAL_MS (5 * 1000)
#define RETRY_MS 1000

/* A clock that is set back by less needs nothing: rows are rolled up when they are older. */
#define CLOCK_TOLERANCE (INTERVAL_MS / 2 * INT64CONST(1000))

/*
 * The time of the log that one transaction of the worker rolls up: so much that it
 * takes a fraction of a second, lest flushes have to wait.
 */
#define SLICE_MIN USECS_PER_SEC
#define SLICE_MAX USECS_PER_DAY
#define SLICE_BRIEF (100 * INT64CONST(1000)) /* microseconds it took: the next one may be longer */
#define SLICE_LONG (500 * INT64CONST(1000))

/* A time to roll up to, and who may still write rows from before it. */
typedef struct Target
{
	TimestampTz time;			   /* 0: none */
	VirtualTransactionId *writers; /* the last is invalid; in TopMemoryContext */
} Target;

static LOCKTAG
log_lock(Oid log)
{
	LOCKTAG tag;

	SET_LOCKTAG_RELATION(tag, MyDatabaseId, log);
	return tag;
}

static void
set_target(Target *target, Oid log, TimestampTz now)
{
	LOCKTAG tag = log_lock(log);
	VirtualTransactionId *writers;
	int count;

	if (target->writers != NULL)
		pfree(target->writers);
	*target = (Target){.time = 0};

	writers = GetLockConflicts(&tag, ShareLock, &count);
	target->writers =
		MemoryContextAlloc(TopMemoryContext, (count + 1) * sizeof(VirtualTransactionId));
	memcpy(target->writers, writers, (count + 1) * sizeof(VirtualTransactionId));
	target->time = now;
}

/* Whether all who wrote then have ended. */
static bool
is_settled(const Target *target)
{
	for (const VirtualTransactionId *writer = target->writers; VirtualTransactionIdIsValid(*writer);
		 writer++)
	{
		if (!VirtualXactLock(*writer, false))
			return false;
	}
	return true;
}

/* Call one of the functions in SQL; its result, a time. */
static TimestampTz
call(const char *query, TimestampTz time, int64 slice)
{
	Oid types[] = {TIMESTAMPTZOID, INTERVALOID};
	Interval interval = {.time = slice};
	Datum values[] = {TimestampTzGetDatum(time), IntervalPGetDatum(&interval)};
	bool isnull;
	Datum result;

	if (SPI_execute_with_args(query, lengthof(types), types, values, NULL, false, 1) !=
			SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not roll up the request log");
	result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? DT_NOBEGIN : DatumGetTimestampTz(result);
}

/* Roll up to a time, or so much of it; up to which time that is. */
static TimestampTz
roll_up(TimestampTz time, int64 slice)
{
	return call("SELECT regpilot.roll_up($1, $2)", time, slice);
}

/* Have the days from that time on rolled up again. */
static void
forget(TimestampTz time)
{
	(void) call("SELECT regpilot.forget_rollup($1)", time, 0);
}

/* Whether the clock has been set back since the last call. */
static bool
clock_was_set_back(TimestampTz now)
{
	static TimestampTz last = 0;
	static int64 last_steady;
	int64 behind = last == 0 ? 0 : usage_clock() - last_steady - (now - last);

	last = now;
	last_steady = usage_clock();
	return behind > CLOCK_TOLERANCE;
}

int
rollup_step(TimestampTz now)
{
	static Target target = {0};
	static int64 slice = USECS_PER_MINUTE;
	Oid log = catalog_exists() ? catalog_relation("request_log") : InvalidOid;
	bool set_back = clock_was_set_back(now);
	TimestampTz reached;
	int64 began = usage_clock();

	/* who holds these shall not wait for us, nor we for them */
	if (!OidIsValid(log))
	{
		target.time = 0;
		return INTERVAL_MS;
	}
	(void) set_config_option("lock_timeout", "100ms", PGC_SUSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
							 true, 0, false);
	if (!ConditionalLockRelationOid(log, AccessShareLock) ||
		!ConditionalLockRelationOid(catalog_relation("request_rollup"), RowExclusiveLock) ||
		!ConditionalLockRelationOid(catalog_relation("request_rollup_progress"), RowExclusiveLock))
		return RETRY_MS;

	SPI_connect();
	if (target.time == 0 || set_back)
	{
		if (set_back)
			forget(now - 2 * INTERVAL_MS * INT64CONST(1000));
		set_target(&target, log, now);
		SPI_finish();
		return INTERVAL_MS;
	}
	if (!is_settled(&target))
	{
		SPI_finish();
		return RETRY_MS;
	}

	reached = roll_up(target.time, slice);
	if (reached > now)
		forget(now); /* the clock was ahead */
	SPI_finish();

	if (usage_clock() - began > SLICE_LONG)
		slice = Max(slice / 2, SLICE_MIN);
	else if (usage_clock() - began < SLICE_BRIEF)
		slice = Min(slice * 2, SLICE_MAX);
	if (reached < target.time)
		return 0;
	set_target(&target, log, now);
	return INTERVAL_MS;
}

/*
 * Roll up all that has been logged; with a time, also anew what has been rolled up of
 * its day and later.
 */
Datum
regpilot_roll_up_request_log(PG_FUNCTION_ARGS)
{
	Oid log = catalog_relation("request_log");
	LOCKTAG tag = log_lock(log);
	TimestampTz now = GetCurrentTimestamp();

	PreventCommandIfReadOnly("regpilot.roll_up_request_log()");
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot roll up the request log in a transaction of this isolation level"),
				 errhint("Use READ COMMITTED.")));
	if (!PG_ARGISNULL(0) && TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(0)))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("\"since\" must be finite")));

	LockRelationOid(log, AccessShareLock);
	WaitForLockers(tag, ShareLock, false);
	SPI_connect();
	if (!PG_ARGISNULL(0))
		forget(PG_GETARG_TIMESTAMPTZ(0));
	while (roll_up(now, SLICE_MAX) < now)
		CHECK_FOR_INTERRUPTS();
	SPI_finish();
	PG_RETURN_VOID();
}
