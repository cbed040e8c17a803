/*
 * clock.h
 *	  The time that waits and latencies are measured with.
 */
#ifndef REGPILOT_CLOCK_H
#define REGPILOT_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Milliseconds of the monotonic clock: not moved by a stepping wall clock. */
static inline int64_t
clock_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The same in microseconds. */
static inline int64_t
clock_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t) now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* From now until deadline (of clock_ms), as poll() wants it: never negative. */
static inline int
clock_remaining(int64_t deadline)
{
	int64_t remaining = deadline - clock_ms();

	return remaining < 0 ? 0 : remaining > INT32_MAX ? INT32_MAX : (int) remaining;
}

/* A moment of clock_ms() for pthread_cond_timedwait() on CLOCK_MONOTONIC. */
static inline struct timespec
clock_timespec(int64_t ms)
{
	struct timespec moment = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	return moment;
}

#endif
