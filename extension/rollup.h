/*-------------------------------------------------------------------------
 *
 * rollup.h
 *		The rollup of the request log: sums of its rows by the hour and the day.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_ROLLUP_H
#define REGPILOT_ROLLUP_H

#include "regpilot.h"

#include "datatype/timestamp.h"

/*
 * Roll up some of what has been logged until five seconds ago.  For the worker, which is
 * in a transaction with an active snapshot.  Returns after how many milliseconds to
 * come again.  Does nothing where the extension is not installed; raises what SQL
 * raises.
 */
pg_nodiscard extern int rollup_step(TimestampTz now);

#endif /* REGPILOT_ROLLUP_H */
