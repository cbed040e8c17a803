/*-------------------------------------------------------------------------
 *
 * fold.c
 *		Adding what was counted to the totals.
 *
 * Rows are found and replaced directly; the executor would take four times as
 * long.  The deltas are in the order of the index, which is walked from one to the
 * next where they are close.  So is the key of a row that is not there yet: it is locked, in place of the
 * check of the foreign key, and the row inserted.
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

/* A table whose rows are found through an index. */
typedef struct Finder
{
	Relation table;
	Relation index;
	IndexScanDesc scan;
	TupleTableSlot *row; /* that was found */
} Finder;

/* Where a walk through the index of key_usage is. */
typedef enum Walk
{
	WALK_NOT_BEGUN,
	WALK_AT_ENTRY, /* which the scan has */
	WALK_AT_END,   /* nothing that is greater than the last delta is left */
} Walk;

/* A delta so many entries ahead, or a few more, is found faster by a search. */
#define WALK_MAX 16

/* What it takes to write to the table. */
typedef struct UsageTable
{
	Snapshot snapshot;
	Finder usage;
	Walk walk; /* of that */
	Finder keys;
	SnapshotData uncommitted; /* sees rows that others have not committed yet */
	Finder uncommitted_usage;
	Finder uncommitted_keys;
	EState *estate;
	ResultRelInfo *relation;			   /* key_usage with its indexes open */
	TupleTableSlot *row;				   /* to write */
	Datum environments[ENVIRONMENT_COUNT]; /* their names */
} UsageTable;

/* The same hour may end twice, if the clock is set back. */
static const char insert_history[] =
	"INSERT INTO regpilot.usage_history AS h"
	" SELECT r.key_id, r.environment, r.hour, r.total_requests, r.failed_requests,"
	" r.prompt_tokens, r.completion_tokens"
	" FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3),"
	" pg_catalog.unnest($4), pg_catalog.unnest($5), pg_catalog.unnest($6), pg_catalog.unnest($7))"
	" AS r (key_id, environment, hour, total_requests, failed_requests, prompt_tokens,"
	" completion_tokens)"
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

/* The order of the index; then of hours. */
static int
compare_deltas(const void *a, const void *b)
{
	const UsageDelta *left = a;
	const UsageDelta *right = b;
	int order = memcmp(&left->key_id, &right->key_id, sizeof(pg_uuid_t));

	if (order == 0)
		order = strcmp(environment_names[left->environment], environment_names[right->environment]);
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

/* Open a table, which is locked, and one of its indexes. */
static Finder
open_finder(const char *table, const char *index, int columns, Snapshot snapshot)
{
	Finder finder;

	finder.table = table_open(catalog_relation(table), NoLock);
	finder.index = index_open(catalog_relation(index), AccessShareLock);
	finder.scan = compat_index_beginscan(finder.table, finder.index, snapshot, columns);
	finder.row = table_slot_create(finder.table, NULL);
	return finder;
}

static void
close_finder(Finder *finder)
{
	ExecDropSingleTupleTableSlot(finder->row);
	index_endscan(finder->scan);
	index_close(finder->index, AccessShareLock);
	table_close(finder->table, NoLock);
}

static void
open_table(UsageTable *table)
{
	/* the tables are locked: rows of one that was rewritten are in this snapshot */
	table->snapshot = RegisterSnapshot(GetLatestSnapshot());
	table->usage = open_finder("key_usage", "key_usage_pkey", 1, table->snapshot);
	table->usage.scan->xs_want_itup = true;
	table->walk = WALK_NOT_BEGUN;
	table->keys = open_finder("api_key", "api_key_pkey", 1, table->snapshot);
	InitDirtySnapshot(table->uncommitted);
	table->uncommitted_usage = open_finder("key_usage", "key_usage_pkey", 2, &table->uncommitted);
	table->uncommitted_keys = open_finder("api_key", "api_key_pkey", 1, &table->uncommitted);
	if (RelationGetNumberOfAttributes(table->usage.table) != Natts_key_usage)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("table regpilot.key_usage is not as this version needs it")));

	table->estate = CreateExecutorState();
	table->relation = makeNode(ResultRelInfo);
	InitResultRelInfo(table->relation, table->usage.table, 0, NULL, 0);
	ExecOpenIndices(table->relation, false);
	table->row = MakeSingleTupleTableSlot(RelationGetDescr(table->usage.table), &TTSOpsVirtual);
	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
		table->environments[i] = CStringGetTextDatum(environment_names[i]);
}

