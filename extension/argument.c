/*-------------------------------------------------------------------------
 *
 * argument.c
 *		The arguments of the functions that make and change keys.
 *
 *-------------------------------------------------------------------------
 */
#include "argument.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "key.h"

/* Longer ones are slips of the pen; this also keeps their end in range. */
#define OVERLAP_MAX_YEARS 10

/* No key can hold anything else; above all, no right to administer. */
static const char *const known_permissions[] = {"gateway:read", "gateway:write", "logs:read",
												"analytics:read"};

#define SHOWN_MAX 64 /* bytes of a wrong argument that an error repeats */

void
argument_require(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("%s must not be null", name),
				 errdetail("Argument %d is null.", argument + 1), errhint("Give a value for it.")));
}

const char *
argument_shown(const text *value)
{
	const char *bytes = VARDATA_ANY(value);
	int length = (int) VARSIZE_ANY_EXHDR(value);

	if (key_is_within(bytes, length))
		return "<redacted>";
	if (length <= SHOWN_MAX)
		return pnstrdup(bytes, length);
	return psprintf("%.*s...", pg_mbcliplen(bytes, length, SHOWN_MAX), bytes);
}

/* Where others may read a text there must be no key in it. */
static void
refuse_key_within(const text *value, const char *what, const char *of_what)
{
	if (key_is_within(VARDATA_ANY(value), VARSIZE_ANY_EXHDR(value)))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid %s of a %s", what, of_what),
						errdetail("The %s contains an API key.", what),
						errhint("Show a part of it at most, such as its last four characters.")));
}

text *
argument_label(FunctionCallInfo fcinfo, int argument, const char *what, const char *of_what,
			   int max_length)
{
	text *label;
	int length;

	if (PG_ARGISNULL(argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("the %s of a %s must not be null", what, of_what),
						errdetail("Argument %d is null.", argument + 1),
						errhint("Give a %s of 1 to %d characters.", what, max_length)));

	label = PG_GETARG_TEXT_PP(argument);
	length = pg_mbstrlen_with_len(VARDATA_ANY(label), VARSIZE_ANY_EXHDR(label));
	if (length < 1 || length > max_length)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid %s of a %s", what, of_what),
						errdetail("The %s has %d characters.", what, length),
						errhint("Give a %s of 1 to %d characters.", what, max_length)));

	for (int i = 0; i < VARSIZE_ANY_EXHDR(label); i++)
	{
		unsigned char c = VARDATA_ANY(label)[i];

		if (c < 0x20 || c == 0x7F)
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("invalid %s of a %s", what, of_what),
							errdetail("The %s contains a control character.", what),
							errhint("Give a %s of printable characters.", what)));
	}
	refuse_key_within(label, what, of_what);
	return label;
}

text *
argument_environment(FunctionCallInfo fcinfo, int argument)
{
	text *environment;

	if (PG_ARGISNULL(argument))
		return NULL;
	environment = PG_GETARG_TEXT_PP(argument);
	if (environment_from_name(VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment)) ==
		ENVIRONMENT_OTHER)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid environment \"%s\"", argument_shown(environment)),
						errdetail("A key is for one of four environments, or for none."),
						errhint("Use dev, staging, prod, ci, or NULL.")));
	return environment;
}

/* Which of the known permissions this is, or -1. */
static int
known_permission(const char *permission)
{
	for (int i = 0; i < lengthof(known_permissions); i++)
	{
		if (strcmp(permission, known_permissions[i]) == 0)
			return i;
	}
	return -1;
}

