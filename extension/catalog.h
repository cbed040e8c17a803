/*-------------------------------------------------------------------------
 *
 * catalog.h
 *		Reading regpilot's tables: which relations they are, and the key that
 *		has a digest.
 *
 * Lookups are direct index scans under the latest snapshot, so they see what
 * was committed before they began, also inside a REPEATABLE READ transaction,
 * and check no privileges: EXECUTE on the calling function is the gate.  A key's
 * row is looked for first where it was last, which saves the scan.  Projects
 * and plans, which are few and seldom change, are kept between calls until the
 * first call after the COMMIT of a change to any of them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_CATALOG_H
#define REGPILOT_CATALOG_H

#include "regpilot.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "compat.h"
#include "key.h"
#include "location.h"

/* As in the type regpilot.verdict, in its order; authorize.c has the order of the checks. */
typedef enum Verdict
{
	VERDICT_OK,			  /* admitted and counted */
	VERDICT_INVALID,	  /* no such key */
	VERDICT_INACTIVE,	  /* disabled by an admin */
	VERDICT_EXPIRED,	  /* its time is over */
	VERDICT_REVOKED,	  /* for good */
	VERDICT_FORBIDDEN,	  /* lacks the permission asked for */
	VERDICT_RATE_LIMITED, /* no place in the window */
	VERDICT_UNAVAILABLE,  /* cannot be judged: no slot to count it in */
} Verdict;

#define VERDICT_COUNT (VERDICT_UNAVAILABLE + 1)

typedef struct CatalogReader CatalogReader;

/*
 * A key with its project and plan.  The Datums are good until the reader's next
 * lookup.
 */
typedef struct CatalogKey
{
	pg_uuid_t id;
	Datum project_id;  /* uuid */
	Datum project;	   /* text */
	Datum plan;		   /* text */
	Datum name;		   /* text */
	Datum hint;		   /* text */
	Datum environment; /* text */
	bool has_environment;
	Datum permissions;		 /* text[] */
	int requests_per_minute; /* in force; 0: unlimited */
	bool active;
	bool revoked;
	bool flagged;			/* as stale */
	TimestampTz expires_at; /* infinity if never */
} CatalogKey;

/* Register for invalidations.  Called once, at preload. */
extern void catalog_init(void);

/* Whether the extension is installed in this database. */
extern bool catalog_exists(void);

/*
 * Open the tables for lookups under one snapshot.  Raises
 * ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE if they are not there.  After an error
 * the transaction's clean-up closes the reader.
 */
extern CatalogReader *catalog_open(void);
extern void catalog_close(CatalogReader *reader);

/* Have the processor fetch what is where a key's row was last; any place is safe. */
extern void catalog_prefetch(const Location *location);

/*
 * Find a key by its digest, or its project by its id; false if there is no such
 * key.  *location is where the key's row was last, if known; any is safe.  If the
 * key is found, it is set to one that will do the next time.
 */
pg_nodiscard extern bool catalog_find_key(CatalogReader *reader,
										  const uint8 digest[KEY_DIGEST_LENGTH], Location *location,
										  CatalogKey *key);
pg_nodiscard extern bool catalog_find_project(CatalogReader *reader, const pg_uuid_t *key_id,
											  pg_uuid_t *project_id);

/* A verdict as a Datum of regpilot.verdict. */
extern Datum catalog_verdict(Verdict verdict);

/* The OID of regpilot.authorization, while a reader is open. */
extern Oid catalog_authorization_type(void);

/* The OID of a table or index of ours, InvalidOid if there is none. */
extern Oid catalog_relation(const char *name);

/* The OID of regpilot.secret. */
extern Oid catalog_secret_type(void);

#endif /* REGPILOT_CATALOG_H */
