/*-------------------------------------------------------------------------
 *
 * requestlog.c
 *		The request log: one row a request, in a partition a (UTC) day.
 *
 * Rows are written, and partitions made and dropped, with the rights of the
 * table's owner, since the callers have none on it.  So all statements here are
 * qualified: the caller's search_path has no part in them.
 *
 * Upkeep queues for no lock: who waits for an exclusive lock holds up all who
 * come after, and record_many() must not be held up.  It tries for a moment, and
 * else leaves it to the next time.
 *
 * The age of rows is judged by the clock, which may be wrong for a moment, as it
 * often is after boot.  The worker therefore drops nothing until the clock has
 * been steady for a while.
 *
 *-------------------------------------------------------------------------
 */
#include "requestlog.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "commands/copy.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "libpq/pqformat.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "partitioning/partbounds.h"
#include "partitioning/partdesc.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_maintain_request_log);

/* Characters kept of a model: as many as a route's may have. */
#define MODEL_MAX 200

/* Partitions are made for today and so many days more. */
#define DAYS_AHEAD 7

/* Rows of the default partition deleted in one go, so that a flush need not wait long. */
#define DELETE_MAX "100000"

/* A lock is tried for this often, with a pause between. */
#define LOCK_ATTEMPTS 20
#define LOCK_PAUSE_US 10000

/* The clock is steady that for so long was this near to one that nobody sets. */
#define STEADY_TIME (30 * USECS_PER_MINUTE)
#define STEADY_TOLERANCE USECS_PER_MINUTE

/* The columns that entries have, in the order in which they are written. */
static const char *const columns[] = {
	"at",		  "project_id",	   "key_id", "environment",	  "status",
	"latency_ms", "first_byte_ms", "model",	 "prompt_tokens", "completion_tokens",
};

/* Whose rights we had before we took the owner's. */
typedef struct Caller
{
	Oid user;
	int context;
} Caller;

/* A partition and its bounds; the upper one is exclusive. */
typedef struct Partition
{
	Oid id;
	TimestampTz lower;
	TimestampTz upper;
} Partition;

typedef struct Partitions
{
	Oid fallback; /* the default partition; InvalidOid if there is none */
	int count;
	Partition *ranges;
} Partitions;

/* What the worker's upkeep is to do. */
typedef struct Upkeep
{
	TimestampTz now;
	bool drop; /* also what is old */
} Upkeep;

/* The log; InvalidOid if the extension is not there. */
static Oid
find_log(void)
{
	Oid schema = get_namespace_oid("regpilot", true);

	return OidIsValid(schema) ? get_relname_relid("request_log", schema) : InvalidOid;
}

/* Take the rights of the log's owner.  An error gives them back as well. */
static Caller
become_owner(Oid log)
{
	Caller caller;
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(log));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", log);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);

	GetUserIdAndSecContext(&caller.user, &caller.context);
	SetUserIdAndSecContext(owner, caller.context | SECURITY_LOCAL_USERID_CHANGE |
									  SECURITY_RESTRICTED_OPERATION);
	return caller;
}

static void
become_caller(const Caller *caller)
{
	SetUserIdAndSecContext(caller->user, caller->context);
}

/*
 * Writing
 */

/*
 * Rows are written as COPY does, in its binary format, which takes half as long as
 * an INSERT of arrays.  Partitions, constraints, defaults and triggers are as ever.
 */
static StringInfoData rows; /* valid while COPY reads it; its cursor is where that is */

static int
read_rows(void *to, int least, int most)
{
	int length = Min(most, rows.len - rows.cursor);

	memcpy(to, rows.data + rows.cursor, length);
	rows.cursor += length;
	return length;
}

static void
append_bytes(const void *bytes, int length)
{
	pq_sendint32(&rows, length);
	pq_sendbytes(&rows, bytes, length);
}

static void
append_number(int number)
{
	pq_sendint32(&rows, sizeof(int32));
	pq_sendint32(&rows, number);
}

static void
append_null(void)
{
	pq_sendint32(&rows, -1);
}

/* A number that is null if it is negative. */
static void
append_number_or_null(int number)
{
	if (number < 0)
		append_null();
	else
		append_number(number);
}

/* The name of a model, cut at the end of a character if it is longer than any is. */
static void
append_model(const text *model)
{
	if (model == NULL)
		append_null();
	else
		append_bytes(VARDATA_ANY(model),
					 pg_mbcharcliplen(VARDATA_ANY(model), VARSIZE_ANY_EXHDR(model), MODEL_MAX));
}

