/*-------------------------------------------------------------------------
 *
 * journal.c
 *		The journal of usage: what was counted, as it is flushed.
 *
 * A busy server has tens of thousands of keys to write each second, so that a
 * crash costs no more than that second.  Adding to the row of each would take a
 * quarter of a processor, which the requests need.  So a flush appends to a
 * journal, many keys to a row, and the journal is taken out partition by
 * partition, in turn, and added to the totals: a key that is used all the time
 * then costs one update of its row a round.  A server that is not busy gets round
 * with each flush.
 *
 * Partitions are ranges of key ids, so that the totals of one are near each other in
 * their index.  Ids that are not random, which ranges might not divide, are spread
 * over them.
 *
 * Rows of another writer are taken only by a round that was asked for, as the
 * worker does when it begins: they may belong to a dump that is being read in,
 * whose keys and totals are not there yet.
 *
 *-------------------------------------------------------------------------
 */
#include "journal.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

const ColumnType *const delta_columns[DELTA_COLUMNS] = {
	[DELTA_KEY_ID] = &column_uuid,
	[DELTA_ENVIRONMENT] = &column_text,
	[DELTA_HOUR] = &column_timestamptz,
	[DELTA_TOTAL_REQUESTS] = &column_int8,
	[DELTA_FAILED_REQUESTS] = &column_int8,
	[DELTA_PROMPT_TOKENS] = &column_int8,
	[DELTA_COMPLETION_TOKENS] = &column_int8,
	[DELTA_LAST_USED_AT] = &column_timestamptz,
};

/* Parameters besides the columns. */
#define APPEND_PARTITION DELTA_COLUMNS
#define APPEND_WRITER (DELTA_COLUMNS + 1)
#define APPEND_PARAMETERS (DELTA_COLUMNS + 2)

static const char append_statement[] =
	"INSERT INTO regpilot.usage_journal (key_ids, environments, hours, total_requests,"
	" failed_requests, prompt_tokens, completion_tokens, last_used_at, partition, writer)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";

/* $2 is the writer, NULL for any. */
static const char take_statement[] =
	"DELETE FROM regpilot.usage_journal"
	" WHERE partition = $1 AND ($2 IS NULL OR writer = $2)"
	" RETURNING pg_catalog.cardinality(key_ids), key_ids, environments, hours, total_requests,"
	" failed_requests, prompt_tokens, completion_tokens, last_used_at";

#define PARTITIONS 64 /* as in the install script */

static pg_uuid_t writer;		 /* who we are */
static bool written[PARTITIONS]; /* we have written rows that were not taken */
static int next_partition = 0;	 /* to take */
static int round_left = 0;		 /* partitions that the round has yet to take */

void
delta_arrays(const UsageDelta *deltas, int count, Datum arrays[DELTA_COLUMNS])
{
	Datum *values = MemoryContextAllocHuge(CurrentMemoryContext, count * sizeof(Datum));
	bool *nulls = palloc(count * sizeof(bool));
	Datum environments[ENVIRONMENT_COUNT];

	for (int i = 0; i < ENVIRONMENT_COUNT; i++)
		environments[i] = CStringGetTextDatum(environment_names[i]);

	for (int column = 0; column < DELTA_COLUMNS; column++)
	{
		memset(nulls, false, count * sizeof(bool));
		for (int i = 0; i < count; i++)
		{
			const UsageDelta *delta = &deltas[i];

			switch (column)
			{
				case DELTA_KEY_ID:
					values[i] = UUIDPGetDatum(&delta->key_id);
					break;
				case DELTA_ENVIRONMENT:
					values[i] = environments[delta->environment];
					break;
				case DELTA_HOUR:
					values[i] = TimestampTzGetDatum(delta->hour);
					break;
				case DELTA_TOTAL_REQUESTS:
					values[i] = Int64GetDatum(delta->counters.total_requests);
					break;
				case DELTA_FAILED_REQUESTS:
					values[i] = Int64GetDatum(delta->counters.failed_requests);
					break;
				case DELTA_PROMPT_TOKENS:
					values[i] = Int64GetDatum(delta->counters.prompt_tokens);
					break;
				case DELTA_COMPLETION_TOKENS:
					values[i] = Int64GetDatum(delta->counters.completion_tokens);
					break;
				case DELTA_LAST_USED_AT:
					nulls[i] = delta->counters.last_used_at == 0;
					values[i] = TimestampTzGetDatum(delta->counters.last_used_at);
					break;
			}
		}
		arrays[column] = column_array(delta_columns[column], values, nulls, count);
	}
	pfree(values);
	pfree(nulls);
}

