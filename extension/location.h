/*-------------------------------------------------------------------------
 *
 * location.h
 *		Hints where the row and the usage slot of a key are, in shared memory.
 *
 * A hint is where they were when the key with some digest was found last.  It may
 * be wrong at any time: rows move, slots are evicted, either's place is used
 * again, and nobody mends the hints.  So whoever follows one has to see whether
 * what is there is what he is looking for.  What is in a row is never kept.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_LOCATION_H
#define REGPILOT_LOCATION_H

#include "regpilot.h"

#include "storage/buf.h"
#include "storage/itemptr.h"

#include "key.h"

/*
 * For usage.c, which sets up the shared memory: how much of it this takes, and
 * to get hold of that, with AddinShmemInitLock held.
 */
extern Size location_size(void);
extern void location_attach(void);

typedef struct Location
{
	ItemPointerData row; /* that the index has for it; invalid if not known */
	Buffer buffer;		 /* shared, that held its block; InvalidBuffer if not known */
	uint16 begin;		 /* of the row in that block, in bytes, MAXALIGNed */
	uint32 slot;		 /* its number in usage.c; LOCATION_NO_SLOT if not known */
} Location;

#define LOCATION_NO_SLOT PG_UINT32_MAX

/* Have the processor fetch what is known of a digest, soon to be recalled. */
extern void location_prefetch(const uint8 digest[KEY_DIGEST_LENGTH]);

/* Where the key with a digest was last. */
extern Location location_recall(const uint8 digest[KEY_DIGEST_LENGTH]);

/* The key with a digest is there. */
extern void location_remember(const uint8 digest[KEY_DIGEST_LENGTH], const Location *location);

#endif /* REGPILOT_LOCATION_H */
