/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The background worker that writes the usage counters to the journal, adds
 *		that to the totals, rolls up the request log every five seconds and, every hour,
 *		flags stale keys and makes and drops partitions of the request log.
 *
 * A flush is one transaction: it writes what was counted since the last one.
 * Only when that has been committed are the counters lessened by as much.  An
 * error ends the worker, the postmaster starts another one, and that finds all
 * that was not subtracted still there: nothing is lost, and nothing counts
 * twice.  Between COMMIT and subtraction nothing can stop the worker but a
 * crash, which clears shared memory as well.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include <time.h>

#include "access/xact.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "storage/procarray.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "fold.h"
#include "journal.h"
#include "requestlog.h"
#include "rollup.h"
#include "saved.h"
#include "stale.h"
#include "usage.h"
#include "worker.h"

#define RESTART_SECONDS 1
#define UPKEEP_INTERVAL_MS (60 * 60 * 1000)
#define UPKEEP_RETRY_MS (60 * 1000) /* after an error */
#define FOLD_BATCH 4096				/* keys and environments added to the totals with each flush */
#define ROUND_BATCH 1024 /* the same of a round: brief, since requests wait for the processor */
#define ROUND_REST 4	 /* pause after it, as a multiple of its processor time */
#define ROLLUP_REST 2	 /* the same after a part of a rollup */
#define ROUND_RETRY                                                                                \
	(100 * INT64CONST(1000)) /* microseconds; of a round, while the totals are locked */
#define STOP_POLL_MS 10
#define STOP_WAIT_MS 1000 /* that other sessions get to end at a stop */

/* What a flush relies on, whatever the configuration or ALTER DATABASE says. */
static const struct
{
	const char *name;
	const char *value;
} worker_settings[] = {
	{"search_path", "pg_catalog, pg_temp"},
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"session_replication_role", "origin"},
	{"work_mem", "64MB"},			 /* a first second's new keys in one go */
	{"lock_timeout", "1s"},			 /* a SIGTERM does not end a wait for a lock */
	{"synchronous_commit", "local"}, /* nor one for a standby */
};

/*
 * To have all that was counted by a time in the totals: a flush, and then a round
 * through the journal.  For those who asked for a flush, and for the upkeep, which
 * judges keys by their totals.
 */
typedef struct Round
{
	bool running;
	uint64 request;	   /* that it answers */
	int rows;		   /* that its flush wrote */
	TimestampTz as_of; /* the time */
} Round;

/* Found by name in the library. */
PGDLLEXPORT void regpilot_worker_main(Datum main_arg);

PG_FUNCTION_INFO_V1(regpilot_flush_usage);
PG_FUNCTION_INFO_V1(regpilot_shared_memory_status);

static void
begin(const char *activity)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	pgstat_report_activity(STATE_RUNNING, activity);
}

