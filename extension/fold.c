/*-------------------------------------------------------------------------
 *
 * fold.c
 *		Adding what was counted to the totals.
 *
 * Rows that are there are found and replaced directly; the executor would take
 * four times as long.  Rows that are not there yet, once for each key and
 * environment, are inserted in SQL.
 *
 * A row holds the totals and, apart, what of them belongs to the hour in which it
 * was last written.  When a later hour begins for it, the hour that is over goes
 * to regpilot.usage_history; regpilot.usage_hourly shows both.
 *
 * Nobody who holds a key or a row is waited for: what they hold is postponed.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "catalog.h"
#include "compat.h"
#include "fold.h"
#include "journal.h"

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

/* Rows to insert: the parameters of the statements below. */
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

bool
fold_lock_tables(void)
{
	return ConditionalLockRelationOid(catalog_relation("api_key"), RowShareLock) &&
		   ConditionalLockRelationOid(catalog_relation("key_usage"), RowExclusiveLock) &&
		   ConditionalLockRelationOid(catalog_relation("usage_history"), RowExclusiveLock);
}

/* The order of the index, whose pages are then visited once each; then of hours. */
static int
compare_deltas(const void *a, const void *b)
{
	const UsageDelta *left = a;
	const UsageDelta *right = b;
	int order = memcmp(&left->key_id, &right->key_id, sizeof(pg_uuid_t));

	if (order == 0)
		order = (int) left->environment - (int) right->environment;
	if (order == 0)
		order = (left->hour > right->hour) - (left->hour < right->hour);
	return order;
}

/* Whether two deltas belong to the same row. */
static bool
same_row(const UsageDelta *a, const UsageDelta *b)
{
	return memcmp(&a->key_id, &b->key_id, sizeof(pg_uuid_t)) == 0 &&
		   a->environment == b->environment;
}

