/*
 * routes.h
 *	  The routing table: which upstreams serve a request, in which order.
 *
 * The authorizer builds a table from the database and publishes it; requests
 * acquire the current one and release it when they are done. A table does not
 * change once published, and is freed with its last reference.
 */
#ifndef REGPILOT_ROUTES_H
#define REGPILOT_ROUTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Requests are passed on to at most so many upstreams, one after the other. */
#define ROUTES_TRIED_MAX 16

/* A row of regpilot.route with its upstream; NULL where the row has NULL. */
typedef struct Route
{
	char *quality;
	char *alias; /* "*": any model without a route of its own */
	char *upstream;
	char *base_url;
	char *secret_name;
	char *model; /* NULL: the name that the request gave */
	int priority;
	int connect_timeout; /* ms of the upstream; 0: as the settings say */
	int timeout;		 /* the same, of silence */
} Route;

typedef struct Routes
{
	int references; /* protected by the lock in routes.c */
	size_t count;
	Route route[]; /* in the order in which they are to be tried */
} Routes;

/* An empty table with room for count routes, to be filled by the caller with strings it gives
 * away; NULL: out of memory. */
extern Routes *routes_create(size_t count);

/* Makes the table current; takes the caller's reference. */
extern void routes_publish(Routes *routes);

/* The current table, NULL as long as none was published. */
extern Routes *routes_acquire(void);
extern void routes_release(Routes *routes);

/*
 * Finds the routes for a request that names a model, or (NULL) none; gives their number.
 * chance: any number; those of equal priority come in the order that it stands for, so
 * that they share the load. 0: in that of the table.
 */
extern size_t routes_match(const Routes *routes, const char *model, const char *quality,
						   uint64_t chance, const Route *found[ROUTES_TRIED_MAX]);

#endif