static void
close_table(UsageTable *table)
{
	ExecDropSingleTupleTableSlot(table->row);
	ExecCloseIndices(table->relation);
	FreeExecutorState(table->estate);
	close_finder(&table->uncommitted_keys);
	close_finder(&table->uncommitted_usage);
	close_finder(&table->keys);
	close_finder(&table->usage);
	UnregisterSnapshot(table->snapshot);
}

/* Go to the next entry of the walk. */
static void
walk_on(UsageTable *table)
{
	table->walk = index_getnext_tid(table->usage.scan, ForwardScanDirection) == NULL
					  ? WALK_AT_END
					  : WALK_AT_ENTRY;
}

/* Begin a walk, or go on, at the first entry of a delta's key or of a greater one. */
static void
walk_from(UsageTable *table, const UsageDelta *delta)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_UUID_GE, UUIDPGetDatum(&delta->key_id));
	index_rescan(table->usage.scan, &key, 1, NULL, 0);
	walk_on(table);
}

/* How the entry that a walk is at compares with a delta's; as memcmp(), 1 at the end. */
static int
compare_entry(const UsageTable *table, const UsageDelta *delta)
{
	IndexScanDesc scan = table->usage.scan;
	const char *name = environment_names[delta->environment];
	const text *environment;
	bool isnull;
	int length;
	int order;

	if (table->walk == WALK_AT_END)
		return 1;

	order = memcmp(DatumGetUUIDP(index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull)),
				   &delta->key_id, sizeof(pg_uuid_t));
	if (order != 0)
		return order;

	/* its collation is "C" */
	environment = DatumGetTextPP(index_getattr(scan->xs_itup, 2, scan->xs_itupdesc, &isnull));
	length = (int) VARSIZE_ANY_EXHDR(environment);
	order = memcmp(VARDATA_ANY(environment), name, Min(length, strlen(name)));
	return order != 0 ? order : length - (int) strlen(name);
}

/* Find the row of a delta, none of which was smaller before; false if it has none. */
static bool
find_usage(UsageTable *table, const UsageDelta *delta)
{
	int order;

	if (table->walk == WALK_NOT_BEGUN)
		walk_from(table, delta);

	for (int passed = 1; (order = compare_entry(table, delta)) < 0; passed++)
	{
		if (passed == WALK_MAX)
			walk_from(table, delta);
		else
			walk_on(table);
	}

	/* there may be entries of versions of the row that are no more */
	for (; order == 0; order = compare_entry(table, delta))
	{
		if (index_fetch_heap(table->usage.scan, table->usage.row))
			return true;
		walk_on(table);
	}
	return false;
}

/* Whether there is a row of a delta that somebody has not committed yet. */
static bool
has_uncommitted_usage(UsageTable *table, const UsageDelta *delta)
{
	Finder *finder = &table->uncommitted_usage;
	ScanKeyData keys[2];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(&delta->key_id));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ,
				table->environments[delta->environment]);
	index_rescan(finder->scan, keys, 2, NULL, 0);
	return index_getnext_slot(finder->scan, ForwardScanDirection, finder->row);
}

/* Find the key of a delta; false if there is none. */
static bool
find_key(Finder *finder, const UsageDelta *delta)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(&delta->key_id));
	index_rescan(finder->scan, &key, 1, NULL, 0);
	return index_getnext_slot(finder->scan, ForwardScanDirection, finder->row);
}

/* Lock the row that was found; false if somebody holds it, or has changed it. */
static bool
lock_row(Finder *finder, Snapshot snapshot, LockTupleMode mode)
{
	ItemPointerData tid = finder->row->tts_tid;
	TM_FailureData failure;

	return table_tuple_lock(finder->table, &tid, snapshot, finder->row, GetCurrentCommandId(true),
							mode, LockWaitSkip, 0, &failure) == TM_Ok;
}

/*
 * Whether the usage row that was found can be replaced without waiting for anybody.
 * One that nobody has locked since it was written, almost every one, needs no lock
 * from us either: who comes in between has it for a moment at most.
 */
