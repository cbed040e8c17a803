/*
 * database.h
 *	  Connections whose every wait has an end; for authorizer.c and recorder.c.
 *
 * A connection belongs to one task, or thread, at a time. Deadlines are moments of
 * clock_ms(). Errors are described in a text of DATABASE_ERROR_SIZE bytes that
 * may be logged: it comes from the server or from libpq, not from a request.
 */
#ifndef REGPILOT_DATABASE_H
#define REGPILOT_DATABASE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DATABASE_ERROR_SIZE 512

/* Whether conninfo can be understood at all; a message when not. */
extern bool database_check_conninfo(const char *conninfo);

/*
 * Opens a nonblocking connection on which no statement runs longer than
 * statement_timeout ms, and none waits at its end for a disk or a standby.
 * NULL: error says why. The lookup of a host name is the one thing here that the
 * deadline does not bound.
 */
extern PGconn *database_connect(const char *conninfo, const char *application_name,
								int statement_timeout, int64_t deadline, char *error);

/*
 * Opens one as another role, with its password, after which the statements in settings
 * are run. NULL, and error says why, also where the server did not ask for the password.
 */
extern PGconn *database_sign_in(const char *conninfo, const char *role, const char *password,
								const char *application_name, const char *settings,
								int64_t deadline, char *error);

/*
 * Whether an idle connection is still good, as far as one can tell without
 * asking the server; takes in notifications that have arrived.
 */
extern bool database_alive(PGconn *connection);

/*
 * Waits for the result of what was just sent: of the last statement, or of the
 * one that failed. NULL, with an error text: it did not succeed, and sqlstate
 * (6 bytes, may be NULL) has the server's code or is empty. Otherwise the
 * caller clears the result.
 */
extern PGresult *database_result(PGconn *connection, int64_t deadline, char *error, char *sqlstate)
	__attribute__((warn_unused_result));

/*
 * Runs a statement with parameters in text format. Gives its result, which may be an
 * error and which the caller clears; NULL, with an error text: the connection is of no
 * more use.
 */
extern PGresult *database_execute(PGconn *connection, const char *sql, int count,
								  const char *const *values, int64_t deadline, char *error)
	__attribute__((warn_unused_result));

/* Sends one or several statements without parameters, then as database_result. */
extern PGresult *database_query(PGconn *connection, const char *sql, int64_t deadline, char *error,
								char *sqlstate) __attribute__((warn_unused_result));

#endif
