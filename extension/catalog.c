/*-------------------------------------------------------------------------
 *
 * catalog.c
 *		Reading regpilot's tables.
 *
 *-------------------------------------------------------------------------
 */
#include "catalog.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog/namespace.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "storage/buf_internals.h"
#include "storage/bufmgr.h"
#include "storage/lmgr.h"
#include "storage/smgr.h"
#include "utils/fmgroids.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "compat.h"

PG_FUNCTION_INFO_V1(regpilot_invalidate_limits);

#define SCHEMA_NAME "regpilot"

/* Column numbers, as the install script makes them. */
enum
{
	Anum_plan_name = 1,
	Anum_plan_requests_per_minute,
};

enum
{
	Anum_project_id = 1,
	Anum_project_name,
	Anum_project_plan,
};

enum
{
	Anum_api_key_id = 1,
	Anum_api_key_project_id,
	Anum_api_key_name,
	Anum_api_key_environment,
	Anum_api_key_hint,
	Anum_api_key_digest,
	Anum_api_key_permissions,
	Anum_api_key_requests_per_minute,
	Anum_api_key_active,
	Anum_api_key_revoked_at,
	Anum_api_key_expires_at,
	Anum_api_key_flagged_at,
};

/* The lookups that are made, each through one unique index of one column. */
typedef enum Lookup
{
	LOOKUP_KEY_BY_DIGEST,
	LOOKUP_KEY_BY_ID,
	LOOKUP_PROJECT,
	LOOKUP_PLAN,
} Lookup;

#define LOOKUP_COUNT (LOOKUP_PLAN + 1)

static const struct
{
	const char *table;
	const char *index;
	RegProcedure equality;
} lookups[LOOKUP_COUNT] = {
	[LOOKUP_KEY_BY_DIGEST] = {"api_key", "api_key_digest_key", F_BYTEAEQ},
	[LOOKUP_KEY_BY_ID] = {"api_key", "api_key_pkey", F_UUID_EQ},
	[LOOKUP_PROJECT] = {"project", "project_pkey", F_UUID_EQ},
	[LOOKUP_PLAN] = {"plan", "plan_pkey", F_TEXTEQ},
};

static const char *const verdict_names[VERDICT_COUNT] = {
	[VERDICT_OK] = "ok",
	[VERDICT_INVALID] = "invalid",
	[VERDICT_INACTIVE] = "inactive",
	[VERDICT_EXPIRED] = "expired",
	[VERDICT_REVOKED] = "revoked",
	[VERDICT_FORBIDDEN] = "forbidden",
	[VERDICT_RATE_LIMITED] = "rate_limited",
	[VERDICT_UNAVAILABLE] = "unavailable",
};

/*
 * OIDs of what the extension made.  Not valid once the description of one of
 * these relations may have changed, or the rows of project or plan have; see
 * regpilot_invalidate_limits().
 */
static struct
{
	bool valid;
	bool invalidated; /* since fill_cache() began */
	Oid tables[LOOKUP_COUNT];
	Oid indexes[LOOKUP_COUNT];
	Oid verdicts[VERDICT_COUNT];
	Oid authorization; /* the type */
} cache;

/*
 * A project and its plan, kept until the cache of OIDs is no longer valid.  Keys
 * themselves are never kept: they are read for every verdict.
 */
typedef struct Project
{
	pg_uuid_t id;			 /* the hash key */
	Datum name;				 /* text */
	Datum plan;				 /* text */
	int requests_per_minute; /* of the plan; 0: unlimited */
} Project;

#define PROJECTS_MAX 1024 /* with more, we begin anew */

static MemoryContext projects_context;
static HTAB *projects = NULL; /* in projects_context, as is all in it */

#define ROW_SIZE 256 /* bytes that a key's row mostly takes at most */

/* An open table, the row found in it, and what it was found by. */
typedef struct OpenLookup
{
	Lookup lookup;
	Relation table;				/* NULL: not opened yet */
	TupleTableSlot *row;		/* as the table */
	IndexFetchTableData *fetch; /* of a row by its location; NULL: not begun yet */
	Relation index;				/* NULL: not opened yet */
	IndexScanDesc scan;			/* as the index */
	ItemPointerData location;	/* that the index has for the row */
} OpenLookup;

struct CatalogReader
{
	Oid table; /* api_key, which is locked */
	Snapshot snapshot;
	OpenLookup key_by_digest;
	OpenLookup key_by_id;
};

/*
 * Called when a relation's description changes, or (InvalidOid) any's.  May run
 * at any time that the server accepts invalidations, so it only clears a flag.
 */
