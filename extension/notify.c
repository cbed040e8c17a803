/*-------------------------------------------------------------------------
 *
 * notify.c
 *		Tell who listens what becomes of the keys.
 *
 * Triggers of api_key say which changes are worth a notification, so that those
 * made by direct SQL and by the worker are told of as well.  As any notification
 * it is sent at COMMIT, to every session that listens in this database, whatever
 * its privileges.
 *
 *-------------------------------------------------------------------------
 */
#include "regpilot.h"

#include "commands/async.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "utils/json.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(regpilot_notify_key);

#define CHANNEL "regpilot"

/*
 * The columns that are told, and under which names.  They say which key it is to
 * who may read of it; names and hints would reach those too who may not.
 */
static const struct
{
	const char *column;
	const char *name;
} members[] = {
	{"id", "key_id"},
	{"project_id", "project_id"},
	{"rotated_from", "rotated_from"},
};

/* Trigger for each row of api_key; its argument is the event. */
Datum
regpilot_notify_key(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc descriptor;
	HeapTuple row;
	StringInfoData payload;

	if (!CALLED_AS_TRIGGER(fcinfo) || trigger->tg_trigger->tgnargs != 1)
		ereport(ERROR, (errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
						errmsg("regpilot.notify_key() must be called as a trigger")));

	descriptor = RelationGetDescr(trigger->tg_relation);
	row = TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? trigger->tg_newtuple : trigger->tg_trigtuple;

	initStringInfo(&payload);
	appendStringInfoString(&payload, "{\"event\":");
	escape_json(&payload, trigger->tg_trigger->tgargs[0]);
	for (int i = 0; i < lengthof(members); i++)
	{
		char *value = SPI_getvalue(row, descriptor, SPI_fnumber(descriptor, members[i].column));

		if (value == NULL)
			continue;
		appendStringInfo(&payload, ",\"%s\":", members[i].name);
		escape_json(&payload, value);
	}
	appendStringInfoChar(&payload, '}');

	Async_Notify(CHANNEL, payload.data);
	return PointerGetDatum(NULL);
}
