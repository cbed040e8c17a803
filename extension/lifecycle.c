/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *		The life of a key: create_project(), create_key(), import_key(),
 *		rotate_key(), review_key(), disable_key(), enable_key(), revoke_key().
 *
 * These run as the caller, whose privileges on the tables decide.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "argument.h"
#include "catalog.h"
#include "compat.h"
#include "key.h"

PG_FUNCTION_INFO_V1(regpilot_create_project);
PG_FUNCTION_INFO_V1(regpilot_create_key);
PG_FUNCTION_INFO_V1(regpilot_import_key);
PG_FUNCTION_INFO_V1(regpilot_rotate_key);
PG_FUNCTION_INFO_V1(regpilot_review_key);
PG_FUNCTION_INFO_V1(regpilot_revoke_key);
PG_FUNCTION_INFO_V1(regpilot_disable_key);
PG_FUNCTION_INFO_V1(regpilot_enable_key);

/* The columns of api_key that are given for a new key. */
typedef enum KeyColumn
{
	KEY_PROJECT_ID,
	KEY_NAME,
	KEY_ENVIRONMENT,
	KEY_PERMISSIONS,
	KEY_EXPIRES_AT,
	KEY_REQUESTS_PER_MINUTE,
	KEY_ROTATED_FROM,
	KEY_DIGEST, /* as a regpilot.secret, so that no log of the statement shows it */
	KEY_HINT,
} KeyColumn;

#define KEY_COLUMN_COUNT (KEY_HINT + 1)
#define KEY_INHERITED_COUNT (KEY_REQUESTS_PER_MINUTE + 1) /* by the successor of a key */

typedef struct NewKey
{
	Datum values[KEY_COLUMN_COUNT];
	char nulls[KEY_COLUMN_COUNT]; /* 'n' or ' ', as SPI wants it */
} NewKey;

static char *
uuid_to_cstring(Datum uuid)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, uuid));
}

/*
 * Run one statement that this file spells out.  Parameters that are null have
 * 'n' in nulls, others ' ', as SPI wants it.  Returns the number of rows.
 */
static uint64
execute(const char *statement, int count, Oid *types, Datum *values, const char *nulls)
{
	int result = SPI_execute_with_args(statement, count, types, values, nulls, false, 0);

	if (result < 0)
		elog(ERROR, "could not execute \"%s\": %s", statement, SPI_result_code_string(result));
	return SPI_processed;
}

/* The single uuid that the last statement returned. */
static pg_uuid_t
returned_uuid(void)
{
	bool isnull;

	return *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

Datum
regpilot_create_project(PG_FUNCTION_ARGS)
{
	text *name = argument_label(fcinfo, 0, "name", "project", NAME_MAX_LENGTH);
	Oid types[] = {TEXTOID, TEXTOID};
	Datum values[2];
	pg_uuid_t *id = palloc(sizeof(pg_uuid_t));

	argument_require(fcinfo, 1, "plan");
	values[0] = PointerGetDatum(name);
	values[1] = PG_GETARG_DATUM(1);

	SPI_connect();

	if (execute("SELECT FROM regpilot.plan WHERE name OPERATOR(pg_catalog.=) $1", 1, types,
				&values[1], NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("plan \"%s\" does not exist", argument_shown(PG_GETARG_TEXT_PP(1))),
						errdetail("There is no plan of that name."),
						errhint("See the table regpilot.plan.")));

	if (execute("INSERT INTO regpilot.project (name, plan) VALUES ($1, $2)"
				" ON CONFLICT (name) DO NOTHING RETURNING id",
				2, types, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNIQUE_VIOLATION),
						errmsg("project \"%s\" already exists", text_to_cstring(name)),
						errdetail("No two projects have the same name."),
						errhint("Choose another name.")));

	*id = returned_uuid();
	SPI_finish();
	PG_RETURN_UUID_P(id);
}

static void
set_column(NewKey *key, KeyColumn column, Datum value, bool isnull)
{
	key->values[column] = value;
	key->nulls[column] = isnull ? 'n' : ' ';
}

/*
 * Begin a new key with the arguments that create_key() and import_key() share:
 * project and name, and from position "options" on environment, permissions,
 * expires_at and requests_per_minute.
 */