static void
relcache_callback(Datum arg, Oid relid)
{
	bool ours = !OidIsValid(relid);

	for (int i = 0; i < LOOKUP_COUNT; i++)
		ours |= relid == cache.tables[i] || relid == cache.indexes[i];
	if (ours)
	{
		cache.valid = false;
		cache.invalidated = true;
	}
}

void
catalog_init(void)
{
	CacheRegisterRelcacheCallback(relcache_callback, (Datum) 0);
}

static Oid
type_oid(Oid schema, const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						   ObjectIdGetDatum(schema));
}

static Oid
verdict_oid(Oid type, Verdict verdict)
{
	return GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid, ObjectIdGetDatum(type),
						   CStringGetDatum(verdict_names[verdict]));
}

static void
forget_projects(void)
{
	if (projects != NULL)
		MemoryContextDelete(projects_context);
	projects = NULL;
}

/* Fill the cache.  False if the extension is not (wholly) there. */
static bool
fill_cache(void)
{
	Oid schema = get_namespace_oid(SCHEMA_NAME, true);
	Oid verdict_type;
	bool complete = true;

	if (!OidIsValid(schema))
		return false;

	/* valid only at the end: an error on the way must not leave half a cache */
	cache.invalidated = false;
	forget_projects();

	for (int i = 0; i < LOOKUP_COUNT; i++)
	{
		cache.tables[i] = get_relname_relid(lookups[i].table, schema);
		cache.indexes[i] = get_relname_relid(lookups[i].index, schema);
		complete &= OidIsValid(cache.tables[i]) && OidIsValid(cache.indexes[i]);
	}

	cache.authorization = type_oid(schema, "authorization");
	complete &= OidIsValid(cache.authorization);
	verdict_type = type_oid(schema, "verdict");
	for (int i = 0; i < VERDICT_COUNT; i++)
	{
		cache.verdicts[i] = verdict_oid(verdict_type, (Verdict) i);
		complete &= OidIsValid(cache.verdicts[i]);
	}

	/* what was invalidated while we looked is looked up again */
	cache.valid = complete && !cache.invalidated;
	return complete;
}

bool
catalog_exists(void)
{
	return cache.valid || fill_cache();
}

/*
 * Lock the tables of some lookups so that no one can drop them, nor an index
 * that REINDEX CONCURRENTLY has replaced.  Locking takes in what others have
 * changed (not in a transaction that has the locks already, where nothing of the
 * kind can have changed), so it is only then that the OIDs are known to hold.
 */
static void
lock_tables(const Lookup *of, int count)
{
	for (;;)
	{
		if (!catalog_exists())
			ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
							errmsg("the tables of extension regpilot are not in this database"),
							errhint("Run CREATE EXTENSION regpilot.")));
		for (int i = 0; i < count; i++)
			LockRelationOid(cache.tables[of[i]], AccessShareLock);
		if (cache.valid)
			break;
		for (int i = 0; i < count; i++)
			UnlockRelationOid(cache.tables[of[i]], AccessShareLock);
	}
}

CatalogReader *
catalog_open(void)
{
	static const Lookup key_lookup = LOOKUP_KEY_BY_DIGEST;
	CatalogReader *reader;

	/* what became of projects and plans is not in tables that are locked below */
	AcceptInvalidationMessages();
	lock_tables(&key_lookup, 1);

	/* only then: rows of a table rewritten meanwhile are not in older snapshots */
	reader = palloc0(sizeof(CatalogReader));
	reader->table = cache.tables[LOOKUP_KEY_BY_DIGEST];
	reader->snapshot = RegisterSnapshot(GetLatestSnapshot());
	reader->key_by_digest.lookup = LOOKUP_KEY_BY_DIGEST;
	reader->key_by_id.lookup = LOOKUP_KEY_BY_ID;
	return reader;
}

/* Close a lookup, if it was opened, and keep its table locked. */
static void
close_lookup(OpenLookup *open)
{
	if (open->index != NULL)
	{
		index_endscan(open->scan);
		index_close(open->index, AccessShareLock);
	}
	if (open->fetch != NULL)
		table_index_fetch_end(open->fetch);
	if (open->table != NULL)
	{
		ExecDropSingleTupleTableSlot(open->row);
		table_close(open->table, NoLock);
	}
}

void
catalog_close(CatalogReader *reader)
{
	close_lookup(&reader->key_by_digest);
	close_lookup(&reader->key_by_id);
	UnregisterSnapshot(reader->snapshot);
	UnlockRelationOid(reader->table, AccessShareLock);
	pfree(reader);
}

