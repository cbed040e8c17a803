/*-------------------------------------------------------------------------
 *
 * settings.c
 *		The module's settings.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include <limits.h>

#include "utils/guc.h"

#include "settings.h"

#define SECONDS_PER_DAY (24 * 60 * 60)

char *regpilot_database = NULL;
int regpilot_max_keys = 100000;
int regpilot_flush_interval = 1000;
int regpilot_rotation_period = 90 * SECONDS_PER_DAY;
int regpilot_stale_after = 90 * SECONDS_PER_DAY;
int regpilot_log_retention = 30 * SECONDS_PER_DAY;

void
settings_init(void)
{
	DefineCustomStringVariable("regpilot.database", "Database whose keys are checked and counted.",
							   NULL, &regpilot_database, "postgres", PGC_POSTMASTER, 0, NULL, NULL,
							   NULL);

	DefineCustomIntVariable("regpilot.max_keys",
							"Number of keys in use at a time that shared memory has room for.",
							"A key takes about half a kilobyte.", &regpilot_max_keys, 100000, 1,
							10000000, PGC_POSTMASTER, 0, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"regpilot.flush_interval", "Time between two writes of the usage counters to their table.",
		"A crash loses at most what was counted in this time.", &regpilot_flush_interval, 1000, 10,
		60 * 1000, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);

	DefineCustomIntVariable("regpilot.rotation_period",
							"Age from which key_overview shows that a key is due for rotation.",
							NULL, &regpilot_rotation_period, 90 * SECONDS_PER_DAY, 1, INT_MAX,
							PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);

	DefineCustomIntVariable(
		"regpilot.stale_after", "Time without use after which a key is flagged as stale.",
		"A key that has never been used counts from its creation, a reviewed one from its review.",
		&regpilot_stale_after, 90 * SECONDS_PER_DAY, 1, INT_MAX, PGC_SUSET, GUC_UNIT_S, NULL, NULL,
		NULL);

	DefineCustomIntVariable("regpilot.log_retention", "Time that rows of the request log are kept.",
							"They go by the day, so they may stay a day longer.",
							&regpilot_log_retention, 30 * SECONDS_PER_DAY, SECONDS_PER_DAY, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);

	MarkGUCPrefixReserved("regpilot");
}