static void
commit(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* After the transaction, and what belongs to it, has ended either way. */
static void
rest(MemoryContext context)
{
	MemoryContextSwitchTo(context);
	pgstat_report_stat(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Take the flag of staleness off the keys that have been used, unless somebody has
 * locked the keys: then the next upkeep does.
 */
static void
clear_flags(const UsageDeltas *deltas)
{
	pg_uuid_t *used = NULL;
	int used_count = 0;

	for (int i = 0; i < deltas->count; i++)
	{
		if (!deltas->items[i].flagged)
			continue;
		if (used == NULL)
			used = palloc(deltas->count * sizeof(pg_uuid_t));
		used[used_count++] = deltas->items[i].key_id;
	}
	if (used_count > 0 && ConditionalLockRelationOid(catalog_relation("api_key"), RowExclusiveLock))
		stale_clear_flags(used, used_count);
}

/*
 * Write to the journal what has been counted until now.  Returns the number of
 * keys and environments.  Memory is the current context's, which the caller resets.
 */
static int
flush(void)
{
	MemoryContext context = CurrentMemoryContext;
	UsageDeltas deltas = usage_collect();

	if (deltas.count > 0)
	{
		begin("flushing usage");

		/* without the extension there are no keys left to count for */
		if (catalog_exists())
		{
			journal_append(&deltas);
			clear_flags(&deltas);
		}

		usage_begin_commit();
		commit();
		rest(context);
	}
	usage_settle(&deltas);
	return deltas.count;
}

/* The processor time that this process has used, in microseconds. */
static int64
processor_time(void)
{
	struct timespec used;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	return used.tv_sec * USECS_PER_SEC + used.tv_nsec / 1000;
}

/*
 * Add some of the journal to the totals.  Memory as above.  Returns the time when
 * there is more to do, by usage_clock(), if that is before the next flush.
 */
static int64
fold(void)
{
	MemoryContext context = CurrentMemoryContext;
	UsageDeltas deltas = {0};
	UsageDeltas postponed = {0};
	int64 began = processor_time();
	bool locked = false;

	if (!journal_has_rows())
		return PG_INT64_MAX;

	begin("adding usage to the totals");
	/* what a crash undoes of this is in the journal again */
	(void) set_config_option("synchronous_commit", "off", PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	if (!catalog_exists())
		journal_forget();
	else if (fold_lock_tables())
	{
		locked = true;
		journal_take(journal_round_is_over() ? FOLD_BATCH : ROUND_BATCH, &deltas);
		fold_deltas(&deltas, &postponed);
		journal_append(&postponed);
	}
	commit();
	rest(context);

	if (journal_round_is_over())
		return PG_INT64_MAX;
	if (!locked)
		return usage_clock() + ROUND_RETRY;
	return usage_clock() + (processor_time() - began) * ROUND_REST;
}

/*
 * What there is to do every hour, judged as of a time before the last flush.
 * Returns after how many milliseconds to come again.  An error is logged, and
 * nothing else has to wait for its cause to go away.
 */
static int
upkeep(TimestampTz as_of)
{
	MemoryContext context = CurrentMemoryContext;
	volatile int next = UPKEEP_INTERVAL_MS;

	PG_TRY();
	{
		begin("flagging stale keys");
		if (catalog_exists() && stale_flag_keys(as_of) == STALE_BATCH)
			next = 0;
		commit();

		begin("maintaining the request log");
		requestlog_maintain(as_of);
		commit();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		next = UPKEEP_RETRY_MS;
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	rest(context);
	return next;
}

/*
 * Roll up some of the request log.  Returns after how many milliseconds to come
 * again.  Errors as above.
 */
static int
roll_up(void)
{
	MemoryContext context = CurrentMemoryContext;
	int64 began = processor_time();
	volatile int next = UPKEEP_RETRY_MS;

	PG_TRY();
	{
		begin("rolling up the request log");
		/* what a crash undoes of this is done again */
		(void) set_config_option("synchronous_commit", "off", PGC_SUSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
		next = rollup_step(GetCurrentTimestamp());
		commit();
	}
	PG_CATCH();
	{
		HOLD_INTERRUPTS();
		EmitErrorReport();
		AbortCurrentTransaction();
		FlushErrorState();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	rest(context);
	return Max(next, (processor_time() - began) * ROLLUP_REST / 1000);
}

/*
 * At a stop of the server sessions are told to end at the same time as we are.
 * Wait until they have, so that what they still count is flushed too.  What
 * comes even later is saved by the postmaster; see saved.c.
 */
static void
wait_for_sessions(void)
{
	for (int waited = 0; waited < STOP_WAIT_MS; waited += STOP_POLL_MS)
	{
		/* all but us */
		if (CountDBBackends(MyDatabaseId) <= 1)
			break;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, STOP_POLL_MS,
						 PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* Wait for a time by usage_clock(), or to be woken.  Returns as WaitLatch() does. */
static int
wait_until(int64 time)
{
	int64 left = Max(0, time - usage_clock());
	int events = WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   (left + 999) / 1000, PG_WAIT_EXTENSION);

	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	return events;
}

void
regpilot_worker_main(Datum main_arg)
{
	MemoryContext context;
	Round round = {0};
	int64 next_flush = 0;
	int64 next_fold = PG_INT64_MAX;
	int64 next_upkeep = 0;
	int64 next_rollup = 0;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	BackgroundWorkerUnblockSignals();

	BackgroundWorkerInitializeConnection(regpilot_database, NULL, 0);
	for (int i = 0; i < lengthof(worker_settings); i++)
		SetConfigOption(worker_settings[i].name, worker_settings[i].value, PGC_SUSET,
						PGC_S_OVERRIDE);

	context = AllocSetContextCreate(TopMemoryContext, "regpilot worker", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);

	usage_attach_worker();
	saved_attach_worker();
	journal_open();

	while (!ShutdownRequestPending)
	{
		int events = wait_until(Min(Min(next_flush, next_fold), next_rollup));

		if (events & WL_LATCH_SET || usage_clock() >= next_flush)
		{
			uint64 request = usage_requested_flush();
			TimestampTz as_of = GetCurrentTimestamp();
			int rows;

			next_flush = usage_clock() + regpilot_flush_interval * INT64CONST(1000);
			rows = flush();
			if (!round.running && (request != round.request || usage_clock() >= next_upkeep))
			{
				round = (Round){.running = true, .request = request, .rows = rows, .as_of = as_of};
				journal_begin_round();
			}
		}

		next_fold = fold();
		if (round.running && journal_round_is_over())
		{
			round.running = false;
			usage_finish_flush(round.request, round.rows);
			if (usage_clock() >= next_upkeep)
				next_upkeep = usage_clock() + upkeep(round.as_of) * INT64CONST(1000);
			if (usage_requested_flush() != round.request)
				SetLatch(MyLatch); /* who asked meanwhile */
		}
		if (usage_clock() >= next_rollup)
			next_rollup = usage_clock() + roll_up() * INT64CONST(1000);
		MemoryContextReset(context);
	}

	wait_for_sessions();
	(void) flush();
	(void) fold();
	proc_exit(1); /* 0 would unregister us, should the server go on */
}

void
worker_init(void)
{
	BackgroundWorker worker = {0};

	if (IsBinaryUpgrade)
		return;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = RESTART_SECONDS;
	strlcpy(worker.bgw_library_name, "regpilot", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "regpilot_worker_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "regpilot worker", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "regpilot worker", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* Have the worker flush, and wait until it has. */
Datum
regpilot_flush_usage(PG_FUNCTION_ARGS)
{
	usage_require();
	PreventCommandDuringRecovery("regpilot.flush_usage()");
	PG_RETURN_INT32(usage_wait_for_flush());
}

Datum
regpilot_shared_memory_status(PG_FUNCTION_ARGS)
{
	UsageStatus status;
	TupleDesc descriptor;
	Datum values[9];
	bool nulls[9] = {false};

	usage_require_preload();
	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	usage_get_status(&status);
	values[0] = Int64GetDatum(status.bytes);
	values[1] = Int32GetDatum(status.slots);
	values[2] = Int32GetDatum(status.used);
	values[3] = Int32GetDatum(status.unflushed);
	values[4] = Int32GetDatum(status.limiting);
	values[5] = Int64GetDatum(status.evicted);
	values[6] = Int64GetDatum(status.refused);
	values[7] = TimestampTzGetDatum(status.flushed_at);
	nulls[7] = status.flushed_at == 0;
	values[8] = Int32GetDatum(status.flushed_rows);
	nulls[8] = nulls[7];
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), values, nulls)));
}
