/*-------------------------------------------------------------------------
 *
 * steppedclock.c
 *		Clocks that a test can step while the server runs.
 *
 * Preloaded by LD_PRELOAD, this adds to the time of day, and to CLOCK_MONOTONIC,
 * the microseconds that the file STEPPED_CLOCK holds for them, an int64 each.  The
 * file is mapped, and so is the mapping of all processes that descend from this one:
 * a step is seen by all of them at once.  Other clocks go on as they are.
 *
 * Debian's libfaketime is not used: its processes share a semaphore, which those
 * that are killed leave locked, and each keeps the time of day for a while.
 *
 *-------------------------------------------------------------------------
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_SECOND 1000000000LL

enum
{
	STEP_WALL,
	STEP_MONOTONIC,
	STEPS
};

static const volatile int64_t *steps; /* NULL: none */

__attribute__((constructor)) static void
map_steps(void)
{
	const char *name = getenv("STEPPED_CLOCK");
	int file = name != NULL ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void *memory;

	if (file < 0)
		return;
	memory = mmap(NULL, STEPS * sizeof(*steps), PROT_READ, MAP_SHARED, file, 0);
	if (memory != MAP_FAILED)
		steps = memory;
	close(file);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);
	int64_t step = 0;

	if (result != 0 || steps == NULL)
		return result;
	if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
		step = steps[STEP_WALL];
	else if (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE)
		step = steps[STEP_MONOTONIC];
	if (step != 0)
	{
		int64_t ns = (now->tv_sec * NS_PER_SECOND + now->tv_nsec) + step * 1000;

		now->tv_sec = ns / NS_PER_SECOND;
		now->tv_nsec = ns % NS_PER_SECOND;
	}
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *now)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (now != NULL)
		*now = precise.tv_sec;
	return precise.tv_sec;
}
