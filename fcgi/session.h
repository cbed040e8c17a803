/*
 * session.h
 *	  Sessions of the dashboard: each is a connection to the database, as the role that
 *	  signed in. What it may see and do is up to the server.
 *
 * A session is known by a token, of which only the client's cookie and our memory know.
 * It ends when it is closed, when it has been idle for long, and with its connection.
 */
#ifndef REGPILOT_SESSION_H
#define REGPILOT_SESSION_H

#include "buffer.h"
#include "query.h"

#include <stdbool.h>

/* Characters of a token, and a NUL. */
#define SESSION_TOKEN_SIZE 65

typedef struct Session Session;

typedef enum SignIn
{
	SIGN_IN_DONE,
	SIGN_IN_FAILED,		 /* role or password are wrong, or the role may not use the dashboard */
	SIGN_IN_THROTTLED,	 /* after failures, for so many seconds */
	SIGN_IN_FULL,		 /* there are as many sessions as there may be */
	SIGN_IN_UNAVAILABLE, /* the database is out of reach */
} SignIn;

extern void session_init(void);

/*
 * Opens a session; address is the client's, as far as it is known, by which failures are
 * counted. The session, in the end, is given to session_release().
 */
extern SignIn session_open(const char *role, const char *password, const char *address,
						   Session **session, int *retry_after) __attribute__((warn_unused_result));

/* The session with this token, to be given to session_release(); NULL: there is none. */
extern Session *session_find(const char *token, size_t length) __attribute__((warn_unused_result));

extern void session_release(Session *session);

/* Ends it for all. */
extern void session_close(Session *session);

/* Ends all; when no task uses one any more. */
extern void session_finish(void);

extern void session_metrics(Buffer *out);

extern const char *session_token(const Session *session);
extern const char *session_role(const Session *session);

/* Whether the role is a member of regpilot_admin. */
extern bool session_is_admin(const Session *session);

/* As query_run(); one at a time, others wait. Closes the session when its connection is lost. */
extern void session_run(Session *session, const char *sql, int count, const char *const *values,
						QueryResult *result);

#endif
