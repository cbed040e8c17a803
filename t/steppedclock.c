/*-------------------------------------------------------------------------
 *
 * steppedclock.c
 *		A wall clock that a test can step while the server runs.
 *
 * Preloaded by LD_PRELOAD, this adds to the time of day the microseconds that
 * the file STEPPED_CLOCK begins with, an int64.  The file is mapped, and so is
 * the mapping of all processes that descend from this one: a step is seen by all
 * of them at once.  Other clocks, CLOCK_MONOTONIC above all, go on as they are.
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

static const volatile int64_t *step; /* NULL: none */

__attribute__((constructor)) static void
map_step(void)
{
	const char *name = getenv("STEPPED_CLOCK");
	int file = name != NULL ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	void *memory;

	if (file < 0)
		return;
	memory = mmap(NULL, sizeof(*step), PROT_READ, MAP_SHARED, file, 0);
	if (memory != MAP_FAILED)
		step = memory;
	close(file);
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && step != NULL && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
	{
		int64_t ns = (now->tv_sec * NS_PER_SECOND + now->tv_nsec) + *step * 1000;

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
