/*-------------------------------------------------------------------------
 *
 * stale.c
 *		Stale keys: those that nobody has used for regpilot.stale_after.
 *
 *-------------------------------------------------------------------------
 */
#include "stale.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "argument.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_flag_stale_keys);

/*
 * Rows are locked first, in a WITH query, which runs once, since only a SELECT
 * can leave out those that others have locked.
 */

/* $1 is as_of, $2 lies stale_after before it, and $3 is how many to flag at most. */
static const char flag_statement[] =
	"WITH stale AS (SELECT k.id FROM regpilot.api_key AS k"
	" WHERE k.flagged_at IS NULL AND k.revoked_at IS NULL AND k.active"
	" AND (k.expires_at IS NULL OR k.expires_at > $1)"
	" AND greatest(k.created_at, k.reviewed_at) < $2"
	" AND NOT EXISTS (SELECT FROM regpilot.key_usage AS u"
	" WHERE u.key_id = k.id AND u.last_used_at >= $2)"
	" LIMIT $3 FOR NO KEY UPDATE OF k SKIP LOCKED)"
	" UPDATE regpilot.api_key AS k SET flagged_at = least($1, now())"
	" FROM stale WHERE k.id = stale.id";

static const char overtaken_statement[] =
	"WITH used AS (SELECT k.id FROM regpilot.api_key AS k"
	" WHERE EXISTS (SELECT FROM regpilot.key_usage AS u"
	" WHERE u.key_id = k.id AND u.last_used_at > k.flagged_at)"
	" FOR NO KEY UPDATE OF k SKIP LOCKED)"
	" UPDATE regpilot.api_key AS k SET flagged_at = NULL"
	" FROM used WHERE k.id = used.id";

/* $1 is an array of ids. */
static const char clear_statement[] =
	"WITH used AS (SELECT k.id FROM regpilot.api_key AS k WHERE k.id = ANY ($1)"
	" AND k.flagged_at IS NOT NULL"
	" FOR NO KEY UPDATE OF k SKIP LOCKED)"
	" UPDATE regpilot.api_key AS k SET flagged_at = NULL"
	" FROM used WHERE k.id = used.id";

/* Run one of the statements above.  Returns the number of rows. */
static int
execute(const char *statement, int count, Oid *types, Datum *values)
{
	int result = SPI_execute_with_args(statement, count, types, values, NULL, false, 0);

	if (result != SPI_OK_UPDATE)
		elog(ERROR, "could not flag keys: %s", SPI_result_code_string(result));
	return (int) SPI_processed;
}

static int
flag_keys(TimestampTz as_of, int64 most)
{
	Oid types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, INT8OID};
	TimestampTz before = as_of - regpilot_stale_after * USECS_PER_SEC;
	Datum values[] = {TimestampTzGetDatum(as_of), TimestampTzGetDatum(before), Int64GetDatum(most)};
	int flagged;

	SPI_connect();
	execute(overtaken_statement, 0, NULL, NULL);
	flagged = execute(flag_statement, lengthof(types), types, values);
	SPI_finish();
	return flagged;
}

int
stale_flag_keys(TimestampTz as_of)
{
	return flag_keys(as_of, STALE_BATCH);
}

void
stale_clear_flags(const pg_uuid_t *key_ids, int count)
{
	Oid types[] = {UUIDARRAYOID};
	Datum *ids = palloc(count * sizeof(Datum));
	Datum values[1];

	for (int i = 0; i < count; i++)
		ids[i] = UUIDPGetDatum(&key_ids[i]);
	values[0] =
		PointerGetDatum(construct_array(ids, count, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));

	SPI_connect();
	execute(clear_statement, lengthof(types), types, values);
	SPI_finish();
}

/* Runs as the caller, whose privileges on the tables decide. */
Datum
regpilot_flag_stale_keys(PG_FUNCTION_ARGS)
{
	TimestampTz as_of;

	argument_require(fcinfo, 0, "as_of");
	as_of = PG_GETARG_TIMESTAMPTZ(0);
	if (TIMESTAMP_NOT_FINITE(as_of) ||
		!IS_VALID_TIMESTAMP(as_of - regpilot_stale_after * USECS_PER_SEC))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid time of staleness: %s", timestamptz_to_str(as_of)),
						errdetail("There is no time regpilot.stale_after before it."),
						errhint("Give a time such as now().")));

	usage_require();
	PreventCommandDuringRecovery("regpilot.flag_stale_keys()");
	(void) usage_wait_for_flush();
	PG_RETURN_INT32(flag_keys(as_of, PG_INT64_MAX));
}