void
journal_open(void)
{
	if (!pg_strong_random(writer.data, UUID_LEN))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not generate random values")));
}

static SPIPlanPtr
prepare(const char *statement, int count, Oid *types)
{
	SPIPlanPtr plan = SPI_prepare(statement, count, types);

	if (plan == NULL)
		elog(ERROR, "could not prepare to use the journal: %s", SPI_result_code_string(SPI_result));
	return plan;
}

static void
execute(SPIPlanPtr plan, Datum *values, const char *nulls, int expected)
{
	int result = SPI_execute_plan(plan, values, nulls, false, 0);

	if (result != expected)
		elog(ERROR, "could not use the journal: %s", SPI_result_code_string(result));
}

static int
partition_of(const UsageDelta *delta)
{
	const unsigned char *id = delta->key_id.data;

	/* the version, of which 4 is a random UUID (RFC 9562, section 5.4) */
	if (id[6] >> 4 == 4)
		return id[0] * PARTITIONS / 256;
	return (int) (hash_bytes(id, UUID_LEN) % PARTITIONS);
}

/*
 * The deltas in the order of partitions, palloc'd.  Those of partition i end at
 * ends[i], where those of the next one begin.
 */
static UsageDelta *
order_by_partition(const UsageDeltas *deltas, int ends[PARTITIONS])
{
	UsageDelta *ordered =
		MemoryContextAllocHuge(CurrentMemoryContext, deltas->count * sizeof(UsageDelta));
	int next = 0;

	memset(ends, 0, PARTITIONS * sizeof(int));
	for (int i = 0; i < deltas->count; i++)
		ends[partition_of(&deltas->items[i])]++;
	for (int i = 0; i < PARTITIONS; i++)
	{
		int count = ends[i];

		ends[i] = next; /* where it begins, until it is filled */
		next += count;
	}
	for (int i = 0; i < deltas->count; i++)
		ordered[ends[partition_of(&deltas->items[i])]++] = deltas->items[i];
	return ordered;
}

void
journal_append(const UsageDeltas *deltas)
{
	Oid types[APPEND_PARAMETERS];
	SPIPlanPtr plan;
	UsageDelta *ordered;
	int ends[PARTITIONS];
	int begin = 0;

	if (deltas->count == 0)
		return;
	ordered = order_by_partition(deltas, ends);

	for (int i = 0; i < DELTA_COLUMNS; i++)
		types[i] = delta_columns[i]->array;
	types[APPEND_PARTITION] = INT4OID;
	types[APPEND_WRITER] = UUIDOID;

	SPI_connect();
	plan = prepare(append_statement, APPEND_PARAMETERS, types);
	for (int i = 0; i < PARTITIONS; i++)
	{
		Datum values[APPEND_PARAMETERS];

		if (begin == ends[i])
			continue;
		delta_arrays(&ordered[begin], ends[i] - begin, values);
		values[APPEND_PARTITION] = Int32GetDatum(i);
		values[APPEND_WRITER] = UUIDPGetDatum(&writer);
		execute(plan, values, NULL, SPI_OK_INSERT);
		written[i] = true;
		begin = ends[i];
	}
	SPI_finish();
	pfree(ordered);
}