static void
get_key_arguments(FunctionCallInfo fcinfo, int options, NewKey *key)
{
	text *name;
	text *environment;
	ArrayType *permissions;

	argument_require(fcinfo, 0, "project");
	set_column(key, KEY_PROJECT_ID, PG_GETARG_DATUM(0), false);

	name = argument_label(fcinfo, 1, "name", "key", NAME_MAX_LENGTH);
	set_column(key, KEY_NAME, PointerGetDatum(name), false);

	environment = argument_environment(fcinfo, options);
	set_column(key, KEY_ENVIRONMENT, PointerGetDatum(environment), environment == NULL);

	permissions = argument_permissions(fcinfo, options + 1);
	set_column(key, KEY_PERMISSIONS, PointerGetDatum(permissions), false);

	argument_check_expiry(fcinfo, options + 2);
	set_column(key, KEY_EXPIRES_AT, PG_GETARG_DATUM(options + 2), PG_ARGISNULL(options + 2));

	argument_check_limit(fcinfo, options + 3);
	set_column(key, KEY_REQUESTS_PER_MINUTE, PG_GETARG_DATUM(options + 3),
			   PG_ARGISNULL(options + 3));

	set_column(key, KEY_ROTATED_FROM, (Datum) 0, true);
}

/*
 * Insert a new key and return its id.
 *
 * That its digest is there already is not left to the index to say, which would
 * show it.  ON CONFLICT has no target, since that takes the privilege to read
 * the column, which an admin lacks; there is no other conflict to be had but
 * one of random ids.
 */
static pg_uuid_t
insert_key(NewKey *key)
{
	Oid types[KEY_COLUMN_COUNT] = {
		[KEY_PROJECT_ID] = UUIDOID,
		[KEY_NAME] = TEXTOID,
		[KEY_ENVIRONMENT] = TEXTOID,
		[KEY_PERMISSIONS] = TEXTARRAYOID,
		[KEY_EXPIRES_AT] = TIMESTAMPTZOID,
		[KEY_REQUESTS_PER_MINUTE] = INT4OID,
		[KEY_ROTATED_FROM] = UUIDOID,
		[KEY_DIGEST] = catalog_secret_type(),
		[KEY_HINT] = TEXTOID,
	};

	if (execute("SELECT FROM regpilot.project WHERE id OPERATOR(pg_catalog.=) $1", 1, types,
				key->values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("project %s does not exist", uuid_to_cstring(key->values[KEY_PROJECT_ID])),
				 errdetail("There is no project with that id."),
				 errhint("See the table regpilot.project, or call regpilot.create_project().")));

	if (execute("INSERT INTO regpilot.api_key"
				" (project_id, name, environment, permissions, expires_at, requests_per_minute,"
				" rotated_from, digest, hint)"
				" VALUES ($1, $2, $3, $4, $5, $6, $7, $8::pg_catalog.bytea, $9)"
				" ON CONFLICT DO NOTHING RETURNING id",
				KEY_COLUMN_COUNT, types, key->values, key->nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION), errmsg("a key with this digest already exists"),
				 errdetail("A key can be there only once, whatever its project."),
				 errhint("See the view regpilot.key_overview.")));

	return returned_uuid();
}

/*
 * Generate a key, insert it, and return the function's row: id, key and hint.
 * Finishes SPI, to which the caller has connected.
 */
static Datum
issue_key(FunctionCallInfo fcinfo, NewKey *new_key)
{
	char *environment = NULL;
	char *key;
	uint8 digest[KEY_DIGEST_LENGTH];
	pg_uuid_t id;
	TupleDesc descriptor;
	Datum values[3];
	bool nulls[3] = {false, false, false};
	HeapTupleHeader row;

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	if (new_key->nulls[KEY_ENVIRONMENT] == ' ')
		environment = TextDatumGetCString(new_key->values[KEY_ENVIRONMENT]);
	key = key_generate(environment);
	key_digest(key, strlen(key), digest);
	set_column(new_key, KEY_DIGEST, PointerGetDatum(digest), false);
	set_column(new_key, KEY_HINT, CStringGetTextDatum(key_hint(key)), false);
	id = insert_key(new_key);

	values[0] = UUIDPGetDatum(&id);
	values[1] = CStringGetTextDatum(key);
	values[2] = new_key->values[KEY_HINT];
	row = SPI_returntuple(heap_form_tuple(descriptor, values, nulls), descriptor);
	SPI_finish();
	return HeapTupleHeaderGetDatum(row);
}

Datum
regpilot_create_key(PG_FUNCTION_ARGS)
{
	NewKey key;

	get_key_arguments(fcinfo, 2, &key);
	SPI_connect();
	PG_RETURN_DATUM(issue_key(fcinfo, &key));
}

