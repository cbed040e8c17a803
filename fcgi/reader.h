/*
 * reader.h
 *	  Reads for the responder itself what takes longer than a verdict: logs and analytics.
 */
#ifndef REGPILOT_READER_H
#define REGPILOT_READER_H

#include "query.h"

/* Before the first call. */
extern void reader_init(void);

/* Closes its connections; when no task calls any more. */
extern void reader_finish(void);

/* Runs the statement over a connection of its own, as query_run(). Only tasks call it. */
extern void reader_run(const char *sql, int count, const char *const *values, QueryResult *result);

#endif
