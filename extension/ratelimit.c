/*-------------------------------------------------------------------------
 *
 * ratelimit.c
 *		A sliding window that admits at most N requests in any 60 seconds.
 *
 *-------------------------------------------------------------------------
 */
#include "ratelimit.h"

#include "datatype/timestamp.h"

/* Make the bucket of this second the newest one, dropping those that leave. */
static void
advance(RateWindow *window, int64 second)
{
	if (second - window->second >= RATE_BUCKETS)
	{
		memset(window->buckets, 0, sizeof(window->buckets));
		window->sum = 0;
		window->second = second;
	}
	while (window->second < second)
	{
		uint32 *bucket = &window->buckets[++window->second % RATE_BUCKETS];

		window->sum -= *bucket;
		*bucket = 0;
	}
}

/* Microseconds until so many of the requests in the window have left it. */
static int64
time_until_freed(const RateWindow *window, uint32 count, int64 now)
{
	int64 second = window->second - RATE_WINDOW_SECONDS;
	uint32 freed = 0;

	/* the oldest first; the window holds as many, so this ends in time */
	for (; second < window->second; second++)
	{
		/* before a clock's first minute there are no older seconds */
		if (second >= 0)
			freed += window->buckets[second % RATE_BUCKETS];
		if (freed >= count)
			break;
	}
	return (second + RATE_BUCKETS) * USECS_PER_SEC - now;
}

RateDecision
ratelimit_admit(RateWindow *window, uint32 limit, int64 now)
{
	RateDecision decision;

	advance(window, now / USECS_PER_SEC);

	decision.admitted = window->sum < limit;
	if (decision.admitted)
	{
		window->buckets[window->second % RATE_BUCKETS]++;
		window->sum++;
		decision.remaining = (int) (limit - window->sum);
		decision.wait = time_until_freed(window, 1, now);
	}
	else
	{
		/* more than one must leave where the limit was lowered */
		decision.remaining = 0;
		decision.wait = time_until_freed(window, window->sum - limit + 1, now);
	}
	return decision;
}

bool
ratelimit_is_empty(const RateWindow *window, int64 now)
{
	return window->sum == 0 || now / USECS_PER_SEC - window->second >= RATE_BUCKETS;
}
