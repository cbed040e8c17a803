/*-------------------------------------------------------------------------
 *
 * requestlog.h
 *		The request log: one row a request, in a partition a (UTC) day.
 *
 * Only what is listed here is written: never a prompt, an answer or a key.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_REQUESTLOG_H
#define REGPILOT_REQUESTLOG_H

#include "regpilot.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

/* One request, as it is logged; the pointers stay the caller's. */
typedef struct RequestLogEntry
{
	const pg_uuid_t *key_id;
	pg_uuid_t project_id;
	Environment environment;
	int status;		   /* of the HTTP answer */
	int latency;	   /* ms; negative: unknown */
	int first_byte;	   /* ms; negative: unknown, or none was sent */
	const text *model; /* asked of the upstream; NULL: none was */
	int prompt_tokens;
	int completion_tokens;
} RequestLogEntry;

/*
 * Write a row for each entry, in the current transaction, timed by the clock of
 * this moment.  Nothing is written in a read-only transaction, so nothing on a
 * standby.  The caller needs no privilege on the table.  Raises what an INSERT
 * raises.
 */
extern void requestlog_append(const RequestLogEntry *entries, int count);

/*
 * Make the partitions of today and the next days, and drop what is older than
 * regpilot.log_retention.  For the worker, which is in a transaction with an active
 * snapshot: at its start and about once an hour, by a clock that cannot be stepped.
 * Whatever hinders a part of it becomes a WARNING, and that part waits for the next
 * call; only a cancel is raised.  Does nothing where the extension is not installed.
 */
extern void requestlog_maintain(TimestampTz now);

#endif /* REGPILOT_REQUESTLOG_H */
