/*
 * query.c
 *	  Statements that answer with JSON.
 */
#include "query.h"
#include "database.h"
#include "log.h"

#include <string.h>

void
query_run(PGconn *connection, const char *sql, int count, const char *const *values,
		  int64_t deadline, QueryResult *result)
{
	char error[DATABASE_ERROR_SIZE];
	PGresult *answer = database_execute(connection, sql, count, values, deadline, error);

	*result = (QueryResult){.outcome = QUERY_LOST, .result = answer};
	if (answer == NULL)
		log_line("a query of the dashboard or of a log failed: %s", error);
	else if (PQresultStatus(answer) == PGRES_TUPLES_OK)
	{
		bool empty = PQntuples(answer) == 0 || PQgetisnull(answer, 0, 0);

		result->outcome = empty ? QUERY_EMPTY : QUERY_ANSWERED;
		result->json = empty ? NULL : PQgetvalue(answer, 0, 0);
	}
	else if (PQresultErrorField(answer, PG_DIAG_SQLSTATE) != NULL)
	{
		result->outcome = QUERY_REFUSED;
		result->sqlstate = PQresultErrorField(answer, PG_DIAG_SQLSTATE);
		result->message = PQresultErrorField(answer, PG_DIAG_MESSAGE_PRIMARY);
		result->detail = PQresultErrorField(answer, PG_DIAG_MESSAGE_DETAIL);
		result->hint = PQresultErrorField(answer, PG_DIAG_MESSAGE_HINT);
		/* The server is about to end the connection, or has (class 57: 57P01, 57P05). */
		if (strncmp(result->sqlstate, "57P", 3) == 0)
			result->outcome = QUERY_LOST;
	}
}

void
query_free(QueryResult *result)
{
	PQclear(result->result);
	*result = (QueryResult){.outcome = QUERY_EMPTY};
}
