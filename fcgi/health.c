/*
 * health.c
 *	  Which upstreams have failed lately, and are passed over for a while.
 *
 * Only upstreams whose last try failed are in the table: as a rule, none.
 */
#include "health.h"
#include "clock.h"
#include "log.h"
#include "metrics.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Upstreams that are remembered; beyond that the one forgotten is that which is due first. */
#define FAILING_MAX 256

typedef struct Failing
{
	char name[64];	   /* as long as the database allows */
	uint64_t base_url; /* its hash */
	int failures;	   /* in a row */
	bool probed;	   /* a request tries it at the moment */
	int64_t retry_at;  /* passed over until then */
} Failing;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* protected by lock; count is also read without, to see that it is 0 */
static Failing table[FAILING_MAX];
static _Atomic int count;

/* FNV-1a */
static uint64_t
hash(const char *text)
{
	uint64_t value = 0xcbf29ce484222325;

	for (; *text != '\0'; text++)
		value = (value ^ (unsigned char) *text) * 0x100000001b3;
	return value;
}

/* NULL: the last try, if there was one, was good. Holds the lock. */
static Failing *
find(const char *upstream)
{
	for (int i = 0; i < count; i++)
	{
		if (strcmp(table[i].name, upstream) == 0)
			return &table[i];
	}
	return NULL;
}

static void
forget(Failing *failing)
{
	*failing = table[--count];
}

static Failing *
remember(const char *upstream, const char *base_url)
{
	Failing *failing = &table[0];

	if (count < FAILING_MAX)
		failing = &table[count++];
	else
	{
		for (int i = 1; i < FAILING_MAX; i++)
		{
			if (table[i].retry_at < failing->retry_at)
				failing = &table[i];
		}
	}
	memset(failing, 0, sizeof(*failing));
	snprintf(failing->name, sizeof(failing->name), "%s", upstream);
	failing->base_url = hash(base_url);
	return failing;
}

bool
health_admits(const char *upstream, const char *base_url, bool *probe)
{
	Failing *failing;
	bool admitted = true;

	*probe = false;
	if (count == 0)
		return true;

	pthread_mutex_lock(&lock);
	failing = find(upstream);
	if (failing != NULL && failing->base_url != hash(base_url))
		forget(failing);
	else if (failing != NULL)
	{
		admitted = *probe = !failing->probed && clock_ms() >= failing->retry_at;
		failing->probed |= *probe;
	}
	pthread_mutex_unlock(&lock);
	return admitted;
}

/* ms to pass an upstream over */
static int64_t
backoff(int failures, int retry_after)
{
	int64_t ms = HEALTH_BACKOFF_MIN;

	while (--failures > 0 && ms < HEALTH_BACKOFF_MAX)
		ms *= 2;
	if (ms < (int64_t) retry_after * 1000)
		ms = (int64_t) retry_after * 1000;
	return ms < HEALTH_BACKOFF_MAX ? ms : HEALTH_BACKOFF_MAX;
}

void
health_report(const char *upstream, const char *base_url, bool probe, HealthNews news,
			  int retry_after)
{
	Failing *failing;
	int64_t pause = 0;
	bool recovered = false;

	if (count == 0 && news != HEALTH_FAILED)
		return;

	pthread_mutex_lock(&lock);
	failing = find(upstream);
	if (failing != NULL && failing->base_url != hash(base_url))
		failing = NULL; /* old news, of where it was before */
	else if (news == HEALTH_FAILED &&
			 (failing == NULL || (probe && clock_ms() >= failing->retry_at)))
	{
		/* (Others add nothing: they began while it was good, had no choice, or fail together.) */
		if (failing == NULL)
			failing = remember(upstream, base_url);
		failing->failures++;
		pause = backoff(failing->failures, retry_after);
		failing->retry_at = clock_ms() + pause;
	}
	else if (news == HEALTH_ANSWERED && failing != NULL)
	{
		forget(failing);
		failing = NULL;
		recovered = true;
	}
	if (probe && failing != NULL)
		failing->probed = false;
	pthread_mutex_unlock(&lock);

	if (pause > 0)
		log_line("upstream \"%s\" is passed over for %d s", upstream, (int) (pause / 1000));
	if (recovered)
		log_info("upstream \"%s\" answers again", upstream);
}

void
health_metrics(Buffer *out)
{
	Failing copy[FAILING_MAX];
	int copied;

	pthread_mutex_lock(&lock);
	copied = count;
	memcpy(copy, table, sizeof(*table) * (size_t) copied);
	pthread_mutex_unlock(&lock);

	metrics_head(out, "regpilot_upstream_failures", "gauge",
				 "Failures in a row of upstreams whose last try failed.");
	for (int i = 0; i < copied; i++)
		buffer_printf(out, "regpilot_upstream_failures{upstream=\"%s\"} %d\n", copy[i].name,
					  copy[i].failures);
	metrics_head(out, "regpilot_upstream_backoff_seconds", "gauge",
				 "Time for which upstreams are still passed over.");
	for (int i = 0; i < copied; i++)
		buffer_printf(out, "regpilot_upstream_backoff_seconds{upstream=\"%s\"} %.3f\n",
					  copy[i].name, clock_remaining(copy[i].retry_at) / 1000.0);
}
