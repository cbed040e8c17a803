/*-------------------------------------------------------------------------
 *
 * ratelimit.c
 *		A sliding window that admits at most N requests in any 60 seconds.
 *
 *-------------------------------------------------------------------------
 */
#include "ratelimit.h"

#include "datatype/timestamp.h"

#define BUCKET(window, second) ((window)->buckets[(second) % RATE_BUCKETS])

/* So many in every bucket are still a sum that a limit can be compared with. */
#define BUCKET_MAX (PG_INT32_MAX / RATE_BUCKETS)

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
		uint32 *bucket = &BUCKET(window, ++window->second);

		window->sum -= *bucket;
		*bucket = 0;
	}
	window->oldest = Max(window->oldest, second - RATE_WINDOW_SECONDS);
}

/* Microseconds until so many of the requests in the window have left it. */
static int64
time_until_freed(RateWindow *window, uint32 count, int64 now)
{
	uint32 freed;
	int64 second;

	/* the window holds as many, so neither search goes past the newest bucket */
	while (BUCKET(window, window->oldest) == 0)
		window->oldest++;
	second = window->oldest;
	for (freed = BUCKET(window, second); freed < count; freed += BUCKET(window, second))
		second++;
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
		BUCKET(window, window->second)++;
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

void
ratelimit_restore(RateWindow *window, const RateWindow *saved, int64 shift, int64 now)
{
	int64 newest = now / USECS_PER_SEC;
	int64 oldest = newest - RATE_WINDOW_SECONDS;

	/* rounded up: later is never too lenient */
	int64 moved = shift / USECS_PER_SEC + (shift % USECS_PER_SEC > 0 ? 1 : 0);
	bool damaged = saved->second < RATE_BUCKETS || saved->second > newest - moved + 1;

	memset(window, 0, sizeof(*window));
	window->second = newest;
	window->oldest = oldest;

	for (int i = 0; i < RATE_BUCKETS; i++)
	{
		int64 second = newest;

		/* the bucket's second, then and now; rounded up it may be a second ahead of us */
		if (!damaged)
			second = Min(newest, saved->second - (saved->second - i) % RATE_BUCKETS + moved);
		if (second >= oldest)
			BUCKET(window, second) += Min(saved->buckets[i], BUCKET_MAX);
	}
	for (int i = 0; i < RATE_BUCKETS; i++)
		window->sum += window->buckets[i];
}
