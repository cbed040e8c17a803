/*-------------------------------------------------------------------------
 *
 * authorize.c
 *		The hot path: checking keys.
 *
 * A check writes to no table and holds no lock on return, so it works in a
 * read-only transaction and on a standby.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/arrayaccess.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "catalog.h"
#include "compat.h"
#include "elements.h"
#include "key.h"
#include "location.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_authorize);
PG_FUNCTION_INFO_V1(regpilot_authorize_many);

/* So many requests of a batch are being fetched by the processor while one is judged. */
#define LOOKAHEAD 4

/* Attributes of regpilot.authorization. */
enum
{
	AUTHORIZATION_VERDICT,
	AUTHORIZATION_KEY_ID,
	AUTHORIZATION_PROJECT_ID,
	AUTHORIZATION_PLAN,
	AUTHORIZATION_REQUESTS_PER_MINUTE,
	AUTHORIZATION_REMAINING,
	AUTHORIZATION_RETRY_AFTER,
	AUTHORIZATION_RESET_AT,
	AUTHORIZATION_PROJECT,
	AUTHORIZATION_NAME,
	AUTHORIZATION_HINT,
	AUTHORIZATION_ENVIRONMENT,
	AUTHORIZATION_COUNTED_AS,
	AUTHORIZATION_PERMISSIONS,
};

#define AUTHORIZATION_COUNT (AUTHORIZATION_PERMISSIONS + 1)

/* One row of regpilot.authorization. */
typedef struct Authorization
{
	CatalogKey key; /* the Datums in values point to it or through it */
	Datum values[AUTHORIZATION_COUNT];
	bool nulls[AUTHORIZATION_COUNT];
} Authorization;

static bool
has_permission(ArrayType *permissions, const text *wanted)
{
	int count = ArrayGetNItems(ARR_NDIM(permissions), ARR_DIMS(permissions));
	array_iter iterator;

	array_iter_setup(&iterator, (AnyArrayType *) permissions);
	for (int i = 0; i < count; i++)
	{
		bool isnull;
		const text *held =
			DatumGetTextPP(array_iter_next(&iterator, &isnull, i, -1, false, TYPALIGN_INT));

		if (VARSIZE_ANY_EXHDR(held) == VARSIZE_ANY_EXHDR(wanted) &&
			memcmp(VARDATA_ANY(held), VARDATA_ANY(wanted), VARSIZE_ANY_EXHDR(held)) == 0)
			return true;
	}
	return false;
}

/* What a request counts under: its environment, or else the key's, or "other". */
static Environment
counted_environment(const CatalogKey *key, const text *environment)
{
	if (environment == NULL && key->has_environment)
		environment = DatumGetTextPP(key->environment);
	if (environment == NULL)
		return ENVIRONMENT_OTHER;
	return environment_from_name(VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment));
}

static void
set_value(Authorization *row, int attribute, Datum value)
{
	row->values[attribute] = value;
	row->nulls[attribute] = false;
}

/* Ask for a place for a request of a key that is good, and report the limit. */
static Verdict
admit(Authorization *row, Environment environment, TimestampTz now, uint32 *slot)
{
	int limit = row->key.requests_per_minute;
	RateDecision decision;
	UsageAdmission admission =
		usage_admit(&row->key.id, environment, limit, row->key.flagged, now, slot, &decision);

	if (admission == USAGE_EXHAUSTED)
		return VERDICT_UNAVAILABLE;

	if (limit > 0)
	{
		set_value(row, AUTHORIZATION_REQUESTS_PER_MINUTE, Int32GetDatum(limit));
		set_value(row, AUTHORIZATION_REMAINING, Int32GetDatum(decision.remaining));
		set_value(row, AUTHORIZATION_RESET_AT, TimestampTzGetDatum(now + decision.wait));
	}
	if (admission == USAGE_ADMITTED)
		return VERDICT_OK;

	/* whole seconds, rounded up: who waits as long as told finds a place */
	set_value(row, AUTHORIZATION_RETRY_AFTER,
			  Int32GetDatum((decision.wait + USECS_PER_SEC - 1) / USECS_PER_SEC));
	return VERDICT_RATE_LIMITED;
}

/*
 * Recall where the key of a secret was last, NULL being no key, and have the
 * processor fetch what is there, which takes it as long as a good part of the rest.
 */
static Location
recall_and_prefetch(const uint8 *secret)
{
	Location location = {0};

	if (secret != NULL)
	{
		location = location_recall(secret);
		catalog_prefetch(&location);
		usage_prefetch(location.slot);
	}
	return location;
}

