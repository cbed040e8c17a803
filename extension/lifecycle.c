/*-------------------------------------------------------------------------
 *
 * lifecycle.c
 *		The life of a key: create_project(), create_key(), disable_key(),
 *		enable_key(), revoke_key().
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

#include "argument.h"
#include "catalog.h"
#include "compat.h"
#include "key.h"

PG_FUNCTION_INFO_V1(regpilot_create_project);
PG_FUNCTION_INFO_V1(regpilot_create_key);
PG_FUNCTION_INFO_V1(regpilot_revoke_key);
PG_FUNCTION_INFO_V1(regpilot_disable_key);
PG_FUNCTION_INFO_V1(regpilot_enable_key);

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
						errmsg("plan \"%s\" does not exist", TextDatumGetCString(values[1])),
						errhint("See the table regpilot.plan.")));

	if (execute("INSERT INTO regpilot.project (name, plan) VALUES ($1, $2)"
				" ON CONFLICT (name) DO NOTHING RETURNING id",
				2, types, values, NULL) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNIQUE_VIOLATION),
						errmsg("project \"%s\" already exists", text_to_cstring(name)),
						errhint("Choose another name.")));

	*id = returned_uuid();
	SPI_finish();
	PG_RETURN_UUID_P(id);
}

Datum
regpilot_create_key(PG_FUNCTION_ARGS)
{
	enum
	{
		PROJECT,
		NAME,
		ENVIRONMENT,
		PERMISSIONS,
		EXPIRES_AT,
		REQUESTS_PER_MINUTE,
		DIGEST,
		HINT
	};
	Oid types[] = {UUIDOID,		   TEXTOID, TEXTOID,	TEXTARRAYOID,
				   TIMESTAMPTZOID, INT4OID, InvalidOid, TEXTOID};
	Datum values[lengthof(types)];
	char nulls[lengthof(types)];
	text *environment;
	char *key;
	uint8 digest[KEY_DIGEST_LENGTH];
	pg_uuid_t id;
	TupleDesc descriptor;
	Datum result[3];
	bool result_nulls[3] = {false, false, false};

	memset(nulls, ' ', sizeof(nulls));

	argument_require(fcinfo, PROJECT, "project");
	values[PROJECT] = PG_GETARG_DATUM(PROJECT);
	values[NAME] = PointerGetDatum(argument_label(fcinfo, NAME, "name", "key", NAME_MAX_LENGTH));

	environment = argument_environment(fcinfo, ENVIRONMENT);
	values[ENVIRONMENT] = PointerGetDatum(environment);
	if (environment == NULL)
		nulls[ENVIRONMENT] = 'n';

	values[PERMISSIONS] = PointerGetDatum(argument_permissions(fcinfo, PERMISSIONS));

	argument_check_expiry(fcinfo, EXPIRES_AT);
	values[EXPIRES_AT] = PG_GETARG_DATUM(EXPIRES_AT);
	if (PG_ARGISNULL(EXPIRES_AT))
		nulls[EXPIRES_AT] = 'n';

	argument_check_limit(fcinfo, REQUESTS_PER_MINUTE);
	values[REQUESTS_PER_MINUTE] = PG_GETARG_DATUM(REQUESTS_PER_MINUTE);
	if (PG_ARGISNULL(REQUESTS_PER_MINUTE))
		nulls[REQUESTS_PER_MINUTE] = 'n';

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	key = key_generate(environment == NULL ? NULL : text_to_cstring(environment));
	key_digest(key, strlen(key), digest);

	/* bound as a secret, so that no log of this statement shows the digest */
	types[DIGEST] = catalog_secret_type();
	values[DIGEST] = PointerGetDatum(digest);
	values[HINT] = CStringGetTextDatum(key_hint(key));

	SPI_connect();

	if (execute(
			"INSERT INTO regpilot.api_key"
			" (project_id, name, environment, permissions, expires_at, requests_per_minute, digest, hint)"
			" SELECT id, $2, $3, $4, $5, $6, $7::pg_catalog.bytea, $8"
			" FROM regpilot.project WHERE id OPERATOR(pg_catalog.=) $1 RETURNING id",
			lengthof(types), types, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("project %s does not exist",
						DatumGetCString(DirectFunctionCall1(uuid_out, values[PROJECT]))),
				 errhint("See the table regpilot.project, or call regpilot.create_project().")));

	id = returned_uuid();
	SPI_finish();

	result[0] = UUIDPGetDatum(&id);
	result[1] = CStringGetTextDatum(key);
	result[2] = values[HINT];
	PG_RETURN_DATUM(
		HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), result, result_nulls)));
}

/*
 * Run an UPDATE of api_key whose first parameter is the key's id and whose
 * second, if it has one, is a text that may be null.  Raises an error if there
 * is no such key.
 */
static void
update_key(FunctionCallInfo fcinfo, const char *statement)
{
	Oid types[] = {UUIDOID, TEXTOID};
	Datum values[2] = {0, 0};
	char nulls[] = {' ', ' '};

	argument_require(fcinfo, 0, "key_id");
	for (int i = 0; i < PG_NARGS(); i++)
	{
		values[i] = PG_GETARG_DATUM(i);
		if (PG_ARGISNULL(i))
			nulls[i] = 'n';
	}

	SPI_connect();
	if (execute(statement, PG_NARGS(), types, values, nulls) == 0)
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_OBJECT),
						errmsg("key %s does not exist",
							   DatumGetCString(DirectFunctionCall1(uuid_out, values[0]))),
						errhint("See the view regpilot.key_overview.")));
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
				 errmsg("key %s is revoked",
						DatumGetCString(DirectFunctionCall1(uuid_out, PG_GETARG_DATUM(0)))),
				 errdetail("A revoked key cannot be used again."), errhint("Create a new key.")));
	SPI_finish();
	PG_RETURN_VOID();
}
