/*-------------------------------------------------------------------------
 *
 * flush.c
 *		Writing usage counters to their tables.
 *
 * A busy server has tens of thousands of rows to write each second, while
 * requests wait for the same processors.  So rows that are there are found and
 * replaced directly; the executor would take four times as long.  Rows that are
 * not there yet, once for each key and environment, are inserted in SQL.
 *
 * A row holds the totals and, apart, what of them belongs to the hour in which it
 * was last written.  When a later hour begins for it, the hour that is over goes
 * to regpilot.usage_history; regpilot.usage_hourly shows both.
 *
 * A flush waits for nobody who holds a key or a row: it postpones what they hold.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "flush.h"

/* Columns of regpilot.key_usage. */
enum
{
	Anum_key_usage_key_id = 1,
	Anum_key_usage_environment,
	Anum_key_usage_total_requests,
	Anum_key_usage_failed_requests,
	Anum_key_usage_prompt_tokens,
	Anum_key_usage_completion_tokens,
	Anum_key_usage_last_used_at,
	Anum_key_usage_hour,
	Anum_key_usage_hour_total_requests,
	Anum_key_usage_hour_failed_requests,
	Anum_key_usage_hour_prompt_tokens,
	Anum_key_usage_hour_completion_tokens,
};

#define Natts_key_usage Anum_key_usage_hour_completion_tokens

/* A delta, or an hour that is over, as a row to insert. */
typedef struct UsageRow
{
	pg_uuid_t key_id;
	Environment environment;
	TimestampTz hour;
	UsageCounters counters;
	UsageDelta *delta; /* NULL for an hour that is over */
} UsageRow;

typedef struct UsageRows
{
	UsageRow *rows;
	int count;
	int capacity;
} UsageRows;

/* The table while it is written to. */
typedef struct UsageTable
{
	Snapshot snapshot;
	EState *estate;
	ResultRelInfo *relation; /* with its indexes open */
	Relation index;
	IndexScanDesc scan;
	TupleTableSlot *found;
	TupleTableSlot *replacement;
	Datum environments[ENVIRONMENT_COUNT]; /* their names */
} UsageTable;

/* Parameters of the statements below: arrays with one element for each row. */
enum
{
	ROW_KEY_ID,
	ROW_ENVIRONMENT,
	ROW_HOUR,
	ROW_TOTAL_REQUESTS,
	ROW_FAILED_REQUESTS,
	ROW_PROMPT_TOKENS,
	ROW_COMPLETION_TOKENS,
	ROW_LAST_USED_AT,
};

#define ROW_PARAMETERS (ROW_LAST_USED_AT + 1)

#define ROWS                                                                                       \
	" ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"             \
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7)," \
	" pg_catalog.unnest($8)) WITH ORDINALITY AS r (key_id, environment, hour, total_requests,"     \
	" failed_requests, prompt_tokens, completion_tokens, last_used_at, number)"

/* The lock is the one that the foreign key would wait for. */
static const char insert_usage[] =
	"WITH k AS MATERIALIZED (SELECT id FROM regpilot.api_key WHERE id = ANY ($1)"
	" FOR KEY SHARE SKIP LOCKED)"
	" INSERT INTO regpilot.key_usage"
	" SELECT r.key_id, r.environment, r.total_requests, r.failed_requests, r.prompt_tokens,"
	" r.completion_tokens, r.last_used_at, r.hour, r.total_requests, r.failed_requests,"
	" r.prompt_tokens, r.completion_tokens FROM" ROWS " JOIN k ON k.id = r.key_id";

/* Those not inserted whose key is there. */
static const char select_postponed[] =
	"SELECT r.number::pg_catalog.int4 FROM" ROWS " JOIN regpilot.api_key k ON k.id = r.key_id"
	" WHERE NOT EXISTS (SELECT FROM regpilot.key_usage u"
	" WHERE u.key_id = r.key_id AND u.environment = r.environment)";