/* Make rows of entries, in the format of COPY. */
static void
make_rows(const RequestLogEntry *entries, int count)
{
	static const char signature[] = "PGCOPY\n\377\r\n"; /* and a zero byte */
	TimestampTz now = GetCurrentTimestamp();

	initStringInfo(&rows);
	pq_sendbytes(&rows, signature, sizeof(signature));
	pq_sendint32(&rows, 0); /* flags */
	pq_sendint32(&rows, 0); /* length of what else the header has */
	for (int i = 0; i < count; i++)
	{
		const RequestLogEntry *entry = &entries[i];
		const char *environment = environment_names[entry->environment];

		pq_sendint16(&rows, lengthof(columns));
		pq_sendint32(&rows, sizeof(int64));
		pq_sendint64(&rows, now);
		append_bytes(&entry->project_id, UUID_LEN);
		append_bytes(entry->key_id, UUID_LEN);
		append_bytes(environment, strlen(environment));
		append_number(entry->status);
		append_number_or_null(entry->latency);
		append_number_or_null(entry->first_byte);
		append_model(entry->model);
		append_number(entry->prompt_tokens);
		append_number(entry->completion_tokens);
	}
	pq_sendint16(&rows, -1); /* the end */
}

/* Have the server read the rows into the log. */
static void
copy_rows(Relation log)
{
	ParseState *parse = make_parsestate(NULL);
	List *options = list_make1(makeDefElem("format", (Node *) makeString("binary"), -1));
	List *names = NIL;
	CopyFromState copy;

	for (int i = 0; i < lengthof(columns); i++)
		names = lappend(names, makeString(pstrdup(columns[i])));
	(void) addRangeTableEntryForRelation(parse, log, RowExclusiveLock, NULL, false, false);
	copy = BeginCopyFrom(parse, log, NULL, NULL, false, read_rows, names, options);
	(void) CopyFrom(copy);
	EndCopyFrom(copy);
	free_parsestate(parse);
}

