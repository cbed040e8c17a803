/*-------------------------------------------------------------------------
 *
 * audit.c
 *		Write down every change of a table to audit_log: who changed which
 *		row, from what to what.
 *
 * A trigger does this, so that a change by direct SQL is written down like one
 * made by a function.  It writes with the rights of the log's owner, for nobody
 * else may, and in the transaction of the change: one that cannot be written
 * down does not happen.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/htup_details.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "restore.h"

PG_FUNCTION_INFO_V1(regpilot_audit);

/* The columns of an entry but for its number and time. */
enum
{
	ENTRY_SESSION_ROLE,
	ENTRY_ROLE,
	ENTRY_ACTION,
	ENTRY_TABLE_NAME,
	ENTRY_PROJECT_ID,
	ENTRY_KEY_ID,
	ENTRY_OBJECT,
	ENTRY_OLD,
	ENTRY_NEW,
};

#define ENTRY_COLUMNS (ENTRY_NEW + 1)

static const char insert_statement[] =
	"INSERT INTO regpilot.audit_log"
	" (session_role, role, action, table_name, project_id, key_id, object, old, new)"
	" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";

static const Oid entry_types[ENTRY_COLUMNS] = {
	[ENTRY_SESSION_ROLE] = TEXTOID, [ENTRY_ROLE] = TEXTOID,		  [ENTRY_ACTION] = TEXTOID,
	[ENTRY_TABLE_NAME] = TEXTOID,	[ENTRY_PROJECT_ID] = UUIDOID, [ENTRY_KEY_ID] = UUIDOID,
	[ENTRY_OBJECT] = TEXTOID,		[ENTRY_OLD] = JSONBOID,		  [ENTRY_NEW] = JSONBOID,
};

/* An entry on its way to the table.  Columns that are not set are null. */
typedef struct Entry
{
	Datum values[ENTRY_COLUMNS];
	char nulls[ENTRY_COLUMNS]; /* as SPI wants it */
} Entry;

/*
 * The trigger's arguments name columns of its table: the row's key, then, where
 * there are any, the project and the API key that it belongs to or is.
 */
static const int argument_columns[] = {ENTRY_OBJECT, ENTRY_PROJECT_ID, ENTRY_KEY_ID};

static void
set_entry(Entry *entry, int column, Datum value)
{
	entry->values[column] = value;
	entry->nulls[column] = ' ';
}

/* Say which row it is that has changed, and what it belongs to; none if truncated. */
static void
identify_row(Entry *entry, const TriggerData *trigger, HeapTuple row)
{
	TupleDesc descriptor = RelationGetDescr(trigger->tg_relation);

	for (int i = 0; row != NULL && i < trigger->tg_trigger->tgnargs; i++)
	{
		int number = SPI_fnumber(descriptor, trigger->tg_trigger->tgargs[i]);
		Datum value;
		bool isnull;

		if (i >= lengthof(argument_columns) || number <= 0)
			elog(ERROR, "invalid argument \"%s\" of trigger \"%s\"", trigger->tg_trigger->tgargs[i],
				 trigger->tg_trigger->tgname);

		value = heap_getattr(row, number, descriptor, &isnull);
		if (isnull)
			continue;
		if (argument_columns[i] == ENTRY_OBJECT) /* a text, of a column of any type */
			value = CStringGetTextDatum(SPI_getvalue(row, descriptor, number));
		set_entry(entry, argument_columns[i], value);
	}
}

/* Whether a column has the same value in two rows.  One that is not there (NULL) has nulls only. */
static bool
column_is_same(TupleDesc descriptor, int number, HeapTuple a, HeapTuple b)
{
	Form_pg_attribute column = TupleDescAttr(descriptor, number - 1);
	bool a_null = true;
	bool b_null = true;
	Datum a_value = a != NULL ? heap_getattr(a, number, descriptor, &a_null) : 0;
	Datum b_value = b != NULL ? heap_getattr(b, number, descriptor, &b_null) : 0;

	if (a_null || b_null)
		return a_null && b_null;
	return datum_image_eq(a_value, b_value, column->attbyval, column->attlen);
}

/*
 * The columns in which a row differs from what it was or becomes, as a jsonb
 * object; 0 if there are none.
 *
 * "<redacted>" stands for a value of type bytea.  That is a key's digest, which
 * is left out before anything is made of it, for a log of statements shows what
 * is bound to them.
 */
