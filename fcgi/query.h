/*
 * query.h
 *	  Statements that answer with JSON.
 */
#ifndef REGPILOT_QUERY_H
#define REGPILOT_QUERY_H

#include <libpq-fe.h>
#include <stdint.h>

typedef enum QueryOutcome
{
	QUERY_ANSWERED, /* json is the first column of the first row */
	QUERY_EMPTY,	/* there is no row, or a NULL in it */
	QUERY_REFUSED,	/* the server found fault with it: sqlstate and message are set */
	QUERY_BUSY,		/* the connection was in use for too long */
	QUERY_LOST		/* it is of no more use, or none could be had */
} QueryOutcome;

/* Strings are the result's own; detail and hint may be NULL. */
typedef struct QueryResult
{
	QueryOutcome outcome;
	PGresult *result;
	const char *json;
	const char *sqlstate;
	const char *message;
	const char *detail;
	const char *hint;
} QueryResult;

/* Runs the statement with parameters in text format. The caller gives the result to query_free(). */
extern void query_run(PGconn *connection, const char *sql, int count, const char *const *values,
					  int64_t deadline, QueryResult *result);
extern void query_free(QueryResult *result);

#endif