static void
open_table(OpenLookup *open)
{
	if (open->table != NULL)
		return;
	open->table = table_open(cache.tables[open->lookup], NoLock);
	open->row = table_slot_create(open->table, NULL);
}

/*
 * Find the row whose indexed column equals a value, in a table that is locked.
 * NULL if there is none; else the row is good until the lookup is used again or
 * closed.
 */
static TupleTableSlot *
find_row(OpenLookup *open, Snapshot snapshot, Datum value)
{
	ScanKeyData scan_key;
	ItemPointer location;

	open_table(open);
	if (open->index == NULL)
	{
		open->index = index_open(cache.indexes[open->lookup], AccessShareLock);
		open->scan = compat_index_beginscan(open->table, open->index, snapshot, 1);
	}

	ScanKeyInit(&scan_key, 1, BTEqualStrategyNumber, lookups[open->lookup].equality, value);
	index_rescan(open->scan, &scan_key, 1, NULL, 0);
	while ((location = index_getnext_tid(open->scan, ForwardScanDirection)) != NULL)
	{
		/* a copy: the fetch goes on from there to a later version of the row */
		open->location = *location;
		if (index_fetch_heap(open->scan, open->row))
			return open->row;
	}
	return NULL;
}

void
catalog_prefetch(const Location *location)
{
	char *block;
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(&location->row);

	if (!BufferIsValid(location->buffer))
		return;

	/* addresses alone: nothing is read of a block that is not pinned, and may be any */
	block = BufferBlocks + (Size) (location->buffer - 1) * BLCKSZ;
	__builtin_prefetch(GetBufferDescriptor(location->buffer - 1), 1);
	__builtin_prefetch(block);
	__builtin_prefetch(block + SizeOfPageHeaderData + (offset - 1) * sizeof(ItemIdData));
	for (Size i = 0; i < ROW_SIZE; i += CACHE_LINE)
		__builtin_prefetch(block + location->begin + i);
}

/*
 * Whether a table that is locked has a block.  If so it will keep it: who shortens
 * a table locks out all others.  He also makes everybody forget its size, before
 * the lock is released, so a size known from earlier is never too large.
 */
static bool
has_block(Relation table, BlockNumber block)
{
	SMgrRelation file = RelationGetSmgr(table);
	BlockNumber known = file->smgr_cached_nblocks[MAIN_FORKNUM];

	return (known != InvalidBlockNumber && block < known) ||
		   block < smgrnblocks(file, MAIN_FORKNUM);
}

/*
 * Pin the block of a table that a buffer had, if it has it still.  This way does not
 * count as a use when the server looks for buffers to give to other blocks, so of one
 * that has no use left to its credit the block is looked up as usual.
 */
static bool
pin_recent_buffer(Relation table, BlockNumber block, Buffer buffer)
{
	if (!BufferIsValid(buffer) ||
		BUF_STATE_GET_USAGECOUNT(pg_atomic_read_u32(&GetBufferDescriptor(buffer - 1)->state)) == 0)
		return false;
	return compat_read_recent_buffer(table, block, buffer);
}

/*
 * The visible row, if any, at a location that an index has had, in a table that
 * is locked.  By now that may be a place of anything, or be from another table.
 *
 * A heap bears with an offset that is not there, is not in use, or belongs to a
 * version of a row that no index points to: it finds nothing.  A block must be
 * there.  What another access method does with such a location is not known, so
 * it gets none.
 *
 * If the buffer that had the block has it still, the fetch takes that one instead of
 * looking the block up.
 */
static TupleTableSlot *
fetch_row(OpenLookup *open, Snapshot snapshot, const Location *location)
{
	BlockNumber block = ItemPointerGetBlockNumber(&location->row);
	ItemPointerData row = location->row; /* a copy: the fetch goes on from there */
	IndexFetchHeapData *fetch;
	bool more = false;

	open_table(open);
	if (open->table->rd_tableam != GetHeapamTableAmRoutine())
		return NULL;

	if (open->fetch == NULL)
		open->fetch = table_index_fetch_begin(open->table);
	fetch = (IndexFetchHeapData *) open->fetch;
	if (pin_recent_buffer(open->table, block, location->buffer))
	{
		/* as the fetch does when it has looked a block up */
		if (BufferIsValid(fetch->xs_cbuf))
			ReleaseBuffer(fetch->xs_cbuf);
		fetch->xs_cbuf = location->buffer;
		heap_page_prune_opt(open->table, location->buffer);
	}
	else if (!has_block(open->table, block))
		return NULL;

	return table_index_fetch_tuple(open->fetch, &row, snapshot, open->row, &more, NULL) ? open->row
																						: NULL;
}

