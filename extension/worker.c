/*-------------------------------------------------------------------------
 *
 * worker.c
 *		The background worker that writes the usage counters to their table.
 *
 * A flush is one transaction: it adds what was counted since the last one.
 * Only when that has been committed are the counters lessened by as much.  An
 * error ends the worker, the postmaster starts another one, and that finds all
 * that was not subtracted still there: nothing is lost, and nothing counts
 * twice.  Between COMMIT and subtraction nothing can stop the worker but a
 * crash, which clears shared memory as well.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "usage.h"
#include "worker.h"

#define RESTART_SECONDS 1
#define STOP_POLL_MS 10
#define STOP_WAIT_MS 5000 /* that other sessions get to end at a stop */

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
	{"work_mem", "64MB"},			 /* hashing a busy second's keys in one go */
	{"lock_timeout", "1s"},			 /* a SIGTERM does not end a wait for a lock */
	{"synchronous_commit", "local"}, /* nor one for a standby */
};

/* Found by name in the library. */
PGDLLEXPORT void regpilot_worker_main(Datum main_arg);

PG_FUNCTION_INFO_V1(regpilot_flush_usage);

/* The deltas as a table: one array a column. */
#define DELTAS                                                                                     \
	" ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"             \
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7))" \
	" AS d (key_id, environment, total_requests, failed_requests, prompt_tokens,"                  \
	" completion_tokens, last_used_at)"

/*
 * Most keys have a row, and UPDATE is half the work of INSERT ON CONFLICT.  No
 * one else writes to the table, so what the first statement did not find the
 * second one inserts, but for keys that have been deleted meanwhile: those have
 * nowhere to be counted.
 */
static const char update_statement[] =
	"UPDATE regpilot.key_usage AS u SET"
	" total_requests = u.total_requests + d.total_requests,"
	" failed_requests = u.failed_requests + d.failed_requests,"
	" prompt_tokens = u.prompt_tokens + d.prompt_tokens,"
	" completion_tokens = u.completion_tokens + d.completion_tokens,"
	" last_used_at = greatest(u.last_used_at, d.last_used_at)"
	" FROM" DELTAS " WHERE u.key_id = d.key_id AND u.environment = d.environment";
static const char insert_statement[] =
	"INSERT INTO regpilot.key_usage (key_id, environment, total_requests, failed_requests,"
	" prompt_tokens, completion_tokens, last_used_at)"
	" SELECT d.* FROM" DELTAS " JOIN regpilot.api_key k ON k.id = d.key_id"
	" WHERE NOT EXISTS (SELECT FROM regpilot.key_usage u"
	" WHERE u.key_id = d.key_id AND u.environment = d.environment)";

/* Their parameters. */
enum
{
	FLUSH_KEY_ID,
	FLUSH_ENVIRONMENT,
	FLUSH_TOTAL_REQUESTS,
	FLUSH_FAILED_REQUESTS,
	FLUSH_PROMPT_TOKENS,
	FLUSH_COMPLETION_TOKENS,
	FLUSH_LAST_USED_AT,
};

#define FLUSH_PARAMETERS (FLUSH_LAST_USED_AT + 1)