/* Error context callback: keeps the text of the statement out of the server log. */
static void
hide_statement(void *arg)
{
	errhidestmt(true);
}

/* A key given as its own name or hint would be there for all to read. */
static void
refuse_plaintext(const text *label, const char *what, const uint8 digest[KEY_DIGEST_LENGTH])
{
	uint8 label_digest[KEY_DIGEST_LENGTH];

	key_digest(VARDATA_ANY(label), VARSIZE_ANY_EXHDR(label), label_digest);
	if (memcmp(label_digest, digest, KEY_DIGEST_LENGTH) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid %s of a key", what), errdetail("It is the key itself."),
						errhint("Show a part of it at most, such as its last four characters.")));
}

/*
 * The digest may be part of the statement's text, and then of the context that
 * our callers would add to an error, as would the parameters while
 * log_parameter_max_length_on_error is set.  So errors have none of that.
 */
Datum
regpilot_import_key(PG_FUNCTION_ARGS)
{
	ErrorContextCallback *callers = error_context_stack;
	ErrorContextCallback callback = {.previous = NULL, .callback = hide_statement};
	NewKey key;
	const uint8 *digest;
	text *hint;
	pg_uuid_t *id = palloc(sizeof(pg_uuid_t));

	error_context_stack = &callback;

	get_key_arguments(fcinfo, 3, &key);
	digest = argument_digest(fcinfo, 2);
	hint = argument_label(fcinfo, 7, "hint", "key", HINT_MAX_LENGTH);
	refuse_plaintext(DatumGetTextPP(key.values[KEY_NAME]), "name", digest);
	refuse_plaintext(hint, "hint", digest);
	set_column(&key, KEY_DIGEST, PointerGetDatum(digest), false);
	set_column(&key, KEY_HINT, PointerGetDatum(hint), false);

	SPI_connect();
	*id = insert_key(&key);
	SPI_finish();

	error_context_stack = callers;
	PG_RETURN_UUID_P(id);
}

static void
report_missing_key(Datum key_id)
{
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
					errmsg("key %s does not exist", uuid_to_cstring(key_id)),
					errdetail("There is no key with that id, or none that you may see."),
					errhint("See the view regpilot.key_overview.")));
}

/*
 * A key is rotated once.  A second successor would share its place unnoticed,
 * and inherit the end of the overlap as the time of its own expiry.
 */
static void
refuse_second_successor(Datum key_id)
{
	Oid types[] = {UUIDOID};
	pg_uuid_t successor;

	if (execute("SELECT id FROM regpilot.api_key WHERE rotated_from OPERATOR(pg_catalog.=) $1", 1,
				types, &key_id, NULL) == 0)
		return;

	successor = returned_uuid();
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("key %s has been rotated before", uuid_to_cstring(key_id)),
			 errdetail("Key %s is its successor.", uuid_to_cstring(UUIDPGetDatum(&successor))),
			 errhint("Rotate the successor, or create a new key.")));
}

/*
 * Lock a key until the end of the transaction, and copy from it what its
 * successor inherits.  Raises an error if it cannot be rotated.
 *
 * The lock is the one that the UPDATE to come takes: no stronger, so that rows
 * which refer to the key can be inserted meanwhile.
 */
static void
lock_predecessor(Datum key_id, NewKey *successor)
{
	Oid types[] = {UUIDOID};
	HeapTuple row;
	TupleDesc descriptor;
	bool isnull;
	bool active;
	bool revoked;

	if (execute("SELECT project_id, name, environment, permissions, expires_at,"
				" requests_per_minute, active, revoked_at IS NOT NULL"
				" FROM regpilot.api_key WHERE id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
				1, types, &key_id, NULL) == 0)
		report_missing_key(key_id);

	/* in the order of KeyColumn */
	row = SPI_tuptable->vals[0];
	descriptor = SPI_tuptable->tupdesc;
	for (int i = 0; i < KEY_INHERITED_COUNT; i++)
	{
		Datum value = SPI_getbinval(row, descriptor, i + 1, &isnull);

		set_column(successor, (KeyColumn) i, value, isnull);
	}
	active = DatumGetBool(SPI_getbinval(row, descriptor, KEY_INHERITED_COUNT + 1, &isnull));
	revoked = DatumGetBool(SPI_getbinval(row, descriptor, KEY_INHERITED_COUNT + 2, &isnull));

	refuse_second_successor(key_id);

	if (revoked)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("key %s is revoked", uuid_to_cstring(key_id)),
				 errdetail("A revoked key cannot be rotated."), errhint("Create a new key.")));

	/* or the successor, which is not, would undo what an admin did */
	if (!active)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("key %s is disabled", uuid_to_cstring(key_id)),
						errdetail("A disabled key cannot be rotated."),
						errhint("Call regpilot.enable_key() first, or create a new key.")));

	/* by the clock, as for a verdict */
	if (successor->nulls[KEY_EXPIRES_AT] == ' ' &&
		DatumGetTimestampTz(successor->values[KEY_EXPIRES_AT]) <= GetCurrentTimestamp())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("key %s has expired", uuid_to_cstring(key_id)),
				 errdetail("An expired key cannot be rotated."), errhint("Create a new key.")));
}