/* Sort deltas, and make one of those of the same row and hour. */
static void
merge_deltas(UsageDeltas *deltas)
{
	int merged = 0;

	qsort(deltas->items, deltas->count, sizeof(UsageDelta), compare_deltas);
	for (int i = 1; i < deltas->count; i++)
	{
		UsageDelta *last = &deltas->items[merged];
		const UsageDelta *next = &deltas->items[i];

		if (same_row(last, next) && last->hour == next->hour)
			usage_add_counters(&last->counters, &next->counters);
		else
			deltas->items[++merged] = *next;
	}
	deltas->count = Min(deltas->count, merged + 1);
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
end_hour(TupleTableSlot *row, const UsageDelta *next, UsageDeltas *history)
{
	Datum *hour = &row->tts_values[Anum_key_usage_hour - 1];
	Datum *counters = &row->tts_values[Anum_key_usage_hour_total_requests - 1];
	UsageDelta over = {.key_id = next->key_id, .environment = next->environment};

	over.hour = DatumGetTimestampTz(*hour);
	over.counters.total_requests = DatumGetInt64(counters[0]);
	over.counters.failed_requests = DatumGetInt64(counters[1]);
	over.counters.prompt_tokens = DatumGetInt64(counters[2]);
	over.counters.completion_tokens = DatumGetInt64(counters[3]);
	usage_add_delta(history, &over);

	*hour = TimestampTzGetDatum(next->hour);
	for (int i = 0; i < 4; i++)
		counters[i] = Int64GetDatum(0);
}

/* Add a delta to the replacement. */
static void
add_delta(TupleTableSlot *row, const UsageDelta *delta, UsageDeltas *history)
{
	Datum *last_used_at = &row->tts_values[Anum_key_usage_last_used_at - 1];
	bool *never_used = &row->tts_isnull[Anum_key_usage_last_used_at - 1];
	TimestampTz used_at = delta->counters.last_used_at;

	if (DatumGetTimestampTz(row->tts_values[Anum_key_usage_hour - 1]) != delta->hour)
		end_hour(row, delta, history);
	add_counters(row, Anum_key_usage_total_requests, &delta->counters);
	add_counters(row, Anum_key_usage_hour_total_requests, &delta->counters);
	if (used_at != 0 && (*never_used || DatumGetTimestampTz(*last_used_at) < used_at))
	{
		*last_used_at = TimestampTzGetDatum(used_at);
		*never_used = false;
	}
}

/* Replace the found row by one with its deltas added.  False if somebody holds it. */
static bool
update_row(UsageTable *table, const UsageDelta *deltas, int count, UsageDeltas *history)
{
	TupleTableSlot *row = table->replacement;
	int before = history->count;
	TimestampTz hour;
	ItemPointerData tid;
	TM_Result result = lock_row(table);

	if (result != TM_Ok)
		return false;

	ExecClearTuple(row);
	slot_getallattrs(table->found);
	memcpy(row->tts_values, table->found->tts_values, Natts_key_usage * sizeof(Datum));
	memcpy(row->tts_isnull, table->found->tts_isnull, Natts_key_usage * sizeof(bool));

	/* first to the hour that the row is at: then none ends twice */
	hour = DatumGetTimestampTz(row->tts_values[Anum_key_usage_hour - 1]);
	for (int i = 0; i < count; i++)
	{
		if (deltas[i].hour == hour)
			add_delta(row, &deltas[i], history);
	}
	for (int i = 0; i < count; i++)
	{
		if (deltas[i].hour != hour)
			add_delta(row, &deltas[i], history);
	}
	ExecStoreVirtualTuple(row);

	tid = table->found->tts_tid;
	result = compat_update_row(table->relation, table->estate, &tid, row, table->snapshot);
	if (result != TM_Ok)
		history->count = before;
	return result == TM_Ok;
}

/* Run one of the statements above on rows. */
static void
execute(const char *statement, int expected, const UsageDeltas *rows)
{
	Oid types[DELTA_COLUMNS];
	Datum values[DELTA_COLUMNS];
	int result;

	for (int i = 0; i < DELTA_COLUMNS; i++)
		types[i] = delta_columns[i]->array;
	delta_arrays(rows->items, rows->count, values);
	result = SPI_execute_with_args(statement, DELTA_COLUMNS, types, values, NULL, false, 0);
	if (result != expected)
		elog(ERROR, "could not write usage: %s", SPI_result_code_string(result));
}

static void
add_all(UsageDeltas *list, const UsageDelta *deltas, int count)
{
	for (int i = 0; i < count; i++)
		usage_add_delta(list, &deltas[i]);
}

/* Insert rows for deltas that have none, and list those of keys that somebody holds. */
static void
insert_rows(const UsageDeltas *fresh, UsageDeltas *postponed)
{
	MemoryContext context = CurrentMemoryContext;

	SPI_connect();
	execute(insert_usage, SPI_OK_INSERT, fresh);
	if (SPI_processed < fresh->count)
	{
		execute(select_postponed, SPI_OK_SELECT, fresh);
		MemoryContextSwitchTo(context);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool isnull;
			Datum number = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);

			usage_add_delta(postponed, &fresh->items[DatumGetInt32(number) - 1]);
		}
	}
	SPI_finish();
}

static void
insert_hours(const UsageDeltas *history)
{
	SPI_connect();
	execute(insert_history, SPI_OK_INSERT, history);
	SPI_finish();
}

/*
 * Add deltas that are merged to their rows; insert those that have none.  Returns
 * what is to be added to rows that were inserted only now: of keys used for the
 * first time, the second hour and later ones.
 */
static UsageDeltas
add_to_rows(const UsageDeltas *deltas, UsageDeltas *postponed)
{
	UsageTable table;
	UsageDeltas fresh = {0};
	UsageDeltas history = {0};
	UsageDeltas later = {0};
	int count;

	open_table(&table);
	for (int i = 0; i < deltas->count; i += count)
	{
		const UsageDelta *first = &deltas->items[i];

		count = 1;
		while (i + count < deltas->count && same_row(first, first + count))
			count++;

		CHECK_FOR_INTERRUPTS();
		if (!find_row(&table, first))
		{
			usage_add_delta(&fresh, first);
			add_all(&later, first + 1, count - 1);
		}
		/* also if it was deleted: only the next time can tell whether its key was */
		else if (!update_row(&table, first, count, &history))
			add_all(postponed, first, count);
	}
	close_table(&table);
	CommandCounterIncrement();

	if (fresh.count > 0)
		insert_rows(&fresh, postponed);
	if (history.count > 0)
		insert_hours(&history);
	return later;
}

void
fold_deltas(UsageDeltas *deltas, UsageDeltas *postponed)
{
	UsageDeltas left;

	merge_deltas(deltas);
	for (left = *deltas; left.count > 0;)
		left = add_to_rows(&left, postponed);
}