/* Say in which buffer a row was found, if it is a shared one, and where there. */
static void
locate_in_buffer(TupleTableSlot *row, Location *location)
{
	BufferHeapTupleTableSlot *found = (BufferHeapTupleTableSlot *) row;

	location->buffer = InvalidBuffer;
	if (!TTS_IS_BUFFERTUPLE(row) || BufferIsLocal(found->buffer))
		return;
	location->buffer = found->buffer;
	location->begin = (char *) found->base.tuple->t_data - (char *) BufferGetPage(found->buffer);
}

static bool
row_has_digest(TupleTableSlot *key_row, const uint8 digest[KEY_DIGEST_LENGTH])
{
	bool isnull;
	bytea *held = DatumGetByteaPP(slot_getattr(key_row, Anum_api_key_digest, &isnull));

	return VARSIZE_ANY_EXHDR(held) == KEY_DIGEST_LENGTH &&
		   memcmp(VARDATA_ANY(held), digest, KEY_DIGEST_LENGTH) == 0;
}

/*
 * Find the row of the key with a digest: where it was last, or else by index.
 *
 * However wrong a location is, the row is right: the latest snapshot sees it and
 * it has the digest.  As digests are unique no other row is such, so this is the
 * one that the index leads to.  Only its place is remembered: what it says is read
 * for each verdict.  (A SERIALIZABLE transaction gets its predicate lock on the
 * row.  It goes without the one on the page of the index, which guards against
 * rows that appear, and where none was the index is searched.)
 */
static TupleTableSlot *
find_key_row(CatalogReader *reader, const uint8 digest[KEY_DIGEST_LENGTH], Location *location)
{
	OpenLookup *lookup = &reader->key_by_digest;
	struct
	{
		int32 header; /* of a varlena, and its alignment */
		uint8 bytes[KEY_DIGEST_LENGTH];
	} digest_bytea;
	TupleTableSlot *key_row;

	if (ItemPointerIsValid(&location->row))
	{
		key_row = fetch_row(lookup, reader->snapshot, location);
		if (key_row != NULL && row_has_digest(key_row, digest))
		{
			locate_in_buffer(key_row, location);
			return key_row;
		}
	}

	SET_VARSIZE(&digest_bytea, sizeof(digest_bytea));
	memcpy(digest_bytea.bytes, digest, KEY_DIGEST_LENGTH);
	key_row = find_row(lookup, reader->snapshot, PointerGetDatum(&digest_bytea));
	if (key_row != NULL)
	{
		location->row = lookup->location;
		locate_in_buffer(key_row, location);
	}
	return key_row;
}

static void
make_projects(void)
{
	HASHCTL control = {.keysize = sizeof(pg_uuid_t), .entrysize = sizeof(Project)};

	projects_context =
		AllocSetContextCreate(TopMemoryContext, "regpilot projects", ALLOCSET_SMALL_SIZES);
	control.hcxt = projects_context;
	projects = hash_create("regpilot projects", PROJECTS_MAX, &control,
						   HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
}

/* Keep a project that was read. */
static const Project *
keep_project(const pg_uuid_t *id, Datum name, Datum plan, int requests_per_minute)
{
	MemoryContext context;
	Project *project;

	if (projects != NULL && hash_get_num_entries(projects) >= PROJECTS_MAX)
		forget_projects();
	if (projects == NULL)
		make_projects();

	/* copied first: an entry is whole, or is not there */
	context = MemoryContextSwitchTo(projects_context);
	name = PointerGetDatum(DatumGetTextPCopy(name));
	plan = PointerGetDatum(DatumGetTextPCopy(plan));
	MemoryContextSwitchTo(context);

	project = hash_search(projects, id, HASH_ENTER, NULL);
	project->name = name;
	project->plan = plan;
	project->requests_per_minute = requests_per_minute;
	return project;
}

/* Read a project and its plan.  NULL if there is no such project any more. */
static const Project *
read_project(const pg_uuid_t *id)
{
	static const Lookup project_lookups[] = {LOOKUP_PROJECT, LOOKUP_PLAN};
	OpenLookup open_project = {.lookup = LOOKUP_PROJECT};
	OpenLookup open_plan = {.lookup = LOOKUP_PLAN};
	Snapshot snapshot;
	TupleTableSlot *project_row;
	TupleTableSlot *plan_row;
	const Project *project = NULL;
	Datum name;
	Datum plan;
	Datum limit;
	bool isnull;

	/* as in catalog_open() */
	lock_tables(project_lookups, lengthof(project_lookups));
	snapshot = RegisterSnapshot(GetLatestSnapshot());

	project_row = find_row(&open_project, snapshot, UUIDPGetDatum(id));
	if (project_row != NULL)
	{
		plan = slot_getattr(project_row, Anum_project_plan, &isnull);
		plan_row = find_row(&open_plan, snapshot, plan);
		if (plan_row == NULL)
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
							errmsg("table regpilot.plan lacks a row that a project depends on")));
		name = slot_getattr(project_row, Anum_project_name, &isnull);
		limit = slot_getattr(plan_row, Anum_plan_requests_per_minute, &isnull);
		project = keep_project(id, name, plan, isnull ? 0 : DatumGetInt32(limit));
	}

	close_lookup(&open_plan);
	close_lookup(&open_project);
	UnregisterSnapshot(snapshot);
	for (int i = 0; i < lengthof(project_lookups); i++)
		UnlockRelationOid(cache.tables[project_lookups[i]], AccessShareLock);
	return project;
}