void
requestlog_append(const RequestLogEntry *entries, int count)
{
	Oid log;
	Relation relation;
	Caller caller;
	int settings;

	if (count == 0 || XactReadOnly)
		return;

	log = find_log();
	caller = become_owner(log);
	/* before the clock is read: rollup.c finds by this lock who may still write rows of a time */
	relation = table_open(log, RowExclusiveLock);
	make_rows(entries, count);

	/* what COPY reads is in the encoding of the client, who shall be us */
	settings = NewGUCNestLevel();
	if (pg_get_client_encoding() != GetDatabaseEncoding())
		(void) set_config_option("client_encoding", GetDatabaseEncodingName(), PGC_USERSET,
								 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	copy_rows(relation);
	AtEOXact_GUC(true, settings);

	table_close(relation, NoLock);
	become_caller(&caller);
	pfree(rows.data);
}

/*
 * Upkeep
 */

/*
 * Take a step in a subtransaction.  If it fails, say so and go on: what cannot be
 * done now is tried again.  A cancel is passed on.
 */
static void
attempt(void (*step)(const void *), const void *argument, const char *what)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		step(argument);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
			ReThrowError(error);

		ereport(WARNING, (errcode(error->sqlerrcode), errmsg("could not %s", what),
						  errdetail_internal("%s", error->message),
						  errhint("It will be tried again within the hour.")));
		FreeErrorData(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
}

static void
execute(const void *command)
{
	int result = SPI_execute(command, false, 0);

	if (result < 0)
		elog(ERROR, "%s: %s", (const char *) command, SPI_result_code_string(result));
}

/* Whether a query finds a row. */
static bool
finds_row(const char *query)
{
	if (SPI_execute(query, false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the request log");
	return SPI_processed > 0;
}

/* Lock a table without queueing for it; false, after a warning, if that cannot be had. */
static bool
lock_table(Oid table, LOCKMODE mode, int attempts)
{
	for (int i = 0; i < attempts; i++)
	{
		if (i > 0)
			pg_usleep(LOCK_PAUSE_US);
		CHECK_FOR_INTERRUPTS();
		if (ConditionalLockRelationOid(table, mode))
			return true;
	}
	ereport(WARNING,
			(errcode(ERRCODE_LOCK_NOT_AVAILABLE), errmsg("upkeep of the request log has to wait"),
			 errdetail("Table \"%s\" is in use.", get_rel_name(table)),
			 errhint("It will be tried again within the hour.")));
	return false;
}

static const char *
qualified_name(Oid table)
{
	return quote_qualified_identifier(get_namespace_name(get_rel_namespace(table)),
									  get_rel_name(table));
}

/* One bound of a range of one column. */
static TimestampTz
bound(PartitionBoundInfo bounds, int i)
{
	switch (bounds->kind[i][0])
	{
		case PARTITION_RANGE_DATUM_MINVALUE:
			return DT_NOBEGIN;
		case PARTITION_RANGE_DATUM_MAXVALUE:
			return DT_NOEND;
		case PARTITION_RANGE_DATUM_VALUE:
			break;
	}
	return DatumGetTimestampTz(bounds->datums[i][0]);
}

/* The partitions there are, whatever their names, in their order. */
static Partitions
read_partitions(Oid log)
{
	Relation relation = table_open(log, NoLock);
	PartitionDesc description = RelationGetPartitionDesc(relation, true);
	PartitionBoundInfo bounds = description->boundinfo;
	Partitions partitions = {.fallback = get_default_oid_from_partdesc(description)};

	if (description->nparts > 0)
	{
		partitions.ranges = palloc(description->nparts * sizeof(Partition));

		/* each bound ends a range, which may be a gap */
		for (int i = 1; i < bounds->ndatums; i++)
		{
			if (bounds->indexes[i] >= 0)
				partitions.ranges[partitions.count++] =
					(Partition){.id = description->oids[bounds->indexes[i]],
								.lower = bound(bounds, i - 1),
								.upper = bound(bounds, i)};
		}
	}

	table_close(relation, NoLock);
	return partitions;
}

/* The beginning of the day (UTC) that a time lies in. */
static TimestampTz
day_of(TimestampTz time)
{
	TimestampTz since = time % USECS_PER_DAY;

	return time - since - (since < 0 ? USECS_PER_DAY : 0);
}

/* A day's beginning, by a format for year, month and day. */
static char *
format_day(const char *format, TimestampTz day)
{
	int year;
	int month;
	int day_of_month;

	j2date((int) (day / USECS_PER_DAY) + POSTGRES_EPOCH_JDATE, &year, &month, &day_of_month);
	return psprintf(format, year, month, day_of_month);
}

/* As a literal that no setting of the session changes the meaning of. */
static char *
format_time(TimestampTz day)
{
	return format_day("%04d-%02d-%02d 00:00:00+00", day);
}

/*
 * Make the partition of a day.  By ATTACH, since CREATE TABLE PARTITION OF would
 * lock the log against all.  The index is the partition's alone: had the log itself one,
 * ATTACH would make it, and a restored dump, which attaches before it makes indexes,
 * would make it twice.
 */
static void
create_partition(TimestampTz day)
{
	char *name = format_day("regpilot.request_log_%04d%02d%02d", day);

	attempt(execute,
			psprintf("CREATE TABLE %s (LIKE regpilot.request_log INCLUDING DEFAULTS INCLUDING"
					 " CONSTRAINTS);"
					 "CREATE INDEX ON %s (project_id, at, id);"
					 "ALTER TABLE regpilot.request_log ATTACH PARTITION %s"
					 " FOR VALUES FROM ('%s') TO ('%s')",
					 name, name, name, format_time(day), format_time(day + USECS_PER_DAY)),
			psprintf("create partition %s", name));
}

/* Whether a part of the day lies in one of the partitions. */
static bool
is_covered(const Partitions *partitions, TimestampTz day)
{
	for (int i = 0; i < partitions->count; i++)
	{
		if (partitions->ranges[i].lower < day + USECS_PER_DAY && partitions->ranges[i].upper > day)
			return true;
	}
	return false;
}

/*
 * Whether rows of that day are in the default partition, as on the day of the
 * installation.  They stay, and the day gets no partition: to move them would take
 * long where they are many, and record_many() would have to wait.
 */
static bool
is_in_fallback(const Partitions *partitions, TimestampTz day)
{
	if (!OidIsValid(partitions->fallback))
		return false;
	return finds_row(psprintf("SELECT FROM ONLY %s WHERE at OPERATOR(pg_catalog.>=) '%s'"
							  " AND at OPERATOR(pg_catalog.<) '%s'",
							  qualified_name(partitions->fallback), format_time(day),
							  format_time(day + USECS_PER_DAY)));
}

static void
create_partitions(Oid log, const Partitions *partitions, TimestampTz now)
{
	TimestampTz today = day_of(now);
	bool locked = !OidIsValid(partitions->fallback);

	/* without keys there is nothing to log, and a dump being restored brings partitions */
	if (!finds_row("SELECT FROM regpilot.api_key"))
		return;

	for (int i = 0; i <= DAYS_AHEAD; i++)
	{
		TimestampTz day = today + i * USECS_PER_DAY;

		if (is_covered(partitions, day) || is_in_fallback(partitions, day))
			continue;

		/* a row on its way to the default partition would be refused there */
		if (i == 0 && !lock_table(log, AccessExclusiveLock, LOCK_ATTEMPTS))
			continue;
		/* its bounds change with each partition */
		if (!locked)
			locked = lock_table(partitions->fallback, AccessExclusiveLock, LOCK_ATTEMPTS);
		if (!locked)
			break;
		create_partition(day);
	}
}

/* Drop the partitions that have ended by the horizon. */
static void
drop_partitions(Oid log, const Partitions *partitions, TimestampTz horizon)
{
	int old = 0;

	/* they are in order */
	while (old < partitions->count && partitions->ranges[old].upper <= horizon)
		old++;

	/* what DROP TABLE locks beside the partition */
	if (old == 0 || !lock_table(log, AccessExclusiveLock, LOCK_ATTEMPTS) ||
		(OidIsValid(partitions->fallback) &&
		 !lock_table(partitions->fallback, AccessExclusiveLock, LOCK_ATTEMPTS)))
		return;

	for (int i = 0; i < old; i++)
	{
		const char *name = qualified_name(partitions->ranges[i].id);

		/* at once or not at all: now record_many() is waiting */
		if (lock_table(partitions->ranges[i].id, AccessExclusiveLock, 1))
			attempt(execute, psprintf("DROP TABLE %s", name), psprintf("drop partition %s", name));
	}
}

/* Delete what is old in the default partition, or a good part of it: by whole days as well. */
static void
delete_rows(const Partitions *partitions, TimestampTz horizon)
{
	const char *name;

	if (!OidIsValid(partitions->fallback))
		return;

	name = qualified_name(partitions->fallback);
	attempt(execute,
			psprintf("DELETE FROM ONLY %s WHERE ctid OPERATOR(pg_catalog.=) ANY (ARRAY("
					 "SELECT ctid FROM ONLY %s WHERE at OPERATOR(pg_catalog.<) '%s'"
					 " LIMIT " DELETE_MAX "))",
					 name, name, format_time(day_of(horizon))),
			"delete old rows of the request log");
}

static void
maintain(TimestampTz now, bool drop)
{
	TimestampTz horizon = now - regpilot_log_retention * USECS_PER_SEC;
	Oid log = find_log();
	Partitions partitions;
	Caller caller;

	if (!OidIsValid(log))
		return;

	/* in the mode in which partitions are attached: they stay as we read them */
	if (!lock_table(log, ShareUpdateExclusiveLock, LOCK_ATTEMPTS))
		return;
	partitions = read_partitions(log);
	if (OidIsValid(partitions.fallback) &&
		!lock_table(partitions.fallback, RowExclusiveLock, LOCK_ATTEMPTS))
		return;

	caller = become_owner(log);
	SPI_connect();
	if (drop)
	{
		delete_rows(&partitions, horizon);
		attempt(execute,
				psprintf("SELECT regpilot.trim_rollup('%s')", format_time(day_of(horizon))),
				"delete old sums of the request log");
	}
	create_partitions(log, &partitions, now);
	/* last, as it locks all out until the end of the transaction */
	if (drop)
		drop_partitions(log, &partitions, horizon);
	SPI_finish();
	become_caller(&caller);
}

static void
maintain_step(const void *upkeep)
{
	maintain(((const Upkeep *) upkeep)->now, ((const Upkeep *) upkeep)->drop);
}

/* Whether the clock, now, has gone for a while as one goes that nobody sets. */
static bool
clock_is_steady(TimestampTz now)
{
	static TimestampTz since = 0; /* 0: not known yet */
	static int64 since_steady;
	int64 elapsed = usage_clock() - since_steady;
	int64 ahead = now - since - elapsed; /* by how much the clock has gone faster */

	if (since == 0 || ahead > STEADY_TOLERANCE || ahead < -STEADY_TOLERANCE)
	{
		since = now;
		since_steady = usage_clock();
		return false;
	}
	return elapsed >= STEADY_TIME;
}

void
requestlog_maintain(TimestampTz now)
{
	Upkeep upkeep = {.now = now, .drop = clock_is_steady(now)};

	attempt(maintain_step, &upkeep, "maintain the request log");
}

/* What the worker does hourly, as of a time that the caller answers for. */
Datum
regpilot_maintain_request_log(PG_FUNCTION_ARGS)
{
	TimestampTz as_of = PG_GETARG_TIMESTAMPTZ(0);

	PreventCommandIfReadOnly("regpilot.maintain_request_log()");
	if (TIMESTAMP_NOT_FINITE(as_of))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("\"as_of\" must be finite")));

	maintain(as_of, true);
	PG_RETURN_VOID();
}