ArrayType *
argument_permissions(FunctionCallInfo fcinfo, int argument)
{
	ArrayType *permissions;
	Datum *values;
	bool *nulls;
	int count;
	bool seen[lengthof(known_permissions)] = {false};

	argument_require(fcinfo, argument, "permissions");
	permissions = PG_GETARG_ARRAYTYPE_P(argument);
	deconstruct_array(permissions, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);

	if (ARR_NDIM(permissions) != 1 || count > lengthof(known_permissions))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid list of permissions"),
			 errdetail("The list has %d elements in %d dimensions.", count, ARR_NDIM(permissions)),
			 errhint("Give one to %d permissions in one dimension.",
					 (int) lengthof(known_permissions))));

	for (int i = 0; i < count; i++)
	{
		const char *permission = nulls[i] ? "NULL" : argument_shown(DatumGetTextPP(values[i]));
		int known = known_permission(permission);

		if (known < 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("invalid permission \"%s\"", permission),
					 errdetail("A key cannot hold it."),
					 errhint("Use gateway:read, gateway:write, logs:read or analytics:read.")));
		if (seen[known])
			ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
							errmsg("invalid list of permissions"),
							errdetail("The list has \"%s\" twice.", permission),
							errhint("Name each permission once.")));
		seen[known] = true;
	}
	return permissions;
}

const uint8 *
argument_digest(FunctionCallInfo fcinfo, int argument)
{
	bytea *digest;
	uint8 of_nothing[KEY_DIGEST_LENGTH];

	argument_require(fcinfo, argument, "digest");
	digest = PG_GETARG_BYTEA_PP(argument);
	if (VARSIZE_ANY_EXHDR(digest) != KEY_DIGEST_LENGTH)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid digest of a key"),
						errdetail("The digest has %d bytes.", (int) VARSIZE_ANY_EXHDR(digest)),
						errhint("Give the %d bytes of the SHA-256 of the whole key; "
								"decode(..., 'hex') makes them of its digits.",
								KEY_DIGEST_LENGTH)));

	key_digest("", 0, of_nothing);
	if (memcmp(VARDATA_ANY(digest), of_nothing, KEY_DIGEST_LENGTH) == 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid digest of a key"),
						errdetail("It is the digest of an empty text."),
						errhint("See how the digests were made: nobody would need a key.")));
	return (const uint8 *) VARDATA_ANY(digest);
}

void
argument_check_expiry(FunctionCallInfo fcinfo, int argument)
{
	if (!PG_ARGISNULL(argument) && PG_GETARG_TIMESTAMPTZ(argument) <= GetCurrentTimestamp())
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("expiry of a new key lies in the past"),
						errdetail("The key would expire at %s.",
								  timestamptz_to_str(PG_GETARG_TIMESTAMPTZ(argument))),
						errhint("Give a time to come, or NULL for a key that does not expire.")));
}

void
argument_check_limit(FunctionCallInfo fcinfo, int argument)
{
	if (!PG_ARGISNULL(argument) && PG_GETARG_INT32(argument) <= 0)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid limit of requests per minute: %d", PG_GETARG_INT32(argument)),
			 errdetail("A key that may do nothing is a disabled one."),
			 errhint("Give a limit of 1 or more, or NULL for the limit of the project's plan.")));
}

/* As the operators of the type compare: a month is thirty days. */
static int
compare_intervals(const Interval *a, const Interval *b)
{
	return DatumGetInt32(
		DirectFunctionCall2(interval_cmp, IntervalPGetDatum(a), IntervalPGetDatum(b)));
}

TimestampTz
argument_overlap_end(FunctionCallInfo fcinfo, int argument)
{
	static const Interval none = {0};
	static const Interval longest = {.month = OVERLAP_MAX_YEARS * MONTHS_PER_YEAR};
	TimestampTz now = GetCurrentTransactionStartTimestamp();
	const Interval *overlap;
	TimestampTz end = now;
	bool in_range;

	argument_require(fcinfo, argument, "overlap");
	overlap = PG_GETARG_INTERVAL_P(argument);
	in_range = compare_intervals(overlap, &none) >= 0 && compare_intervals(overlap, &longest) <= 0;
	if (in_range)
		end = DatumGetTimestampTz(DirectFunctionCall2(
			timestamptz_pl_interval, TimestampTzGetDatum(now), IntervalPGetDatum(overlap)));

	/* that compares a month as thirty days, of which it may not have as many */
	if (!in_range || end < now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid overlap: %s", DatumGetCString(DirectFunctionCall1(
												   interval_out, IntervalPGetDatum(overlap)))),
				 errdetail("The old key would expire in the past, or much too late."),
				 errhint("Give an interval of 0 to %d years.", OVERLAP_MAX_YEARS)));
	return end;
}
