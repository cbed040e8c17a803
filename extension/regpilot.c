/*-------------------------------------------------------------------------
 *
 * regpilot.c
 *		Load the module.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "catalog.h"
#include "saved.h"
#include "settings.h"
#include "usage.h"
#include "worker.h"

PG_MODULE_MAGIC;

void _PG_init(void);

const char *const environment_names[ENVIRONMENT_COUNT] = {
	[ENVIRONMENT_DEV] = "dev", [ENVIRONMENT_STAGING] = "staging", [ENVIRONMENT_PROD] = "prod",
	[ENVIRONMENT_CI] = "ci",   [ENVIRONMENT_OTHER] = "other",
};

/*
 * environment_from_name -- what a request that names this environment counts
 * under.  The name need not end in a zero byte.
 */
Environment
environment_from_name(const char *name, size_t length)
{
	for (int i = 0; i < ENVIRONMENT_OTHER; i++)
	{
		if (strlen(environment_names[i]) == length &&
			memcmp(environment_names[i], name, length) == 0)
			return (Environment) i;
	}
	return ENVIRONMENT_OTHER;
}

void
_PG_init(void)
{
	/*
	 * Shared memory and the worker can only be had at server start.  Loaded
	 * later, the functions that need them say so; see usage_require().
	 */
	if (!process_shared_preload_libraries_in_progress)
		return;

	settings_init();
	usage_init();
	saved_init();
	catalog_init();
	worker_init();
}
