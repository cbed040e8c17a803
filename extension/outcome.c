/*-------------------------------------------------------------------------
 *
 * outcome.c
 *		What became of requests: record_many().
 *
 * An outcome is in the request log and in the counters, or in neither: the counters,
 * which no ROLLBACK takes back, are added to when the transaction has committed.  So
 * who gets an error may try again, and who lost the connection may do so if the
 * transaction did not commit.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/uuid.h"

#include "catalog.h"
#include "compat.h"
#include "elements.h"
#include "requestlog.h"
#include "usage.h"

PG_FUNCTION_INFO_V1(regpilot_record_many);

/* HTTP (RFC 9110, 15): what a status can be, and from where on the request failed */
#define STATUS_MIN 100
#define STATUS_MAX 599
#define STATUS_FIRST_FAILED 400

/* Array arguments of record_many(). */
enum
{
	ARGUMENT_KEY_IDS,
	ARGUMENT_ENVIRONMENTS,
	ARGUMENT_STATUSES,
	ARGUMENT_LATENCIES,
	ARGUMENT_MODELS,
	ARGUMENT_PROMPT_TOKENS,
	ARGUMENT_COMPLETION_TOKENS,
	ARGUMENT_FIRST_BYTES,
};

/* A key that outcomes of one call are of. */
typedef struct OutcomeKey
{
	pg_uuid_t id; /* the hash key */
	bool exists;
	pg_uuid_t project_id; /* valid if it exists */
	UsageCounters counters[ENVIRONMENT_COUNT];
} OutcomeKey;

/* What calls add to the counters once their transaction has committed, the latest first. */
typedef struct Pending
{
	SubTransactionId subtransaction; /* that it belongs to */
	UsageDeltas deltas;
	struct Pending *next;
} Pending;

static Pending *pending = NULL; /* in TopTransactionContext */

static void
transaction_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_COMMIT:
			/* no errors from here on, and nobody interrupts */
			for (; pending != NULL; pending = pending->next)
			{
				for (int i = 0; i < pending->deltas.count; i++)
				{
					const UsageDelta *delta = &pending->deltas.items[i];

					usage_record(&delta->key_id, delta->environment, &delta->counters);
				}
			}
			break;
		case XACT_EVENT_ABORT:
			pending = NULL;
			break;
		case XACT_EVENT_PRE_PREPARE:
			if (pending != NULL)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("cannot PREPARE a transaction that has recorded outcomes"),
						 errdetail("This session counts them when the transaction commits."),
						 errhint("Call regpilot.record_many() in a transaction of its own.")));
			break;
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_PRE_COMMIT:
		case XACT_EVENT_PARALLEL_COMMIT:
		case XACT_EVENT_PARALLEL_ABORT:
			break;
	}
}

static void
subtransaction_callback(SubXactEvent event, SubTransactionId subtransaction,
						SubTransactionId parent, void *arg)
{
	switch (event)
	{
		case SUBXACT_EVENT_COMMIT_SUB:
			for (Pending *p = pending; p != NULL && p->subtransaction == subtransaction;
				 p = p->next)
				p->subtransaction = parent;
			break;
		case SUBXACT_EVENT_ABORT_SUB:
			/* also what its own subtransactions have left to it */
			while (pending != NULL && pending->subtransaction == subtransaction)
				pending = pending->next;
			break;
		case SUBXACT_EVENT_START_SUB:
		case SUBXACT_EVENT_PRE_COMMIT_SUB:
			break;
	}
}

/* Have what a call found of its keys added to the counters, when it is time. */
static void
count_at_commit(HTAB *keys)
{
	static bool registered = false;
	MemoryContext context = MemoryContextSwitchTo(TopTransactionContext);
	HASH_SEQ_STATUS scan;
	const OutcomeKey *key;
	Pending *made = palloc0(sizeof(Pending));

	hash_seq_init(&scan, keys);
	while ((key = hash_seq_search(&scan)) != NULL)
	{
		for (int i = 0; i < ENVIRONMENT_COUNT; i++)
		{
			UsageDelta delta = {
				.key_id = key->id,
				.environment = (Environment) i,
				.counters = key->counters[i],
			};

			/* an authorized request itself has been counted before */
			if (delta.counters.failed_requests > 0 || delta.counters.prompt_tokens > 0 ||
				delta.counters.completion_tokens > 0)
				usage_add_delta(&made->deltas, &delta);
		}
	}
	MemoryContextSwitchTo(context);

	if (made->deltas.count == 0)
		return;
	if (!registered)
	{
		RegisterXactCallback(transaction_callback, NULL);
		RegisterSubXactCallback(subtransaction_callback, NULL);
		registered = true;
	}
	made->subtransaction = GetCurrentSubTransactionId();
	made->next = pending;
	pending = made;
}