/* Add the deltas of a row that was taken to a list. */
static void
add_deltas(HeapTuple row, TupleDesc descriptor, UsageDeltas *deltas)
{
	bool isnull;
	int count = DatumGetInt32(SPI_getbinval(row, descriptor, 1, &isnull));
	Datum *values[DELTA_COLUMNS];
	bool *never_used;

	for (int i = 0; i < DELTA_COLUMNS; i++)
		values[i] = column_values(delta_columns[i], SPI_getbinval(row, descriptor, 2 + i, &isnull),
								  i == DELTA_LAST_USED_AT ? &never_used : NULL, count);

	for (int i = 0; i < count; i++)
	{
		const text *environment = DatumGetTextPP(values[DELTA_ENVIRONMENT][i]);
		UsageDelta delta = {0};

		delta.key_id = *DatumGetUUIDP(values[DELTA_KEY_ID][i]);
		delta.environment =
			environment_from_name(VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment));
		delta.hour = DatumGetTimestampTz(values[DELTA_HOUR][i]);
		delta.counters.total_requests = DatumGetInt64(values[DELTA_TOTAL_REQUESTS][i]);
		delta.counters.failed_requests = DatumGetInt64(values[DELTA_FAILED_REQUESTS][i]);
		delta.counters.prompt_tokens = DatumGetInt64(values[DELTA_PROMPT_TOKENS][i]);
		delta.counters.completion_tokens = DatumGetInt64(values[DELTA_COMPLETION_TOKENS][i]);
		if (!never_used[i])
			delta.counters.last_used_at = DatumGetTimestampTz(values[DELTA_LAST_USED_AT][i]);
		usage_add_delta(deltas, &delta);
	}
}

/* Say where a row is that cannot be taken. */
static void
describe_row(void *partition)
{
	errcontext("row of table regpilot.usage_journal, partition %d", *(int *) partition);
}

/* Take a partition.  The caller is connected to SPI, and "context" is for the list. */
static void
take_partition(SPIPlanPtr plan, int partition, bool any_writer, MemoryContext context,
			   UsageDeltas *deltas)
{
	Datum values[] = {Int32GetDatum(partition), UUIDPGetDatum(&writer)};
	ErrorContextCallback row_context = {.callback = describe_row, .arg = &partition};
	MemoryContext spi_context;

	execute(plan, values, any_writer ? " n" : NULL, SPI_OK_DELETE_RETURNING);
	spi_context = MemoryContextSwitchTo(context);
	row_context.previous = error_context_stack;
	error_context_stack = &row_context;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		CHECK_FOR_INTERRUPTS();
		add_deltas(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, deltas);
	}
	error_context_stack = row_context.previous;
	MemoryContextSwitchTo(spi_context);
	SPI_freetuptable(SPI_tuptable);
	written[partition] = false;
}

void
journal_take(int enough, UsageDeltas *deltas)
{
	Oid types[] = {INT4OID, UUIDOID};
	MemoryContext context = CurrentMemoryContext;
	SPIPlanPtr plan;

	SPI_connect();
	plan = prepare(take_statement, lengthof(types), types);
	for (int i = 0; i < PARTITIONS && deltas->count < enough; i++)
	{
		bool in_round = round_left > 0;

		if (in_round || written[next_partition])
			take_partition(plan, next_partition, in_round, context, deltas);
		if (in_round)
			round_left--;
		next_partition = (next_partition + 1) % PARTITIONS;
	}
	SPI_finish();
}

bool
journal_has_rows(void)
{
	for (int i = 0; i < PARTITIONS; i++)
	{
		if (written[i])
			return true;
	}
	return round_left > 0;
}

void
journal_begin_round(void)
{
	round_left = PARTITIONS;
}

bool
journal_round_is_over(void)
{
	return round_left == 0;
}

void
journal_forget(void)
{
	memset(written, false, sizeof(written));
	round_left = 0;
}
