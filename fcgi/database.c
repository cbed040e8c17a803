/*
 * database.c
 *	  Connections whose every wait has an end.
 */
#include "database.h"
#include "clock.h"
#include "log.h"
#include "task.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

bool
database_check_conninfo(const char *conninfo)
{
	PQconninfoOption *options = PQconninfoParse(conninfo, NULL);

	/* libpq's own message may quote a part of conninfo, hence a password. */
	if (options == NULL)
		log_line("REGPILOT_DATABASE is not a valid libpq connection string");
	PQconninfoFree(options);
	return options != NULL;
}

/* Waits until the connection's socket is ready for events; false at the deadline. */
static bool
wait_ready(PGconn *connection, short events, int64_t deadline)
{
	struct pollfd ready = {.fd = PQsocket(connection), .events = events};
	int count;

	do
		count = task_poll(&ready, 1, clock_remaining(deadline));
	while (count < 0 && errno == EINTR);
	return count > 0;
}

/* Notices go nowhere: we cannot vouch for what is in them. */
static void
ignore_notice(void *argument, const char *message)
{
	(void) argument;
	(void) message;
}

static bool
finish_connecting(PGconn *connection, int64_t deadline, char *error)
{
	PostgresPollingStatusType state = PGRES_POLLING_WRITING;

	while (PQstatus(connection) != CONNECTION_BAD && state != PGRES_POLLING_OK)
	{
		if (!wait_ready(connection, state == PGRES_POLLING_READING ? POLLIN : POLLOUT, deadline))
		{
			snprintf(error, DATABASE_ERROR_SIZE, "no connection in time");
			return false;
		}
		state = PQconnectPoll(connection);
	}
	if (PQstatus(connection) == CONNECTION_BAD)
	{
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
		return false;
	}
	return true;
}

/* Whether the server asked for the password, where one is to be checked. */
static bool
is_authenticated(PGconn *connection, const char *password, char *error)
{
	if (password == NULL || PQconnectionUsedPassword(connection))
		return true;
	snprintf(error, DATABASE_ERROR_SIZE,
			 "the server did not ask for a password (pg_hba.conf: scram-sha-256)");
	return false;
}

/* role NULL: that of conninfo. */
static PGconn *
connect_as(const char *conninfo, const char *role, const char *password,
		   const char *application_name, const char *settings, int64_t deadline, char *error)
{
	/* Of two with a value the last one counts. */
	const char *const name = role != NULL ? "application_name" : "fallback_application_name";
	const char *const keywords[] = {"dbname", name, "client_encoding", "user", "password", NULL};
	const char *const values[] = {conninfo, application_name, "UTF8", role, password, NULL};
	PGconn *connection = PQconnectStartParams(keywords, values, true);

	if (connection == NULL)
	{
		snprintf(error, DATABASE_ERROR_SIZE, "out of memory");
		return NULL;
	}
	PQsetNoticeProcessor(connection, ignore_notice, NULL);
	if (finish_connecting(connection, deadline, error) &&
		is_authenticated(connection, password, error) && PQsetnonblocking(connection, true) == 0)
	{
		PGresult *result = database_query(connection, settings, deadline, error, NULL);

		PQclear(result);
		if (result != NULL)
			return connection;
	}
	PQfinish(connection);
	return NULL;
}

PGconn *
database_connect(const char *conninfo, const char *application_name, int statement_timeout,
				 int64_t deadline, char *error)
{
	char settings[96];

	/* What we write are counts and the log, of which a crash may lose the last second. */
	snprintf(settings, sizeof(settings), "SET statement_timeout = %d; SET synchronous_commit = off",
			 statement_timeout);
	return connect_as(conninfo, NULL, NULL, application_name, settings, deadline, error);
}

PGconn *
database_sign_in(const char *conninfo, const char *role, const char *password,
				 const char *application_name, const char *settings, int64_t deadline, char *error)
{
	return connect_as(conninfo, role, password, application_name, settings, deadline, error);
}

bool
database_alive(PGconn *connection)
{
	/* A server that ended has left a last message, and behind it the end of the stream. */
	while (PQstatus(connection) == CONNECTION_OK && wait_ready(connection, POLLIN, 0))
	{
		if (!PQconsumeInput(connection))
			return false;
	}
	return PQstatus(connection) == CONNECTION_OK;
}

/* Gets out what libpq holds back because the socket was full. */
static bool
flush(PGconn *connection, int64_t deadline)
{
	int pending;

	while ((pending = PQflush(connection)) > 0)
	{
		/* The server may have to be read from before it reads on. */
		if (!wait_ready(connection, POLLIN | POLLOUT, deadline) || !PQconsumeInput(connection))
			return false;
	}
	return pending == 0;
}

static bool
result_is_error(const PGresult *result)
{
	return PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK;
}

/* Describes a failed result by what the server says of it, without its context and detail. */
static void
describe(PGconn *connection, const PGresult *result, char *error, char *sqlstate)
{
	const char *message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
	const char *hint = PQresultErrorField(result, PG_DIAG_MESSAGE_HINT);
	const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

	if (message == NULL)
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
	else if (hint == NULL)
		snprintf(error, DATABASE_ERROR_SIZE, "%s", message);
	else
		snprintf(error, DATABASE_ERROR_SIZE, "%s (hint: %s)", message, hint);
	if (sqlstate != NULL && code != NULL)
		snprintf(sqlstate, 6, "%s", code);
}

/* The last result of what has been sent, be it an error; NULL: none has come. */
static PGresult *
receive_result(PGconn *connection, int64_t deadline, char *error)
{
	PGresult *last = NULL;
	PGresult *next;

	if (!flush(connection, deadline))
		goto lost;
	for (;;)
	{
		while (PQisBusy(connection))
		{
			if (!wait_ready(connection, POLLIN, deadline) || !PQconsumeInput(connection))
				goto lost;
		}
		next = PQgetResult(connection);
		if (next == NULL)
			break;
		PQclear(last);
		last = next;
	}

	if (last == NULL)
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
	return last;

lost:
	if (PQstatus(connection) == CONNECTION_OK)
		snprintf(error, DATABASE_ERROR_SIZE, "no answer in time");
	else
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
	PQclear(last);
	return NULL;
}

PGresult *
database_result(PGconn *connection, int64_t deadline, char *error, char *sqlstate)
{
	PGresult *result = receive_result(connection, deadline, error);

	if (sqlstate != NULL)
		sqlstate[0] = '\0';
	if (result != NULL && result_is_error(result))
	{
		describe(connection, result, error, sqlstate);
		PQclear(result);
		result = NULL;
	}
	return result;
}

PGresult *
database_execute(PGconn *connection, const char *sql, int count, const char *const *values,
				 int64_t deadline, char *error)
{
	if (PQsendQueryParams(connection, sql, count, NULL, values, NULL, NULL, 0) != 1)
	{
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
		return NULL;
	}
	return receive_result(connection, deadline, error);
}

PGresult *
database_query(PGconn *connection, const char *sql, int64_t deadline, char *error, char *sqlstate)
{
	if (!PQsendQuery(connection, sql))
	{
		snprintf(error, DATABASE_ERROR_SIZE, "%s", PQerrorMessage(connection));
		return NULL;
	}
	return database_result(connection, deadline, error, sqlstate);
}