static Datum
columns_as_jsonb(TupleDesc descriptor, HeapTuple row, HeapTuple other)
{
	int *numbers = palloc(descriptor->natts * sizeof(int));
	Datum *values = palloc(descriptor->natts * sizeof(Datum));
	bool *nulls = palloc(descriptor->natts * sizeof(bool));
	int count = 0;
	TupleDesc columns;
	Datum record;
	text *json;

	for (int number = 1; number <= descriptor->natts; number++)
	{
		if (!TupleDescAttr(descriptor, number - 1)->attisdropped &&
			!column_is_same(descriptor, number, row, other))
			numbers[count++] = number;
	}
	if (count == 0)
		return 0;

	columns = CreateTemplateTupleDesc(count);
	for (int i = 0; i < count; i++)
	{
		Form_pg_attribute column = TupleDescAttr(descriptor, numbers[i] - 1);

		values[i] = heap_getattr(row, numbers[i], descriptor, &nulls[i]);
		if (column->atttypid == BYTEAOID)
		{
			TupleDescInitEntry(columns, i + 1, NameStr(column->attname), TEXTOID, -1, 0);
			values[i] = CStringGetTextDatum("<redacted>");
		}
		else
			TupleDescCopyEntry(columns, i + 1, descriptor, numbers[i]);
	}

	record = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(columns), values, nulls));
	json = DatumGetTextPP(DirectFunctionCall1(row_to_json, record));
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(text_to_cstring(json)));
}

/* The owner of the audit log. */
static Oid
log_owner(Oid schema)
{
	HeapTuple table =
		SearchSysCache2(RELNAMENSP, CStringGetDatum("audit_log"), ObjectIdGetDatum(schema));
	Oid owner;

	if (!HeapTupleIsValid(table))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_TABLE),
						errmsg("relation \"regpilot.audit_log\" does not exist")));
	owner = ((Form_pg_class) GETSTRUCT(table))->relowner;
	ReleaseSysCache(table);
	return owner;
}

/* Insert an entry, as the owner of the log.  An error resets the role when it aborts. */
static void
write_entry(Entry *entry, Oid owner)
{
	static SPIPlanPtr plan = NULL;
	Oid role;
	int security_context;
	int result;

	GetUserIdAndSecContext(&role, &security_context);
	SetUserIdAndSecContext(owner,
						   security_context | SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
	SPI_connect();

	if (plan == NULL)
	{
		SPIPlanPtr prepared = SPI_prepare(insert_statement, ENTRY_COLUMNS, (Oid *) entry_types);

		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", insert_statement,
				 SPI_result_code_string(SPI_result));
		plan = prepared;
	}
	result = SPI_execute_plan(plan, entry->values, entry->nulls, false, 0);
	if (result != SPI_OK_INSERT)
		elog(ERROR, "could not execute \"%s\": %s", insert_statement,
			 SPI_result_code_string(result));

	SPI_finish();
	SetUserIdAndSecContext(role, security_context);
}

/*
 * The role that changes a row.  What has the rights of the table's owner, as the
 * actions of foreign keys (from PostgreSQL 18 on) and functions may have, acts for
 * the role that the session has taken on.
 */
static Oid
acting_role(Relation table)
{
	Oid role = GetUserId();

	return role == table->rd_rel->relowner ? GetOuterUserId() : role;
}

static const char *
action_name(TriggerEvent event)
{
	if (TRIGGER_FIRED_BY_INSERT(event))
		return "insert";
	if (TRIGGER_FIRED_BY_UPDATE(event))
		return "update";
	if (TRIGGER_FIRED_BY_DELETE(event))
		return "delete";
	return "truncate";
}

/*
 * Trigger for each row that was inserted, updated or deleted, and for each
 * TRUNCATE.  An UPDATE that changes nothing is not written down.
 */
Datum
regpilot_audit(PG_FUNCTION_ARGS)
{
	const TriggerData *trigger = (const TriggerData *) fcinfo->context;
	TupleDesc descriptor;
	HeapTuple old = NULL;
	HeapTuple new = NULL;
	Entry entry;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("regpilot.audit() must be called as a trigger")));
	if (restoring())
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		new = trigger->tg_trigtuple;
	else
		old = trigger->tg_trigtuple; /* NULL if truncated */
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		new = trigger->tg_newtuple;

	descriptor = RelationGetDescr(trigger->tg_relation);
	memset(entry.nulls, 'n', sizeof(entry.nulls));
	if (old != NULL)
		set_entry(&entry, ENTRY_OLD, columns_as_jsonb(descriptor, old, new));
	if (new != NULL)
		set_entry(&entry, ENTRY_NEW, columns_as_jsonb(descriptor, new, old));
	if (old != NULL && new != NULL && entry.values[ENTRY_NEW] == 0)
		return PointerGetDatum(NULL);

	set_entry(&entry, ENTRY_SESSION_ROLE,
			  CStringGetTextDatum(GetUserNameFromId(GetSessionUserId(), false)));
	set_entry(&entry, ENTRY_ROLE,
			  CStringGetTextDatum(GetUserNameFromId(acting_role(trigger->tg_relation), false)));
	set_entry(&entry, ENTRY_ACTION, CStringGetTextDatum(action_name(trigger->tg_event)));
	set_entry(&entry, ENTRY_TABLE_NAME,
			  CStringGetTextDatum(RelationGetRelationName(trigger->tg_relation)));
	identify_row(&entry, trigger, new != NULL ? new : old);

	write_entry(&entry, log_owner(RelationGetNamespace(trigger->tg_relation)));
	return PointerGetDatum(NULL);
}
