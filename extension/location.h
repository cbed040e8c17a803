/*-------------------------------------------------------------------------
 *
 * location.h
 *		Hints where in the table the rows of keys are, in shared memory.
 *
 * A hint is a place where the key with some digest has been found.  It may be
 * wrong at any time: rows move, and their places are used again, and nobody
 * mends the hints.  So it is for the caller to see whether the row is there.
 * What is in the row is never kept.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_LOCATION_H
#define REGPILOT_LOCATION_H

#include "regpilot.h"

#include "storage/itemptr.h"

#include "key.h"

/*
 * For usage.c, which sets up the shared memory: how much of it this takes, and
 * to get hold of that, with AddinShmemInitLock held.
 */
extern Size location_size(void);
extern void location_attach(void);

/* Where the key with a digest may be.  False if nothing is known of it. */
pg_nodiscard extern bool location_recall(const uint8 digest[KEY_DIGEST_LENGTH],
										 ItemPointer location);

/* The key with a digest is there. */
extern void location_remember(const uint8 digest[KEY_DIGEST_LENGTH],
							  const ItemPointerData *location);

#endif /* REGPILOT_LOCATION_H */
