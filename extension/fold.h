/*-------------------------------------------------------------------------
 *
 * fold.h
 *		Adding what was counted to the totals.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_FOLD_H
#define REGPILOT_FOLD_H

#include "usage.h"

/*
 * Lock the tables that fold_deltas() writes to.  False if somebody holds one: then
 * leave it for later, and end the transaction.
 */
pg_nodiscard extern bool fold_lock_tables(void);

/*
 * Add deltas, which it sorts, to regpilot.key_usage and regpilot.usage_history,
 * and list those that it could not add since somebody else holds their key or
 * their row.  What belongs to a key that is no more is dropped.  The caller, the
 * only one who does this, is in a transaction with an active snapshot.
 */
extern void fold_deltas(UsageDeltas *deltas, UsageDeltas *postponed);

#endif /* REGPILOT_FOLD_H */
