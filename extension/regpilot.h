/*-------------------------------------------------------------------------
 *
 * regpilot.h
 *		What every part of the module shares: the settings and the names of
 *		environments.
 *
 * The parts and who may include whom (left may not include right):
 *
 *	regpilot, compat <- columns, elements, key, ratelimit, restore <- location <- secret,
 *		argument, usage, catalog <- journal, requestlog <- audit, authorize, fold, lifecycle,
 *		member, notify, outcome, saved, stale, worker, settings <- regpilot.c
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_H
#define REGPILOT_H

#include "postgres.h"

/* Settings, defined in settings.c */
extern char *regpilot_database;		 /* the database that the worker serves */
extern int regpilot_max_keys;		 /* keys that are sure of a slot */
extern int regpilot_flush_interval;	 /* milliseconds */
extern int regpilot_rotation_period; /* seconds */
extern int regpilot_stale_after;	 /* seconds */
extern int regpilot_log_retention;	 /* seconds */

/* Bytes that the processor fetches at once.  If it is wrong nothing is but the time we take. */
#define CACHE_LINE 64

/*
 * The environments that usage is counted under.  A request names one freely;
 * what is not in the list counts as "other", so a caller cannot make more.
 */
typedef enum Environment
{
	ENVIRONMENT_DEV,
	ENVIRONMENT_STAGING,
	ENVIRONMENT_PROD,
	ENVIRONMENT_CI,
	ENVIRONMENT_OTHER, /* any other name, or none */
} Environment;

#define ENVIRONMENT_COUNT (ENVIRONMENT_OTHER + 1)

extern const char *const environment_names[ENVIRONMENT_COUNT];

extern Environment environment_from_name(const char *name, size_t length);

#endif /* REGPILOT_H */
