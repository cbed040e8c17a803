/*-------------------------------------------------------------------------
 *
 * authorize.c
 *		The hot path: checking keys, and recording what became of requests.
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
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "catalog.h"
#include "compat.h"
#include "key.h"
#include "location.h"
#include "requestlog.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_authorize);
PG_FUNCTION_INFO_V1(regpilot_authorize_many);
PG_FUNCTION_INFO_V1(regpilot_record_many);

/* HTTP: from here on a status means that the request failed (RFC 9110, 15.5) */
#define FIRST_FAILED_STATUS 400

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

/* The elements of an array argument. */
typedef struct Elements
{
	Datum *values;
	bool *nulls;
	int count;
} Elements;

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

/*
 * The elements of an array argument, which must be there and have as many as
 * the first one (count, or -1 to read the first).
 */
static Elements
get_elements(FunctionCallInfo fcinfo, int argument, int count)
{
	Elements elements;
	ArrayType *array;
	int16 length;
	bool by_value;
	char alignment;

	if (PG_ARGISNULL(argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array argument %d must not be null", argument + 1),
						errdetail("Only its elements may be null."),
						errhint("Give each request one element in every array.")));

	array = PG_GETARG_ARRAYTYPE_P(argument);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment, &elements.values,
					  &elements.nulls, &elements.count);

	if (count >= 0 && elements.count != count)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR), errmsg("array arguments differ in length"),
				 errdetail("Argument 1 has %d elements, argument %d has %d.", count, argument + 1,
						   elements.count),
				 errhint("Give each request one element in every array.")));
	return elements;
}

/* An element as a pointer, NULL if it is null. */
static void *
element_pointer(const Elements *elements, int i)
{
	return elements->nulls[i] ? NULL : DatumGetPointer(elements->values[i]);
}

/* As above, for text, detoasted. */
static const text *
element_text(const Elements *elements, int i)
{
	return elements->nulls[i] ? NULL : DatumGetTextPP(elements->values[i]);
}

Datum
regpilot_authorize_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Elements ordinals = get_elements(fcinfo, 0, -1);
	Elements secrets = get_elements(fcinfo, 1, ordinals.count);
	Elements permissions = get_elements(fcinfo, 2, ordinals.count);
	Elements environments = get_elements(fcinfo, 3, ordinals.count);
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

/*
 * The tokens of one request.  An upstream has made the number up: bounded, the
 * sums stay within a bigint, which a flush of all keys depends on, and each fits
 * the request log.
 */
static int
token_count(const Elements *counts, int i)
{
	if (counts->nulls[i])
		return 0;
	return (int) Min(Max(0, DatumGetInt64(counts->values[i])), PG_INT32_MAX);
}

Datum
regpilot_record_many(PG_FUNCTION_ARGS)
{
	Elements key_ids = get_elements(fcinfo, 0, -1);
	Elements environments = get_elements(fcinfo, 1, key_ids.count);
	Elements statuses = get_elements(fcinfo, 2, key_ids.count);
	Elements latencies = get_elements(fcinfo, 3, key_ids.count);
	Elements models = get_elements(fcinfo, 4, key_ids.count);
	Elements prompt_tokens = get_elements(fcinfo, 5, key_ids.count);
	Elements completion_tokens = get_elements(fcinfo, 6, key_ids.count);
	RequestLogEntry *entries = palloc(key_ids.count * sizeof(RequestLogEntry));
	CatalogReader *reader;
	int count = 0;
	int recorded = 0;

	usage_require();
	reader = catalog_open();

	for (int i = 0; i < key_ids.count; i++)
	{
		const pg_uuid_t *key_id = element_pointer(&key_ids, i);
		const text *environment = element_text(&environments, i);
		pg_uuid_t project_id;

		CHECK_FOR_INTERRUPTS();
		/* a key that is not there has been deleted, or the caller has made it up */
		if (key_id == NULL || environment == NULL || statuses.nulls[i] ||
			!catalog_find_project(reader, key_id, &project_id))
			continue;

		entries[count++] = (RequestLogEntry){
			.project_id = project_id,
			.key_id = key_id,
			.environment =
				environment_from_name(VARDATA_ANY(environment), VARSIZE_ANY_EXHDR(environment)),
			.status = DatumGetInt32(statuses.values[i]),
			.latency = latencies.nulls[i] ? -1 : DatumGetInt32(latencies.values[i]),
			.model = element_text(&models, i),
			.prompt_tokens = token_count(&prompt_tokens, i),
			.completion_tokens = token_count(&completion_tokens, i),
		};
	}

	/* first: what cannot be logged is not counted either, and may be tried again */
	requestlog_append(entries, count);

	/* uninterrupted: a batch is counted whole or not at all */
	for (int i = 0; i < count; i++)
	{
		const RequestLogEntry *entry = &entries[i];
		UsageCounters outcome = {
			.failed_requests = entry->status >= FIRST_FAILED_STATUS ? 1 : 0,
			.prompt_tokens = entry->prompt_tokens,
			.completion_tokens = entry->completion_tokens,
		};

		if (usage_record(entry->key_id, entry->environment, &outcome))
			recorded++;
	}

	catalog_close(reader);
	PG_RETURN_INT32(recorded);
}
