/*-------------------------------------------------------------------------
 *
 * restore.c
 *		Reading in a dump: telling that this is done, and taking rows in any
 *		order.
 *
 * The server does not know that it reads in a dump.  But every script of pg_dump
 * and every session of pg_restore begins by turning row_security off, lest a
 * policy hide rows from it, and by emptying search_path; nobody else has a use for
 * both.  (CREATE EXTENSION sets a search_path of its own.)
 *
 *-------------------------------------------------------------------------
 */
#include "restore.h"

#include "catalog/namespace.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/rls.h"

PG_FUNCTION_INFO_V1(regpilot_restoring);
PG_FUNCTION_INFO_V1(regpilot_trust_dump);

/*
 * Anyone may change these settings, but only a superuser can restore an
 * extension.  So it must be a superuser who acts, and also on whose behalf: the
 * actions of foreign keys and SECURITY DEFINER functions run as their owner,
 * whoever calls.
 */
bool
restoring(void)
{
	return !row_security && (creating_extension || namespace_search_path[0] == '\0') &&
		   superuser() && superuser_arg(GetOuterUserId());
}

Datum
regpilot_restoring(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(restoring());
}

/*
 * Trigger before and after each INSERT or COPY into a table with foreign keys,
 * which are not checked in between when a dump is read in.  pg_restore -j fills
 * the tables of an extension in any order: pg_dump tells it of no dependencies
 * between their rows.
 */
Datum
regpilot_trust_dump(PG_FUNCTION_ARGS)
{
	static int role_before = SESSION_REPLICATION_ROLE_ORIGIN;
	static const char *const role_names[] = {
		[SESSION_REPLICATION_ROLE_ORIGIN] = "origin",
		[SESSION_REPLICATION_ROLE_REPLICA] = "replica",
		[SESSION_REPLICATION_ROLE_LOCAL] = "local",
	};
	int role = SESSION_REPLICATION_ROLE_REPLICA;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("regpilot.trust_dump() must be called as a trigger")));
	if (!restoring())
		return PointerGetDatum(NULL);

	if (TRIGGER_FIRED_BEFORE(((TriggerData *) fcinfo->context)->tg_event))
		role_before = SessionReplicationRole;
	else
		role = role_before;

	/* until the end of the transaction at most, should the statement fail */
	(void) set_config_option("session_replication_role", role_names[role], PGC_SUSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	return PointerGetDatum(NULL);
}