/* The key with an id, looked up once a call. */
static OutcomeKey *
find_key(HTAB *keys, CatalogReader *reader, const pg_uuid_t *id)
{
	bool found;
	OutcomeKey *key = hash_search(keys, id, HASH_ENTER, &found);

	if (!found)
	{
		memset(key->counters, 0, sizeof(key->counters));
		key->exists = catalog_find_project(reader, id, &key->project_id);
	}
	return key;
}

/* A time in milliseconds, negative if it is not known. */
static int
milliseconds(const Elements *times, int i)
{
	return times->nulls[i] ? -1 : DatumGetInt32(times->values[i]);
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

/*
 * Nothing that a single outcome says makes the call fail, since that would lose the
 * others: what cannot be is passed over or bounded, as the install script documents.
 */
Datum
regpilot_record_many(PG_FUNCTION_ARGS)
{
	Elements key_ids = elements_of(fcinfo, ARGUMENT_KEY_IDS, -1);
	Elements environments = elements_of(fcinfo, ARGUMENT_ENVIRONMENTS, key_ids.count);
	Elements statuses = elements_of(fcinfo, ARGUMENT_STATUSES, key_ids.count);
	Elements latencies = elements_of(fcinfo, ARGUMENT_LATENCIES, key_ids.count);
	Elements models = elements_of(fcinfo, ARGUMENT_MODELS, key_ids.count);
	Elements prompt_tokens = elements_of(fcinfo, ARGUMENT_PROMPT_TOKENS, key_ids.count);
	Elements completion_tokens = elements_of(fcinfo, ARGUMENT_COMPLETION_TOKENS, key_ids.count);
	bool has_first_bytes = !PG_ARGISNULL(ARGUMENT_FIRST_BYTES);
	Elements first_bytes = {0};
	RequestLogEntry *entries = palloc(key_ids.count * sizeof(RequestLogEntry));
	HASHCTL control = {
		.keysize = sizeof(pg_uuid_t),
		.entrysize = sizeof(OutcomeKey),
		.hcxt = CurrentMemoryContext,
	};
	HTAB *keys;
	CatalogReader *reader;
	int count = 0;

	if (has_first_bytes)
		first_bytes = elements_of(fcinfo, ARGUMENT_FIRST_BYTES, key_ids.count);
	usage_require();
	keys = hash_create("keys of outcomes", 64, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	reader = catalog_open();

	for (int i = 0; i < key_ids.count; i++)
	{
		const pg_uuid_t *key_id = element_pointer(&key_ids, i);
		const text *environment = element_text(&environments, i);
		int status = statuses.nulls[i] ? 0 : DatumGetInt32(statuses.values[i]);
		RequestLogEntry *entry = &entries[count];
		UsageCounters *counters;
		OutcomeKey *key;

		CHECK_FOR_INTERRUPTS();
		if (key_id == NULL || status < STATUS_MIN || status > STATUS_MAX)
			continue;
		/* a key that is not there has been deleted, or the caller has made it up */
		key = find_key(keys, reader, key_id);
		if (!key->exists)
			continue;

		*entry = (RequestLogEntry){
			.project_id = key->project_id,
			.key_id = key_id,
			.environment = environment == NULL
							   ? ENVIRONMENT_OTHER
							   : environment_from_name(VARDATA_ANY(environment),
													   VARSIZE_ANY_EXHDR(environment)),
			.status = status,
			.latency = milliseconds(&latencies, i),
			.first_byte = has_first_bytes ? milliseconds(&first_bytes, i) : -1,
			.model = element_text(&models, i),
			.prompt_tokens = token_count(&prompt_tokens, i),
			.completion_tokens = token_count(&completion_tokens, i),
		};
		if (entry->latency >= 0)
			entry->first_byte = Min(entry->first_byte, entry->latency);
		count++;

		counters = &key->counters[entry->environment];
		counters->failed_requests += status >= STATUS_FIRST_FAILED ? 1 : 0;
		counters->prompt_tokens += entry->prompt_tokens;
		counters->completion_tokens += entry->completion_tokens;
	}

	requestlog_append(entries, count);
	count_at_commit(keys);

	catalog_close(reader);
	PG_RETURN_INT32(count);
}