static const Project *
find_project(const pg_uuid_t *id)
{
	const Project *project = NULL;

	if (projects != NULL)
		project = hash_search(projects, id, HASH_FIND, NULL);
	return project != NULL ? project : read_project(id);
}

/*
 * Trigger after each change of a project or plan: as if the table's description
 * had changed, which every session hears of no later than the COMMIT returns.
 */
Datum
regpilot_invalidate_limits(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("regpilot.invalidate_limits() must be called as a trigger")));

	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}

bool
catalog_find_key(CatalogReader *reader, const uint8 digest[KEY_DIGEST_LENGTH], Location *location,
				 CatalogKey *key)
{
	TupleTableSlot *key_row = find_key_row(reader, digest, location);
	const Project *project;
	Datum value;
	bool isnull;

	if (key_row == NULL)
		return false;

	key->id = *DatumGetUUIDP(slot_getattr(key_row, Anum_api_key_id, &isnull));
	key->project_id = slot_getattr(key_row, Anum_api_key_project_id, &isnull);
	key->name = slot_getattr(key_row, Anum_api_key_name, &isnull);
	key->environment = slot_getattr(key_row, Anum_api_key_environment, &isnull);
	key->has_environment = !isnull;
	key->hint = slot_getattr(key_row, Anum_api_key_hint, &isnull);
	key->permissions = slot_getattr(key_row, Anum_api_key_permissions, &isnull);
	key->active = DatumGetBool(slot_getattr(key_row, Anum_api_key_active, &isnull));
	(void) slot_getattr(key_row, Anum_api_key_revoked_at, &isnull);
	key->revoked = !isnull;
	value = slot_getattr(key_row, Anum_api_key_expires_at, &isnull);
	key->expires_at = isnull ? DT_NOEND : DatumGetTimestampTz(value);
	(void) slot_getattr(key_row, Anum_api_key_flagged_at, &isnull);
	key->flagged = !isnull;

	/* it may be gone, with the key, since the reader took its snapshot */
	project = find_project(DatumGetUUIDP(key->project_id));
	if (project == NULL)
		return false;
	key->project = project->name;
	key->plan = project->plan;

	/* the key's own limit, or else its plan's */
	value = slot_getattr(key_row, Anum_api_key_requests_per_minute, &isnull);
	key->requests_per_minute = isnull ? project->requests_per_minute : DatumGetInt32(value);
	return true;
}

bool
catalog_find_project(CatalogReader *reader, const pg_uuid_t *key_id, pg_uuid_t *project_id)
{
	TupleTableSlot *key_row = find_row(&reader->key_by_id, reader->snapshot, UUIDPGetDatum(key_id));
	bool isnull;

	if (key_row == NULL)
		return false;
	*project_id = *DatumGetUUIDP(slot_getattr(key_row, Anum_api_key_project_id, &isnull));
	return true;
}

Datum
catalog_verdict(Verdict verdict)
{
	return ObjectIdGetDatum(cache.verdicts[verdict]);
}

Oid
catalog_authorization_type(void)
{
	return cache.authorization;
}

Oid
catalog_relation(const char *name)
{
	return get_relname_relid(name, get_namespace_oid(SCHEMA_NAME, false));
}

Oid
catalog_secret_type(void)
{
	return type_oid(get_namespace_oid(SCHEMA_NAME, false), "secret");
}