/*
 * The successor inherits expires_at too: rotation replaces a secret and does not
 * extend what was granted.
 */
Datum
regpilot_rotate_key(PG_FUNCTION_ARGS)
{
	NewKey successor;
	Oid types[] = {UUIDOID, TIMESTAMPTZOID};
	Datum values[2];

	argument_require(fcinfo, 0, "key_id");
	values[0] = PG_GETARG_DATUM(0);
	values[1] = TimestampTzGetDatum(argument_overlap_end(fcinfo, 1));

	SPI_connect();
	lock_predecessor(values[0], &successor);

	/*
	 * Even if that changes nothing: a concurrent rotation under a snapshot that
	 * does not show the successor must fail for it.
	 */
	execute("UPDATE regpilot.api_key SET expires_at = least(expires_at, $2)"
			" WHERE id OPERATOR(pg_catalog.=) $1",
			lengthof(types), types, values, NULL);

	set_column(&successor, KEY_ROTATED_FROM, values[0], false);
	PG_RETURN_DATUM(issue_key(fcinfo, &successor));
}

/*
 * Run an UPDATE of api_key whose first parameter is the key's id and whose
 * second, if it has one, is a text that may be null.  Raises an error if there
 * is no such key.  The text is for others to read: keys in it become hints.
 */
static void
update_key(FunctionCallInfo fcinfo, const char *statement)
{
	Oid types[] = {UUIDOID, TEXTOID};
	Datum values[2] = {0, 0};
	char nulls[] = {' ', 'n'};

	argument_require(fcinfo, 0, "key_id");
	values[0] = PG_GETARG_DATUM(0);
	if (PG_NARGS() > 1 && !PG_ARGISNULL(1))
	{
		text *given = PG_GETARG_TEXT_PP(1);

		values[1] =
			CStringGetTextDatum(key_hide_within(VARDATA_ANY(given), VARSIZE_ANY_EXHDR(given)));
		nulls[1] = ' ';
	}

	SPI_connect();
	if (execute(statement, PG_NARGS(), types, values, nulls) == 0)
		report_missing_key(values[0]);
}

/* Acknowledge a flag, or look at a key before there is one. */
Datum
regpilot_review_key(PG_FUNCTION_ARGS)
{
	update_key(fcinfo,
			   "UPDATE regpilot.api_key SET reviewed_at = pg_catalog.now(), flagged_at = NULL"
			   " WHERE id OPERATOR(pg_catalog.=) $1");
	SPI_finish();
	PG_RETURN_VOID();
}

/* Permanent; a second call changes nothing. */
Datum
regpilot_revoke_key(PG_FUNCTION_ARGS)
{
	update_key(fcinfo,
			   "UPDATE regpilot.api_key SET"
			   " revoke_reason = CASE WHEN revoked_at IS NULL THEN $2 ELSE revoke_reason END,"
			   " revoked_at = coalesce(revoked_at, pg_catalog.now())"
			   " WHERE id OPERATOR(pg_catalog.=) $1");
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
regpilot_disable_key(PG_FUNCTION_ARGS)
{
	update_key(fcinfo,
			   "UPDATE regpilot.api_key SET active = false WHERE id OPERATOR(pg_catalog.=) $1");
	SPI_finish();
	PG_RETURN_VOID();
}

Datum
regpilot_enable_key(PG_FUNCTION_ARGS)
{
	bool isnull;

	update_key(fcinfo, "UPDATE regpilot.api_key SET active = revoked_at IS NULL"
					   " WHERE id OPERATOR(pg_catalog.=) $1 RETURNING active");
	if (!DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("key %s is revoked", uuid_to_cstring(PG_GETARG_DATUM(0))),
				 errdetail("A revoked key cannot be used again."), errhint("Create a new key.")));
	SPI_finish();
	PG_RETURN_VOID();
}
