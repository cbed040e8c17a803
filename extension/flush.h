/*-------------------------------------------------------------------------
 *
 * flush.h
 *		Writing usage counters to their tables.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_FLUSH_H
#define REGPILOT_FLUSH_H

#include "usage.h"

/*
 * Add the deltas, which it sorts, to regpilot.key_usage, and say in each whether
 * it was postponed since somebody else holds its key or its row.  What belongs to
 * a key that is no more is dropped.  The caller, the only one who flushes, is in
 * a transaction with an active snapshot.  Returns the number of rows written.
 */
extern int flush_deltas(UsageDelta *deltas, int count);

#endif /* REGPILOT_FLUSH_H */