/*
 * Judge one request and fill its row, which stays good until the reader's next
 * lookup.  A NULL secret is no key; a NULL permission asks for none; a NULL
 * environment means the key's own.
 */
static void
authorize(CatalogReader *reader, const uint8 *secret, Location location, const text *permission,
		  const text *environment, Authorization *row)
{
	CatalogKey *key = &row->key;
	Environment counted_as;
	TimestampTz now = GetCurrentTimestamp();
	Verdict verdict;

	memset(row->nulls, true, sizeof(row->nulls));

	if (secret == NULL || !catalog_find_key(reader, secret, &location, key))
	{
		set_value(row, AUTHORIZATION_VERDICT, catalog_verdict(VERDICT_INVALID));
		return;
	}

	counted_as = counted_environment(key, environment);

	set_value(row, AUTHORIZATION_KEY_ID, UUIDPGetDatum(&key->id));
	set_value(row, AUTHORIZATION_PROJECT_ID, key->project_id);
	set_value(row, AUTHORIZATION_PLAN, key->plan);
	set_value(row, AUTHORIZATION_PROJECT, key->project);
	set_value(row, AUTHORIZATION_NAME, key->name);
	set_value(row, AUTHORIZATION_HINT, key->hint);
	if (key->has_environment)
		set_value(row, AUTHORIZATION_ENVIRONMENT, key->environment);
	set_value(row, AUTHORIZATION_COUNTED_AS,
			  PointerGetDatum(cstring_to_text(environment_names[counted_as])));
	set_value(row, AUTHORIZATION_PERMISSIONS, key->permissions);

	if (key->revoked)
		verdict = VERDICT_REVOKED;
	else if (!key->active)
		verdict = VERDICT_INACTIVE;
	else if (key->expires_at <= now)
		verdict = VERDICT_EXPIRED;
	else if (permission != NULL &&
			 !has_permission(DatumGetArrayTypeP(key->permissions), permission))
		verdict = VERDICT_FORBIDDEN;
	else
		verdict = admit(row, counted_as, now, &location.slot);
	location_remember(secret, &location);

	set_value(row, AUTHORIZATION_VERDICT, catalog_verdict(verdict));
}

Datum
regpilot_authorize(PG_FUNCTION_ARGS)
{
	const uint8 *secret = PG_ARGISNULL(0) ? NULL : (uint8 *) PG_GETARG_POINTER(0);
	const text *permission = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	const text *environment = PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2);
	Location location;
	CatalogReader *reader;
	TupleDesc descriptor;
	Authorization row;
	Datum result;

	usage_require();
	location = recall_and_prefetch(secret);
	reader = catalog_open();
	descriptor = lookup_rowtype_tupdesc(catalog_authorization_type(), -1);

	authorize(reader, secret, location, permission, environment, &row);
	result = HeapTupleGetDatum(heap_form_tuple(descriptor, row.values, row.nulls));

	ReleaseTupleDesc(descriptor);
	catalog_close(reader);
	PG_RETURN_DATUM(result);
}

Datum
regpilot_authorize_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Elements ordinals = elements_of(fcinfo, 0, -1);
	Elements secrets = elements_of(fcinfo, 1, ordinals.count);
	Elements permissions = elements_of(fcinfo, 2, ordinals.count);
	Elements environments = elements_of(fcinfo, 3, ordinals.count);
	Location locations[LOOKAHEAD]; /* of the next requests, that of i at i % LOOKAHEAD */
	CatalogReader *reader;

	usage_require();
	InitMaterializedSRF(fcinfo, 0);
	reader = catalog_open();

	for (int i = 0; i < Min(LOOKAHEAD, secrets.count); i++)
		locations[i] = recall_and_prefetch(element_pointer(&secrets, i));

	for (int i = 0; i < ordinals.count; i++)
	{
		Location location = locations[i % LOOKAHEAD];
		Authorization row;
		Datum values[1 + AUTHORIZATION_COUNT];
		bool nulls[1 + AUTHORIZATION_COUNT];

		CHECK_FOR_INTERRUPTS();
		if (i + LOOKAHEAD < secrets.count)
			locations[i % LOOKAHEAD] =
				recall_and_prefetch(element_pointer(&secrets, i + LOOKAHEAD));
		authorize(reader, element_pointer(&secrets, i), location, element_text(&permissions, i),
				  element_text(&environments, i), &row);

		values[0] = ordinals.values[i];
		nulls[0] = ordinals.nulls[i];
		memcpy(values + 1, row.values, sizeof(row.values));
		memcpy(nulls + 1, row.nulls, sizeof(row.nulls));
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}

	catalog_close(reader);
	return (Datum) 0;
}
