/*-------------------------------------------------------------------------
 *
 * ratelimit.h
 *		A sliding window that admits at most N requests in any 60 seconds.
 *		Nothing here touches a catalog or shared memory, locks or clocks: the
 *		caller guards the window and says what time it is.
 *
 * Requests are counted in buckets of one second.  A request is admitted when
 * the buckets of the last 60 seconds and of the running one hold fewer than N.
 * Any two requests less than 60 seconds apart are at most 60 buckets apart,
 * so no window of that length, wherever it begins, holds more than N; a place
 * frees at most one second late.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_RATELIMIT_H
#define REGPILOT_RATELIMIT_H

#include "postgres.h"

#define RATE_WINDOW_SECONDS 60
#define RATE_BUCKETS (RATE_WINDOW_SECONDS + 1) /* and the running second */

/*
 * All zero is an empty window.  The clock may say any time from RATE_BUCKETS
 * seconds on, so that no second in a window is negative.
 */
typedef struct RateWindow
{
	int64 second;				  /* of the newest bucket, on the caller's clock */
	int64 oldest;				  /* no bucket of a second before this one holds any */
	uint32 sum;					  /* of all buckets */
	uint32 buckets[RATE_BUCKETS]; /* of second s at s % RATE_BUCKETS */
} RateWindow;

typedef struct RateDecision
{
	bool admitted;
	int remaining; /* places left after this request */
	int64 wait;	   /* microseconds until the next place frees */
} RateDecision;

/*
 * Ask for a place in the window at a time in microseconds of a clock that
 * does not step, under a limit of at least 1.  A refused request takes none.
 */
extern RateDecision ratelimit_admit(RateWindow *window, uint32 limit, int64 now);

/* Whether no request is left in the window at that time. */
extern bool ratelimit_is_empty(const RateWindow *window, int64 now);

/*
 * Make a window of one that was saved when the clock said less by so many
 * microseconds than it would say now of the same moment.  What was saved may be
 * damaged: then the window holds more requests rather than fewer.
 */
extern void ratelimit_restore(RateWindow *window, const RateWindow *saved, int64 shift, int64 now);

#endif /* REGPILOT_RATELIMIT_H */