/* The same hour may end twice, if the clock is set back. */
static const char insert_history[] =
	"INSERT INTO regpilot.usage_history AS h"
	" SELECT r.key_id, r.environment, r.hour, r.total_requests, r.failed_requests,"
	" r.prompt_tokens, r.completion_tokens FROM" ROWS
	" ON CONFLICT (key_id, environment, hour) DO UPDATE SET"
	" total_requests = h.total_requests + excluded.total_requests,"
	" failed_requests = h.failed_requests + excluded.failed_requests,"
	" prompt_tokens = h.prompt_tokens + excluded.prompt_tokens,"
	" completion_tokens = h.completion_tokens + excluded.completion_tokens";

static const struct
{
	Oid element;
	Oid array;
	int16 length;
	bool by_value;
	char alignment;
} row_types[ROW_PARAMETERS] = {
	[ROW_KEY_ID] = {UUIDOID, UUIDARRAYOID, UUID_LEN, false, TYPALIGN_CHAR},
	[ROW_ENVIRONMENT] = {TEXTOID, TEXTARRAYOID, -1, false, TYPALIGN_INT},
	[ROW_HOUR] = {TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[ROW_TOTAL_REQUESTS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[ROW_FAILED_REQUESTS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[ROW_PROMPT_TOKENS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[ROW_COMPLETION_TOKENS] = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
	[ROW_LAST_USED_AT] = {TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
};

static int
compare_deltas(const void *a, const void *b)
{
	const UsageDelta *left = a;
	const UsageDelta *right = b;
	int order = memcmp(&left->key_id, &right->key_id, sizeof(pg_uuid_t));

	return order != 0 ? order : (int) left->environment - (int) right->environment;
}

/*
 * The hour that a delta belongs to: that of its last request, which may be a
 * flush interval later than its first one.
 */
static TimestampTz
hour_of(const UsageDelta *delta)
{
	TimestampTz time = delta->counters.last_used_at;

	if (time == 0)
		time = GetCurrentTransactionStartTimestamp();
	return time - time % USECS_PER_HOUR;
}

static void
add_row(UsageRows *list, const UsageRow *row)
{
	if (list->count == list->capacity)
	{
		list->capacity = Max(1024, list->capacity * 2);
		list->rows = list->rows == NULL
						 ? palloc(list->capacity * sizeof(UsageRow))
						 : repalloc_huge(list->rows, list->capacity * sizeof(UsageRow));
	}
	list->rows[list->count++] = *row;
}

static void
open_table(UsageTable *table)
{
	Relation relation = table_open(catalog_relation("key_usage"), RowExclusiveLock);

	if (RelationGetNumberOfAttributes(relation) != Natts_key_usage)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table regpilot.key_usage is not as this version needs it")));

	/* only now: rows of a table rewritten while we waited are not in older snapshots */
	table->snapshot = RegisterSnapshot(GetLatestSnapshot());
	table->estate = CreateExecutorState();
	table->relation = makeNode(ResultRelInfo);
	InitResultRelInfo(table->relation, relation, 0, NULL, 0);
	ExecOpenIndices(table->relation, false);

	table->index = index_open(catalog_relation("key_usage_pkey"), AccessShareLock);
	table->scan = compat_index_beginscan(relation, table->index, table->snapshot, 2);
	table->found = table_slot_create(relation, NULL);
	table->replacement = MakeSingleTupleTableSlot(RelationGetDescr(relation), &TTSOpsVirtual);
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
		table->environments[i] = CStringGetTextDatum(environment_names[i]);
}

static void
close_table(UsageTable *table)
{
	ExecDropSingleTupleTableSlot(table->found);
	ExecDropSingleTupleTableSlot(table->replacement);
	index_endscan(table->scan);
	index_close(table->index, AccessShareLock);
	UnregisterSnapshot(table->snapshot);
	ExecCloseIndices(table->relation);
	table_close(table->relation->ri_RelationDesc, NoLock);
	FreeExecutorState(table->estate);
}

/* Find a delta's row; false if it has none. */
static bool
find_row(UsageTable *table, const UsageDelta *delta)
{
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], Anum_key_usage_key_id, BTEqualStrategyNumber, F_UUID_EQ,
				UUIDPGetDatum(&delta->key_id));
	ScanKeyInit(&keys[1], Anum_key_usage_environment, BTEqualStrategyNumber, F_TEXTEQ,
				table->environments[delta->environment]);
	index_rescan(table->scan, keys, 2, NULL, 0);
	return index_getnext_slot(table->scan, ForwardScanDirection, table->found);
}

/*
 * Whether the found row can be replaced without waiting for anybody.  A row that
 * nobody has locked since it was written, almost every one, needs no lock from us
 * either: who comes in between has it for a moment at most.
 */
static TM_Result
lock_row(UsageTable *table)
{
	ItemPointerData tid = table->found->tts_tid;
	TM_FailureData failure;
	bool isnull;
	Datum locker = slot_getsysattr(table->found, MaxTransactionIdAttributeNumber, &isnull);

	if (!TransactionIdIsValid(DatumGetTransactionId(locker)))
		return TM_Ok;
	return table_tuple_lock(table->relation->ri_RelationDesc, &tid, table->snapshot, table->found,
							GetCurrentCommandId(true), LockTupleNoKeyExclusive, LockWaitSkip, 0,
							&failure);
}

/* Add to a bigint column of the replacement. */
static void
add_to_column(TupleTableSlot *row, int attribute, int64 value)
{
	Datum *column = &row->tts_values[attribute - 1];

	*column = Int64GetDatum(DatumGetInt64(*column) + value);
}

/* Add counters to four columns of the replacement, of which this is the first. */
static void
add_counters(TupleTableSlot *row, int first, const UsageCounters *counters)
{
	add_to_column(row, first, counters->total_requests);
	add_to_column(row, first + 1, counters->failed_requests);
	add_to_column(row, first + 2, counters->prompt_tokens);
	add_to_column(row, first + 3, counters->completion_tokens);
}

/* Move the hour of the replacement, which is over, to the list of those. */
static void
end_hour(TupleTableSlot *row, UsageDelta *delta, TimestampTz next_hour, UsageRows *history)
{
	Datum *hour = &row->tts_values[Anum_key_usage_hour - 1];
	Datum *counters = &row->tts_values[Anum_key_usage_hour_total_requests - 1];
	UsageRow over = {.key_id = delta->key_id, .environment = delta->environment};

	over.hour = DatumGetTimestampTz(*hour);
	over.counters.total_requests = DatumGetInt64(counters[0]);
	over.counters.failed_requests = DatumGetInt64(counters[1]);
	over.counters.prompt_tokens = DatumGetInt64(counters[2]);
	over.counters.completion_tokens = DatumGetInt64(counters[3]);
	add_row(history, &over);

	*hour = TimestampTzGetDatum(next_hour);
	for (int i = 0; i < 4; i++)
		counters[i] = Int64GetDatum(0);
}

/* Make the replacement of the found row, with a delta added. */
static void
make_replacement(UsageTable *table, UsageDelta *delta, UsageRows *history)
{
	TupleTableSlot *row = table->replacement;
	Datum *last_used_at = &row->tts_values[Anum_key_usage_last_used_at - 1];
	bool *never_used = &row->tts_isnull[Anum_key_usage_last_used_at - 1];
	TimestampTz used_at = delta->counters.last_used_at;
	TimestampTz hour = hour_of(delta);

	ExecClearTuple(row);
	slot_getallattrs(table->found);
	memcpy(row->tts_values, table->found->tts_values, Natts_key_usage * sizeof(Datum));
	memcpy(row->tts_isnull, table->found->tts_isnull, Natts_key_usage * sizeof(bool));

	if (DatumGetTimestampTz(row->tts_values[Anum_key_usage_hour - 1]) != hour)
		end_hour(row, delta, hour, history);
	add_counters(row, Anum_key_usage_total_requests, &delta->counters);
	add_counters(row, Anum_key_usage_hour_total_requests, &delta->counters);
	if (used_at != 0 && (*never_used || DatumGetTimestampTz(*last_used_at) < used_at))
	{
		*last_used_at = TimestampTzGetDatum(used_at);
		*never_used = false;
	}
	ExecStoreVirtualTuple(row);
}

/* Add a delta to the found row, or postpone it.  Returns the number of rows written. */
static int
update_row(UsageTable *table, UsageDelta *delta, UsageRows *history)
{
	ItemPointerData tid;
	TM_Result result = lock_row(table);

	if (result == TM_Ok)
	{
		int before = history->count;

		make_replacement(table, delta, history);
		tid = table->found->tts_tid;
		result = compat_update_row(table->relation, table->estate, &tid, table->replacement,
								   table->snapshot);
		if (result == TM_Ok)
			return 1;
		history->count = before;
	}

	/* also if the row was deleted: only the next flush can tell whether its key was */
	delta->postponed = true;
	return 0;
}

/* One parameter: an array with that column of all the rows. */
static Datum
row_parameter(int parameter, const UsageRows *list)
{
	int count = list->count;
	Datum *values = MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(Datum));
	bool *nulls = palloc0(count * sizeof(bool));
	int lower_bound = 1;

	for (int i = 0; i < count; i++)
	{
		const UsageRow *row = &list->rows[i];

		switch (parameter)
		{
			case ROW_KEY_ID:
				values[i] = UUIDPGetDatum(&row->key_id);
				break;
			case ROW_ENVIRONMENT:
				values[i] = CStringGetTextDatum(environment_names[row->environment]);
				break;
			case ROW_HOUR:
				values[i] = TimestampTzGetDatum(row->hour);
				break;
			case ROW_TOTAL_REQUESTS:
				values[i] = Int64GetDatum(row->counters.total_requests);
				break;
			case ROW_FAILED_REQUESTS:
				values[i] = Int64GetDatum(row->counters.failed_requests);
				break;
			case ROW_PROMPT_TOKENS:
				values[i] = Int64GetDatum(row->counters.prompt_tokens);
				break;
			case ROW_COMPLETION_TOKENS:
				values[i] = Int64GetDatum(row->counters.completion_tokens);
				break;
			case ROW_LAST_USED_AT:
				nulls[i] = row->counters.last_used_at == 0;
				values[i] = TimestampTzGetDatum(row->counters.last_used_at);
				break;
		}
	}

	return PointerGetDatum(
		construct_md_array(values, nulls, 1, &count, &lower_bound, row_types[parameter].element,
						   row_types[parameter].length, row_types[parameter].by_value,
						   row_types[parameter].alignment));
}

/* Run one of the statements above on rows.  Returns the number of rows it made. */
static int
execute(const char *statement, int expected, const UsageRows *list)
{
	Oid types[ROW_PARAMETERS];
	Datum values[ROW_PARAMETERS];
	int result;

	for (int i = 0; i < ROW_PARAMETERS; i++)
	{
		types[i] = row_types[i].array;
		values[i] = row_parameter(i, list);
	}
	result = SPI_execute_with_args(statement, ROW_PARAMETERS, types, values, NULL, false, 0);
	if (result != expected)
		elog(ERROR, "could not write usage: %s", SPI_result_code_string(result));
	return (int) SPI_processed;
}

/* Insert rows for deltas that had none, or postpone them. */
static int
insert_rows(const UsageRows *fresh)
{
	int inserted = execute(insert_usage, SPI_OK_INSERT, fresh);
	bool isnull;

	if (inserted < fresh->count)
	{
		int postponed = execute(select_postponed, SPI_OK_SELECT, fresh);

		for (int i = 0; i < postponed; i++)
		{
			Datum number = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

			fresh->rows[DatumGetInt32(number) - 1].delta->postponed = true;
		}
	}
	return inserted;
}

int
flush_deltas(UsageDelta *deltas, int count)
{
	UsageTable table;
	UsageRows fresh = {0};
	UsageRows history = {0};
	int written = 0;

	/* in the order of the index, whose pages are then visited once each */
	qsort(deltas, count, sizeof(UsageDelta), compare_deltas);

	open_table(&table);
	for (int i = 0; i < count; i++)
	{
		UsageDelta *delta = &deltas[i];

		CHECK_FOR_INTERRUPTS();
		if (find_row(&table, delta))
			written += update_row(&table, delta, &history);
		else
		{
			UsageRow row = {.key_id = delta->key_id,
							.environment = delta->environment,
							.hour = hour_of(delta),
							.counters = delta->counters,
							.delta = delta};

			add_row(&fresh, &row);
		}
	}
	close_table(&table);
	CommandCounterIncrement();

	SPI_connect();
	if (fresh.count > 0)
		written += insert_rows(&fresh);
	if (history.count > 0)
		(void) execute(insert_history, SPI_OK_INSERT, &history);
	SPI_finish();
	return written;
}
