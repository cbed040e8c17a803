/*-------------------------------------------------------------------------
 *
 * stale.h
 *		Stale keys: those that nobody has used for regpilot.stale_after.
 *
 * A key is stale as of some time if it is live then (not revoked, not disabled,
 * not expired) and its creation, its last use and its last review lie more than
 * regpilot.stale_after before.  It is flagged once, by flagged_at, until it is
 * used or reviewed.
 *
 * The functions below connect to SPI themselves.  The caller sees to a
 * transaction with an active snapshot, in which it may write to api_key, and to
 * a search_path that begins with pg_catalog.  They leave out rows that others
 * have locked, for the next time, and so never wait for one; an exclusive lock
 * of the whole table they do wait for.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_STALE_H
#define REGPILOT_STALE_H

#include "regpilot.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* Most keys that a call flags: about a second's work, when a million were imported at once. */
#define STALE_BATCH 10000

/*
 * Take the flag off the keys that have been used since they got it, then flag
 * those that are stale as of a time, up to STALE_BATCH of them; the next call
 * goes on.  Returns how many were flagged.
 *
 * A flag's time is as_of, or now() if that is earlier.  Uses that were counted
 * before must have been flushed, or they would neither keep the flag away nor
 * take it off: let as_of be the time before the last flush.
 */
extern int stale_flag_keys(TimestampTz as_of);

/* Take the flag off those of some keys that have one: they have been used. */
extern void stale_clear_flags(const pg_uuid_t *key_ids, int count);

#endif /* REGPILOT_STALE_H */