static const struct
{
	Oid element;
	Oid array;
	int16 length;
	bool by_value;
	char alignment;
} flush_types[FLUSH_PARAMETERS] = {
	[FLUSH_KEY_ID] = {UUIDOID, UUIDARRAYOID, UUID_LEN, false, TYPALIGN_CHAR},
	[FLUSH_ENVIRONMENT] = {TEXTOID, TEXTARRAYOID, -1, false, TYPALIGN_INT},
	[FLUSH_TOTAL_REQUESTS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[FLUSH_FAILED_REQUESTS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[FLUSH_PROMPT_TOKENS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[FLUSH_COMPLETION_TOKENS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[FLUSH_LAST_USED_AT] = {TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, 8, FLOAT8PASSBYVAL,
							TYPALIGN_DOUBLE},
};

/* One parameter: an array with that column of all the deltas. */
static Datum
flush_parameter(int parameter, const UsageDelta *deltas, int count)
{
	Datum *values = MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(Datum));
	bool *nulls = palloc0(count * sizeof(bool));
	int lower_bound = 1;

	for (int i = 0; i < count; i++)
	{
		const UsageDelta *delta = &deltas[i];

		switch (parameter)
		{
			case FLUSH_KEY_ID:
				values[i] = UUIDPGetDatum(&delta->key_id);
				break;
			case FLUSH_ENVIRONMENT:
				values[i] = CStringGetTextDatum(environment_names[delta->environment]);
				break;
			case FLUSH_TOTAL_REQUESTS:
				values[i] = Int64GetDatum(delta->counters.total_requests);
				break;
			case FLUSH_FAILED_REQUESTS:
				values[i] = Int64GetDatum(delta->counters.failed_requests);
				break;
			case FLUSH_PROMPT_TOKENS:
				values[i] = Int64GetDatum(delta->counters.prompt_tokens);
				break;
			case FLUSH_COMPLETION_TOKENS:
				values[i] = Int64GetDatum(delta->counters.completion_tokens);
				break;
			case FLUSH_LAST_USED_AT:
				nulls[i] = delta->counters.last_used_at == 0;
				values[i] = TimestampTzGetDatum(delta->counters.last_used_at);
				break;
		}
	}

	return PointerGetDatum(
		construct_md_array(values, nulls, 1, &count, &lower_bound, flush_types[parameter].element,
						   flush_types[parameter].length, flush_types[parameter].by_value,
						   flush_types[parameter].alignment));
}

/* Run one of the statements above.  Returns the number of rows. */
static int
execute(const char *statement, int expected, Oid *types, Datum *values)
{
	int result = SPI_execute_with_args(statement, FLUSH_PARAMETERS, types, values, NULL, false, 0);

	if (result != expected)
		elog(ERROR, "could not write usage: %s", SPI_result_code_string(result));
	return (int) SPI_processed;
}

/* Add deltas to the table.  Returns the number of rows. */
static int
write_deltas(const UsageDelta *deltas, int count)
{
	Oid types[FLUSH_PARAMETERS];
	Datum values[FLUSH_PARAMETERS];
	int rows;

	for (int i = 0; i < FLUSH_PARAMETERS; i++)
	{
		types[i] = flush_types[i].array;
		values[i] = flush_parameter(i, deltas, count);
	}

	SPI_connect();
	rows = execute(update_statement, SPI_OK_UPDATE, types, values);
	if (rows < count)
		rows += execute(insert_statement, SPI_OK_INSERT, types, values);
	SPI_finish();
	return rows;
}

/*
 * Write to the table what has been counted until now.  Memory is the current
 * context's, which the caller resets.
 */
static void
flush(void)
{
	MemoryContext context = CurrentMemoryContext;
	uint64 request = usage_requested_flush();
	int count;
	UsageDelta *deltas = usage_collect(&count);
	int rows = 0;

	if (count > 0)
	{
		SetCurrentStatementStartTimestamp();
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		pgstat_report_activity(STATE_RUNNING, "flushing usage");

		/* without the extension there are no keys left to count for */
		if (catalog_exists())
			rows = write_deltas(deltas, count);

		PopActiveSnapshot();
		CommitTransactionCommand();
		usage_subtract(deltas, count);

		MemoryContextSwitchTo(context);
		pgstat_report_stat(false);
		pgstat_report_activity(STATE_IDLE, NULL);
	}
	usage_finish_flush(request, rows);
}

/*
 * At a stop of the server sessions are told to end at the same time as we are.
 * Wait until they have, so that what they still count is flushed too.
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

void
regpilot_worker_main(Datum main_arg)
{
	MemoryContext context;

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
	usage_collect_all_again(); /* our predecessor may have ended in a flush */

	while (!ShutdownRequestPending)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 regpilot_flush_interval, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();

		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		flush();
		MemoryContextReset(context);
	}

	wait_for_sessions();
	flush();
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