static bool
may_replace(UsageTable *table)
{
	bool isnull;
	Datum locker = slot_getsysattr(table->usage.row, MaxTransactionIdAttributeNumber, &isnull);

	return !TransactionIdIsValid(DatumGetTransactionId(locker)) ||
		   lock_row(&table->usage, table->snapshot, LockTupleNoKeyExclusive);
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

/* Begin the row to write with the one that was found. */
static void
begin_found_row(UsageTable *table)
{
	ExecClearTuple(table->row);
	slot_getallattrs(table->usage.row);
	memcpy(table->row->tts_values, table->usage.row->tts_values, Natts_key_usage * sizeof(Datum));
	memcpy(table->row->tts_isnull, table->usage.row->tts_isnull, Natts_key_usage * sizeof(bool));
}

/* Begin the row to write as the first one of a key and environment. */
static void
begin_first_row(UsageTable *table, const UsageDelta *delta)
{
	Datum *values = table->row->tts_values;

	ExecClearTuple(table->row);
	memset(values, 0, Natts_key_usage * sizeof(Datum));
	memset(table->row->tts_isnull, false, Natts_key_usage * sizeof(bool));
	values[Anum_key_usage_key_id - 1] = UUIDPGetDatum(&delta->key_id);
	values[Anum_key_usage_environment - 1] = table->environments[delta->environment];
	values[Anum_key_usage_hour - 1] = TimestampTzGetDatum(delta->hour);
	table->row->tts_isnull[Anum_key_usage_last_used_at - 1] = true;
}

/* Add deltas of one key and environment to the row to write. */
static void
add_deltas(TupleTableSlot *row, const UsageDelta *deltas, int count, UsageDeltas *history)
{
	TimestampTz hour = DatumGetTimestampTz(row->tts_values[Anum_key_usage_hour - 1]);

	/* first to the hour that the row is at: then none ends twice */
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
}

/* Replace the row that was found.  False if somebody holds it, or has changed it. */
static bool
replace_row(UsageTable *table, const UsageDelta *deltas, int count, UsageDeltas *history)
{
	int before = history->count;
	ItemPointerData tid;

	if (!may_replace(table))
		return false;

	begin_found_row(table);
	add_deltas(table->row, deltas, count, history);
	tid = table->usage.row->tts_tid;
	if (compat_update_row(table->relation, table->estate, &tid, table->row, table->snapshot) ==
		TM_Ok)
		return true;
	history->count = before;
	return false;
}

/*
 * Insert the first row of the key that was found.  False if somebody holds the key.
 *
 * A lock in share mode keeps the key from being deleted, as the lock in key share
 * mode of a foreign key's check does, and from being updated.  So it cannot be got
 * while an update is not committed: whoever then deleted the version that the update
 * made would not see a lock on the version that we found.
 */
static bool
insert_row(UsageTable *table, const UsageDelta *deltas, int count, UsageDeltas *history)
{
	if (!lock_row(&table->keys, table->snapshot, LockTupleShare))
		return false;

	begin_first_row(table, deltas);
	add_deltas(table->row, deltas, count, history);
	compat_insert_row(table->relation, table->estate, table->row);
	return true;
}

/* Add the hours that are over to their table. */
static void
insert_hours(const UsageDeltas *history)
{
	Oid types[DELTA_COLUMNS];
	Datum values[DELTA_COLUMNS];
	int result;

	for (int i = 0; i < DELTA_COLUMNS; i++)
		types[i] = delta_columns[i]->array;

	SPI_connect();
	delta_arrays(history->items, history->count, values);
	result = SPI_execute_with_args(insert_history, DELTA_COLUMNS, types, values, NULL, false, 0);
	if (result != SPI_OK_INSERT)
		elog(ERROR, "could not write usage: %s", SPI_result_code_string(result));
	SPI_finish();
}

/*
 * Add deltas of one key and environment to their row, or make it.  False if that
 * must wait for somebody: who holds the row or its key, or has not committed it.
 */
static bool
fold_row(UsageTable *table, const UsageDelta *deltas, int count, UsageDeltas *history)
{
	if (find_usage(table, deltas))
		return replace_row(table, deltas, count, history);
	if (find_key(&table->keys, deltas))
		return !has_uncommitted_usage(table, deltas) && insert_row(table, deltas, count, history);
	return !find_key(&table->uncommitted_keys, deltas);
}

void
fold_deltas(UsageDeltas *deltas, UsageDeltas *postponed)
{
	UsageTable table;
	UsageDeltas history = {0};
	int count;

	merge_deltas(deltas);
	open_table(&table);
	for (int i = 0; i < deltas->count; i += count)
	{
		const UsageDelta *first = &deltas->items[i];

		count = 1;
		while (i + count < deltas->count && same_row(first, first + count))
			count++;

		CHECK_FOR_INTERRUPTS();
		if (fold_row(&table, first, count, &history))
			continue;
		for (int j = 0; j < count; j++)
			usage_add_delta(postponed, first + j);
	}
	close_table(&table);
	CommandCounterIncrement();

	if (history.count > 0)
		insert_hours(&history);
}
