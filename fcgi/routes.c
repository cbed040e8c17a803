/*
 * routes.c
 *	  The routing table: which upstreams serve a request, in which order.
 */
#include "routes.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Routes *current; /* protected by lock; holds one reference */

Routes *
routes_create(size_t count)
{
	Routes *routes = calloc(1, sizeof(Routes) + count * sizeof(Route));

	if (routes != NULL)
	{
		routes->references = 1;
		routes->count = count;
	}
	return routes;
}

void
routes_publish(Routes *routes)
{
	Routes *former;

	pthread_mutex_lock(&lock);
	former = current;
	current = routes;
	pthread_mutex_unlock(&lock);
	routes_release(former);
}

Routes *
routes_acquire(void)
{
	Routes *routes;

	pthread_mutex_lock(&lock);
	routes = current;
	if (routes != NULL)
		routes->references++;
	pthread_mutex_unlock(&lock);
	return routes;
}

void
routes_release(Routes *routes)
{
	bool last;

	if (routes == NULL)
		return;

	pthread_mutex_lock(&lock);
	last = --routes->references == 0;
	pthread_mutex_unlock(&lock);
	if (!last)
		return;

	for (size_t i = 0; i < routes->count; i++)
	{
		Route *route = &routes->route[i];

		free(route->quality);
		free(route->alias);
		free(route->upstream);
		free(route->base_url);
		free(route->secret_name);
		free(route->model);
	}
	free(routes);
}

/* The routes whose field (alias or quality) has the value. */
static size_t
collect(const Routes *routes, size_t field, const char *value, const Route *found[ROUTES_TRIED_MAX])
{
	size_t count = 0;

	for (size_t i = 0; i < routes->count && count < ROUTES_TRIED_MAX; i++)
	{
		const Route *route = &routes->route[i];
		const char *candidate = *(char *const *) ((const char *) route + field);

		if (candidate != NULL && strcmp(candidate, value) == 0)
			found[count++] = route;
	}
	return count;
}

/* Shuffles those of equal priority. */
static void
shuffle(const Route *found[], size_t count, uint64_t chance)
{
	for (size_t i = 0, end; i < count; i = end)
	{
		for (end = i + 1; end < count && found[end]->priority == found[i]->priority; end++)
			;
		for (size_t left = end - i; left > 1; left--)
		{
			const Route **one = &found[i + left - 1 - chance % left];
			const Route **last = &found[i + left - 1];
			const Route *swapped = *one;

			*one = *last;
			*last = swapped;
			chance /= left;
		}
	}
}

size_t
routes_match(const Routes *routes, const char *model, const char *quality, uint64_t chance,
			 const Route *found[ROUTES_TRIED_MAX])
{
	size_t count = 0;

	if (model == NULL)
		count = collect(routes, offsetof(Route, quality), quality, found);
	else
	{
		count = collect(routes, offsetof(Route, alias), model, found);
		if (count == 0)
			count = collect(routes, offsetof(Route, alias), "*", found);
	}
	shuffle(found, count, chance);
	return count;
}
